"""Several Tiled processes on one PostgreSQL server, behind a proxy that spreads requests, and a replica that lags.

The replica is a hot standby of PostgreSQL with a Tiled process of its own. While its replay is held, that process
answers reads as of the moment at which it was held: real answers of a real Tiled, and all of one moment.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from faulty_proxy import FaultyProxy

from tiledwriter.testing import PostgreSQL, TiledServer, _as_another_user, wait_until

_CATCH_UP_SECONDS = 60.0


class Standby(PostgreSQL):
    """A replica of another server's databases, which can only be read, and whose replay can be held."""

    def __init__(self, primary: PostgreSQL, directory: Path) -> None:
        super().__init__(directory)
        self._primary = primary
        # Roles are replicated, too.
        self._password = primary._password

    def hold(self) -> float:
        """Stay as of now, and return what time that is (`time.monotonic`)."""
        with _session(self._primary) as ask_primary, _session(self) as ask:
            now = time.monotonic()
            position = ask_primary("SELECT pg_current_wal_lsn()::text")
            wait_until(
                lambda: ask(f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"),
                _CATCH_UP_SECONDS,
                "the replica has caught up",
            )
            ask("SELECT pg_wal_replay_pause()::text")
            wait_until(
                lambda: ask("SELECT pg_get_wal_replay_pause_state() = 'paused'"),
                _CATCH_UP_SECONDS,
                "the replica is held",
            )
        return now

    def release(self) -> None:
        """Follow the primary server again."""
        with _session(self) as ask:
            ask("SELECT pg_wal_replay_resume()::text")

    def _make_cluster(self) -> None:
        self._data.mkdir(0o700)
        if as_user := _as_another_user():
            shutil.chown(self._data, "nobody")
        command = [
            *(*as_user, str(self._programs / "pg_basebackup"), "-D", str(self._data), "--no-sync"),
            *("--write-recovery-conf", "--checkpoint=fast"),
            *("-h", "127.0.0.1", "-p", str(self._primary.port), "-U", "tiled"),
        ]
        environment = {"PGPASSWORD": self._password.read_text(), "LC_ALL": "C"}
        made = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if made.returncode != 0:
            raise RuntimeError(f"pg_basebackup ended with {made.returncode}:\n{made.stderr}")


@contextmanager
def _session(server: PostgreSQL) -> Iterator[Callable[[str], Any]]:
    """Yield a function that returns the only value of a query's result."""
    import adbc_driver_postgresql.dbapi

    with (
        adbc_driver_postgresql.dbapi.connect(server.uri("tiled"), autocommit=True) as connection,
        connection.cursor() as cursor,
    ):

        def ask(query: str) -> Any:
            cursor.execute(query)
            return cursor.fetchall()[0][0]

        yield ask


class SiblingServer(TiledServer):
    """A further Tiled process, with the configuration of another one, or with that and another PostgreSQL server.

    Whoever makes it stops that PostgreSQL server.
    """

    def __init__(self, first: TiledServer, name: str, *, database: PostgreSQL | None = None) -> None:
        super().__init__(first._directory / name)
        self.api_key = first.api_key
        self.storage = first.storage
        self._environment["TILED_SINGLE_USER_API_KEY"] = first.api_key
        self._first = first
        self._database = database

    def _configure(self) -> None:
        configuration = json.loads(self._first._configuration.read_text())
        if self._database is not None:
            uri = self._database.uri("tiled")
            catalog = configuration["catalog"]
            catalog["uri"] = uri
            catalog["writable_storage"] = [catalog["writable_storage"][0], uri]
        self._configuration.touch(0o600)
        self._configuration.write_text(json.dumps(configuration))


class TiledGroup:
    """Tiled processes on one PostgreSQL server: `servers` for all requests, and a `replica` for reads that lag."""

    def __init__(self, directory: Path, *, servers: int, readable: Sequence[Path] = ()) -> None:
        self.first = TiledServer(directory, readable=readable, storage="postgresql")
        siblings = [SiblingServer(self.first, f"server-{n}") for n in range(1, servers)]
        self.servers: list[TiledServer] = [self.first, *siblings]
        self.api_key = self.first.api_key
        self._directory = directory
        self._stack = ExitStack()

    def __enter__(self) -> TiledGroup:
        with ExitStack() as stack:
            for server in self.servers:
                stack.callback(server.stop)
                server.start()
            assert self.first._postgresql is not None
            self.standby = Standby(self.first._postgresql, self._directory / "standby")
            stack.callback(self.standby.stop)
            self.standby.start()
            self.replica = stack.enter_context(SiblingServer(self.first, "replica", database=self.standby))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class SpreadingProxy(FaultyProxy):
    """In front of several servers: sends requests to one after the other, and to the next one if nobody is there.

    With `by_connection`, all requests that come over one connection go to one server, as balancers of TCP have it.
    """

    def __init__(self, uris: Sequence[str], *, by_connection: bool = False) -> None:
        super().__init__(uris[0])
        self._servers = [urlsplit(uri).netloc for uri in uris]
        self._by_connection = by_connection
        self._turns = count()
        # Each connection has a thread of its own.
        self._connection = threading.local()
        self._replica = ""
        self._lags: Callable[[str], bool] = lambda _: False
        self.answered_by: dict[str, int] = dict.fromkeys(self._servers, 0)

    @contextmanager
    def lagging(
        self, group: TiledGroup, lags: Callable[[str], bool] = lambda _: True, *, seconds: float = math.inf
    ) -> Iterator[Standby]:
        """Answer reading requests as of now, until the replica that is returned is released.

        Parameters
        ----------
        group
            Has the replica.
        lags
            Returns True for the paths that this is done to.
        seconds
            After this time answers are new again, whatever the replica does.
        """
        until = group.standby.hold() + seconds
        self._replica = urlsplit(group.replica.uri).netloc
        self._lags = lambda target: lags(target) and time.monotonic() < until
        try:
            yield group.standby
        finally:
            self._lags = lambda _: False
            group.standby.release()

    def carry_out(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any, bytes]:
        if method == "GET" and self._lags(target):
            return self._ask_server(self._replica, method, target, headers, body)
        for _ in self._servers[1:]:
            try:
                return self._ask_server(self._next_server(), method, target, headers, body)
            except ConnectionRefusedError:
                self._connection.server = None
        return self._ask_server(self._next_server(), method, target, headers, body)

    def _ask_server(self, server: str, *request: Any) -> tuple[int, Any, bytes]:
        answer = self.forward(server, *request)
        self.answered_by[server] = self.answered_by.get(server, 0) + 1
        return answer

    def _next_server(self) -> str:
        server: str | None = getattr(self._connection, "server", None) if self._by_connection else None
        if server is None:
            server = self._connection.server = self._servers[next(self._turns) % len(self._servers)]
        return server
