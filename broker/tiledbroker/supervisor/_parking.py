"""Runs that are journaled and wait to be written: whose turn it is, and how many try at a time.

While Tiled is away one of them at a time is tried, after pauses that grow. Once anybody gets through, the others follow
a few at a time, in the order in which they were published: a server that has just come back is not run over.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

from ._runs import Run

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0


class Parking:
    """Runs that have something left to write, and no worker. Times are of `time.monotonic`.

    Parameters
    ----------
    max_resumed
        How many of them may have a worker at a time.
    """

    def __init__(self, max_resumed: int) -> None:
        self.away = False
        self._max_resumed = max_resumed
        self._runs: dict[str, Run] = {}
        self._pause = _FIRST_PAUSE
        self._try_at = 0.0

    def __len__(self) -> int:
        return len(self._runs)

    def add(self, run: Run) -> None:
        """The run waits for its turn."""
        self._runs[run.uid] = run

    def discard(self, run: Run) -> None:
        """The run does not wait any more, if it did."""
        self._runs.pop(run.uid, None)

    def found_away(self, run: Run, now: float) -> None:
        """The worker of this run has given Tiled up for now."""
        if not self.away:
            log.warning("Tiled is away: finished runs are parked, and one at a time is tried.")
            self.away = True
            self._pause = _FIRST_PAUSE
        elif run.probe:
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
        self._try_at = max(self._try_at, now + self._pause)
        run.tries += 1

    def found_back(self) -> None:
        """Tiled has answered somebody."""
        if self.away:
            log.info("Tiled is back; %d runs are left to be written.", len(self._runs))
            self.away = False

    def allows(self, busy: int, now: float) -> bool:
        """Whether one more may be resumed beside `busy` others."""
        if self.away:
            return busy == 0 and now >= self._try_at
        return busy < self._max_resumed

    def take(self, now: float) -> Run | None:
        """The run whose turn it is, which then waits no more."""
        due = [run for run in self._runs.values() if run.start_at <= now]
        if not due:
            return None
        # Another one each time while Tiled is away: it may be only one run that Tiled does not let in.
        run = min(due, key=lambda run: (run.tries if self.away else 0, run.ended, run.order))
        del self._runs[run.uid]
        return run

    def next_at(self, busy: int) -> float | None:
        """When to look again, unless something happens before."""
        if not self._runs or (busy >= self._max_resumed if not self.away else busy):
            return None
        soonest = min(run.start_at for run in self._runs.values())
        return max(soonest, self._try_at) if self.away else soonest


def catching_up(runs: Iterable[Run]) -> int:
    """How many of these were resumed and are not where they would be if Tiled had never been away."""
    return sum(run.resumed and (run.ended or run.written < run.next) for run in runs)
