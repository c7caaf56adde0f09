"""`tiledwriter-supervisor lease-dir`: prepare the directory that several ingest hosts keep their lease in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from tiledbroker.ownership import DirectoryStore

from .._given_path import path_of
from ._exit import ExitCode, report_failure
from ._terminal import print_json

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_DESCRIPTION = """\
Prepare a directory that all ingest hosts of a service mount, once for all of them, on any of them and as the service's
user. Hosts whose lease_dir is not prepared do not serve: it might just not be mounted.
"""
_EXAMPLES = """\
examples:
  tiledwriter-supervisor lease-dir /shared/tiledwriter
"""


def add_command(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the command line."""
    command = commands.add_parser(
        "lease-dir",
        help="prepare the directory of the lease of several hosts",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("directory", type=Path, metavar="DIR", help="the directory, which is made if missing")
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.set_defaults(command=prepare_directory)


def prepare_directory(arguments: argparse.Namespace) -> ExitCode:
    """Prepare the directory, and say what comes next."""
    directory, code, problem = arguments.directory, ExitCode.OK, ""
    try:
        directory = path_of(directory).absolute()
        DirectoryStore.create(directory)
    except ValueError as error:
        code, problem = ExitCode.USAGE, str(error)
    except FileExistsError as error:
        code, problem = ExitCode.FAILED, str(error)
    except OSError as error:
        code, problem = ExitCode.FAILED, f"{directory} cannot be prepared: {error.strerror}"
    if arguments.json:
        print_json({"made": None if problem else str(directory), "error": problem or None})
    elif problem:
        report_failure(code, problem, "tiledwriter-supervisor lease-dir")
    else:
        print(f"{directory} is prepared. Set it as lease_dir in the configuration of every host.")
    return code
