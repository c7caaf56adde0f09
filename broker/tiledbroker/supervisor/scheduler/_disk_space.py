"""Whether the disk of the journals has room for more documents, and what is said about it. No file is touched here."""

from __future__ import annotations

import logging
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from ..status import format_bytes, format_seconds

log = logging.getLogger(__name__)

DEFAULT_MIN_FREE_BYTES: Final = 100 * 2**20
"""Bytes that are kept free by default, on disks that are large enough."""
DEFAULT_MIN_FREE_SHARE: Final = 100
"""The default is never more than this part of the disk: one in so many bytes."""

REPORT_INTERVAL_SECONDS: Final = 600.0
"""Time between two reports that nothing is accepted."""

LOW_FACTOR: Final = 2.0
"""Multiple of the minimum below which there is a warning."""
# Multiple of a limit that must be free until a state is left again.
_HYSTERESIS: Final = 1.25


class Space(NamedTuple):
    """Space on a disk, in bytes: what this user may still write, and the size of the disk."""

    free: int
    total: int


class DiskState(str, Enum):
    """State of a disk."""

    WELL = "well"
    LOW = "low"
    FULL = "full"


class DiskSpace:
    """Decides from the free space whether documents are accepted, and logs each change once.

    Parameters
    ----------
    directory
        The journal directory, for texts.
    min_free
        Bytes below which no documents are accepted; None: the default for the size of the disk.

    Attributes
    ----------
    space
        The space as last measured; None before the first measurement, and if it cannot be measured.
    state
        State of the disk; it is well if its space is not known, because workers find out when they write.
    """

    def __init__(self, directory: Path, min_free: int | None = None) -> None:
        self.space: Space | None = None
        self.state = DiskState.WELL
        self._directory = directory
        self._given = min_free
        self._full_since = 0.0
        self._report_at = float("inf")

    @property
    def min_free(self) -> int:
        """Bytes below which no documents are accepted; 0 if the disk's size is needed and not known."""
        if self.space is None:
            return self._given or 0
        return find_min_free(self._given, self.space.total)

    @property
    def is_full(self) -> bool:
        """Whether no documents are accepted."""
        return self.state is DiskState.FULL

    def change_min_free(self, min_free: int | None) -> None:
        """Take another minimum from the next measurement on; None: the default for the size of the disk."""
        self._given = min_free

    def explain(self) -> str:
        """Return why no documents are accepted, for publishers and logs."""
        free = 0 if self.space is None else self.space.free
        return (
            f"the journal's disk is full: {format_bytes(free)} free in {self._directory}, and min_free is "
            f"{format_bytes(self.min_free)}"
        )

    def update(self, space: Space | None, now: float) -> None:
        """Take a measurement of the space; None if it cannot be measured. `now` is that of `time.monotonic`."""
        self.space = space
        before, self.state = self.state, self._find_state()
        if self.state is not before:
            self._log_change(before, now)
        elif self.is_full and now >= self._report_at:
            self._report_at = now + REPORT_INTERVAL_SECONDS
            log.error(
                "For %s no documents have been accepted: %s.", format_seconds(now - self._full_since), self.explain()
            )

    def _find_state(self) -> DiskState:
        if self.space is None or not self.min_free:
            return DiskState.WELL
        free, full, low = self.space.free, self.min_free, LOW_FACTOR * self.min_free
        if free < full * (_HYSTERESIS if self.is_full else 1.0):
            return DiskState.FULL
        if free < low * (_HYSTERESIS if self.state is not DiskState.WELL else 1.0):
            return DiskState.LOW
        return DiskState.WELL

    def _log_change(self, before: DiskState, now: float) -> None:
        free = "unknown space" if self.space is None else f"{format_bytes(self.space.free)}"
        if self.is_full:
            self._full_since, self._report_at = now, now + REPORT_INTERVAL_SECONDS
            log.error(
                "No documents are accepted, and publishers keep theirs in their spools, until there is space: %s.",
                self.explain(),
            )
        elif before is DiskState.FULL:
            log.warning(
                "Documents are accepted again after %s: %s free in %s.",
                format_seconds(now - self._full_since),
                free,
                self._directory,
            )
        elif self.state is DiskState.LOW:
            log.warning(
                "Space on the journals' disk gets short: %s free in %s. Below min_free, which is %s, no documents are "
                "accepted.",
                free,
                self._directory,
                format_bytes(self.min_free),
            )
        else:
            log.info("There is enough space on the journals' disk again: %s free in %s.", free, self._directory)


def find_min_free(given: int | None, total: int) -> int:
    """Return the bytes below which no documents are accepted: as given, or the default for a disk of `total` bytes."""
    return min(DEFAULT_MIN_FREE_BYTES, total // DEFAULT_MIN_FREE_SHARE) if given is None else given
