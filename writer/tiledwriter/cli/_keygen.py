"""`tiledwriter-supervisor keygen`: generate CURVE keys for the supervisor and its clients."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tiledbroker import KeyFileError
from tiledbroker.protocol import CLIENTS, PUBLIC_SUFFIX, make_client_keys, make_server_keys

from ._exit import ExitCode

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = """\
Make the supervisor's keys in DIR or, with --client, keys for a client that the supervisor accepts from then on.

A client's keys are in a directory of their own in DIR. Move it to the client's host and name it there:
  ZMQPublisher("tcp://ingest:5579", curve="~/tiledwriter-keys/NAME")
Deleting DIR/clients/NAME.key revokes the client's access at once, without a restart.
"""


def add_command(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "keygen",
        help="make CURVE keys",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("directory", type=Path, metavar="DIR", help="directory of the supervisor's keys")
    command.add_argument(
        "--client", action="append", metavar="NAME", default=[], help="make keys for this client; can be repeated"
    )
    command.set_defaults(command=make_keys)


def make_keys(arguments: argparse.Namespace) -> ExitCode:
    """Generate keys and print instructions for their use."""
    directory: Path = arguments.directory
    try:
        if not arguments.client:
            print(
                f"The supervisor's keys are in {make_server_keys(directory).parent}: start it with --curve {directory}."
            )
        for name in arguments.client:
            bundle = make_client_keys(directory, name)
            print(f"Move {bundle} to the host of {name}, and give it to ZMQPublisher as `curve`.")
            print(f"  To revoke its access, delete {directory / CLIENTS / (name + PUBLIC_SUFFIX)}.")
    except (KeyFileError, OSError) as error:
        print(f"tiledwriter-supervisor keygen: {error}", file=sys.stderr)
        return ExitCode.FAILED
    return ExitCode.OK
