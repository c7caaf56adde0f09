"""`tiledwriter-supervisor stream`: make and check the stream and buckets of a site's log, and print permissions."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Final

from tiledbroker import AddressError
from tiledbroker._errors import LogUnavailable
from tiledbroker.jetstream import (
    Connection,
    LogAddress,
    LogLayout,
    beamline_permissions,
    create_streams,
    find_problems,
    supervisor_permissions,
)

from ._exit import ExitCode, report_failure
from ._numbers import parse_count, parse_number
from ._site_log import add_log, ask, log_of
from ._terminal import print_json

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_GIB: Final = 2**30

_DESCRIPTION = """\
Make or check what a site's log in NATS JetStream consists of: the stream TW of documents, and the buckets TW_RUNS and
TW_HOSTS. Or print the permissions of the users that publish to it and read it.
"""
_EXAMPLES = """\
examples:
  tiledwriter-supervisor stream create --source nats://log1,log2,log3 --credentials admin.credentials --max-gib 500
  tiledwriter-supervisor stream check --source nats://log1,log2,log3 --credentials supervisor.credentials
  tiledwriter-supervisor stream permissions csx hxn
"""


def add_command(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "stream",
        help="make and check the log of a site in NATS JetStream",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "action", choices=("create", "check", "permissions"), help="what to do; create leaves what exists as it is"
    )
    command.add_argument("beamlines", nargs="*", metavar="BEAMLINE", help="with permissions: names of beamlines")
    add_log(command, "servers of the log, nats://a,b,c")
    command.add_argument(
        "--replicas", type=parse_count, default=3, metavar="N", help="nodes that have each message (default 3)"
    )
    command.add_argument(
        "--max-gib",
        type=parse_number,
        default=100.0,
        metavar="N",
        help="size of the log on each node in GiB (default 100)",
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Run the command and return its exit code."""
    as_json: bool = arguments.json
    try:
        if arguments.action == "permissions":
            return _print_permissions(arguments.beamlines)
        if not arguments.source or arguments.beamlines:
            return _fail(
                ExitCode.USAGE, "give --source SERVERS, and names of beamlines with permissions only", as_json=as_json
            )
        address = log_of(arguments)
        layout = LogLayout(arguments.replicas, int(arguments.max_gib * _GIB))
        if arguments.action == "create":
            return _create(address, layout, as_json=as_json)
        return _check(address, layout, as_json=as_json)
    except (AddressError, ValueError) as error:
        return _fail(ExitCode.USAGE, str(error), as_json=as_json)
    except LogUnavailable as error:
        return _fail(ExitCode.FAILED, f"the log gives no answer, or refuses: {error}", as_json=as_json)


def _create(address: LogAddress, layout: LogLayout, *, as_json: bool) -> ExitCode:
    async def create(connection: Connection) -> tuple[list[str], list[str]]:
        made = await create_streams(connection, layout)
        return made, await find_problems(connection, layout, but=made)

    made, problems = ask(address, create)
    if as_json:
        print_json({"made": made, "problems": problems})
    else:
        for problem in problems:
            print(problem)
        if made or problems:
            print(f"Made: {', '.join(made) or 'nothing'}.")
        else:
            print("Everything is there; nothing was made.")
    return ExitCode.DIFFERS if problems else ExitCode.OK


def _check(address: LogAddress, layout: LogLayout, *, as_json: bool) -> ExitCode:
    problems = ask(address, lambda connection: find_problems(connection, layout))
    if as_json:
        print_json({"problems": problems})
    else:
        for problem in problems:
            print(problem)
        if not problems:
            print(f"OK: the log at {address} is as it must be.")
            print("sync_interval cannot be seen from here; it should be always in the configuration of each server.")
    return ExitCode.DIFFERS if problems else ExitCode.OK


def _print_permissions(beamlines: list[str]) -> ExitCode:
    permissions = {"supervisor": supervisor_permissions(), **{name: beamline_permissions(name) for name in beamlines}}
    users = [
        {"user": name, "password": f"PASSWORD OF {name}", "permissions": allowed}
        for name, allowed in permissions.items()
    ]
    print(json.dumps({"authorization": {"users": users}}, indent=2))
    return ExitCode.OK


def _fail(code: ExitCode, message: str, *, as_json: bool) -> ExitCode:
    if as_json:
        print_json({"error": message})
    return report_failure(code, message, "tiledwriter-supervisor stream")
