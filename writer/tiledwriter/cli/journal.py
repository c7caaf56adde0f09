"""`tiledwriter-journal`: looks into journals and spools, and ships spools that nobody ships."""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from tiledbroker import (
    AddressError,
    Journal,
    JournalError,
    ZMQPublisher,
    default_journal_dir,
    journal_filename,
    run_files,
)

from .._summary import RunSummary, summarize
from ._exit import ExitCode

_EXAMPLES = """\
examples:
  tiledwriter-journal ls /var/lib/tiledwriter
  tiledwriter-journal show 3f2b /var/lib/tiledwriter
  tiledwriter-journal ship ~/.local/state/tiledwriter/spool tcp://ingest:5579

exit codes: 0 done; 1 failed; 2 wrong usage; 4 no such run or directory; 5 something is left to be shipped
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "tiledwriter-journal",
        description="Look into the journals of runs, and ship spools that a dead session left.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(required=True, metavar="COMMAND")
    ls = commands.add_parser("ls", help="list the runs: what each is, how far it got, and why it waits")
    _add_directory(ls)
    ls.set_defaults(command=_ls)
    show = commands.add_parser("show", help="all about one run, with its history")
    show.add_argument("run", metavar="UID", help="the run's uid, the beginning of it, or a journal file")
    _add_directory(show)
    show.set_defaults(command=_show)
    ship = commands.add_parser("ship", help="ship what dead sessions left in a spool directory")
    ship.add_argument("directory", type=Path, metavar="SPOOL_DIR")
    ship.add_argument("address", metavar="ADDRESS", help="where the supervisor listens, e.g. tcp://ingest:5579")
    ship.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="give up after (default 60)")
    ship.set_defaults(command=_ship)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except AddressError as error:
        return _fail(ExitCode.USAGE, str(error))
    except BrokenPipeError:  # as in `tiledwriter-journal ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except (JournalError, OSError, sqlite3.Error) as error:
        return _fail(ExitCode.FAILED, str(error))


def _add_directory(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "directory",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="journal or spool directory (default: TILEDWRITER_JOURNAL_DIR, or the user's state directory)",
    )
    command.add_argument("--json", action="store_true", help="for programs: JSON instead of text")


def _directory(given: Path | None) -> Path:
    if given is not None:
        return given
    configured = os.environ.get("TILEDWRITER_JOURNAL_DIR")
    return Path(configured) if configured else default_journal_dir()


def _ls(arguments: argparse.Namespace) -> ExitCode:
    directory = _directory(arguments.directory)
    if not directory.is_dir():
        return _fail(ExitCode.NOT_FOUND, f"there is no directory {directory}")
    summaries: list[RunSummary] = []
    code = ExitCode.OK
    for path in run_files(directory):
        try:
            with Journal(path) as journal:
                summaries.append(summarize(journal))
        except (JournalError, sqlite3.Error) as error:
            code = _fail(ExitCode.FAILED, str(error))
    summaries.sort(key=lambda summary: summary.started or 0.0)
    if arguments.json:
        print(json.dumps([summary.as_dict() for summary in summaries], indent=2))
        return code
    rows = [
        (
            s.uid[:8],
            _local(s.started),
            s.plan,
            s.scan_id or "",
            sum(s.documents.values()),
            sum(s.rows.values()),
            s.state,
            s.why,
        )
        for s in summaries
    ]
    _print_table(("RUN", "STARTED", "PLAN", "SCAN", "DOCUMENTS", "IN TILED", "STATE", "WAITS"), rows)
    return code


def _show(arguments: argparse.Namespace) -> ExitCode:
    path = _find(arguments.run, _directory(arguments.directory))
    if isinstance(path, str):
        return _fail(ExitCode.NOT_FOUND, path)
    with Journal(path) as journal:
        summary = summarize(journal)
        history = journal.history()
        progress = journal.progress()
    if arguments.json:
        entries = [entry._asdict() for entry in history]
        nodes = {node: item._asdict() for node, item in progress.items()}
        print(json.dumps({**summary.as_dict(), "progress": nodes, "history": entries}, indent=2))
        return ExitCode.OK
    print(f"run        {_plain(summary.uid)}")
    print(f"plan       {_plain(summary.plan)}  scan {summary.scan_id}  started {_local(summary.started)}")
    print(f"file       {_plain(summary.file)}")
    print(f"state      {summary.state}" + (f" ({_plain(summary.why)})" if summary.why else ""))
    print(
        f"documents  {sum(summary.documents.values())}: "
        + ", ".join(f"{n} {_plain(k)}" for k, n in summary.documents.items())
    )
    print(f"worker     {'at work' if summary.worker else 'none'}, started {summary.worker_starts} times")
    print("in Tiled")
    for node, item in progress.items():
        intent = "" if item.intent is None else f"  (a request to {item.intent} rows is not confirmed)"
        print(f"  {item.rows:>10}  {_plain(node)}{intent}")
    print("history")
    for entry in history:
        detail = dict(entry.detail)
        traceback = str(detail.pop("traceback", ""))
        print(
            f"  {_local(entry.time)}  {_plain(entry.event)}  "
            + _plain("  ".join(f"{k}={v}" for k, v in detail.items()))
        )
        for line in traceback.splitlines():
            print(f"      {_plain(line)}")
    return ExitCode.OK


def _find(run: str, directory: Path) -> Path | str:
    """The file of a run, or what is wrong."""
    if run.endswith(".sqlite") and Path(run).is_file():
        return Path(run)
    if not directory.is_dir():
        return f"there is no directory {directory}"
    exact = directory / journal_filename(run)
    if exact.is_file():
        return exact
    found = [path for path in run_files(directory) if path.name.startswith(run)]
    if len(found) == 1:
        return found[0]
    if found:
        return f"{len(found)} runs in {directory} begin with {run!r}; give more of the uid"
    return f"there is no run {run!r} in {directory}"


def _ship(arguments: argparse.Namespace) -> ExitCode:
    directory: Path = arguments.directory
    if not directory.is_dir():
        return _fail(ExitCode.NOT_FOUND, f"there is no directory {directory}")
    before = len(run_files(directory))
    publisher = ZMQPublisher(arguments.address, spool_dir=directory, name="tiledwriter-journal ship")
    deadline = time.monotonic() + arguments.timeout
    while run_files(directory) and time.monotonic() < deadline:
        publisher.flush(0.2)
        time.sleep(0.05)
    status = publisher.status()
    publisher.close()
    left = len(run_files(directory))
    print(f"{before - left} of {before} runs are durable on the ingest host.")
    if not left:
        return ExitCode.OK
    why = "the supervisor does not answer" if not status.connected else "other processes use them, or they are damaged"
    return _fail(ExitCode.INCOMPLETE, f"{left} runs are left in {directory}: {why}")


def _print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    cells = [list(header), *([_plain(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _local(timestamp: float | None) -> str:
    return (
        ""
        if timestamp is None
        else datetime.fromtimestamp(timestamp).astimezone().replace(tzinfo=None).isoformat(" ", "seconds")
    )


def _plain(text: str) -> str:
    """Text that can do nothing to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _fail(code: ExitCode, message: str) -> ExitCode:
    print(f"tiledwriter-journal: {_plain(message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
