"""Progress of commands that take long, on standard error and only if that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from ._terminal import plain

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

_CLEAR_LINE: Final = "\r\x1b[K"


class Progress:
    """Progress that nobody sees, because standard error is no terminal."""

    def show(self, done: int, total: int | None = None, note: str = "") -> None:
        """Show how much is done.

        Parameters
        ----------
        done
            Number of runs or documents that are done.
        total
            Number of all of them; None if it is unknown.
        note
            What is being done, or waited for.
        """

    def print_line(self, line: str) -> None:
        """Print a line of the command's output, out of the way of the progress."""
        print(plain(line), flush=True)


class _PlainProgress(Progress):
    """Progress as one line of text, for hosts without rich."""

    def __init__(self, title: str, unit: str) -> None:
        self._title = title
        self._unit = unit

    def show(self, done: int, total: int | None = None, note: str = "") -> None:
        count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        sys.stderr.write(f"{_CLEAR_LINE}{self._title}: {count} {self._unit}s {plain(note)}".rstrip())
        sys.stderr.flush()

    def print_line(self, line: str) -> None:
        self.clear()
        super().print_line(line)

    def clear(self) -> None:
        sys.stderr.write(_CLEAR_LINE)
        sys.stderr.flush()


class _BarProgress(Progress):
    """Progress as a bar of rich."""

    def __init__(self, bars: RichProgress, bar: TaskID) -> None:
        self._bars = bars
        self._bar = bar

    def show(self, done: int, total: int | None = None, note: str = "") -> None:
        self._bars.update(self._bar, completed=done, total=total, note=plain(note))

    def print_line(self, line: str) -> None:
        # The bar is drawn on standard error by a thread; without it, the line may go anywhere.
        self._bars.stop()
        super().print_line(line)
        self._bars.start()


@contextmanager
def shown_progress(title: str, unit: str, *, total: int | None = None) -> Iterator[Progress]:
    """Show progress during the context; do nothing if standard error is no terminal.

    Parameters
    ----------
    title
        What is being done, such as "verifying".
    unit
        What is counted, such as "run".
    total
        Number of all of them; None if it is unknown.
    """
    if not sys.stderr.isatty():
        yield Progress()
        return
    try:
        from rich import progress as rich_progress
        from rich.console import Console
    except ImportError:
        line = _PlainProgress(title, unit)
        try:
            line.show(0, total)
            yield line
        finally:
            line.clear()
        return
    columns = (
        rich_progress.TextColumn("{task.description}", markup=False),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TextColumn(f"{unit}s"),
        rich_progress.TimeRemainingColumn(elapsed_when_finished=True),
        rich_progress.TextColumn("{task.fields[note]}", markup=False),
    )
    bars = rich_progress.Progress(
        *columns,
        console=Console(stderr=True, highlight=False),
        transient=True,
        # Standard output may be a file, and must not be drawn on the terminal.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with bars:
        yield _BarProgress(bars, bars.add_task(title, total=total, note=""))
