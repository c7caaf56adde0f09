"""The runs that have a worker, and which of these workers end first to make room for others."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection
from typing import Final

from .._clock import Instant
from .._lifecycle import State
from ._effects import SendToWorker
from ._runs import Purpose, Run, Worker

log = logging.getLogger(__name__)

# A run is active if documents came for it in this time.
_ACTIVE_SECONDS: Final = 1.0


class WorkerRoster:
    """Runs by the number of their worker. A run is in it from the decision to start a worker to the end of this one.

    Parameters
    ----------
    max_workers
        Worker processes at a time.
    """

    def __init__(self, max_workers: int) -> None:
        self.max_workers = max_workers
        self._runs: dict[int, Run] = {}
        self._numbers = itertools.count(1)

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, number: int) -> Run:
        return self._runs[number]

    def get(self, number: int) -> Run | None:
        """Return the run of a worker; None if it was replaced."""
        return self._runs.get(number)

    @property
    def runs(self) -> Collection[Run]:
        """The runs."""
        return self._runs.values()

    @property
    def workers(self) -> list[Worker]:
        """The workers of the runs."""
        return [run.worker for run in self._runs.values() if run.worker is not None]

    @property
    def has_room(self) -> bool:
        """Whether another worker may be started."""
        return len(self._runs) < self.max_workers

    def add_worker(self, run: Run, purpose: Purpose, now: Instant, *, is_probe: bool) -> Worker:
        """Give a run a worker, and return it."""
        worker = Worker(next(self._numbers), purpose, is_probe, now.monotonic, now.monotonic, started=now.unix)
        run.worker = worker
        self._runs[worker.number] = run
        return worker

    def remove_worker(self, run: Run) -> Worker:
        """Take the worker away from a run, and return it."""
        worker = run.worker
        assert worker is not None
        del self._runs[worker.number]
        run.worker = None
        return worker

    def count_catching_up(self) -> int:
        """Return how many workers write what earlier workers left."""
        return sum(run.is_catching_up for run in self._runs.values())

    def count_active(self, now: float) -> int:
        """Return how many runs got documents a moment ago."""
        return sum(now - run.heard_at < _ACTIVE_SECONDS for run in self._runs.values())

    def end_idle(self, places: int, now: float, *, away: bool, open_only: bool) -> list[SendToWorker]:
        """Tell idle workers to end, to make room for others. Those that are about to end already make room as well.

        Audits come first, then workers of ended runs (latest run first), then those of open runs (longest idle first).

        Parameters
        ----------
        places
            Number of workers to make room for.
        now
            Time of `time.monotonic`.
        away
            Tiled does not accept requests.
        open_only
            Leave out runs that have ended, whose workers may have something to write.
        """
        places -= sum(worker.finish_by is not None for worker in self.workers)
        idle = [run for run in self._runs.values() if run.worker_may_end(now, away=away)]
        if open_only:
            idle = [run for run in idle if run.state is State.OPEN]
        sent = []
        for run in sorted(idle, key=_order_of_ending, reverse=True)[: max(places, 0)]:
            log.debug("Run %s is parked to make room.", run.uid)
            assert run.worker is not None
            sent.append(run.worker.tell_to_finish(now))
        return sent


def _order_of_ending(run: Run) -> tuple[bool, bool, float]:
    is_audit = run.worker is not None and run.worker.purpose is Purpose.AUDIT
    return is_audit, run.ended, run.order if run.ended else -run.heard_at
