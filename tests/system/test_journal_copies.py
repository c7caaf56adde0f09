"""Backup, moving and old copies of a journal directory: what the documentation says of them, tried."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import pytest
from bluesky import RunEngine
from ophyd.sim import det, motor

from tiledbroker import ZMQPublisher
from tiledbroker.log import find_run_file
from tiledwriter.cli import journal
from tiledwriter.cli._exit import ExitCode
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

pytestmark = [
    # The reading client and the simulated devices warn about themselves.
    pytest.mark.filterwarnings("default"),
]


@contextmanager
def publisher_to(supervisor: SupervisorProcess, spool: Path) -> Iterator[ZMQPublisher]:
    publisher = ZMQPublisher(supervisor.address, spool_dir=spool, on_error="raise")
    try:
        yield publisher
    finally:
        publisher.close(timeout=0)


def copy_live(source: Path, copy: Path) -> None:
    """Copy each journal as SQLite does it, while it is written."""
    for file in source.rglob("*.sqlite"):
        target = copy / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as live, sqlite3.connect(target) as saved:
            live.backup(saved)
        live.close()
        saved.close()


def measure_with_copy(copies: list[int], directory: Path, copy: Path) -> Any:
    """Return a plan that copies the journals in the middle of its run."""

    @bpp.run_decorator()
    def plan() -> Any:
        for number in range(10):
            yield from bps.trigger_and_read([det])
            if number == 4:
                wait_until(lambda: any(directory.glob("*.sqlite")), 60, "the run has a journal")
                wait_until(lambda: _documents_in(directory) >= 5, 60, "documents are journaled")
                copy_live(directory, copy)
                copies.append(_documents_in(copy))

    return plan()


def _documents_in(directory: Path) -> int:
    (file,) = directory.glob("*.sqlite")
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        (count,) = connection.execute("SELECT count(*) FROM documents").fetchone()
    connection.close()
    return count


def test_an_old_copy_changes_nothing_that_tiled_has(
    engine: RunEngine, tiled_server: TiledServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journals, copy = tmp_path / "journals", tmp_path / "copy"
    environment = {"TILEDWRITER_QUIET_PERIOD": "1"}
    copies: list[int] = []
    with (
        SupervisorProcess(journals, tiled_server, environment=environment) as supervisor,
        publisher_to(supervisor, tmp_path / "spool") as publisher,
    ):
        engine.subscribe(publisher)
        (uid,) = engine(measure_with_copy(copies, journals, copy))
        assert publisher.wait_written(uid, 60)
    # The copy is sound, and what it has is a beginning of the run.
    assert 5 <= copies[0] < 13
    assert journal.main(["verify", str(copy)]) == ExitCode.INCOMPLETE
    assert "no findings so far" in capsys.readouterr().out
    # The old copy takes the place of the journals, and the spool is gone: Tiled has more of the run than anybody else.
    with SupervisorProcess(copy, tiled_server, environment=environment) as supervisor:
        wait_until(lambda: journal_state(copy, uid) in {"failed", "interrupted"}, 60, "the run has an end")
    assert journal_state(copy, uid) == "failed"
    run = tiled_server.client()[uid]
    assert len(run["primary"].read()["det"]) == 10
    assert run.metadata["stop"]["exit_status"] == "success"


def journal_state(directory: Path, uid: str) -> str:
    with journal_of(directory, uid) as opened:
        return str(opened.get("outcome"))


def test_a_journal_directory_is_moved(engine: RunEngine, own_tiled_server: TiledServer, tmp_path: Path) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    with (
        SupervisorProcess(before, own_tiled_server) as supervisor,
        publisher_to(supervisor, tmp_path / "spool") as publisher,
    ):
        engine.subscribe(publisher)
        (written,) = engine(bp.count([det]))
        assert publisher.wait_written(written, 60)
        own_tiled_server.stop()
        (waiting,) = engine(bp.scan([det], motor, -1, 1, 5))
        assert publisher.flush(60)
        supervisor.stop()
        # All of it, hidden files and the folder of finished runs included.
        subprocess.run(["cp", "-a", before, after], check=True)
        before.rename(tmp_path / "kept")
        own_tiled_server.start()
        port = int(supervisor.address.rpartition(":")[2])
        with SupervisorProcess(after, own_tiled_server, port=port):
            assert publisher.wait_written(waiting, 60)
            assert find_run_file(after, written).exists()
    assert len(own_tiled_server.client()[waiting]["primary"].read()["det"]) == 5


def test_a_lost_journal_disk_is_made_up_from_the_spool(
    engine: RunEngine, own_tiled_server: TiledServer, tmp_path: Path
) -> None:
    supervisor = SupervisorProcess(tmp_path / "journals", own_tiled_server)
    with supervisor, publisher_to(supervisor, tmp_path / "spool") as publisher:
        engine.subscribe(publisher)
        own_tiled_server.stop()
        (uid,) = engine(bp.scan([det], motor, -1, 1, 5))
        assert publisher.flush(60)
        supervisor.stop()
        (tmp_path / "journals").rename(tmp_path / "lost")
        own_tiled_server.start()
        supervisor.start()
        assert publisher.wait_written(uid, 90)
