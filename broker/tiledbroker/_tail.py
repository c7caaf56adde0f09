"""A run's tail: the documents that its file does not have yet, in a plain file beside it.

The file is mapped into memory. A document that is copied there is the kernel's from then on, and outlives the process,
as one that is written does, at a fraction of the time.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from itertools import dropwhile
from pathlib import Path
from typing import Final, NamedTuple

from ._record import Record

TAIL_SUFFIX: Final = ".tail"

_MAGIC: Final = b"TWT1"
_END: Final = bytes(4)  # where the next document's magic will be
_FIELDS: Final = struct.Struct("<IQdIB")  # bytes of the body, index, received, CRC-32 of the body, bytes of the name
_CHECK: Final = struct.Struct("<I")  # CRC-32 of the fields and the name
_HEADER: Final = _CHECK.size + _FIELDS.size
_CAPACITY: Final = 256 * 2**10


class Tail:
    """The tail of one run, open for appending.

    Raises
    ------
    OSError
        When the disk fails or is full.
    """

    def __init__(self, file: Path) -> None:
        self._path = tail_of(file)
        self._size = self._synced = 0
        self._map = self._mapped(_CAPACITY, os.O_CREAT | os.O_TRUNC)

    def append(self, record: Record) -> None:
        """Add a document, whole or not at all, whenever the process is killed."""
        idx, kind, received, crc, body = record
        name = kind.encode()
        fields = _FIELDS.pack(len(body), idx, received, crc, len(name)) + name
        frame = b"".join((_CHECK.pack(zlib.crc32(fields)), fields, body, _END))
        start = self._size + len(_MAGIC)
        end = start + len(frame)
        if end > len(self._map):
            self._grow(end)
        self._map[start:end] = frame
        self._map[self._size : start] = _MAGIC  # last: it makes the rest count
        self._size = end - len(_END)

    def clear(self) -> None:
        """Hold nothing any more: all documents are in the file."""
        self._map[: len(_END)] = _END
        self._size = self._synced = 0
        if len(self._map) > _CAPACITY:
            self._exchange(self._mapped(_CAPACITY))
            os.truncate(self._path, _CAPACITY)

    def sync(self) -> None:
        """Make what was appended survive a power cut, without holding up who appends."""
        size = self._size
        if size == self._synced:
            return
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        self._synced = size

    def records(self, start: int) -> Iterator[Record]:
        """Documents from index `start` on, while others may be appended.

        Raises
        ------
        OSError
            They cannot be read.
        """
        with self._path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            try:
                yield from dropwhile(lambda record: record.idx < start, _records(contents))
            except _Damaged as error:
                raise OSError(errno.EIO, str(error), str(self._path)) from error

    @property
    def empty(self) -> bool:
        """Whether it holds nothing."""
        return self._size == 0

    def close(self) -> None:
        """Close it; one that holds nothing is deleted."""
        self._map.close()
        if self.empty:
            self._path.unlink(missing_ok=True)

    def _grow(self, size: int) -> None:
        self._exchange(self._mapped(max(size, 2 * len(self._map))))

    def _exchange(self, mapped: mmap.mmap) -> None:
        self._map.close()
        self._map = mapped

    def _mapped(self, capacity: int, flags: int = 0) -> mmap.mmap:
        """Map the file, of which so many bytes are really there: a hole that the disk cannot fill ends the process."""
        descriptor = os.open(self._path, os.O_RDWR | flags, 0o600)
        try:
            there = os.fstat(descriptor).st_size
            if there < capacity:
                _allocate(descriptor, there, capacity - there)
            return mmap.mmap(descriptor, capacity)
        finally:
            os.close(descriptor)


def _allocate(descriptor: int, start: int, size: int) -> None:
    """Append so many zeros to a file.

    Raises
    ------
    OSError
        There is no space for them.
    """
    try:
        # Takes half the time of writing them, the first access to each page included.
        os.posix_fallocate(descriptor, start, size)
    except (AttributeError, OSError) as error:  # some systems do not have it, some file systems neither
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        if os.pwrite(descriptor, bytes(size), start) < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None


class TailContents(NamedTuple):
    """What a tail file holds.

    Attributes
    ----------
    records
        Its documents, in order.
    damage
        What is wrong behind them; "" if nothing is.
    """

    records: list[Record]
    damage: str


def tail_of(file: Path) -> Path:
    """The tail of a run's file."""
    return file.with_name(file.name + TAIL_SUFFIX)


def read_tail(file: Path) -> TailContents:
    """What the tail of a run's file holds; nothing if there is none. A writer beside it can look like damage.

    Raises
    ------
    OSError
        It cannot be read.
    """
    try:
        contents = tail_of(file).read_bytes()
    except FileNotFoundError:
        return TailContents([], "")
    records: list[Record] = []
    try:
        for record in _records(contents):
            records.append(record)  # noqa: PERF402  those before the damage count
    except _Damaged as error:
        return TailContents(records, str(error))
    return TailContents(records, "")


class _Damaged(Exception):
    """Raised when there is something else where a document or the end should be."""


def _records(contents: bytes | mmap.mmap) -> Iterator[Record]:
    """The documents in a tail's bytes."""
    position = 0
    while (magic := contents[position : position + len(_MAGIC)]) == _MAGIC:
        start = position + len(_MAGIC)
        if len(contents) < start + _HEADER:
            break
        (check,) = _CHECK.unpack_from(contents, start)
        size, idx, received, crc, name_size = _FIELDS.unpack_from(contents, start + _CHECK.size)
        name = contents[start + _HEADER : start + _HEADER + name_size]
        body = contents[start + _HEADER + name_size : start + _HEADER + name_size + size]
        if zlib.crc32(contents[start + _CHECK.size : start + _HEADER] + name) != check or zlib.crc32(body) != crc:
            break
        yield Record(idx, name.decode(errors="backslashreplace"), received, crc, body)
        position = start + _HEADER + name_size + size
    if magic not in (_END, b""):
        raise _Damaged(f"what is at byte {position} of it is no document")
