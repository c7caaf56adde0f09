"""Workers that do not answer, use too much memory, or do not end."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.protocol import messages
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor.scheduler._effects import Effect, KillWorker, SendToWorker
from tiledbroker.supervisor.scheduler._runs import FINISH_TIMEOUT_SECONDS, Purpose, Run, Worker
from tiledbroker.supervisor.scheduler._worker_monitor import WorkerLimits, WorkerMonitor

PING = SendToWorker(1, messages.Ping(0))
FINISH = SendToWorker(1, messages.Finish())
KILL = KillWorker(1)


class Watch:
    """A monitor of one worker, checked once a second of a clock that the test moves."""

    def __init__(self, limits: WorkerLimits) -> None:
        self.now = 100.0
        self.worker = Worker(1, Purpose.STORE, False, self.now, self.now, forked=True, ready=True)
        self.run = Run("run", Path("run.sqlite"), State.OPEN, worker=self.worker)
        self.memory = 0
        self._monitor = WorkerMonitor(limits, self.now)

    def pass_by(self, seconds: int, *, absent: float = 0.0) -> list[Effect]:
        effects: list[Effect] = []
        self.now += absent
        for _ in range(seconds):
            self.now += 1.0
            effects += self._monitor.check_workers([self.run], {1: self.memory}, self.now)
        return effects


@pytest.fixture
def watch() -> Watch:
    return Watch(WorkerLimits(memory=1000, silence=40))


def test_silent_worker_is_pinged_before_it_is_killed(watch: Watch) -> None:
    assert watch.pass_by(39) == [PING] * 3
    assert not watch.worker.kill_reason
    assert watch.pass_by(2) == [KILL] * 2
    assert watch.worker.kill_reason == "its worker did not answer for 40 s"


def test_answering_worker_is_kept(watch: Watch) -> None:
    for _ in range(20):
        assert KILL not in watch.pass_by(15)
        watch.worker.answered_at = watch.now
    assert not watch.worker.kill_reason


def test_worker_that_is_being_forked_is_left_to_the_fork_server(watch: Watch) -> None:
    watch.worker.forked = False
    assert watch.pass_by(100) == []


def test_silence_does_not_count_while_the_supervisor_was_stopped(watch: Watch) -> None:
    assert watch.pass_by(1, absent=1000.0) == []
    assert watch.pass_by(9) == []
    assert watch.pass_by(1) == [PING]


def test_large_worker_is_told_to_end_once_and_killed_if_it_does_not(watch: Watch) -> None:
    watch.memory = 1000
    assert watch.pass_by(5) == []
    watch.memory = 1001
    assert watch.pass_by(5).count(FINISH) == 1
    assert watch.worker.kill_reason.startswith("its worker took 0 MiB of memory")
    assert KILL in watch.pass_by(int(FINISH_TIMEOUT_SECONDS))


def test_worker_that_does_not_end_is_killed(watch: Watch) -> None:
    watch.worker.finish_by = watch.now + 3
    assert watch.pass_by(2) == []
    assert watch.pass_by(2) == [KILL] * 2


def test_no_limit_means_no_end(watch: Watch) -> None:
    unlimited = Watch(WorkerLimits())
    unlimited.memory = 2**50
    assert unlimited.pass_by(10) == []
