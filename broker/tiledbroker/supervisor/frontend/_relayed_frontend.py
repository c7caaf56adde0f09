"""The frontend of a supervisor that is one of several targets: publishers reach it through a relay.

The relay has authenticated the publishers and holds their connections. It sends each message with the publisher's
routing identity, client and address before it, over a Unix socket in the journal directory, which only this user can
open.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import zmq

from ...protocol import messages
from .._publishers import ClientLimits
from .._socket_path import SocketPath
from ._frontend import Frontend, Sender

RELAY_SOCKET: Final = ".relay.ipc"
"""Name of the socket in the journal directory."""

SENDER_FRAMES: Final = 3
"""Number of frames before a message: routing identity, client and address of the publisher."""

# The relay has enforced the limit.
_NO_CONNECTION_LIMIT: Final = 2**31


class RelayedFrontend(Frontend):
    """The frontend of a target's supervisor.

    Parameters
    ----------
    listen
        Where the relay listens for publishers; None accepts none.
    limits
        Limits for each client; that of connections is the relay's.
    journal_dir
        Directory of the target's journals, for the socket.
    """

    def __init__(self, listen: str | None, limits: ClientLimits, journal_dir: Path) -> None:
        super().__init__(listen, replace(limits, max_connections=_NO_CONNECTION_LIMIT))
        self._path = SocketPath(journal_dir, RELAY_SOCKET)
        self._relay = b""
        # One connection carries the messages of all publishers. The relay's windows bound the queues.
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)

    def _bind(self, address: str) -> None:  # noqa: ARG002  the relay listens there
        super()._bind(f"ipc://{self._path.path}")

    def close(self) -> None:
        """Close the socket; messages already queued get a moment to be sent."""
        super().close()
        self._path.close()

    @property
    def endpoint(self) -> str | None:
        """The address at which the relay listens for publishers."""
        return self._listen

    def _identify_sender(self, frames: list[zmq.Frame]) -> tuple[Sender, list[zmq.Frame]] | None:
        relay, *prefixed = frames
        if len(prefixed) < SENDER_FRAMES:
            return None
        identity, client, address = (frame.bytes for frame in prefixed[:SENDER_FRAMES])
        self._relay = relay.bytes
        if len(prefixed) == SENDER_FRAMES:
            # The publisher is gone.
            self._forget(identity)
            return None
        return Sender(identity, client.decode(), address.decode()), prefixed[SENDER_FRAMES:]

    def _send_message(self, identity: bytes, message: messages.Message) -> bool:
        try:
            self._socket.send_multipart([self._relay, identity, *messages.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def _close_overdue_connections(self) -> None:
        """Do nothing: the only connection is the relay's, which has no Hello of its own."""
