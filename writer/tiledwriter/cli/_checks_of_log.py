"""Pre-flight checks of a site's log: its servers, its streams, and what this host's user may do there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tiledbroker import KeyFileError
from tiledbroker._errors import LogUnavailable
from tiledbroker._wording import format_command
from tiledbroker.jetstream import (
    STREAM,
    Connection,
    LogAddress,
    LogLayout,
    LogSpace,
    find_account_space,
    find_configuration,
    find_problems,
    parse_space,
    read_hosts,
    try_requests,
)
from tiledbroker.ownership import HostLease

from .._check_results import CheckResult
from ._site_log import ask
from ._terminal import size_of

_SYNC: Final = "sync_interval cannot be seen from here; it should be always on each server"


@dataclass(frozen=True)
class _Findings:
    """What was found in a log.

    Attributes
    ----------
    server
        The server that answered, with its version and limits.
    refused
        Requests of the service that fail, as sentences.
    problems
        What is wrong with the streams, as sentences.
    shortcomings
        What is not as it should be, and does not keep the service from working.
    space
        Space of the documents.
    hosts
        The leases of all hosts, as `read_hosts` returns them.
    """

    server: str
    refused: list[str]
    problems: list[str]
    shortcomings: list[str]
    space: LogSpace | None
    hosts: Mapping[str, HostLease | None]


def check_log(name: str, address: LogAddress) -> CheckResult:
    """Return the result of the check `name` of a log."""
    try:
        found = ask(address.with_inbox("_INBOX.supervisor"), _find)
    except KeyFileError as error:
        return CheckResult.fail(name, str(error), "Correct the file.")
    except LogUnavailable as error:
        return CheckResult.fail(name, f"the log gives no answer: {error}", "Correct the servers, or their credentials.")
    if found.problems:
        command = format_command("tiledwriter-supervisor", "stream", "check", "--source", str(address))
        return CheckResult.fail(name, " ".join(found.problems), f"Make what is missing; see `{command}`.")
    if found.refused:
        command = format_command("tiledwriter-supervisor", "stream", "permissions")
        return CheckResult.fail(
            name,
            " ".join(found.refused),
            f"If the servers run, give the user of the ingest hosts the permissions that `{command}` prints.",
        )
    space = "" if found.space is None else f"; {_describe_space(found.space)}"
    text = f"the log at {address} ({found.server}{space}): {_describe_hosts(found.hosts)}"
    if found.shortcomings:
        return CheckResult.warn(name, f"{' '.join(found.shortcomings)} Else {text}", "Correct what is named here.")
    return CheckResult.ok(name, f"{text}. All requests were tried. {_SYNC}")


async def _find(connection: Connection) -> _Findings:
    refused = await try_requests(connection)
    server = f"{connection.server}, version {connection.server_version}, messages of up to "
    server += size_of(connection.max_payload)
    try:
        problems = await find_problems(connection, LogLayout(replicas=1))
        with_replicas = await find_problems(connection, LogLayout())
        info = await find_configuration(connection, STREAM)
        space = None if info is None else parse_space(info)
        account = await find_account_space(connection)
        hosts = {} if problems else await read_hosts(connection)
    except LogUnavailable as error:
        # Without these requests nothing more can be known.
        return _Findings(server, refused or [f"The streams cannot be looked at: {error}."], [], [], None, {})
    # One node is enough to try it; its loss is the loss of the log.
    shortcomings = [problem for problem in with_replicas if problem not in problems]
    shortcomings += _find_shortages(space, account)
    if not connection.is_encrypted:
        shortcomings += [] if connection.is_local else ["The connection is not encrypted: passwords can be read."]
    return _Findings(server, refused, problems, shortcomings, space, hosts)


def _find_shortages(space: LogSpace | None, account: LogSpace) -> Iterator[str]:
    for what, each in (("log", space), ("account", account)):
        if each is not None and each.is_almost_full:
            yield f"The {what} is almost full: {_describe_space(each)}. Beyond that, documents stay in the spools."


def _describe_space(space: LogSpace) -> str:
    return f"{size_of(space.used)}" if space.limit is None else f"{size_of(space.used)} of {size_of(space.limit)}"


def _describe_hosts(hosts: Mapping[str, HostLease | None]) -> str:
    """Return whose leases have not ended. A host that was killed is among them until another one ends its lease."""
    living = sorted(each.lease.host for each in hosts.values() if each is not None and not each.lease.released)
    unreadable = [f"of {holder}, which cannot be read" for holder, each in sorted(hosts.items()) if each is None]
    listed = ", ".join([*living, *unreadable])
    return f"leases that have not ended: {listed}" if listed else "no host serves"
