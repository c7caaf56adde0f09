"""The runs that need a worker and have none: which of them may get one, when, and why one waits."""

from __future__ import annotations

from .._clock import Instant
from ._resume_queue import ResumeQueue
from ._runs import Purpose, Run
from ._worker_roster import WorkerRoster


class StartQueue:
    """Runs with documents to store, in the order in which they came, and those with something left to write.

    A run that gets documents is taken out of the other queue. Runs with documents come first, and their workers may be
    as many as there is room for.

    Parameters
    ----------
    roster
        The runs that have a worker.
    resume_queue
        The queue of runs with something left to write.
    """

    def __init__(self, roster: WorkerRoster, resume_queue: ResumeQueue) -> None:
        self._roster = roster
        self._resume_queue = resume_queue
        self._to_store: dict[str, Run] = {}

    def __len__(self) -> int:
        return len(self._to_store) + len(self._resume_queue)

    def add(self, run: Run, purpose: Purpose) -> None:
        """Queue a run for a worker that is to store documents, which may come any time, or to write what is left."""
        if purpose is not Purpose.STORE:
            self._resume_queue.add(run)
        elif run.worker is None and run.uid not in self._to_store:
            self._resume_queue.discard(run)
            run.resume()
            self._to_store[run.uid] = run

    def discard(self, run: Run) -> None:
        """Remove a run from both queues."""
        self._to_store.pop(run.uid, None)
        self._resume_queue.discard(run)

    def has_documents_of(self, run: Run) -> bool:
        """Return whether a run waits for a worker that is to store documents."""
        return run.uid in self._to_store

    def list_due(self, now: float) -> list[Run]:
        """Return the runs with documents to store whose worker may be started at `now` (`time.monotonic`)."""
        return [run for run in self._to_store.values() if run.start_at <= now]

    def may_resume(self, now: float) -> bool:
        """Return whether one more run may be resumed, or audited, as far as the number of those is concerned."""
        return self._resume_queue.may_resume(self._roster.count_catching_up(), now)

    def find_next_time(self, *, may_resume: bool) -> float:
        """Return the time (`time.monotonic`) at which the next worker may be started, unless something happens before.

        Parameters
        ----------
        may_resume
            Include the runs with something left to write.
        """
        if not self._roster.has_room:
            return float("inf")
        due = [run.start_at for run in self._to_store.values()]
        if self._resume_queue and may_resume:
            parked = self._resume_queue.next_at(self._roster.count_catching_up())
            due += [] if parked is None else [parked]
        return min(due, default=float("inf"))

    def is_waiting_for_room(self, run: Run) -> bool:
        """Return whether a run has documents to store, and no worker because too many are running."""
        return run.uid in self._to_store and not self._roster.has_room

    def describe_wait(self, run: Run, now: Instant) -> str:
        """Return why a run does not go on, as a sentence; "" if it does, or has nothing to wait for."""
        if run.worker is not None:
            return run.worker.waits_for
        seconds = run.start_at - now.monotonic
        if seconds > 0 and run.deaths_without_writes:
            return f"Its worker died {run.deaths_without_writes} times; the next one starts in {seconds:.0f} s."
        if run.uid in self._to_store:
            return f"All {self._roster.max_workers} workers are busy." if self.is_waiting_for_room(run) else ""
        if run.uid not in self._resume_queue:
            return ""
        if self._resume_queue.away:
            return "Tiled does not accept requests; this run is resumed when it does."
        return f"It is in the queue of {len(self._resume_queue)} runs that are resumed, a few at a time."
