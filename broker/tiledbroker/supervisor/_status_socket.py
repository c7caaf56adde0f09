"""The status socket: a Unix socket in the journal directory at which a supervisor gives everyone its snapshot.

A client connects, sends nothing, and reads one JSON object up to the end of file. The supervisor's loop never waits for
a client: what a socket does not take at once is sent when it takes more, and slow clients are dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq

from ._socket_path import SocketPath

log = logging.getLogger(__name__)

STATUS_SOCKET: Final = ".status.ipc"
"""Name of the socket in the journal directory."""

MAX_READERS: Final = 16
"""Readers at a time that have not taken the whole snapshot; beyond that, the one that has waited longest is dropped."""
READ_TIMEOUT_SECONDS: Final = 5.0
"""Time that a reader has to take the snapshot."""

# Age up to which a snapshot is given to further readers.
_FRESH_SECONDS: Final = 0.1
# Pause after a connection could not be accepted.
_ACCEPT_PAUSE_SECONDS: Final = 1.0
# Pause of a client before another attempt to get into the queue of a busy supervisor.
_RECONNECT_SECONDS: Final = 0.05
_BACKLOG: Final = 64
_ACCEPTED_PER_TURN: Final = 16
# Nothing is expected of readers. What they send all the same is discarded: unread, it would reset the connection.
_DISCARDED_BYTES: Final = 65_536
_READ_BYTES: Final = 2**20


@dataclass(eq=False)
class _Reader:
    connection: socket.socket
    left: memoryview
    deadline: float


class StatusSocket:
    """Serves the snapshot. All methods return at once; times are those of `time.monotonic`.

    Parameters
    ----------
    directory
        The journal directory, which this process must have locked: a socket in it is a dead supervisor's, and replaced.
    take_snapshot
        Returns the snapshot as JSON.
    poller
        The poller of the loop, which is made to wait for readers.

    Raises
    ------
    OSError
        The socket cannot be made.
    """

    def __init__(self, directory: Path, take_snapshot: Callable[[], bytes], poller: zmq.Poller) -> None:
        self._take_snapshot = take_snapshot
        self._poller = poller
        self._listens = False
        self._listen_at = 0.0
        self._readers: dict[int, _Reader] = {}
        self._text = b""
        self._fresh_until = 0.0
        self._path = SocketPath(directory, STATUS_SOCKET)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._listen()
        except OSError:
            self._listener.close()
            self._path.close()
            raise
        self._wait_for_readers()

    def _listen(self) -> None:
        self._path.path.unlink(missing_ok=True)
        # Linux gives the file the socket's mode, so that nobody else can connect before `chmod`.
        with contextlib.suppress(OSError):
            os.fchmod(self._listener.fileno(), 0o600)
        self._listener.bind(str(self._path.path))
        self._path.path.chmod(0o600)
        self._listener.listen(_BACKLOG)

    def _wait_for_readers(self) -> None:
        self._poller.register(self._listener.fileno(), zmq.POLLIN)
        self._listens = True

    def serve_readers(self, events: Mapping[object, int], now: float) -> None:
        """Accept new readers, send what their sockets take, and drop those that are too slow.

        Parameters
        ----------
        events
            What the poller has found.
        now
            The time.
        """
        if not self._listens and now >= self._listen_at:
            self._wait_for_readers()
        if self._listener.fileno() in events:
            for connection in self._accept_connections(now):
                self._add_reader(connection, now)
        for reader in list(self._readers.values()):
            if not self._send_more(reader) or now >= reader.deadline:
                self._drop_reader(reader)

    def close(self) -> None:
        """Remove the socket, and drop all readers."""
        for reader in self._readers.values():
            reader.connection.close()
        self._readers.clear()
        self._listener.close()
        with contextlib.suppress(OSError):
            self._path.path.unlink(missing_ok=True)
        self._path.close()

    def _accept_connections(self, now: float) -> Iterator[socket.socket]:
        for _ in range(_ACCEPTED_PER_TURN):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Too many files are open, perhaps. The poller would report the waiting reader again and again.
                log.warning("A reader of the status cannot be accepted: %s", error)
                self._poller.unregister(self._listener.fileno())
                self._listens, self._listen_at = False, now + _ACCEPT_PAUSE_SECONDS
                return
            connection.setblocking(False)
            yield connection

    def _add_reader(self, connection: socket.socket, now: float) -> None:
        if len(self._readers) >= MAX_READERS:
            self._drop_reader(next(iter(self._readers.values())))
        if now >= self._fresh_until:
            try:
                self._text = self._take_snapshot()
            except Exception:
                # A reader that gets nothing says so.
                log.exception("The status cannot be told.")
                self._text = b""
            self._fresh_until = now + _FRESH_SECONDS
        reader = _Reader(connection, memoryview(self._text), now + READ_TIMEOUT_SECONDS)
        self._readers[connection.fileno()] = reader
        self._poller.register(connection.fileno(), zmq.POLLOUT)

    @staticmethod
    def _send_more(reader: _Reader) -> bool:
        """Send what the socket takes; return False if there is nothing left to send, or the reader is gone."""
        try:
            while reader.left:
                reader.left = reader.left[reader.connection.send(reader.left) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _drop_reader(self, reader: _Reader) -> None:
        descriptor = reader.connection.fileno()
        self._poller.unregister(descriptor)
        del self._readers[descriptor]
        with contextlib.suppress(OSError):
            reader.connection.shutdown(socket.SHUT_WR)
            reader.connection.recv(_DISCARDED_BYTES)
        reader.connection.close()


def read_status(directory: Path, timeout: float) -> bytes:
    """Return what the status socket in a directory gives, at most `timeout` seconds after the call.

    Raises
    ------
    FileNotFoundError
        There is no socket.
    ConnectionRefusedError
        Nobody listens at the socket.
    TimeoutError
        The process that listens does not answer in time.
    OSError
        The socket cannot be used.
    """
    deadline = time.monotonic() + timeout
    with SocketPath(directory, STATUS_SOCKET) as place, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        _connect(connection, str(place.path), deadline)
        parts: list[bytes] = []
        while True:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError
            connection.settimeout(left)
            part = connection.recv(_READ_BYTES)
            if not part:
                return b"".join(parts)
            parts.append(part)


def _connect(connection: socket.socket, path: str, deadline: float) -> None:
    while True:
        try:
            connection.connect(path)
        except BlockingIOError:
            # As many clients as the system queues wait for an answer already.
            if time.monotonic() >= deadline:
                raise TimeoutError from None
            time.sleep(_RECONNECT_SECONDS)
        else:
            return
