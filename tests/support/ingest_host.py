"""A supervisor's end of the wire, in the hands of a test: it says what the test wants, and nothing by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

import zmq

from tiledbroker.protocol import messages

M = TypeVar("M", bound=messages.Message)


class IngestHost:
    """Listens at a port of its own; answers Pings while it waits for what a test wants to see."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, int(":" in host))
        self._host = f"[{host}]" if ":" in host else host
        self.port = self._socket.bind_to_random_port(f"tcp://{self._host}")
        self.publisher = b""
        self.documents: dict[str, list[tuple[int, str, bytes]]] = {}

    @property
    def address(self) -> str:
        return f"tcp://{self._host}:{self.port}"

    def __enter__(self) -> IngestHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._socket.close()
        self._context.term()

    def expect(self, kind: type[M], condition: Callable[[M], bool] = lambda _: True, *, seconds: float = 60.0) -> M:
        """Wait for a message; documents that come meanwhile are kept."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            message = self.receive(deadline - time.monotonic())
            if isinstance(message, kind) and condition(message):
                return message
        raise TimeoutError(f"no {kind.__name__} came within {seconds:g} s")

    def receive(self, seconds: float) -> messages.Message | None:
        """Take the next message, if one comes in time."""
        if not self._socket.poll(int(1000 * max(seconds, 0.0))):
            return None
        self.publisher, *frames = self._socket.recv_multipart()
        message = messages.decode(frames)
        if isinstance(message, messages.Ping):
            self.say(messages.Pong(message.token))
        elif isinstance(message, messages.Documents):
            known = self.documents.setdefault(message.run, [])
            for idx, (name, _, body) in enumerate(message.unpack(), message.first):
                known.append((idx, name, body))
        return message

    def welcome(self, runs: dict[str, messages.RunState] | None = None) -> messages.Hello:
        """Answer the next Hello: I have nothing of your runs but this."""
        hello = self.expect(messages.Hello)
        states = {uid: messages.RunState(0, ended=False, outcome="") for uid in (*hello.runs, *hello.awaited)}
        self.say(messages.Welcome(2**23, 2**28, {**states, **(runs or {})}))
        return hello

    def forget_session(self) -> None:
        """Drop what a publisher that is closed has said, so that the next answer goes to its successor."""
        while self.receive(0.5) is not None:
            pass

    def say(self, message: messages.Message) -> None:
        """Tell the publisher that was heard last."""
        self._socket.send_multipart([self.publisher, *messages.encode(message)])

    def say_frames(self, *frames: bytes) -> None:
        """The same with whatever bytes."""
        self._socket.send_multipart([self.publisher, *frames])

    def take_in(self, uid: str, count: int, *, seconds: float = 60.0) -> list[str]:
        """Wait until so many documents of a run have come; their names, in the order of their indexes."""
        deadline = time.monotonic() + seconds
        while len(self.documents.get(uid, [])) < count:
            assert time.monotonic() < deadline, f"{len(self.documents.get(uid, []))} of {count} documents came"
            self.receive(deadline - time.monotonic())
        assert [idx for idx, _, _ in self.documents[uid]] == list(range(count))
        return [name for _, name, _ in self.documents[uid]]
