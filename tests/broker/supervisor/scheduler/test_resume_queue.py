"""Runs that wait to be resumed: one that tries while Tiled is away, and the others after it, in order."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor.scheduler._resume_queue import ResumeQueue
from tiledbroker.supervisor.scheduler._runs import Purpose, Run, Worker


def finished(number: int, **more: object) -> Run:
    fields = {"state": State.PARKED, "next": 5, "ended": True, "order": float(number), **more}
    return Run(f"run-{number}", Path("nowhere"), **fields)


@pytest.fixture
def queue() -> ResumeQueue:
    """With five finished runs in it, which did not come in order."""
    queue = ResumeQueue(max_resumed=2)
    for number in (3, 1, 4, 5, 2):
        queue.add(finished(number))
    return queue


def taken(queue: ResumeQueue, now: float = 0.0) -> list[str]:
    """All that can be taken, in order."""
    runs = []
    while (run := queue.pop_next(now)) is not None:
        runs.append(run.uid)
    return runs


def test_runs_are_resumed_in_the_order_in_which_they_came(queue: ResumeQueue) -> None:
    assert taken(queue) == ["run-1", "run-2", "run-3", "run-4", "run-5"]
    assert not queue


def test_open_runs_go_first(queue: ResumeQueue) -> None:
    queue.add(finished(9, ended=False))
    assert taken(queue)[0] == "run-9"


def test_no_more_than_a_few_are_resumed_at_a_time(queue: ResumeQueue) -> None:
    assert [queue.may_resume(busy, 0.0) for busy in range(4)] == [True, True, False, False]


def test_a_run_whose_worker_has_died_waits_for_its_time(queue: ResumeQueue) -> None:
    queue.add(finished(0, start_at=7.0))
    assert taken(queue, now=6.9) == ["run-1", "run-2", "run-3", "run-4", "run-5"]
    assert taken(queue, now=7.0) == ["run-0"]


def test_one_at_a_time_is_tried_while_tiled_is_away_after_pauses_that_grow(queue: ResumeQueue) -> None:
    now, pauses = 100.0, []
    for _ in range(8):
        run = queue.pop_next(now)
        assert run is not None
        queue.note_outage(run, now, was_probe=queue.away)
        queue.add(run)
        due = queue.next_at(0)
        assert due is not None
        assert not queue.may_resume(0, due - 0.01)
        assert queue.may_resume(0, due)
        assert not queue.may_resume(1, due)
        pauses.append(due - now)
        now = due
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]


def test_another_run_is_tried_each_time(queue: ResumeQueue) -> None:
    """For it may be one run only that Tiled does not let in."""
    tried = []
    for now in range(0, 500, 100):
        run = queue.pop_next(float(now))
        assert run is not None
        tried.append(run.uid)
        queue.note_outage(run, float(now), was_probe=False)
        queue.add(run)
    assert sorted(tried) == ["run-1", "run-2", "run-3", "run-4", "run-5"]
    queue.note_recovery()
    assert taken(queue) == ["run-1", "run-2", "run-3", "run-4", "run-5"]


def test_many_that_give_up_at_once_do_not_lengthen_the_pause(queue: ResumeQueue) -> None:
    for number in range(10, 20):
        queue.note_outage(finished(number), 0.0, was_probe=False)
    assert queue.next_at(0) == 1.0


def test_once_tiled_is_back_a_few_at_a_time_follow_at_once(queue: ResumeQueue) -> None:
    queue.note_outage(finished(6), 0.0, was_probe=False)
    assert not queue.may_resume(0, 0.0)
    queue.note_recovery()
    assert queue.may_resume(1, 0.0)


def test_a_run_catches_up_until_all_it_has_is_written() -> None:
    def resumed(purpose: Purpose = Purpose.RESUME, **more: object) -> Run:
        return finished(1, worker=Worker(1, purpose, False, 0.0, 0.0), **more)

    assert resumed(written=5).is_catching_up
    assert resumed(ended=False, written=4).is_catching_up
    assert not resumed(ended=False, written=5).is_catching_up
    assert not resumed(Purpose.STORE, written=0).is_catching_up
