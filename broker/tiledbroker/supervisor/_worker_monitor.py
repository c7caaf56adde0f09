"""The worker monitor: replaces workers that do not answer, use too much memory, or do not end when told to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

from ._runs import ProcessIdentity, Run

log = logging.getLogger(__name__)

# Seconds without an answer after which a worker is replaced, by default.
DEFAULT_SILENCE: Final = 60.0
# Seconds that a worker has to end after it was told to; then it is killed.
FINISH_TIMEOUT: Final = 10.0

# Seconds between two checks.
_INTERVAL: Final = 1.0
# Seconds since the last check above which the supervisor itself must have been stopped or blocked.
_OWN_ABSENCE: Final = 2.0
# Seconds that workers of an earlier supervisor have to end by themselves; then they are killed.
_ORPHAN_GRACE: Final = 2.0


class ProcessTable(Protocol):
    """Access to processes. `tiledwriter` implements it with psutil, which acquisition hosts do not install."""

    def identity(self, pid: int) -> ProcessIdentity | None:
        """Return the pid and creation time of a living process, since pids are reused; None if it is gone."""

    def memory(self, pid: int) -> int | None:
        """Return the resident memory in bytes; None if the process is gone."""

    def is_alive(self, process: ProcessIdentity) -> bool:
        """Return whether this process is alive, not another one with the same pid."""

    def kill(self, process: ProcessIdentity) -> bool:
        """Kill this process with SIGKILL; return False if it is gone."""


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
    """Checks workers once a second.

    Parameters
    ----------
    limits
        Limits of each worker.
    processes
        Access to processes. None: memory is not checked, and orphans of a killed supervisor are not killed.
    ask
        Sends the run's worker a message that it must answer.
    end
        Tells the run's worker to end.
    """

    def __init__(
        self,
        limits: WorkerLimits,
        processes: ProcessTable | None,
        *,
        ask: Callable[[Run], None],
        end: Callable[[Run], None],
    ) -> None:
        self._limits = limits
        self._processes = processes
        self._ask = ask
        self._end = end
        self._looked = self._began = time.monotonic()

    def check_workers(self, runs: Collection[Run], now: float) -> bool:
        """Check the workers of `runs` if the last check was a second ago; return whether it was."""
        absence = now - self._looked
        if absence < _INTERVAL:
            return False
        self._looked = now
        for run in runs:
            if absence > _OWN_ABSENCE:
                # The supervisor was stopped, not the workers; their answers are still unread.
                run.answered = now
            self._look_for_silence(run, now)
            if run.finish_by is not None and now >= run.finish_by:
                self.kill(run)
            if self._limits.memory is not None and self._processes is not None:
                self._look_at_memory(run, self._limits.memory, self._processes)
        return True

    def started(self, run: Run) -> None:
        """Register the worker that was forked for the run."""
        assert run.process is not None
        run.answered = run.asked = time.monotonic()
        pid = run.process.pid
        run.worker = self._processes.identity(pid) if self._processes is not None and pid is not None else None

    def kill(self, run: Run) -> None:
        """Kill the run's worker with SIGKILL."""
        if self._processes is not None and run.worker is not None:
            self._processes.kill(run.worker)
        elif run.process is not None:
            run.process.kill()

    def orphan_is_gone(self, run: Run, now: float) -> bool:
        """Return whether the worker named in the journal is gone; kill it if it should have ended by now.

        Workers of a killed supervisor end by themselves unless they hang.
        """
        orphan, processes = run.orphan, self._processes
        if orphan is None or processes is None or not processes.is_alive(orphan):
            run.orphan = None
        elif now >= self._began + _ORPHAN_GRACE:
            log.warning("Process %d, a worker of run %s that nobody waits for, hangs; ending it.", orphan[0], run.uid)
            processes.kill(orphan)
            run.orphan = None
        return run.orphan is None

    def _look_for_silence(self, run: Run, now: float) -> None:
        if run.process is not None and run.process.pid is None:
            # The worker is being forked; the fork server has its own timeout.
            return
        if now - run.answered >= self._limits.silence:
            if not run.kill_reason:
                run.kill_reason = f"its worker did not answer for {self._limits.silence:g} s"
                log.error("The worker of run %s is ended: %s.", run.uid, run.kill_reason)
            self.kill(run)
        elif now - max(run.answered, run.asked) >= self._limits.silence / 4:
            run.asked = now
            self._ask(run)

    def _look_at_memory(self, run: Run, limit: int, processes: ProcessTable) -> None:
        if run.worker is None or run.kill_reason:
            return
        used = processes.memory(run.worker[0]) or 0
        if used > limit:
            run.kill_reason = f"its worker took {used / 2**20:.0f} MiB of memory, of {limit / 2**20:.0f} MiB at most"
            log.error("The worker of run %s is ended: %s.", run.uid, run.kill_reason)
            self._end(run)
