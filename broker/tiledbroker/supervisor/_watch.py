"""Whether workers are well: they answer, keep within their memory, and leave when they are told to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, Protocol

from ._runs import ProcessIdentity, Run

log = logging.getLogger(__name__)

DEFAULT_SILENCE: Final = 60.0
FINISH_TIMEOUT: Final = 10.0

_INTERVAL: Final = 1.0
_OWN_ABSENCE: Final = 2.0
_ORPHAN_GRACE: Final = 2.0


class ProcessWatch(Protocol):
    """What there is to know of processes. `tiledwriter` has it from psutil, which the acquisition host does without."""

    def identity(self, pid: int) -> ProcessIdentity | None:
        """Of a living process: its pid with the time of its creation, since pids are used again."""

    def memory(self, pid: int) -> int | None:
        """Resident bytes."""

    def is_alive(self, process: ProcessIdentity) -> bool:
        """Whether this very process is there, and not only one of the same pid."""

    def kill(self, process: ProcessIdentity) -> bool:
        """End this very process with SIGKILL; False if it is not there."""


@dataclass(frozen=True)
class WorkerLimits:
    """What is expected of a worker.

    Attributes
    ----------
    memory
        Resident bytes above which it is replaced; None: any.
    silence
        Seconds without an answer after which it is replaced.
    """

    memory: int | None = None
    silence: float = DEFAULT_SILENCE


class WorkerWatch:
    """Looks after workers, once a second.

    Parameters
    ----------
    processes
        None: memory is not watched, and what a killed supervisor left behind is not looked for.
    ask
        Sends a worker a message that it has to answer.
    end
        Tells a worker to end.
    """

    def __init__(
        self,
        limits: WorkerLimits,
        processes: ProcessWatch | None,
        *,
        ask: Callable[[Run], None],
        end: Callable[[Run], None],
    ) -> None:
        self._limits = limits
        self._processes = processes
        self._ask = ask
        self._end = end
        self._looked = self._began = time.monotonic()

    def look(self, runs: Collection[Run], now: float) -> bool:
        """Look after the workers of `runs`, if it is time to; whether it was."""
        absence = now - self._looked
        if absence < _INTERVAL:
            return False
        self._looked = now
        for run in runs:
            if absence > _OWN_ABSENCE:  # it is us who were stopped; the workers' answers are still to be read
                run.answered = now
            self._look_for_silence(run, now)
            if run.finish_by is not None and now >= run.finish_by:
                self.kill(run)
            if self._limits.memory is not None and self._processes is not None:
                self._look_at_memory(run, self._limits.memory, self._processes)
        return True

    def started(self, run: Run) -> None:
        """A worker was forked for the run."""
        assert run.process is not None
        run.answered = run.asked = time.monotonic()
        pid = run.process.pid
        run.worker = self._processes.identity(pid) if self._processes is not None and pid is not None else None

    def kill(self, run: Run) -> None:
        """End the run's worker with SIGKILL."""
        if self._processes is not None and run.worker is not None:
            self._processes.kill(run.worker)
        elif run.process is not None:
            run.process.kill()

    def orphan_is_gone(self, run: Run, now: float) -> bool:
        """Whether the worker that the journal names is gone; one that should have ended by itself is helped to.

        Workers of a supervisor that was killed end by themselves, unless they hang.
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
            return  # it is being forked, and the fork server is looked after by itself
        if now - run.answered >= self._limits.silence:
            if not run.accused:
                run.accused = f"its worker did not answer for {self._limits.silence:g} s"
                log.error("The worker of run %s is ended: %s.", run.uid, run.accused)
            self.kill(run)
        elif now - max(run.answered, run.asked) >= self._limits.silence / 4:
            run.asked = now
            self._ask(run)

    def _look_at_memory(self, run: Run, limit: int, processes: ProcessWatch) -> None:
        if run.worker is None or run.accused:
            return
        used = processes.memory(run.worker[0]) or 0
        if used > limit:
            run.accused = f"its worker took {used / 2**20:.0f} MiB of memory, of {limit / 2**20:.0f} MiB at most"
            log.error("The worker of run %s is ended: %s.", run.uid, run.accused)
            self._end(run)
