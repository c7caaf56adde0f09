"""`tiledwriter-journal`: inspect, check, ship, replay and prune journals and spools."""

from __future__ import annotations

import argparse
import json
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tiledbroker import AddressError, BrokerError, JournalLocked, KeyFileError

from ..journals import reason_of
from . import _export, _inspect, _prune, _retry, _ship, _verify
from ._exit import CommandFailed, ExitCode, Terminated, exit_codes_help
from ._terminal import discard_output, fail, flush_output, take_any_text

_EXAMPLES = """\
examples:
  tiledwriter-journal ls /var/lib/tiledwriter
  tiledwriter-journal show 3f2b /var/lib/tiledwriter
  tiledwriter-journal show 3f2b /var/lib/tiledwriter --operations --config /etc/tiledwriter/config.yaml
  tiledwriter-journal tail -f 3f2b /var/lib/tiledwriter
  tiledwriter-journal verify /var/lib/tiledwriter --profile beamline --config /etc/tiledwriter/config.yaml
  tiledwriter-journal retry 3f2b /var/lib/tiledwriter
  tiledwriter-journal export 3f2b run.jsonl /var/lib/tiledwriter
  tiledwriter-journal ship ~/.local/state/tiledwriter/spool tcp://ingest:5579
  tiledwriter-journal replay backups/*.jsonl --config /etc/tiledwriter/config.yaml
  tiledwriter-journal prune /var/lib/tiledwriter --older-than 90

"""


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    result = argparse.ArgumentParser(
        "tiledwriter-journal",
        description="Inspect, check, export and prune journals, retry runs, ship spools, and replay backups.",
        epilog=f"{_EXAMPLES}{exit_codes_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = result.add_subparsers(required=True, metavar="COMMAND")
    for group in (_inspect, _verify, _retry, _export, _ship, _prune):
        group.add_commands(commands)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parser().parse_args(argv)
    take_any_text()
    with _terminated_by_exception():
        try:
            code = int(arguments.command(arguments))
            flush_output()
            return code
        except KeyboardInterrupt as interrupt:
            discard_output()
            code = ExitCode.TERMINATED if isinstance(interrupt, Terminated) else ExitCode.INTERRUPTED
            return fail(code, f"{code.meaning}, before everything was done")
        except BrokenPipeError:
            # The reader of the output has ended, as in `tiledwriter-journal ls | head`.
            discard_output()
            return ExitCode.BROKEN_PIPE
        except (BrokerError, CommandFailed, OSError, sqlite3.Error) as error:
            return _report_failure(arguments, _code_of(error), reason_of(error))


def _code_of(error: Exception) -> ExitCode:
    if isinstance(error, CommandFailed):
        return error.code
    if isinstance(error, JournalLocked):
        return ExitCode.LOCKED
    return ExitCode.USAGE if isinstance(error, AddressError | KeyFileError) else ExitCode.FAILED


def _report_failure(arguments: argparse.Namespace, code: ExitCode, message: str) -> ExitCode:
    """Report a failure on standard error and, with `--json`, also as JSON on standard output."""
    try:
        if getattr(arguments, "json", False):
            print(json.dumps(arguments.json_failure(arguments, message), indent=2))
        flush_output()
    except OSError:
        # Standard output cannot be written, which is probably also the reason of the failure.
        discard_output()
    return fail(code, message)


@contextmanager
def _terminated_by_exception() -> Iterator[None]:
    """Make SIGTERM raise `Terminated`, so that temporary files are deleted."""

    def terminate(*_: Any) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
