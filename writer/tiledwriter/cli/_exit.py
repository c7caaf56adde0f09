"""Exit codes of all commands but `check` and `status`, which tell more, and the exceptions that end a command."""

from __future__ import annotations

import os
import sys
import textwrap
from enum import IntEnum
from io import TextIOWrapper
from typing import Final, TextIO, TypeVar

from tiledbroker._wording import format_install

_LINE_CHARACTERS: Final = 100

Code = TypeVar("Code", bound=IntEnum)


class ExitCode(IntEnum):
    """Exit code of a command, with its meaning.

    A command returns 0 only if it has checked everything that it was asked to check and was not interrupted.
    """

    meaning: str

    def __new__(cls, value: int, meaning: str) -> ExitCode:
        """Create a member with its number as value and its meaning as attribute."""
        code = int.__new__(cls, value)
        code._value_ = value
        code.meaning = meaning
        return code

    OK = 0, "done, or ended as asked"
    FAILED = 1, "something failed or could not be read (see the message)"
    USAGE = 2, "the command line or the configuration is wrong, or a uid is ambiguous"
    LOCKED = 3, "another process uses the directory or file"
    NOT_FOUND = 4, "no such run, directory or file, or no runs to verify"
    INCOMPLETE = 5, "something remains to be shipped or written"
    DIFFERS = 6, "something is damaged, or not in Tiled as it should be"
    INTERRUPTED = 130, "ended by Ctrl-C (SIGINT)"
    BROKEN_PIPE = 141, "the output was closed by its reader"
    TERMINATED = 143, "ended by SIGTERM"


class CommandFailed(Exception):
    """Raised when a command cannot continue; it ends with exit code `code`."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def without_extra(error: ImportError) -> CommandFailed:
    """Return the failure of a command that needs packages that an acquisition host lacks."""
    return CommandFailed(ExitCode.FAILED, f"{error}. This needs: {format_install('ingest')}")


class Terminated(KeyboardInterrupt):
    """Raised in the main thread on SIGTERM, as `KeyboardInterrupt` is on SIGINT."""


def exit_codes_help() -> str:
    """Return the list of all codes for `--help`."""
    text = "exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in ExitCode)
    return "\n".join(textwrap.wrap(text, _LINE_CHARACTERS, subsequent_indent="  ", break_on_hyphens=False)) + "\n"


def report_failure(code: Code, message: str, command: str = "tiledwriter-supervisor") -> Code:
    """Print why a command cannot go on, and return the exit code."""
    print_error(f"{command}: {message}")
    return code


def print_error(line: str) -> None:
    """Print a line to standard error if that can be written: the exit code must not depend on it."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def discard(stream: TextIO) -> None:
    """Redirect a standard stream to the null device, so that Python's flush at exit neither fails nor blocks."""
    if isinstance(stream, TextIOWrapper):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
