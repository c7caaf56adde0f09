"""Writes a journal to its path again, from which its file was removed, or where somebody has put another one.

The process that has the file open is the last one to have its contents: they are gone when it closes the file.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from ._journal_files import FILE_SUFFIXES
from ._journal_schema import draft_path, sync_directory


def identify_file(path: Path) -> tuple[int, int] | None:
    """Return what tells the file at a path from all others; None if there is none.

    Raises
    ------
    OSError
        It cannot be looked at.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def put_back(connection: sqlite3.Connection, path: Path) -> Path | None:
    """Write what a connection reads to a path, and return where the file is now that was there; None if there was none.

    Raises
    ------
    OSError, sqlite3.Error
        It cannot be written. What was at the path may have been moved.
    """
    draft = draft_path(path)
    draft.unlink(missing_ok=True)
    try:
        connection.execute("VACUUM INTO ?", (str(draft),))
        draft.chmod(0o600)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        moved = _set_aside(path)
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)
    sync_directory(path.parent)
    return moved


def _set_aside(path: Path) -> Path | None:
    """Rename the file at a path, and what SQLite has beside it: another file there would be mixed up with it."""
    moved = path.with_name(f"{path.name}.replaced-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}")
    has_moved = False
    for suffix in FILE_SUFFIXES:
        file = path.with_name(path.name + suffix)
        if os.path.lexists(file):
            file.rename(moved.with_name(moved.name + suffix))
            has_moved = has_moved or not suffix
    return moved if has_moved else None
