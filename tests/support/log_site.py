"""A site's log in the hands of a test: nodes of NATS that can be killed, stopped, and set back to an earlier state."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tiledbroker._errors import LogUnavailable, ProtocolError
from tiledbroker.jetstream import (
    RUNS_BUCKET,
    STREAM,
    Connection,
    EntryReader,
    LogAddress,
    LogEntry,
    LogLayout,
    LoopThread,
    Receipt,
    bucket_stream,
    bucket_subject,
    create_streams,
    documents_subject,
    encode_receipt,
    read_hosts,
    receipt_key,
)
from tiledbroker.ownership import HostLease
from tiledwriter.testing import ServerProcess, free_port, wait_until

T = TypeVar("T")
PROGRAM = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or "nats-server"


class LogNode(ServerProcess):
    """A node of a site's log."""

    def __init__(self, directory: Path, configuration: dict[str, Any]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port: int = configuration["port"]
        self._times_started = 0
        storage = {"store_dir": str(directory / "storage"), "sync_interval": "always"}
        path = directory / "nats.conf"
        path.write_text(json.dumps({"host": "127.0.0.1", "jetstream": storage, **configuration}))
        super().__init__([PROGRAM, "-c", str(path)], directory / "server.log")

    def start(self) -> None:
        self._times_started = self._times_ready()
        super().start()

    def ready(self) -> bool:
        return self._times_ready() > self._times_started

    def _times_ready(self) -> int:
        return self.log.read_bytes().count(b"Server is ready") if self.log.exists() else 0


class LogSite:
    """The nodes of a site's log, with its stream and buckets.

    Parameters
    ----------
    directory
        Where the nodes keep their messages.
    nodes
        Number of nodes.
    configuration
        More of the nodes' configuration.
    credentials, tls_ca, tls_client
        For the connections of the test itself, as in `LogAddress`.
    relay
        Returns the port at which one node reaches another one: called with the numbers of both, and with the port
        where the other one listens.
    """

    def __init__(
        self,
        directory: Path,
        *,
        nodes: int = 1,
        configuration: dict[str, Any] | None = None,
        credentials: Path | None = None,
        tls_ca: Path | None = None,
        tls_client: Path | None = None,
        relay: Callable[[int, int, int], int] | None = None,
    ) -> None:
        self.layout = LogLayout(replicas=nodes, max_bytes=2**30)
        routes = [free_port() for _ in range(nodes)]
        self.nodes = [
            LogNode(
                directory / f"node-{number}",
                {
                    "server_name": f"node-{number}",
                    "port": free_port(),
                    **(configuration or {}),
                    **_cluster(routes, number, relay),
                },
            )
            for number in range(nodes)
        ]
        self.address = LogAddress.parse(
            [f"nats://127.0.0.1:{node.port}" for node in self.nodes],
            credentials=credentials,
            tls_ca=tls_ca,
            tls_client=tls_client,
            inbox="_INBOX.supervisor",
        )
        self._loop: LoopThread | None = None

    def __enter__(self) -> LogSite:
        try:
            self.start()
            wait_until(self._make_streams, 60, "the streams are made")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
        if self._loop is not None:
            self._loop.close()

    def start(self) -> None:
        """Start the nodes that do not run; all at once, as each waits for others."""
        for node in self.nodes:
            if not node.running:
                node.start()

    def _make_streams(self) -> bool:
        async def make(connection: Connection) -> bool:
            await create_streams(connection, self.layout)
            return True

        try:
            return self.ask(make)
        except LogUnavailable:
            return False

    def ask(self, question: Any) -> Any:
        """Run a coroutine function with a connection to the log."""

        async def run() -> Any:
            connection = await Connection.open(self.address, name="test")
            try:
                return await question(connection)
            finally:
                await connection.close()

        if self._loop is None:
            self._loop = LoopThread("test-log")
        return self._loop.run(run(), 60)

    def hosts(self) -> list[HostLease]:
        """The leases of all hosts, also of those that have ended; those that can be read."""
        return [each for each in self.ask(read_hosts).values() if each is not None]

    def count_ready_hosts(self) -> int:
        """How many ingest hosts may claim runs."""
        return sum(host.ready and not host.lease.released for host in self.hosts())

    def entries(self, beamline: str, uid: str) -> list[LogEntry]:
        """All entries of a run, in their order, without messages that are none."""

        async def read(connection: Connection) -> list[LogEntry]:
            reader, entries, seq = EntryReader(), [], 1
            subject = documents_subject(beamline, uid)
            while (found := await connection.read_next(STREAM, subject, seq)) is not None:
                seq = found.seq + 1
                with contextlib.suppress(ProtocolError):
                    if (entry := reader.read(found.headers, found.body)) is not None:
                        entries.append(entry)
            return entries

        return list(self.ask(read))

    def indexes(self, beamline: str, uid: str) -> list[int]:
        """Indexes of all documents of a run in the log, in the order in which they are there."""
        return [index for entry in self.entries(beamline, uid) for index in range(entry.first, entry.next)]

    def store_receipt(self, beamline: str, uid: str, receipt: Receipt) -> None:
        """Store what an ingest host says of a run."""

        async def store(connection: Connection) -> None:
            subject = bucket_subject(RUNS_BUCKET, receipt_key(beamline, uid))
            found = await connection.read_last(bucket_stream(RUNS_BUCKET), subject)
            await connection.append(subject, encode_receipt(receipt), {}, 0 if found is None else found.seq)

        self.ask(store)

    def save(self, directory: Path) -> None:
        """Keep a copy of what the nodes, which must not run, have stored."""
        for number, node in enumerate(self.nodes):
            shutil.copytree(node.directory / "storage", directory / str(number))

    def set_back(self, directory: Path, *numbers: int) -> None:
        """Have these nodes, or all, which must not run, have what they had when `save` was called."""
        for number in numbers or range(len(self.nodes)):
            storage = self.nodes[number].directory / "storage"
            shutil.rmtree(storage)
            shutil.copytree(directory / str(number), storage)


def _cluster(routes: Sequence[int], number: int, relay: Callable[[int, int, int], int] | None = None) -> dict[str, Any]:
    if len(routes) == 1:
        return {}
    cluster: dict[str, Any] = {"name": "site", "listen": f"127.0.0.1:{routes[number]}"}
    if relay is None:
        ports = list(routes)
    else:
        ports = [relay(number, other, port) for other, port in enumerate(routes) if other != number]
        # Nodes tell each other where they listen. Nobody does there, so that all connections lead through the relays.
        cluster["advertise"] = "127.0.0.1:9"
    return {"cluster": {**cluster, "routes": [f"nats://127.0.0.1:{port}" for port in ports]}}
