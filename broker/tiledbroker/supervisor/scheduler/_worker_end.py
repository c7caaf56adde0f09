"""The end of a worker: the state in which its run is left, and whether the run needs another worker.

A worker that ends in order has completed its run, or leaves something to a later worker. After one that has died comes
another, with a pause that grows, until the run is put in quarantine; unless it died after it had recorded the outcome.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._clock import Instant
from .._lifecycle import Event, State
from ._audit_schedule import PUT_OFF_SECONDS
from ._effects import Effect, RecordEvent
from ._runs import Purpose, Run, Worker

if TYPE_CHECKING:
    from .._journal_facts import JournalFacts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Aftermath:
    """What follows from the end of a worker, beside the new state of its run.

    Attributes
    ----------
    effects
        What is to be recorded and told.
    next_purpose
        Why the run needs another worker; None if it needs none now.
    tiled_is_away
        The worker has ended by itself because Tiled is away.
    """

    effects: Sequence[Effect] = ()
    next_purpose: Purpose | None = None
    tiled_is_away: bool = False


def settle_run(
    run: Run, worker: Worker, exit_code: int | None, facts: JournalFacts, now: Instant, *, is_stopping: bool
) -> Aftermath:
    """Bring a run whose worker has ended to the state that it is left in, and return what follows.

    Parameters
    ----------
    run
        The run, which has no worker any more.
    worker
        The worker that has ended.
    exit_code
        Its exit code; None if it is unknown.
    facts
        What the run's journal says now.
    now
        The time.
    is_stopping
        The supervisor ends, so no other worker follows.
    """
    died = worker.has_died(exit_code)
    if run.is_complete and facts.state is State.STARTING and facts.length:
        # The worker has stored documents that came behind the end, and has not written them.
        run.resume()
        if died:
            after = _settle_death(run, worker, exit_code, now, is_stopping=is_stopping)
        else:
            after = Aftermath(_read_outcome(run, facts, now), None if is_stopping else Purpose.RESUME)
    elif run.is_final:
        tiled_is_away = not died and not is_stopping and _left_audit_undone(run, worker, facts)
        after = Aftermath(tiled_is_away=tiled_is_away)
    elif died and not _has_recorded_outcome(run, facts):
        after = _settle_death(run, worker, exit_code, now, is_stopping=is_stopping)
    else:
        after = _settle_orderly_end(run, worker, facts, now, is_stopping=is_stopping)
    if not worker.kill_reason or is_stopping:
        return after
    ended = RecordEvent(run.journal, "worker ended", {"reason": worker.kill_reason})
    return Aftermath([ended, *after.effects], after.next_purpose, after.tiled_is_away)


def _has_recorded_outcome(run: Run, facts: JournalFacts) -> bool:
    """Return whether a worker has concluded its run, although it may have died before it could say so."""
    is_recorded = facts.ended and not facts.unusable and facts.state is not State.STARTING
    return is_recorded and run.state in (State.OPEN, State.CLOSING)


def _left_audit_undone(run: Run, worker: Worker, facts: JournalFacts) -> bool:
    """Return whether a worker has ended without its audit although nobody told it to end, nor documents came."""
    if worker.purpose is not Purpose.AUDIT or not run.is_complete or run.queued_messages:
        return False
    is_undone = not facts.unavailable and facts.audit_at is not None and facts.audit_at == run.audit_at
    return is_undone and worker.finish_by is None


def _settle_orderly_end(run: Run, worker: Worker, facts: JournalFacts, now: Instant, *, is_stopping: bool) -> Aftermath:
    """Handle a worker that ended in order: the run is complete, parked, or drained."""
    effects = _read_outcome(run, facts, now)
    if not run.has_work_left or is_stopping:
        return Aftermath(effects)
    # Unless it was told to, a worker ends with work left only if it cannot reach Tiled, or use the journal.
    tiled_is_away = worker.finish_by is None and not facts.unusable
    return Aftermath(effects, Purpose.RESUME, tiled_is_away)


def _read_outcome(run: Run, facts: JournalFacts, now: Instant) -> Sequence[Effect]:
    """Take the outcome from the journal, in case the worker's last messages were lost."""
    if facts.unusable:
        # The journal may be usable again later; otherwise the next worker reports it.
        run.apply_event(Event.PARKED)
        run.start_at = now.monotonic + PUT_OFF_SECONDS
        return ()
    run.next, run.end = max(run.next, facts.length), facts.end
    run.note_end(ended=facts.ended)
    if facts.state is not State.STARTING and run.state is State.CLOSING:
        return run.apply_outcome(facts.state, facts.reason)
    run.apply_event(Event.PARKED)
    return ()


def _settle_death(run: Run, worker: Worker, exit_code: int | None, now: Instant, *, is_stopping: bool) -> Aftermath:
    """Choose between another worker, now or in the queue of runs to resume, and quarantine."""
    if is_stopping:
        run.apply_event(Event.DIED)
        return Aftermath()
    run.note_death(now.monotonic)
    pause_seconds = run.start_at - now.monotonic
    following = "no other is started" if run.is_hopeless else f"starting another in {pause_seconds:.2f} s or later"
    log.warning("The worker of run %s ended with exit code %s; %s.", run.uid, exit_code, following)
    if run.is_hopeless:
        return Aftermath(_quarantine(run, worker.kill_reason))
    may_get_documents = bool(run.queued_messages) or not run.ended
    return Aftermath(next_purpose=Purpose.STORE if may_get_documents else Purpose.RESUME)


def _quarantine(run: Run, kill_reason: str) -> Sequence[Effect]:
    """Give up a run whose workers die without progress. Its documents are still journaled."""
    times = max(run.deaths, run.deaths_without_writes)
    reason = f"its worker died {times} times in a row without progress"
    reason = f"{reason}; at last {kill_reason}" if kill_reason else reason
    state = {"outcome": State.FAILED.value, "reason": reason}
    quarantined = RecordEvent(run.journal, "quarantined", {"reason": reason}, state)
    return [quarantined, *run.apply_outcome(State.FAILED, reason)]
