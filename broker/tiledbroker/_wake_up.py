"""A wake-up: lets another thread, or a signal handler, end a poller's wait."""

from __future__ import annotations

import contextlib
import socket
from typing import Final

_MAX_BYTES: Final = 4096


class WakeUp:
    """A pair of connected sockets. Register `fileno()` with the poller, and call `clear` when it is readable."""

    def __init__(self) -> None:
        self._receiver, self._sender = socket.socketpair()
        self._receiver.setblocking(False)
        self._sender.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor that is readable after `wake`."""
        return self._receiver.fileno()

    def wake(self) -> None:
        """Make the descriptor readable. Does nothing after `close`."""
        # Sending fails if the buffer is full, when the poller wakes up anyway.
        with contextlib.suppress(OSError):
            self._sender.send(b"\0")

    def clear(self) -> None:
        """Forget all wake-ups so far."""
        with contextlib.suppress(BlockingIOError):
            self._receiver.recv(_MAX_BYTES)

    def close(self) -> None:
        """Close both sockets."""
        self._receiver.close()
        self._sender.close()
