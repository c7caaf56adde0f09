"""The HTTP process: `python -m tiledwriter.status --http HOST:PORT --journal-dir DIR`. The supervisor starts it."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Final

from .._logging import LogOptions
from ._address import HttpAddress, parse_http_address

log = logging.getLogger("tiledwriter.status")

# Pause between two attempts to listen.
LISTEN_AGAIN_SECONDS: Final = 5.0

# Below the supervisor and its workers: a page may be late, an acknowledgement may not.
_NICENESS: Final = 10
_MAX_CONNECTIONS: Final = 200
_STOP_SECONDS: Final = 2.0


def main() -> int:
    """Serve until the process is stopped."""
    arguments = _parse_arguments()
    LogOptions(arguments.log_level, arguments.log_format).configure(process="http")
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    # Listen before the imports, which take half a second.
    stopping = threading.Event()
    if arguments.until_stdin_closes:
        threading.Thread(target=_stop_with_stdin, args=(stopping,), name="tiledwriter-stdin", daemon=True).start()
    listener = _listen_until(arguments.http, arguments.listen_again, stopping)
    if listener is not None:
        _serve(listener, arguments, stopping)
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tiledwriter.status", description=__doc__)
    parser.add_argument("--http", type=_address_of, required=True, metavar="HOST:PORT")
    parser.add_argument("--journal-dir", type=Path, required=True, metavar="DIR")
    parser.add_argument("--token-file", type=Path, metavar="FILE")
    parser.add_argument("--name", action="append", default=[], dest="names", metavar="NAME")
    parser.add_argument("--listen-again", type=float, default=LISTEN_AGAIN_SECONDS, metavar="SECONDS")
    parser.add_argument("--until-stdin-closes", action="store_true")
    parser.add_argument("--log-level", default="INFO", metavar="L")
    parser.add_argument("--log-format", choices=("auto", "text", "json", "journald"), default="auto")
    return parser.parse_args()


def _address_of(text: str) -> HttpAddress:
    try:
        return parse_http_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _stop_with_stdin(stopping: threading.Event) -> None:
    """Wait for the end of standard input, which comes when the supervisor ends, however it ends."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    stopping.set()
    # A request that hangs must not keep the process; it has nothing to finish.
    time.sleep(_STOP_SECONDS)
    os._exit(0)


def _listen_until(address: HttpAddress, pause: float, stopping: threading.Event) -> socket.socket | None:
    """Return a listening socket; None if the process is to stop before the address can be used."""
    said = ""
    while not stopping.is_set():
        try:
            listener = _listen_at(address)
        except OSError as error:
            if str(error) != said:
                said = str(error)
                log.error(
                    "Cannot serve HTTP at %s: %s. Trying again every %g s; runs are not affected.",
                    address,
                    error.strerror or error,
                    pause,
                )
                _report(
                    f"{address} cannot be listened at ({error.strerror or error}); end what uses it, or set another "
                    "address as http"
                )
            stopping.wait(pause)
            continue
        _report("")
        log.info("The status page is at http://%s/.", address)
        if not address.is_loopback:
            log.warning(
                "Other hosts can read the status page at http://%s/, without a password or encryption.", address
            )
        return listener
    return None


def _report(problem: str) -> None:
    """Tell the supervisor, which reads standard output, why the page is not served, or "" that it is."""
    with contextlib.suppress(OSError):
        os.write(1, f"{problem}\n".encode())


def _listen_at(address: HttpAddress) -> socket.socket:
    family, *_, target = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(target)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


def _serve(listener: socket.socket, arguments: argparse.Namespace, stopping: threading.Event) -> None:
    import uvicorn

    from ._app import StatusApp
    from ._snapshot import read_answer
    from ._source import SnapshotSource

    source = SnapshotSource(partial(read_answer, arguments.journal_dir))
    # Who opens it to other hosts has no secret to keep from a web site.
    names = arguments.names if arguments.http.is_loopback else None
    app = StatusApp(source, arguments.journal_dir, arguments.token_file, names).starlette()
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)

    def stop_server() -> None:
        stopping.wait()
        server.should_exit = True

    threading.Thread(target=stop_server, name="tiledwriter-stop", daemon=True).start()
    server.run(sockets=[listener])


if __name__ == "__main__":
    sys.exit(main())
