"""Moves journals of finished runs to a separate folder, so that a search for open runs does not read them."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from .._crash_points import crash_point
from .._errors import JournalError, JournalInvalid, JournalLocked
from .._outcomes import COMPLETE
from .._rate_limited_log import RateLimitedLog
from ..log import (
    FINISHED_SUBDIRECTORY,
    FileLock,
    check_format,
    file_size,
    is_orphaned_log,
    journal_filename,
    journal_lock_path,
    sync_directory,
)
from ._journal_facts import read_facts

log = logging.getLogger(__name__)

_RETRY_PAUSE_SECONDS: Final = 5.0
_RETRIED_AT_ONCE: Final = 200
_KEYS: Final = "SELECT key, value FROM state WHERE key IN ('run_uid', 'outcome', 'audit_at')"


class FinishedJournals:
    """Moves journals of finished runs to their folder, and retries those that are in use."""

    def __init__(self) -> None:
        self._waiting: dict[Path, None] = {}
        self._retry_at = 0.0
        self._limited_log = RateLimitedLog(log)

    def file(self, journal: Path) -> None:
        """Move a journal to the folder of finished runs now, or retry later if it is in use."""
        self._waiting.pop(journal, None)
        try:
            if not file_away(journal):
                self._waiting[journal] = None
        except FileNotFoundError:
            # The journal has been pruned.
            pass
        except (JournalError, OSError) as error:
            # The next supervisor tries again.
            self._limited_log.log(logging.WARNING, "filing", "A finished run's journal stays where it is: %s", error)

    def retry(self, now: float, is_needed: Callable[[Path], bool]) -> None:
        """Retry journals that were in use, every `_RETRY_PAUSE_SECONDS`.

        Parameters
        ----------
        now
            Time (`time.monotonic`).
        is_needed
            Returns True for a journal whose run is active again; it is not moved.
        """
        if now < self._retry_at:
            return
        self._retry_at = now + _RETRY_PAUSE_SECONDS
        for journal in [path for path in self._waiting if not is_needed(path)][:_RETRIED_AT_ONCE]:
            del self._waiting[journal]
            # Opening the journal also checkpoints and removes the WAL file that a killed worker may have left.
            if read_facts(journal).complete:
                self.file(journal)


def is_finished(journal: Path) -> bool:
    """Return True if a journal that nobody uses says that its run is in Tiled and needs no audit.

    This is much faster than opening the file as a `Journal`, for directories with many files. It returns False for a
    journal that is in use, damaged, of a newer format or misnamed; the caller then opens it.
    """
    # SQLite would block forever on a named pipe.
    if not journal.is_file() or _log_of(journal).exists():
        return False
    try:
        uri = f"{journal.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            check_format(journal, connection)
            state = {key: json.loads(value) for key, value in connection.execute(_KEYS)}
    except Exception:
        # Whatever it is, whoever opens it as a `Journal` says it.
        return False
    named = isinstance(uid := state.get("run_uid"), str) and journal_filename(uid) == journal.name
    return named and state.get("outcome") in COMPLETE and state.get("audit_at") is None


def file_away(journal: Path) -> bool:
    """Move a finished run's journal to the folder of finished runs, unless it is there.

    Nothing is synced: after a power cut the file is complete, in the old folder or in the new one.

    Returns
    -------
    bool
        False if another process uses the journal at the moment.

    Raises
    ------
    JournalInvalid
        The folder has another file of that name.
    OSError
        The file cannot be moved.
    """
    if journal.parent.name == FINISHED_SUBDIRECTORY:
        return True
    folder = journal.parent / FINISHED_SUBDIRECTORY
    lock = FileLock(journal_lock_path(journal))
    if not lock.try_acquire():
        return False
    try:
        # The move would leave the content of the WAL file behind. The last process to close the journal removes it.
        if _log_of(journal).exists():
            return False
        folder.mkdir(mode=0o700, exist_ok=True)
        _move_journal(journal, folder / journal.name)
        crash_point("supervisor: journal filed away")
    finally:
        lock.release(remove=True)
    return True


def bring_back(journal: Path) -> Path:
    """Move a journal out of the folder of finished runs because its run needs a worker again, and return its new path.

    Raises
    ------
    JournalLocked
        Another process is writing the journal, or reads what has not been moved from its WAL file into it yet.
    JournalInvalid
        The journal directory has another file of that name, or the write-ahead log of one.
    OSError
        The file cannot be moved.
    """
    if journal.parent.name != FINISHED_SUBDIRECTORY:
        return journal
    lock = FileLock(journal_lock_path(journal))
    if not lock.try_acquire():
        raise JournalLocked(journal)
    try:
        # Nothing is in it unless somebody has put the journal of an open run there. The next one to open and close it
        # takes it over.
        if file_size(_log_of(journal)):
            raise JournalLocked(journal)
        home = journal.parent.parent / journal.name
        _move_journal(journal, home)
        crash_point("supervisor: journal brought back")
        # Documents acknowledged from now on go to a WAL file next to the new name. After a power cut that name must
        # exist.
        sync_directory(home.parent)
        sync_directory(journal.parent)
    finally:
        lock.release(remove=True)
    return home


def _move_journal(journal: Path, target: Path) -> None:
    if target.exists():
        # It was restored from a backup, for example.
        raise JournalInvalid(journal, f"{target} has the same name; both are left as they are.")
    if is_orphaned_log(_log_of(target)):
        raise JournalInvalid(journal, f"SQLite would take {_log_of(target)} for its log; both are left as they are.")
    journal.rename(target)


def _log_of(journal: Path) -> Path:
    return journal.with_name(journal.name + "-wal")
