"""Journals of finished runs lie in a folder of their own: whoever looks for open runs does not come across them."""

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
from .._limited import LimitedLog
from ..log import APPLICATION_ID, FINISHED, FileLock, journal_filename, sync_directory
from ._lifecycle import State
from ._runs import Run

log = logging.getLogger(__name__)

_COMPLETE: Final = (State.WRITTEN.value, State.INTERRUPTED.value)
_RETRY_PAUSE_SECONDS: Final = 5.0
_RETRIED_AT_ONCE: Final = 200
_KEYS: Final = "SELECT key, value FROM state WHERE key IN ('run_uid', 'outcome', 'audit_at')"


class Filing:
    """Puts finished runs' journals aside: at once, or later if somebody uses them."""

    def __init__(self) -> None:
        self._waiting: dict[Path, None] = {}
        self._retry_at = 0.0
        self._limited = LimitedLog(log)

    def file(self, journal: Path) -> None:
        """Move a journal to the folder of finished runs, now or once nobody uses it."""
        self._waiting.pop(journal, None)
        try:
            if not file_away(journal):
                self._waiting[journal] = None
        except FileNotFoundError:
            pass  # it has been pruned
        except (JournalError, OSError) as error:  # the next supervisor tries again
            self._limited.log(logging.WARNING, "filing", "A finished run's journal stays where it is: %s", error)

    def retry(self, now: float, is_needed: Callable[[Path], bool]) -> None:
        """Try again with those that were in use, if it is time to; not with one that is needed for its run again."""
        if now < self._retry_at:
            return
        self._retry_at = now + _RETRY_PAUSE_SECONDS
        for journal in [path for path in self._waiting if not is_needed(path)][:_RETRIED_AT_ONCE]:
            del self._waiting[journal]
            if Run.from_file(journal).complete:  # which also removes what a killed worker has left beside the file
                self.file(journal)


def is_finished(journal: Path) -> bool:
    """Whether a journal at rest says that its run is in Tiled, and is not to be audited.

    This is far quicker than opening it as a `Journal`, for directories with many. False for one that is in use, and for
    one that is damaged or misnamed: whoever needs it looks closer.
    """
    # SQLite would wait for ever for somebody to write into a pipe.
    if not journal.is_file() or _log_of(journal).exists():
        return False
    try:
        uri = f"{journal.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                return False
            state = {key: json.loads(value) for key, value in connection.execute(_KEYS)}
    except (sqlite3.Error, OSError, ValueError, TypeError):
        return False
    named = isinstance(uid := state.get("run_uid"), str) and journal_filename(uid) == journal.name
    return named and state.get("outcome") in _COMPLETE and state.get("audit_at") is None


def file_away(journal: Path) -> bool:
    """Move a finished run's journal to the folder of those; False if somebody uses it at the moment.

    Nothing is synced: after a power cut the file is in one place or the other, and whole.

    Raises
    ------
    JournalInvalid
        There is another file of its name.
    OSError
        It cannot be moved.
    """
    folder = journal.parent / FINISHED
    lock = FileLock(journal.with_name(journal.name + ".lock"))
    if not lock.try_acquire():
        return False
    try:
        # What is in SQLite's log would be left behind. The last one to close the file removes it.
        if _log_of(journal).exists():
            return False
        folder.mkdir(mode=0o700, exist_ok=True)
        _move(journal, folder / journal.name)
        crash_point("supervisor: journal filed away")
    finally:
        lock.release(remove=True)
    return True


def bring_back(journal: Path) -> Path:
    """Move a journal out of the folder of finished runs, since there is something to do for its run; its new path.

    Raises
    ------
    JournalLocked
        Somebody writes it.
    JournalInvalid
        There is another file of its name.
    OSError
        It cannot be moved.
    """
    if journal.parent.name != FINISHED:
        return journal
    lock = FileLock(journal.with_name(journal.name + ".lock"))
    if not lock.try_acquire():
        raise JournalLocked(journal)
    try:
        home = journal.parent.parent / journal.name
        _move(journal, home)
        crash_point("supervisor: journal brought back")
        # What is acknowledged from now on is in a log beside the new name, which has to survive a power cut with it.
        sync_directory(home.parent)
        sync_directory(journal.parent)
    finally:
        lock.release(remove=True)
    return home


def _move(journal: Path, target: Path) -> None:
    if target.exists():  # as from a backup that was put back
        raise JournalInvalid(journal, f"{target} has the same name; both are left as they are.")
    journal.rename(target)


def _log_of(journal: Path) -> Path:
    return journal.with_name(journal.name + "-wal")
