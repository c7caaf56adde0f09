"""Lists of byte strings as one, so that a fuzzer can change them: each behind its length in two bytes."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from tiledbroker import Record

NAMES: Final = (
    "start",
    "descriptor",
    "event",
    "event_page",
    "resource",
    "datum",
    "datum_page",
    "stream_resource",
    "stream_datum",
    "stop",
    "bulk_events",
    "bulk_datum",
    "nonsense",
)

_LENGTH: Final = struct.Struct("<H")


def join(parts: Iterable[bytes]) -> bytes:
    """The bytes that `split` takes apart."""
    return b"".join(_LENGTH.pack(len(part)) + part for part in parts)


def split(data: bytes) -> list[bytes]:
    """The parts; the last one may be shorter than it says."""
    parts = []
    while len(data) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(data)
        end = _LENGTH.size + length
        parts.append(data[_LENGTH.size : end])
        data = data[end:]
    return parts


def joined_documents(documents: Iterable[tuple[str, bytes]]) -> bytes:
    """The bytes that `documents` takes apart."""
    return join(bytes([NAMES.index(name)]) + body for name, body in documents)


def documents(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and bodies."""
    for part in split(data):
        if part:
            yield NAMES[part[0] % len(NAMES)], part[1:]


def record(idx: int, name: str, body: bytes) -> Record:
    """A document as a journal has it."""
    return Record(idx, name, float(idx), zlib.crc32(body), body)
