"""The worker monitor: ends workers that do not answer, use too much memory, or do not end when told to.

`Scheduler.handle_worker_end` decides whether the run gets another worker then, as after any end of a worker.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from ...protocol import messages
from ._effects import Effect, KillWorker, SendToWorker
from ._runs import Run, Worker

log = logging.getLogger(__name__)

DEFAULT_SILENCE: Final = 60.0
"""Seconds without an answer after which a worker is replaced, by default."""

# Checks are one second apart. After a longer time the supervisor itself must have been stopped or blocked.
_OWN_ABSENCE_SECONDS: Final = 2.0
_PINGS_BEFORE_REPLACEMENT: Final = 4


@dataclass(frozen=True)
class WorkerLimits:
    """Limits of a worker.

    Attributes
    ----------
    memory
        Resident bytes above which a worker is replaced; None for no limit.
    silence
        Seconds without an answer after which a worker is replaced.
    """

    memory: int | None = None
    silence: float = DEFAULT_SILENCE


class WorkerMonitor:
    """Decides which workers are pinged, ended and killed. Times are those of `time.monotonic`.

    Parameters
    ----------
    limits
        Limits of each worker.
    now
        Time of the start.
    """

    def __init__(self, limits: WorkerLimits, now: float) -> None:
        self._limits = limits
        self._checked_at = now

    def check_workers(self, runs: Collection[Run], memory: Mapping[int, int], now: float) -> list[Effect]:
        """Return what to do with the workers of `runs`.

        Parameters
        ----------
        runs
            Runs that have a worker.
        memory
            Resident bytes of workers by number, as far as they are known.
        now
            The time.
        """
        was_absent = now - self._checked_at > _OWN_ABSENCE_SECONDS
        self._checked_at = now
        effects: list[Effect] = []
        for run in runs:
            worker = run.worker
            if worker is None:
                continue
            if was_absent:
                # The supervisor was stopped, not the workers; their answers are still unread.
                worker.answered_at = now
            effects += self._check_silence(run, worker, now)
            if worker.finish_by is not None and now >= worker.finish_by:
                effects.append(KillWorker(worker.number))
            effects += self._check_memory(run, worker, memory.get(worker.number, 0), now)
        return effects

    def _check_silence(self, run: Run, worker: Worker, now: float) -> list[Effect]:
        if not worker.forked:
            # The fork server has its own timeout.
            return []
        silence = self._limits.silence
        if now - worker.answered_at >= silence:
            if not worker.kill_reason:
                worker.kill_reason = f"its worker did not answer for {silence:g} s"
                log.error("The worker of run %s is ended: %s.", run.uid, worker.kill_reason)
            return [KillWorker(worker.number)]
        if now - max(worker.answered_at, worker.pinged_at) >= silence / _PINGS_BEFORE_REPLACEMENT:
            worker.pinged_at = now
            return [SendToWorker(worker.number, messages.Ping(0))]
        return []

    def _check_memory(self, run: Run, worker: Worker, used: int, now: float) -> list[Effect]:
        limit = self._limits.memory
        if limit is None or worker.kill_reason or used <= limit:
            return []
        worker.kill_reason = f"its worker took {used / 2**20:.0f} MiB of memory, of {limit / 2**20:.0f} MiB at most"
        log.error("The worker of run %s is ended: %s.", run.uid, worker.kill_reason)
        return [worker.tell_to_finish(now)]
