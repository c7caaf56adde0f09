"""The socket that publishers connect to: who is let in, how much each may have under way, and what was refused."""

from __future__ import annotations

import ctypes
import errno
import logging
import secrets
import socket
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import zmq
from zmq.auth.thread import ThreadAuthenticator

from .._errors import ProtocolError, ProtocolVersionError
from .._limited import LimitedLog
from ..protocol import ZAP_DOMAIN, ServerCurve, messages
from ._connections import Connections

log = logging.getLogger(__name__)

DEFAULT_WINDOW: Final = 8 * 2**20
DEFAULT_MAX_DOCUMENT: Final = 256 * 2**20
DEFAULT_MAX_CONNECTIONS: Final = 200
DEFAULT_MAX_OPEN_RUNS: Final = 200

MESSAGES_PER_TURN: Final = 200

_HANDSHAKE_TIMEOUT: Final = 3_000  # ms
_LINGER: Final = 200  # ms
_WAITING_ANSWERS: Final = 100  # of one connection, before it counts as gone
_WAITING_MESSAGES: Final = 16  # of one connection, before its sender has to wait
_SILENCE: Final = 60.0
_REPORT_INTERVAL: Final = 60.0
_KEEPALIVE: Final = {  # seconds, but for TCP_MAXRT
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 5,
    zmq.TCP_KEEPALIVE_INTVL: 2,
    zmq.TCP_KEEPALIVE_CNT: 3,
    zmq.TCP_MAXRT: 10_000,
}

_Socket: TypeAlias = "zmq.Socket[bytes]"


@dataclass(frozen=True)
class ClientLimits:
    """What one client may have.

    Attributes
    ----------
    window
        Bytes under way unacknowledged, per connection.
    max_document
        Bytes of one document, and of one message.
    max_connections
        Publishers connected at a time.
    max_open_runs
        Runs whose end has not come.
    """

    window: int = DEFAULT_WINDOW
    max_document: int = DEFAULT_MAX_DOCUMENT
    max_connections: int = DEFAULT_MAX_CONNECTIONS
    max_open_runs: int = DEFAULT_MAX_OPEN_RUNS


@dataclass(eq=False)
class Publisher:
    """One connection; another one is another publisher, also under the same identity.

    Attributes
    ----------
    identity
        What ZeroMQ calls it; drawn by lot for each connection.
    client
        Whose key it has shown; "" without CURVE.
    address
        Where it is.
    descriptor
        What its messages come by.
    name
        How it calls itself; "" until it has said Hello.
    """

    identity: bytes
    client: str
    address: str
    descriptor: int = -1
    name: str = ""
    heard: float = 0.0
    refused: dict[str, str] = field(default_factory=dict, repr=False)  # runs that it is not to send, and why
    _under_way: dict[str, deque[tuple[int, int]]] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.name or "somebody", self.client and f"({self.client})", self.address)))

    @property
    def party(self) -> str:
        """Who is to keep within the limits."""
        return self.client or self.address

    @property
    def under_way(self) -> int:
        """Bytes that have come and are not durable."""
        return sum(size for batches in self._under_way.values() for _, size in batches)

    def has_sent(self, message: messages.Documents) -> None:
        """Documents have come."""
        self._under_way.setdefault(message.run, deque()).append((message.next, len(message.body)))

    def knows_of(self, message: messages.Message) -> None:
        """It has been told what became of documents that it sent."""
        if isinstance(message, messages.Refused):
            self._under_way.pop(message.run, None)
        elif isinstance(message, messages.Durable) and message.run in self._under_way:
            batches = self._under_way[message.run]
            while batches and batches[0][0] <= message.next:
                batches.popleft()
            if not batches:
                del self._under_way[message.run]


class Front:
    """The supervisor's socket for publishers.

    Parameters
    ----------
    limits
        What each client may have.
    curve
        Whom to let in; None: anybody.

    Attributes
    ----------
    publishers
        Those that have said Hello and were heard of lately, by identity.
    refused
        How often something was refused, by the reason.
    """

    def __init__(self, context: zmq.Context[_Socket], limits: ClientLimits, curve: ServerCurve | None) -> None:
        self.publishers: dict[bytes, Publisher] = {}
        self.refused: Counter[str] = Counter()
        self._limits = limits
        self._curve = curve
        self._limited = LimitedLog(log)
        self._reported: Counter[str] = Counter()
        self._next_report = 0.0
        self._authenticator = self._authenticate(context)
        _draw_first_identity()
        # Without ROUTER_HANDOVER: in libzmq 4.3.5 it joins frames of the old connection's last message to the new one's
        # first, or aborts over them (fq.cpp: "!_more"). Publishers draw another identity instead.
        self.socket = context.socket(zmq.ROUTER)
        self._connections = Connections(context, self.socket)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt_string(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_TIMEOUT)
        self.socket.setsockopt(zmq.MAXMSGSIZE, max(limits.max_document, messages.MAX_HEADER_BYTES))
        self.socket.setsockopt(zmq.RCVHWM, _WAITING_MESSAGES)
        self.socket.setsockopt(zmq.SNDHWM, _WAITING_ANSWERS)
        # Not ZeroMQ's heartbeats: libzmq 4.3.5 aborts when one is due on a connection that went while its input was
        # stopped at the high-water mark (zeromq/libzmq#4364). Publishers send Pings; TCP finds the half-open ones.
        for option, value in _KEEPALIVE.items():
            self.socket.setsockopt(option, value)
        if curve is not None:
            curve.apply(self.socket)

    def bind(self, address: str) -> None:
        """Listen at a ZeroMQ URL.

        Raises
        ------
        zmq.ZMQError
            Somebody else does, or it is no address of this host.
        """
        scheme, _, path = address.partition("://")
        if scheme == "ipc" and _somebody_listens(path):  # libzmq would delete the path, and take its place
            raise zmq.ZMQError(zmq.EADDRINUSE)
        if "[" in address:
            self.socket.setsockopt(zmq.IPV6, 1)
        self.socket.bind(address)

    def _authenticate(self, context: zmq.Context[_Socket]) -> ThreadAuthenticator:
        # Also without keys: libzmq then turns away whatever does not greet as ZeroMQ has done since 2012. Else it takes
        # any bytes for messages of an ancient peer, and keeps its connection for ever.
        authenticator = ThreadAuthenticator(context, log=logging.getLogger(f"{__name__}.zap"))
        if self._curve is not None:
            authenticator.configure_curve_callback(ZAP_DOMAIN, self._curve)
        authenticator.start()
        return authenticator

    def close(self) -> None:
        """Stop listening; what was sent last has a moment to go out."""
        self._authenticator.stop()
        self._connections.close()
        self.socket.close(linger=_LINGER)

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def receive(self) -> Iterator[tuple[Publisher, messages.Message]]:
        """What publishers want of the supervisor: Hello, and whatever comes of those who have said it."""
        for _ in range(MESSAGES_PER_TURN):
            try:
                identity, *frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            if not frames:
                self._refuse("protocol", "An empty message was dropped.")
                continue
            publisher = self._let_in(identity.bytes, frames[0])
            if publisher is None:
                continue
            try:
                message = messages.decode([frame.bytes for frame in frames])
            except ProtocolVersionError as error:
                self._refuse("version", "%s speaks protocol version %d.", publisher, error.version)
                own = f"this supervisor speaks protocol version {messages.VERSION}, this publisher {error.version}"
                self._send(identity.bytes, messages.Refused("", 0, own))
                continue
            except ProtocolError as error:
                self._refuse("protocol", "Frames of %s that are no message of ours were dropped: %s", publisher, error)
                continue
            if self._admit(publisher, message):
                yield publisher, message

    def has(self, publisher: Publisher) -> bool:
        """Whether it is there still, as far as is known."""
        return self.publishers.get(publisher.identity) is publisher

    def send(self, publisher: Publisher, message: messages.Message) -> bool:
        """Tell a publisher something; False if it is not there, or does not listen."""
        if not self.has(publisher):
            return False
        publisher.knows_of(message)
        if self._send(publisher.identity, message):
            return True
        del self.publishers[publisher.identity]  # a Hello brings it up to date
        return False

    def _send(self, identity: bytes, message: messages.Message) -> bool:
        try:
            self.socket.send_multipart([identity, *messages.encode(message)], zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        return True

    def _let_in(self, identity: bytes, frame: zmq.Frame) -> Publisher | None:
        """Who sent this; None if it may not, any more: only connecting asks the authenticator."""
        key = _property(frame, "User-Id") if self._curve is not None else ""
        client = self._curve.name_of(key) if self._curve is not None else ""
        if client is None:
            self._refuse("key", "A message with the key %s, which is not let in any more, was dropped.", key)
            self.publishers.pop(identity, None)
            self._send(identity, messages.Refused("", 0, "this key is not let in any more"))
            return None
        publisher = self.publishers.get(identity)
        if publisher is None or publisher.client != client:
            self.publishers.pop(identity, None)  # it was somebody else's, or the key has another name now
            publisher = Publisher(identity, client, _property(frame, "Peer-Address"), frame.get(zmq.SRCFD))
        if len(identity) != messages.IDENTITY_BYTES:
            self._refuse("identity", "A message of %s, which has no identity of its own, was dropped.", publisher)
            self._send(identity, messages.Refused("", 0, "it has to draw a routing identity of 16 bytes by lot"))
            return None
        return publisher

    def _admit(self, publisher: Publisher, message: messages.Message) -> bool:
        """Whether the supervisor is to hear of a message."""
        publisher.heard = time.monotonic()
        if isinstance(message, messages.Hello):
            return self._welcome(publisher, message)
        if publisher.identity not in self.publishers:
            self._send(publisher.identity, messages.Refused("", 0, messages.NO_HELLO))
            return False
        if isinstance(message, messages.Ping):
            self.send(publisher, messages.Pong(message.token))
            return False
        if isinstance(message, messages.Documents):
            if (size := max(message.sizes)) > self._limits.max_document:
                reason = f"a document of it has {size} bytes; the limit is {self._limits.max_document}"
                self.refuse("document", publisher, messages.Refused(message.run, message.first, reason))
                return False
            if publisher.under_way >= self._limits.window:
                self.refuse("window", publisher, messages.Refused(message.run, message.first, messages.LATER))
                return False
            publisher.has_sent(message)
            return True
        if isinstance(message, messages.Abandoned):
            return True
        self._refuse("protocol", "%s sent a %s, which publishers do not.", publisher, type(message).__name__)
        return False

    def _welcome(self, publisher: Publisher, hello: messages.Hello) -> bool:
        publisher.refused.clear()  # it looks at all of its runs anew
        if publisher.identity in self.publishers:
            return True
        connections = self._connected(publisher.party)
        if connections >= self._limits.max_connections:
            self._forget_gone(publisher.party)
            connections = self._connected(publisher.party)
        if connections >= self._limits.max_connections:
            self._refuse("connections", "%s has %d connections already.", publisher, connections)
            reason = f"{connections} publishers of yours are connected, which is the limit"
            self._send(publisher.identity, messages.Refused("", 0, reason))
            return False
        publisher.name = hello.publisher
        self.publishers[publisher.identity] = publisher
        log.info("Publisher %s is connected, with %d runs.", publisher, len(hello.runs))
        return True

    def _connected(self, party: str) -> int:
        return sum(publisher.party == party for publisher in self.publishers.values())

    def _forget_gone(self, party: str) -> None:
        """Those of a party whose connections have ended: libzmq tells when something is sent to them."""
        for publisher in [publisher for publisher in self.publishers.values() if publisher.party == party]:
            self.send(publisher, messages.Pong(0))

    def look(self) -> None:
        """End connections that nobody has said Hello on, or anything for long; sum up what was refused."""
        self._forget_silent()
        if ended := self._connections.look({publisher.descriptor for publisher in self.publishers.values()}):
            self._refuse("hello", "%d connections without a Hello were ended.", ended)
        now = time.monotonic()
        if self.refused != self._reported and now >= self._next_report:
            self._next_report = now + _REPORT_INTERVAL
            self._reported = self.refused.copy()
            log.info(
                "Refused so far: %s.", ", ".join(f"{topic} {count}" for topic, count in sorted(self.refused.items()))
            )

    def _forget_silent(self) -> None:
        """Each connection has an identity of its own; those of broken ones would pile up."""
        limit = time.monotonic() - _SILENCE
        for identity in [identity for identity, publisher in self.publishers.items() if publisher.heard <= limit]:
            del self.publishers[identity]

    def refuse(self, topic: str, publisher: Publisher, refusal: messages.Refused) -> None:
        """Refuse what a publisher has sent, and say why."""
        why = refusal.detail or refusal.reason
        self._refuse(topic, "Run %s of %s is refused: %s.", refusal.run, publisher, why)
        if refusal.reason not in (messages.GAP, messages.LATER):
            if len(publisher.refused) >= messages.MAX_RUNS:  # that many are forgotten, and looked at anew
                publisher.refused.clear()
            publisher.refused[refusal.run] = refusal.reason
        self.send(publisher, refusal)

    def _refuse(self, topic: str, message: str, *args: object) -> None:
        self.refused[topic] += 1
        self._limited.log(logging.WARNING, topic, message, *args)


def _draw_first_identity() -> None:
    """Have libzmq name peers without an identity from an unknown number on.

    It counts from what the C library's `rand` gives, which nobody seeds: the first number is the same in each process,
    and libzmq aborts when a peer calls itself by a number that is due.
    """
    ctypes.CDLL(None).srand(ctypes.c_uint(secrets.randbits(32)))


def _somebody_listens(path: str) -> bool:
    """Whether there is a process behind a path, and not only what one has left."""
    with socket.socket(socket.AF_UNIX) as caller:
        caller.setblocking(False)
        return caller.connect_ex(path) in (0, errno.EAGAIN)  # the latter: more wait to be let in than it allows


def _property(frame: zmq.Frame, name: str) -> str:
    """What libzmq or the authenticator knows of the connection that a frame came by."""
    try:
        return str(frame.get(name))
    except zmq.ZMQError:  # as an address of ipc
        return ""
