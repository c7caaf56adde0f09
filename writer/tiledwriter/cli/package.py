"""`python -m tiledwriter`: explain the commands, or run one of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from ._exit import ExitCode, print_error
from ._parser import suggestion_for

_COMMANDS: Final = ("supervisor", "journal")
_HELP: Final = """\
usage: python -m tiledwriter {supervisor,journal} ...

Write Bluesky runs to Tiled from outside the acquisition process.

commands:
  supervisor  run the service of the ingest host (the same as tiledwriter-supervisor)
  journal     inspect, check, ship, replay and prune runs (the same as tiledwriter-journal)

On the acquisition host, subscribe a publisher to the RunEngine:
  from tiledbroker import ZMQPublisher
  RE.subscribe(ZMQPublisher("tcp://ingest.example:5579"))

options:
  -h, --help  show this help message and exit
  --version   show the version of tiledwriter and exit

examples:
  python -m tiledwriter journal ls
  python -m tiledwriter supervisor --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print(_HELP, end="")
        return ExitCode.OK
    if first == "--version":
        from tiledbroker import __version__

        print(f"tiledwriter {__version__}")
        return ExitCode.OK
    command = first.removeprefix("tiledwriter-")
    # Imported here because the supervisor needs what acquisition hosts do not have.
    if command == "supervisor":
        from .supervisor import main as run
    elif command == "journal":
        from .journal import main as run
    else:
        hint = suggestion_for(first, _COMMANDS)
        print_error(f"{_HELP}\npython -m tiledwriter: there is no command {first!r}{hint}")
        return ExitCode.USAGE
    return int(run(arguments[1:]))
