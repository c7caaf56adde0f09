"""Opens the files of journals and spools, and says why one cannot be read."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

from tiledbroker import Journal, JournalError, RunReader, open_run
from tiledbroker.log import find_segment, follow_run_file

_COMPANIONS: Final = ("", "-wal", "-shm", ".tail", ".lock")


@contextmanager
def opened(path: Path, mode: Literal["read", "inspect"] = "read") -> Iterator[RunReader]:
    """Open a run for reading, a journal or a segment of a spool; the modes are those of `Journal`.

    Raises
    ------
    JournalError
        The file is no run, or is damaged.
    OSError
        It cannot be read: permission, a disk that fails, or it is not there.
    """
    # Some versions of pathlib answer False to a question that the system refuses to answer.
    path = find_segment(follow_run_file(path))
    path.stat()
    with _explaining(path), open_run(path, mode) as run:
        yield run


@contextmanager
def opened_for_writing(path: Path) -> Iterator[Journal]:
    """Open a journal, and lock it against other processes.

    Raises
    ------
    JournalError
        The file is no journal, is damaged, or is in use.
    OSError
        It cannot be read or written.
    """
    path = follow_run_file(path)
    path.stat()
    with _explaining(path), Journal(path, "write") as journal:
        yield journal


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        _raise_refusal(path)
        raise JournalError(path, f"it cannot be read ({error}).") from error


def status_of(path: Path, *, follow_symlinks: bool = True) -> os.stat_result | None:
    """What the system tells of a file or directory; None only if there is nothing of that name.

    Raises
    ------
    OSError
        It may not be looked at.
    """
    try:
        return path.stat(follow_symlinks=follow_symlinks)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for names that no file can have
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise


def gone(path: Path) -> bool:
    """Whether a file that was listed is known to be pruned, shipped or moved since."""
    try:
        return status_of(path, follow_symlinks=False) is None
    except OSError:
        return False


def reason_of(error: Exception) -> str:
    """An error in one line, with its path."""
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror[0].lower() + error.strerror[1:]
        return reason if error.filename is None else f"{reason}: {error.filename}"
    return str(error)


def _raise_refusal(path: Path) -> None:
    """Raise the system's own error where SQLite only tells that it was unable to open a file."""
    for suffix in _COMPANIONS:
        try:
            os.close(os.open(path.with_name(path.name + suffix), os.O_RDONLY | os.O_NONBLOCK))
        except FileNotFoundError:
            continue
