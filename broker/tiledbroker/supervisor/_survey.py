"""First look at all journals in the directory after a start, in small slices between the supervisor's other work."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from ..log import LOG_SUFFIX, is_orphaned_log, is_run_file

log = logging.getLogger(__name__)

SLICE_SECONDS: Final = 0.005
"""Seconds of work at a time."""

# Pause between two slices, as a multiple of the time that the last slice took.
_PAUSE_SHARE: Final = 3


class Survey:
    """Visits each journal in some directories once, those most likely to be unfinished first.

    A write-ahead log whose journal is missing is visited, too: documents may be in it.

    Parameters
    ----------
    directories
        The directories, one after the other. Only the first file of a name is visited: it is that of the run.
    look
        Called with the path of each journal. An exception is logged, and the survey goes on with the next journal.

    Attributes
    ----------
    done
        All journals have been visited.
    seen
        Number of journals visited so far.
    failures
        Number of journals for which `look` has raised an exception.
    """

    def __init__(self, directories: Sequence[Path], look: Callable[[Path], None]) -> None:
        self._look = look
        self._steps = self._visit_journals(directories)
        self._next_at = 0.0
        self.done = False
        self.seen = self.failures = 0

    def next_at(self) -> float | None:
        """Return when to call `proceed` next (`time.monotonic`), or None if all journals have been visited."""
        return None if self.done else self._next_at

    def proceed(self) -> bool:
        """Work for `SLICE_SECONDS` if the pause is over; return whether all journals have been visited."""
        began = time.monotonic()
        if self.done or began < self._next_at:
            return self.done
        while time.monotonic() - began < SLICE_SECONDS:
            if next(self._steps, None) is None:
                self.done = True
                return True
        now = time.monotonic()
        self._next_at = now + _PAUSE_SHARE * (now - began)
        return False

    def _visit_journals(self, directories: Sequence[Path]) -> Iterator[bool]:
        """Yield after each small step."""
        visited: set[str] = set()
        for directory in directories:
            yield from self._visit_directory(directory, visited)

    def _visit_directory(self, directory: Path, visited: set[str]) -> Iterator[bool]:
        names: list[str] = []
        in_use: set[str] = set()
        with os.scandir(directory) as entries:
            for entry in entries:
                if is_run_file(entry.name):
                    if entry.name not in visited:
                        names.append(entry.name)
                elif entry.name.endswith(LOG_SUFFIX):
                    in_use.add(entry.name.removesuffix(LOG_SUFFIX))
                yield True
        logs = [name + LOG_SUFFIX for name in in_use.difference(names)]
        names += [name for name in logs if is_orphaned_log(directory / name)]
        # A killed supervisor leaves the WAL files of its workers' journals. A supervisor that ended in order leaves
        # none, but its unfinished runs are the latest.
        order: list[tuple[bool, float, Path]] = []
        for name in names:
            path = directory / name
            order.append((name not in in_use, -_modification_time(path), path))
            yield True
        visited.update(names)
        for _, _, path in sorted(order):
            self.seen += 1
            try:
                self._look(path)
            except Exception:
                self.failures += 1
                log.exception("The journal %s cannot be looked at; it is left as it is.", path)
            yield True


def _modification_time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        # The file is gone or cannot be accessed.
        return 0.0
