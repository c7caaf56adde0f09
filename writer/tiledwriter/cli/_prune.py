"""`tiledwriter-journal prune`: delete journals of runs that were written to Tiled long ago."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tiledbroker import JournalError, JournalLocked
from tiledbroker.supervisor import time_written

from ..journals import gone, open_run_file, open_run_file_for_writing, reason_of, require_own_name
from ._arguments import add_config, add_directory, add_json
from ._exit import ExitCode
from ._numbers import parse_number
from ._parser import Subcommands, add_command
from ._run_lookup import Place, no_runs_in, place_of, runs_in
from ._terminal import count_of, fail, local, plain, print_json, size_of

_DEFAULT_DAYS: Final = 30.0
_DAY_SECONDS: Final = 24 * 60 * 60.0


@dataclass(frozen=True)
class _Pruned:
    """A journal that was deleted, or would be.

    Attributes
    ----------
    uid
        Uid of the run.
    file
        Path of the journal.
    written
        Unix time in seconds at which the run was written.
    size
        Size of the journal in bytes.
    """

    uid: str
    file: str
    written: float
    size: int


@dataclass
class _Pruning:
    """What became of the journals of a directory.

    Attributes
    ----------
    total
        Number of journals.
    deleted
        The journals that were deleted, or would be.
    problems
        Reasons why journals were kept that perhaps should not have been.
    code
        Exit code.
    """

    total: int
    deleted: list[_Pruned] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    code: ExitCode = ExitCode.OK

    def add_problem(self, code: ExitCode, message: str) -> None:
        self.problems.append(message)
        self.code = code if self.code is not ExitCode.FAILED else self.code
        fail(code, f"kept: {message}")


def add_commands(commands: Subcommands) -> None:
    """Add the command to the command line."""
    prune = add_command(
        commands,
        "prune",
        "delete the journals of written runs",
        examples=(
            "tiledwriter-journal prune --dry-run",
            "tiledwriter-journal prune /var/lib/tiledwriter --older-than 90",
            "tiledwriter-journal prune /var/lib/tiledwriter --older-than 90 --dry-run --json",
        ),
    )
    add_directory(prune, "journal directory")
    prune.add_argument(
        "--older-than",
        type=parse_number,
        default=_DEFAULT_DAYS,
        metavar="DAYS",
        help="only if written longer ago than this (default 30)",
    )
    prune.add_argument("--dry-run", action="store_true", help="list what would be deleted, and delete nothing")
    add_config(prune)
    add_json(prune)
    prune.set_defaults(command=_prune_directory)


def _prune_directory(arguments: argparse.Namespace) -> ExitCode:
    place = place_of(arguments.directory, arguments.config)
    before = time.time() - arguments.older_than * _DAY_SECONDS
    paths = runs_in(place)
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for path in paths:
        by_name[path.name].append(path)
    pruning = _Pruning(len(paths))
    for path in paths:
        try:
            pruned = _prune_journal(path, by_name[path.name], before, dry_run=arguments.dry_run)
        except JournalLocked as error:
            pruning.add_problem(ExitCode.LOCKED, str(error))
            continue
        except (JournalError, OSError) as error:
            if not gone(path):
                pruning.add_problem(ExitCode.FAILED, reason_of(error))
            continue
        if pruned is not None:
            pruning.deleted.append(pruned)
            if not arguments.json:
                print(plain(f"{pruned.uid}  written {local(pruned.written)}"))
    if arguments.json:
        print_json(_as_dict(pruning, place, dry_run=arguments.dry_run))
    else:
        print(plain(_summary_line(pruning, place, dry_run=arguments.dry_run)))
    return pruning.code


def _as_dict(pruning: _Pruning, place: Place, *, dry_run: bool) -> dict[str, Any]:
    return {
        "directory": str(place.path),
        "dry_run": dry_run,
        "deleted": [asdict(pruned) for pruned in pruning.deleted],
        "kept": pruning.total - len(pruning.deleted),
        "problems": pruning.problems,
    }


def _summary_line(pruning: _Pruning, place: Place, *, dry_run: bool) -> str:
    if not pruning.total:
        return f"{no_runs_in(place)}: nothing to delete"
    done = "Would delete" if dry_run else "Deleted"
    journals = count_of(pruning.total, "journal")
    size = size_of(sum(pruned.size for pruned in pruning.deleted))
    count = len(pruning.deleted)
    return f"{done} {count} of {journals} in {place} ({size}); {pruning.total - count} kept."


def _prune_journal(path: Path, files: Sequence[Path], before: float, *, dry_run: bool) -> _Pruned | None:
    """Delete a journal if it is old enough and no longer needed.

    Parameters
    ----------
    path
        The journal.
    files
        All files of its run.
    before
        Unix time in seconds; later runs are kept.
    dry_run
        Delete nothing.

    Returns
    -------
    _Pruned or None
        The deleted journal; None if it is kept.

    Raises
    ------
    JournalError
        It is not certain that nobody needs the file, or it cannot be used.
    OSError
        It cannot be read or deleted.
    """
    with open_run_file(path) as journal:
        require_own_name(journal)
        written = time_written(journal)
        if written is None or written > before:
            return None
        if path.is_symlink():
            raise JournalError(path, "it is a link; neither it nor what it leads to is deleted.")
        for other in files:
            if other != path:
                # This one may be the only one that is complete: somebody must look which of them is needed.
                raise JournalError(path, f"{other} is another file of this run; neither is deleted.")
        pruned = _Pruned(journal.run_uid, str(journal.path), written, path.stat().st_size)
    if dry_run:
        return pruned
    with open_run_file_for_writing(path) as journal:
        # Documents may have arrived for the run before the journal was locked.
        if time_written(journal) != written:
            return None
        journal.remove()
    return pruned
