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
"""

_EXAMPLES = """\
examples:
  tiledwriter-supervisor status --journal-dir /var/lib/tiledwriter
  tiledwriter-supervisor status --config /etc/tiledwriter/config.yaml --watch
  tiledwriter-supervisor status --journal-dir /var/lib/tiledwriter --json

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
        "--watch", action="store_true", help=f"show it again every {REFRESH_SECONDS:g} seconds, until Ctrl-C"
    )
    command.set_defaults(command=show_status)


def show_status(arguments: argparse.Namespace) -> int:
    """Print the status once, or until Ctrl-C with `--watch`."""
    take_any_text()
    try:
        directory = find_journal_dir(arguments.journal_dir, arguments.config)
    except ValueError as error:
        print(f"tiledwriter-supervisor status: {plain(str(error))}", file=sys.stderr)
        return ExitCode.USAGE
    try:
        if arguments.json:
            return _print_json(directory, repeat=arguments.watch)
        return _watch(directory) if arguments.watch else _print_once(directory)
    except KeyboardInterrupt:
        discard_output()
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return ExitCode.BROKEN_PIPE


def find_journal_dir(given: Path | None, config: Path | None) -> Path:
    """Return the journal directory: as given, of the environment, of a configuration file, or the default.

    The other settings of the file are not read: this takes a fraction of the time, and they may be unreadable here.

    Raises
    ------
    ValueError
        The configuration file cannot be read.
    """
    if given is not None:
        return given.expanduser()
    if configured := os.environ.get("TILEDWRITER_JOURNAL_DIR"):
        return Path(configured).expanduser()
    return default_journal_dir() if config is None else _read_journal_dir(config)


def _read_journal_dir(config: Path) -> Path:
    import yaml

    try:
        settings = yaml.safe_load(config.read_text())
    except OSError as error:
        raise ValueError(f"the configuration file {config} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{config} is not a YAML mapping of settings")  # noqa: TRY004  the user's value, not a type
    directory = settings.get("journal_dir")
    if directory is None:
        return default_journal_dir()
    if not isinstance(directory, str):
        raise ValueError(f"{config}: journal_dir is not a path")  # noqa: TRY004
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


def _print_json(directory: Path, *, repeat: bool) -> StatusCode:
    code = StatusCode.FAILED
    for _ in _repeat_forever() if repeat else range(1):
        code, _, found = _look(directory)
        print(found.decode() if isinstance(found, bytes) else json.dumps(found))
        flush_output()
    return code


def _print_once(directory: Path) -> StatusCode:
    code, picture, _ = _look(directory)
    console = make_console()
    if console.is_terminal:
        console.print(picture)
    else:
        with console.capture() as captured:
            console.print(picture)
        print("\n".join(line.rstrip() for line in captured.get().splitlines()))
    flush_output()
    return code


def _watch(directory: Path) -> StatusCode:
    from rich.live import Live

    console = make_console()
    if not console.is_terminal:
        for _ in _repeat_forever():
            _print_once(directory)
            print()
    picture: RenderableType = ""
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for _ in _repeat_forever():
                _, picture, _ = _look(directory)
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
