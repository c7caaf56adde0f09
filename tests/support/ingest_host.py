"""An ingest host in the hands of a test: it says what the test wants, and nothing by itself."""

from __future__ import annotations

import select
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import zmq
from unix_transport import FrameStream

from tiledbroker.protocol import messages
from tiledwriter.testing import wait_until

M = TypeVar("M", bound=messages.Message)


class IngestHost(ABC):
    """What a test says to publishers, and what it hears of them.

    Attributes
    ----------
    address
        Where publishers find it.
    documents
        The documents that have come, by run: index, name and body of each.
    """

    address: str

    def __init__(self) -> None:
        self.documents: dict[str, list[tuple[int, str, bytes]]] = {}

    def __enter__(self) -> IngestHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End all connections."""

    @abstractmethod
    def receive(self, seconds: float) -> messages.Message | None:
        """Take the next message of any publisher, if one comes in time."""

    @abstractmethod
    def say(self, message: messages.Message) -> None:
        """Tell the publisher of a run, or the one that was heard last."""

    @abstractmethod
    def welcome(self, *uids: str) -> None:
        """Say that it has nothing of a publisher's runs, once it has asked for these."""

    @abstractmethod
    def await_greeting(self) -> None:
        """Wait until a publisher has connected, if it connects to this host."""

    @abstractmethod
    def await_question(self, uid: str) -> None:
        """Wait until a publisher asks for the outcome of a run, if it has to ask."""

    @abstractmethod
    def ignoring(self) -> AbstractContextManager[None]:
        """Hear nothing of a publisher that is made and closed meanwhile."""

    def note_documents(self, message: messages.Documents) -> None:
        """Add documents that have come."""
        known = self.documents.setdefault(message.run, [])
        for idx, (name, _, body) in enumerate(message.unpack(), message.first):
            known.append((idx, name, body))

    def expect(self, kind: type[M], condition: Callable[[M], bool] = lambda _: True, *, seconds: float = 60.0) -> M:
        """Wait for a message; documents that come meanwhile are kept."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            message = self.receive(deadline - time.monotonic())
            if isinstance(message, kind) and condition(message):
                return message
        raise TimeoutError(f"no {kind.__name__} came within {seconds:g} s")

    def serve_until(self, condition: Callable[[], object], seconds: float, what: str) -> None:
        """Take messages until something has come about."""

        def is_over() -> bool:
            self.receive(0.0)
            return bool(condition())

        wait_until(is_over, seconds, what)

    def take_in(self, uid: str, count: int, *, seconds: float = 60.0) -> list[str]:
        """Wait until so many documents of a run have come; their names, in the order of their indexes."""
        deadline = time.monotonic() + seconds
        while len(self.documents.get(uid, [])) < count:
            assert time.monotonic() < deadline, f"{len(self.documents.get(uid, []))} of {count} documents came"
            self.receive(deadline - time.monotonic())
        assert [idx for idx, _, _ in self.documents[uid]] == list(range(count))
        return [name for _, name, _ in self.documents[uid]]


class WireIngestHost(IngestHost):
    """A supervisor's end of the wire. It answers Pings while it waits for what a test wants to see."""

    @abstractmethod
    def _receive_frames(self, seconds: float) -> list[bytes] | None:
        """Take the frames of the next message of any publisher; None if there is none in time."""

    @abstractmethod
    def say_frames(self, *frames: bytes) -> None:
        """Send frames to the publisher that was heard last."""

    def receive(self, seconds: float) -> messages.Message | None:
        if (frames := self._receive_frames(max(seconds, 0.0))) is None:
            return None
        message = messages.decode(frames)
        if isinstance(message, messages.Ping):
            self.say(messages.Pong(message.token))
        elif isinstance(message, messages.Documents):
            self.note_documents(message)
        return message

    def say(self, message: messages.Message) -> None:
        self.say_frames(*messages.encode(message))

    def welcome(self, *uids: str) -> None:
        hello = self.expect(messages.Hello, lambda hello: hello.runs.keys() >= set(uids))
        states = {uid: messages.RunState(0, ended=False, outcome="") for uid in (*hello.runs, *hello.awaited)}
        self.say(messages.Welcome(2**23, 2**28, states))

    def await_greeting(self) -> None:
        self.expect(messages.Hello)

    def await_question(self, uid: str) -> None:
        self.expect(messages.Hello, lambda hello: uid in hello.awaited)

    @contextmanager
    def ignoring(self) -> Iterator[None]:
        yield
        while self.receive(0.5) is not None:
            pass
        self.documents.clear()


class ZMQIngestHost(WireIngestHost):
    """An ingest host at a port of its own."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, int(":" in host))
        host = f"[{host}]" if ":" in host else host
        self.port = self._socket.bind_to_random_port(f"tcp://{host}")
        self.address = f"tcp://{host}:{self.port}"
        self._publisher = b""

    def close(self) -> None:
        self._socket.close()
        self._context.term()

    def _receive_frames(self, seconds: float) -> list[bytes] | None:
        if not self._socket.poll(int(1000 * seconds)):
            return None
        self._publisher, *frames = self._socket.recv_multipart()
        return frames

    def say_frames(self, *frames: bytes) -> None:
        self._socket.send_multipart([self._publisher, *frames])


class UnixIngestHost(WireIngestHost):
    """An ingest host at a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.address = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address)
        self._listener.listen()
        self._streams: list[FrameStream] = []
        self._publisher: FrameStream | None = None

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._listener.close()

    def _receive_frames(self, seconds: float) -> list[bytes] | None:
        deadline = time.monotonic() + seconds
        while (frames := self._take_frames()) is None:
            connections = [stream.connection for stream in self._streams]
            if not self._read_from(connections, max(0.0, deadline - time.monotonic())):
                return None
        return frames

    def _take_frames(self) -> list[bytes] | None:
        for stream in self._streams:
            if (frames := stream.take()) is not None:
                self._publisher = stream
                return frames
        return None

    def _read_from(self, connections: Sequence[socket.socket], seconds: float) -> bool:
        found, _, _ = select.select([self._listener, *connections], [], [], seconds)
        if self._listener in found:
            self._streams.append(FrameStream(self._listener.accept()[0], acknowledges=True))
        for stream in [stream for stream in self._streams if stream.connection in found]:
            stream.read()
            if stream.ended:
                stream.close()
                self._streams.remove(stream)
        return bool(found)

    def say_frames(self, *frames: bytes) -> None:
        assert self._publisher is not None
        self._publisher.queue(frames)
