"""`tiledwriter-journal ship` and `replay`: ship the spools of dead sessions, and write runs from files to Tiled."""

from __future__ import annotations

import argparse
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from tiledbroker import JournalError, PublisherStatus, ZMQPublisher

from ..journals import gone, open_run_file, reason_of, status_of
from ._exit import CommandFailed, ExitCode
from ._run_lookup import labelled_runs_in, no_runs_in, runs_in, unrouted_in
from ._terminal import count_of, fail, plain

_POLL_SECONDS: Final = 0.05


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands to the command line."""
    ship = commands.add_parser("ship", help="ship the runs that dead sessions left in a spool directory")
    ship.add_argument("directory", type=Path, metavar="SPOOL_DIR")
    ship.add_argument("address", metavar="ADDRESS", help="where the supervisor listens, e.g. tcp://ingest:5579")
    ship.add_argument("--curve", type=Path, metavar="KEYS", help="directory of this client's keys, made by keygen")
    ship.add_argument(
        "--timeout", type=float, default=60.0, metavar="SECONDS", help="give up after this time (default 60)"
    )
    ship.add_argument(
        "--any-host", action="store_true", help="also ship runs of sessions on other hosts, which must have ended"
    )
    ship.set_defaults(command=_ship_directory)
    replay = commands.add_parser("replay", help="write runs from backups, exported documents or journals to Tiled")
    replay.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON lines, a JSON array, or a journal")
    server = replay.add_mutually_exclusive_group()
    server.add_argument("--tiled", metavar="URI", help="the Tiled server, or a container in it")
    server.add_argument("--profile", metavar="NAME", help="a profile of Tiled's client, instead of --tiled")
    replay.add_argument("--config", type=Path, metavar="FILE", help="the supervisor's configuration")
    replay.add_argument("--json", action="store_true", help="print JSON instead of text")
    replay.set_defaults(command=_replay, json_failure=_replay_failure)


def _ship_directory(arguments: argparse.Namespace) -> ExitCode:
    directory: Path = arguments.directory
    before = labelled_runs_in(directory)
    if before:
        status = _ship_runs(arguments)
        left = [path for label, path in labelled_runs_in(directory).items() if label in before]
        total = len(before)
        durable = f"{total - len(left)} of {total} runs are durable on the ingest host"
        print(plain(f"{durable}; {len(left)} left in {directory}."))
    else:
        left = []
        print(plain(f"{no_runs_in(directory)}: nothing to ship"))
    unrouted = unrouted_in(directory)
    for path in unrouted:
        fail(ExitCode.INCOMPLETE, f"{path} has documents of no known run, which are not shipped")
    if left:
        for why in _unshipped_reasons(left, status, arguments.timeout):
            fail(ExitCode.INCOMPLETE, why)
    return ExitCode.INCOMPLETE if left or unrouted else ExitCode.OK


def _ship_runs(arguments: argparse.Namespace) -> PublisherStatus:
    """Ship runs until none is left or the timeout has passed; return the publisher's final status."""
    directory: Path = arguments.directory
    publisher = ZMQPublisher(
        arguments.address,
        spool_dir=directory,
        curve=arguments.curve,
        name="tiledwriter-journal ship",
        keep_until="durable",
        adopt="any-host" if arguments.any_host else "any-destination",
    )
    deadline = time.monotonic() + arguments.timeout
    try:
        while runs_in(directory) and time.monotonic() < deadline:
            publisher.flush(0.2)
            time.sleep(_POLL_SECONDS)
        status = publisher.status()
    except BaseException:
        publisher.close(timeout=0)
        raise
    publisher.close()
    return status


def _unshipped_reasons(left: Sequence[Path], status: PublisherStatus, timeout: float) -> Iterator[str]:
    """Yield the reasons why runs were not shipped.

    A supervisor that is not connected gives one line for all runs. Each refused, busy or unreadable run, and each run
    that a connected supervisor did not acknowledge in time, gives a line of its own.
    """
    if not status.connected:
        problem = status.problem or f"the supervisor at {status.address} does not answer"
        yield f"{count_of(len(left), 'run')} left in {status.spool_dir}: {problem}"
    for path in left:
        try:
            with open_run_file(path, "inspect") as journal:
                if journal.run_uid in status.refused:
                    yield f"{path} was refused: {status.refused[journal.run_uid]}"
                elif journal.being_written:
                    yield f"{path} is used by another process"
                elif status.connected:
                    yield f"{path} was not acknowledged within {timeout:g} s"
        except (JournalError, OSError) as error:
            if not gone(path):
                yield reason_of(error)


def _replay(arguments: argparse.Namespace) -> ExitCode:
    try:
        from . import _replay as replaying
        from ._settings import WrongConfiguration
    except ImportError as error:
        return fail(ExitCode.FAILED, f'{error}. This needs: pip install "tiledwriter[ingest]"')
    for file in arguments.files:
        _require_file(file)
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
        raise CommandFailed(ExitCode.USAGE, str(error)) from error


def _require_file(file: Path) -> None:
    status = status_of(file)
    if status is None:
        raise CommandFailed(ExitCode.NOT_FOUND, f"there is no file {file}")
    if not stat.S_ISREG(status.st_mode):
        raise CommandFailed(ExitCode.NOT_FOUND, f"{file} is not a file")


def _replay_failure(_: argparse.Namespace, message: str) -> list[dict[str, Any]]:
    from ..journals import UNREADABLE, Replayed

    return [asdict(Replayed("", "", 0, UNREADABLE, message))]
