"""The frontend: the socket that publishers connect to. Authenticates clients and enforces their limits."""

from __future__ import annotations

import ctypes
import errno
import logging
import secrets
import socket
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

import zmq
from zmq.auth.thread import ThreadAuthenticator

from ..._errors import ProtocolError, ProtocolVersionError
from ..._rate_limited_log import RateLimitedLog
from ...protocol import ZAP_DOMAIN, ServerCurve, messages
from .._publishers import ClientLimits, Publisher
from ._connections import Connections

log = logging.getLogger(__name__)

MESSAGES_PER_TURN: Final = 200

_HANDSHAKE_TIMEOUT_MILLISECONDS: Final = 3_000
_LINGER_MILLISECONDS: Final = 200
# Per connection. One that does not read this many is forgotten: its next Welcome repeats all that it has missed.
_MAX_QUEUED_ANSWERS: Final = 100
# Per connection. Beyond this its sender blocks, so messages of a fast publisher cannot fill the memory.
_MAX_QUEUED_MESSAGES: Final = 16
_MAX_SILENCE_SECONDS: Final = 60.0
_REFUSAL_SUMMARY_INTERVAL_SECONDS: Final = 60.0
# Topics of refusals that the supervisor logs once for all publishers.
_SAID_ELSEWHERE: Final = frozenset({"disk"})
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


class Frontend:
    """The frontend: the supervisor's ROUTER socket for publishers.

    Parameters
    ----------
    context
        ZeroMQ context of the socket.
    limits
        Limits for each client.
    curve
        Keys of the supervisor and of the allowed clients; None allows any client.

    Attributes
    ----------
    socket
        The ROUTER socket.
    publishers
        Publishers that have said Hello and sent something lately, by routing identity.
    refused, refused_at
        Number of refusals, and Unix time of the last one, by topic.
    """

    def __init__(self, context: zmq.Context[_Socket], limits: ClientLimits, curve: ServerCurve | None) -> None:
        self.publishers: dict[bytes, Publisher] = {}
        self.refused: Counter[str] = Counter()
        self.refused_at: dict[str, float] = {}
        self._gone: list[Publisher] = []
        self._limits = limits
        self._curve = curve
        self._limited_log = RateLimitedLog(log)
        self._reported: Counter[str] = Counter()
        self._next_report = 0.0
        self._authenticator = self._start_authenticator(context)
        _draw_first_identity()
        # ROUTER_HANDOVER stays off: with it, libzmq 4.3.5 joins frames of the old connection's last message to the new
        # connection's first message, or aborts over them (fq.cpp: "!_more"). Publishers draw a new identity instead.
        self.socket = context.socket(zmq.ROUTER)
        self._connections = Connections(context, self.socket)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_TIMEOUT_MILLISECONDS)
        self.socket.setsockopt(zmq.MAXMSGSIZE, max(limits.max_document, messages.MAX_HEADER_BYTES))
        self.socket.setsockopt(zmq.RCVHWM, _MAX_QUEUED_MESSAGES)
        self.socket.setsockopt(zmq.SNDHWM, _MAX_QUEUED_ANSWERS)
        # ZeroMQ's heartbeats stay off: libzmq 4.3.5 aborts when one is due on a connection that closed while its input
        # was stopped at the high-water mark (zeromq/libzmq#4364). Publishers send Pings; TCP keepalive detects
        # half-open connections.
        for option, value in _KEEPALIVE_OPTIONS.items():
            self.socket.setsockopt(option, value)
        if curve is not None:
            curve.apply(self.socket)

    def bind(self, address: str) -> None:
        """Listen at a ZeroMQ URL.

        Raises
        ------
        zmq.ZMQError
            The address is in use, or is no address of this host.
        """
        scheme, _, path = address.partition("://")
        if scheme == "ipc" and _somebody_listens(path):
            # libzmq would delete the socket file of the other process and bind in its place.
            raise zmq.ZMQError(zmq.EADDRINUSE)
        if "[" in address:
            self.socket.setsockopt(zmq.IPV6, 1)
        self.socket.bind(address)

    def _start_authenticator(self, context: zmq.Context[_Socket]) -> ThreadAuthenticator:
        # The authenticator runs even without keys: with it, libzmq refuses peers that do not send the greeting of
        # today's protocol (ZMTP 3). Otherwise libzmq takes any bytes for messages of a peer with an older protocol,
        # and keeps the connection forever.
        authenticator = ThreadAuthenticator(context, log=logging.getLogger(f"{__name__}.zap"))
        if self._curve is not None:
            authenticator.configure_curve_callback(ZAP_DOMAIN, self._curve)
        authenticator.start()
        return authenticator

    def close(self) -> None:
        """Close the socket; messages already queued get `_LINGER_MILLISECONDS` to be sent."""
        self._authenticator.stop()
        self._connections.close()
        self.socket.close(linger=_LINGER_MILLISECONDS)

    @property
    def endpoint(self) -> str:
        """The ZeroMQ URL to which the socket is bound."""
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive(self) -> Iterator[tuple[Publisher, messages.Message]]:
        """Yield the messages for the supervisor: each Hello, and documents of publishers that have said Hello.

        At most `MESSAGES_PER_TURN` messages are read, without waiting.
        """
        for _ in range(MESSAGES_PER_TURN):
            try:
                received = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            identified = self._identify_sender(received)
            if identified is None:
                continue
            sender, frames = identified
            publisher = self._let_in(sender)
            if publisher is None:
                continue
            try:
                message = messages.decode([frame.bytes for frame in frames])
            except ProtocolVersionError as error:
                self._record_refusal("version", "%s speaks protocol version %d.", publisher, error.version)
                own = f"this supervisor speaks protocol version {messages.VERSION}, this publisher {error.version}"
                self._send_message(sender.identity, messages.Refused("", 0, own))
                continue
            except ProtocolError as error:
                self._record_refusal(
                    "protocol", "Frames of %s that are no message of ours were dropped: %s", publisher, error
                )
                continue
            if self._admit_message(publisher, message):
                yield publisher, message

    def has(self, publisher: Publisher) -> bool:
        """Return whether this connection still counts as present."""
        return self.publishers.get(publisher.identity) is publisher

    def send(self, publisher: Publisher, message: messages.Message) -> bool:
        """Send a message to a publisher; return False if it is gone or its queue is full."""
        if not self.has(publisher):
            return False
        publisher.acknowledge_up_to(message)
        if self._send_message(publisher.identity, message):
            return True
        # When it says Hello again, the Welcome tells it everything it has missed.
        self._forget(publisher.identity)
        return False

    def _send_message(self, identity: bytes, message: messages.Message) -> bool:
        try:
            self.socket.send_multipart([identity, *messages.encode(message)], zmq.NOBLOCK)
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
        publisher = self.publishers.get(identity)
        if publisher is None or publisher.client != sender.client:
            # The identity belonged to another client, or the key has a new name.
            self._forget(identity)
            publisher = Publisher(identity, sender.client, sender.address, sender.descriptor)
        if len(identity) != messages.IDENTITY_BYTES:
            self._record_refusal(
                "identity", "A message of %s, which has no identity of its own, was dropped.", publisher
            )
            self._send_message(
                identity, messages.Refused("", 0, "it has to draw a routing identity of 16 bytes by lot")
            )
            return None
        return publisher

    def _admit_message(self, publisher: Publisher, message: messages.Message) -> bool:
        """Return whether the supervisor must handle a message; answer or refuse it here otherwise."""
        publisher.heard = time.monotonic()
        if isinstance(message, messages.Hello):
            return self._register_publisher(publisher, message)
        if publisher.identity not in self.publishers:
            self._send_message(publisher.identity, messages.Refused("", 0, messages.NO_HELLO))
            return False
        if isinstance(message, messages.Ping):
            publisher.note_lag(message, time.time())
            self.send(publisher, messages.Pong(message.token))
            return False
        if isinstance(message, messages.Documents):
            if (size := max(message.sizes)) > self._limits.max_document:
                reason = f"a document of it has {size} bytes; the limit is {self._limits.max_document}"
                self.refuse("document", publisher, messages.Refused(message.run, message.first, reason))
                return False
            if publisher.bytes_in_flight >= self._limits.window:
                self.refuse("window", publisher, messages.Refused(message.run, message.first, messages.LATER))
                return False
            publisher.count_in_flight(message)
            return True
        if isinstance(message, messages.Abandoned):
            return True
        self._record_refusal("protocol", "%s sent a %s, which publishers do not.", publisher, type(message).__name__)
        return False

    def _register_publisher(self, publisher: Publisher, hello: messages.Hello) -> bool:
        # After a Hello the publisher considers all of its runs again.
        publisher.refused.clear()
        if publisher.identity in self.publishers:
            return True
        connections = self._connection_count(publisher.quota_key)
        if connections >= self._limits.max_connections:
            self._forget_gone(publisher.quota_key)
            connections = self._connection_count(publisher.quota_key)
        if connections >= self._limits.max_connections:
            self._record_refusal("connections", "%s has %d connections already.", publisher, connections)
            reason = f"{connections} publishers of yours are connected, which is the limit"
            self._send_message(publisher.identity, messages.Refused("", 0, reason))
            return False
        publisher.name, publisher.connected_at = hello.publisher, time.time()
        self.publishers[publisher.identity] = publisher
        log.info("Publisher %s is connected, with %d runs.", publisher, len(hello.runs))
        return True

    def _connection_count(self, quota_key: str) -> int:
        return sum(publisher.quota_key == quota_key for publisher in self.publishers.values())

    def _forget_gone(self, quota_key: str) -> None:
        """Forget the publishers of a client whose connections have ended; libzmq reports that only when we send."""
        for publisher in [publisher for publisher in self.publishers.values() if publisher.quota_key == quota_key]:
            self.send(publisher, messages.Pong(0))

    def take_gone(self) -> list[Publisher]:
        """Return the publishers that were forgotten since the last call."""
        gone, self._gone = self._gone, []
        return gone

    def check_connections(self) -> None:
        """Forget silent publishers, close connections without a publisher, and log a summary of refusals."""
        self._forget_silent()
        self._close_overdue_connections()
        now = time.monotonic()
        reported = Counter({topic: count for topic, count in self.refused.items() if topic not in _SAID_ELSEWHERE})
        if reported != self._reported and now >= self._next_report:
            self._next_report = now + _REFUSAL_SUMMARY_INTERVAL_SECONDS
            self._reported = reported
            log.info("Refused so far: %s.", ", ".join(f"{topic} {count}" for topic, count in sorted(reported.items())))

    def _close_overdue_connections(self) -> None:
        if ended := self._connections.close_overdue({publisher.descriptor for publisher in self.publishers.values()}):
            self._record_refusal("hello", "%d connections without a Hello were ended.", ended)

    def _forget(self, identity: bytes) -> None:
        if (publisher := self.publishers.pop(identity, None)) is not None:
            self._gone.append(publisher)

    def _forget_silent(self) -> None:
        """Forget publishers silent for `_MAX_SILENCE_SECONDS`; identities of broken connections would accumulate."""
        limit = time.monotonic() - _MAX_SILENCE_SECONDS
        for identity in [identity for identity, publisher in self.publishers.items() if publisher.heard <= limit]:
            self._forget(identity)

    def refuse(self, topic: str, publisher: Publisher, refusal: messages.Refused) -> None:
        """Refuse a message of a publisher and tell it the reason.

        Parameters
        ----------
        topic
            Counter and rate-limit key of the refusal.
        publisher
            The sender.
        refusal
            The answer. Any reason but "gap" and "later" is final for the run until the publisher's next Hello.
        """
        why = refusal.detail or refusal.reason
        self._record_refusal(topic, "Run %s of %s is refused: %s.", refusal.run, publisher, why)
        if refusal.reason not in (messages.GAP, messages.LATER):
            if len(publisher.refused) >= messages.MAX_RUNS:
                # Bounds memory. Further messages of these runs are simply checked again.
                publisher.refused.clear()
            publisher.refused[refusal.run] = refusal.reason
        self.send(publisher, refusal)

    def _record_refusal(self, topic: str, message: str, *args: object) -> None:
        self.refused[topic] += 1
        self.refused_at[topic] = time.time()
        level = logging.DEBUG if topic in _SAID_ELSEWHERE else logging.WARNING
        self._limited_log.log(level, topic, message, *args)


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
