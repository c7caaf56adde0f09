"""What commands print: tables, times, and text that can do nothing to a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from io import TextIOWrapper
from typing import Final

from .._plain_text import plain
from ._exit import ExitCode

__all__ = ["discard_output", "fail", "flush_output", "local", "plain", "print_table", "take_any_text"]

_WIDEST: Final = 40


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns that are as wide as what is in them."""
    cells = [list(header), *(_cells(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cells(row: Sequence[object]) -> list[str]:
    *cells, last = [plain(str(cell)) for cell in row]
    return [*(cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 3]}..." for cell in cells), last]


def local(timestamp: float | None) -> str:
    """A Unix time in the local time zone."""
    if timestamp is None:
        return ""
    try:
        return datetime.fromtimestamp(timestamp).astimezone().replace(tzinfo=None).isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):  # no date that a calendar has
        return str(timestamp)


def take_any_text() -> None:
    """Escape what the terminal's encoding does not have, instead of failing."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def fail(code: ExitCode, message: str) -> ExitCode:
    """Say why the command fails; returns the code."""
    print(f"tiledwriter-journal: {plain(message)}", file=sys.stderr)
    return code


def flush_output() -> None:
    """Hand over what was printed, while a failure to do so can still be told.

    Raises
    ------
    OSError
        Not all of it was taken: a full disk, or a pipe without a reader.
    """
    sys.stdout.flush()


def discard_output() -> None:
    """Have nothing more printed: Python's own flush at its end must neither fail nor wait."""
    if isinstance(sys.stdout, TextIOWrapper):
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
