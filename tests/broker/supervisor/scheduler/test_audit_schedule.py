"""When runs that are written are looked at again."""

from __future__ import annotations

import pytest

from tiledbroker.supervisor.scheduler._audit_schedule import (
    PAUSE_AFTER_FIRST_DEATH_SECONDS,
    PUT_OFF_SECONDS,
    AuditSchedule,
)
from tiledbroker.supervisor.scheduler._runs import MAX_DEATHS


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
