"""Where the runs are that a command is told of: directories, uids, files."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tiledbroker import default_journal_dir, journal_filename, run_files


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


def find(run: str, directory: Path) -> Path | str:
    """The file of a run, or what is wrong."""
    if run.endswith(".sqlite") and Path(run).is_file():
        return Path(run)
    if not directory.is_dir():
        return f"there is no directory {directory}"
    exact = directory / journal_filename(run)
    if exact.is_file():
        return exact
    found = [path for path in run_files(directory) if path.name.startswith(run)]
    if len(found) == 1:
        return found[0]
    if found:
        return f"{len(found)} runs in {directory} begin with {run!r}; give more of the uid"
    return f"there is no run {run!r} in {directory}"
