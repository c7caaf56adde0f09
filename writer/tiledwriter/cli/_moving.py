"""`tiledwriter-journal ship` and `replay`: what dead sessions left, and runs from files."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from tiledbroker import ZMQPublisher, run_files

from ._exit import ExitCode
from ._terminal import fail, plain


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Tell the command line of them."""
    ship = commands.add_parser("ship", help="ship what dead sessions left in a spool directory")
    ship.add_argument("directory", type=Path, metavar="SPOOL_DIR")
    ship.add_argument("address", metavar="ADDRESS", help="where the supervisor listens, e.g. tcp://ingest:5579")
    ship.add_argument("--curve", type=Path, metavar="KEYS", help="directory of this client's keys, as keygen makes it")
    ship.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="give up after (default 60)")
    ship.set_defaults(command=_ship)
    replay = commands.add_parser("replay", help="write runs from backups, exported documents or journals to Tiled")
    replay.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON lines, a JSON array, or a journal")
    server = replay.add_mutually_exclusive_group()
    server.add_argument("--tiled", metavar="URI", help="the Tiled server, or a container in it")
    server.add_argument("--profile", metavar="NAME", help="a profile of Tiled's client, instead of --tiled")
    replay.add_argument("--config", type=Path, metavar="FILE", help="the supervisor's configuration")
    replay.add_argument("--json", action="store_true", help="for programs: JSON instead of text")
    replay.set_defaults(command=_replay)


def _ship(arguments: argparse.Namespace) -> ExitCode:
    directory: Path = arguments.directory
    if not directory.is_dir():
        return fail(ExitCode.NOT_FOUND, f"there is no directory {directory}")
    before = len(run_files(directory))
    publisher = ZMQPublisher(
        arguments.address, spool_dir=directory, curve=arguments.curve, name="tiledwriter-journal ship"
    )
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
    why = "other processes use them, or they are damaged"
    if not status.connected:
        why = status.problem or "the supervisor does not answer"
    return fail(ExitCode.INCOMPLETE, f"{left} runs are left in {directory}: {why}")


def _replay(arguments: argparse.Namespace) -> ExitCode:
    try:
        from . import _replay as replaying
        from ._settings import WrongConfiguration
    except ImportError as error:
        return fail(ExitCode.FAILED, f'{error}. This needs: pip install "tiledwriter[ingest]"')
    for file in arguments.files:
        if not file.is_file():
            return fail(ExitCode.NOT_FOUND, f"there is no file {file}")
    try:
        return replaying.run(
            arguments.files,
            config=arguments.config,
            tiled=arguments.tiled,
            profile=arguments.profile,
            as_json=arguments.json,
            tell=lambda line: print(plain(line), flush=True),
        )
    except WrongConfiguration as error:
        return fail(ExitCode.USAGE, str(error))
