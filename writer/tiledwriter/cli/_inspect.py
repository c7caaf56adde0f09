"""`tiledwriter-journal ls`, `show` and `tail`: list runs, show one in detail, and follow its timeline."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from tiledbroker import JournalError

from ..journals import (
    DAMAGED,
    STATES,
    UNREADABLE,
    RunSummary,
    Timeline,
    TimelineEntry,
    gone,
    open_run_file,
    reason_of,
    summarize,
    unreadable,
)
from ._exit import CommandFailed, ExitCode
from ._run_lookup import (
    add_directory,
    directory_of,
    find,
    label_of,
    no_runs_in,
    relocated,
    runs_in,
    unrouted_in,
)
from ._terminal import count_of, fail, local, plain, print_table

_POLL_SECONDS: Final = 0.3
_UNKNOWN: Final = "?"


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the command line."""
    ls = commands.add_parser("ls", help="list the runs with their state, progress and reason for waiting")
    add_directory(ls)
    ls.set_defaults(command=_list_runs, json_failure=_ls_failure)
    show = commands.add_parser("show", help="show one run in detail, with its history")
    show.add_argument("run", metavar="UID", help="the run's uid, a prefix of it, or a journal file")
    add_directory(show)
    show.add_argument(
        "--operations", action="store_true", help="show the operations that write it to Tiled, without a server"
    )
    show.add_argument("--paths", action="store_true", help="show its files' paths before and after the path map")
    show.add_argument(
        "--config", type=Path, metavar="FILE", help="with --operations or --paths: the supervisor's configuration"
    )
    show.set_defaults(command=_show_run, json_failure=lambda _, message: {"uid": None, "error": message})
    tail = commands.add_parser("tail", help="show the latest events of one run, and follow it")
    tail.add_argument("run", metavar="UID", help="the run's uid, a prefix of it, or a journal file")
    add_directory(tail, json=False)
    tail.add_argument("-n", "--lines", type=int, default=10, metavar="N", help="number of lines (default 10)")
    tail.add_argument("-f", "--follow", action="store_true", help="continue until the run is written or has failed")
    tail.set_defaults(command=_tail_run)


def _list_runs(arguments: argparse.Namespace) -> ExitCode:
    directory = directory_of(arguments.directory)
    listed = [_summary_of(path, directory) for path in runs_in(directory)]
    summaries = sorted(filter(None, listed), key=lambda summary: summary.started or 0.0)
    if arguments.json:
        print(json.dumps([summary.as_dict() for summary in summaries], indent=2))
    else:
        _print_runs(summaries, directory)
    counts = Counter(summary.state for summary in summaries)
    total = f"{count_of(len(summaries), 'run')} in {directory}"
    if counts[UNREADABLE]:
        return fail(ExitCode.FAILED, f"{counts[UNREADABLE]} of {total} cannot be read")
    if counts[DAMAGED]:
        return fail(ExitCode.DIFFERS, f"{counts[DAMAGED]} of {total} cannot be read to the end")
    return ExitCode.OK


def _ls_failure(arguments: argparse.Namespace, message: str) -> list[dict[str, Any]]:
    return [unreadable("", str(directory_of(arguments.directory)), message).as_dict()]


def _summary_of(path: Path, directory: Path) -> RunSummary | None:
    """Return the summary of a listed file, also if it was moved meanwhile; None if it was deleted."""
    try:
        with open_run_file(path) as journal:
            return summarize(journal)
    except (JournalError, OSError) as error:
        if not gone(path):
            return unreadable(path.stem, str(path), reason_of(error))
    moved = relocated(path, directory)
    return None if moved is None else _summary_of(moved, directory)


def _print_runs(summaries: Sequence[RunSummary], directory: Path) -> None:
    if summaries:
        header = ("RUN", "STARTED", "PLAN", "SCAN", "DOCUMENTS", "IN TILED", "STATE", "WAITS")
        print_table(header, map(_run_row, summaries))
        counts = Counter(summary.state for summary in summaries)
        told = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        print(plain(f"{count_of(len(summaries), 'run')} in {directory}: {told}"))
    else:
        print(plain(no_runs_in(directory)))
    if unrouted := unrouted_in(directory):
        files = ", ".join(str(path) for path in unrouted)
        print(plain(f"documents of no known run, which are not shipped: {files}"))


def _run_row(summary: RunSummary) -> Sequence[object]:
    return (
        label_of(summary.uid),
        local(summary.started),
        summary.plan,
        summary.scan_id or "",
        _UNKNOWN if summary.document_count is None else summary.document_count,
        _UNKNOWN if summary.row_count is None else summary.row_count,
        summary.state,
        summary.why,
    )


def _show_run(arguments: argparse.Namespace) -> ExitCode:
    path = find(arguments.run, directory_of(arguments.directory))
    if arguments.operations or arguments.paths:
        return _show_dry_run(path, arguments)
    if arguments.config is not None:
        return fail(ExitCode.USAGE, "--config is for --operations and --paths")
    with open_run_file(path) as journal:
        summary = summarize(journal)
        history = journal.history()
        progress = journal.progress()
    if arguments.json:
        entries = [entry._asdict() for entry in history]
        nodes = {node: item._asdict() for node, item in progress.items()}
        print(json.dumps({**summary.as_dict(), "progress": nodes, "history": entries}, indent=2))
        return ExitCode.OK
    print(f"run        {plain(summary.uid)}")
    print(f"plan       {plain(summary.plan)}  scan {summary.scan_id}  started {local(summary.started)}")
    print(f"file       {plain(summary.file)}")
    print(f"state      {summary.state}" + (f" ({plain(summary.why)})" if summary.why else ""))
    names = summary.documents or {}
    print(f"documents  {summary.document_count}: " + ", ".join(f"{n} {plain(k)}" for k, n in names.items()))
    worker = {True: "at work", False: "none", None: "unknown"}[summary.worker]
    print(f"worker     {worker}, started {count_of(summary.worker_starts or 0, 'time')}")
    print("in Tiled")
    for node, item in progress.items():
        intent = "" if item.intent is None else f"  (a request for {item.intent} rows is not confirmed)"
        print(f"  {item.rows:>10}  {plain(node)}{intent}")
    print("history")
    for entry in history:
        detail = dict(entry.detail)
        traceback = str(detail.pop("traceback", ""))
        print(
            f"  {local(entry.time)}  {plain(entry.event)}  " + plain("  ".join(f"{k}={v}" for k, v in detail.items()))
        )
        for line in traceback.splitlines():
            print(f"      {plain(line)}")
    return ExitCode.OK


def _show_dry_run(path: Path, arguments: argparse.Namespace) -> ExitCode:
    try:
        from ._dry_run import Report
        from ._settings import WrongConfiguration
    except ImportError as error:
        return fail(ExitCode.FAILED, f'{error}. This needs: pip install "tiledwriter[ingest]"')
    with open_run_file(path) as journal:
        try:
            report = Report(journal, arguments.config, operations=arguments.operations, paths=arguments.paths)
        except WrongConfiguration as error:
            raise CommandFailed(ExitCode.USAGE, str(error)) from error
        if arguments.json:
            print(json.dumps(report.as_dict(), indent=2))
        else:
            for line in report.lines():
                print(plain(line))
    return ExitCode.OK if report.error is None else fail(ExitCode.FAILED, str(report.error))


def _tail_run(arguments: argparse.Namespace) -> ExitCode:
    directory = directory_of(arguments.directory)
    path = find(arguments.run, directory)
    try:
        with open_run_file(path) as journal:
            timeline = Timeline(journal, arguments.lines)
            _print_entries(timeline.take_new_entries()[-arguments.lines :] if arguments.lines > 0 else [])
            if arguments.follow:
                _follow_run(timeline, path)
    except KeyboardInterrupt as interrupt:
        # Ctrl-C is the normal way to end `tail --follow`. SIGTERM is an interruption, and so is Ctrl-C without
        # `--follow`.
        if type(interrupt) is not KeyboardInterrupt or not arguments.follow:
            raise
    return ExitCode.OK


def _follow_run(timeline: Timeline, path: Path) -> None:
    """Print new entries of the timeline until the run has an outcome.

    Raises
    ------
    CommandFailed
        The file was pruned, shipped or moved before that.
    """
    while not timeline.ended:
        was_gone = gone(path)
        time.sleep(_POLL_SECONDS)
        _print_entries(timeline.take_new_entries())
        if was_gone and not timeline.ended:
            raise CommandFailed(ExitCode.NOT_FOUND, f"{path} no longer exists: it was shipped, pruned or moved")


def _print_entries(entries: Iterable[TimelineEntry]) -> None:
    for when, what, details in entries:
        print(plain(f"{local(when)}  {what:<12}  {details}".rstrip()), flush=True)
