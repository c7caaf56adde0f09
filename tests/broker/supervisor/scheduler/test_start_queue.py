"""Which run may get a worker, when, and why one waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.protocol import messages
from tiledbroker.supervisor._clock import Instant
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor.scheduler._resume_queue import ResumeQueue
from tiledbroker.supervisor.scheduler._runs import Purpose, Run
from tiledbroker.supervisor.scheduler._start_queue import StartQueue
from tiledbroker.supervisor.scheduler._worker_roster import WorkerRoster

NOW = Instant(100.0, 1_000.0)
NEVER = float("inf")


class Queues:
    """A start queue with room for two workers, one of which may write what earlier ones left."""

    def __init__(self) -> None:
        self.roster = WorkerRoster(2)
        self.resume = ResumeQueue(1)
        self.start = StartQueue(self.roster, self.resume)

    def start_workers(self, *purposes: Purpose) -> None:
        """Give workers to runs that are not in the queue."""
        for purpose in purposes:
            run = make_run(purpose.name, State.STARTING)
            run.ended = True
            self.roster.add_worker(run, purpose, NOW, is_probe=False)


@pytest.fixture
def queues() -> Queues:
    return Queues()


def make_run(uid: str, state: State = State.PARKED, *, start_at: float = 0.0) -> Run:
    return Run(uid, Path(f"{uid}.sqlite"), state, next=4, start_at=start_at)


def test_runs_with_documents_are_due_in_the_order_in_which_they_came(queues: Queues) -> None:
    first, second, later = make_run("first"), make_run("second"), make_run("later", start_at=101.0)
    for run in (later, first, second, first):
        queues.start.add(run, Purpose.STORE)
    assert queues.start.list_due(NOW.monotonic) == [first, second]
    assert queues.start.list_due(101.0) == [later, first, second]
    assert first.state is State.STARTING


def test_documents_take_a_run_out_of_the_resume_queue(queues: Queues) -> None:
    run = make_run("run")
    queues.start.add(run, Purpose.RESUME)
    assert (len(queues.start), queues.start.has_documents_of(run), run.state) == (1, False, State.PARKED)
    queues.start.add(run, Purpose.STORE)
    assert (len(queues.start), queues.start.has_documents_of(run), run.state) == (1, True, State.STARTING)
    assert not queues.resume
    queues.start.discard(run)
    assert not queues.start


def test_run_that_has_a_worker_waits_for_no_other(queues: Queues) -> None:
    run = make_run("run")
    queues.roster.add_worker(run, Purpose.RESUME, NOW, is_probe=False)
    queues.start.add(run, Purpose.STORE)
    assert not queues.start


def test_workers_that_store_documents_do_not_keep_others_from_being_resumed(queues: Queues) -> None:
    queues.start_workers(Purpose.STORE)
    assert queues.start.may_resume(NOW.monotonic)
    queues.start_workers(Purpose.RESUME)
    assert not queues.start.may_resume(NOW.monotonic)


def test_next_time_is_that_of_the_first_run_that_may_start(queues: Queues) -> None:
    assert queues.start.find_next_time(may_resume=True) == NEVER
    queues.start.add(make_run("with documents", start_at=105.0), Purpose.STORE)
    queues.start.add(make_run("parked", start_at=103.0), Purpose.RESUME)
    assert queues.start.find_next_time(may_resume=True) == 103.0
    assert queues.start.find_next_time(may_resume=False) == 105.0
    queues.start_workers(Purpose.RESUME)
    assert queues.start.find_next_time(may_resume=True) == 105.0
    queues.start_workers(Purpose.STORE)
    assert queues.start.find_next_time(may_resume=True) == NEVER


def test_run_with_documents_says_whether_it_waits_for_room(queues: Queues) -> None:
    run = make_run("run")
    queues.start.add(run, Purpose.STORE)
    assert not queues.start.is_waiting_for_room(run)
    assert queues.start.describe_wait(run, NOW) == ""
    queues.start_workers(Purpose.STORE, Purpose.STORE)
    assert queues.start.is_waiting_for_room(run)
    assert queues.start.describe_wait(run, NOW) == "All 2 workers are busy."


def test_run_with_something_left_says_whether_it_waits_for_others_or_for_tiled(queues: Queues) -> None:
    run = make_run("run")
    assert queues.start.describe_wait(run, NOW) == ""
    queues.start.add(run, Purpose.RESUME)
    queues.start.add(make_run("other"), Purpose.RESUME)
    assert queues.start.describe_wait(run, NOW) == "It is in the queue of 2 runs that are resumed, a few at a time."
    queues.resume.note_outage(run, NOW.monotonic, was_probe=False)
    assert queues.start.describe_wait(run, NOW).startswith("Tiled does not accept requests;")


def test_run_whose_workers_have_died_says_when_the_next_one_starts(queues: Queues) -> None:
    run = make_run("run", start_at=112.0)
    run.deaths_without_writes = 3
    queues.start.add(run, Purpose.STORE)
    assert queues.start.describe_wait(run, NOW) == "Its worker died 3 times; the next one starts in 12 s."


def test_run_with_a_worker_waits_for_what_the_worker_says(queues: Queues) -> None:
    run = make_run("run")
    worker = queues.roster.add_worker(run, Purpose.STORE, NOW, is_probe=False)
    run.queue_message(messages.Abandoned("run", 4))
    worker.waits_for = "It waits for a write slot."
    assert queues.start.describe_wait(run, NOW) == "It waits for a write slot."
