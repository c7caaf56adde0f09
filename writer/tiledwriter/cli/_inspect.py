"""`tiledwriter-journal show` and `tail`: show one run in detail, and follow its timeline."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from tiledbroker import HistoryEntry, NodeProgress

from ..journals import DAMAGED, RunSummary, Timeline, TimelineEntry, gone, open_run_file, summarize
from ._arguments import add_config, add_directory, add_json, add_run, run_and_place
from ._exit import CommandFailed, ExitCode, without_extra
from ._numbers import parse_count
from ._parser import Subcommands, add_command
from ._run_lookup import find, looks_like_path
from ._terminal import count_of, fail, local, plain, print_json, size_of

_POLL_SECONDS: Final = 0.3


def add_commands(commands: Subcommands) -> None:
    """Add the commands to the command line."""
    show = add_command(
        commands,
        "show",
        "show one run in detail, with its history",
        examples=(
            "tiledwriter-journal show 3f2b",
            "tiledwriter-journal show 3f2b /var/lib/tiledwriter --json",
            "tiledwriter-journal show 3f2b --operations --config /etc/tiledwriter/config.yaml",
            "tiledwriter-journal show 3f2b --paths --config /etc/tiledwriter/config.yaml",
        ),
    )
    add_run(show)
    add_directory(show)
    show.add_argument(
        "--operations", action="store_true", help="show the operations that write it to Tiled, without a server"
    )
    show.add_argument("--paths", action="store_true", help="show its files' paths before and after the path map")
    add_config(show, "the supervisor's configuration, also for --operations and --paths")
    add_json(show, lambda _, message: {"uid": None, "error": message})
    show.set_defaults(command=_show_run)
    tail = add_command(
        commands,
        "tail",
        "show the latest events of one run, and follow it",
        examples=(
            "tiledwriter-journal tail 3f2b",
            "tiledwriter-journal tail 3f2b /var/lib/tiledwriter -n 100",
            "tiledwriter-journal tail -f 3f2b",
            "tiledwriter-journal tail 3f2b --json",
        ),
    )
    add_run(tail)
    add_directory(tail)
    tail.add_argument("-n", "--lines", type=parse_count, default=10, metavar="N", help="number of lines (default 10)")
    tail.add_argument("-f", "--follow", action="store_true", help="continue until the run is written or has failed")
    add_config(tail)
    add_json(tail, in_lines=True)
    tail.set_defaults(command=_tail_run)


def _show_run(arguments: argparse.Namespace) -> ExitCode:
    is_dry_run = arguments.operations or arguments.paths
    if arguments.config is not None and not is_dry_run and _is_placed(arguments):
        raise CommandFailed(ExitCode.USAGE, "--config is for --operations, for --paths, and to find a run without DIR")
    path = find(*run_and_place(arguments))
    if is_dry_run:
        return _show_dry_run(path, arguments)
    with open_run_file(path) as journal:
        summary = summarize(journal)
        history = journal.history()
        progress = journal.progress()
    if arguments.json:
        entries = [entry._asdict() for entry in history]
        nodes = {node: item._asdict() for node, item in progress.items()}
        print_json({**summary.as_dict(), "progress": nodes, "history": entries})
    else:
        _print_run(summary, history, progress)
    return fail(ExitCode.DIFFERS, f"it is damaged: {summary.why}") if summary.state == DAMAGED else ExitCode.OK


def _print_run(summary: RunSummary, history: Sequence[HistoryEntry], progress: Mapping[str, NodeProgress]) -> None:
    print(f"run        {plain(summary.uid)}")
    scan = "" if summary.scan_id is None else f"  scan {plain(str(summary.scan_id))}"
    print(f"plan       {plain(summary.plan)}{scan}  started {local(summary.started)}")
    size = "" if summary.size is None else f"  ({size_of(summary.size)})"
    print(f"file       {plain(summary.file)}{size}")
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


def _is_placed(arguments: argparse.Namespace) -> bool:
    """Return True if the arguments say where the run is, so that no configuration is needed to find it."""
    return arguments.directory is not None or looks_like_path(arguments.run)


def _show_dry_run(path: Path, arguments: argparse.Namespace) -> ExitCode:
    try:
        from ._dry_run import Report
        from ._settings import WrongConfiguration
    except ImportError as error:
        raise without_extra(error) from error
    with open_run_file(path) as journal:
        try:
            report = Report(journal, arguments.config, operations=arguments.operations, paths=arguments.paths)
        except WrongConfiguration as error:
            raise CommandFailed(ExitCode.USAGE, str(error)) from error
        if arguments.json:
            print_json(report.as_dict())
        else:
            for line in report.lines():
                print(plain(line))
    return ExitCode.OK if report.error is None else fail(ExitCode.FAILED, str(report.error))


def _tail_run(arguments: argparse.Namespace) -> ExitCode:
    path = find(*run_and_place(arguments))
    print_entry = _print_json_entry if arguments.json else _print_entry
    try:
        with open_run_file(path) as journal:
            timeline = Timeline(journal, arguments.lines)
            entries = timeline.take_new_entries()
            for entry in entries[len(entries) - min(arguments.lines, len(entries)) :]:
                print_entry(entry)
            if arguments.follow:
                _follow_run(timeline, path, print_entry)
    except KeyboardInterrupt as interrupt:
        # Ctrl-C is the normal way to end `tail --follow`. SIGTERM is an interruption, and so is Ctrl-C without
        # `--follow`.
        if type(interrupt) is not KeyboardInterrupt or not arguments.follow:
            raise
    if timeline.damaged:
        return fail(ExitCode.DIFFERS, f"{path}: {count_of(timeline.damaged, 'document')} damaged")
    return ExitCode.OK


def _follow_run(timeline: Timeline, path: Path, print_entry: Callable[[TimelineEntry], None]) -> None:
    """Print new entries of the timeline until the run has an outcome.

    Raises
    ------
    CommandFailed
        The file was pruned, shipped or moved before that.
    """
    while not timeline.ended:
        was_gone = gone(path)
        time.sleep(_POLL_SECONDS)
        for entry in timeline.take_new_entries():
            print_entry(entry)
        if was_gone and not timeline.ended:
            raise CommandFailed(ExitCode.NOT_FOUND, f"{path} no longer exists: it was shipped, pruned or moved")


def _print_entry(entry: TimelineEntry) -> None:
    print(plain(f"{local(entry.time)}  {entry.what:<12}  {entry.details}".rstrip()), flush=True)


def _print_json_entry(entry: TimelineEntry) -> None:
    """Print an entry as an object in one line, as the output of `--follow` has no end to wait for."""
    print_json(entry._asdict(), in_one_line=True)
