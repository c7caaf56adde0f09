"""Deletes the journals of runs that were written long ago, in small slices between the supervisor's other work."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from .._errors import JournalError
from .._outcomes import WRITTEN
from .._rate_limited_log import RateLimitedLog
from ..log import FINISHED_SUBDIRECTORY, FileLock, Journal, RunReader, is_run_file, journal_lock_path
from .status import format_bytes, format_seconds

log = logging.getLogger(__name__)

SLICE_SECONDS: Final = 0.005
"""Time for which journals are examined at a time."""
ASKED_SECONDS: Final = 3600.0
"""Time for which a run counts as asked for after a publisher has asked for it."""

# Pause between two slices, as a multiple of the time that the last slice took.
_PAUSE_SHARE: Final = 9
_MAX_PASS_PAUSE_SECONDS: Final = 3600.0
_MIN_PASS_PAUSE_SECONDS: Final = 1.0
# Pause between two passes, as a part of the age at which journals are deleted.
_PASS_SHARE: Final = 0.1


def time_written(journal: RunReader) -> float | None:
    """Return the Unix time since which a journal is no longer needed; None if it still is, also for a late audit.

    A journal that does not end with a stop document is needed, whatever its outcome: it contradicts itself.
    """
    if journal.outcome != WRITTEN or not journal.stopped or journal.get("audit_at") is not None:
        return None
    entries = [entry.time for entry in journal.history() if entry.event == WRITTEN]
    return entries[-1] if entries else None


class Retention:
    """Deletes journals in the folder of finished runs by the age of their runs. Times are Unix times.

    A journal is kept as long as its run is not completely in Tiled, is to be audited, is open in another process, or
    a publisher asks for it, or the journal directory has another file of the run. Runs without a stop document are kept
    for ever.

    Parameters
    ----------
    journal_dir
        The journal directory.
    keep_seconds
        Age at which a journal is deleted; None keeps all.
    is_needed
        Returns True for a journal whose run has or may get a worker.
    """

    def __init__(self, journal_dir: Path, keep_seconds: float | None, is_needed: Callable[[Path], bool]) -> None:
        self._folder = journal_dir / FINISHED_SUBDIRECTORY
        self._keep_seconds = keep_seconds
        self._is_needed = is_needed
        self._steps: Iterator[bool] | None = None
        self._next_at = 0.0
        # Latest times at which publishers asked for runs, by uid, oldest first.
        self._asked_at: dict[str, float] = {}
        # Modification times in ns of journals that were old enough and had to be kept, by name.
        self._kept: dict[str, int] = {}
        self._limited_log = RateLimitedLog(log)

    def change_age(self, keep_seconds: float | None) -> None:
        """Delete journals at another age from now on; None keeps all."""
        if keep_seconds != self._keep_seconds:
            self._keep_seconds = keep_seconds
            self._steps, self._next_at = None, 0.0
            self._kept.clear()

    def note_asked(self, uid: str, now: float) -> None:
        """Note that a publisher has asked for a run."""
        if self._keep_seconds is None:
            return
        self._asked_at.pop(uid, None)
        self._asked_at[uid] = now

    def proceed(self, now: float) -> None:
        """Work for `SLICE_SECONDS` if it is time to."""
        began = time.monotonic()
        if self._keep_seconds is None or began < self._next_at:
            return
        if self._steps is None:
            self._forget_asked(now)
            self._steps = self._delete_old(now - self._keep_seconds, self._keep_seconds)
        while time.monotonic() - began < SLICE_SECONDS:
            if next(self._steps, None) is None:
                self._steps = None
                pause = max(_MIN_PASS_PAUSE_SECONDS, _PASS_SHARE * self._keep_seconds)
                self._next_at = time.monotonic() + min(pause, _MAX_PASS_PAUSE_SECONDS)
                return
        ended = time.monotonic()
        self._next_at = ended + _PAUSE_SHARE * (ended - began)

    def _forget_asked(self, now: float) -> None:
        while self._asked_at and next(iter(self._asked_at.values())) < now - ASKED_SECONDS:
            del self._asked_at[next(iter(self._asked_at))]

    def _delete_old(self, before: float, age_seconds: float) -> Iterator[bool]:
        """Delete the journals of runs written before a Unix time; yield after each small step."""
        count = size = 0
        names: dict[str, int] = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    # A journal is not changed after its run was written, but for the time of its late audit.
                    if is_run_file(entry.name) and (status := entry.stat(follow_symlinks=False)).st_mtime <= before:
                        names[entry.name] = status.st_mtime_ns
                    yield True
        except FileNotFoundError:
            # No run has finished yet, or somebody has deleted a journal at this moment.
            pass
        except OSError as error:
            self._limited_log.log(logging.WARNING, "folder", "Old journals cannot be looked for: %s", error)
        # Once a journal is deleted or changed, it is examined again.
        self._kept = {name: changed for name, changed in self._kept.items() if names.get(name) == changed}
        for name, changed in names.items():
            if name not in self._kept:
                deleted = self._delete_journal(self._folder / name, before)
                if deleted is None:
                    self._kept[name] = changed
                elif deleted >= 0:
                    count, size = count + 1, size + deleted
                yield True
        if count:
            log.info(
                "Deleted %d journal%s (%s) of runs that were written more than %s ago.",
                count,
                "s" * (count != 1),
                format_bytes(size),
                format_seconds(age_seconds),
            )

    def _delete_journal(self, path: Path, before: float) -> int | None:
        """Delete a journal; return its size in bytes, -1 if it is in use for now, or None if it must be kept."""
        try:
            with Journal(path, "inspect") as journal:
                uid, written = journal.run_uid, time_written(journal)
            if written is None:
                return None
            if written > before or uid in self._asked_at or self._is_needed(path):
                return -1
            if os.path.lexists(self._folder.parent / path.name):
                # Another file of the run, such as an old copy: this one may be the only one that is complete.
                return -1
            return delete_journal(path, written)
        except FileNotFoundError:
            return -1
        except (JournalError, sqlite3.Error, OSError) as error:
            self._limited_log.log(logging.WARNING, "journal", "An old journal is kept: %s", error)
            return None


def delete_journal(path: Path, written: float) -> int:
    """Delete the journal of a written run.

    Parameters
    ----------
    path
        The journal.
    written
        Time at which the run was written, according to `time_written`; it must still be that.

    Returns
    -------
    int
        Size of the journal in bytes; -1 if it was kept, because it is in use, has changed, or is only a link to one.

    Raises
    ------
    JournalError
        The file is no journal.
    OSError
        The file cannot be deleted.
    """
    if path.is_symlink():
        return -1
    # Not by opening the journal for writing: that needs space, which deleting is to make.
    lock = FileLock(journal_lock_path(path))
    if not lock.try_acquire():
        return -1
    try:
        if path.with_name(path.name + "-wal").exists():
            # If it stayed behind, SQLite would take it for that of the next journal of this name.
            return -1
        with Journal(path, "inspect") as journal:
            if time_written(journal) != written:
                return -1
        size = path.stat().st_size
        path.unlink()
    finally:
        lock.release(remove=True)
    return size
