"""One document of a run, as it is stored and shipped."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from .._errors import CodecError
from ._codec import decode


class Record(NamedTuple):
    """One document of a run as stored: index, name, Unix time of arrival, CRC-32 of the body, encoded body."""

    idx: int
    name: str
    received: float
    crc: int
    body: bytes

    def checked(self) -> Record:
        """The record itself.

        Raises
        ------
        CodecError
            The body is not what was stored.
        """
        if zlib.crc32(self.body) != self.crc:
            raise CodecError(f"The {len(self.body)} bytes of document {self.idx} do not match their checksum.")
        return self

    def document(self) -> dict[str, Any]:
        """The document.

        Raises
        ------
        CodecError
            The body is not what was stored, or is no document.
        """
        return decode(self.checked().body)


def take(records: Iterable[Record], max_bytes: int) -> list[Record]:
    """The first of the records: as many as have at most `max_bytes` of bodies, but at least one."""
    taken: list[Record] = []
    size = 0
    for record in records:
        size += len(record.body)
        if taken and size > max_bytes:
            break
        taken.append(record)
    return taken
