"""`tiledwriter-supervisor status`: ask the running supervisor whether the service is well."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tiledbroker import default_journal_dir

from ._exit import ExitCode
from ._target_name import split_target
from ._terminal import discard_output, flush_output, plain, take_any_text

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from rich.console import Console, RenderableType

REFRESH_SECONDS: Final = 2.0
"""Pause between two pictures of `--watch`."""

# Columns of a table that goes to a file or a pipe, where nothing is to be cut.
_WIDE_COLUMNS: Final = 2_000

_DESCRIPTION = """\
Ask the running supervisor of a journal directory whether data are safe, whether they get into Tiled, and what needs
attention. The supervisor answers over a socket in the directory, so run this on its host and as its user.

The directory is --journal-dir, or else TILEDWRITER_JOURNAL_DIR, that of --config, or the user's state directory.
If the configuration has several targets, each is shown; --config FILE:TARGET shows one of them.
"""

_EXAMPLES = """\
examples:
  tiledwriter-supervisor status --journal-dir /var/lib/tiledwriter
  tiledwriter-supervisor status --config /etc/tiledwriter/config.yaml --watch
  tiledwriter-supervisor status --journal-dir /var/lib/tiledwriter --json
  tiledwriter-supervisor status --journal-dir /var/lib/tiledwriter --serves

exit codes, as monitoring checks take them:
  0 well; 1 degraded: something needs attention, or Tiled is away; 2 failed: the service cannot do its work, or its
  supervisor does not answer; also wrong usage; 3 no supervisor uses the directory; 130 ended by Ctrl-C
"""


class StatusCode(IntEnum):
    """Exit code of the command."""

    WELL = 0
    DEGRADED = 1
    FAILED = 2
    NO_SUPERVISOR = 3


# From well to what needs help first.
_BADNESS: Final = (StatusCode.WELL, StatusCode.DEGRADED, StatusCode.NO_SUPERVISOR, StatusCode.FAILED)


def add_command(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "status",
        help="ask the running supervisor whether the service is well",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Without a default, the same options before the word "status" are not overridden.
    command.add_argument(
        "--journal-dir", type=Path, metavar="DIR", default=argparse.SUPPRESS, help="directory of the journals"
    )
    command.add_argument(
        "--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="the supervisor's configuration"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.add_argument(
        "--serves",
        action="store_true",
        help="say only whether this host serves, and exit with 1 if it stands by: for a check of a service address",
    )
    command.add_argument(
        "--watch", action="store_true", help=f"show it again every {REFRESH_SECONDS:g} seconds, until Ctrl-C"
    )
    command.set_defaults(command=show_status)


def show_status(arguments: argparse.Namespace) -> int:
    """Print the status once, or until Ctrl-C with `--watch`."""
    take_any_text()
    try:
        directories = find_journal_dirs(arguments.journal_dir, arguments.config)
    except ValueError as error:
        print(f"tiledwriter-supervisor status: {plain(str(error))}", file=sys.stderr)
        return ExitCode.USAGE
    try:
        if arguments.serves:
            return _print_whether_served(directories)
        if arguments.json:
            return _print_json(directories, repeat=arguments.watch)
        return _watch(directories) if arguments.watch else _print_once(directories)
    except KeyboardInterrupt:
        discard_output()
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return ExitCode.BROKEN_PIPE


def find_journal_dirs(given: Path | None, config: Path | None) -> dict[str, Path]:
    """Return the journal directories of all targets by name; of a service without targets, the only one under "".

    A directory is taken as given, of the environment, of a configuration file, or the default. The other settings of
    the file are not read: this takes a fraction of the time, and they may be unreadable here.

    Raises
    ------
    ValueError
        The configuration file cannot be read, or has no such target.
    """
    if given is not None:
        return {"": given.expanduser()}
    configured = os.environ.get("TILEDWRITER_JOURNAL_DIR")
    if config is None:
        return {"": Path(configured).expanduser() if configured else default_journal_dir()}
    file, target = split_target(config)
    settings = _read_file(file or config)
    common = Path(configured).expanduser() if configured else _directory_in(settings, file) or default_journal_dir()
    sections = settings.get("targets") or {}
    if not sections and not target:
        return {"": common}
    if not isinstance(sections, dict) or not all(isinstance(section, dict) for section in sections.values()):
        raise ValueError(f"{file}: targets is not a mapping of names to settings")
    if target and target not in sections:
        raise ValueError(f"{file} has no target {target} (its targets: {', '.join(sections) or 'none'})")
    directories = {name: _directory_in(section, file) or common / name for name, section in sections.items()}
    return {target: directories[target]} if target else directories


def _read_file(config: Path) -> dict[str, Any]:
    import yaml

    try:
        settings = yaml.safe_load(config.read_text())
    except OSError as error:
        raise ValueError(f"the configuration file {config} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{config} is not a YAML mapping of settings")  # noqa: TRY004  the user's value, not a type
    return settings


def _directory_in(settings: dict[str, Any], config: Path | None) -> Path | None:
    directory = settings.get("journal_dir")
    if directory is None:
        return None
    if not isinstance(directory, str):
        raise ValueError(f"{config}: journal_dir is not a path")  # noqa: TRY004  the user's value, not a type
    return Path(directory).expanduser()


def _look(directory: Path) -> tuple[StatusCode, RenderableType, dict[str, Any] | bytes]:
    """Ask once, and return the exit code, the picture, and the JSON."""
    from tiledbroker._errors import NoSupervisor, SupervisorSilent
    from tiledbroker.supervisor import read_snapshot_and_text

    from ._status_table import draw_absence, draw_snapshot

    try:
        snapshot, text = read_snapshot_and_text(directory)
    except NoSupervisor as error:
        return StatusCode.NO_SUPERVISOR, draw_absence(str(error)), _describe_absence(None, error)
    except SupervisorSilent as error:
        return StatusCode.FAILED, draw_absence(str(error)), _describe_absence("failed", error)
    return StatusCode[snapshot.state.upper()], draw_snapshot(snapshot), text


def _describe_absence(state: str | None, error: Exception) -> dict[str, Any]:
    return {"schema": 1, "state": state, "reasons": [str(error)]}


def _look_at_all(directories: dict[str, Path]) -> tuple[StatusCode, RenderableType, Any]:
    """Ask all supervisors once, and return the worst exit code, one picture, and the JSON: an object per target."""
    from rich.console import Group

    looks = {name: _look(directory) for name, directory in directories.items()}
    if list(looks) == [""]:
        return looks[""]
    code = max((code for code, _, _ in looks.values()), key=_BADNESS.index)
    pictures = [(f"target {name}: {directories[name]}", picture, "") for name, (_, picture, _) in looks.items()]
    found = {name: json.loads(text) if isinstance(text, bytes) else text for name, (_, _, text) in looks.items()}
    return code, Group(*(part for parts in pictures for part in parts)), {"schema": 1, "targets": found}


def _print_whether_served(directories: dict[str, Path]) -> StatusCode:
    """Print what keeps this host from serving, if something does."""
    from tiledbroker._errors import NoSupervisor, SupervisorSilent
    from tiledbroker.supervisor import read_snapshot

    for directory in directories.values():
        try:
            lease = read_snapshot(directory).lease
        except NoSupervisor as error:
            print(plain(str(error)))
            return StatusCode.NO_SUPERVISOR
        except SupervisorSilent as error:
            print(plain(str(error)))
            return StatusCode.FAILED
        if lease is not None and not lease.held:
            print("This host stands by.")
            return StatusCode.DEGRADED
    print("This host serves.")
    return StatusCode.WELL


def _print_json(directories: dict[str, Path], *, repeat: bool) -> StatusCode:
    code = StatusCode.FAILED
    for _ in _repeat_forever() if repeat else range(1):
        code, _, found = _look_at_all(directories)
        print(found.decode() if isinstance(found, bytes) else json.dumps(found))
        flush_output()
    return code


def _print_once(directories: dict[str, Path]) -> StatusCode:
    code, picture, _ = _look_at_all(directories)
    console = make_console()
    if console.is_terminal:
        console.print(picture)
    else:
        with console.capture() as captured:
            console.print(picture)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    flush_output()
    return code


def _watch(directories: dict[str, Path]) -> StatusCode:
    from rich.live import Live

    console = make_console()
    if not console.is_terminal:
        for _ in _repeat_forever():
            _print_once(directories)
            print()
    picture: RenderableType = ""
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for _ in _repeat_forever():
                _, picture, _ = _look_at_all(directories)
                live.update(picture, refresh=True)
    finally:
        # The last picture stays after the full screen is gone.
        console.print(picture)
    raise AssertionError("unreachable")


def _repeat_forever() -> Iterator[None]:
    while True:
        yield
        time.sleep(REFRESH_SECONDS)


def make_console() -> Console:
    """Return the console: as wide as the terminal, without colours and cuts if the output is none."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDE_COLUMNS
    return Console(width=width, highlight=False, markup=False, emoji=False)
