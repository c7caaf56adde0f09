"""`tiledwriter-journal export`: a run's documents for other programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tiledbroker import CodecError, Journal

from ._exit import ExitCode
from ._places import directory_of, find
from ._terminal import fail, plain


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Tell the command line of it."""
    export = commands.add_parser("export", help="take a run's documents out of its journal")
    export.add_argument("run", metavar="UID", help="the run's uid, the beginning of it, or a journal file")
    export.add_argument("out", type=Path, metavar="OUT", help="a file that is made; with jsonl, - is standard output")
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
    export.set_defaults(command=_export)


def _export(arguments: argparse.Namespace) -> ExitCode:
    try:
        from .._export import export_json_lines, export_sqlite
    except ImportError as error:
        return fail(ExitCode.FAILED, f'{error}. This needs: pip install "tiledwriter[ingest]"')
    path = find(arguments.run, directory_of(arguments.directory))
    if isinstance(path, str):
        return fail(ExitCode.NOT_FOUND, path)
    out: Path = arguments.out
    if out == Path("-"):
        if arguments.format != "jsonl":
            return fail(ExitCode.USAGE, "a database cannot go to standard output")
        with Journal(path) as journal:
            export_json_lines(journal, sys.stdout)
        return ExitCode.OK
    if out.exists():
        return fail(ExitCode.FAILED, f"{out} exists; it is left as it is")
    draft = out.with_name(f".{out.name}.draft")
    draft.unlink(missing_ok=True)
    try:
        with Journal(path) as journal:
            if arguments.format == "sqlite":
                export_sqlite(journal, draft)
            else:
                with draft.open("w", encoding="utf-8") as file:
                    export_json_lines(journal, file)
            length = journal.length
        draft.rename(out)
    except CodecError as error:
        return fail(ExitCode.FAILED, f"{path} is damaged ({error}): tiledwriter-journal verify tells more")
    finally:
        draft.unlink(missing_ok=True)
    print(plain(f"{length} documents are in {out}."))
    return ExitCode.OK
