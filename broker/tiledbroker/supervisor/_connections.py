"""Connections to a socket that listens, and the end of those over which nobody says Hello."""

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

TIMEOUT: Final = 60.0
"""Seconds that a connection may be there without a publisher whom the supervisor knows."""

_INTERVAL: Final = 1.0
_ACCEPTED_PER_TURN: Final = 500
_EVENT: Final = struct.Struct("=HI")  # of libzmq's monitor: which, and a file descriptor


_Socket: TypeAlias = "zmq.Socket[bytes]"


@dataclass
class _Connection:
    inode: int  # tells it from a later one that has its descriptor
    since: float


class Connections:
    """What libzmq has accepted on a socket that is about to be bound.

    libzmq has no call that ends a connection, and does not tell whose it is before a message comes. So it is shut down
    as if the other end had closed it, through the descriptor that libzmq names when it accepts.
    """

    def __init__(self, context: zmq.Context[_Socket], listener: _Socket) -> None:
        self._listener = listener
        self._connections: dict[int, _Connection] = {}
        self._next_look = 0.0
        address = f"inproc://tiledwriter-connections-{id(self)}"
        listener.monitor(address, zmq.EVENT_ACCEPTED)
        self._events = context.socket(zmq.PAIR)
        self._events.setsockopt(zmq.RCVHWM, 0)  # else libzmq's thread waits for us when many come at once
        self._events.connect(address)

    def __len__(self) -> int:
        return len(self._connections)

    def look(self, known: Collection[int]) -> int:
        """Take in what has been accepted; once a second, end what is overdue.

        Parameters
        ----------
        known
            Descriptors of the connections whose publishers are known.

        Returns
        -------
        int
            How many were ended.
        """
        now = time.monotonic()
        self._take_in(now)
        if now < self._next_look:
            return 0
        self._next_look = now + _INTERVAL
        for descriptor in known:
            if descriptor in self._connections:
                self._connections[descriptor].since = now
        overdue = [each for each, connection in self._connections.items() if now - connection.since > TIMEOUT]
        return sum(self._end(descriptor, self._connections.pop(descriptor)) for descriptor in overdue)

    def _take_in(self, now: float) -> None:
        for _ in range(_ACCEPTED_PER_TURN):
            try:
                event, _ = self._events.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            _, descriptor = _EVENT.unpack(event)
            with contextlib.suppress(OSError), _opened(descriptor) as connection:
                if self._is_accepted(connection):
                    self._connections[descriptor] = _Connection(_inode(connection), now)

    def _is_accepted(self, connection: socket.socket) -> bool:
        """Whether it is one of the listener's, and no other that has been given its descriptor since."""
        scheme, _, endpoint = self._listener.getsockopt_string(zmq.LAST_ENDPOINT).partition("://")
        here = connection.getsockname()
        return bool(here == endpoint if scheme == "ipc" else here[1:2] == (int(endpoint.rpartition(":")[2]),))

    def _end(self, descriptor: int, overdue: _Connection) -> bool:
        with contextlib.suppress(OSError), _opened(descriptor) as connection:
            if _inode(connection) == overdue.inode:
                connection.shutdown(socket.SHUT_RDWR)
                return True
        return False

    def close(self) -> None:
        """Before the socket is closed."""
        self._listener.disable_monitor()
        self._events.close(linger=0)


def _opened(descriptor: int) -> socket.socket:
    """The socket behind a descriptor.

    A duplicate, which stays what it is while it is looked at: libzmq may close its own any time.
    """
    duplicate = os.dup(descriptor)
    try:
        return socket.socket(fileno=duplicate)
    except OSError:  # something else has the descriptor
        os.close(duplicate)
        raise


def _inode(connection: socket.socket) -> int:
    return os.fstat(connection.fileno()).st_ino
