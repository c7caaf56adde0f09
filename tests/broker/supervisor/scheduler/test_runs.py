"""What the scheduler remembers of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.protocol.messages import Abandoned, documents
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor.scheduler._runs import MAX_DEATHS, MAX_DEATHS_WITHOUT_WRITES, Purpose, Run, Worker


@pytest.fixture
def run() -> Run:
    return Run("run", Path("run.sqlite"))


def batch(first: int, count: int):
    return documents("run", first, [("event", 0, b"")] * count)


def test_what_is_sent_again_while_a_worker_starts_is_kept_once(run: Run) -> None:
    for message in [batch(0, 10), batch(10, 5), batch(0, 10), batch(10, 5), Abandoned("run", 15), Abandoned("run", 15)]:
        run.queue_message(message)
    assert run.queued_messages == [batch(0, 10), batch(10, 5), Abandoned("run", 15)]


def test_replaying_is_no_progress(run: Run) -> None:
    run.advance(next_=10, written=5)
    run.state = State.OPEN
    for death in range(1, MAX_DEATHS):
        run.note_death(100.0)
        assert not run.is_hopeless
        run.advance(next_=10, written=5)
        run.advance(written=3)
        assert run.deaths == death
    run.note_death(100.0)
    assert run.is_hopeless


def test_progress_forgives_earlier_deaths(run: Run) -> None:
    run.note_death(100.0)
    run.advance(written=1)
    assert run.deaths == 0


def test_each_death_delays_the_next_worker_longer(run: Run) -> None:
    delays = []
    for _ in range(4):
        run.note_death(100.0)
        delays.append(run.start_at)
    assert delays == sorted(delays)


def test_documents_between_deaths_do_not_make_restarts_frequent_for_ever(run: Run) -> None:
    """A run that kills its worker while it is being measured: each worker journals a little before it dies."""
    delays = []
    for death in range(1, MAX_DEATHS_WITHOUT_WRITES):
        run.advance(next_=death)
        run.note_death(100.0)
        assert not run.is_hopeless
        delays.append(run.start_at - 100.0)
    assert delays[-1] == pytest.approx(30.0)
    run.advance(next_=MAX_DEATHS_WITHOUT_WRITES)
    run.note_death(100.0)
    assert run.is_hopeless


@pytest.mark.parametrize(
    ("state", "away", "idle", "may"),
    [
        (State.CLOSING, True, 0.0, True),
        (State.CLOSING, False, 0.5, False),
        (State.CLOSING, False, 1.5, True),
        (State.OPEN, True, 5.0, False),
        (State.OPEN, False, 11.0, True),
        (State.STARTING, True, 100.0, False),
    ],
)
def test_a_worker_makes_room_when_nothing_waits_for_it(
    run: Run, state: State, away: bool, idle: float, may: bool
) -> None:
    worker = run.worker = Worker(1, Purpose.STORE, False, 100.0, 100.0, forked=True, ready=True, relayed=5)
    run.state, run.next, run.written, run.heard_at = state, 5, 5, 100.0
    assert run.worker_may_end(100.0 + idle, away=away) is may
    worker.relayed = 6  # documents are on their way to it
    assert not run.worker_may_end(100.0 + idle, away=away)
