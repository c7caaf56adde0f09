"""What the supervisor reads from a run's journal."""

from __future__ import annotations

import zlib
from pathlib import Path

from tiledbroker import Journal
from tiledbroker.supervisor._journal_facts import find_facts
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor.scheduler._runs import Run


def test_a_journal_names_its_worker_its_turn_and_its_next_audit(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.set("worker", [42, 1000.5])
        journal.set("arrived", 17.0)
        journal.set("audit_at", 2000.0)
    run = find_facts(tmp_path, "run")
    assert (run.worker, run.order, run.audit_at) == ((42, 1000.5), 17.0, 2000.0)


def test_a_run_without_a_turn_stands_where_its_start_came(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", b"")
        received = journal.read(0, 1)[0].received
    assert find_facts(tmp_path, "run").order == received


def test_a_run_is_what_its_journal_says(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", b"")
        journal.append_one("stop", b"")
        journal.set("outcome", "failed")
        journal.set("reason", "a 422")
    run = find_facts(tmp_path, "run")
    assert (run.state, run.length, run.ended, run.reason) == (State.FAILED, 2, True, "a 422")
    assert not run.unusable


def test_a_run_tells_its_last_document_s_checksum_once_it_has_its_end(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", b"first")
        assert Run.from_facts(find_facts(tmp_path, "run")).describe_state().end_crc is None
        journal.append_one("stop", b"last")
    run = Run.from_facts(find_facts(tmp_path, "run"))
    assert (run.describe_state().start_crc, run.describe_state().end_crc) == (zlib.crc32(b"first"), zlib.crc32(b"last"))
    run.advance(next_=3)  # another is the last now
    assert run.describe_state().end_crc is None


def test_a_run_without_a_journal_is_new(tmp_path: Path) -> None:
    run = find_facts(tmp_path, "run")
    assert (run.state, run.length, run.order) == (State.STARTING, 0, 0.0)


def test_a_run_with_a_damaged_journal_is_unusable_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run.sqlite").write_bytes(b"rubbish" * 1000)
    run = find_facts(tmp_path, "run")
    assert run.unusable
    assert run.state is State.FAILED
    assert (tmp_path / "run.sqlite").read_bytes() == b"rubbish" * 1000
