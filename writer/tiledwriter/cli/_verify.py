"""`tiledwriter-journal verify`: check journals, and compare their runs with Tiled."""

from __future__ import annotations

import argparse
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tiledbroker._outcomes import WRITTEN

from ..journals import STATES, UNREADABLE, gone, status_of
from ._arguments import add_config, add_json
from ._completion import complete_runs, complete_with
from ._exit import CommandFailed, ExitCode, without_extra
from ._parser import Subcommands, add_command
from ._progress import shown_progress
from ._run_lookup import Place, find, looks_like_path, no_runs_in, place_of, relocated, runs_in
from ._terminal import count_of, fail, plain, print_json

if TYPE_CHECKING:
    from .._config import Settings
    from ..catalog import Connection
    from ..mapping import WritingOptions
    from ..verify import Verification

NO_JOURNAL: Final = "no journal"
_MAX_RUNS_NAMED: Final = 10


class _Subject(NamedTuple):
    """Runs to verify.

    Attributes
    ----------
    files
        Files of the runs.
    places
        Directories of these files, separated by commas, for messages.
    whole
        True if these are all runs of the directories.
    """

    files: Sequence[Path]
    places: str
    whole: bool


def add_commands(commands: Subcommands) -> None:
    """Add the command to the command line."""
    verify = add_command(
        commands,
        "verify",
        "check journals, and compare their runs with Tiled",
        examples=(
            "tiledwriter-journal verify",
            "tiledwriter-journal verify /var/lib/tiledwriter --config /etc/tiledwriter/config.yaml",
            "tiledwriter-journal verify 3f2b /var/lib/tiledwriter --json",
        ),
    )
    runs = verify.add_argument(
        "runs",
        nargs="*",
        metavar="UID|DIR|FILE",
        help="runs, looked up in the directories given; all runs of a directory; or journal files "
        "(default: all runs in TILEDWRITER_JOURNAL_DIR, else in the journal_dir of --config, else in the user's state "
        "directory)",
    )
    complete_with(runs, complete_runs)
    server = verify.add_mutually_exclusive_group()
    server.add_argument("--tiled", metavar="URI", help="compare with this Tiled server, or a container in it")
    server.add_argument("--profile", metavar="NAME", help="a profile of Tiled's client, instead of --tiled")
    add_config(verify)
    add_json(verify, lambda _, message: [_failure_entry(message)])
    verify.set_defaults(command=_verify_runs)


def _verify_runs(arguments: argparse.Namespace) -> ExitCode:
    try:
        from .._errors import ServerError
        from ..verify import runs_without_journal
        from ._settings import WrongConfiguration
    except ImportError as error:
        raise without_extra(error) from error
    subject = _subject_of(arguments.runs, arguments.config)
    if not subject.files:
        raise CommandFailed(ExitCode.NOT_FOUND, f"nothing was verified: {no_runs_in(subject.places)}")
    results: list[Verification] = []
    unknown: list[str] = []
    try:
        settings, connection = _settings_and_connection(arguments)
        with shown_progress("verifying", "run", total=len(subject.files)) as progress:
            for result in _verify_files(subject, settings.writing_options(), connection):
                results.append(result)
                for line in _result_lines(result) if not arguments.json else ():
                    progress.print_line(line)
                progress.show(len(results), len(subject.files))
        if connection is not None and subject.whole:
            unknown = runs_without_journal(connection, [result.uid for result in results])
    except WrongConfiguration as error:
        raise CommandFailed(ExitCode.USAGE, str(error)) from error
    except ServerError as error:
        missing = count_of(len(subject.files) - len(results), "run")
        message = f"{missing} of {len(subject.files)} in {subject.places} not verified: {error}"
        if arguments.json:
            print_json([*(result.as_dict() for result in results), _failure_entry(message)])
        return fail(_exit_code(results, whole=False), message)
    if arguments.json:
        strangers = [_unknown_run_entry(key) for key in unknown]
        print_json([*(result.as_dict() for result in results), *strangers])
    else:
        for line in _summary_lines(results, subject, unknown, compared=connection is not None):
            print(plain(line))
    return _exit_code(results, whole=True)


def _failure_entry(message: str) -> dict[str, Any]:
    """Return the entry of the JSON output that reports a failure of the command."""
    from .._findings import Finding
    from ..verify import Verification

    return Verification("", "", UNREADABLE, None, (Finding("command", message),)).as_dict()


def _unknown_run_entry(key: str) -> dict[str, Any]:
    """Return the entry of the JSON output for a run in Tiled that has no journal."""
    from ..verify import Verification

    return Verification(key, "", NO_JOURNAL, None).as_dict()


def _exit_code(results: Sequence[Verification], *, whole: bool) -> ExitCode:
    """Return the code for these results; `whole` says that they are all that were asked for."""
    if any(result.findings and result.state != UNREADABLE for result in results):
        return ExitCode.DIFFERS
    if not whole or any(result.state == UNREADABLE for result in results):
        return ExitCode.FAILED
    return ExitCode.OK if all(result.state == WRITTEN for result in results) else ExitCode.INCOMPLETE


def _settings_and_connection(arguments: argparse.Namespace) -> tuple[Settings, Connection | None]:
    import threading

    from ..catalog import Connection
    from ..verify import PATIENCE_SECONDS
    from ._settings import settings_of

    flags = {"tiled": arguments.tiled, "profile": arguments.profile}
    settings = settings_of(arguments.config, flags, server=False)
    compares = bool(settings.tiled or settings.profile)
    if settings.tiled and settings.profile:
        # Refused with the places that they come from.
        settings_of(arguments.config, flags)
    connection = None
    if compares:
        connect = settings.worker_options().tiled.connect
        connection = Connection(connect, threading.Event(), lambda _event, **_detail: None, patience=PATIENCE_SECONDS)
    return settings, connection


def _verify_files(subject: _Subject, options: WritingOptions, connection: Connection | None) -> Iterator[Verification]:
    from ..verify import verify

    for listed in subject.files:
        file: Path | None = listed
        while file is not None:
            # A copy that is given may have any name.
            result = verify(file, options, connection, check_name=subject.whole)
            if result.ok or not gone(file):
                yield result
                break
            # The file was pruned, shipped or moved after it was listed.
            file = relocated(file, listed.parent)


def _subject_of(named: Sequence[str], config: Path | None) -> _Subject:
    """Return the runs that the command's arguments name; without arguments, those of the configured directory.

    Raises
    ------
    CommandFailed
        A named run, directory or file does not exist.
    OSError
        A directory or file may not be accessed.
    """
    kinds = {name: _kind_of(name) for name in named}
    directories = [Place(Path(name)) for name, kind in kinds.items() if kind == "directory"]
    runs = [name for name, kind in kinds.items() if kind != "directory"]
    places = directories if directories or runs else [place_of(None, config)]
    if not runs:
        files = [file for place in places for file in runs_in(place)]
        return _Subject(files, ", ".join(map(str, places)), whole=True)
    found: list[Path] = []
    # Search paths before uids: the error for a mistyped path is more helpful than that for a missing uid.
    for run in sorted(runs, key=lambda name: os.sep not in name):
        found += [Path(run)] if kinds[run] == "file" else _find_in(run, directories or [place_of(None, config)])
    return _Subject(found, ", ".join(map(str, dict.fromkeys(file.parent for file in found))), whole=False)


def _kind_of(name: str) -> str:
    """Return the kind of an argument: "directory", "file" or "uid"."""
    status = status_of(Path(name))
    if status is None:
        return "uid"
    if stat.S_ISDIR(status.st_mode):
        return "directory"
    return "file" if looks_like_path(name) else "uid"


def _find_in(run: str, places: Sequence[Place]) -> list[Path]:
    """Return the run's file in each directory that has it; raise `CommandFailed` if none has."""
    found: list[Path] = []
    missing: CommandFailed | None = None
    for place in places:
        try:
            found.append(find(run, place))
        except CommandFailed as error:
            if error.code is not ExitCode.NOT_FOUND:
                raise
            missing = error
    if missing is not None and not found:
        raise missing
    return found


def _result_lines(result: Verification) -> Iterator[str]:
    parts = [result.uid, result.state]
    if result.documents is not None:
        parts.append(count_of(result.documents, "document"))
    parts.append(_verdict_text(result))
    if result.nodes is not None:
        parts.append(f"{count_of(result.nodes, 'node')} with {count_of(result.rows or 0, 'row')} compared with Tiled")
    yield "  ".join(parts)
    if result.state in (UNREADABLE, "damaged"):
        yield f"    {result.file}"
    for finding in result.findings:
        for line in finding.lines():
            yield f"    {line}"


def _verdict_text(result: Verification) -> str:
    if result.findings:
        return count_of(len(result.findings), "finding")
    if result.state != WRITTEN:
        return "no findings so far"
    return "journal OK" if result.nodes is None else "OK"


def _summary_lines(
    results: Sequence[Verification], subject: _Subject, unknown: Sequence[str], *, compared: bool
) -> Iterator[str]:
    """Yield the totals, runs in Tiled without a journal, and a note if Tiled was not asked."""
    counts = Counter((result.state, result.ok) for result in results)
    told = [
        f"{counts[state, ok]} {state}, {'without findings' if ok else 'with findings'}"
        for state in STATES
        for ok in (True, False)
        if counts[state, ok]
    ]
    yield f"{count_of(len(results), 'run')} in {subject.places}: {'; '.join(told)}"
    if unknown:
        named = ", ".join(unknown[:_MAX_RUNS_NAMED]) + (", ..." if len(unknown) > _MAX_RUNS_NAMED else "")
        yield f"{count_of(len(unknown), 'run')} in Tiled without a journal in {subject.places}: {named}"
    if not compared:
        yield "Only journals were checked. To compare with Tiled, give --tiled, --profile or the service's --config"
