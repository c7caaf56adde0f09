"""A supervisor's first look at the journals in its directory: a little at a time, as it answers everybody meanwhile."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ..log import is_run_file

log = logging.getLogger(__name__)

SLICE_SECONDS: Final = 0.005
"""Work at a time."""

_PAUSE_SHARE: Final = 3  # times as long as a slice has taken

_LOG_SUFFIX: Final = "-wal"


class Survey:
    """Looks at each journal at the top of a directory once, those that are most likely to be unfinished first.

    Parameters
    ----------
    look
        Called with each; what it raises is logged, and costs that journal only.
    """

    def __init__(self, directory: Path, look: Callable[[Path], None]) -> None:
        self._directory = directory
        self._look = look
        self._steps = self._walk()
        self._next_at = 0.0
        self.done = False
        self.seen = 0

    def next_at(self) -> float | None:
        """When to `proceed`; None if there is nothing left to do. Times are of `time.monotonic`."""
        return None if self.done else self._next_at

    def proceed(self) -> bool:
        """Work for a moment, if it is time to; whether all is done then."""
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

    def _walk(self) -> Iterator[bool]:
        """One step after another."""
        names: list[str] = []
        in_use: set[str] = set()
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if is_run_file(entry.name):
                    names.append(entry.name)
                elif entry.name.endswith(_LOG_SUFFIX):
                    in_use.add(entry.name.removesuffix(_LOG_SUFFIX))
                yield True
        # A supervisor that was killed leaves its workers' logs; the runs of one that ended in order are the latest.
        order: list[tuple[bool, float, Path]] = []
        for name in names:
            path = self._directory / name
            order.append((name not in in_use, -_modified(path), path))
            yield True
        for _, _, path in sorted(order):
            self.seen += 1
            try:
                self._look(path)
            except Exception:
                log.exception("The journal %s cannot be looked at; it is left as it is.", path)
            yield True


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # it has gone, or cannot be looked at
        return 0.0
