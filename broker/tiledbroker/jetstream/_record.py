"""What all records in the buckets of a site's log have in common: JSON with a version and a checksum."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

import msgspec

from .._errors import ProtocolError

RECORD_VERSION: Final = 1


class Record(Protocol):
    """The value of a key."""

    @property
    def version(self) -> int:
        """Version of the format, which is `RECORD_VERSION`."""

    @property
    def crc32(self) -> int:
        """The contents' `compute_checksum`."""


R = TypeVar("R", bound=Record)
T = TypeVar("T")


def compute_checksum(contents: object) -> int:
    """Return the CRC-32 that a record with these contents has."""
    return zlib.crc32(msgspec.json.encode((RECORD_VERSION, contents)))


def decode_record(decoder: msgspec.json.Decoder[R], value: bytes, contents_of: Callable[[R], T], what: str) -> T:
    """Return the contents of a value.

    Parameters
    ----------
    decoder
        That of the record. It must be made when a module is loaded: msgspec must not look at a type in two threads at
        once.
    value
        The value of the key.
    contents_of
        Returns the contents of a record.
    what
        What the record is, for messages, such as "The claim of a run".

    Raises
    ------
    ProtocolError
        It is damaged, or of a newer version.
    """
    try:
        record = decoder.decode(value)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"{what} cannot be read: {error}") from error
    contents = contents_of(record)
    if record.version != RECORD_VERSION or record.crc32 != compute_checksum(contents):
        raise ProtocolError(f"{what} is damaged, or of another version.")
    return contents
