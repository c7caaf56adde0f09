"""Where the runs are that a command is told of: directories, uids, files.

Nothing is said to be missing here unless the system said so: what may not be looked at raises.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tiledbroker import JournalError, default_journal_dir, journal_filename, labelled_run_files, run_files
from tiledbroker.log import FINISHED, follow_run_file

from ..journals import gone, opened, reason_of, status_of
from ._exit import CommandFailed, ExitCode

_LABEL: Final = 8
_HASHED: Final = "sha256-"
"""How names of files begin that are no uids."""
_SUFFIXES: Final = (".sqlite", ".segment")
_TYPEABLE: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")
_UNROUTED: Final = "_unrouted"
_OURS: Final = re.compile(
    rf"{_UNROUTED}.*|\.supervisor\.lock|\.workers\.ipc|finished|retry|.*\.sqlite.*|.*\.segment|\.session-.*\.lock"
)
"""Names of all that journal and spool directories hold."""


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


def runs_in(directory: Path) -> list[Path]:
    """The run files in a journal or spool directory, by name.

    Raises
    ------
    CommandFailed
        There is no such directory, or it holds files and none of them is of a journal or a spool.
    OSError
        The directory cannot be read.
    """
    names = _names_in(directory)
    if names and not any(_OURS.fullmatch(name) for name in names):
        files = f"its {len(names)} files are" if len(names) > 1 else "its only file is"
        raise CommandFailed(
            ExitCode.NOT_FOUND,
            f"{directory} is neither a journal nor a spool directory: {files} not of tiledwriter",
        )
    return run_files(directory)


def labelled_runs_in(directory: Path) -> dict[str, Path]:
    """The same by label: what tells a run from others, also once its file has another name."""
    runs_in(directory)
    return labelled_run_files(directory)


def unrouted_in(directory: Path) -> list[Path]:
    """Files of documents that belong to no known run: nobody ships them."""
    return [
        directory / name
        for name in _names_in(directory)
        if re.fullmatch(rf"{_UNROUTED}.*(\.sqlite|\.0+\.segment)", name)
    ]


def relocated(path: Path, directory: Path) -> Path | None:
    """Where a file is that was listed and is not there any more; None if it was deleted."""
    if not gone(path):
        return None
    directory = directory.parent if directory.name == FINISHED else directory
    return next((other for other in run_files(directory) if other.name == path.name), None)


def no_runs_in(directory: Path) -> str:
    """What is said of a directory that was looked at, and is empty."""
    return f"no runs in {directory}"


def count_of_runs(count: int) -> str:
    """How many runs."""
    return f"{count} run" if count == 1 else f"{count} runs"


def find(run: str, directory: Path) -> Path:
    """The file of a run that is named by its file, its uid or the beginning of that.

    Raises
    ------
    CommandFailed
        There is none, or there are several.
    OSError
        It cannot be told, as a directory or file may not be looked at.
    """
    if looks_like_path(run) and status_of(file := follow_run_file(Path(run)), follow_symlinks=False) is not None:
        return file
    no_path = f"there is no file or directory {run}; " if os.sep in run else ""
    try:
        paths = runs_in(directory)
    except CommandFailed as error:
        raise CommandFailed(error.code, f"{no_path}{error}") from error
    file_name = journal_filename(run)
    exact = [path for path in paths if path.name == file_name or path.name.startswith(f"{Path(file_name).stem}.")]
    refusals: list[str] = []
    found = exact or [path for path in paths if run and _begins_with(path, run, refusals)]
    if len(found) == 1:
        return found[0]
    if found:
        problem = f"{len(found)} runs in {directory} begin with {run!r}; give more of the uid"
        raise CommandFailed(ExitCode.USAGE, problem)
    if refusals:
        unknown = "; ".join(refusals)
        problem = f"{run!r} is none of the runs in {directory} that could be read; of the others: {unknown}"
        raise CommandFailed(ExitCode.FAILED, problem)
    raise CommandFailed(ExitCode.NOT_FOUND, f"{no_path}there is no run {run!r} in {directory}")


def looks_like_path(run: str) -> bool:
    """Whether a run is named by its file."""
    return run.endswith(_SUFFIXES)


def _begins_with(path: Path, run: str, refusals: list[str]) -> bool:
    """Whether a file's name begins like that, or the uid of its run where the name does not tell it."""
    if path.name.startswith(run):
        return True
    if not path.name.startswith(_HASHED):
        return False
    try:
        with opened(path) as journal:
            return journal.run_uid.startswith(run)
    except (JournalError, OSError) as error:
        if not gone(path):
            refusals.append(reason_of(error))
        return False


def _names_in(directory: Path) -> Sequence[str]:
    """What is in a directory, by name."""
    try:
        return sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        raise CommandFailed(ExitCode.NOT_FOUND, f"there is no directory {directory}") from None
    except NotADirectoryError:
        raise CommandFailed(ExitCode.NOT_FOUND, f"{directory} is not a directory") from None
