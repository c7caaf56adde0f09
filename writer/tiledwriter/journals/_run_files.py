"""Open the files of journals and spools, and report the system's reason if one cannot be read."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from tiledbroker import Journal, JournalError, JournalInvalid, RunReader, journal_filename, open_run
from tiledbroker._filesystem import measure_space
from tiledbroker._outcomes import COMPLETE
from tiledbroker.log import (
    FINISHED_SUBDIRECTORY,
    LOG_SUFFIX,
    SUPERSEDED_SUBDIRECTORY,
    FileLock,
    find_segment,
    follow_run_file,
)
from tiledbroker.supervisor import SUPERVISOR_LOCK

# Size of SQLite's -shm file when it is made.
_SHARED_MEMORY_BYTES: Final = 32_768
# Python 3.10 does not tell SQLite's codes.
_SIGNS_OF_A_FULL_DISK: Final = ("disk I/O error", "is full", "unable to open")
_COMPANIONS: Final = ("", "-wal", "-shm", ".tail", ".lock")


@contextmanager
def open_run_file(path: Path, mode: Literal["read", "inspect"] = "read") -> Iterator[RunReader]:
    """Open a run for reading, and close it at the end of the context.

    Parameters
    ----------
    path
        A journal, or a segment of a spool.
    mode
        As for `Journal`.

    Raises
    ------
    JournalError
        The file is not a run, or is damaged.
    OSError
        The file cannot be read: it does not exist, permission is denied, or the disk fails.
    """
    # Call `stat` because it raises: `exists` and `is_file` return False in some versions of Python if the system
    # denies access.
    path = find_segment(follow_run_file(path))
    path.stat()
    with translate_errors(path), open_run(path, mode) as run:
        yield run


@contextmanager
def open_run_file_for_writing(path: Path) -> Iterator[Journal]:
    """Open a journal for writing and lock it against other processes; close it at the end of the context.

    Raises
    ------
    JournalError
        The file is not a journal, is damaged, or is in use.
    OSError
        The file cannot be read or written.
    """
    path = follow_run_file(path)
    path.stat()
    with translate_errors(path), Journal(path, "write") as journal:
        yield journal


@contextmanager
def translate_errors(path: Path, use: str = "read") -> Iterator[None]:
    """Raise the system's reason for an error of SQLite in the context, or else `JournalError`, with the file in both.

    Parameters
    ----------
    path
        The journal.
    use
        What the context does with it: "read" or "changed".
    """
    try:
        yield
    except sqlite3.Error as error:
        _raise_refusal(path)
        raise JournalError(path, f"it cannot be {use} ({error}{_name_full_disk(path, error)}).") from error


def _name_full_disk(path: Path, error: sqlite3.Error) -> str:
    """Return words for a disk without space for what SQLite needs to open a file, if that may be the error's cause."""
    space = measure_space(path.parent)
    if (
        space is None
        or space[0] >= _SHARED_MEMORY_BYTES
        or not any(sign in str(error) for sign in _SIGNS_OF_A_FULL_DISK)
    ):
        return ""
    return f": its disk is full, {space[0]} bytes are free"


def status_of(path: Path, *, follow_symlinks: bool = True) -> os.stat_result | None:
    """Return the status of a file or directory; None only if nothing of that name exists.

    Raises
    ------
    OSError
        The system denies the status, for example for lack of permission.
    """
    try:
        return path.stat(follow_symlinks=follow_symlinks)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        # Python raises ValueError for names that no file can have.
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def file_stem(path: Path) -> str:
    """Return what the name of a file in a journal or spool directory says of its run: the uid, or a digest of it.

    For a write-ahead log without its journal this is the whole name: it is not the run's file.
    """
    if path.name.endswith(LOG_SUFFIX):
        return path.name
    return path.name.rsplit(".", 3)[0] if path.suffix == ".segment" else path.stem


def misnaming_of(run: RunReader) -> str:
    """Return what is wrong with the name of a run's file in a journal or spool directory; "" if it is its own name."""
    # A segment may still have the name of a spare one.
    if run.path.name.startswith(".") or file_stem(run.path) == Path(journal_filename(run.run_uid)).stem:
        return ""
    return f"it is that of run {run.run_uid!r}, and has another name"


def require_own_name(run: RunReader) -> None:
    """Raise `JournalInvalid` if a file in a journal or spool directory has the name of another run."""
    if problem := misnaming_of(run):
        raise JournalInvalid(run.path, f"{problem}.")


def misplacement_of(run: RunReader) -> str:
    """Return why no supervisor goes on with a journal that is not finished; "" if there is no such reason."""
    directory = run.path.parent
    if not isinstance(run, Journal) or directory.name != FINISHED_SUBDIRECTORY or run.outcome in COMPLETE:
        return ""
    return f"it is not finished, and no supervisor looks for it here; move it to {directory.parent}"


def journal_dir_of(path: Path) -> Path:
    """Return the journal directory that a journal belongs to, which may be in its `finished` subdirectory."""
    directory = Path(os.path.realpath(path)).parent
    return directory.parent if directory.name == FINISHED_SUBDIRECTORY else directory


def has_supervisor(path: Path) -> bool:
    """Return True if a supervisor uses the journal directory of a journal; raise OSError if that is unknown."""
    return FileLock(journal_dir_of(path) / SUPERVISOR_LOCK).held


def is_superseded(path: Path) -> bool:
    """Return True if a supervisor has set a journal aside, because another host has served since it was written."""
    return Path(os.path.realpath(path)).parent.parent.name == SUPERSEDED_SUBDIRECTORY


def gone(path: Path) -> bool:
    """Return True if a listed file certainly no longer exists, because it was pruned, shipped or moved."""
    try:
        return status_of(find_segment(path), follow_symlinks=False) is None
    except OSError:
        return False


def reason_of(error: Exception) -> str:
    """Return an error's message in one line, with its path if it is an `OSError`."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[0].lower() + error.strerror[1:]
        return reason if error.filename is None else f"{reason}: {error.filename}"
    return str(error)


def _raise_refusal(path: Path) -> None:
    """Raise the system's error for a file that cannot be opened, which SQLite does not report."""
    for suffix in _COMPANIONS:
        try:
            os.close(os.open(path.with_name(path.name + suffix), os.O_RDONLY | os.O_NONBLOCK))
        except FileNotFoundError:
            continue
