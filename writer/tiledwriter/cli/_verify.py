"""`tiledwriter-journal verify`: whether journals are whole, and whether Tiled holds what it should of their runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tiledbroker import run_files

from ._exit import ExitCode
from ._places import directory_of, find
from ._terminal import fail, plain

if TYPE_CHECKING:
    from .._verification import Verification


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Tell the command line of it."""
    verify = commands.add_parser("verify", help="check journals, and what Tiled holds of their runs")
    verify.add_argument(
        "runs",
        nargs="*",
        metavar="UID|DIR|FILE",
        help="runs, sought in the directories that are named beside them; all of a directory; journal files "
        "(default: all of TILEDWRITER_JOURNAL_DIR, or of the user's state directory)",
    )
    server = verify.add_mutually_exclusive_group()
    server.add_argument("--tiled", metavar="URI", help="compare with this Tiled server, or a container in it")
    server.add_argument("--profile", metavar="NAME", help="a profile of Tiled's client, instead of --tiled")
    verify.add_argument("--config", type=Path, metavar="FILE", help="the supervisor's configuration")
    verify.add_argument("--json", action="store_true", help="for programs: JSON instead of text")
    verify.set_defaults(command=_verify)


def _verify(arguments: argparse.Namespace) -> ExitCode:
    try:
        from .._errors import ServerError
        from ._settings import WrongConfiguration
    except ImportError as error:
        return fail(ExitCode.FAILED, f'{error}. This needs: pip install "tiledwriter[ingest]"')
    files = _files(arguments.runs)
    if isinstance(files, str):
        return fail(ExitCode.NOT_FOUND, files)
    results = []
    try:
        for result in _results(files, arguments):
            results.append(result)
            if not arguments.json:
                for line in _lines(result):
                    print(plain(line), flush=True)
    except WrongConfiguration as error:
        return fail(ExitCode.USAGE, str(error))
    except ServerError as error:
        return fail(ExitCode.FAILED, str(error))
    if arguments.json:
        print(json.dumps([result.as_dict() for result in results], indent=2))
    return ExitCode.OK if all(result.ok for result in results) else ExitCode.DIFFERS


def _results(files: Sequence[Path], arguments: argparse.Namespace) -> Iterator[Verification]:
    import threading

    from .._connection import Connection
    from .._verification import PATIENCE, verify
    from ._settings import settings_of

    flags = {"tiled": arguments.tiled, "profile": arguments.profile}
    compares = any(flags.values())
    settings = settings_of(arguments.config, flags, server=compares)
    connection = None
    if compares:
        connect = settings.worker_options().tiled.connect
        connection = Connection(connect, threading.Event(), lambda _event, **_detail: None, patience=PATIENCE)
    for file in files:
        yield verify(file, settings.writing_options(), connection)


def _files(named: Sequence[str]) -> list[Path] | str:
    """The journals to check, or what is wrong."""
    directories = [Path(name) for name in named if Path(name).is_dir()]
    uids = [name for name in named if not Path(name).is_dir()]
    if not uids:
        directories = directories or [directory_of(None)]
        missing = [directory for directory in directories if not directory.is_dir()]
        return f"there is no directory {missing[0]}" if missing else _of(directories)
    files = []
    for uid in uids:
        found = [find(uid, directory) for directory in directories or [directory_of(None)]]
        paths = [path for path in found if isinstance(path, Path)]
        if not paths:
            return str(found[0])
        files.append(paths[0])
    return files


def _of(directories: Sequence[Path]) -> list[Path]:
    return [file for directory in directories for file in run_files(directory)]


def _lines(result: Verification) -> Iterator[str]:
    compared = "" if result.nodes is None else f"  {result.nodes} nodes with {result.rows} rows compared with Tiled"
    verdict = "well" if result.ok else f"{len(result.findings)} findings"
    yield f"{result.uid}  {result.state}  {result.documents} documents  {verdict}{compared}"
    for finding in result.findings:
        for line in finding.lines():
            yield f"    {line}"
