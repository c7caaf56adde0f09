"""`tiledwriter-journal ls`, `show` and `tail`: which runs there are, what became of them, and what happens to them."""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tiledbroker import Journal, JournalError, run_files

from .._happenings import Happening, Happenings
from .._summary import RunSummary, summarize
from ._exit import ExitCode
from ._places import add_directory, directory_of, find, label_of
from ._terminal import fail, local, plain, print_table

_POLL: Final = 0.3


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Tell the command line of them."""
    ls = commands.add_parser("ls", help="list the runs: what each is, how far it got, and why it waits")
    add_directory(ls)
    ls.set_defaults(command=_ls)
    show = commands.add_parser("show", help="all about one run, with its history")
    show.add_argument("run", metavar="UID", help="the run's uid, the beginning of it, or a journal file")
    add_directory(show)
    show.add_argument("--operations", action="store_true", help="what it becomes in Tiled; no server is asked")
    show.add_argument("--paths", action="store_true", help="where its files are, before and after the path map")
    show.add_argument("--config", type=Path, metavar="FILE", help="for these two: the supervisor's configuration")
    show.set_defaults(command=_show)
    tail = commands.add_parser("tail", help="the last that happened to one run, and what happens to it")
    tail.add_argument("run", metavar="UID", help="the run's uid, the beginning of it, or a journal file")
    add_directory(tail, json=False)
    tail.add_argument("-n", "--lines", type=int, default=10, metavar="N", help="how many lines (default 10)")
    tail.add_argument("-f", "--follow", action="store_true", help="go on until the run is written, or cannot be")
    tail.set_defaults(command=_tail)


def _ls(arguments: argparse.Namespace) -> ExitCode:
    directory = directory_of(arguments.directory)
    if not directory.is_dir():
        return fail(ExitCode.NOT_FOUND, f"there is no directory {directory}")
    summaries: list[RunSummary] = []
    code = ExitCode.OK
    for path in run_files(directory):
        try:
            with Journal(path) as journal:
                summaries.append(summarize(journal))
        except (JournalError, sqlite3.Error) as error:
            code = fail(ExitCode.FAILED, str(error))
    summaries.sort(key=lambda summary: summary.started or 0.0)
    if arguments.json:
        print(json.dumps([summary.as_dict() for summary in summaries], indent=2))
        return code
    rows = [
        (
            label_of(s.uid),
            local(s.started),
            s.plan,
            s.scan_id or "",
            sum(s.documents.values()),
            sum(s.rows.values()),
            s.state,
            s.why,
        )
        for s in summaries
    ]
    print_table(("RUN", "STARTED", "PLAN", "SCAN", "DOCUMENTS", "IN TILED", "STATE", "WAITS"), rows)
    return code


def _show(arguments: argparse.Namespace) -> ExitCode:
    path = find(arguments.run, directory_of(arguments.directory))
    if isinstance(path, str):
        return fail(ExitCode.NOT_FOUND, path)
    if arguments.operations or arguments.paths:
        return _show_dry_run(path, arguments)
    if arguments.config is not None:
        return fail(ExitCode.USAGE, "--config is for --operations and --paths")
    with Journal(path) as journal:
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
    print(
        f"documents  {sum(summary.documents.values())}: "
        + ", ".join(f"{n} {plain(k)}" for k, n in summary.documents.items())
    )
    print(f"worker     {'at work' if summary.worker else 'none'}, started {summary.worker_starts} times")
    print("in Tiled")
    for node, item in progress.items():
        intent = "" if item.intent is None else f"  (a request to {item.intent} rows is not confirmed)"
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
    with Journal(path) as journal:
        try:
            report = Report(journal, arguments.config, operations=arguments.operations, paths=arguments.paths)
        except WrongConfiguration as error:
            return fail(ExitCode.USAGE, str(error))
        if arguments.json:
            print(json.dumps(report.as_dict(), indent=2))
        else:
            for line in report.lines():
                print(plain(line))
    return ExitCode.OK if report.error is None else fail(ExitCode.FAILED, str(report.error))


def _tail(arguments: argparse.Namespace) -> ExitCode:
    path = find(arguments.run, directory_of(arguments.directory))
    if isinstance(path, str):
        return fail(ExitCode.NOT_FOUND, path)
    with Journal(path) as journal:
        happenings = Happenings(journal, arguments.lines)
        _print_happenings(happenings.take()[-arguments.lines :] if arguments.lines > 0 else [])
        while arguments.follow and not happenings.ended:
            time.sleep(_POLL)
            _print_happenings(happenings.take())
    return ExitCode.OK


def _print_happenings(happenings: Iterable[Happening]) -> None:
    for when, what, details in happenings:
        print(plain(f"{local(when)}  {what:<12}  {details}".rstrip()), flush=True)
