"""`tiledwriter-supervisor status`: ask the running supervisor whether the service is well."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from .._given_path import path_of
from ._exit import CommandFailed, ExitCode, report_failure
from ._run_lookup import place_of, target_configs
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
  supervisor does not answer; also wrong usage, and if this command itself fails; 3 no supervisor uses the directory;
  130 ended by Ctrl-C
"""


class StatusCode(IntEnum):
    """Exit code of the command."""

    WELL = 0
    DEGRADED = 1
    FAILED = 2
    NO_SUPERVISOR = 3


# What was found: the exit code, the picture, and the JSON, as it came or in JSON types.
_Found: TypeAlias = "tuple[StatusCode, RenderableType, dict[str, Any] | bytes]"

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
        look = partial(_look_whether_served if arguments.serves else _look_at_all, directories)
        code = _watch(look, as_json=arguments.json) if arguments.watch else _print_once(look, as_json=arguments.json)
    except KeyboardInterrupt:
        discard_output()
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return ExitCode.BROKEN_PIPE
    except Exception as error:
        # Python would exit with 1, which is "degraded".
        return _report_failure(error, as_json=arguments.json)
    return code


def _report_failure(error: Exception, *, as_json: bool) -> StatusCode:
    """Report that there is no answer, with `--json` also as JSON."""
    message = str(error) if isinstance(error, CommandFailed | OSError) else f"{type(error).__name__}: {error}"
    try:
        if as_json:
            print(json.dumps(_describe_absence("failed", message)))
        flush_output()
    except OSError:
        # Standard output cannot be written, which is probably also the reason of the failure.
        discard_output()
    return report_failure(StatusCode.FAILED, plain(message), "tiledwriter-supervisor status")


def find_journal_dirs(given: Path | None, config: Path | None) -> dict[str, Path]:
    """Return the journal directories of all targets by name; of a service without targets, the only one under "".

    A directory is taken as given, or read from the settings as the service does.

    Raises
    ------
    CommandFailed
        The directory or the settings cannot be used.
    """
    if given is not None:
        try:
            return {"": path_of(given)}
        except ValueError as error:
            raise CommandFailed(ExitCode.USAGE, f"--journal-dir: {error}") from error
    configs: list[Path | None] = [*target_configs(config)] or [config]
    return {split_target(each)[1]: place_of(None, each).path for each in configs}


def _look(directory: Path) -> _Found:
    """Ask once, and return the exit code, the picture, and the JSON."""
    from tiledbroker._errors import NoSupervisor, SupervisorSilent
    from tiledbroker.supervisor import read_snapshot_and_text

    from ._status_table import draw_absence, draw_snapshot

    try:
        snapshot, text = read_snapshot_and_text(directory)
    except NoSupervisor as error:
        return StatusCode.NO_SUPERVISOR, draw_absence(str(error)), _describe_absence(None, str(error))
    except SupervisorSilent as error:
        return StatusCode.FAILED, draw_absence(str(error)), _describe_absence("failed", str(error))
    return StatusCode[snapshot.state.upper()], draw_snapshot(snapshot), text


def _describe_absence(state: str | None, reason: str) -> dict[str, Any]:
    return {"schema": 1, "state": state, "reasons": [reason]}


def _look_at_all(directories: dict[str, Path]) -> _Found:
    """Ask all supervisors once, and return the worst exit code, one picture, and the JSON: an object per target."""
    from rich.console import Group

    looks = {name: _look(directory) for name, directory in directories.items()}
    if list(looks) == [""]:
        return looks[""]
    code = max((code for code, _, _ in looks.values()), key=_BADNESS.index)
    pictures = [(f"target {name}: {directories[name]}", picture, "") for name, (_, picture, _) in looks.items()]
    found = {name: json.loads(text) if isinstance(text, bytes) else text for name, (_, _, text) in looks.items()}
    return code, Group(*(part for parts in pictures for part in parts)), {"schema": 1, "targets": found}


def _look_whether_served(directories: dict[str, Path]) -> _Found:
    """Ask whether this host serves all targets; `serves` is None if one of them gives no answer."""
    from tiledbroker._errors import NoSupervisor, SupervisorSilent
    from tiledbroker.supervisor import read_snapshot

    code, text = StatusCode.WELL, "This host serves."
    serves: bool | None = True
    for directory in directories.values():
        try:
            lease = read_snapshot(directory).lease
        except NoSupervisor as error:
            code, text, serves = StatusCode.NO_SUPERVISOR, str(error), False
        except SupervisorSilent as error:
            code, text, serves = StatusCode.FAILED, str(error), None
        else:
            if lease is not None and not lease.held:
                code, text, serves = StatusCode.DEGRADED, "This host stands by.", False
        if code is not StatusCode.WELL:
            break
    return code, plain(text), {"schema": 1, "serves": serves, "reasons": [] if serves else [text]}


def _print_once(look: Callable[[], _Found], *, as_json: bool) -> StatusCode:
    code, picture, found = look()
    if as_json:
        print(found.decode() if isinstance(found, bytes) else json.dumps(found))
    elif isinstance(picture, str):
        print(picture)
    else:
        _print_picture(picture)
    flush_output()
    return code


def _print_picture(picture: RenderableType) -> None:
    console = make_console()
    if console.is_terminal:
        console.print(picture)
        return
    with console.capture() as captured:
        console.print(picture)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _watch(look: Callable[[], _Found], *, as_json: bool) -> StatusCode:
    from rich.live import Live

    console = make_console()
    if as_json or not console.is_terminal:
        for _ in _repeat_forever():
            _print_once(look, as_json=as_json)
            if not as_json:
                print()
    picture: RenderableType = ""
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for _ in _repeat_forever():
                _, picture, _ = look()
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
