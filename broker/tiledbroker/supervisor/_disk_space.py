"""Space on the disk of the journals, measured now and then."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ._snapshot import DiskState, DiskStatus

# Free bytes below which SQLite's next transaction may fail, at most this share of the disk.
_FULL_BYTES: Final = 16 * 2**20
_FULL_SHARE: Final = 0.01
# The same for a disk that will be full soon.
_LOW_BYTES: Final = 2 * 2**30
_LOW_SHARE: Final = 0.05
# Pause between two measurements.
_PAUSE_SECONDS: Final = 2.0


class DiskSpace:
    """Measures a directory's disk, at most every `_PAUSE_SECONDS`.

    Parameters
    ----------
    directory
        The directory.
    purpose
        What is in it, in the plural.
    min_free
        Free bytes below which the disk counts as full.
    """

    def __init__(self, directory: Path, purpose: str, min_free: int = 0) -> None:
        self._directory = directory
        self._purpose = purpose
        self._min_free = min_free
        self._measured: DiskStatus | None = None
        self._measure_at = 0.0

    def measure(self, now: float) -> DiskStatus:
        """Return the disk as it was measured last, which is now if that was long ago (`time.monotonic`)."""
        if self._measured is None or now >= self._measure_at:
            self._measure_at = now + _PAUSE_SECONDS
            self._measured = self._measure()
        return self._measured

    def _measure(self) -> DiskStatus:
        path, free, total = str(self._directory), None, None
        try:
            found = os.statvfs(self._directory)
            # Blocks that only root may use are not counted as free.
            free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
        except OSError:
            return DiskStatus(path, self._purpose, None, None, self._min_free, None)
        return DiskStatus(path, self._purpose, free, total, self._min_free, judge_space(free, total, self._min_free))


def judge_space(free: int, total: int, min_free: int) -> DiskState:
    """Return the state of a disk of `total` bytes with `free` bytes left, of which `min_free` are to be kept free."""
    if free < max(min_free, min(_FULL_BYTES, _FULL_SHARE * total)):
        return "full"
    if free < max(2 * min_free, min(_LOW_BYTES, _LOW_SHARE * total)):
        return "low"
    return "well"
