"""Names of journal files, and where to find them: a supervisor moves those of finished runs to a subdirectory."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from pathlib import Path
from typing import Final

SUFFIX: Final = ".sqlite"
LOG_SUFFIX: Final = "-wal"
"""What SQLite appends to the name of a database for that of its write-ahead log."""
FILE_SUFFIXES: Final = ("", LOG_SUFFIX, "-shm")
"""What is appended to the name of a database for those of all its files."""
FINISHED_SUBDIRECTORY: Final = "finished"
"""Subdirectory of a journal directory for the files of runs that need no worker any more."""
SUPERSEDED_SUBDIRECTORY: Final = "superseded"
"""Subdirectory with a directory of unfinished journals for each turn of this host that another host has followed."""

_PLAIN_UID: Final = re.compile(r"(?!sha256-)[0-9a-z][0-9a-z._-]{0,99}")


def journal_filename(run_uid: str) -> str:
    """Return the name of a run's journal file.

    It contains the uid itself if that is short and consists of lower-case letters, digits, ".", "_" and "-", else the
    SHA-256 digest of the uid. So no uid can name a path outside the directory.
    """
    if _PLAIN_UID.fullmatch(run_uid):
        return run_uid + SUFFIX
    return "sha256-" + hashlib.sha256(run_uid.encode("utf-8", "surrogatepass")).hexdigest() + SUFFIX


def journal_files(directory: Path) -> list[Path]:
    """Return the journal files in a directory and in its `finished` subdirectory, sorted by name.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    found = set(unfinished_run_files(directory))
    finished = directory / FINISHED_SUBDIRECTORY
    try:
        found.update(unfinished_run_files(finished))
    except FileNotFoundError:
        # A link that leads nowhere is a disk that is not mounted, and its runs are not known.
        if finished.is_symlink():
            raise
    # A supervisor may move files meanwhile: a file can be in both lists, or have come back after the first one was
    # read. So read the first one again, and drop duplicates that no longer exist.
    found.update(unfinished_run_files(directory))
    names = Counter(path.name for path in found)
    return sorted((path for path in found if names[path.name] == 1 or path.exists()), key=lambda path: path.name)


def unfinished_run_files(directory: Path) -> list[Path]:
    """Return the run files in a spool or journal directory, without subdirectories, sorted by name.

    In a journal directory, these are the files of runs that are open, failed or due for an audit. A write-ahead log
    without its run file is one of them: it may have documents, and nobody can read them.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries]
    return [directory / name for name in sorted(names) if is_run_file(name) or is_orphaned_log(directory / name)]


def is_run_file(name: str) -> bool:
    """Return True if a file of this name contains a run."""
    return name.endswith(SUFFIX) and not name.startswith(("_", "."))


def is_orphaned_log(path: Path) -> bool:
    """Return True if a file is the write-ahead log of a run file that is missing, and there is something in it.

    Raises
    ------
    OSError
        It is unknown whether there is something in it.
    """
    main = path.with_name(path.name.removesuffix(LOG_SUFFIX))
    if main == path or not is_run_file(main.name) or os.path.lexists(main):
        return False
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def find_run_file(directory: Path, run_uid: str) -> Path:
    """Return the path of a run's journal: in the `finished` subdirectory if it is there, else in `directory`."""
    return follow_run_file(directory / journal_filename(run_uid))


def follow_run_file(path: Path) -> Path:
    """Return the current path of a run's file, which a supervisor may have moved to `finished` or back."""
    if path.exists():
        return path
    above = path.parent
    moved = (
        above.parent / path.name if above.name == FINISHED_SUBDIRECTORY else above / FINISHED_SUBDIRECTORY / path.name
    )
    return moved if moved.exists() else path


def follow_link(path: Path) -> Path:
    """Return the path of the file if a path is a symbolic link to one: SQLite's other files and the lock are there."""
    return path.resolve() if path.is_symlink() and path.exists() else path


def file_size(path: Path) -> int:
    """Return the size of a file in bytes; 0 if there is none, also if another process removes it right now."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def journal_lock_path(path: Path) -> Path:
    """Return the path of the lock file that the writer of a journal holds."""
    path = follow_link(path)
    return path.with_name(path.name + ".lock")
