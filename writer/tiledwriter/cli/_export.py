"""`tiledwriter-journal export`: write a run's documents to a file for other programs."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tiledbroker import CodecError, RunReader
from tiledbroker._outcomes import WRITTEN
from tiledbroker._wording import format_command

from ..journals import WRITTEN_WITHOUT_STOP, open_run_file, status_of
from ._arguments import add_config, add_json, add_run, run_and_place
from ._exit import CommandFailed, ExitCode, print_error, without_extra
from ._parser import Subcommands, add_command
from ._progress import shown_progress
from ._run_lookup import find
from ._site_log import add_beamline, add_log, copy_logged, find_logged, log_of, refuse_log_options
from ._terminal import count_of, fail, output_was_closed, plain, print_json

_STANDARD_OUTPUT = Path("-")


def add_commands(commands: Subcommands) -> None:
    """Add the command to the command line."""
    export = add_command(
        commands,
        "export",
        "write a run's documents to a file",
        examples=(
            "tiledwriter-journal export 3f2b -o run.jsonl",
            "tiledwriter-journal export 3f2b /var/lib/tiledwriter -o run.sqlite --format sqlite",
            "tiledwriter-journal export 3f2b -o - | head -n 1",
            "tiledwriter-journal export 3f2b -o run.jsonl --source nats://log1 --config /etc/tiledwriter/config.yaml",
        ),
    )
    add_run(export)
    export.add_argument(
        "directory",
        nargs="*",
        type=Path,
        metavar="DIR",
        help="journal or spool directory (default: TILEDWRITER_JOURNAL_DIR, else the journal_dir of --config, else the "
        "user's state directory). UID OUT [DIR] is taken, too",
    )
    export.add_argument(
        "-o", "--output", type=Path, metavar="OUT", help="the file to create; with jsonl, - is standard output"
    )
    export.add_argument(
        "--format",
        choices=("jsonl", "sqlite"),
        default="jsonl",
        help="JSON lines that can be replayed (default), or a database with a table for each kind of documents",
    )
    add_log(export, "read the run from a site's log in NATS JetStream, nats://a,b,c, as the user of the ingest hosts")
    add_beamline(export)
    add_config(export)
    add_json(export)
    export.set_defaults(command=_export_run)


def _export_run(arguments: argparse.Namespace) -> ExitCode:
    refuse_log_options(arguments)
    try:
        from ..journals import export_json_lines  # noqa: F401  its packages may be missing here
    except ImportError as error:
        raise without_extra(error) from error
    out = _sort_arguments(arguments)
    if out == _STANDARD_OUTPUT and arguments.format != "jsonl":
        raise CommandFailed(ExitCode.USAGE, "a database cannot go to standard output")
    if out == _STANDARD_OUTPUT and arguments.json:
        raise CommandFailed(ExitCode.USAGE, "with -o - the documents go to standard output, so there can be no --json")
    if out == _STANDARD_OUTPUT and output_was_closed():
        raise CommandFailed(ExitCode.FAILED, "standard output is closed, so the documents cannot be written there")
    with _found_run(arguments) as (path, shown):
        return _export_from(path, shown, out, arguments)


@contextmanager
def _found_run(arguments: argparse.Namespace) -> Iterator[tuple[Path, str]]:
    """Find the run's file, or make one from the log until the end of the context; yield it, and its name for people.

    Raises
    ------
    CommandFailed
        There is no such run, or it is not whole.
    LogUnavailable
        The log gives no answer.
    """
    if not arguments.source:
        path = find(*run_and_place(arguments))
        yield path, str(path)
        return
    from tiledbroker.jetstream import LogReader

    if arguments.directory is not None:
        raise CommandFailed(ExitCode.USAGE, "with --source there is no directory")
    address = log_of(arguments)
    with LogReader(address) as reader, tempfile.TemporaryDirectory(prefix="tiledwriter-export-") as directory:
        run = find_logged(reader, arguments.run, arguments.beamline, address)
        copy = Path(directory) / "run.sqlite"
        with shown_progress("reading", "document", total=run.tail.next) as progress:
            copy_logged(reader, run, copy, progress.show)
        yield copy, f"{address} {run.subject}"


def _export_from(path: Path, shown: str, out: Path, arguments: argparse.Namespace) -> ExitCode:
    from ..journals import export_json_lines

    try:
        with open_run_file(path) as journal, shown_progress("exporting", "document", total=journal.length) as progress:
            if out == _STANDARD_OUTPUT:
                export_json_lines(journal, sys.stdout, progress.show)
            else:
                count = _export_to_file(journal, out, arguments.format, progress.show)
            ended, uid = journal.ended, journal.run_uid
            contradicts = journal.outcome == WRITTEN and not journal.stopped
    except CodecError as error:
        command = format_command("tiledwriter-journal", "verify", path)
        raise CommandFailed(ExitCode.FAILED, f"{shown} is damaged ({error}). `{command}` says how far.") from error
    if arguments.json:
        result = {"uid": uid, "file": shown, "output": str(out), "format": arguments.format, "documents": count}
        print_json({**result, "ended": ended})
    elif out != _STANDARD_OUTPUT:
        print(plain(f"Wrote {count_of(count, 'document')} to {out}."))
    if contradicts:
        return fail(ExitCode.DIFFERS, f"{shown}: {WRITTEN_WITHOUT_STOP}")
    if not ended:
        print_error("tiledwriter-journal: the run is not known to have ended: more documents may follow")
    return ExitCode.OK


def _sort_arguments(arguments: argparse.Namespace) -> Path:
    """Return the file to create, and leave one directory or None in `arguments.directory`.

    Raises
    ------
    CommandFailed
        No file is given, or there are too many arguments.
    """
    words: list[Path] = arguments.directory
    out: Path | None = arguments.output
    if out is None:
        if not words:
            raise CommandFailed(ExitCode.USAGE, "give the file to create: -o OUT (with - it is standard output)")
        out, words = words[0], words[1:]
    if len(words) > 1:
        raise CommandFailed(ExitCode.USAGE, f"give one directory, not {' and '.join(map(str, words))}")
    arguments.directory = words[0] if words else None
    return out


def _export_to_file(journal: RunReader, out: Path, kind: str, on_progress: Callable[[int], None]) -> int:
    """Export to a file that gets its name only when it is complete on the disk; return the number of documents.

    Raises
    ------
    CommandFailed
        The file exists or cannot be written.
    """
    from ..journals import export_json_lines, export_sqlite

    if status_of(out, follow_symlinks=False) is not None:
        raise CommandFailed(ExitCode.FAILED, f"{out} exists already, and was not changed")
    draft = out.with_name(f".{out.name}.{os.getpid()}.draft")
    try:
        if kind == "sqlite":
            count = export_sqlite(journal, draft, on_progress)
        else:
            with draft.open("x", encoding="utf-8") as file:
                count = export_json_lines(journal, file, on_progress)
                file.flush()
                os.fsync(file.fileno())
        draft.rename(out)
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandFailed(ExitCode.FAILED, f"{out} was not written: {reason}") from error
    finally:
        draft.unlink(missing_ok=True)
    return count
