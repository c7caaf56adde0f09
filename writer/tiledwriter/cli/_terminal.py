"""What commands print: tables, times, and text that can do nothing to a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime

from ._exit import ExitCode


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print columns that are as wide as what is in them."""
    cells = [list(header), *([plain(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def local(timestamp: float | None) -> str:
    """A Unix time in the local time zone."""
    return (
        ""
        if timestamp is None
        else datetime.fromtimestamp(timestamp).astimezone().replace(tzinfo=None).isoformat(" ", "seconds")
    )


def plain(text: str) -> str:
    """Text that can do nothing to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def fail(code: ExitCode, message: str) -> ExitCode:
    """Say why the command fails; returns the code."""
    print(f"tiledwriter-journal: {plain(message)}", file=sys.stderr)
    return code
