"""One run in the spool: its segments, in the order of their records."""

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
from .._errors import SpoolDamaged
from ._identity import Holder
from ._record import Record
from ._segment import Segment, SegmentHeader, record_size, segment_size
from ._spool_files import segment_path

log = logging.getLogger(__name__)

COPIED_UNDER_LOCK_BYTES: Final = 2**18


class SegmentSource(Protocol):
    """Where a run log has its segments from."""

    def __call__(self, size: int, *, first: bool) -> Segment:
        """Return an unused segment of at least `size` bytes, at once; `first`: the run has none yet."""


class RunLog:
    """The records of one run.

    The callback appends, holding the spool's lock; the flusher syncs, seals and deletes; anybody reads.

    Attributes
    ----------
    label
        Drawn at random: what tells it from another run log with the same uid.
    stopped
        Whether its stop document is here.
    abandoned
        Whether nothing more is to come although there is no stop document.
    acknowledged
        Index up to which records are durable on the ingest host; the shipper says so.
    is_durable
        Whether all of it is, and its end.
    is_adopted
        Whether another session made it.
    damage
        What is wrong behind the last record that can be believed, with the file; "" if nothing is.
    """

    def __init__(
        self, run_uid: str, directory: Path, holder: Holder, destination: str, *, shipped: bool = True
    ) -> None:
        self.run_uid = run_uid
        self.stopped = self.abandoned = False
        self.acknowledged = 0
        self.damage = ""
        self.started = time.time()
        self._directory = directory
        self.label = secrets.token_hex(4)
        self._holder = holder
        self._destination = destination
        self._shipped = shipped
        self._segments: list[Segment] = []
        self._length = 0
        self.is_durable = self.is_adopted = False

    @classmethod
    def load(cls, segments: list[Segment]) -> RunLog:
        """Take over what another session left of a run: its segments by their first index, with headers."""
        header = segments[0].header
        assert header is not None
        assert segments[0].path is not None
        log_ = cls(header.run, segments[0].path.parent, header.holder, header.destination, shipped=header.shipped)
        log_.label, log_.started = header.log, header.created
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
        """Index of the first record that is still here."""
        segments = self._segments
        return segments[0].first if segments else self._length

    @property
    def length(self) -> int:
        """Number of records, which is the index of the next one."""
        return self._length

    @property
    def degraded(self) -> bool:
        """Whether records are in memory only."""
        return any(segment.path is None for segment in self._segments.copy())

    @property
    def files(self) -> list[Path]:
        """Its files, by their first index."""
        return [segment.path for segment in self._segments.copy() if segment.path is not None]

    @property
    def size(self) -> int:
        """Bytes that its files take: those of a run at its end are about to be cut to what is in them."""
        return sum(
            segment.end if segment.sealed or self.is_durable else segment.capacity
            for segment in self._segments.copy()
            if segment.path is not None
        )

    @property
    def is_growing(self) -> bool:
        """Whether the segment in use is more than half full."""
        segments = self._segments
        if not segments or self.stopped:
            return False
        return segments[-1].is_mapped and not segments[-1].sealed and 2 * segments[-1].end > segments[-1].capacity

    @property
    def documents_in_memory(self) -> int:
        """Number of documents that are in memory only."""
        return sum(segment.count for segment in self._segments.copy() if segment.path is None)

    # The callback's: no system call, no waiting

    def append(self, name: str, body: bytes, source: SegmentSource) -> bool:
        """Add one document; return whether this has made a segment more than half full."""
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
            self.run_uid, idx, self.label, *self._holder, self._destination, time.time(), self._shipped
        )
        segment = source(segment_size(size, header), first=idx == 0)
        segment.begin(header)
        return segment

    # Readers

    def read(self, start: int, limit: int, max_bytes: int) -> list[Record]:
        """Return records from index `start`: at most `limit`, and at most `max_bytes` of bodies but at least one.

        Raises
        ------
        SpoolDamaged
            They are not what was appended, or are not there any more.
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

    # The flusher's

    def flush(self, *, sealing: bool = False) -> bool:
        """Bring everything to the disk; a segment that is full, or was the last, is sealed.

        Returns
        -------
        bool
            Whether a file has another name now.

        Raises
        ------
        OSError
            The disk fails; the first error of all segments.
        """
        errors: list[OSError] = []
        renamed = False
        stopped = self.stopped  # before the segments: a stop that comes meanwhile can be in a further one
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
        """Name all files after the run.

        Raises
        ------
        OSError
            One cannot be renamed.
        """
        for segment in self._segments.copy():
            self.name_file(segment)

    def name_file(self, segment: Segment) -> bool:
        """Name a file after its run; until then, its header says whose it is. Return whether it had another name.

        Raises
        ------
        OSError
            It cannot be renamed.
        """
        assert segment.header is not None
        path = segment_path(self._directory, segment.header)
        if segment.path == path:
            return False
        segment.move_to(path)
        return True

    def store(self, create: Callable[[int], Segment], lock: contextlib.AbstractContextManager[object]) -> None:
        """Bring what is in memory only into files.

        Parameters
        ----------
        create
            Makes a file of so many bytes.
        lock
            Held by whoever appends.

        Raises
        ------
        OSError
            The disk still fails.
        """
        for segment in self._segments.copy():
            if segment.path is None:
                self._store(segment, create(segment.capacity), lock)

    def forget_deleted_files(self) -> None:
        """Take segments whose files somebody has deleted for what they are now: memory, as long as they are mapped."""
        for segment in self._segments.copy():
            segment.forget_deleted_file()

    @staticmethod
    def _store(segment: Segment, target: Segment, lock: contextlib.AbstractContextManager[object]) -> None:
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
        """Close the files of sealed segments, which readers open anew."""
        for segment in self._segments.copy():
            if segment.sealed:
                segment.detach()

    def forget_before(self, idx: int) -> None:
        """Delete segments that hold only records before an index.

        Raises
        ------
        OSError
            A file cannot be deleted.
        """
        while len(self._segments) > 1 and self._segments[0].sealed and self._segments[0].next <= idx:
            self._segments[0].delete()
            del self._segments[0]

    def delete(self) -> None:
        """Delete all of it: nobody wants it any more.

        Raises
        ------
        OSError
            A file cannot be deleted; the rest is deleted later.
        """
        segments = self._segments
        if len(segments) > 1 and segments[0].path is not None and not segments[0].removed:
            segments[0].mark_as_removed()
        while segments:
            crash_point("spool: segment of a removed run deleted")
            segments[-1].delete()
            del segments[-1]

    def close(self) -> None:
        """Close all files; what is in memory only is lost."""
        for segment in self._segments.copy():
            if segment.path is not None:
                segment.detach()


def _without_replaced(segments: list[Segment]) -> list[Segment]:
    """Leave files out that were being replaced by a copy of themselves when their session was killed."""
    longest: dict[int, Segment] = {}
    for segment in segments:
        if segment.header is None:
            return segments
        rival = longest.get(segment.first)
        if rival is None or (not segment.damage, segment.count) > (not rival.damage, rival.count):
            longest[segment.first] = segment
    return list(longest.values())
