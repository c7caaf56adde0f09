"""Records: the documents of a run, as they are stored and shipped."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

from .._errors import CodecError
from ._codec import decode


class Record(NamedTuple):
    """One stored document of a run.

    Attributes
    ----------
    idx
        Index of the document in its run.
    name
        Name of the document, such as "event".
    received
        Unix time at which the document was stored, in seconds.
    crc
        CRC-32 of the body.
    body
        The document, encoded by `Encoder`.
    """

    idx: int
    name: str
    received: float
    crc: int
    body: bytes

    def checked(self) -> Record:
        """Return the record itself after checking its body.

        Raises
        ------
        CodecError
            The body does not match the checksum.
        """
        if zlib.crc32(self.body) != self.crc:
            raise CodecError(f"The {len(self.body)} bytes of document {self.idx} do not match their checksum.")
        return self

    def document(self) -> dict[str, Any]:
        """Check and decode the body, and return the document.

        Raises
        ------
        CodecError
            The body does not match the checksum, or is not a document.
        """
        return decode(self.checked().body)


def take(records: Iterable[Record], max_bytes: int) -> list[Record]:
    """Return the first records whose bodies have at most `max_bytes` in total, but at least one record."""
    taken: list[Record] = []
    size = 0
    for record in records:
        size += len(record.body)
        if taken and size > max_bytes:
            break
        taken.append(record)
    return taken
