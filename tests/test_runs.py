"""What the supervisor remembers of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker import Journal
from tiledbroker._lifecycle import State
from tiledbroker._messages import Abandoned, documents
from tiledbroker._runs import MAX_DEATHS, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("run", tmp_path / "run.sqlite")


def batch(first: int, count: int):
    return documents("run", first, [("event", 0, b"")] * count)


def test_what_is_sent_again_while_a_worker_starts_is_kept_once(run: Run) -> None:
    for message in [batch(0, 10), batch(10, 5), batch(0, 10), batch(10, 5), Abandoned("run", 15), Abandoned("run", 15)]:
        run.put_off(message)
    assert run.backlog == [batch(0, 10), batch(10, 5), Abandoned("run", 15)]


def test_replaying_is_no_progress(run: Run) -> None:
    run.advance(next_=10, written=5)
    run.state = State.OPEN
    for death in range(1, MAX_DEATHS):
        assert not run.worker_died(1)
        run.advance(next_=10, written=5)
        run.advance(written=3)
        assert run.deaths == death
    assert run.worker_died(1)


def test_progress_forgives_earlier_deaths(run: Run) -> None:
    run.worker_died(1)
    run.advance(written=1)
    assert run.deaths == 0


def test_each_death_delays_the_next_worker_longer(run: Run) -> None:
    delays = []
    for _ in range(4):
        run.worker_died(-9)
        delays.append(run.start_at)
    assert delays == sorted(delays)


def test_a_run_is_what_its_journal_says(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", b"")
        journal.append_one("stop", b"")
        journal.set("outcome", "failed")
        journal.set("reason", "a 422")
    run = Run.load(tmp_path, "run")
    assert (run.state, run.next, run.ended, run.outcome, run.reason) == (State.FAILED, 2, True, "failed", "a 422")
    assert not run.unusable


def test_a_run_without_a_journal_is_new(tmp_path: Path) -> None:
    run = Run.load(tmp_path, "run")
    assert (run.state, run.next, run.outcome) == (State.STARTING, 0, "")


def test_a_run_with_a_damaged_journal_is_unusable_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").write_bytes(b"rubbish" * 1000)
    run = Run.load(tmp_path, "run")
    assert run.unusable
    assert run.outcome == "failed"
    assert (tmp_path / "run.sqlite").read_bytes() == b"rubbish" * 1000
