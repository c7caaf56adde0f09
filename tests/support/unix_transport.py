"""A transport for tests only, to see that publisher and supervisor need no particular one: streams over Unix sockets.

It differs from ZeroMQ wherever a transport may: whoever connects knows at once if somebody listens, connections have no
identities, frames have to be put together from bytes, and each message is acknowledged. Until then, the link takes no
other batch of the run.
"""

from __future__ import annotations

import errno
import itertools
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tiledbroker.protocol import messages
from tiledbroker.supervisor._publishers import ClientLimits, Publisher
from tiledbroker.supervisor._wire_source import WireSource
from tiledwriter.testing import wait_until

_READ_BYTES: Final = 2**18
_MAX_QUEUED_BYTES: Final = 2**20
_LENGTH: Final = struct.Struct("!I")
_REFUSED: Final = (errno.ECONNREFUSED, errno.ENOENT, errno.EAGAIN)


class FrameStream:
    """Lists of frames over a connected socket, without waiting.

    Parameters
    ----------
    connection
        The socket.
    acknowledges
        Answer each list of frames with an empty one.

    Attributes
    ----------
    ended
        True once the other end is gone.
    """

    def __init__(self, connection: socket.socket, *, acknowledges: bool = False) -> None:
        self.connection = connection
        self.ended = False
        self._acknowledges = acknowledges
        self._received = bytearray()
        self._queued = bytearray()

    @property
    def is_full(self) -> bool:
        return len(self._queued) > _MAX_QUEUED_BYTES

    @property
    def has_queued(self) -> bool:
        return bool(self._queued)

    def queue(self, frames: Sequence[bytes]) -> None:
        """Send frames, now or with later calls of `flush`."""
        body = b"".join(_LENGTH.pack(len(frame)) + frame for frame in frames)
        self._queued += _LENGTH.pack(len(body)) + body
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self._queued and not self.ended:
                del self._queued[: self.connection.send(self._queued, socket.MSG_DONTWAIT)]
        except BlockingIOError:
            return
        except OSError:
            self.ended = True

    def read(self) -> None:
        """Read what has arrived."""
        try:
            part = self.connection.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        self._received += part
        self.ended = self.ended or not part

    def take(self) -> list[bytes] | None:
        """Return the frames that were sent with one call of `queue`; None if they have not arrived yet."""
        if len(self._received) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._received)
        if len(self._received) < _LENGTH.size + size:
            return None
        body = bytes(self._received[_LENGTH.size : _LENGTH.size + size])
        del self._received[: _LENGTH.size + size]
        frames, place = [], 0
        while place < size:
            (length,) = _LENGTH.unpack_from(body, place)
            frames.append(body[place + _LENGTH.size : place + _LENGTH.size + length])
            place += _LENGTH.size + length
        if self._acknowledges:
            self.queue([])
        return frames

    def close(self) -> None:
        self.connection.close()


class UnixLink:
    """A `Link` over a Unix socket."""

    def __init__(self, path: str) -> None:
        self.problem = ""
        self.begun = False
        self._path = path
        # Run of each message that is not acknowledged; "" for those without documents.
        self._in_flight: deque[str] = deque()

    @property
    def broken(self) -> bool:
        return self._stream.ended

    def connect(self, problem: str) -> None:
        self.problem = problem
        self._in_flight.clear()
        connection = socket.socket(socket.AF_UNIX)
        connection.setblocking(False)
        self._stream = FrameStream(connection)
        refusal = connection.connect_ex(self._path)
        assert refusal in (0, *_REFUSED)
        self.begun = True
        self._stream.ended = refusal != 0
        self.problem = "nothing is listening there" if refusal else ""

    def disconnect(self, linger_seconds: float) -> None:
        deadline = time.monotonic() + linger_seconds
        while self._stream.has_queued and not self._stream.ended and time.monotonic() < deadline:
            select.select([], [self._stream.connection], [], 0.1)
            self._stream.flush()
        self._stream.close()

    def send(self, message: messages.Message) -> bool:
        if self._stream.ended or self._stream.is_full:
            return False
        run = message.run if isinstance(message, messages.Documents) else ""
        assert not run or not self.busy(run)
        self._in_flight.append(run)
        self._stream.queue(messages.encode(message))
        return True

    def busy(self, run_uid: str) -> bool:
        return run_uid in self._in_flight

    def receive(self) -> messages.Message | None:
        self._stream.read()
        while (frames := self._stream.take()) == []:
            self._in_flight.popleft()
        if frames is not None:
            return messages.decode(frames)
        if self._stream.ended:
            self.problem = self.problem or "the connection broke"
        return None

    def wait(self, descriptor: int, timeout_seconds: float, *, blocked: bool) -> bool:
        if self._stream.ended:
            timeout_seconds = 0.0
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        may_send = blocked or self._stream.has_queued
        poll.register(self._stream.connection, select.POLLIN | select.POLLOUT if may_send else select.POLLIN)
        found = dict(poll.poll(1000 * timeout_seconds))
        self._stream.flush()
        return descriptor in found

    def close(self) -> None:
        """Do nothing: there is only the connection."""


class UnixSource(WireSource):
    """A `Source` that listens at a Unix socket."""

    def __init__(self, path: str, limits: ClientLimits = ClientLimits()) -> None:  # noqa: B008  it is frozen
        super().__init__(limits)
        self._path = path
        self._numbers = itertools.count(1)
        self._streams: dict[int, FrameStream] = {}
        self._identities: dict[int, bytes] = {}
        self._epoll = select.epoll()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.setblocking(False)

    @property
    def endpoint(self) -> str:
        return self._path

    @property
    def pollable(self) -> int:
        return self._epoll.fileno()

    def open(self) -> None:
        # As a supervisor that is killed leaves it.
        Path(self._path).unlink(missing_ok=True)
        self._listener.bind(self._path)
        self._listener.listen(100)
        self._epoll.register(self._listener, select.EPOLLIN)

    def receive(self) -> Iterator[tuple[Publisher, messages.Message]]:
        if any(descriptor == self._listener.fileno() for descriptor, _ in self._epoll.poll(0)):
            self._accept()
        for descriptor, stream in list(self._streams.items()):
            stream.flush()
            stream.read()
            identity = self._identities[descriptor]
            while (frames := stream.take()) is not None:
                publisher = self._find_publisher(identity, "", "", descriptor)
                message = self._admit_frames(publisher, frames)
                if message is not None:
                    yield publisher, message
            self._await_events(descriptor)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        descriptor = connection.fileno()
        self._streams[descriptor] = FrameStream(connection, acknowledges=True)
        self._identities[descriptor] = b"connection %d" % next(self._numbers)
        self._epoll.register(descriptor, select.EPOLLIN)

    def _await_events(self, descriptor: int) -> None:
        """Have the poller wait for what a connection needs; end the connection if it is over."""
        stream = self._streams[descriptor]
        if stream.ended:
            self._forget(self._identities.pop(descriptor))
            self._epoll.unregister(descriptor)
            self._streams.pop(descriptor).close()
            return
        self._epoll.modify(descriptor, select.EPOLLIN | select.EPOLLOUT if stream.has_queued else select.EPOLLIN)

    def _send_message(self, identity: bytes, message: messages.Message) -> bool:
        for descriptor, known in self._identities.items():
            if known == identity:
                stream = self._streams[descriptor]
                if stream.is_full:
                    return False
                stream.queue(messages.encode(message))
                if not stream.ended:
                    self._await_events(descriptor)
                return not stream.ended
        return False

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()
        self._listener.close()
        self._epoll.close()


class UnixPeer:
    """A connection in the hands of a test, with the methods of a socket of ZeroMQ that tests use.

    It waits for somebody to listen.
    """

    def __init__(self, path: str) -> None:
        connection = socket.socket(socket.AF_UNIX)
        wait_until(lambda: connection.connect_ex(path) == 0, 20, "somebody listens")
        self._stream = FrameStream(connection)
        self._received: deque[list[bytes]] = deque()

    def __enter__(self) -> UnixPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def close(self, linger: int = 0) -> None:
        """Close it; what is queued is lost."""
        self._stream.close()

    def send_multipart(self, frames: Sequence[bytes]) -> None:
        self._stream.queue(frames)
        assert not self._stream.has_queued

    def poll(self, milliseconds: int) -> bool:
        deadline = time.monotonic() + milliseconds / 1000
        while not self._received and not self._stream.ended:
            if not select.select([self._stream.connection], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
            self._stream.read()
            while (frames := self._stream.take()) is not None:
                # Empty ones only acknowledge.
                self._received.extend([frames] if frames else [])
        return bool(self._received)

    def recv_multipart(self) -> list[bytes]:
        assert self.poll(20_000), "nothing came"
        return self._received.popleft()
