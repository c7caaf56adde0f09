"""`tiledwriter-journal export`: write a run's documents to a file for other programs."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from pathlib import Path

from tiledbroker import CodecError, RunReader

from ..journals import open_run_file, status_of
from ._exit import CommandFailed, ExitCode
from ._run_lookup import directory_of, find
from ._terminal import count_of, fail, plain


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    export = commands.add_parser("export", help="write a run's documents to a file")
    export.add_argument("run", metavar="UID", help="the run's uid, a prefix of it, or a journal file")
    export.add_argument("out", type=Path, metavar="OUT", help="the file to create; with jsonl, - is standard output")
    export.add_argument(
        "directory",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="journal or spool directory (default: TILEDWRITER_JOURNAL_DIR, or the user's state directory)",
    )
    export.add_argument(
        "--format",
        choices=("jsonl", "sqlite"),
        default="jsonl",
        help="JSON lines that can be replayed (default), or a database with a table for each kind of documents",
    )
    export.set_defaults(command=_export_run)


def _export_run(arguments: argparse.Namespace) -> ExitCode:
    try:
        from ..journals import export_json_lines
    except ImportError as error:
        return fail(ExitCode.FAILED, f'{error}. This needs: pip install "tiledwriter[ingest]"')
    to_standard_output = arguments.out == Path("-")
    if to_standard_output and arguments.format != "jsonl":
        return fail(ExitCode.USAGE, "a database cannot go to standard output")
    path = find(arguments.run, directory_of(arguments.directory))
    try:
        with open_run_file(path) as journal:
            if to_standard_output:
                export_json_lines(journal, sys.stdout)
            else:
                told = _export_to_file(journal, arguments.out, arguments.format)
                print(plain(told))
            if not journal.ended:
                print("tiledwriter-journal: the run is open: more documents may follow", file=sys.stderr)
    except CodecError as error:
        raise CommandFailed(
            ExitCode.FAILED, f"{path} is damaged ({error}). See `tiledwriter-journal verify`."
        ) from error
    return ExitCode.OK


def _export_to_file(journal: RunReader, out: Path, kind: str) -> str:
    """Export to a file that gets its name only when it is complete on the disk; return a message.

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
            count = export_sqlite(journal, draft)
        else:
            with draft.open("x", encoding="utf-8") as file:
                count = export_json_lines(journal, file)
                file.flush()
                os.fsync(file.fileno())
        draft.rename(out)
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CommandFailed(ExitCode.FAILED, f"{out} was not written: {reason}") from error
    finally:
        draft.unlink(missing_ok=True)
    return f"Wrote {count_of(count, 'document')} to {out}."
