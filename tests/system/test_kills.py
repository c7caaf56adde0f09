"""kill -9 and outages with real processes: every document exactly once, in order, whatever was killed.

TILEDWRITER_TEST_KILLS sets how often worker and supervisor are each killed, TILEDWRITER_TEST_OUTAGE the seconds for
which Tiled is away: the suite's defaults are small.
"""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from paths import SUPPORT
from runs import Acquisition, metadata, seq_nums, wait_for_outcome
from warm import run_process

from tiledbroker import Encoder, Journal, run_files
from tiledbroker.supervisor._supervisor import Supervisor
from tiledbroker.supervisor._tasks import WorkerCommand
from tiledbroker.supervisor.frontend import Frontend
from tiledbroker.supervisor.scheduler._runs import MAX_DEATHS
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

KILLS = int(os.environ.get("TILEDWRITER_TEST_KILLS", "5"))
OUTAGE = float(os.environ.get("TILEDWRITER_TEST_OUTAGE", "3"))
EVENTS_PER_KILL = 250

pytestmark = [
    pytest.mark.filterwarnings("default"),  # the reading client warns about itself
    pytest.mark.timeout(600),
]


def journaled(journal_dir: Path, run_uid: str) -> int:
    """Documents in a run's journal so far."""
    try:
        with journal_of(journal_dir, run_uid) as journal:
            return journal.length
    except LookupError:
        return 0


def confirmed(journal_dir: Path, run_uid: str) -> int:
    """Rows that Tiled has confirmed so far."""
    try:
        with journal_of(journal_dir, run_uid) as journal:
            return sum(node.rows for node in journal.progress().values())
    except LookupError:
        return 0


def has_ended(process: psutil.Process) -> bool:
    """Also one that nobody waits for, because its fork server ended before it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def assert_complete(server: TiledServer, journal_dir: Path, run_uid: str, documents: list[str]) -> None:
    events = documents.count("event")
    assert seq_nums(server, run_uid) == list(range(1, events + 1))
    assert "stop" in metadata(server, run_uid)
    with journal_of(journal_dir, run_uid) as journal:
        assert [record.name for record in journal.records()] == documents


@pytest.mark.parametrize("victim", ["worker", "supervisor"])
def test_nothing_is_lost_or_doubled_when_processes_are_killed_at_random_moments(
    victim: str, tmp_path: Path, supervisor: SupervisorProcess, tiled_server: TiledServer
) -> None:
    chance = random.Random(victim)
    events = KILLS * EVENTS_PER_KILL
    with Acquisition(supervisor.address, tmp_path, events=events, delay=0.004) as acquisition:
        run_uid = acquisition.run_uid
        killed: set[int] = set()
        for kill in range(KILLS):
            # At a random moment after it has got going, and not always at the same place of its work.
            goal = (kill + chance.random()) * EVENTS_PER_KILL
            wait_until(lambda: len(acquisition.documents) >= goal, 120, "the scan goes on")  # noqa: B023
            if victim == "supervisor":
                killed.add(supervisor.pid)
                supervisor.kill()
                supervisor.start()
            else:
                wait_until(supervisor.workers, 60, "there is a worker")
                for worker in supervisor.workers():
                    killed.add(worker.pid)
                    worker.kill()
        assert len(killed) >= KILLS
        assert acquisition.process.wait(300) == 0
        assert wait_for_outcome(supervisor.journal_dir, run_uid, 300) == "written"
        assert acquisition.documents.count("event") == events
        assert_complete(tiled_server, supervisor.journal_dir, run_uid, acquisition.documents)


def test_a_worker_is_killed_while_it_writes_again_and_again(
    tmp_path: Path, supervisor: SupervisorProcess, tiled_server: TiledServer
) -> None:
    """Whenever rows have arrived in Tiled, the worker dies: somewhere between two requests, or in one."""
    # A restart takes the quiet period of a second, for an append that was cut off.
    with Acquisition(supervisor.address, tmp_path, events=300 * KILLS, delay=0.01) as acquisition:
        run_uid = acquisition.run_uid
        rows = 0
        for _ in range(KILLS):
            wait_until(lambda: confirmed(supervisor.journal_dir, run_uid) > rows, 120, "rows arrive")  # noqa: B023
            assert acquisition.running
            rows = confirmed(supervisor.journal_dir, run_uid)
            for worker in supervisor.workers():
                worker.kill()
        assert acquisition.process.wait(300) == 0
        assert wait_for_outcome(supervisor.journal_dir, run_uid, 300) == "written"
        assert_complete(tiled_server, supervisor.journal_dir, run_uid, acquisition.documents)


def test_a_run_survives_that_tiled_is_stopped_and_started_again(tmp_path: Path, own_tiled_server: TiledServer) -> None:
    with (
        SupervisorProcess(tmp_path / "journals", own_tiled_server) as supervisor,
        Acquisition(supervisor.address, tmp_path, events=800, delay=0.01) as acquisition,
    ):
        run_uid = acquisition.run_uid
        wait_until(lambda: confirmed(supervisor.journal_dir, run_uid) > 0, 60, "rows arrive")
        own_tiled_server.stop()
        stopped = time.monotonic()
        documents = len(acquisition.documents)
        wait_until(lambda: time.monotonic() - stopped > OUTAGE, OUTAGE + 10, "the outage is over")
        assert not acquisition.running or len(acquisition.documents) > documents
        own_tiled_server.start()
        assert acquisition.process.wait(300) == 0
        assert wait_for_outcome(supervisor.journal_dir, run_uid, 300) == "written"
        assert_complete(own_tiled_server, supervisor.journal_dir, run_uid, acquisition.documents)
        with journal_of(supervisor.journal_dir, run_uid) as journal:
            events = [entry.event for entry in journal.history()]
        assert "waiting" in events
        assert events.count("waiting") == events.count("resumed")


def test_a_run_survives_that_tiled_is_killed(tmp_path: Path, own_tiled_server: TiledServer) -> None:
    with (
        SupervisorProcess(tmp_path / "journals", own_tiled_server) as supervisor,
        Acquisition(supervisor.address, tmp_path, events=600, delay=0.01) as acquisition,
    ):
        run_uid = acquisition.run_uid
        for _ in range(3):
            rows = confirmed(supervisor.journal_dir, run_uid)
            # On a slow machine the whole run may have arrived while the server was started.
            wait_until(
                lambda: confirmed(supervisor.journal_dir, run_uid) > rows or not acquisition.running,  # noqa: B023
                120,
                "rows arrive",
            )
            own_tiled_server.kill()
            own_tiled_server.start()
        assert acquisition.process.wait(300) == 0
        assert wait_for_outcome(supervisor.journal_dir, run_uid, 300) == "written"
        assert_complete(own_tiled_server, supervisor.journal_dir, run_uid, acquisition.documents)


@pytest.mark.usefixtures("real_processes")
@pytest.mark.parametrize("shipped_by", ["ship command", "next publisher"])
def test_what_the_callback_returned_from_survives_the_acquisition_process(
    shipped_by: str, tmp_path: Path, supervisor: SupervisorProcess, tiled_server: TiledServer
) -> None:
    with Acquisition(supervisor.address, tmp_path, events=100_000) as acquisition:
        run_uid = acquisition.run_uid
        wait_until(lambda: len(acquisition.documents) > 500, 60, "the scan is under way")
        acquisition.process.kill()
        acquisition.process.wait()
        documents = acquisition.documents
        assert run_files(acquisition.spool)
        if shipped_by == "ship command":
            command = [
                sys.executable,
                "-m",
                "tiledwriter.cli.journal",
                "ship",
                str(acquisition.spool),
                supervisor.address,
            ]
            done = run_process(command, timeout=120)
            assert (done.returncode, done.stderr) == (0, "")
            assert done.stdout == f"1 of 1 runs are durable on the ingest host; 0 left in {acquisition.spool}.\n"
        else:
            (tmp_path / "next").mkdir()
            with Acquisition(supervisor.address, tmp_path / "next", events=1) as following:
                assert following.process.wait(60) == 0
            shipped = tmp_path / "again"
            shipped.mkdir()
            acquisition.spool.rename(shipped / "spool")
            with Acquisition(supervisor.address, shipped, events=1) as following:
                assert following.process.wait(60) == 0
    assert wait_for_outcome(supervisor.journal_dir, run_uid) == "interrupted"
    with journal_of(supervisor.journal_dir, run_uid) as journal:
        names = [record.name for record in journal.records()]
    # The process may have been killed after the publisher had returned and before the witness wrote that down.
    assert names[: len(documents)] == documents
    assert len(names) <= len(documents) + 1
    assert seq_nums(tiled_server, run_uid) == list(range(1, names.count("event") + 1))
    assert "stop" not in metadata(tiled_server, run_uid)


def test_drain_writes_what_the_journals_hold_and_ends(
    tmp_path: Path, supervisor: SupervisorProcess, tiled_server: TiledServer
) -> None:
    with Acquisition(supervisor.address, tmp_path, events=300, delay=0.01) as acquisition:
        run_uid = acquisition.run_uid
        wait_until(lambda: journaled(supervisor.journal_dir, run_uid) > 50, 60, "documents are journaled")
        supervisor.kill()
        acquisition.process.kill()
    held = journaled(supervisor.journal_dir, run_uid)
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--drain", "--tiled", tiled_server.uri]
    environment = {**os.environ, "TILED_API_KEY": tiled_server.api_key, "TILEDWRITER_QUIET_PERIOD": "1"}
    done = run_process([*command, "--journal-dir", str(supervisor.journal_dir)], env=environment, timeout=120)
    assert done.returncode == 0
    assert seq_nums(tiled_server, run_uid) == list(range(1, held - 1))  # all but start and descriptor


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path, supervisor: SupervisorProcess) -> None:
    with Acquisition(supervisor.address, tmp_path, events=100_000, delay=0.01):
        wait_until(supervisor.workers, 60, "there is a worker")
        workers = supervisor.workers()
        supervisor.kill()
        wait_until(lambda: all(map(has_ended, workers)), 60, "the workers have ended")


def test_a_worker_that_outlives_its_supervisor_is_not_taken_for_one_of_the_next(
    tmp_path: Path, supervisor: SupervisorProcess, tiled_server: TiledServer
) -> None:
    with Acquisition(supervisor.address, tmp_path, events=300, delay=0.005) as acquisition:
        run_uid = acquisition.run_uid
        wait_until(lambda: journaled(supervisor.journal_dir, run_uid) > 50, 60, "documents are journaled")
        (orphan,) = supervisor.workers()
        orphan.suspend()
        supervisor.kill()
        supervisor.start()
        # On a busy machine the next supervisor may have killed it already, as one that hangs.
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.resume()
        assert acquisition.process.wait(120) == 0
        assert wait_for_outcome(supervisor.journal_dir, run_uid, 120) == "written"
        assert has_ended(orphan)
        assert_complete(tiled_server, supervisor.journal_dir, run_uid, acquisition.documents)
    log = supervisor.log.read_text()
    assert "out of order" not in log


def supervise_dying_workers(how: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """Run dying_workers.py on a run that has begun."""
    with Journal(directory / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", Encoder().encode({"uid": "run", "time": 1.0}))
    command = [sys.executable, str(SUPPORT / "dying_workers.py"), how, str(directory)]
    return run_process(command, check=True, timeout=60)


def test_a_worker_that_listens_only_when_the_supervisor_stops_is_told(tmp_path: Path) -> None:
    done = supervise_dying_workers("stop", tmp_path)
    assert done.stdout == "told to end\n"
    assert "by force" not in done.stderr


def test_a_worker_that_dies_over_and_over_without_progress_puts_its_run_in_quarantine(tmp_path: Path) -> None:
    done = supervise_dying_workers("drain", tmp_path)
    assert done.stdout == f"failed after {MAX_DEATHS} deaths\n"
    with Journal(tmp_path / "run.sqlite") as journal:
        assert journal.get("outcome") == "failed"
        assert "died" in journal.get("reason")


def test_no_two_supervisors_give_workers_the_same_name(tmp_path: Path) -> None:
    tokens = []
    for _ in range(2):
        supervisor = Supervisor(tmp_path, WorkerCommand(print), Frontend)
        tokens.append(supervisor._pool.token(1))
        supervisor.close()
    assert tokens[0] != tokens[1]


@pytest.mark.usefixtures("real_processes")
def test_the_supervisor_ends_cleanly_on_sigterm_with_a_run_open(tmp_path: Path, supervisor: SupervisorProcess) -> None:
    with Acquisition(supervisor.address, tmp_path, events=100_000, delay=0.01):
        wait_until(supervisor.workers, 60, "there is a worker")
        workers = supervisor.workers()
        assert supervisor.stop() == 0
        assert not any(worker.is_running() for worker in workers)
        with pytest.raises(psutil.NoSuchProcess):
            psutil.Process(supervisor.pid)
