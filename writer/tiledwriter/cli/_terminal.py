"""Output of commands: tables, times, and text that is safe to print on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from io import TextIOWrapper
from typing import Final

from .._plain_text import plain
from ._exit import ExitCode

__all__ = ["count_of", "discard_output", "fail", "flush_output", "local", "plain", "print_table", "take_any_text"]

_MAX_CELL_CHARACTERS: Final = 40


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table with columns as wide as their content; all but the last are cut at `_MAX_CELL_CHARACTERS`."""
    cells = [list(header), *(_format_row(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _format_row(row: Sequence[object]) -> list[str]:
    *cells, last = [plain(str(cell)) for cell in row]
    return [
        *(cell if len(cell) <= _MAX_CELL_CHARACTERS else f"{cell[: _MAX_CELL_CHARACTERS - 3]}..." for cell in cells),
        last,
    ]


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun, such as "1 run" or "2 runs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def local(timestamp: float | None) -> str:
    """Return a Unix time in seconds as date and time in the local time zone; "" for None."""
    if timestamp is None:
        return ""
    try:
        return datetime.fromtimestamp(timestamp).astimezone().replace(tzinfo=None).isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        # The number is not a date in the range of `datetime`.
        return str(timestamp)


def take_any_text() -> None:
    """Make standard output escape characters that its encoding lacks, instead of failing."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def fail(code: ExitCode, message: str) -> ExitCode:
    """Print the reason of a failure to standard error, and return the code."""
    print(f"tiledwriter-journal: {plain(message)}", file=sys.stderr)
    return code


def flush_output() -> None:
    """Flush standard output while a failure can still be reported.

    Raises
    ------
    OSError
        The output was not written completely: the disk is full, or the pipe has no reader.
    """
    sys.stdout.flush()


def discard_output() -> None:
    """Redirect standard output to the null device, so that Python's flush at exit neither fails nor blocks."""
    if isinstance(sys.stdout, TextIOWrapper):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
