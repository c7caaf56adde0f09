"""What every source does whose publishers speak the wire protocol: handshakes, limits of clients, refusals."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Final

from .._errors import ProtocolError, ProtocolVersionError
from .._rate_limited_log import RateLimitedLog
from ..protocol import messages
from ._publishers import ClientLimits, Publisher

log = logging.getLogger(__name__)

_MAX_SILENCE_SECONDS: Final = 60.0
_REFUSAL_SUMMARY_INTERVAL_SECONDS: Final = 60.0
# Topics of refusals that the supervisor logs once for all publishers.
_SAID_ELSEWHERE: Final = frozenset({"disk"})


class WireSource(ABC):
    """A `Source` without its connections, which a subclass has.

    A subclass reads frames, finds the publisher that has sent them with `_find_publisher`, and hands on the message
    that `_admit_frames` returns.

    Parameters
    ----------
    limits
        Limits for each client.

    Attributes
    ----------
    publishers
        Publishers that have said Hello and sent something lately, by identity.
    refused, refused_at
        Number of refusals, and Unix time of the last one, by topic.
    """

    def __init__(self, limits: ClientLimits) -> None:
        self.publishers: dict[bytes, Publisher] = {}
        self.refused: Counter[str] = Counter()
        self.refused_at: dict[str, float] = {}
        self.problem = ""
        self._gone: list[Publisher] = []
        self._limits = limits
        self._limited_log = RateLimitedLog(log)
        self._reported: Counter[str] = Counter()
        self._next_report = 0.0

    @abstractmethod
    def _send_message(self, identity: bytes, message: messages.Message) -> bool:
        """Send a message over a connection; return False if it is gone or its queue is full."""

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

    def _find_publisher(self, identity: bytes, client: str, address: str, descriptor: int = -1) -> Publisher:
        """Return the publisher of a connection; a new one if it has not said Hello."""
        publisher = self.publishers.get(identity)
        if publisher is None or publisher.client != client:
            # The identity belonged to another client, or the key has a new name.
            self._forget(identity)
            publisher = Publisher(identity, client, address, descriptor)
        return publisher

    def _admit_frames(self, publisher: Publisher, frames: Sequence[bytes]) -> messages.Message | None:
        """Return the message in the frames if the supervisor must handle it; answer or refuse it here otherwise."""
        try:
            message = messages.decode(frames)
        except ProtocolVersionError as error:
            self._record_refusal("version", "%s speaks protocol version %d.", publisher, error.version)
            own = f"this supervisor speaks protocol version {messages.VERSION}, this publisher {error.version}"
            self._send_message(publisher.identity, messages.Refused("", 0, own))
            return None
        except ProtocolError as error:
            self._record_refusal(
                "protocol", "Frames of %s that are no message of ours were dropped: %s", publisher, error
            )
            return None
        return message if self._admit_message(publisher, message) else None

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
        """Forget the publishers of a client whose connections have ended, which is only noticed by sending."""
        for publisher in [publisher for publisher in self.publishers.values() if publisher.quota_key == quota_key]:
            self.send(publisher, messages.Pong(0))

    def take_gone(self) -> list[Publisher]:
        """Return the publishers that were forgotten since the last call."""
        gone, self._gone = self._gone, []
        return gone

    def check_connections(self) -> None:
        """Forget silent publishers, and log a summary of refusals."""
        self._forget_silent()
        now = time.monotonic()
        reported = Counter({topic: count for topic, count in self.refused.items() if topic not in _SAID_ELSEWHERE})
        if reported != self._reported and now >= self._next_report:
            self._next_report = now + _REFUSAL_SUMMARY_INTERVAL_SECONDS
            self._reported = reported
            log.info("Refused so far: %s.", ", ".join(f"{topic} {count}" for topic, count in sorted(reported.items())))

    def _forget(self, identity: bytes) -> None:
        if (publisher := self.publishers.pop(identity, None)) is not None:
            self._gone.append(publisher)

    def _forget_silent(self) -> None:
        """Forget publishers silent for `_MAX_SILENCE_SECONDS`; identities of broken connections would accumulate."""
        limit = time.monotonic() - _MAX_SILENCE_SECONDS
        for identity in [identity for identity, publisher in self.publishers.items() if publisher.heard <= limit]:
            self._forget(identity)

    def refuse(self, topic: str, publisher: Publisher, refusal: messages.Refused) -> None:
        """Refuse a message of a publisher and tell it the reason; see `Source`."""
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
