"""The log of one run in the spool: a sequence of segments.

`RunLog.append`, in the thread of the callback, copies a document into the latest segment. `RunLog.flush`, in the
flusher thread, syncs it to the disk.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import secrets
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from .._crash_points import crash_point
from .._errors import JournalInvalid, SpoolDamaged
from ._identity import SessionIdentity
from ._record import Record
from ._segment import Segment, SegmentHeader, record_size, segment_size
from ._spool_files import segment_path

log = logging.getLogger(__name__)

COPIED_UNDER_LOCK_BYTES: Final = 2**18


class SegmentSource(Protocol):
    """Function that provides a run log with segments."""

    def __call__(self, size: int, *, first: bool) -> Segment:
        """Return an unused segment of at least `size` bytes, without waiting. `first` is True for a run's first one."""


class RunLog:
    """The records of one run in the spool.

    The callback appends while it holds the spool's lock. The flusher thread syncs, seals and deletes segments. Any
    thread may read.

    Parameters
    ----------
    run_uid
        Uid of the run.
    directory
        The spool directory.
    holder
        Identity of the session that makes the run.
    destination
        URL of the supervisor that the run is published for.
    shipped
        False for documents that belong to no known run, which are not shipped.

    Attributes
    ----------
    log_id
        Random identifier, to distinguish run logs with the same uid.
    stopped
        True if the log has the run's stop document.
    abandoned
        True if no more documents will come although there is no stop document.
    acknowledged
        Index of the first record that is not durable on the ingest host, as far as the shipper knows.
    is_durable
        True if all records and the run's end are durable on the ingest host.
    is_adopted
        True if another session made the run.
    damage
        Path of the damaged file and description of the damage behind the last valid record; "" if there is none.
    started
        Unix time of the start of the log, in seconds.
    """

    def __init__(
        self, run_uid: str, directory: Path, holder: SessionIdentity, destination: str, *, shipped: bool = True
    ) -> None:
        self.run_uid = run_uid
        self.stopped = self.abandoned = False
        self.acknowledged = 0
        self.damage = ""
        self.started = time.time()
        self._directory = directory
        self.log_id = secrets.token_hex(4)
        self._holder = holder
        self._destination = destination
        self._shipped = shipped
        self._segments: list[Segment] = []
        self._length = 0
        self.is_durable = self.is_adopted = False

    @classmethod
    def load(cls, segments: list[Segment]) -> RunLog:
        """Return the log of a run that another session made.

        Parameters
        ----------
        segments
            Loaded segments of the log, sorted by first index.

        Raises
        ------
        JournalInvalid
            The first segment has no valid header.
        """
        header, path = segments[0].header, segments[0].path
        assert path is not None
        if header is None:
            raise JournalInvalid(path, f"{segments[0].damage or 'its header is empty'}.")
        log_ = cls(header.run, path.parent, header.holder, header.destination, shipped=header.shipped)
        log_.log_id, log_.started = header.log, header.created
        log_._length = header.first
        for segment in _without_replaced(segments):
            if segment.header is None:
                log_.damage = f"{segment.path}: {segment.damage or 'its header is empty'}"
                break
            if (segment.header.run, segment.header.log, segment.first) != (header.run, header.log, log_._length):
                log_.damage = f"{segment.path}: it does not continue the run at document {log_._length}"
                break
            log_._segments.append(segment)
            log_._length = segment.next
            log_.stopped = segment.stopped
            if segment.damage:
                log_.damage = f"{segment.path}: {segment.damage}"
                break
        log_.abandoned = not log_.stopped
        log_.is_adopted = True
        return log_

    @property
    def first(self) -> int:
        """Index of the first record that is not deleted."""
        segments = self._segments
        return segments[0].first if segments else self._length

    @property
    def length(self) -> int:
        """Number of records, which is the index of the next one."""
        return self._length

    @property
    def degraded(self) -> bool:
        """True if records are in memory only."""
        return any(segment.path is None for segment in self._segments.copy())

    @property
    def files(self) -> list[Path]:
        """Paths of the log's files, sorted by first index."""
        return [segment.path for segment in self._segments.copy() if segment.path is not None]

    @property
    def final_files(self) -> list[Path]:
        """Paths of the log's files as they are called once they have their final names, sorted by first index."""
        segments = [segment for segment in self._segments.copy() if segment.path is not None]
        return [segment_path(self._directory, segment.header) for segment in segments if segment.header is not None]

    @property
    def size(self) -> int:
        """Size of the files in bytes. Files of a durable run count without the space that sealing will truncate."""
        return sum(
            segment.end if segment.sealed or self.is_durable else segment.capacity
            for segment in self._segments.copy()
            if segment.path is not None
        )

    @property
    def is_growing(self) -> bool:
        """True if the run is open and its current segment is more than half full."""
        segments = self._segments
        if not segments or self.stopped:
            return False
        return segments[-1].is_mapped and not segments[-1].sealed and 2 * segments[-1].end > segments[-1].capacity

    @property
    def documents_in_memory(self) -> int:
        """Number of documents that are in memory only."""
        return sum(segment.count for segment in self._segments.copy() if segment.path is None)

    # Methods of the callback, which access no files and never wait.

    def append(self, name: str, body: bytes, source: SegmentSource) -> bool:
        """Append one document; return True if the current segment has just become more than half full."""
        idx, received, crc = self._length, time.time(), zlib.crc32(body)
        segment = self._segments[-1] if self._segments else None
        before = 0 if segment is None else segment.end
        if segment is None or segment.sealed or not segment.append(idx, name, received, crc, body):
            segment = self._next_segment(idx, record_size(name, body), source)
            self._segments.append(segment)
            segment.append(idx, name, received, crc, body)
            before = 0
        self._length = idx + 1
        self.stopped = name == "stop"
        return before <= segment.capacity >> 1 < segment.end

    def _next_segment(self, idx: int, size: int, source: SegmentSource) -> Segment:
        header = SegmentHeader(
            self.run_uid, idx, self.log_id, *self._holder, self._destination, time.time(), self._shipped
        )
        segment = source(segment_size(size, header), first=idx == 0)
        segment.begin(header)
        return segment

    # Methods for any thread.

    def read(self, start: int, limit: int, max_bytes: int) -> list[Record]:
        """Return records from index `start`; none if `start` is the length of the log.

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
            The record at `start` is damaged or deleted.
        OSError
            The file cannot be read.
        """
        segments = self._segments.copy()
        if segments and start < segments[0].first:
            raise SpoolDamaged(
                segments[0].path or self._directory, f"documents before {segments[0].first} were deleted"
            )
        for segment in segments:
            if start < segment.next:
                return segment.read(start, limit, max_bytes)
        return []

    def count_bytes(self, start: int) -> int:
        """Return the bytes of the records from index `start` on, roughly: those of a segment count as equally large."""
        return sum(
            int(segment.record_bytes * (segment.next - max(start, segment.first)) / segment.count)
            for segment in self._segments.copy()
            if segment.count and segment.next > start
        )

    # Methods of the flusher thread, which may wait for a disk.

    def flush(self, *, sealing: bool = False) -> bool:
        """Sync all files, give them their final names, and seal those to which nothing more is appended.

        Parameters
        ----------
        sealing
            True to seal the current segment of an open run as well.

        Returns
        -------
        bool
            True if a file was renamed.

        Raises
        ------
        OSError
            The disk fails. All segments are tried, and the first error is raised.
        """
        errors: list[OSError] = []
        renamed = False
        # Read `stopped` before the list of segments: a stop document that arrives in between may be in a new segment.
        stopped = self.stopped
        segments = self._segments.copy()
        for number, segment in enumerate(segments):
            if segment.path is None or segment.sealed or not segment.is_mapped:
                continue
            last = number == len(segments) - 1
            try:
                renamed |= self.name_file(segment)
            except OSError as error:
                errors.append(error)
                continue
            try:
                if sealing or stopped or not last:
                    segment.seal(stopped=stopped and last)
                else:
                    segment.sync()
            except OSError as error:
                errors.append(error)
                if error.errno == errno.EIO:
                    segment.distrust_file()
        if errors:
            raise errors[0]
        return renamed

    def name_files(self) -> None:
        """Give all files their final names.

        Raises
        ------
        OSError
            A file cannot be renamed.
        """
        for segment in self._segments.copy():
            self.name_file(segment)

    def name_file(self, segment: Segment) -> bool:
        """Rename a segment's file from its spare name to its final name; return True if it was renamed.

        Until then, only the header tells which run the file belongs to.

        Raises
        ------
        OSError
            The file cannot be renamed.
        """
        assert segment.header is not None
        path = segment_path(self._directory, segment.header)
        if segment.path == path:
            return False
        segment.move_to(path)
        return True

    def store(self, create: Callable[[int], Segment], lock: contextlib.AbstractContextManager[object]) -> None:
        """Move records that are in memory only into files.

        Parameters
        ----------
        create
            Function that creates a segment with a file of the given size in bytes.
        lock
            Lock that the callback holds while it appends.

        Raises
        ------
        OSError
            The disk still fails.
        """
        for segment in self._segments.copy():
            if segment.path is None:
                self._store_segment(segment, create(segment.capacity), lock)

    def forget_deleted_files(self) -> None:
        """Detect mapped segments whose files were deleted, and treat them as segments in memory only."""
        for segment in self._segments.copy():
            segment.forget_deleted_file()

    @staticmethod
    def _store_segment(segment: Segment, target: Segment, lock: contextlib.AbstractContextManager[object]) -> None:
        position = 0
        while segment.end - position > COPIED_UNDER_LOCK_BYTES:
            position = segment.copy_to(target, position)
        with lock:
            segment.copy_to(target, position)
            segment.exchange(target)
        target.delete()

    @property
    def open_segments(self) -> int:
        """Number of segments whose files are open."""
        return sum(segment.is_mapped for segment in self._segments.copy())

    def detach(self) -> None:
        """Close the files of sealed segments. Readers open them again."""
        for segment in self._segments.copy():
            if segment.sealed:
                segment.detach()

    def forget_before(self, idx: int) -> None:
        """Delete the sealed segments at the beginning of the log that have only records before index `idx`.

        Raises
        ------
        OSError
            A file cannot be deleted.
        """
        while len(self._segments) > 1 and self._segments[0].sealed and self._segments[0].next <= idx:
            self._segments[0].delete()
            del self._segments[0]

    def delete(self) -> None:
        """Delete all files of the run, the last one first.

        If there are several, the first one is marked as removed before, so that an adopter can finish the deletion.

        Raises
        ------
        OSError
            A file cannot be deleted. Another call deletes the remaining ones.
        """
        segments = self._segments
        if len(segments) > 1 and segments[0].path is not None and not segments[0].removed:
            segments[0].mark_as_removed()
        while segments:
            crash_point("spool: segment of a removed run deleted")
            segments[-1].delete()
            del segments[-1]

    def close(self) -> None:
        """Close all files. Records that are in memory only are lost."""
        for segment in self._segments.copy():
            if segment.path is not None:
                segment.detach()


def _without_replaced(segments: list[Segment]) -> list[Segment]:
    """Keep one of two segments with the same first index: the undamaged one, or else the longer one.

    Such pairs exist if a session was killed while it replaced a file by a copy.
    """
    longest: dict[int, Segment] = {}
    for segment in segments:
        if segment.header is None:
            return segments
        rival = longest.get(segment.first)
        if rival is None or (not segment.damage, segment.count) > (not rival.damage, rival.count):
            longest[segment.first] = segment
    return list(longest.values())
