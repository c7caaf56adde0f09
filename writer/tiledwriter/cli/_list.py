"""`tiledwriter-journal ls`: list the runs of journal directories, files and spools."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from tiledbroker import JournalError
from tiledbroker.log import follow_run_file, unrouted_files

from ..journals import (
    DAMAGED,
    STATES,
    UNREADABLE,
    RunSummary,
    gone,
    misnaming_of,
    misplacement_of,
    open_run_file,
    reason_of,
    status_of,
    summarize,
    unreadable,
)
from ._arguments import add_config, add_json, is_directory
from ._completion import complete_states, complete_with
from ._exit import CommandFailed, ExitCode
from ._list_log import list_log, unreadable_log
from ._numbers import parse_count
from ._parser import Subcommands, add_command
from ._run_filter import RunFilter, parse_since, parse_states
from ._run_lookup import (
    Place,
    label_of,
    looks_like_path,
    no_runs_in,
    place_of,
    relocated,
    runs_in,
    superseded_in,
    target_configs,
)
from ._site_log import add_beamline, add_log, refuse_log_options
from ._spool_lookup import SpoolDirectories, default_spools, spools_below
from ._terminal import count_of, fail, local, plain, print_json, print_table, size_of

_UNKNOWN: Final = "?"
_JOURNAL_HEADER: Final = ("RUN", "STARTED", "PLAN", "SCAN", "DOCUMENTS", "IN TILED", "STATE", "WAITS")
_SPOOL_HEADER: Final = ("RUN", "STARTED", "PLAN", "SCAN", "DOCUMENTS", "FOR", "STATE", "WAITS")


@dataclass
class _Listing:
    """What was found in the places that the arguments name.

    Attributes
    ----------
    places
        What was read, for messages.
    runs
        The runs.
    unrouted
        Files of documents that belong to no known run.
    superseded
        Unfinished journals that a supervisor has set aside.
    problems
        Places that could not be read, with exit code and message.
    """

    places: list[str] = field(default_factory=list)
    runs: list[RunSummary] = field(default_factory=list)
    unrouted: list[Path] = field(default_factory=list)
    superseded: list[Path] = field(default_factory=list)
    problems: list[tuple[ExitCode, str]] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The places that were read, separated by commas."""
        return ", ".join(self.places)


def add_commands(commands: Subcommands) -> None:
    """Add the command to the command line."""
    ls = add_command(
        commands,
        "ls",
        "list the runs with their state, progress and reason for waiting",
        examples=(
            "tiledwriter-journal ls",
            "tiledwriter-journal ls /var/lib/tiledwriter --state failed,parked",
            "tiledwriter-journal ls /var/lib/tiledwriter --since 2h -n 20",
            "tiledwriter-journal ls --since 2026-03-02T09:15 --json /var/lib/tiledwriter",
            "tiledwriter-journal ls --spool",
            "tiledwriter-journal ls --source nats://log1 --config /etc/tiledwriter/config.yaml",
        ),
    )
    ls.add_argument(
        "places",
        nargs="*",
        metavar="DIR|FILE",
        help="journal or spool directories, or files in them (default: TILEDWRITER_JOURNAL_DIR, else the journal_dir "
        "of --config, else the user's state directory)",
    )
    ls.add_argument(
        "--spool",
        action="store_true",
        help="list what is in the spools, for which address: all below DIR (default: this user's spools on this host)",
    )
    states = ls.add_argument(
        "--state", type=parse_states, metavar="STATE[,STATE]", default=(), help="only runs in these states"
    )
    complete_with(states, complete_states)
    ls.add_argument(
        "--since",
        type=parse_since,
        metavar="TIME",
        help="only runs that started since a date or time (2026-03-02, 2026-03-02T09:15+01:00; without zone: local) "
        "or in the last 90s, 30min, 2h, 3d, 1w",
    )
    ls.add_argument("-n", "--latest", type=parse_count, metavar="N", help="only the N runs that started last")
    add_log(ls, "list the runs in a site's log in NATS JetStream, nats://a,b,c, as the user of the ingest hosts")
    add_beamline(ls)
    ls.add_argument("--all", action="store_true", help="with --source: also runs of which only the receipt is left")
    add_config(ls, "the supervisor's configuration; with --source, credentials that are not given come from it")
    add_json(ls, _failure_entries)
    ls.set_defaults(command=_list_runs)


def _list_runs(arguments: argparse.Namespace) -> ExitCode:
    refuse_log_options(arguments)
    if arguments.source:
        return list_log(arguments)
    targets = [] if arguments.places or arguments.spool else target_configs(arguments.config)
    if not targets or arguments.json:
        return _list_once(arguments, targets)
    codes = []
    for config in targets:
        print(plain(f"{config}:"))
        try:
            codes.append(_list_once(arguments, [config]))
        except (CommandFailed, OSError) as error:
            codes.append(fail(_code_of(error), reason_of(error)))
        print()
    return next((code for code in codes if code), ExitCode.OK)


def _list_once(arguments: argparse.Namespace, configs: Sequence[Path]) -> ExitCode:
    listing = _read_spools(arguments.places) if arguments.spool else _read_places(arguments, configs)
    chosen = RunFilter(arguments.state, arguments.since, arguments.latest)
    selected = chosen.select_runs(listing.runs)
    if arguments.json:
        failures = [unreadable("", "", message) for _, message in listing.problems]
        print_json([summary.as_dict() for summary in [*failures, *selected]])
    else:
        _print_runs(listing, selected, chosen, spool=arguments.spool)
    return _report_problems(listing, selected)


def _failure_entries(arguments: argparse.Namespace, message: str) -> list[dict[str, Any]]:
    """Return the JSON output of a command that could read nothing."""
    if arguments.source:
        return unreadable_log(arguments.source, message)
    places = arguments.places or ["" if arguments.spool else str(place_of(None, arguments.config).path)]
    return [unreadable("", place, message).as_dict() for place in places]


def _read_places(arguments: argparse.Namespace, configs: Sequence[Path]) -> _Listing:
    """Read the directories and files that the arguments name, or those of some configurations.

    Raises
    ------
    CommandFailed, OSError
        The only place cannot be read. Of several places, the others are still read.
    """
    listing = _Listing()
    places = [Place(Path(name)) for name in arguments.places]
    places = places or [place_of(None, config) for config in configs or [arguments.config]]
    for place in places:
        try:
            _read_place(place, listing)
        except (CommandFailed, OSError) as error:
            if len(places) == 1:
                raise
            listing.problems.append((_code_of(error), reason_of(error)))
    return listing


def _code_of(error: CommandFailed | OSError) -> ExitCode:
    return error.code if isinstance(error, CommandFailed) else ExitCode.FAILED


def _read_place(place: Place, listing: _Listing) -> None:
    if not looks_like_path(str(place.path)) or is_directory(str(place.path)):
        listed = [_summary_of(file, file.parent) for file in runs_in(place)]
        listing.unrouted += unrouted_files(place.path)
        try:
            listing.superseded += superseded_in(place.path)
        except OSError as error:
            listing.problems.append((ExitCode.FAILED, reason_of(error)))
    else:
        file = follow_run_file(place.path)
        if status_of(file) is None:
            raise CommandFailed(ExitCode.NOT_FOUND, f"there is no file or directory {place}")
        # A copy may have any name.
        listed = [_summary_of(file, file.parent, is_given=True)]
    listing.places.append(str(place))
    listing.runs += filter(None, listed)


def _read_spools(names: Sequence[str]) -> _Listing:
    """Read the spool directories below the given ones, or those of this host.

    Raises
    ------
    CommandFailed
        A given directory does not exist, or has no spools and no directories below it.
    """
    found = SpoolDirectories()
    for one in map(spools_below, map(Path, names)) if names else [default_spools()]:
        found.places += one.places
        found.directories += one.directories
        found.problems += one.problems
    listing = _Listing(places=[str(place) for place in found.places])
    for directory in found.directories:
        try:
            paths = runs_in(Place(directory))
            listing.unrouted += unrouted_files(directory)
        except (CommandFailed, OSError) as error:
            listing.problems.append((ExitCode.FAILED, reason_of(error)))
            continue
        listing.runs += filter(None, (_summary_of(path, directory) for path in paths))
    listing.problems += [(ExitCode.FAILED, problem) for problem in found.problems]
    return listing


def _summary_of(path: Path, directory: Path, *, is_given: bool = False) -> RunSummary | None:
    """Return the summary of a file that was listed or given, also if it was moved meanwhile; None if it was deleted."""
    try:
        with open_run_file(path) as journal:
            summary = summarize(journal)
            problem = misplacement_of(journal) or ("" if is_given else misnaming_of(journal))
            return replace(summary, state=DAMAGED, why=f"{journal.path}: {problem}") if problem else summary
    except (JournalError, OSError) as error:
        if not gone(path):
            return unreadable(path.stem, str(path), reason_of(error))
    moved = relocated(path, directory)
    return None if moved is None else _summary_of(moved, directory)


def _print_runs(listing: _Listing, selected: Sequence[RunSummary], chosen: RunFilter, *, spool: bool) -> None:
    if selected:
        print_table(
            _SPOOL_HEADER if spool else _JOURNAL_HEADER, (_run_row(summary, spool=spool) for summary in selected)
        )
        for line in _totals(listing, selected, spool=spool):
            print(plain(line))
    elif listing.runs:
        runs = count_of(len(listing.runs), "run")
        print(plain(f"none of the {runs} in {listing.where} {chosen}"))
    elif listing.places and not listing.problems:
        print(plain(no_runs_in(listing.where)))
    if listing.unrouted:
        files = ", ".join(str(path) for path in listing.unrouted)
        print(plain(f"documents of no known run, which are not shipped: {files}"))
    if listing.superseded:
        journals = count_of(len(listing.superseded), "unfinished journal")
        folders = ", ".join(sorted({str(path.parent) for path in listing.superseded}))
        print(plain(f"{journals} set aside, from which nothing is written: {folders}"))


def _run_row(summary: RunSummary, *, spool: bool) -> Sequence[object]:
    rows = _UNKNOWN if summary.row_count is None else summary.row_count
    return (
        label_of(summary.uid),
        local(summary.started),
        summary.plan,
        summary.scan_id or "",
        _UNKNOWN if summary.document_count is None else summary.document_count,
        (summary.destination or _UNKNOWN) if spool else rows,
        summary.state,
        summary.why,
    )


def _totals(listing: _Listing, selected: Sequence[RunSummary], *, spool: bool) -> Iterator[str]:
    """Yield the line with the totals and, of spools, one for each address."""
    part = "" if len(selected) == len(listing.runs) else f"{len(selected)} of "
    yield f"{part}{count_of(len(listing.runs), 'run')} in {listing.where}: {_describe_runs(selected)}"
    if spool:
        for address in sorted({run.destination or _UNKNOWN for run in selected}):
            runs = [run for run in selected if (run.destination or _UNKNOWN) == address]
            whom = "an unknown address" if address == _UNKNOWN else address
            yield f"{count_of(len(runs), 'run')} for {whom}: {_describe_runs(runs)}"


def _describe_runs(runs: Sequence[RunSummary]) -> str:
    counts = Counter(run.state for run in runs)
    states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    documents = _sum_up((run.document_count for run in runs), lambda total: count_of(total, "document"))
    return f"{states}; {documents}, {_sum_up((run.size for run in runs), size_of)}"


def _sum_up(numbers: Iterable[int | None], describe: Callable[[int], str]) -> str:
    """Return the sum of numbers as text; "at least ..." if one of them is unknown."""
    listed = list(numbers)
    known = [number for number in listed if number is not None]
    return ("at least " if len(known) < len(listed) else "") + describe(sum(known))


def _report_problems(listing: _Listing, selected: Sequence[RunSummary]) -> ExitCode:
    """Report what could not be read on standard error, and return the exit code: the first reason counts."""
    code = ExitCode.OK
    for problem, message in listing.problems:
        fail(problem, message)
        code = code or problem
    counts = Counter(summary.state for summary in selected)
    total = f"{count_of(len(listing.runs), 'run')} in {listing.where}"
    if counts[UNREADABLE]:
        fail(ExitCode.FAILED, f"{counts[UNREADABLE]} of {total} cannot be read")
        return code or ExitCode.FAILED
    if counts[DAMAGED]:
        fail(ExitCode.DIFFERS, f"{counts[DAMAGED]} of {total} damaged")
        return code or ExitCode.DIFFERS
    return code
