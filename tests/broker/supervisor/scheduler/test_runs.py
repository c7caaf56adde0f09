"""What the scheduler remembers of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.protocol import messages
from tiledbroker.protocol.messages import Abandoned, documents
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor._publishers import Publisher
from tiledbroker.supervisor.scheduler._effects import SendToWorker, TellPublisher
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


# What its worker says


@pytest.fixture
def worker() -> Worker:
    return Worker(1, Purpose.STORE, False, 0.0, 0.0, forked=True)


def test_worker_that_is_ready_gets_what_has_waited_for_it(run: Run, worker: Worker) -> None:
    run.queue_message(batch(3, 2))
    sent = run.note_ready(worker, messages.Ready("run", 3, False), is_stopping=False)
    assert sent == [SendToWorker(1, batch(3, 2))]
    assert (run.state, run.next, worker.relayed, run.queued_messages) == (State.OPEN, 3, 5, [])


def test_what_the_journal_has_lost_is_asked_for_and_counted_until_it_is_there_again(run: Run, worker: Worker) -> None:
    alice = Publisher(b"alice", "", "127.0.0.1")
    run.publishers.add(alice)
    run.next = 8
    told = run.note_ready(worker, messages.Ready("run", 5, False), is_stopping=False)
    assert told == [TellPublisher(alice, messages.Refused("run", 5, messages.GAP))]
    assert (run.next, run.lost) == (5, 3)
    run.advance(next_=7)
    assert run.lost == 1
    run.advance(next_=9)
    assert run.lost == 0


@pytest.mark.parametrize("is_stopping", [True, False], ids=["stopping", "told to end"])
def test_worker_that_is_to_end_gets_no_documents_when_it_is_ready(run: Run, worker: Worker, is_stopping: bool) -> None:
    run.queue_message(batch(0, 2))
    worker.finish_by = None if is_stopping else 10.0
    sent = run.note_ready(worker, messages.Ready("run", 0, False), is_stopping=is_stopping)
    assert sent == [SendToWorker(1, messages.Finish())]
    assert run.queued_messages == [batch(0, 2)]


@pytest.mark.parametrize(("ready", "index"), [(True, 3), (False, 5)])
def test_refusal_tells_publishers_where_to_go_on(run: Run, worker: Worker, ready: bool, index: int) -> None:
    alice = Publisher(b"alice", "", "127.0.0.1")
    run.publishers.add(alice)
    run.next, worker.relayed, worker.ready = 5, 9, ready
    told = run.note_refusal(worker, messages.Refused("run", 3, messages.LATER, "the disk is full"))
    assert told == [TellPublisher(alice, messages.Refused("run", index, messages.LATER, "the disk is full"))]
    assert worker.relayed == index


@pytest.mark.parametrize(("length", "start_crc"), [(0, None), (1, 7)])
def test_run_of_which_nothing_is_stored_may_begin_otherwise(
    run: Run, worker: Worker, length: int, start_crc: int | None
) -> None:
    run.next, run.start_crc = length, 7
    run.note_refusal(worker, messages.Refused("run", 0, messages.GAP))
    assert run.start_crc == start_crc
