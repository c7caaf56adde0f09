"""Accepted connections of a listening socket; closes those that never say Hello."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, TypeAlias

import zmq

HELLO_TIMEOUT_SECONDS: Final = 60.0
"""The time for which a connection may exist without a known publisher."""

_SEARCH_INTERVAL_SECONDS: Final = 1.0
_ACCEPTED_PER_TURN: Final = 500
# Event number and file descriptor.
_MONITOR_EVENT: Final = struct.Struct("=HI")


_Socket: TypeAlias = "zmq.Socket[bytes]"


@dataclass
class _Connection:
    # Distinguishes this connection from a later one that reuses its descriptor.
    inode: int
    since: float


class Connections:
    """The connections that libzmq has accepted on a socket. Create it before the socket is bound.

    libzmq has no call to close a single connection, and does not tell whose connection it is before the first message.
    So this class shuts the TCP or Unix socket down, as if the peer had closed it, through the file descriptor that the
    monitor reports with each accepted connection.
    """

    def __init__(self, context: zmq.Context[_Socket], listener: _Socket) -> None:
        self._listener = listener
        self._connections: dict[int, _Connection] = {}
        self._check_at = 0.0
        address = f"inproc://tiledwriter-connections-{id(self)}"
        listener.monitor(address, zmq.EVENT_ACCEPTED)
        self._events = context.socket(zmq.PAIR)
        # Without a limit: otherwise libzmq's I/O thread blocks on us when many connections arrive at once.
        self._events.setsockopt(zmq.RCVHWM, 0)
        self._events.connect(address)

    def __len__(self) -> int:
        return len(self._connections)

    def close_overdue(self, known: Collection[int]) -> int:
        """Register newly accepted connections and, once a second, close overdue ones.

        Parameters
        ----------
        known
            Descriptors of the connections whose publishers are known.

        Returns
        -------
        int
            Number of connections closed.
        """
        now = time.monotonic()
        self._take_in(now)
        if now < self._check_at:
            return 0
        self._check_at = now + _SEARCH_INTERVAL_SECONDS
        for descriptor in known:
            if descriptor in self._connections:
                self._connections[descriptor].since = now
        overdue = [
            each for each, connection in self._connections.items() if now - connection.since > HELLO_TIMEOUT_SECONDS
        ]
        return sum(self._end_connection(descriptor, self._connections.pop(descriptor)) for descriptor in overdue)

    def _take_in(self, now: float) -> None:
        for _ in range(_ACCEPTED_PER_TURN):
            try:
                event, _ = self._events.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            _, descriptor = _MONITOR_EVENT.unpack(event)
            with contextlib.suppress(OSError), _duplicate_socket(descriptor) as connection:
                if self._is_accepted(connection):
                    self._connections[descriptor] = _Connection(_socket_inode(connection), now)

    def _is_accepted(self, connection: socket.socket) -> bool:
        """Return False if the descriptor no longer belongs to a connection of the listener because it was reused."""
        scheme, _, endpoint = self._listener.getsockopt_string(zmq.LAST_ENDPOINT).partition("://")
        here = connection.getsockname()
        return bool(here == endpoint if scheme == "ipc" else here[1:2] == (int(endpoint.rpartition(":")[2]),))

    def _end_connection(self, descriptor: int, overdue: _Connection) -> bool:
        with contextlib.suppress(OSError), _duplicate_socket(descriptor) as connection:
            if _socket_inode(connection) == overdue.inode:
                connection.shutdown(socket.SHUT_RDWR)
                return True
        return False

    def close(self) -> None:
        """Stop monitoring. Call it before the listener is closed."""
        self._listener.disable_monitor()
        self._events.close(linger=0)


def _duplicate_socket(descriptor: int) -> socket.socket:
    """Return a socket object on a duplicate of the descriptor.

    libzmq may close its own descriptor at any time; the duplicate keeps referring to the same connection.
    """
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        # The descriptor no longer belongs to a socket.
        os.close(duplicate)
        raise


def _socket_inode(connection: socket.socket) -> int:
    return os.fstat(connection.fileno()).st_ino
