"""Output of commands: tables, times, and text that is safe to print on a terminal."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from io import TextIOWrapper
from typing import Any, Final

from .._plain_text import plain
from ._exit import ExitCode, discard, report_failure

__all__ = [
    "count_of",
    "discard_output",
    "fail",
    "flush_output",
    "local",
    "plain",
    "print_json",
    "print_table",
    "replace_closed_outputs",
    "size_of",
    "take_any_text",
]

_MAX_CELL_CHARACTERS: Final = 40
_MIN_LAST_CHARACTERS: Final = 40
_INDENT_CHARACTERS: Final = 10
_KIBI: Final = 1024
_UNITS: Final = ("KiB", "MiB", "GiB", "TiB")
_CELL_STYLES: Final = {
    **dict.fromkeys(("written",), "green"),
    **dict.fromkeys(("interrupted", "parked"), "yellow"),
    **dict.fromkeys(("failed", "damaged", "unreadable"), "bold red"),
}


def print_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; all columns but the last are cut at `_MAX_CELL_CHARACTERS`.

    On a terminal, the last column is wrapped: beside the others, or below them if there is no room, and states have
    colours if rich is installed. Else each row is one line.
    """
    cells = [list(header), *(_format_row(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    if not sys.stdout.isatty():
        for row in cells:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    print_line = _styled_printer()
    for line in _fit_rows(cells, widths, shutil.get_terminal_size().columns):
        print_line(line)


def _fit_rows(cells: Sequence[Sequence[str]], widths: Sequence[int], columns: int) -> Iterator[Sequence[str]]:
    """Yield the lines of a table that is at most `columns` characters wide if its first columns allow it, in parts."""
    indent = sum(widths[:-1]) + 2 * len(widths[:-1])
    is_beside = columns - indent >= _MIN_LAST_CHARACTERS
    if not is_beside:
        indent = _INDENT_CHARACTERS
    for number, row in enumerate(cells):
        parts = [part for cell, width in zip(row, widths[:-1], strict=False) for part in (cell.ljust(width), "  ")]
        wrapped = textwrap.wrap(row[-1], max(columns - indent, _INDENT_CHARACTERS))
        if is_beside:
            yield [*parts, *wrapped[:1]]
        else:
            yield parts[:-1]
        if number or is_beside:
            yield from ([" " * indent, line] for line in wrapped[is_beside:])


def _styled_printer() -> Callable[[Sequence[str]], None]:
    """Return a function that prints the parts of a line, with colours if rich is installed."""
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        return lambda parts: print("".join(parts).rstrip())
    console = Console(highlight=False, soft_wrap=True)

    def print_styled(parts: Sequence[str]) -> None:
        # Text, because strings of documents would be taken for markup.
        line = Text.assemble(*((part, _CELL_STYLES.get(part.strip(), "")) for part in parts))
        line.rstrip()
        console.print(line)

    return print_styled


def _format_row(row: Sequence[object]) -> list[str]:
    *cells, last = [plain(str(cell)) for cell in row]
    return [
        *(cell if len(cell) <= _MAX_CELL_CHARACTERS else f"{cell[: _MAX_CELL_CHARACTERS - 3]}..." for cell in cells),
        last,
    ]


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun, such as "1 run" or "2 runs"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size_of(size: int) -> str:
    """Return a number of bytes in a unit that suits it, such as "40.0 KiB"."""
    if size < _KIBI:
        return count_of(size, "byte")
    power = min(int(math.log(size, _KIBI)), len(_UNITS))
    return f"{size / _KIBI**power:.1f} {_UNITS[power - 1]}"


def print_json(value: Any, *, in_one_line: bool = False) -> None:
    """Print a value in JSON types as one JSON text; NaN and infinity, which JSON lacks, as null."""
    print(json.dumps(_finite(value), allow_nan=False, indent=None if in_one_line else 2), flush=in_one_line)


def _finite(value: Any) -> Any:
    """Return a value in JSON types with None for each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def local(timestamp: float | None) -> str:
    """Return a Unix time in seconds as local date and time with the offset from UTC (ISO 8601); "" for None."""
    if timestamp is None:
        return ""
    try:
        return datetime.fromtimestamp(timestamp).astimezone().isoformat("T", "seconds")
    except (ValueError, OverflowError, OSError):
        # The number is not a date in the range of `datetime`.
        return str(timestamp)


def take_any_text() -> None:
    """Make standard output escape characters that its encoding lacks, instead of failing."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def fail(code: ExitCode, message: str) -> ExitCode:
    """Print the reason of a failure to standard error, and return the code."""
    return report_failure(code, plain(message), "tiledwriter-journal")


def replace_closed_outputs() -> None:
    """Send what goes to a closed standard output or standard error to the null device.

    Python has no file for a closed one, and the next file that is opened would get its number.
    """
    sys.stdout = sys.stdout or _open_null_device()
    sys.stderr = sys.stderr or _open_null_device()


def output_was_closed() -> bool:
    """Return True if the process began without standard output, so that whatever is printed is lost."""
    return sys.__stdout__ is None


def _open_null_device() -> TextIOWrapper:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  it is open until the end of the process


def flush_output() -> None:
    """Flush standard output while a failure can still be reported.

    Raises
    ------
    OSError
        The output was not written completely: the disk is full, or the pipe has no reader.
    """
    sys.stdout.flush()


def discard_output() -> None:
    """Redirect standard output to the null device; see `discard`."""
    discard(sys.stdout)
