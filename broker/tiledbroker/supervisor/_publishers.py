"""Publishers as the supervisor knows them, and the limits of their clients."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from ..protocol import messages

DEFAULT_WINDOW: Final = 8 * 2**20
DEFAULT_MAX_DOCUMENT: Final = 256 * 2**20
DEFAULT_MAX_CONNECTIONS: Final = 200
DEFAULT_MAX_OPEN_RUNS: Final = 200


@dataclass(frozen=True)
class ClientLimits:
    """Limits for one client: a CURVE key, or without CURVE an address.

    Attributes
    ----------
    window
        Unacknowledged bytes in flight, per connection.
    max_document
        Bytes of one document, and of one message.
    max_connections
        Publishers connected at a time.
    max_open_runs
        Runs that have not ended, of publishers that are connected.
    """

    window: int = DEFAULT_WINDOW
    max_document: int = DEFAULT_MAX_DOCUMENT
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    max_open_runs: int = DEFAULT_MAX_OPEN_RUNS


@dataclass(eq=False)
class Publisher:
    """One connection of a publisher. A new connection is a new `Publisher`, even under the same identity.

    Attributes
    ----------
    identity
        Name of the connection, by which its source knows it.
    client
        Name of the client's CURVE key; "" without CURVE.
    address
        IP address of the peer; "" if unknown, as over ipc.
    descriptor
        File descriptor of the connection; -1 if it has none of its own.
    name
        The publisher's name for itself; "" until it has said Hello.
    heard
        Time of its last message (`time.monotonic`); 0 before the first.
    connected_at
        Unix time of its first Hello; 0 before.
    lag_documents, lag_bytes
        Documents in its spool that are not acknowledged, and their bytes, as it has told last; None if it has not.
    oldest_unacknowledged
        Unix time at which the oldest of them was published; None if there is none, or it is unknown.
    refused
        Runs of which nothing is accepted until its next Hello: the reason by run uid.
    """

    identity: bytes
    client: str
    address: str
    descriptor: int = -1
    name: str = ""
    heard: float = 0.0
    connected_at: float = 0.0
    lag_documents: int | None = None
    lag_bytes: int | None = None
    oldest_unacknowledged: float | None = None
    refused: dict[str, str] = field(default_factory=dict, repr=False)
    _under_way: dict[str, deque[tuple[int, int]]] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name or "somebody", self.client and f"({self.client})", self.address)))

    def note_lag(self, ping: messages.Ping, now: float) -> None:
        """Note how far the publisher's spool is ahead, as a Ping that came at Unix time `now` tells."""
        told = [number for number in (ping.documents, ping.size) if number is not None and number >= 0]
        self.lag_documents, self.lag_bytes = told if len(told) == 2 else (None, None)
        age = ping.oldest_age
        self.oldest_unacknowledged = now - age if age is not None and 0 <= age <= now else None

    @property
    def quota_key(self) -> str:
        """Key under which this client's limits are counted: the CURVE client, or without CURVE the address."""
        return self.client or self.address

    @property
    def bytes_in_flight(self) -> int:
        """Bytes received from this connection that are not durable yet."""
        return sum(size for batches in self._under_way.values() for _, size in batches)

    def count_in_flight(self, message: messages.Documents) -> None:
        """Count the bytes of received documents as in flight."""
        self._under_way.setdefault(message.run, deque()).append((message.next, len(message.body)))

    def acknowledge_up_to(self, message: messages.Message) -> None:
        """Stop counting the documents that `message` reports as durable or refused."""
        if isinstance(message, messages.Refused):
            self._under_way.pop(message.run, None)
        elif isinstance(message, messages.Durable) and message.run in self._under_way:
            batches = self._under_way[message.run]
            while batches and batches[0][0] <= message.next:
                batches.popleft()
            if not batches:
                del self._under_way[message.run]
