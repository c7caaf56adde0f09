"""A segment of a spooled run: a memory-mapped file of fixed size to which records are appended.

A record that was copied into a shared mapping survives the death of the process, like one that was written to the file,
but needs no system call. Readers check a segment: its header has a checksum, each record has two, and the indexes must
be consecutive. `docs/reference/spool-format.md` describes the format.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from .._errors import SpoolDamaged
from .._filesystem import open_regular_file
from ._identity import SessionIdentity, boot_id
from ._record import Record

SEGMENT_SUFFIX: Final = ".segment"
MAX_HEADER_BYTES: Final = 2**24
READ_AHEAD_BYTES: Final = 2**20
TOUCHED_BYTES: Final = 2**16
"""Beginning of a new file whose pages are mapped when it is created."""

_FILE_MAGIC: Final = b"TWSEG001"
_RECORD_MAGIC: Final = b"TWR1"
# Magic, size of the file, size of the header, CRC-32 of the header and the size of the file.
_PREFIX: Final = struct.Struct("<8sQII")
# Number of records, position behind the last one, flags, CRC-32 of these three.
_SEAL: Final = struct.Struct("<QQII")
_SEAL_FIELDS: Final = struct.Struct("<QQI")
_SEAL_AT: Final = _PREFIX.size
_HEADER_AT: Final = _SEAL_AT + _SEAL.size
# Length of the body, index, time of arrival, CRC-32 of the body, length of the name.
_FIELDS: Final = struct.Struct("<IQdIB")
# Magic, CRC-32 of the fields and the name, fields.
_RECORD: Final = struct.Struct("<4sIIQdIB")
_CHECK: Final = struct.Struct("<I")
_FIELDS_AT: Final = len(_RECORD_MAGIC) + _CHECK.size
_ALIGNMENT: Final = 8
# Faster than `Record`, because a named tuple's own `__new__` is a Python function.
_new: Final = tuple.__new__

_SEALED: Final = 1
_STOPPED: Final = 2
_REMOVED: Final = 4


class SegmentHeader(msgspec.Struct, frozen=True):
    """Header of a segment.

    Attributes
    ----------
    run
        Uid of the run.
    first
        Index of the first record.
    log
        Random label of the run log, to distinguish runs with the same uid.
    host, boot, pid, session
        Identity of the session that made the file; see `SessionIdentity`.
    destination
        URL of the supervisor that the run is published for.
    created
        Unix time at which the run began to use the segment, in seconds.
    shipped
        False for documents that belong to no known run, which are kept but not shipped.
    """

    run: str
    first: int
    log: str
    host: str
    boot: str
    pid: int
    session: str
    destination: str
    created: float
    shipped: bool = True

    @property
    def holder(self) -> SessionIdentity:
        """Identity of the session that writes, or wrote, the file."""
        return SessionIdentity(self.host, self.boot, self.pid, self.session)


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(SegmentHeader)


def segment_size(records_bytes: int, header: SegmentHeader) -> int:
    """Return the size in bytes of a file with the given header and `records_bytes` bytes of records."""
    return _records_start(len(_encoder.encode(header))) + records_bytes


def record_size(name: str, body: bytes) -> int:
    """Return the size of a record in a segment, in bytes."""
    return _RECORD.size + len(name.encode()) + len(body)


class Segment:
    """One segment of a run log.

    Only the callback calls `begin` and `append`. Methods that may wait for a disk are called by other threads.

    Attributes
    ----------
    path
        The file; None for a segment in memory only.
    capacity
        Size of the segment in bytes before it is sealed, including the header.
    header
        The header; None until a run begins to use the segment.
    count, end
        Number of records, and the position behind the last one in bytes.
    sealed
        True if nothing more is appended and the file contains its number of records.
    stopped
        True if the last record is known to be the run's stop document: after `load` and `seal`, not after `append`.
    removed
        True if the run is being deleted.
    damage
        Description of the damage behind the last valid record; "" if there is none.
    """

    def __init__(self, path: Path | None, capacity: int) -> None:
        self.path = path
        self.capacity = capacity
        self.header: SegmentHeader | None = None
        self.count = self.end = 0
        self.sealed = self.stopped = self.removed = False
        self.damage = ""
        self._salt = 0
        self._start = 0
        self._synced_end = 0
        self._map: mmap.mmap | None = None
        self._untrusted: Path | None = None
        self._descriptor: int | None = None
        self._mapping = threading.Lock()
        self._cursor = (0, 0)

    @classmethod
    def create(cls, path: Path, capacity: int) -> Segment:
        """Create and map an empty file of `capacity` bytes, with all its disk space allocated.

        Raises
        ------
        OSError
            The disk fails or is full.
        """
        segment = cls(path, capacity)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _allocate_space(descriptor, capacity)
            segment._map = mmap.mmap(descriptor, capacity)
            # The first access to a page makes the file system assign its block, which takes half a millisecond for the
            # first one: longer than all else in the callback of a start document.
            for position in range(0, min(capacity, TOUCHED_BYTES), mmap.PAGESIZE):
                segment._map[position] = 0
        except BaseException:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        segment._descriptor = descriptor
        return segment

    @classmethod
    def in_memory(cls, capacity: int) -> Segment:
        """Return a segment of `capacity` bytes in memory only."""
        segment = cls(None, capacity)
        segment._map = mmap.mmap(-1, capacity)
        return segment

    @classmethod
    def load(cls, path: Path) -> Segment:
        """Read and check a file without keeping it open.

        If the file has no valid header, `header` is None, and `damage` is the reason, or "" for an unused spare.

        Raises
        ------
        OSError
            The file cannot be read.
        """
        segment = cls._load_once(path)
        while segment.damage:
            # A record that is appended during the read can look like damage. It is damage only if a second read finds
            # the same number of records.
            before, segment = segment.count, cls._load_once(path)
            if segment.count == before:
                break
        return segment

    @classmethod
    def _load_once(cls, path: Path) -> Segment:
        with os.fdopen(open_regular_file(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            segment = cls(path, size)
            contents = _read_beginning(file)
            segment.header, segment.damage = _read_header(contents)
            if segment.header is not None:
                segment._load_state(file, contents, size)
            elif size < _HEADER_AT:
                segment.damage = f"it has {size} bytes, fewer than a header"
        return segment

    def _load_state(self, file: BinaryIO, beginning: bytes, size: int) -> None:
        assert self.header is not None
        _, self.capacity, header_bytes, _ = _PREFIX.unpack_from(beginning, 0)
        self._set_header(self.header, header_bytes)
        count, end, flags, check = _SEAL.unpack_from(beginning, _SEAL_AT)
        if flags and zlib.crc32(beginning[_SEAL_AT : _SEAL_AT + _SEAL_FIELDS.size]) == check:
            self.sealed, self.stopped = True, bool(flags & _STOPPED)
            self.removed = bool(flags & _REMOVED)
            self.count, self.end = count, end
            if size >= end:
                return
            self.damage = f"it has {size} bytes, but had {end} when it was finished"
        elif size < self.capacity:
            self.damage = f"it has only {size} of its {self.capacity} bytes"
        self._scan_records(beginning + file.read(max(min(size, self.capacity) - len(beginning), 0)))

    def _scan_records(self, contents: bytes) -> None:
        """Read all records of a segment that is unsealed or truncated, to find their number and damage."""
        header = self.header
        assert header is not None
        count, position, name, damage = 0, self._start, "", ""
        try:
            for record, end in _parse_records(contents, position, header.first, self._salt):
                count, position, name = count + 1, end, record.name
        except _Damaged as error:
            damage = str(error)
        if _has_record(contents, position, header.first + count, self._salt):
            damage = (
                damage or f"document {header.first + count} at byte {position} is missing, but later ones are there"
            )
        elif header.boot != boot_id():
            # The host has rebooted since. After a power cut, a torn record that was not synced is not damage.
            damage = ""
        self.damage = self.damage or damage
        self.count, self.end, self.stopped = count, position, name == "stop"

    # Methods of the callback, which make no system calls and never wait.

    def begin(self, header: SegmentHeader) -> None:
        """Write the header, with which a run begins to use the segment."""
        payload = _encoder.encode(header)
        assert self._map is not None
        self._map[_HEADER_AT : _HEADER_AT + len(payload)] = payload
        prefix = _PREFIX.pack(_FILE_MAGIC, self.capacity, len(payload), _header_crc(payload, self.capacity))
        self._map[: _PREFIX.size] = prefix
        self._set_header(header, len(payload))

    def _set_header(self, header: SegmentHeader, size: int) -> None:
        self.header = header
        self._salt = zlib.crc32(header.log.encode())
        self._start = self.end = _records_start(size)
        self._cursor = (header.first, self._start)

    def append(self, idx: int, name: str, received: float, crc: int, body: bytes) -> bool:
        """Append a record atomically, even if the process is killed. Return False if there is not enough space."""
        encoded = name.encode()
        fields = _FIELDS.pack(len(body), idx, received, crc, len(encoded)) + encoded
        record = b"".join((_CHECK.pack(zlib.crc32(fields, self._salt)), fields, body))
        start = self.end + len(_RECORD_MAGIC)
        end = start + len(record)
        if end > self.capacity:
            return False
        assert self._map is not None
        self._map[start:end] = record
        # Write the magic last, because readers ignore a record without it.
        self._map[self.end : start] = _RECORD_MAGIC
        self.end = end
        self.count += 1
        return True

    # Methods for any thread.

    @property
    def first(self) -> int:
        """Index of the first record."""
        assert self.header is not None
        return self.header.first

    @property
    def next(self) -> int:
        """Index after the last record."""
        return self.first + self.count

    @property
    def record_bytes(self) -> int:
        """Bytes of all records."""
        return self.end - self._start

    def read(self, start: int, limit: int, max_bytes: int) -> list[Record]:
        """Return records from index `start`.

        Parameters
        ----------
        start
            Index of the first record.
        limit
            Maximum number of records.
        max_bytes
            Maximum total size of their bodies, in bytes. At least one record is returned, whatever its size.

        Raises
        ------
        SpoolDamaged
            The record at `start` cannot be reached: it, or one before it, is damaged or missing.
        OSError
            The file cannot be read.
        """
        with self._mapping:
            if self._map is not None:
                return self._read_records(self._map, 0, start, limit, max_bytes)
            # Read the file instead of mapping it: a bad disk block raises OSError here, but would kill the process with
            # SIGBUS in a mapping.
            with os.fdopen(open_regular_file(self._require_path()), "rb") as file:
                position = self._search_start(start)[1]
                file.seek(position)
                contents = file.read(min(2 * max_bytes + READ_AHEAD_BYTES, self.end - position))
                try:
                    return self._read_records(contents, position, start, limit, max_bytes)
                except SpoolDamaged:
                    contents += file.read(self.end - position - len(contents))
                    return self._read_records(contents, position, start, limit, max_bytes)

    def _search_start(self, idx: int) -> tuple[int, int]:
        """Return the index and position of a record from which to search for record `idx`."""
        return self._cursor if self._cursor[0] <= idx else (self.first, self._start)

    def _read_records(
        self, contents: bytes | mmap.mmap, offset: int, start: int, limit: int, max_bytes: int
    ) -> list[Record]:
        """Return records like `read` from `contents`, the bytes of the file from position `offset`."""
        idx, position = self._search_start(start)
        if position < offset:
            idx, position = self.first, self._start
        limit = min(limit, self.next - start)
        taken: list[Record] = []
        size = 0
        try:
            for record, end in _parse_records(contents, position, idx, self._salt, offset) if limit > 0 else ():
                if record.idx >= start:
                    size += len(record.body)
                    if taken and size > max_bytes:
                        break
                    taken.append(record)
                self._cursor = (record.idx + 1, end)
                if len(taken) >= limit:
                    break
        except _Damaged as error:
            if not taken:
                raise SpoolDamaged(self.path or "memory", str(error)) from None
        if limit > 0 and not taken:
            raise SpoolDamaged(self.path or "memory", f"document {self._cursor[0]} is no longer there")
        return taken

    # Methods that may wait for a disk. The callback never calls them.

    @property
    def is_mapped(self) -> bool:
        """True if the file, or the memory, is mapped."""
        return self._map is not None

    def sync(self) -> None:
        """Sync the file, so that all appended records survive a power cut.

        Raises
        ------
        OSError
            The disk fails.
        """
        end = self.end
        if self._descriptor is not None and end != self._synced_end:
            os.fdatasync(self._descriptor)
            self._synced_end = end

    def seal(self, *, stopped: bool) -> None:
        """Sync the file, write its number of records into it, and truncate it behind the last one.

        Nothing may be appended afterwards.

        Parameters
        ----------
        stopped
            True if the last record is the run's stop document.

        Raises
        ------
        OSError
            The disk fails.
        """
        assert self._descriptor is not None
        self.sync()
        os.pwrite(self._descriptor, self._encode_seal(_SEALED | stopped * _STOPPED), _SEAL_AT)
        os.fdatasync(self._descriptor)
        # The mapping now extends beyond the end of the file. Access to that part would kill the process with SIGBUS.
        os.ftruncate(self._descriptor, self.end)
        self.sealed, self.stopped = True, stopped

    def mark_as_removed(self) -> None:
        """Write into the file that its run is being deleted, so that an adopter of remaining files deletes them.

        Raises
        ------
        OSError
            The disk fails.
        """
        descriptor = os.open(self._require_path(), os.O_WRONLY)
        try:
            os.pwrite(descriptor, self._encode_seal(_SEALED | self.stopped * _STOPPED | _REMOVED), _SEAL_AT)
        finally:
            os.close(descriptor)
        self.removed = True

    def _encode_seal(self, flags: int) -> bytes:
        fields = _SEAL_FIELDS.pack(self.count, self.end, flags)
        return fields + _CHECK.pack(zlib.crc32(fields))

    def move_to(self, path: Path) -> None:
        """Rename the file.

        Raises
        ------
        OSError
            The file cannot be renamed.
        """
        self._require_path().rename(path)
        self.path = path
        # Nothing has been synced under the new name yet, so the next `sync` must not be skipped.
        self._synced_end = 0

    def forget_deleted_file(self) -> None:
        """Set `path` to None if the file is open but has been deleted."""
        if self.path is not None and self._descriptor is not None and not os.fstat(self._descriptor).st_nlink:
            self.path = None
            self.sealed = False

    def distrust_file(self) -> None:
        """Set `path` to None after a failed sync, so that the records are copied to another file.

        The kernel may have dropped pages that it could not write, and another sync of the file would succeed
        nevertheless.
        """
        self._untrusted, self.path = self.path, None
        self.sealed = False

    def copy_to(self, target: Segment, start: int) -> int:
        """Copy all bytes from position `start` to a segment that is not smaller; return the end position."""
        end = self.end
        assert self._map is not None
        assert target._map is not None
        target._map[start:end] = self._map[start:end]
        return end

    def exchange(self, target: Segment) -> None:
        """Exchange files and mappings with a segment to which all bytes were copied.

        The caller holds the lock of the callback during the exchange, and deletes `target` after releasing it.
        """
        with self._mapping:
            self._map, target._map = target._map, self._map
            self._descriptor, target._descriptor = target._descriptor, self._descriptor
            self.path, target.path = target.path, self._untrusted
            self._untrusted = None
            self._synced_end = 0

    def detach(self) -> None:
        """Close the file and its mapping. Readers open the file again."""
        with self._mapping:
            if self._map is not None:
                self._map.close()
                self._map = None
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def delete(self) -> None:
        """Close and delete the file.

        Raises
        ------
        OSError
            The file cannot be deleted.
        """
        self.detach()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _require_path(self) -> Path:
        if self.path is None:
            raise OSError(errno.ENOENT, "it was in memory only, and is closed")
        return self.path


def read_header(path: Path) -> tuple[SegmentHeader | None, str]:
    """Return the header of a segment file.

    Returns
    -------
    tuple
        The header and ""; or None and a description of the damage, which is "" for an unused spare.

    Raises
    ------
    OSError
        The file cannot be read.
    """
    with os.fdopen(open_regular_file(path), "rb") as file:
        return _read_header(_read_beginning(file))


def _read_header(contents: bytes) -> tuple[SegmentHeader | None, str]:
    if len(contents) < _HEADER_AT and any(contents):
        return None, f"it has {len(contents)} bytes, fewer than a header"
    if not any(contents[: _PREFIX.size]):
        # The file is an unused spare, or its session was killed while it created the file.
        return None, ""
    magic, capacity, size, crc = _PREFIX.unpack_from(contents, 0)
    payload = contents[_HEADER_AT : _HEADER_AT + size]
    if magic[:5] == _FILE_MAGIC[:5] and magic != _FILE_MAGIC:
        return None, "it was written by a newer version; upgrade tiledwriter"
    if magic != _FILE_MAGIC or len(payload) != size or _header_crc(payload, capacity) != crc:
        return None, "its header is damaged, or it is not a spool segment"
    try:
        return _decoder.decode(payload), ""
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return None, f"its header is damaged: {error}"


class _Damaged(Exception):
    """Raised when the bytes at a position are neither a valid record nor the end of the records."""


def _parse_records(
    contents: bytes | mmap.mmap, position: int, idx: int, salt: int, offset: int = 0
) -> Iterator[tuple[Record, int]]:
    """Yield each record with the position behind it.

    Parameters
    ----------
    contents
        Bytes of the file from position `offset`.
    position, idx
        Position in the file, and index, of the first record to yield.
    salt
        CRC-32 of the log's label, with which the checksums of the records begin.

    Raises
    ------
    _Damaged
        A record is damaged, or has the wrong index.
    """
    end = len(contents) + offset
    crc32, unpack = zlib.crc32, _RECORD.unpack_from
    while position + _RECORD.size <= end:
        magic, check, size, number, received, crc, name_size = unpack(contents, position - offset)
        if magic != _RECORD_MAGIC:
            break
        start = position - offset + _RECORD.size + name_size
        named = contents[position - offset + _FIELDS_AT : start]
        # Check the fields before using `size`: a mapping can extend beyond the end of its file, where a damaged size
        # would make us read.
        body = contents[start : start + size] if crc32(named, salt) == check else None
        if body is None or crc32(body) != crc:
            raise _Damaged(f"document {idx}, at byte {position}, does not match its checksum")
        if number != idx:
            raise _Damaged(f"document {number} is at byte {position}, where document {idx} should be")
        position = start + size + offset
        yield _new(Record, (number, named[_FIELDS.size :].decode(), received, crc, body)), position
        idx += 1
    rest = contents[position - offset : position - offset + len(_RECORD_MAGIC)]
    if any(rest):
        raise _Damaged(f"there is no valid document at byte {position}")


def _has_record(contents: bytes, position: int, idx: int, salt: int) -> bool:
    """Return True if a valid record of this log with an index greater than `idx` exists behind `position`."""
    while (position := contents.find(_RECORD_MAGIC, position)) >= 0:
        if position + _RECORD.size <= len(contents):
            _, check, _, number, _, _, name_size = _RECORD.unpack_from(contents, position)
            named = contents[position + _FIELDS_AT : position + _RECORD.size + name_size]
            if number > idx and zlib.crc32(named, salt) == check:
                return True
        position += 1
    return False


def _read_beginning(file: BinaryIO) -> bytes:
    """Return the bytes of a file up to the end of its header; fewer if the file is shorter."""
    prefix = file.read(_HEADER_AT)
    size = _PREFIX.unpack_from(prefix, 0)[2] if len(prefix) == _HEADER_AT else 0
    return prefix + file.read(min(size, MAX_HEADER_BYTES))


def _header_crc(payload: bytes, capacity: int) -> int:
    return zlib.crc32(payload, capacity & 0xFFFFFFFF)


def _records_start(header_bytes: int) -> int:
    return -(-(_HEADER_AT + header_bytes) // _ALIGNMENT) * _ALIGNMENT


def _allocate_space(descriptor: int, size: int) -> None:
    """Allocate `size` bytes of zeros for an empty file.

    Without allocated space, a write to the mapping would kill the process with SIGBUS when the disk is full.

    Raises
    ------
    OSError
        There is not enough space on the disk.
    """
    try:
        # This takes half as long as writing zeros, including the first access to each page.
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        # Some operating systems and some file systems do not support it.
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        position = 0
        while position < size:
            position += os.pwrite(descriptor, bytes(min(size - position, 2**20)), position)
