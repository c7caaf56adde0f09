"""An HTTP server that does to requests what a test says, and one that does it in front of a real Tiled server."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from tiledwriter.testing import wait_until

PREFIX = "/api/v1/"
LOGIN = b"<html>Please log in.</html>"

_ANSWERS = {
    "POST": b'{"id":"node","data_sources":[{"id":1,"parameters":{}}]}',
    "GET": b'{"data":{"attributes":{"structure":{"shape":[1]},"data_sources":[{"id":1,"parameters":{}}]}}}',
}


@dataclass(frozen=True)
class Fault:
    """What becomes of a request.

    It is carried out at once if `forward`, after `delay` seconds if there is one. What is answered is `status`, or
    what the server said if it is held back for `hold` seconds; else nothing. With `half`, what the server said
    breaks off in the middle, while the connection stays open for `hold` seconds on our side only. One that is `stalled`
    is carried out when `release_stalled` is called, or by the next one that `releases`, behind it.
    """

    name: str
    forward: bool = False
    delay: float | None = None
    status: int | None = None
    hold: float = 0.0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    half: bool = False
    stalled: bool = False
    releases: bool = False


PASS = Fault("pass", forward=True)
STALLED = Fault("stalled", stalled=True, status=504)
RELEASE = Fault("release", forward=True, releases=True)
CUT_BEFORE = Fault("cut before")
CUT_AFTER = Fault("cut after", forward=True)


def answer(status: int, detail: str = "as scripted", headers: Mapping[str, str] | None = None) -> Fault:
    """Answer with this status, and carry nothing out."""
    body = msgspec.json.encode({"detail": detail})
    return Fault(f"{status}", status=status, headers=headers or {}, body=body)


def page(status: int, location: str = "") -> Fault:
    """Answer with a page of HTML, as a gateway does, and carry nothing out."""
    headers = {"Content-Type": "text/html", **({"Location": location} if location else {})}
    return Fault(f"{status} page", status=status, headers=headers, body=LOGIN)


def zombie(delay: float) -> Fault:
    """Answer 504 at once, and carry the request out `delay` seconds later."""
    return Fault("zombie", delay=delay, status=504)


def late_answer(delay: float) -> Fault:
    """Carry the request out at once, and hand the answer on `delay` seconds later."""
    return Fault("late answer", forward=True, hold=delay)


def half_closed(seconds: float) -> Fault:
    """Carry the request out, begin the answer and say that nothing more comes; hang up `seconds` later."""
    return Fault("half closed", forward=True, hold=seconds, half=True)


@dataclass(frozen=True)
class Request:
    """One request as it came, with the name of what was done to it. `path` follows `/api/v1/` and is not unquoted."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    fate: str

    def is_for(self, method: str, path: str) -> bool:
        return self.method == method and self.path.startswith(path)


@dataclass
class _Rule:
    method: str
    path: str
    faults: list[Fault]


class ScriptedServer:
    """A server that plays a script and records every request; what is not in the script is answered as Tiled does.

    As a context manager it starts on entry; on exit it waits for its threads.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._rules: list[_Rule] = []
        self._mutex = threading.Lock()
        self.late_answers: list[tuple[int, Any, bytes]] = []
        self._late: list[threading.Thread] = []
        self._stalled: list[Callable[[], tuple[int, Any, bytes]]] = []
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.port = self._server.server_address[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="scripted-server")

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.wait_for_late_requests()
        self._server.shutdown()
        self._thread.join()
        self._server.cut_all()
        self._server.server_close()

    def script(self, method: str, path: str, *faults: Fault) -> None:
        """The next requests with this method, and a path that begins so, meet these faults, one each."""
        with self._mutex:
            self._rules.append(_Rule(method, path, list(faults)))

    @property
    def all_played(self) -> bool:
        """Whether every fault of the script has met its request."""
        with self._mutex:
            return not any(rule.faults for rule in self._rules)

    def count(self, method: str, path: str = "") -> int:
        """How many such requests came."""
        return sum(request.is_for(method, path) for request in list(self.requests))

    def wait_for_late_requests(self) -> None:
        """Return when every request that was to be carried out later has been."""
        wait_until(lambda: not any(thread.is_alive() for thread in self._late), 30, "late requests are carried out")

    def client(self, api_key: str = "", path_parts: Sequence[str] = ()) -> Any:
        """What `Connection` needs of a Tiled client, as a context manager."""
        return small_client(self.uri, api_key, path_parts)

    def fault_for(self, method: str, path: str) -> Fault:
        with self._mutex:
            for rule in self._rules:
                if rule.faults and rule.method == method and path.startswith(rule.path):
                    return rule.faults.pop(0)
        return PASS

    def record(self, request: Request) -> None:
        with self._mutex:
            self.requests.append(request)

    def carry_out(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any, bytes]:
        """Status, headers and body for a request that nothing is wrong with."""
        return 200, [("Content-Type", "application/json")], _ANSWERS.get(method, b"null")

    def stall(self, carry_out: Callable[[], tuple[int, Any, bytes]]) -> None:
        with self._mutex:
            self._stalled.append(carry_out)

    def release_stalled(self) -> None:
        """Carry out what is stalled, and return when that is done."""
        with self._mutex:
            stalled, self._stalled = self._stalled, []
        self.late_answers += [carry_out() for carry_out in stalled]

    def carry_out_later(self, delay: float, carry_out: Callable[[], tuple[int, Any, bytes]]) -> None:
        thread = threading.Timer(delay, lambda: self.late_answers.append(carry_out()))
        self._late.append(thread)
        thread.start()


class FaultyProxy(ScriptedServer):
    """The same, in front of the server at `uri`: what is not in the script goes there."""

    def __init__(self, uri: str) -> None:
        super().__init__()
        self._upstream = urlsplit(uri).netloc

    def carry_out(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any, bytes]:
        return self.forward(self._upstream, method, target, headers, body)

    @staticmethod
    def forward(
        server: str, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, Any, bytes]:
        """What the server at this address (host and port) answers."""
        connection = http.client.HTTPConnection(server, timeout=30)
        try:
            # The host is kept: links in answers are to lead here, and not past us.
            kept = {key: value for key, value in headers.items() if key.lower() != "connection"}
            connection.request(method, target, body=body, headers={**kept, "Connection": "close"})
            response = connection.getresponse()
            content = response.read()
            return response.status, response.getheaders(), content
        finally:
            connection.close()


@contextmanager
def small_client(uri: str, api_key: str = "", path_parts: Sequence[str] = ()) -> Iterator[Any]:
    """As much of a Tiled client as a `Connection` looks at."""
    headers = {"Authorization": f"Apikey {api_key}"} if api_key else {}
    with httpx.Client(headers=headers) as http_client:
        about = SimpleNamespace(library_version="0.2.20")
        context = SimpleNamespace(http_client=http_client, api_uri=httpx.URL(uri + PREFIX), server_info=about)
        yield SimpleNamespace(context=context, path_parts=tuple(path_parts))


class _Server(ThreadingHTTPServer):
    owner: ScriptedServer
    daemon_threads = False
    block_on_close = True

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet for headers and body
    server: _Server

    def _serve(self) -> None:
        owner = self.server.owner
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        path = parts.path.removeprefix(PREFIX)
        method, target = self.command, self.path  # the next request on this connection changes them
        headers = dict(self.headers.items())
        fault = owner.fault_for(method, path)
        owner.record(Request(method, path, parts.query, headers, body, fault.name))

        def carry_out() -> tuple[int, Any, bytes]:
            return owner.carry_out(method, target, headers, body)

        if fault.delay is not None:
            owner.carry_out_later(fault.delay, carry_out)
        if fault.stalled:
            owner.stall(carry_out)
        result = carry_out() if fault.forward else None
        if fault.releases:
            owner.release_stalled()
        if fault.half and result is not None:
            self._answer(*result, half=True)
            self.connection.shutdown(socket.SHUT_WR)
            self.close_connection = True
        time.sleep(fault.hold)
        if fault.half:
            return
        if result is not None and (fault is PASS or fault.releases or fault.hold):
            self._answer(*result)
        elif fault.status is not None:
            answered = {"Content-Type": "application/json", **fault.headers}
            self._answer(fault.status, answered.items(), fault.body)
        else:
            self.close_connection = True

    def _answer(self, status: int, headers: Any, body: bytes, *, half: bool = False) -> None:
        self.send_response_only(status)
        for key, value in headers:
            if key.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.wfile.flush()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        """The requests are recorded."""
