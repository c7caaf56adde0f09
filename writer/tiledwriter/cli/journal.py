"""`tiledwriter-journal`: inspect, check, ship, replay and prune journals and spools."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import signal
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tiledbroker import AddressError, BrokerError, JournalLocked, KeyFileError

from ..journals import reason_of
from . import _export, _inspect, _list, _prune, _retry, _ship, _verify
from ._completion import answer_completion
from ._exit import CommandFailed, ExitCode, Terminated, exit_codes_help
from ._parser import make_parser
from ._terminal import discard_output, fail, flush_output, print_json, replace_closed_outputs, take_any_text

_EXAMPLES = """\
examples:
  tiledwriter-journal ls --state failed,parked
  tiledwriter-journal show 3f2b
  tiledwriter-journal tail -f 3f2b /var/lib/tiledwriter
  tiledwriter-journal verify /var/lib/tiledwriter --config /etc/tiledwriter/config.yaml
  tiledwriter-journal export 3f2b -o run.jsonl

UID is the beginning of a run's uid, or a file. Without DIR, commands look at TILEDWRITER_JOURNAL_DIR, else at the
journal_dir of --config, else in the user's state directory. `COMMAND --help` has more examples.

"""


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    result = make_parser(
        "tiledwriter-journal",
        description="Inspect, check, export and prune journals, retry runs, ship spools, and replay backups.",
        epilog=f"{_EXAMPLES}{exit_codes_help()}",
    )
    commands = result.add_subparsers(required=True, metavar="COMMAND")
    for group in (_list, _inspect, _verify, _retry, _export, _ship, _prune):
        group.add_commands(commands)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    replace_closed_outputs()
    arguments_parser = parser()
    answer_completion(arguments_parser)
    arguments = arguments_parser.parse_args(argv)
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
            print_json(_describe_failure(arguments, message), in_one_line=arguments.json_lines)
        flush_output()
    except OSError:
        # Standard output cannot be written, which is probably also the reason of the failure.
        discard_output()
    return fail(code, message)


def _describe_failure(arguments: argparse.Namespace, message: str) -> Any:
    try:
        return arguments.json_failure(arguments, message)
    except (ImportError, CommandFailed):
        # What describes the command's results is not installed here, or the configuration cannot be used.
        return {"error": message}


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
