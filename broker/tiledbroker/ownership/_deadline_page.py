"""The deadline page: tells workers, for less than a microsecond a time, whether their supervisor still holds the lease.

A file of one page, which the supervisor and its workers map. Bytes 0 to 7 are a mark; then come doubles in the
host's byte order: the deadline in seconds of `CLOCK_BOOTTIME`, the time for which a lease is valid, the margin
before the deadline, and the revision of the lease. Being aligned, the deadline is written and read whole. The page
belongs on a local file system: only processes of one host see each other's writes, and only they share this clock.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
from pathlib import Path
from typing import Final

from ._lease import DEFAULT_TIMING, LeaseTiming

_PAGE_BYTES: Final = 4096
_MARK: Final = b"TWLEASE1"
_DEADLINE_AT: Final = 1
_LEASE_SECONDS_AT: Final = 2
_MARGIN_SECONDS_AT: Final = 3
_REVISION_AT: Final = 4
_EXPIRED: Final = float("-inf")
_NO_FIELDS: Final = memoryview(struct.pack("5d", 0.0, _EXPIRED, 0.0, 0.0, 0.0)).cast("d")


def boottime() -> float:
    """Return the time of `CLOCK_BOOTTIME` in seconds: since the host was started, including times of suspension."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class DeadlinePage:
    """A mapped deadline. `create` returns that of the supervisor, which writes it; `open` that of a worker.

    Forked processes share the page of their parent. A deadline further ahead than a lease can reach is not believed: it
    is damaged, or from before the host was started. If somebody truncates the file, its workers are killed by SIGBUS.
    """

    def __init__(self, mapping: mmap.mmap | None) -> None:
        self._mapping = mapping
        self._fields = _NO_FIELDS if mapping is None else memoryview(mapping).cast("d")
        self._lease_seconds = self._fields[_LEASE_SECONDS_AT]
        self._margin_seconds = self._fields[_MARGIN_SECONDS_AT]

    @classmethod
    def create(cls, path: Path, *, timing: LeaseTiming = DEFAULT_TIMING) -> DeadlinePage:
        """Make an expired page in the place of an earlier one, which keeps its deadline for those who have mapped it.

        Raises
        ------
        OSError
            The file cannot be made.
        """
        new = path.with_name(path.name + ".new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            # Written, not only extended: without space on the disk, an access to the mapping would be a SIGBUS.
            fields = struct.pack("=3d", _EXPIRED, timing.lease_seconds, timing.margin_seconds)
            os.pwrite(descriptor, (_MARK + fields).ljust(_PAGE_BYTES, b"\0"), 0)
            page = cls(mmap.mmap(descriptor, _PAGE_BYTES))
        finally:
            os.close(descriptor)
        new.rename(path)
        return page

    @classmethod
    def open(cls, path: Path) -> DeadlinePage:
        """Return a page for reading; one that is expired for ever if the file is missing, or is no page."""
        mapping = None
        with contextlib.suppress(OSError), path.open("rb") as file:
            contents = file.read()
            if len(contents) == _PAGE_BYTES and contents.startswith(_MARK):
                mapping = mmap.mmap(file.fileno(), _PAGE_BYTES, prot=mmap.PROT_READ)
        return cls(mapping)

    def write(self, deadline: float, revision: int = 0) -> None:
        """Set the deadline and the revision of its lease; only for the page that `create` has returned."""
        # If the process is killed in between, the deadline is that of an earlier revision.
        self._fields[_REVISION_AT] = revision
        self._fields[_DEADLINE_AT] = deadline

    @property
    def deadline(self) -> float:
        """The deadline; in the past if it is further ahead than a lease can reach."""
        now = boottime()
        return now + self.seconds_left(now)

    @property
    def revision(self) -> int:
        """Revision of the lease; 0 if there is none."""
        return int(self._fields[_REVISION_AT])

    def may_send(self, now: float) -> bool:
        """Return True if a request to Tiled may begin now. Ask directly before sending, with the write slot at hand."""
        return self._margin_seconds < self._fields[_DEADLINE_AT] - now <= self._lease_seconds

    def seconds_left(self, now: float) -> float:
        """Return the time until the deadline, at which workers end; not above 0 if it has passed."""
        left = self._fields[_DEADLINE_AT] - now
        # False also for what is not a number.
        return left if left <= self._lease_seconds else _EXPIRED

    def close(self) -> None:
        """Unmap the page; it is expired for this object."""
        if self._mapping is not None:
            self._fields.release()
            self._mapping.close()
        self._fields, self._mapping = _NO_FIELDS, None
