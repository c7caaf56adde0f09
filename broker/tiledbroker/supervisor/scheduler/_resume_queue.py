"""The resume queue: runs that are journaled but not written, and how many of them may have a worker at a time.

While Tiled is away, one run at a time is tried, with growing pauses. Once a worker reaches Tiled, the others follow a
few at a time, in the order in which the runs arrived, so that a server that has just come back is not overloaded.
"""

from __future__ import annotations

import logging
from typing import Final

from ._runs import Run

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS: Final = 1.0
_MAX_PAUSE_SECONDS: Final = 30.0


class ResumeQueue:
    """Runs that have something left to write and no worker. Times are those of `time.monotonic`.

    Parameters
    ----------
    max_resumed
        How many of them may have a worker at a time.

    Attributes
    ----------
    away
        Tiled did not answer a worker, and has answered none since.
    """

    def __init__(self, max_resumed: int) -> None:
        self.away = False
        self._max_resumed = max_resumed
        self._runs: dict[str, Run] = {}
        self._pause = _FIRST_PAUSE_SECONDS
        self._try_at = 0.0

    def __len__(self) -> int:
        return len(self._runs)

    def __contains__(self, uid: object) -> bool:
        return uid in self._runs

    def add(self, run: Run) -> None:
        """Add a run to the queue."""
        self._runs[run.uid] = run

    def discard(self, run: Run) -> None:
        """Remove a run from the queue if it is there."""
        self._runs.pop(run.uid, None)

    def note_outage(self, run: Run, now: float, *, was_probe: bool) -> None:
        """Note that the run's worker, perhaps a probe, has ended because it could not reach Tiled."""
        if not self.away:
            log.debug("Finished runs are parked, and one at a time is tried.")
            self.away = True
            self._pause = _FIRST_PAUSE_SECONDS
        elif was_probe:
            self._pause = min(_MAX_PAUSE_SECONDS, 2 * self._pause)
        self._try_at = max(self._try_at, now + self._pause)
        run.outages += 1

    def note_recovery(self) -> None:
        """Note that Tiled has answered a worker."""
        if self.away:
            log.debug("%d parked runs are resumed, a few at a time.", len(self._runs))
            self.away = False

    def may_resume(self, busy: int, now: float) -> bool:
        """Return whether one more run may be resumed while `busy` others are."""
        if self.away:
            return busy == 0 and now >= self._try_at
        return busy < self._max_resumed

    def pop_next(self, now: float) -> Run | None:
        """Remove and return the next run to resume, or None."""
        due = [run for run in self._runs.values() if run.start_at <= now]
        if not due:
            return None
        # While Tiled is away, try a different run each time: Tiled may be refusing only this one.
        run = min(due, key=lambda run: (run.outages if self.away else 0, run.ended, run.order))
        del self._runs[run.uid]
        return run

    def next_at(self, busy: int) -> float | None:
        """Return when the next run may be resumed, or None if only another event can change that."""
        if not self._runs or (busy >= self._max_resumed if not self.away else busy):
            return None
        soonest = min(run.start_at for run in self._runs.values())
        return max(soonest, self._try_at) if self.away else soonest
