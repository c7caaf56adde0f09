"""`tiledwriter-journal ship` and `replay`: ship the spools of dead sessions, and write runs from files to Tiled."""

from __future__ import annotations

import argparse
import stat
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tiledbroker import JournalError, PublisherStatus, ZMQPublisher, default_spool_dir
from tiledbroker._paths import fallback_spool_dir
from tiledbroker.log import unrouted_files
from tiledbroker.protocol import normalize_address

from ..journals import gone, open_run_file, reason_of, status_of
from ._arguments import add_config, add_json, is_directory
from ._exit import CommandFailed, ExitCode, without_extra
from ._numbers import parse_number
from ._parser import Subcommands, add_command
from ._progress import shown_progress
from ._run_lookup import Place, labelled_runs_in, no_runs_in
from ._site_log import add_beamline, add_log, copy_logged, find_logged, log_of, refuse_log_options
from ._terminal import count_of, fail, plain, print_json

if TYPE_CHECKING:
    from tiledbroker.jetstream import LoggedRun

_POLL_SECONDS: Final = 0.05


def add_commands(commands: Subcommands) -> None:
    """Add the commands to the command line."""
    ship = add_command(
        commands,
        "ship",
        "ship the runs that dead sessions left in a spool directory",
        examples=(
            "tiledwriter-journal ship tcp://ingest.example:5579",
            "tiledwriter-journal ship ~/spool tcp://ingest.example:5579 --timeout 600",
            "tiledwriter-journal ship ~/spool tcp://ingest.example:5579 --any-host --json",
        ),
    )
    ship.add_argument(
        "directory",
        nargs="?",
        type=Path,
        metavar="SPOOL_DIR",
        help="the spool directory (default: this host's default spool for ADDRESS)",
    )
    ship.add_argument("address", metavar="ADDRESS", help="where the supervisor listens, e.g. tcp://ingest:5579")
    ship.add_argument("--curve", type=Path, metavar="KEYS", help="directory of this client's keys, made by keygen")
    ship.add_argument(
        "--timeout", type=parse_number, default=60.0, metavar="SECONDS", help="give up after this time (default 60)"
    )
    ship.add_argument(
        "--any-host", action="store_true", help="also ship runs of sessions on other hosts, which must have ended"
    )
    add_json(ship)
    ship.set_defaults(command=_ship_directory)
    replay = add_command(
        commands,
        "replay",
        "write runs from backups, exported documents, journals or a site's log to Tiled",
        examples=(
            "tiledwriter-journal replay backups/*.jsonl --config /etc/tiledwriter/config.yaml",
            "tiledwriter-journal replay run.jsonl --config /etc/tiledwriter/config.yaml --json",
            "tiledwriter-journal replay 3f2b --source nats://log1 --config /etc/tiledwriter/config.yaml",
        ),
    )
    replay.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="JSON lines, a JSON array, or a journal; with --source, the uid of a run in the log, or a prefix of it",
    )
    server = replay.add_mutually_exclusive_group()
    server.add_argument("--tiled", metavar="URI", help="the Tiled server, or a container in it")
    server.add_argument("--profile", metavar="NAME", help="a profile of Tiled's client, instead of --tiled")
    add_log(replay, "read the runs from a site's log in NATS JetStream, nats://a,b,c, as the user of the ingest hosts")
    add_beamline(replay)
    add_config(replay)
    add_json(replay, _replay_failure)
    replay.set_defaults(command=_replay)


@dataclass(frozen=True)
class _Shipment:
    """What became of the runs in a spool directory.

    Attributes
    ----------
    directory
        The spool directory.
    address
        Address of the supervisor.
    runs
        Number of runs that were in the directory.
    durable
        Number of them that the ingest host said are durable there.
    left
        Files of those that are still in the directory.
    gone
        Files of those that are neither: something else moved, deleted or shipped them.
    unrouted
        Files of documents that belong to no known run, which are not shipped.
    problems
        Reasons why something is left or gone.
    """

    directory: str
    address: str
    runs: int
    durable: int
    left: list[str]
    gone: list[str]
    unrouted: list[str]
    problems: list[str]


def _ship_directory(arguments: argparse.Namespace) -> ExitCode:
    place = _spool_of(arguments)
    # The publisher's labels are absolute paths, too.
    directory = place.path.absolute()
    before = labelled_runs_in(place._replace(path=directory))
    left: list[Path] = []
    lost: list[Path] = []
    problems: list[str] = []
    if before:
        status = _ship_runs(arguments, directory, set(before))
        after = labelled_runs_in(Place(directory))
        left = [path for label, path in after.items() if label in before]
        lost = [path for label, path in before.items() if label not in after and label not in status.shipped]
        problems = list(_unshipped_reasons(left, status, arguments.timeout)) if left else []
        problems += [f"{path} is gone, and not known to be durable on the ingest host" for path in lost]
    unrouted = unrouted_files(directory)
    problems += [f"{path} has documents of no known run, which are not shipped" for path in unrouted]
    total, durable = len(before), len(before) - len(left) - len(lost)
    if arguments.json:
        left_names, lost_names, unrouted_names = ([str(path) for path in paths] for paths in (left, lost, unrouted))
        shipment = _Shipment(
            directory=str(place.path),
            address=arguments.address,
            runs=total,
            durable=durable,
            left=left_names,
            gone=lost_names,
            unrouted=unrouted_names,
            problems=problems,
        )
        print_json(asdict(shipment))
    elif before:
        gone_too = f", {len(lost)} gone" if lost else ""
        print(
            plain(f"{durable} of {total} runs are durable on the ingest host; {len(left)} left in {place}{gone_too}.")
        )
    else:
        print(plain(f"{no_runs_in(place)}: nothing to ship"))
    for problem in problems:
        fail(ExitCode.INCOMPLETE, problem)
    return ExitCode.INCOMPLETE if left or lost or unrouted else ExitCode.OK


def _spool_of(arguments: argparse.Namespace) -> Place:
    """Return the given spool directory, or the default one for the address; they may be given in either order.

    Raises
    ------
    CommandFailed
        None is given, and there is no default one, or two.
    AddressError
        The address cannot be used.
    """
    directory: Path | None = arguments.directory
    if directory is not None and is_directory(arguments.address) and not is_directory(str(directory)):
        directory, arguments.address = Path(arguments.address), str(directory)
    if directory is not None:
        return Place(directory)
    address = normalize_address(arguments.address)
    usual = default_spool_dir(address)
    candidates = [usual, fallback_spool_dir() / usual.relative_to(default_spool_dir())]
    found = [path for path in candidates if status_of(path) is not None]
    if len(found) == 1:
        return Place(found[0], "the default spool for this address")
    named = " and ".join(map(str, candidates))
    if found:
        raise CommandFailed(ExitCode.USAGE, f"give SPOOL_DIR, as there are two default spools: {named}")
    raise CommandFailed(ExitCode.NOT_FOUND, f"this host has no default spool for {address}: looked for {named}")


def _ship_runs(arguments: argparse.Namespace, directory: Path, labels: Collection[str]) -> PublisherStatus:
    """Ship runs until none is left or the timeout has passed; return the publisher's status before it was closed.

    What it shipped until the end is in the status, too.

    Parameters
    ----------
    arguments
        Arguments of the command.
    directory
        The spool directory.
    labels
        Labels of the runs in it.
    """
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
        with shown_progress("shipping", "run", total=len(labels)) as progress:
            while (left := labelled_runs_in(Place(directory))) and time.monotonic() < deadline:
                waiting = publisher.status()
                note = waiting.problem or f"{count_of(waiting.waiting, 'document')} not acknowledged"
                progress.show(sum(label not in left for label in labels), len(labels), note)
                publisher.flush(0.2)
                time.sleep(_POLL_SECONDS)
        status = publisher.status()
    except BaseException:
        publisher.close(timeout=0)
        raise
    publisher.close()
    return replace(status, shipped=publisher.status().shipped)


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
    refuse_log_options(arguments)
    try:
        from . import _replay as replaying
        from ._settings import WrongConfiguration
    except ImportError as error:
        raise without_extra(error) from error
    try:
        with _found_files(arguments) as files:
            return replaying.run(
                list(files),
                config=arguments.config,
                tiled=arguments.tiled,
                profile=arguments.profile,
                as_json=arguments.json,
                names=files,
            )
    except WrongConfiguration as error:
        raise CommandFailed(ExitCode.USAGE, str(error)) from error


@contextmanager
def _found_files(arguments: argparse.Namespace) -> Iterator[dict[Path, str]]:
    """Find the files to replay, or make them from the log until the end of the context; yield them with their names.

    Raises
    ------
    CommandFailed
        One is not there, or not whole, or an ingest host is not through with it.
    LogUnavailable
        The log gives no answer.
    """
    if not arguments.source:
        files = {Path(file): file for file in arguments.files}
        for file in files:
            _require_file(file)
        yield files
        return
    from tiledbroker.jetstream import LogReader

    address = log_of(arguments)
    with LogReader(address) as reader, tempfile.TemporaryDirectory(prefix="tiledwriter-replay-") as directory:
        copies = {}
        for number, uid in enumerate(arguments.files):
            run = find_logged(reader, uid, arguments.beamline, address)
            _require_concluded(run)
            copy = Path(directory) / f"{number}.sqlite"
            with shown_progress("reading", "document", total=run.tail.next) as progress:
                copy_logged(reader, run, copy, progress.show)
            copies[copy] = f"{address} {run.subject}"
        yield copies


def _require_concluded(run: LoggedRun) -> None:
    """Raise `CommandFailed` if an ingest host writes a run, or will: two writers of one run would double its rows."""
    receipt = run.own_receipt
    if receipt is not None and (receipt.outcome or receipt.refused):
        return
    whose = "the ingest hosts" if receipt is None else receipt.host
    raise CommandFailed(
        ExitCode.LOCKED,
        f"run {run.uid} is not concluded: {whose} will write it. It can be replayed once it is written, interrupted, "
        "refused or in quarantine",
    )


def _require_file(file: Path) -> None:
    status = status_of(file)
    if status is None:
        raise CommandFailed(ExitCode.NOT_FOUND, f"there is no file {file}")
    if not stat.S_ISREG(status.st_mode):
        raise CommandFailed(ExitCode.NOT_FOUND, f"{file} is not a file")


def _replay_failure(_: argparse.Namespace, message: str) -> list[dict[str, Any]]:
    from ..journals import UNREADABLE, Replayed

    return [asdict(Replayed("", "", 0, UNREADABLE, message))]
