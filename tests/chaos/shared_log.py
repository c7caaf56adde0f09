"""A site's log that a campaign does harm to: nodes that can be cut off from each other, and copies of their stores."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from log_site import LogNode, LogSite

from tiledbroker import BrokerError
from tiledbroker.jetstream import STREAM, Connection, LogAddress

from .site import suspended
from .wire import Wire, Wires

_MANY_COPIES: Final = 4


@dataclass(frozen=True)
class StoreCopy:
    """What all nodes had stored at one moment, in seconds of the monotonic clock."""

    directory: Path
    taken: float


class SharedLog:
    """Nodes of a log; clients reach each of them, and each of them the others, through cables of their own.

    As a context manager it starts them on entry, and ends them on exit.

    Attributes
    ----------
    site
        The nodes, without the cables.
    clients
        The cables of clients.
    copies
        Of the stores, the newest last.
    """

    def __init__(self, directory: Path, nodes: int) -> None:
        self.copies: list[StoreCopy] = []
        self._directory = directory
        self._between: dict[tuple[int, int], Wire] = {}
        self.site = LogSite(directory, nodes=nodes, relay=self._connect)
        self._set_back_at = float("-inf")
        doors = [Wire(node.port) for node in self.site.nodes]
        self.clients = Wires(doors)
        self._wires = [*doors, *self._between.values()]
        self.address = LogAddress.parse([f"nats://127.0.0.1:{wire.port}" for wire in doors])

    def __enter__(self) -> SharedLog:
        with ExitStack() as stack:
            for wire in self._wires:
                stack.enter_context(wire)
            stack.enter_context(self.site)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _connect(self, number: int, other: int, port: int) -> int:
        """Return the port at which one node reaches another one."""
        self._between[number, other] = wire = Wire(port)
        return wire.port

    @property
    def nodes(self) -> list[LogNode]:
        return self.site.nodes

    def find_leader(self) -> LogNode | None:
        """The node that leads the replicas of the runs, if that can be found out."""
        leader = self._describe_replicas().get("leader")
        return next((node for node in self.nodes if node.directory.name == leader), None)

    def count_current_replicas(self) -> int:
        """How many nodes have all of the runs that the log has, as far as the leader knows."""
        replicas = self._describe_replicas().get("replicas", ())
        return 1 + sum(bool(replica.get("current")) for replica in replicas)

    def _describe_replicas(self) -> dict[str, Any]:
        """What JetStream says of the nodes of the stream with the runs; empty without an answer."""

        async def ask(connection: Connection) -> Any:
            return await connection.call(f"STREAM.INFO.{STREAM}")

        with suppress(BrokerError, TimeoutError):
            return dict(self.site.ask(ask).get("cluster") or {})
        return {}

    @contextmanager
    def cut_off(self, node: LogNode) -> Iterator[None]:
        """Have a node and the others hear nothing of each other meanwhile; clients reach all of them."""
        number = self.nodes.index(node)
        wires = [wire for pair, wire in self._between.items() if number in pair]
        for wire in wires:
            wire.swallow()
        try:
            yield
        finally:
            for wire in wires:
                wire.resume()
                wire.cut()

    # Copies of the stores

    def take_copy(self) -> StoreCopy:
        """Copy the stores of all nodes as of one moment; they stand still meanwhile, and are not to be killed."""
        directory = self._directory / f"copy-{time.monotonic_ns()}"
        copy = StoreCopy(directory, time.monotonic())
        with suspended([psutil.Process(node.pid) for node in self.nodes if node.running]):
            self.site.save(directory)
        self.copies.append(copy)
        for old in self.copies[:-_MANY_COPIES]:
            shutil.rmtree(old.directory)
            self.copies.remove(old)
        return copy

    def put_back(self, copy: StoreCopy, *nodes: LogNode) -> None:
        """Have these nodes, or all, which must not run, have what they had then."""
        self.site.set_back(copy.directory, *map(self.nodes.index, nodes))
        self._set_back_at = time.monotonic()

    @property
    def set_back_seconds_ago(self) -> float:
        """Time since stores were last put back."""
        return time.monotonic() - self._set_back_at
