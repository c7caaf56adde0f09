"""`tiledwriter-journal`: looks into journals and spools, checks them, and does what has to be done about them."""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from collections.abc import Sequence

from tiledbroker import AddressError, JournalError, JournalLocked, KeyFileError

from . import _export, _looking, _moving, _prune, _retry, _verify
from ._exit import ExitCode
from ._terminal import fail, take_any_text

_EXAMPLES = """\
examples:
  tiledwriter-journal ls /var/lib/tiledwriter
  tiledwriter-journal show 3f2b /var/lib/tiledwriter
  tiledwriter-journal show 3f2b /var/lib/tiledwriter --operations --config /etc/tiledwriter/config.yaml
  tiledwriter-journal tail -f 3f2b /var/lib/tiledwriter
  tiledwriter-journal verify /var/lib/tiledwriter --tiled http://tiled.example:8000
  tiledwriter-journal retry 3f2b /var/lib/tiledwriter
  tiledwriter-journal export 3f2b run.jsonl /var/lib/tiledwriter
  tiledwriter-journal ship ~/.local/state/tiledwriter/spool tcp://ingest:5579
  tiledwriter-journal replay backups/*.jsonl --tiled http://tiled.example:8000
  tiledwriter-journal prune /var/lib/tiledwriter --older-than 90

exit codes: 0 done; 1 failed; 2 wrong usage; 3 in use by another process; 4 no such run, directory or file;
  5 something is left to be shipped or written; 6 something is damaged, or not in Tiled as it should be
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        "tiledwriter-journal",
        description="Look into the journals of runs, check them, try runs again, ship spools, and replay backups.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(required=True, metavar="COMMAND")
    for group in (_looking, _verify, _retry, _export, _moving, _prune):
        group.add_commands(commands)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = parser().parse_args(argv)
    take_any_text()
    try:
        return int(arguments.command(arguments))
    except (AddressError, KeyFileError) as error:
        return fail(ExitCode.USAGE, str(error))
    except BrokenPipeError:  # as in `tiledwriter-journal ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except KeyboardInterrupt:  # how `tail -f` is ended
        return ExitCode.OK
    except JournalLocked as error:
        return fail(ExitCode.LOCKED, str(error))
    except (JournalError, OSError, sqlite3.Error) as error:
        return fail(ExitCode.FAILED, str(error))


if __name__ == "__main__":
    sys.exit(main())
