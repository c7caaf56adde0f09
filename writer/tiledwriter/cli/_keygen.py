"""`tiledwriter-supervisor keygen`: generate CURVE keys for the supervisor and its clients."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tiledbroker import KeyFileError
from tiledbroker.protocol import CLIENTS, PUBLIC_SUFFIX, make_client_keys, make_server_keys

from ._exit import ExitCode, report_failure
from ._terminal import print_json

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = """\
Make the supervisor's keys in DIR or, with --client, keys for a client that the supervisor accepts from then on.

A client's keys are in a directory of their own in DIR. Move it to the client's host and name it there:
  ZMQPublisher("tcp://ingest:5579", curve="~/tiledwriter-keys/NAME")
Deleting DIR/clients/NAME.key revokes the client's access at once, without a restart.
"""
_EXAMPLES = """\
examples:
  tiledwriter-supervisor keygen /etc/tiledwriter/keys
  tiledwriter-supervisor keygen /etc/tiledwriter/keys --client beamline
"""


def add_command(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    command = commands.add_parser("keygen", help="make CURVE keys", description=_DESCRIPTION, epilog=_EXAMPLES)
    command.add_argument("directory", type=Path, metavar="DIR", help="directory of the supervisor's keys")
    command.add_argument(
        "--client", action="append", metavar="NAME", default=[], help="make keys for this client; can be repeated"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.set_defaults(command=make_keys)


def make_keys(arguments: argparse.Namespace) -> ExitCode:
    """Generate keys and print instructions for their use."""
    directory: Path = arguments.directory
    made: list[dict[str, str | None]] = []
    code, problem = ExitCode.OK, ""
    try:
        if not arguments.client:
            made.append({"name": None, "keys": str(make_server_keys(directory).parent), "revoke": None})
        for name in arguments.client:
            bundle = make_client_keys(directory, name)
            made.append(
                {"name": name, "keys": str(bundle), "revoke": str(directory / CLIENTS / (name + PUBLIC_SUFFIX))}
            )
    except (KeyFileError, OSError) as error:
        code, problem = ExitCode.FAILED, str(error)
    if arguments.json:
        print_json({"made": made, "error": problem or None})
    else:
        for keys in made:
            print(_instructions_for(keys, directory))
    if problem:
        report_failure(code, problem, "tiledwriter-supervisor keygen")
    return code


def _instructions_for(keys: dict[str, str | None], directory: Path) -> str:
    if keys["name"] is None:
        return f"The supervisor's keys are in {keys['keys']}: start it with --curve {directory}."
    move = f"Move {keys['keys']} to the host of {keys['name']}, and give it to ZMQPublisher as `curve`."
    return f"{move}\n  To revoke its access, delete {keys['revoke']}."
