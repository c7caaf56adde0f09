"""What the supervisor remembers of a run."""

from __future__ import annotations

import time
import zlib
from pathlib import Path

import pytest

from tiledbroker import Journal
from tiledbroker.protocol.messages import Abandoned, documents
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor._runs import MAX_DEATHS, MAX_DEATHS_WITHOUT_WRITES, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("run", tmp_path / "run.sqlite")


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


def test_documents_between_deaths_do_not_make_restarts_frequent_for_ever(run: Run) -> None:
    """A run that kills its worker while it is being measured: each worker journals a little before it dies."""
    delays = []
    for death in range(1, MAX_DEATHS_WITHOUT_WRITES):
        run.advance(next_=death)
        now = time.monotonic()
        assert not run.worker_died(1)
        delays.append(run.start_at - now)
    assert delays[-1] == pytest.approx(30.0, abs=0.1)
    run.advance(next_=MAX_DEATHS_WITHOUT_WRITES)
    assert run.worker_died(1)


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
    run.state, run.ready, run.next, run.written, run.relayed, run.heard = state, True, 5, 5, 5, 100.0
    assert run.worker_may_end(100.0 + idle, away=away) is may
    run.relayed = 6  # documents are on their way to it
    assert not run.worker_may_end(100.0 + idle, away=away)


def test_a_journal_names_its_worker_its_turn_and_its_next_audit(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.set("worker", [42, 1000.5])
        journal.set("arrived", 17.0)
        journal.set("audit_at", 2000.0)
    run = Run.load(tmp_path, "run")
    assert (run.orphan, run.order, run.audit_at) == ((42, 1000.5), 17.0, 2000.0)


def test_a_run_without_a_turn_stands_where_its_start_came(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", b"")
        received = journal.read(0, 1)[0].received
    assert Run.load(tmp_path, "run").order == received


def test_a_run_is_what_its_journal_says(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", b"")
        journal.append_one("stop", b"")
        journal.set("outcome", "failed")
        journal.set("reason", "a 422")
    run = Run.load(tmp_path, "run")
    assert (run.state, run.next, run.ended, run.outcome, run.reason) == (State.FAILED, 2, True, "failed", "a 422")
    assert not run.unusable


def test_a_run_tells_its_last_document_s_checksum_once_it_has_its_end(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", b"first")
        assert Run.load(tmp_path, "run").view().end_crc is None
        journal.append_one("stop", b"last")
    run = Run.load(tmp_path, "run")
    assert (run.view().start_crc, run.view().end_crc) == (zlib.crc32(b"first"), zlib.crc32(b"last"))
    run.advance(next_=3)  # another is the last now
    assert run.view().end_crc is None


def test_a_run_without_a_journal_is_new(tmp_path: Path) -> None:
    run = Run.load(tmp_path, "run")
    assert (run.state, run.next, run.outcome) == (State.STARTING, 0, "")


def test_a_run_with_a_damaged_journal_is_unusable_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").write_bytes(b"rubbish" * 1000)
    run = Run.load(tmp_path, "run")
    assert run.unusable
    assert run.outcome == "failed"
    assert (tmp_path / "run.sqlite").read_bytes() == b"rubbish" * 1000
