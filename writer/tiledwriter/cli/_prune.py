"""`tiledwriter-journal prune`: delete journals of runs that were written to Tiled long ago."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Final

from tiledbroker import JournalError, JournalLocked
from tiledbroker.supervisor import time_written

from ..journals import gone, open_run_file, open_run_file_for_writing, reason_of
from ._exit import ExitCode
from ._run_lookup import directory_of, no_runs_in, runs_in
from ._terminal import count_of, fail, local, plain

_DEFAULT_DAYS: Final = 30.0
_DAY_SECONDS: Final = 24 * 60 * 60.0


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    prune = commands.add_parser("prune", help="delete the journals of written runs")
    prune.add_argument(
        "directory",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="journal directory (default: TILEDWRITER_JOURNAL_DIR, or the user's state directory)",
    )
    prune.add_argument(
        "--older-than",
        type=float,
        default=_DEFAULT_DAYS,
        metavar="DAYS",
        help="only if written longer ago than this (default 30)",
    )
    prune.add_argument("--dry-run", action="store_true", help="list what would be deleted, and delete nothing")
    prune.set_defaults(command=_prune_directory)


def _prune_directory(arguments: argparse.Namespace) -> ExitCode:
    directory = directory_of(arguments.directory)
    before = time.time() - arguments.older_than * _DAY_SECONDS
    paths = runs_in(directory)
    if not paths:
        print(plain(f"{no_runs_in(directory)}: nothing to delete"))
        return ExitCode.OK
    code, count, size = ExitCode.OK, 0, 0
    for path in paths:
        try:
            pruned = _prune_journal(path, before, dry_run=arguments.dry_run)
        except JournalLocked as error:
            code = code or fail(ExitCode.LOCKED, f"kept: {error}")
            continue
        except (JournalError, OSError) as error:
            if not gone(path):
                code = fail(ExitCode.FAILED, f"kept: {reason_of(error)}")
            continue
        if pruned:
            count, size = count + 1, size + pruned[0]
            print(plain(pruned[1]))
    done = "Would delete" if arguments.dry_run else "Deleted"
    kept = len(paths) - count
    print(
        plain(
            f"{done} {count} of {count_of(len(paths), 'journal')} in {directory} ({size / 2**20:.1f} MiB); {kept} kept."
        )
    )
    return code


def _prune_journal(path: Path, before: float, *, dry_run: bool) -> tuple[int, str] | None:
    """Delete a journal if it is old enough and no longer needed.

    Parameters
    ----------
    path
        The journal.
    before
        Unix time in seconds; later runs are kept.
    dry_run
        Delete nothing.

    Returns
    -------
    tuple of int and str, or None
        Size of the file in bytes and a line for the output; None if the journal is kept.
    """
    with open_run_file(path) as journal:
        written = time_written(journal)
        line = f"{journal.run_uid}  written {local(written)}"
        if written is None or written > before:
            return None
    size = path.stat().st_size
    if dry_run:
        return size, line
    with open_run_file_for_writing(path) as journal:
        # Documents may have arrived for the run before the journal was locked.
        if time_written(journal) != written:
            return None
        journal.remove()
    return size, line
