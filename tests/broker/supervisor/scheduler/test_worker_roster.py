"""Which workers end first to make room for others."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.protocol import messages
from tiledbroker.supervisor._clock import Instant
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor.scheduler._effects import SendToWorker
from tiledbroker.supervisor.scheduler._runs import FINISH_TIMEOUT_SECONDS, Purpose, Run
from tiledbroker.supervisor.scheduler._worker_roster import WorkerRoster

NOW = Instant(100.0, 1_000.0)


class Roster:
    """Runs with workers that are ready and have nothing to do."""

    def __init__(self) -> None:
        self.roster = WorkerRoster(8)
        self.uids: dict[int, str] = {}

    def add(
        self, uid: str, state: State, purpose: Purpose = Purpose.STORE, *, heard_at: float = 0.0, order: float = 0.0
    ) -> Run:
        ended = state is not State.OPEN
        run = Run(uid, Path(f"{uid}.sqlite"), state, ended=ended, order=order, heard_at=heard_at)
        worker = self.roster.add_worker(run, purpose, NOW, is_probe=False)
        worker.ready = True
        self.uids[worker.number] = uid
        return run

    def end_idle(self, places: int, *, open_only: bool = False) -> list[str]:
        sent = self.roster.end_idle(places, NOW.monotonic, away=False, open_only=open_only)
        assert {effect.message for effect in sent} <= {messages.Finish()}
        return [self.uids[effect.worker] for effect in sent]


@pytest.fixture
def roster() -> Roster:
    roster = Roster()
    roster.add("open, idle", State.OPEN, heard_at=20.0)
    roster.add("open, idle for long", State.OPEN, heard_at=10.0)
    roster.add("open, busy", State.OPEN, heard_at=99.0)
    roster.add("early", State.CLOSING, order=1.0)
    roster.add("late", State.CLOSING, order=2.0)
    roster.add("audited", State.WRITTEN, Purpose.AUDIT)
    return roster


def test_audits_end_first_and_then_the_runs_that_have_ended_the_latest_before_others(roster: Roster) -> None:
    assert roster.end_idle(3) == ["audited", "late", "early"]


def test_open_runs_end_last_and_never_while_documents_arrive(roster: Roster) -> None:
    assert roster.end_idle(8)[3:] == ["open, idle for long", "open, idle"]


def test_open_runs_only_leave_those_alone_that_may_have_something_to_write(roster: Roster) -> None:
    assert roster.end_idle(8, open_only=True) == ["open, idle for long", "open, idle"]


def test_workers_that_are_about_to_end_make_room_as_well(roster: Roster) -> None:
    assert roster.end_idle(1) == ["audited"]
    assert roster.end_idle(1) == []
    assert roster.end_idle(2) == ["late"]


def test_worker_that_is_told_to_end_has_a_time_limit() -> None:
    roster = Roster()
    run = roster.add("run", State.OPEN)
    assert roster.roster.end_idle(1, NOW.monotonic, away=False, open_only=True) == [SendToWorker(1, messages.Finish())]
    assert run.worker is not None
    assert run.worker.finish_by == NOW.monotonic + FINISH_TIMEOUT_SECONDS


def test_worker_with_documents_that_are_not_stored_does_not_end() -> None:
    roster = Roster()
    run = roster.add("run", State.OPEN)
    assert run.worker is not None
    run.worker.relayed = 3
    assert roster.end_idle(1) == []
    run.advance(next_=3, written=3)
    assert roster.end_idle(1) == ["run"]
