"""`tiledwriter-journal ls --source`: list the runs in a site's log."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ..journals import DAMAGED, STATES
from ._exit import CommandFailed, ExitCode
from ._run_filter import RunFilter
from ._run_lookup import label_of, no_runs_in
from ._site_log import list_logged, log_of
from ._terminal import count_of, fail, local, plain, print_json, print_table

if TYPE_CHECKING:
    from ..journals import LoggedSummary

_UNKNOWN: Final = "?"
_HEADER: Final = ("RUN", "BEAMLINE", "STARTED", "PLAN", "SCAN", "DOCUMENTS", "JOURNALED", "HOST", "STATE", "WAITS")


def list_log(arguments: argparse.Namespace) -> ExitCode:
    """Print the runs in a log.

    Raises
    ------
    CommandFailed
        The arguments cannot be used.
    LogUnavailable
        The log gives no answer.
    """
    from tiledbroker.jetstream import LogReader

    from ..journals import summarize_logged

    if arguments.places or arguments.spool:
        raise CommandFailed(ExitCode.USAGE, "with --source there are neither directories nor --spool")
    address = log_of(arguments)
    with LogReader(address) as reader:
        found = list_logged(reader, arguments.beamline, with_removed=arguments.all)
    runs = [summarize_logged(run) for run in found.runs]
    chosen = RunFilter(arguments.state, arguments.since, arguments.latest)
    selected = chosen.select_runs(runs)
    where = f"{address}" if arguments.beamline is None else f"{address}, beamline {arguments.beamline}"
    if arguments.json:
        print_json([summary.as_dict() for summary in selected])
    else:
        _print_runs(runs, selected, chosen, where)
        if found.hidden:
            print(plain(f"{count_of(found.hidden, 'other run')} left only a receipt there; --all lists these, too"))
        if found.strange:
            print(plain(f"messages of no run, which are ignored: {', '.join(found.strange)}"))
    damaged = sum(summary.state == DAMAGED for summary in selected)
    if damaged:
        return fail(ExitCode.DIFFERS, f"{damaged} of {count_of(len(runs), 'run')} in {where}: documents are missing")
    return ExitCode.OK


def unreadable_log(address: str, message: str) -> list[dict[str, Any]]:
    """Return the JSON output for a log that could not be read."""
    from ..journals import LoggedSummary

    return [LoggedSummary("", "", why=f"{address}: {message}").as_dict()]


def _print_runs(
    runs: Sequence[LoggedSummary], selected: Sequence[LoggedSummary], chosen: RunFilter, where: str
) -> None:
    if selected:
        print_table(_HEADER, map(_describe_run, selected))
        counts = Counter(run.state for run in selected)
        states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        part = "" if len(selected) == len(runs) else f"{len(selected)} of "
        print(plain(f"{part}{count_of(len(runs), 'run')} in {where}: {states}"))
    elif runs:
        print(plain(f"none of the {count_of(len(runs), 'run')} in {where} {chosen}"))
    else:
        print(plain(no_runs_in(where)))


def _describe_run(summary: LoggedSummary) -> Sequence[object]:
    return (
        label_of(summary.uid),
        summary.beamline,
        local(summary.started),
        summary.plan,
        "" if summary.scan_id is None else summary.scan_id,
        _UNKNOWN if summary.length is None else summary.length,
        _UNKNOWN if summary.journaled is None else summary.journaled,
        summary.host,
        summary.state,
        summary.why,
    )
