"""Sockets that talk to a supervisor as a publisher does, and say what a test wants."""

from __future__ import annotations

import zmq

from tiledbroker.protocol import messages
from tiledbroker.protocol._security import Keys
from tiledbroker.publisher._shipper import new_identity


def dial(
    context: zmq.Context[zmq.Socket[bytes]], address: str, *, identity: bytes | None = None, keys: Keys | None = None
) -> zmq.Socket[bytes]:
    """A socket that connects, under an identity of its own unless another one is given."""
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.setsockopt(zmq.RCVTIMEO, 20_000)
    if identity != b"":
        dealer.setsockopt(zmq.ROUTING_ID, identity or new_identity())
    if keys is not None:
        keys.apply(dealer)
    dealer.connect(address)
    return dealer


def ask(dealer: zmq.Socket[bytes], message: messages.Message) -> messages.Message:
    """Say something, and wait for the answer."""
    dealer.send_multipart(messages.encode(message))
    return messages.decode(dealer.recv_multipart())
