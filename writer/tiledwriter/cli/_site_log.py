"""Commands that ask a site's log: their options, and questions to its servers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from tiledbroker._errors import RunNotWhole

from ._exit import CommandFailed, ExitCode, without_extra

if TYPE_CHECKING:
    from tiledbroker.jetstream import Connection, LogAddress, LoggedRun, LogReader

T = TypeVar("T")

_TIMEOUT_SECONDS: Final = 60.0


def add_log(command: argparse.ArgumentParser, purpose: str) -> None:
    """Add the options that name a site's log and how to log in there."""
    command.add_argument("--source", metavar="SERVERS", help=purpose)
    command.add_argument(
        "--credentials",
        type=Path,
        metavar="FILE",
        help="with --source: file with NAME:PASSWORD, or with the seed or the credentials of a NATS user",
    )
    command.add_argument(
        "--tls", type=Path, metavar="FILE", help="with --source: certificates of the servers' authority"
    )
    command.add_argument(
        "--tls-client",
        type=Path,
        metavar="FILE",
        help="with --source: certificate and key of this host, for servers that ask for one",
    )


def add_beamline(command: argparse.ArgumentParser) -> None:
    """Add the option that names a beamline whose runs are meant."""
    command.add_argument("--beamline", metavar="NAME", help="with --source: only runs of this beamline")


def refuse_log_options(arguments: argparse.Namespace) -> None:
    """Refuse options that are for a log if none is named, because they would have no effect.

    Raises
    ------
    CommandFailed
        There is one.
    """
    names = ("credentials", "tls", "tls_client", "beamline", "all")
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(arguments, name, None)]
    if given and not arguments.source:
        raise CommandFailed(ExitCode.USAGE, f"{' and '.join(given)} can be given with --source only")


def log_of(arguments: argparse.Namespace) -> LogAddress:
    """Return the log that the options name. Credentials that they do not name are those of --config.

    Raises
    ------
    AddressError
        The servers cannot be parsed.
    CommandFailed
        The configuration cannot be used.
    """
    from tiledbroker.jetstream import LogAddress

    address = LogAddress.parse(
        arguments.source,
        credentials=arguments.credentials,
        tls_ca=arguments.tls,
        tls_client=arguments.tls_client,
        inbox="_INBOX.supervisor",
    )
    configured = _configured_log(getattr(arguments, "config", None))
    if configured is None:
        return address
    return replace(
        address,
        credentials=address.credentials or configured.credentials,
        tls_ca=address.tls_ca or configured.tls_ca,
        tls_client=address.tls_client or configured.tls_client,
    )


def _configured_log(config: Path | None) -> LogAddress | None:
    if config is None:
        return None
    try:
        from .._config import PluginCheck
        from ._settings import WrongConfiguration, read_settings
    except ImportError as error:
        raise without_extra(error) from error
    try:
        return read_settings(config, {}, server=False, plugins=PluginCheck.NONE).values.log_address()
    except WrongConfiguration as error:
        raise CommandFailed(ExitCode.USAGE, str(error)) from error


def ask(address: LogAddress, question: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
    """Return the answer to a question to the servers of a log.

    Raises
    ------
    LogUnavailable
        There is none.
    KeyFileError
        The credentials cannot be used.
    """
    from tiledbroker.jetstream import Connection, LoopThread

    async def answer() -> T:
        connection = await Connection.open(address, name="tiledwriter command")
        try:
            return await question(connection)
        finally:
            await connection.close()

    loop = LoopThread("tiledwriter-command")
    try:
        return loop.run(answer(), _TIMEOUT_SECONDS)
    finally:
        loop.close()


def find_logged(reader: LogReader, uid: str, beamline: str | None, place: LogAddress) -> LoggedRun:
    """Return the run in a log whose uid is given, or the only one whose uid begins so.

    Raises
    ------
    CommandFailed
        No run matches, several match, or only a receipt of it is left.
    """
    names = reader.list_names(_checked_beamline(beamline))
    exact = [name for name in names.runs if name[1] == uid]
    found = exact or [name for name in names.runs if uid and name[1].startswith(uid)]
    if len(found) > 1:
        where = "; give --beamline" if exact else "; give more of the uid"
        raise CommandFailed(ExitCode.USAGE, f"{len(found)} runs in {place} begin with {uid!r}{where}")
    if found:
        (run,) = reader.describe_runs({found[0]: names.runs[found[0]]})
        if run.tail.seq:
            return run
        removed = [found[0]]
    else:
        removed = [name for name in names.removed if uid and name[1].startswith(uid)]
    if not removed:
        raise CommandFailed(ExitCode.NOT_FOUND, f"there is no run {uid!r} in {place}")
    from ..journals import summarize_logged

    (summary,) = map(summarize_logged, reader.describe_runs({removed[0]: 0}))
    raise CommandFailed(
        ExitCode.NOT_FOUND,
        f"the documents of run {summary.uid} are not in {place} any more: it is {summary.state}; {summary.why}",
    )


def copy_logged(
    reader: LogReader, run: LoggedRun, path: Path, on_progress: Callable[[int], None] = lambda _: None
) -> None:
    """Copy a run of a log to a journal.

    Raises
    ------
    CommandFailed
        The log does not have all of its documents.
    """
    from ..journals import copy_from_log

    try:
        copy_from_log(reader, run, path, on_progress)
    except RunNotWhole as error:
        raise CommandFailed(ExitCode.FAILED, str(error)) from error


def _checked_beamline(beamline: str | None) -> str:
    """Return the pattern of a beamline, or of all."""
    from tiledbroker.jetstream import check_subject_beamline

    if beamline is None:
        return "*"
    try:
        return check_subject_beamline(beamline)
    except ValueError as error:
        raise CommandFailed(ExitCode.USAGE, str(error)) from error


class LoggedRuns(NamedTuple):
    """What is in a log.

    Attributes
    ----------
    runs
        The runs.
    hidden
        Number of others that have left nothing but a receipt.
    strange
        Subjects with messages that are of no run.
    """

    runs: list[LoggedRun]
    hidden: int
    strange: list[str]


def list_logged(reader: LogReader, beamline: str | None, *, with_removed: bool) -> LoggedRuns:
    """Return the runs in a log, also those of which only a receipt is left if these are wanted."""
    names = reader.list_names(_checked_beamline(beamline))
    removed = dict.fromkeys(names.removed, 0)
    runs = reader.describe_runs({**names.runs, **(removed if with_removed else {})})
    return LoggedRuns(runs, 0 if with_removed else len(removed), names.strange)
