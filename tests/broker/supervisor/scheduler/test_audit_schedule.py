"""When runs that are written are looked at again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.supervisor._clock import Instant
from tiledbroker.supervisor._journal_facts import JournalFacts
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor.scheduler._audit_schedule import (
    PAUSE_AFTER_FIRST_DEATH_SECONDS,
    PUT_OFF_SECONDS,
    AuditSchedule,
)
from tiledbroker.supervisor.scheduler._effects import FileJournal, RecordEvent
from tiledbroker.supervisor.scheduler._runs import MAX_DEATHS, Purpose, Run, Worker

NOW = Instant(100.0, 1_000.0)
RUN = Run("run", Path("run.sqlite"), State.WRITTEN)
WRITER = Worker(1, Purpose.STORE, False, 0.0, 0.0)
AUDITOR = Worker(2, Purpose.AUDIT, False, 0.0, 0.0)


def facts(*, audit_at: float | None, state: State = State.WRITTEN, unavailable: bool = False) -> JournalFacts:
    return JournalFacts(RUN.uid, RUN.journal, state, audit_at=audit_at, unavailable=unavailable)


@pytest.fixture
def audits() -> AuditSchedule:
    """With two runs in it."""
    audits = AuditSchedule()
    audits.schedule("late", 200.0)
    audits.schedule("early", 100.0)
    return audits


def test_a_run_is_taken_once_when_its_time_has_come(audits: AuditSchedule) -> None:
    assert audits.pop_due(99.9) is None
    assert audits.pop_due(100.0) == "early"
    assert audits.pop_due(199.9) is None
    assert len(audits) == 1
    assert audits.pop_due(200.0) == "late"
    assert not audits


def test_a_run_that_was_looked_at_waits_no_more(audits: AuditSchedule) -> None:
    audits.discard("early")
    audits.discard("unknown")
    assert audits.pop_due(1000.0) == "late"


def test_pauses_grow_with_deaths_in_a_row_until_the_audit_is_given_up(audits: AuditSchedule) -> None:
    pauses = [audits.pause_after("early", died=True) for _ in range(MAX_DEATHS)]
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, None]
    assert audits.pause_after("early", died=True) == PAUSE_AFTER_FIRST_DEATH_SECONDS


@pytest.mark.parametrize("well", [False, True])
def test_an_audit_that_is_only_put_off_kills_nobody(audits: AuditSchedule, well: bool) -> None:
    """As when Tiled is away, or others need the room."""
    for _ in range(MAX_DEATHS - 1):
        audits.pause_after("early", died=True)
    if well:
        audits.discard("early")
    else:
        assert [audits.pause_after("early", died=False) for _ in range(20)] == [PUT_OFF_SECONDS] * 20
    assert audits.pause_after("early", died=True) == PAUSE_AFTER_FIRST_DEATH_SECONDS


def test_runs_are_counted_by_themselves(audits: AuditSchedule) -> None:
    for _ in range(MAX_DEATHS):
        audits.pause_after("early", died=True)
    assert audits.pause_after("late", died=True) == PAUSE_AFTER_FIRST_DEATH_SECONDS


# When the worker of a written run has ended


def test_journal_that_asks_for_no_audit_is_filed() -> None:
    audits = AuditSchedule()
    audits.schedule(RUN.uid, 1_000.0)
    assert audits.plan_next(RUN, AUDITOR, facts(audit_at=None), NOW) == [FileJournal(RUN.journal)]
    assert not audits


def test_journal_that_does_not_say_that_the_run_is_written_stays() -> None:
    assert AuditSchedule().plan_next(RUN, WRITER, facts(audit_at=None, state=State.STARTING), NOW) == []


@pytest.mark.parametrize(("wanted", "due"), [(900.0, 1_000.0), (1_500.0, 1_500.0)])
def test_audit_is_due_when_the_journal_says_so(wanted: float, due: float) -> None:
    audits = AuditSchedule()
    assert audits.plan_next(RUN, WRITER, facts(audit_at=wanted), NOW) == []
    assert audits.pop_due(due - 0.1) is None
    assert audits.pop_due(due) == RUN.uid


@pytest.mark.parametrize(("died", "pause"), [(True, PAUSE_AFTER_FIRST_DEATH_SECONDS), (False, PUT_OFF_SECONDS)])
def test_audit_that_was_not_done_is_tried_again_after_a_pause(died: bool, pause: float) -> None:
    audits = AuditSchedule()
    audits.plan_next(RUN, AUDITOR, facts(audit_at=900.0), NOW, died=died)
    assert audits.pop_due(1_000.0 + pause - 0.1) is None
    assert audits.pop_due(1_000.0 + pause) == RUN.uid


def test_journal_that_cannot_be_read_is_looked_at_later() -> None:
    audits = AuditSchedule()
    audits.plan_next(RUN, WRITER, facts(audit_at=None, unavailable=True), NOW)
    assert audits.pop_due(1_000.0 + PUT_OFF_SECONDS) == RUN.uid


def test_audit_is_given_up_after_so_many_deaths_which_the_journal_records() -> None:
    audits = AuditSchedule()
    recorded = [audits.plan_next(RUN, AUDITOR, facts(audit_at=900.0), NOW, died=True) for _ in range(MAX_DEATHS)]
    assert recorded[:-1] == [[]] * (MAX_DEATHS - 1)
    ((given_up,),) = recorded[-1:]
    assert isinstance(given_up, RecordEvent)
    assert given_up.event == "audit given up"


def test_deaths_of_workers_that_did_not_audit_do_not_count() -> None:
    audits = AuditSchedule()
    for _ in range(MAX_DEATHS + 1):
        assert audits.plan_next(RUN, WRITER, facts(audit_at=900.0), NOW, died=True) == []
    assert audits.pop_due(1_000.0) == RUN.uid


def test_no_audit_is_planned_or_given_up_while_stopping() -> None:
    audits = AuditSchedule()
    for _ in range(MAX_DEATHS + 1):
        assert audits.plan_next(RUN, AUDITOR, facts(audit_at=900.0), NOW, died=True, is_stopping=True) == []
    assert not audits


def test_draining_leaves_audits_that_are_not_due_to_the_next_supervisor() -> None:
    audits = AuditSchedule(drain=True)
    audits.plan_next(RUN, WRITER, facts(audit_at=1_500.0), NOW)
    assert not audits
    audits.plan_next(RUN, WRITER, facts(audit_at=900.0), NOW)
    assert len(audits) == 1
