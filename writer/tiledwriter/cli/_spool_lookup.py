"""Find the spool directories below a directory, or those of this user on this host."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tiledbroker import default_spool_dir
from tiledbroker._paths import fallback_spool_dir
from tiledbroker.log import FINISHED_SUBDIRECTORY

from ..journals import reason_of, status_of
from ._exit import CommandFailed, ExitCode
from ._run_lookup import Place, runs_in

_OF_A_SPOOL: Final = re.compile(r".*\.segment|.*\.sqlite.*|\.session-.*\.lock|\.adopter-.*\.lock")


@dataclass
class SpoolDirectories:
    """Spool directories, and what could not be read in the search for them.

    Attributes
    ----------
    places
        Directories that were searched.
    directories
        The spool directories in them.
    problems
        Reasons why a directory could not be searched.
    """

    places: list[Place] = field(default_factory=list)
    directories: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def default_spools() -> SpoolDirectories:
    """Return this user's default spools on this host, with those that replace them for homes on a network.

    Raises
    ------
    CommandFailed
        None of the directories exists.
    OSError
        It cannot be determined whether they exist.
    """
    bases = [default_spool_dir(), fallback_spool_dir()]
    found = SpoolDirectories()
    for base in bases:
        if status_of(base) is not None:
            _search_directory(base, found)
            found.places.append(Place(base, "a default spool"))
    if not found.places:
        named = " nor ".join(map(str, bases))
        raise CommandFailed(ExitCode.NOT_FOUND, f"there is no default spool on this host: neither {named} exists")
    return found


def spools_below(base: Path) -> SpoolDirectories:
    """Return the spool directories in and below a directory.

    Raises
    ------
    CommandFailed
        There is no such directory, or it has neither spools nor directories below it.
    OSError
        The directory cannot be read.
    """
    found = SpoolDirectories([Place(base)])
    names = _search_directory(base, found, is_base=True)
    if not found.directories and not found.problems and names:
        # Refuses a directory of something else.
        runs_in(Place(base))
    return found


def _search_directory(base: Path, found: SpoolDirectories, *, is_base: bool = False) -> bool:
    """Add the spool directories in and below a directory, also behind links; return False if it is empty."""
    searched: set[tuple[int, int]] = set()
    waiting = [base]
    has_names = True
    while waiting:
        directory = waiting.pop()
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in searched:
                continue
            searched.add((status.st_dev, status.st_ino))
            paths = sorted(directory.iterdir())
        except OSError as error:
            if is_base and directory is base:
                # Raises the error for a directory that is missing or is none.
                runs_in(Place(directory))
                raise
            found.problems.append(reason_of(error))
            continue
        if directory is base:
            has_names = bool(paths)
        is_spool = any(_OF_A_SPOOL.fullmatch(path.name) for path in paths)
        if is_spool:
            found.directories.append(directory)
            # The files in it are listed with those of its parent.
            paths = [path for path in paths if path.name != FINISHED_SUBDIRECTORY]
        waiting += [path for path in reversed(paths) if _is_directory(path, found)]
    return has_names


def _is_directory(path: Path, found: SpoolDirectories) -> bool:
    """Return True for a directory or a link to one; add a problem if that is not known."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        # A file may just have been shipped. A link that leads nowhere may be a disk that is not mounted.
        if not isinstance(error, FileNotFoundError) or path.is_symlink():
            found.problems.append(reason_of(error))
        return False
