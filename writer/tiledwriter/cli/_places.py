"""Where the runs are that a command is told of: directories, uids, files."""

from __future__ import annotations

import argparse
import os
import re
import sqlite3
from pathlib import Path
from typing import Final

from tiledbroker import Journal, JournalError, default_journal_dir, journal_filename, run_files
from tiledbroker._journal import find_run_file, follow_run_file

_LABEL: Final = 8
_HASHED: Final = "sha256-"  # how the names of files begin that are no uids
_TYPEABLE: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")


def add_directory(command: argparse.ArgumentParser, *, json: bool = True) -> None:
    """Add the optional directory to a command, and `--json`."""
    command.add_argument(
        "directory",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="journal or spool directory (default: TILEDWRITER_JOURNAL_DIR, or the user's state directory)",
    )
    if json:
        command.add_argument("--json", action="store_true", help="for programs: JSON instead of text")


def directory_of(given: Path | None) -> Path:
    """The directory that is meant."""
    if given is not None:
        return given
    configured = os.environ.get("TILEDWRITER_JOURNAL_DIR")
    return Path(configured) if configured else default_journal_dir()


def label_of(uid: str) -> str:
    """The beginning of a run's uid, or of its file's name where the uid cannot well be typed: `find` takes either."""
    return uid[:_LABEL] if _TYPEABLE.fullmatch(uid[:_LABEL]) else journal_filename(uid)[: len(_HASHED) + _LABEL]


def find(run: str, directory: Path) -> Path | str:
    """The file of a run, or what is wrong."""
    if run.endswith(".sqlite") and (file := follow_run_file(Path(run))).is_file():
        return file
    if not directory.is_dir():
        return f"there is no directory {directory}"
    exact = find_run_file(directory, run)
    if exact.is_file():
        return exact
    found = [path for path in run_files(directory) if run and _begins_with(path, run)]
    if len(found) == 1:
        return found[0]
    if found:
        return f"{len(found)} runs in {directory} begin with {run!r}; give more of the uid"
    return f"there is no run {run!r} in {directory}"


def _begins_with(path: Path, run: str) -> bool:
    """Whether a file's name begins like that, or the uid of its run where the name does not tell it."""
    if path.name.startswith(run):
        return True
    if not path.name.startswith(_HASHED):
        return False
    try:
        with Journal(path) as journal:
            return journal.run_uid.startswith(run)
    except (JournalError, sqlite3.Error):
        return False
