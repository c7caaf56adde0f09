"""What the supervisor needs of a transport. Each transport is a driver: a class that implements `Source`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..protocol import messages
from ._publishers import Publisher

if TYPE_CHECKING:
    import zmq

Pollable: TypeAlias = "int | zmq.Socket[bytes]"
"""What `zmq.Poller` takes: a file descriptor that is readable as long as there is work, or a ZeroMQ socket."""


class Source(Protocol):
    """Where messages of publishers come from, and answers go to. Only the supervisor's thread uses it.

    It hands on each Hello, and documents of publishers that have said Hello and keep within their limits. No method
    but `close` blocks.
    """

    @property
    def publishers(self) -> Mapping[bytes, Publisher]:
        """Publishers that have said Hello and sent something lately, by their `identity`."""

    @property
    def refused(self) -> Mapping[str, int]:
        """Number of refusals by topic."""

    @property
    def refused_at(self) -> Mapping[str, float]:
        """Unix time of the last refusal by topic."""

    @property
    def endpoint(self) -> str | None:
        """Address that publishers connect to, for the log and the status; None if it takes none."""

    @property
    def problem(self) -> str:
        """Reason why no documents can come at the moment; "" if there is none that is known."""

    @property
    def pollable(self) -> Pollable:
        """What is readable while `receive` has something to do."""

    def open(self) -> None:
        """Begin to take publishers.

        Raises
        ------
        Exception
            The address cannot be used. The type is the driver's; whoever has chosen the driver handles it.
        """

    def receive(self) -> Iterator[tuple[Publisher, messages.Message]]:
        """Yield messages that have arrived, without waiting, a limited number of them."""

    def send(self, publisher: Publisher, message: messages.Message) -> bool:
        """Send a message to a publisher; return False if it is gone or does not read its messages."""

    def has(self, publisher: Publisher) -> bool:
        """Return True as long as this publisher counts as connected."""

    def refuse(self, topic: str, publisher: Publisher, refusal: messages.Refused) -> None:
        """Refuse a message of a publisher and tell it the reason.

        Parameters
        ----------
        topic
            Counter and rate-limit key of the refusal.
        publisher
            The sender.
        refusal
            The answer. Any reason but "gap" and "later" is final for the run until the publisher's next Hello.
        """

    def take_gone(self) -> list[Publisher]:
        """Return the publishers that were forgotten since the last call."""

    def check_connections(self) -> None:
        """Forget publishers that are silent, and do what else is due now and then."""

    def close(self) -> None:
        """End all connections, also if `open` was not called, or has failed."""
