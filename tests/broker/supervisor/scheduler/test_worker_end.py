"""The end of a worker: the state of its run, and what follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.protocol import messages
from tiledbroker.supervisor._clock import Instant
from tiledbroker.supervisor._journal_facts import JournalFacts
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor._publishers import Publisher
from tiledbroker.supervisor.scheduler._audit_schedule import PUT_OFF_SECONDS
from tiledbroker.supervisor.scheduler._effects import RecordEvent, TellPublisher
from tiledbroker.supervisor.scheduler._runs import MAX_DEATHS, Purpose, Run, Worker
from tiledbroker.supervisor.scheduler._worker_end import Aftermath, settle_run

NOW = Instant(100.0, 1_000_100.0)
JOURNAL = Path("run.sqlite")


def make_run(state: State, *, length: int = 4, ended: bool = True, written: int = 0) -> Run:
    return Run("run", JOURNAL, state, next=length, ended=ended, written=written)


def make_facts(state: State = State.STARTING, *, ended: bool = True, audit_at: float | None = None) -> JournalFacts:
    return JournalFacts("run", JOURNAL, state, length=4, ended=ended, audit_at=audit_at)


def make_worker(purpose: Purpose = Purpose.STORE, *, told_to_finish: bool = False, kill_reason: str = "") -> Worker:
    worker = Worker(1, purpose, False, 0.0, 0.0, forked=True, ready=True, kill_reason=kill_reason)
    worker.finish_by = 110.0 if told_to_finish else None
    return worker


def settle(
    run: Run,
    exit_code: int | None = 0,
    worker: Worker | None = None,
    facts: JournalFacts | None = None,
    *,
    is_stopping: bool = False,
) -> Aftermath:
    worker, facts = worker or make_worker(), facts or make_facts(ended=run.ended)
    return settle_run(run, worker, exit_code, facts, NOW, is_stopping=is_stopping)


# In order


def test_outcome_is_taken_from_the_journal_and_told() -> None:
    run, alice = make_run(State.CLOSING), Publisher(b"alice", "", "127.0.0.1")
    run.publishers.add(alice)
    after = settle(run, facts=make_facts(State.INTERRUPTED))
    assert run.state is State.INTERRUPTED
    assert after == Aftermath([TellPublisher(alice, messages.Written("run", "interrupted", ""))])


def test_worker_that_ends_by_itself_with_work_left_has_not_reached_tiled() -> None:
    run = make_run(State.CLOSING)
    assert settle(run) == Aftermath((), Purpose.RESUME, tiled_is_away=True)
    assert run.state is State.PARKED


def test_worker_that_was_told_to_end_says_nothing_of_tiled() -> None:
    after = settle(make_run(State.CLOSING), worker=make_worker(told_to_finish=True))
    assert after == Aftermath((), Purpose.RESUME, tiled_is_away=False)


def test_open_run_that_is_written_so_far_needs_no_worker() -> None:
    run = make_run(State.OPEN, ended=False, written=4)
    assert settle(run) == Aftermath()
    assert run.state is State.PARKED


def test_run_whose_journal_is_unusable_waits_without_an_outage() -> None:
    run = make_run(State.OPEN, ended=False)
    facts = JournalFacts("run", JOURNAL, State.FAILED, "it is locked", unusable=True, unavailable=True)
    assert settle(run, facts=facts) == Aftermath((), Purpose.RESUME, tiled_is_away=False)
    assert (run.state, run.next) == (State.PARKED, 4)
    assert run.start_at == NOW.monotonic + PUT_OFF_SECONDS


# Deaths


@pytest.mark.parametrize(("ended", "purpose"), [(False, Purpose.STORE), (True, Purpose.RESUME)])
def test_open_run_gets_another_worker_before_one_that_has_ended(ended: bool, purpose: Purpose) -> None:
    run = make_run(State.CLOSING if ended else State.OPEN, ended=ended)
    assert settle(run, exit_code=1) == Aftermath((), purpose)
    assert (run.state, run.deaths) == (State.STARTING, 1)
    assert run.start_at > NOW.monotonic


def test_ended_run_with_documents_that_wait_gets_a_worker_like_an_open_one() -> None:
    run = make_run(State.CLOSING)
    run.queue_message(messages.Abandoned("run", 4))
    assert settle(run, exit_code=None).next_purpose is Purpose.STORE


def test_run_is_in_quarantine_after_the_last_death_and_its_reason_is_recorded() -> None:
    run = make_run(State.CLOSING)
    run.deaths = MAX_DEATHS - 1
    after = settle(run, exit_code=-9)
    reason = f"its worker died {MAX_DEATHS} times in a row without progress"
    assert (run.state, run.reason, after.next_purpose) == (State.FAILED, reason, None)
    assert after.effects == [
        RecordEvent(JOURNAL, "quarantined", {"reason": reason}, {"outcome": "failed", "reason": reason})
    ]


def test_worker_that_was_killed_has_died_whatever_its_exit_code() -> None:
    run = make_run(State.OPEN, ended=False)
    run.deaths = MAX_DEATHS - 1
    ended, quarantined = settle(run, exit_code=0, worker=make_worker(kill_reason="it hangs")).effects
    assert ended == RecordEvent(JOURNAL, "worker ended", {"reason": "it hangs"})
    assert isinstance(quarantined, RecordEvent)
    assert quarantined.detail["reason"].endswith("; at last it hangs")


@pytest.mark.parametrize("before", [State.OPEN, State.CLOSING])
def test_worker_that_died_after_it_had_recorded_the_outcome_has_done_its_work(before: State) -> None:
    run = make_run(before, ended=before is State.CLOSING)
    run.deaths = MAX_DEATHS - 1
    assert settle(run, exit_code=-9, facts=make_facts(State.WRITTEN)) == Aftermath([])
    assert (run.state, run.next, run.ended) == (State.WRITTEN, 4, True)


def test_worker_that_died_before_its_journal_was_unusable_has_died() -> None:
    run = make_run(State.CLOSING)
    facts = JournalFacts("run", JOURNAL, State.FAILED, "it is locked", length=4, ended=True, unusable=True)
    assert settle(run, exit_code=-9, facts=facts).next_purpose is Purpose.RESUME
    assert (run.state, run.deaths) == (State.STARTING, 1)


@pytest.mark.parametrize("exit_code", [0, 1])
def test_nothing_follows_while_stopping(exit_code: int) -> None:
    run = make_run(State.CLOSING)
    worker = make_worker(kill_reason="it hangs" if exit_code else "")
    assert settle(run, exit_code, worker, is_stopping=True) == Aftermath()
    assert run.deaths == 0


# Documents behind the end


@pytest.mark.parametrize("state", [State.INTERRUPTED, State.WRITTEN])
@pytest.mark.parametrize("purpose", [Purpose.STORE, Purpose.AUDIT])
@pytest.mark.parametrize(("exit_code", "left"), [(0, State.PARKED), (-9, State.STARTING)])
def test_documents_that_a_worker_has_stored_behind_the_end_are_written_by_another(
    state: State, purpose: Purpose, exit_code: int, left: State
) -> None:
    run = make_run(state, length=2)
    # The journal has no outcome any more.
    after = settle(run, exit_code, make_worker(purpose), make_facts())
    assert after == Aftermath((), Purpose.RESUME, tiled_is_away=False)
    assert run.state is left


@pytest.mark.parametrize("exit_code", [0, -9])
def test_documents_behind_the_end_are_left_to_the_next_supervisor_when_this_one_stops(exit_code: int) -> None:
    run = make_run(State.INTERRUPTED, length=2)
    assert settle(run, exit_code, facts=make_facts(), is_stopping=True) == Aftermath()
    assert not run.is_complete


def test_complete_run_whose_journal_is_gone_is_not_begun_anew() -> None:
    run = make_run(State.WRITTEN)
    assert settle(run, facts=JournalFacts("run", JOURNAL)) == Aftermath()
    assert run.state is State.WRITTEN


# Audits


@pytest.mark.parametrize("exit_code", [0, 1])
def test_audit_that_was_not_done_though_the_worker_ended_by_itself_shows_an_outage(exit_code: int) -> None:
    run = make_run(State.WRITTEN)
    run.audit_at = 1_000_000.0
    facts = make_facts(State.WRITTEN, audit_at=run.audit_at)
    after = settle(run, exit_code, make_worker(Purpose.AUDIT), facts)
    assert after == Aftermath(tiled_is_away=exit_code == 0)
    assert run.state is State.WRITTEN


@pytest.mark.parametrize(
    ("worker", "audit_at"),
    [
        (make_worker(Purpose.AUDIT), None),
        (make_worker(Purpose.AUDIT), 1_000_200.0),
        (make_worker(Purpose.AUDIT, told_to_finish=True), 1_000_000.0),
        (make_worker(), 1_000_000.0),
    ],
    ids=["done", "planned anew", "told to end", "no audit"],
)
def test_worker_of_a_written_run_shows_no_outage_otherwise(worker: Worker, audit_at: float | None) -> None:
    run = make_run(State.WRITTEN)
    run.audit_at = 1_000_000.0
    assert settle(run, 0, worker, make_facts(State.WRITTEN, audit_at=audit_at)) == Aftermath()
