"""Counts of what the scheduler has seen since its start, and the conditions that it has found, for the snapshot."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._lifecycle import State
from ._failed_runs import FailedRuns, describe_without_worker
from ._snapshot import RunStatus

if TYPE_CHECKING:
    from .._clock import Instant
    from ..scheduler import Run


@dataclass
class Condition:
    """A condition that keeps the service from its work, as it was last found.

    Attributes
    ----------
    reason
        The reason; "" if the condition is over.
    since
        Unix time at which it was found first.
    seen
        Unix time at which it was found last.
    """

    reason: str = ""
    since: float = 0.0
    seen: float = 0.0

    def note(self, reason: str, now: float) -> None:
        """Note that the condition was found."""
        self.since = self.since if self.reason else now
        self.reason, self.seen = reason, now

    def clear(self) -> None:
        """Note that the condition is over."""
        self.reason = ""


@dataclass
class Tally:
    """What has been counted since the start. All times are Unix times.

    Attributes
    ----------
    outcomes
        Runs that became written or interrupted, by state.
    last_finished
        The last of them as it was then; None if there was none.
    failed
        The runs in quarantine.
    documents, bytes
        Documents made durable, and bytes of documents received.
    written_documents
        Documents confirmed in Tiled.
    deaths, died_at
        Deaths of workers, and the time of the last one; None if there was none.
    start_problem
        No worker can be started.
    journal_problem
        Journals cannot be written.
    """

    outcomes: Counter[State] = field(default_factory=Counter)
    last_finished: RunStatus | None = None
    failed: FailedRuns = field(default_factory=FailedRuns)
    documents: int = 0
    bytes: int = 0
    written_documents: int = 0
    deaths: int = 0
    died_at: float | None = None
    start_problem: Condition = field(default_factory=Condition)
    journal_problem: Condition = field(default_factory=Condition)

    def note_state(self, run: Run, now: Instant) -> None:
        """Note the state of a run after an event."""
        before, run.noted_state = run.noted_state, run.state
        if before is run.state:
            return
        run.since = now.unix
        if before is State.FAILED:
            self.failed.discard(run.uid)
        if run.state is State.FAILED:
            self.failed.add(run)
        elif run.is_final:
            self.outcomes[run.state] += 1
            self.last_finished = describe_without_worker(run)

    def note_death(self, now: Instant) -> None:
        """Count the death of a worker."""
        self.deaths += 1
        self.died_at = now.unix
