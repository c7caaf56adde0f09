"""Find the run files that a command's arguments name: by directory, uid or file.

A run is reported as missing only if the system says so; a path that may not be read raises an error instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tiledbroker import JournalError, default_journal_dir, journal_filename, labelled_run_files, run_files
from tiledbroker.log import (
    FINISHED_SUBDIRECTORY,
    SUPERSEDED_SUBDIRECTORY,
    follow_run_file,
    is_named_after_run,
    is_run_file,
)

from .._given_path import path_of
from ..journals import file_stem, gone, misnaming_of, open_run_file, reason_of, status_of
from ._exit import CommandFailed, ExitCode, print_error, without_extra
from ._target_name import split_target
from ._terminal import plain
from ._variables import variable_of

if TYPE_CHECKING:
    from .._config import Settings

_LABEL_CHARACTERS: Final = 8
_HASHED: Final = "sha256-"
"""Prefix of file names that are a digest of the uid instead of the uid itself."""
_SUFFIXES: Final = (".sqlite", ".segment")
_TYPEABLE: Final = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]*")
_OURS: Final = re.compile(
    r"_unrouted.*|\.supervisor\.lock|\.workers\.ipc|\.status\.ipc|\.relay\.ipc|\.lease-.*|\.tiled-keys\..*|finished|superseded|retry|.*\.sqlite.*|.*\.segment|\.session-.*\.lock|\.adopter-.*"
)
"""Pattern of all names that occur in journal and spool directories."""


class Place(NamedTuple):
    """Directory that a command looks at. As text it says where an unnamed directory comes from.

    Attributes
    ----------
    path
        The directory.
    source
        Setting that names the directory; "" if it was given on the command line.
    """

    path: Path
    source: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.source})" if self.source else str(self.path)


def place_of(directory: Path | None, config: Path | None = None) -> Place:
    """Return the given directory, else TILEDWRITER_JOURNAL_DIR, else that of a configuration, else the default one.

    Parameters
    ----------
    directory
        Directory from the command line.
    config
        Path of the supervisor's configuration file, if any. It is read only if no directory is given.

    Raises
    ------
    CommandFailed
        The configuration or the variable cannot be used.
    """
    if directory is not None:
        return Place(directory)
    variable = variable_of("journal_dir")
    if config is not None:
        settings, is_target = _read_configuration(config)
        return Place(settings.journal_dir, _name_source(settings, config, variable, is_target=is_target))
    if variable is None:
        return Place(default_journal_dir(), "the default journal directory")
    try:
        return Place(path_of(os.environ[variable]), f"from {variable}")
    except ValueError as error:
        raise CommandFailed(ExitCode.USAGE, f"{variable}: {error}") from error


def _name_source(settings: Settings, config: Path, variable: str | None, *, is_target: bool) -> str:
    """Return where the journal directory of a configuration comes from."""
    if is_target:
        return f"the journals of {config}"
    if variable is not None:
        return f"from {variable}"
    is_set = "journal_dir" in settings.model_fields_set
    return f"journal_dir in {config}" if is_set else f"the default; {config} has no journal_dir"


def target_configs(config: Path | None) -> list[Path]:
    """Return a configuration with each of its targets, as FILE:TARGET; nothing if it has none, or names one of them.

    Raises
    ------
    CommandFailed
        The configuration cannot be read.
    """
    file, target = split_target(config)
    if file is None or target:
        return []
    try:
        from ._sources import ConfigFile, SettingSources, WrongConfiguration
    except ImportError as error:
        raise without_extra(error) from error
    try:
        return [Path(f"{file}:{name}") for name in SettingSources(ConfigFile.read(file), {}, ()).targets]
    except WrongConfiguration as error:
        raise CommandFailed(ExitCode.USAGE, str(error)) from error


def _read_configuration(config: Path) -> tuple[Settings, bool]:
    """Return the settings of a configuration, and whether they are those of one of its targets."""
    try:
        from .._config import PluginCheck
        from ._settings import WrongConfiguration, read_settings
    except ImportError as error:
        raise without_extra(error) from error
    try:
        loaded = read_settings(config, {}, server=False, plugins=PluginCheck.NONE)
    except WrongConfiguration as error:
        raise CommandFailed(ExitCode.USAGE, str(error)) from error
    loaded.warn()
    return loaded.values, bool(loaded.sources.target)


def label_of(uid: str) -> str:
    """Return the beginning of a run's uid, or of its file name if the uid is hard to type; `find` accepts both."""
    return (
        uid[:_LABEL_CHARACTERS]
        if _TYPEABLE.fullmatch(uid[:_LABEL_CHARACTERS])
        else journal_filename(uid)[: len(_HASHED) + _LABEL_CHARACTERS]
    )


def label_of_file(path: Path) -> str:
    """Return what `find` accepts for a run, by the name of its file: the uid, or the beginning of a digest of it."""
    stem = file_stem(path)
    return stem[: len(_HASHED) + _LABEL_CHARACTERS] if stem.startswith(_HASHED) else stem


def runs_in(place: Place) -> list[Path]:
    """Return the run files in a journal or spool directory, sorted by name.

    Raises
    ------
    CommandFailed
        There is no such directory, or it contains only files that do not belong to a journal or spool directory.
    OSError
        The directory cannot be read.
    """
    names = _names_in(place)
    if names and not any(_OURS.fullmatch(name) for name in names):
        files = f"its {len(names)} files do" if len(names) > 1 else "its only file does"
        raise CommandFailed(
            ExitCode.NOT_FOUND,
            f"{place} is neither a journal nor a spool directory: {files} not belong to tiledwriter",
        )
    return run_files(place.path)


def labelled_runs_in(place: Place) -> dict[str, Path]:
    """Return the run files of `runs_in` by a label that stays the same when the file is renamed."""
    runs_in(place)
    return labelled_run_files(place.path)


def superseded_in(directory: Path) -> list[Path]:
    """Return the unfinished journals that a supervisor has set aside in a journal directory.

    Raises
    ------
    OSError
        They cannot be looked for.
    """
    folder = directory / SUPERSEDED_SUBDIRECTORY
    try:
        folders = sorted(folder.iterdir())
    except FileNotFoundError:
        # A link that leads nowhere is a disk that is not mounted, and what is on it is not known.
        if folder.is_symlink():
            raise
        return []
    return [path for start in folders for path in sorted(start.iterdir()) if is_run_file(path.name)]


def relocated(path: Path, directory: Path) -> Path | None:
    """Return the new path of a listed file that was moved; None if it was not moved or was deleted."""
    if not gone(path):
        return None
    directory = directory.parent if directory.name == FINISHED_SUBDIRECTORY else directory
    return next((other for other in run_files(directory) if other.name == path.name), None)


def no_runs_in(place: Place | str) -> str:
    """Return the message for a directory, which has been read, without runs."""
    return f"no runs in {place}"


def find(run: str, place: Place) -> Path:
    """Return the file of a run.

    Parameters
    ----------
    run
        Path of the run's file, its uid, or the beginning of either the uid or the file name.
    place
        Directory to search for a uid.

    Raises
    ------
    CommandFailed
        No run matches, several match, the run has several files and not one at the top, a run that might match
        cannot be read, or the file is that of another run.
    OSError
        The directory or the file cannot be accessed.
    """
    if looks_like_path(run) and status_of(file := follow_run_file(Path(run)), follow_symlinks=False) is not None:
        return file
    no_path = f"there is no file or directory {run}; " if os.sep in run else ""
    try:
        paths = runs_in(place)
    except CommandFailed as error:
        raise CommandFailed(error.code, f"{no_path}{error}") from error
    stem = Path(journal_filename(run)).stem
    exact = [path for path in paths if file_stem(path) == stem]
    refusals: list[str] = []
    found = exact or [path for path in paths if run and _begins_with(path, run, refusals)]
    stems = {file_stem(path) for path in found}
    if len(stems) > 1:
        problem = f"{len(stems)} runs in {place} begin with {run!r}; give more of the uid"
        raise CommandFailed(ExitCode.USAGE, problem)
    if refusals:
        readable = (
            f"{found[0].name} in {place} may not be the only run that begins with"
            if found
            else f"no readable run in {place} is"
        )
        problem = f"{readable} {run!r}, and some cannot be read: {'; '.join(refusals)}"
        raise CommandFailed(ExitCode.FAILED, problem)
    if found:
        path = _choose_file(found, place)
        _require_own_name(path)
        return path
    raise CommandFailed(ExitCode.NOT_FOUND, f"{no_path}there is no run {run!r} in {place}")


def _choose_file(files: Sequence[Path], place: Place) -> Path:
    """Return the file at the top of a directory, which is what the service uses, and name the others of the run."""
    if len(files) == 1:
        return files[0]
    at_top = [path for path in files if path.parent == place.path]
    if len(at_top) != 1:
        listed = ", ".join(map(str, files))
        raise CommandFailed(ExitCode.USAGE, f"there are {len(files)} files of this run; give the path of one: {listed}")
    for path in files:
        if path != at_top[0]:
            print_error(plain(f"tiledwriter-journal: {at_top[0]} is used; there is another file of this run: {path}"))
    return at_top[0]


def _require_own_name(path: Path) -> None:
    """Raise `CommandFailed` if a file is that of another run than its name says."""
    try:
        with open_run_file(path) as journal:
            problem = misnaming_of(journal)
    except (JournalError, OSError):
        # The command that opens the file for its own ends reports that it cannot be read.
        return
    if problem:
        raise CommandFailed(ExitCode.FAILED, f"{path}: {problem}; give its path to look at it all the same")


def looks_like_path(run: str) -> bool:
    """Return True if a run is given by the name of its file."""
    return run.endswith(_SUFFIXES)


def _begins_with(path: Path, run: str, refusals: list[str]) -> bool:
    """Return True if the file name begins with `run`, or if the uid does and is not in the name.

    If the file cannot be read, append the reason to `refusals` and return False.
    """
    if path.name.startswith(run):
        return True
    if not path.name.startswith(_HASHED) and is_named_after_run(path.name):
        return False
    try:
        with open_run_file(path) as journal:
            return journal.run_uid.startswith(run)
    except (JournalError, OSError) as error:
        if not gone(path):
            refusals.append(reason_of(error))
        return False


def _names_in(place: Place) -> Sequence[str]:
    """Return the names in a directory, sorted; raise `CommandFailed` if there is no such directory."""
    try:
        return sorted(path.name for path in place.path.iterdir())
    except FileNotFoundError:
        raise CommandFailed(ExitCode.NOT_FOUND, f"there is no directory {place}") from None
    except NotADirectoryError:
        raise CommandFailed(ExitCode.NOT_FOUND, f"{place} is not a directory") from None
