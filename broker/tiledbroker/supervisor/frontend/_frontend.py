"""The frontend: the source over ZeroMQ, with the socket that publishers connect to. Authenticates clients."""

from __future__ import annotations

import ctypes
import errno
import logging
import secrets
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import zmq
from zmq.auth.thread import ThreadAuthenticator

from ...protocol import ZAP_DOMAIN, ServerCurve, messages
from .._publishers import ClientLimits, Publisher
from .._wire_source import WireSource
from ._connections import Connections

DEFAULT_ADDRESS: Final = "tcp://127.0.0.1:5579"
MESSAGES_PER_TURN: Final = 200

_HANDSHAKE_TIMEOUT_MILLISECONDS: Final = 3_000
_LINGER_MILLISECONDS: Final = 200
# Per connection. One that does not read this many is forgotten: its next Welcome repeats all that it has missed.
_MAX_QUEUED_ANSWERS: Final = 100
# Per connection. Beyond this its sender blocks, so messages of a fast publisher cannot fill the memory.
_MAX_QUEUED_MESSAGES: Final = 16
_KEEPALIVE_IDLE_SECONDS: Final = 5
_KEEPALIVE_INTERVAL_SECONDS: Final = 2
_MAX_RETRANSMIT_MILLISECONDS: Final = 10_000
_KEEPALIVE_OPTIONS: Final = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: _KEEPALIVE_IDLE_SECONDS,
    zmq.TCP_KEEPALIVE_INTVL: _KEEPALIVE_INTERVAL_SECONDS,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: _MAX_RETRANSMIT_MILLISECONDS,
}

_Socket: TypeAlias = "zmq.Socket[bytes]"


class Sender(NamedTuple):
    """Who has sent a message: the attributes of a `Publisher` that its connection determines."""

    identity: bytes
    client: str
    address: str
    descriptor: int = -1


class Frontend(WireSource):
    """The frontend: a `Source` that is a ROUTER socket.

    Parameters
    ----------
    listen
        ZeroMQ URL to listen at; None accepts no publishers.
    limits
        Limits for each client.
    curve
        Keys of the supervisor and of the allowed clients; None allows any client.
    """

    def __init__(
        self,
        listen: str | None = None,
        limits: ClientLimits = ClientLimits(),  # noqa: B008  it is frozen
        curve: ServerCurve | None = None,
    ) -> None:
        super().__init__(limits)
        self._listen = listen
        self._curve = curve
        self._context: zmq.Context[_Socket] = zmq.Context()
        self._authenticator = self._start_authenticator()
        _draw_first_identity()
        # ROUTER_HANDOVER stays off: with it, libzmq 4.3.5 joins frames of the old connection's last message to the new
        # connection's first message, or aborts over them (fq.cpp: "!_more"). Publishers draw a new identity instead.
        self._socket = self._context.socket(zmq.ROUTER)
        self._connections = Connections(self._context, self._socket)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_TIMEOUT_MILLISECONDS)
        self._socket.setsockopt(zmq.MAXMSGSIZE, max(limits.max_document, messages.MAX_HEADER_BYTES))
        self._socket.setsockopt(zmq.RCVHWM, _MAX_QUEUED_MESSAGES)
        self._socket.setsockopt(zmq.SNDHWM, _MAX_QUEUED_ANSWERS)
        # ZeroMQ's heartbeats stay off: libzmq 4.3.5 aborts when one is due on a connection that closed while its input
        # was stopped at the high-water mark (zeromq/libzmq#4364). Publishers send Pings; TCP keepalive detects
        # half-open connections.
        for option, value in _KEEPALIVE_OPTIONS.items():
            self._socket.setsockopt(option, value)
        if curve is not None:
            curve.apply(self._socket)

    def open(self) -> None:
        """Listen, if there is an address.

        Raises
        ------
        zmq.ZMQError
            The address is in use, or is no address of this host.
        """
        if self._listen is not None:
            self._bind(self._listen)

    def _bind(self, address: str) -> None:
        scheme, _, path = address.partition("://")
        if scheme == "ipc" and _somebody_listens(path):
            # libzmq would delete the socket file of the other process and bind in its place.
            raise zmq.ZMQError(zmq.EADDRINUSE)
        if "[" in address:
            self._socket.setsockopt(zmq.IPV6, 1)
        self._socket.bind(address)

    def _start_authenticator(self) -> ThreadAuthenticator:
        # The authenticator runs even without keys: with it, libzmq refuses peers that do not send the greeting of
        # today's protocol (ZMTP 3). Otherwise libzmq takes any bytes for messages of a peer with an older protocol,
        # and keeps the connection forever.
        authenticator = ThreadAuthenticator(self._context, log=logging.getLogger(f"{__name__}.zap"))
        if self._curve is not None:
            authenticator.configure_curve_callback(ZAP_DOMAIN, self._curve)
        authenticator.start()
        return authenticator

    def close(self) -> None:
        """Close the socket; messages already queued get `_LINGER_MILLISECONDS` to be sent."""
        self._authenticator.stop()
        self._connections.close()
        self._socket.close(linger=_LINGER_MILLISECONDS)
        self._context.destroy(linger=0)

    @property
    def pollable(self) -> _Socket:
        """The ROUTER socket."""
        return self._socket

    @property
    def endpoint(self) -> str | None:
        """The ZeroMQ URL to which the socket is bound; None if there is no address."""
        return None if self._listen is None else self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive(self) -> Iterator[tuple[Publisher, messages.Message]]:
        """Yield the messages for the supervisor: each Hello, and documents of publishers that have said Hello.

        At most `MESSAGES_PER_TURN` messages are read, without waiting.
        """
        for _ in range(MESSAGES_PER_TURN):
            try:
                received = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            identified = self._identify_sender(received)
            if identified is None:
                continue
            sender, frames = identified
            publisher = self._let_in(sender)
            if publisher is None:
                continue
            message = self._admit_frames(publisher, [frame.bytes for frame in frames])
            if message is not None:
                yield publisher, message

    def _send_message(self, identity: bytes, message: messages.Message) -> bool:
        try:
            self._socket.send_multipart([identity, *messages.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def _identify_sender(self, frames: list[zmq.Frame]) -> tuple[Sender, list[zmq.Frame]] | None:
        """Return who has sent a message, and the message's own frames; None if there is none to handle.

        libzmq asks the authenticator only when a client connects, so a revoked key must be checked at each message.
        """
        identity, *rest = frames
        if not rest:
            self._record_refusal("protocol", "An empty message was dropped.")
            return None
        key = _frame_property(rest[0], "User-Id") if self._curve is not None else ""
        client = self._curve.name_of(key) if self._curve is not None else ""
        if client is None:
            self._record_refusal("key", "A message with the key %s, which is not let in any more, was dropped.", key)
            self._forget(identity.bytes)
            self._send_message(identity.bytes, messages.Refused("", 0, "this key is not let in any more"))
            return None
        address = _frame_property(rest[0], "Peer-Address")
        return Sender(identity.bytes, client, address, rest[0].get(zmq.SRCFD)), rest

    def _let_in(self, sender: Sender) -> Publisher | None:
        """Return the publisher that has sent a message, which may not have said Hello; None if it is refused."""
        identity = sender.identity
        publisher = self._find_publisher(*sender)
        if len(identity) != messages.IDENTITY_BYTES:
            self._record_refusal(
                "identity", "A message of %s, which has no identity of its own, was dropped.", publisher
            )
            self._send_message(
                identity, messages.Refused("", 0, "it has to draw a routing identity of 16 bytes by lot")
            )
            return None
        return publisher

    def check_connections(self) -> None:
        """Close connections without a publisher, forget silent publishers, and log a summary of refusals."""
        self._close_overdue_connections()
        super().check_connections()

    def _close_overdue_connections(self) -> None:
        if ended := self._connections.close_overdue({publisher.descriptor for publisher in self.publishers.values()}):
            self._record_refusal("hello", "%d connections without a Hello were ended.", ended)


def _draw_first_identity() -> None:
    """Make libzmq start its numbering of peers without an identity at a random number.

    libzmq counts from a value of the C library's `rand`, which nobody seeds, so the first number is the same in every
    process; libzmq aborts when a peer announces an identity equal to the next number.
    """
    ctypes.CDLL(None).srand(ctypes.c_uint(secrets.randbits(32)))


def _somebody_listens(path: str) -> bool:
    """Return whether a process listens at a Unix socket path, as opposed to a stale file."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        # EAGAIN: the listener's backlog is full.
        return caller.connect_ex(path) in (0, errno.EAGAIN)


def _frame_property(frame: zmq.Frame, name: str) -> str:
    """Return a property that libzmq or the authenticator has attached to a frame's connection."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        # The property is missing, for example the peer address over ipc.
        return ""
