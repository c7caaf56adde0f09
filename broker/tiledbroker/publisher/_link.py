"""What the shipper needs of a transport. Each transport is a driver: a module that implements `Link`."""

from __future__ import annotations

from typing import Protocol

from ..protocol import messages


class Link(Protocol):
    """The way to the ingest host, over one connection after the other, of which there is at most one at a time.

    The shipper's thread makes the link, and only this thread uses it. No method but `wait` and `close` blocks.
    """

    @property
    def problem(self) -> str:
        """Reason why there is no connection; "" once there is one."""

    @property
    def begun(self) -> bool:
        """True once the connection is being established; until then, the driver may be waiting for a name server."""

    @property
    def broken(self) -> bool:
        """True once the connection is lost, or will not come about: it must be replaced."""

    def connect(self, problem: str) -> None:
        """Begin to connect. `problem` is the reason why there is no connection so far; it is not logged again."""

    def disconnect(self, linger_seconds: float) -> None:
        """End the connection; `close` gives messages that it has taken this time to be sent."""

    def send(self, message: messages.Message) -> bool:
        """Send a message; return False if the link does not take it now, such as while there is no connection."""

    def receive(self) -> messages.Message | None:
        """Return the next message that has arrived; None if there is none.

        Raises
        ------
        ProtocolError
            Something has arrived that is not a valid message. The next call goes on after it.
        """

    def busy(self, run_uid: str) -> bool:
        """Return True while the link takes no documents of this run, because its transport orders them one by one.

        Messages of other runs are not affected. `wait` ends when a run is free again.
        """

    def wait(self, descriptor: int, timeout_seconds: float, *, blocked: bool) -> bool:
        """Wait until there is something to receive, or `problem`, `begun` or `broken` may have changed.

        Parameters
        ----------
        descriptor
            File descriptor that ends the wait, too, when it is readable.
        timeout_seconds
            Maximum time to wait.
        blocked
            `send` has returned False; wait until it may be tried again, too.

        Returns
        -------
        bool
            True if the descriptor is readable.
        """

    def close(self) -> None:
        """Release all resources, after `disconnect`."""
