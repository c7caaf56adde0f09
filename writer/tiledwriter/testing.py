"""Real servers for trying things out and for tests: a Tiled server and a supervisor as processes of their own.

Needs the packages of the extra "demo".
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import httpx
import psutil

from tiledbroker import Journal, run_files

START_TIMEOUT: Final = 60.0
STOP_TIMEOUT: Final = 20.0


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens at just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], timeout: float, what: str) -> None:
    """Wait until `condition` holds.

    Raises
    ------
    TimeoutError
        It did not within `timeout` seconds; the message says `what` was awaited.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {timeout:.0f} s")
        time.sleep(0.02)


class ServerProcess:
    """A command run as a process that is started, stopped and killed, with its output in a file.

    As a context manager it starts on entry and stops on exit.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self.log = log
        self._command = list(command)
        self._environment = {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Of the process that was started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit code of the process that was started last, None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the process, and return when it is ready.

        Raises
        ------
        RuntimeError
            It ended instead; the message has the end of its output.
        """
        self._output = self.log.open("ab")
        self._process = subprocess.Popen(
            self._command,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=self._environment,
        )
        wait_until(lambda: not self.running or self.ready(), START_TIMEOUT, f"{self._command[0]} is ready")
        if not self.running:
            raise RuntimeError(f"{self._command[0]} ended with {self.returncode}:\n{self.log.read_text()[-2000:]}")

    def ready(self) -> bool:
        """Whether it can be used."""
        return True

    def stop(self) -> int | None:
        """End it with SIGTERM, and by force if that does not help; returns its exit code."""
        if self.running:
            self.send(signal.SIGTERM)
            try:
                self.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close_output()
        return self.returncode

    def kill(self) -> None:
        """End it with SIGKILL."""
        if self.running:
            self.send(signal.SIGKILL)
            self.wait(STOP_TIMEOUT)
        self._close_output()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Wait for its end; returns its exit code."""
        assert self._process is not None
        return self._process.wait(timeout)

    def _close_output(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None


class TiledServer(ServerProcess):
    """A Tiled server on embedded SQLite catalog and storage, in `directory`.

    Parameters
    ----------
    directory
        Holds the catalog, tables, arrays and the log. A server started again on it has the same contents.
    readable
        Directories with files that runs refer to.
    """

    def __init__(self, directory: Path, *, readable: Sequence[Path] = (), port: int | None = None) -> None:
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.api_key = secrets.token_hex(16)
        self._client: Any = None
        self._catalog = directory / "catalog.db"
        command = [
            str(Path(sys.executable).with_name("tiled")),
            *("serve", "catalog", str(self._catalog), "--init", "--host", "127.0.0.1", "--port", str(self.port)),
            *("--write", f"file://localhost{directory}/data", "--write", f"sqlite:///{directory}/tables.db"),
            *(item for path in readable for item in ("--read", str(path.absolute()))),
        ]
        super().__init__(command, directory / "server.log", {"TILED_SINGLE_USER_API_KEY": self.api_key})

    def start(self) -> None:
        if self._catalog.exists() and "--init" in self._command:
            self._command.remove("--init")
        super().start()

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/healthz", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def client(self) -> Any:
        """The root container, as `tiled.client.from_uri` gives it; closed when the server is stopped."""
        if self._client is None:
            from tiled.client import from_uri

            self._client = from_uri(self.uri, api_key=self.api_key)
        return self._client

    def _close_output(self) -> None:
        super()._close_output()
        if self._client is not None:
            self._client.context.http_client.close()
            self._client = None


class SupervisorProcess(ServerProcess):
    """A `tiledwriter-supervisor` that writes to a `TiledServer`.

    Parameters
    ----------
    options
        Further command line arguments.
    """

    def __init__(
        self,
        journal_dir: Path,
        server: TiledServer,
        *,
        port: int | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.journal_dir = journal_dir
        self.address = f"tcp://127.0.0.1:{port or free_port()}"
        self._ready_before = 0
        command = [
            *(sys.executable, "-m", "tiledwriter.cli.supervisor"),
            *("--listen", self.address, "--tiled", server.uri, "--journal-dir", str(journal_dir)),
            *options,
        ]
        log = journal_dir.with_name(journal_dir.name + "-supervisor.log")
        super().__init__(command, log, {"TILED_API_KEY": server.api_key, **(environment or {})})

    def start(self) -> None:
        self._ready_before = self._times_ready()
        super().start()

    def ready(self) -> bool:
        return self._times_ready() > self._ready_before

    def workers(self) -> list[psutil.Process]:
        """Its worker processes: what its fork server has forked."""
        try:
            children = psutil.Process(self.pid).children()
            return [worker for child in children for worker in child.children()]
        except psutil.NoSuchProcess:
            return []

    def _times_ready(self) -> int:
        return self.log.read_bytes().count(b"Listening at") if self.log.exists() else 0


def journal_of(journal_dir: Path, run_uid: str) -> Journal:
    """A run's journal, opened for reading.

    Raises
    ------
    LookupError
        There is none yet.
    """
    for path in run_files(journal_dir):
        journal = Journal(path)
        if journal.run_uid == run_uid:
            return journal
        journal.close()
    raise LookupError(f"There is no journal of run {run_uid} in {journal_dir}.")
