"""Arguments that several subcommands share: UID, DIR, --config and --json."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..journals import status_of
from ._completion import complete_runs, complete_with
from ._run_lookup import Place, looks_like_path, place_of

_WHERE = "(default: TILEDWRITER_JOURNAL_DIR, else the journal_dir of --config, else the user's state directory)"


def add_run(command: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the argument UID."""
    action = command.add_argument(
        "run",
        nargs="?" if optional else None,
        metavar="UID",
        help="the run's uid, a prefix of it, or a journal file",
    )
    complete_with(action, complete_runs)


def add_directory(command: argparse.ArgumentParser, kinds: str = "journal or spool directory") -> None:
    """Add the optional argument DIR."""
    command.add_argument("directory", nargs="?", type=Path, metavar="DIR", help=f"{kinds} {_WHERE}")


def add_config(command: argparse.ArgumentParser, purpose: str = "the supervisor's configuration") -> None:
    """Add the option `--config`. Of several targets, FILE:TARGET names one; see `split_target`."""
    command.add_argument("--config", type=Path, metavar="FILE", help=purpose)


def add_json(
    command: argparse.ArgumentParser,
    failure: Callable[[argparse.Namespace, str], Any] = lambda _, message: {"error": message},
    *,
    in_lines: bool = False,
) -> None:
    """Add the flag `--json`.

    Parameters
    ----------
    command
        The subcommand.
    failure
        Called with the arguments and a message when the command fails; returns what is printed then.
    in_lines
        The output is JSON lines instead of one JSON text.
    """
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.set_defaults(json_failure=failure, json_lines=in_lines)


def run_and_place(arguments: argparse.Namespace) -> tuple[str, Place]:
    """Return the run and the directory that UID and DIR name, in either order.

    Raises
    ------
    CommandFailed
        The configuration cannot be used.
    OSError
        It cannot be determined whether an argument is a directory.
    """
    run: str = arguments.run
    directory: Path | None = arguments.directory
    if directory is not None and _are_swapped(run, str(directory)):
        run, directory = str(directory), Path(run)
    return run, place_of(directory, arguments.config)


def _are_swapped(run: str, directory: str) -> bool:
    """Return True if the first of two words is a directory, and the second can only be a run."""
    if os.sep in directory and not looks_like_path(directory):
        return False
    return is_directory(run) and not is_directory(directory)


def is_directory(name: str) -> bool:
    """Return True if there is a directory of this name; raise OSError if that cannot be determined."""
    status = status_of(Path(name))
    return status is not None and stat.S_ISDIR(status.st_mode)
