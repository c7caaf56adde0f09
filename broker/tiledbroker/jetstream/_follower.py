"""Follows the newest message of each subject of a stream, and notices whenever it has missed anything."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .._errors import LogUnavailable
from ._connection import Connection, StoredMessage

if TYPE_CHECKING:
    from nats.aio.msg import Msg

HEARTBEAT_SECONDS: Final = 2.0
SILENCE_SECONDS: Final = 10.0
"""Time without a heartbeat after which a follower has failed."""
_NANOSECONDS: Final = 10**9
_ACKNOWLEDGEMENTS: Final = "$JS.ACK."
"""What answers to messages of a stream would go to; heartbeats have no such subject."""


@dataclass
class Follower:
    """The newest messages of the subjects of a stream, in their order; see `follow`.

    Attributes
    ----------
    pending
        Number of messages that were there at the beginning and may still come.
    """

    pending: int
    _connection: Connection
    _messages: asyncio.Queue[Msg]
    _heard_at: float
    _received: int = 0

    async def receive(self, timeout: float) -> list[StoredMessage]:
        """Return the messages that have come, after up to `timeout` seconds; an empty list if there is none.

        Raises
        ------
        LogUnavailable
            The connection is lost, a message is missing, or nothing has come for `SILENCE_SECONDS`: follow anew.
        """
        first = asyncio.ensure_future(self._messages.get())
        lost = asyncio.ensure_future(self._connection.lost.wait())
        try:
            await asyncio.wait({first, lost}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not first.done():
                self._check_connection()
                return []
            return [message for each in self._drain(first.result()) if (message := self._take(each)) is not None]
        finally:
            first.cancel()
            lost.cancel()

    def _check_connection(self) -> None:
        if self._connection.lost.is_set():
            raise LogUnavailable("the connection was lost")
        if asyncio.get_running_loop().time() - self._heard_at > SILENCE_SECONDS:
            raise LogUnavailable(f"the log's servers have been silent for {SILENCE_SECONDS:g} s")

    def _drain(self, first: Msg) -> Iterator[Msg]:
        self._heard_at = asyncio.get_running_loop().time()
        yield first
        for _ in range(self._messages.qsize()):
            yield self._messages.get_nowait()

    def _take(self, message: Msg) -> StoredMessage | None:
        headers = message.headers or {}
        # Messages of the stream have any headers that their senders gave them, also this one.
        if headers.get("Status") and not message.reply.startswith(_ACKNOWLEDGEMENTS):
            if int(headers.get("Nats-Last-Consumer", self._received)) != self._received:
                raise LogUnavailable("the news of some runs were lost on their way")
            # The server has nothing left to send. What it has counted and did not send was removed meanwhile.
            self.pending = 0
            return None
        place = message.metadata.sequence
        self._received += 1
        if place.consumer != self._received:
            raise LogUnavailable("the news of some runs were lost on their way")
        self.pending -= self.pending > 0
        return StoredMessage(message.subject, place.stream, headers, message.data)


@asynccontextmanager
async def follow(
    connection: Connection, stream: str, subjects: str, *, headers_only: bool = False
) -> AsyncIterator[Follower]:
    """Follow the newest message of each subject, beginning with those that are there.

    Parameters
    ----------
    connection
        The connection, which is closed afterwards.
    stream
        The stream.
    subjects
        Its subjects to follow, with wildcards.
    headers_only
        Leave the bodies out.

    Raises
    ------
    LogUnavailable
        There is no answer.
    """
    messages: asyncio.Queue[Msg] = asyncio.Queue()
    inbox = connection.new_inbox()
    await connection.subscribe(inbox, messages.put)
    name = f"newest-{secrets.token_hex(8)}"
    made = await connection.call(
        f"CONSUMER.CREATE.{stream}.{name}.{subjects}",
        {
            "stream_name": stream,
            "action": "create",
            "config": {
                "name": name,
                "deliver_subject": inbox,
                "deliver_policy": "last_per_subject",
                "filter_subject": subjects,
                "ack_policy": "none",
                "headers_only": headers_only,
                "idle_heartbeat": int(HEARTBEAT_SECONDS * _NANOSECONDS),
                "inactive_threshold": int(4 * SILENCE_SECONDS * _NANOSECONDS),
                "mem_storage": True,
                "num_replicas": 1,
            },
        },
    )
    # What it has sent before it answered is no longer pending.
    sent = int((made.get("delivered") or {}).get("consumer_seq", 0))
    pending = int(made.get("num_pending", 0)) + sent
    yield Follower(pending, connection, messages, asyncio.get_running_loop().time())
