"""Messages of the log: what a message of JetStream says of its run, in headers and in its body. Opens no connections.

The body is the frames of a `Documents` or `Abandoned` message of the wire protocol, each behind its length. A message
that is larger than the server takes is several messages, of which only the last one counts as the run's progress.

The headers of a run's last message, its tail, tell how far the log is, without its body.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from .._errors import ProtocolError
from ..protocol import messages

LogEntry: TypeAlias = messages.Documents | messages.Abandoned

_LENGTH: Final = struct.Struct("!I")
_FIELDS: Final = "Tw-Log"
_PART: Final = "Tw-Part"
HEADER_ROOM_BYTES: Final = 16 * 2**10
"""Bytes that headers of a message may have; servers count them as part of it."""
_MAX_BYTES: Final = messages.MAX_BODY_BYTES + messages.MAX_HEADER_BYTES


class _Fields(msgspec.Struct, frozen=True, array_like=True):
    """The header `Tw-Log`, as JSON. Its first field is the version."""

    version: int
    next: int
    ended: bool
    start_crc: int
    end_crc: int


_VERSION: Final = 1
# Made here: msgspec must not look at a type in two threads at once.
_fields_decoder: Final = msgspec.json.Decoder(_Fields)


@dataclass(frozen=True)
class Tail:
    """How far the log is with a run.

    Attributes
    ----------
    seq
        Number of the run's last message in the stream; 0 if there is none.
    next
        Index of the next document.
    ended
        The log has the run's stop document or its abandonment.
    start_crc
        CRC-32 of the start document, which tells the run from another one of the same uid; None if there is none.
    end_crc
        CRC-32 of the last document; None if there is none.
    """

    seq: int = 0
    next: int = 0
    ended: bool = False
    start_crc: int | None = None
    end_crc: int | None = None


@dataclass(frozen=True)
class LogMessage:
    """A message to append, and what the tail will be if it is the last one, but for its number."""

    headers: dict[str, str]
    body: bytes


def compose_messages(entry: LogEntry, before: Tail, max_payload: int) -> tuple[list[LogMessage], Tail]:
    """Return the messages that append an entry to a run, and the tail after them, which has the number of `before`.

    Parameters
    ----------
    entry
        Documents that continue the run, or its abandonment.
    before
        The tail to which it is appended.
    max_payload
        Largest message that the server takes, in bytes.
    """
    if isinstance(entry, messages.Documents):
        start_crc = entry.crcs[0] if entry.first == 0 else before.start_crc
        after = Tail(before.seq, entry.next, entry.names[-1] == "stop", start_crc, entry.crcs[-1])
    else:
        after = Tail(before.seq, max(entry.length, before.next), True, before.start_crc, before.end_crc)
    body = b"".join(part for frame in messages.encode(entry) for part in (_LENGTH.pack(len(frame)), frame))
    size = max_payload - HEADER_ROOM_BYTES
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    if len(parts) == 1:
        return [LogMessage({_FIELDS: _format_fields(after)}, body)], after
    return [
        # Until the last part is there, the documents are not in the log.
        LogMessage(
            {
                _FIELDS: _format_fields(after if number == len(parts) else before),
                _PART: f"{number}/{len(parts)}",
            },
            part,
        )
        for number, part in enumerate(parts, 1)
    ], after


def _format_fields(tail: Tail) -> str:
    fields = _Fields(_VERSION, tail.next, tail.ended, tail.start_crc or 0, tail.end_crc or 0)
    return msgspec.json.encode(fields).decode()


def parse_tail(seq: int, headers: Mapping[str, str] | None) -> Tail:
    """Return the tail that a run's last message tells.

    A message without headers of ours does not tell how far the log is: the tail is that of an empty log, so that the
    publisher sends the run again. Readers ignore the documents that they have.
    """
    try:
        fields = _fields_decoder.decode((headers or {}).get(_FIELDS, ""))
    except msgspec.MsgspecError:
        return Tail(seq)
    if fields.version != _VERSION or not 0 <= fields.next <= messages.MAX_INDEX:
        return Tail(seq)
    if not fields.next:
        return Tail(seq)
    return Tail(seq, fields.next, fields.ended, fields.start_crc, fields.end_crc)


class EntryReader:
    """Puts the messages of one run together, in their order, into entries."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._count = 0

    def forget(self) -> None:
        """Forget the parts read so far."""
        self._parts, self._count = [], 0

    @property
    def has_parts(self) -> bool:
        """True while an entry has begun and not ended."""
        return bool(self._parts)

    def read(self, headers: Mapping[str, str] | None, body: bytes) -> LogEntry | None:
        """Return the entry that ends with a message; None if its parts are not complete.

        Raises
        ------
        ProtocolError
            The message is not one of the log.
        """
        part = (headers or {}).get(_PART)
        if part is None:
            self.forget()
            return _decode_entry(body)
        number, count = _parse_part(part)
        if number == 1:
            self._parts, self._count = [], count
        if count != self._count or number != len(self._parts) + 1:
            # The publisher has begun anew after a lost answer, or this reader has begun in the middle.
            self.forget()
            return None
        self._parts.append(body)
        if sum(map(len, self._parts)) > _MAX_BYTES:
            self.forget()
            raise ProtocolError("The parts of a message are larger than any message.")
        if number < count:
            return None
        whole = b"".join(self._parts)
        self.forget()
        return _decode_entry(whole)


def _parse_part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ProtocolError(f"{text!r} is no number of a part.")
    return int(number), int(count)


def _decode_entry(body: bytes) -> LogEntry:
    message = messages.decode(list(_split_frames(body)))
    if not isinstance(message, messages.Documents | messages.Abandoned):
        raise ProtocolError(f"{type(message).__name__} does not belong into a log.")
    return message


def _split_frames(body: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(body):
        if place + _LENGTH.size > len(body):
            raise ProtocolError("A message of the log is cut.")
        (size,) = _LENGTH.unpack_from(body, place)
        place += _LENGTH.size
        if place + size > len(body):
            raise ProtocolError("A message of the log is cut.")
        yield body[place : place + size]
        place += size


def slice_documents(documents: messages.Documents, start: int) -> messages.Documents:
    """Return the documents of a message from an index on, which must be among them."""
    records = list(documents.unpack())[start - documents.first :]
    return messages.documents(documents.run, start, records)
