"""Sockets that talk to a supervisor as a publisher does, and say what a test wants."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

import zmq

from tiledbroker.protocol import messages
from tiledbroker.protocol._security import Keys
from tiledbroker.publisher._zmq_link import new_identity

M = TypeVar("M", bound=messages.Message)


class Peer(Protocol):
    """A connection to a supervisor that says what a test wants: a socket of ZeroMQ, or one with its methods."""

    def send_multipart(self, frames: list[bytes]) -> Any: ...

    def recv_multipart(self) -> list[bytes]: ...

    def poll(self, milliseconds: int) -> Any: ...

    def close(self, linger: int) -> None: ...


def dial(
    context: zmq.Context[zmq.Socket[bytes]], address: str, *, identity: bytes | None = None, keys: Keys | None = None
) -> zmq.Socket[bytes]:
    """A socket that connects, under an identity of its own unless another one is given."""
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RCVTIMEO, 60_000)
    if identity != b"":
        dealer.setsockopt(zmq.ROUTING_ID, identity or new_identity())
    if keys is not None:
        keys.apply(dealer)
    dealer.connect(address)
    return dealer


def ask(peer: Peer, message: messages.Message) -> messages.Message:
    """Say something, and wait for the answer."""
    peer.send_multipart(messages.encode(message))
    return messages.decode(peer.recv_multipart())


def hear(peer: Peer, kind: type[M]) -> M:
    """Wait for a message of a kind; drop others."""
    while not isinstance(message := messages.decode(peer.recv_multipart()), kind):
        pass
    return message
