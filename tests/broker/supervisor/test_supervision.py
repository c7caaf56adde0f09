"""Workers that die, grow, hang or outlive their supervisor; runs that are looked at again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from disks import fill
from paths import SUPPORT, search_path
from runs import Acquisition, documents, happenings, metadata, publish, seq_nums, wait_for_outcome

from tiledbroker import Encoder, Journal, ZMQPublisher, journal_filename
from tiledbroker.log._journal_files import find_run_file
from tiledbroker.supervisor._finished import bring_back
from tiledbroker.supervisor.scheduler._runs import MAX_DEATHS
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until
from tiledwriter.worker._processes import Processes

pytestmark = [
    pytest.mark.filterwarnings("default"),  # the reading client warns about itself
    pytest.mark.timeout(300),
]

PATCHES = """
import os
import pathlib

hoard = []

def spoil(start):
    if start.get("spoiled") == "deadly":
        os._exit(7)
    if start.get("spoiled") == "greedy":
        hoard.append(bytearray(b"x" * (450 * 2**20)))
    if start.get("spoiled") == "greedy once":
        marker = pathlib.Path(start["marker"])
        if not marker.exists():
            marker.touch()
            hoard.append(bytearray(b"x" * (450 * 2**20)))
    return start
"""


@pytest.fixture
def supervise(tmp_path: Path, tiled_server: TiledServer) -> Iterator[Callable[..., SupervisorProcess]]:
    """Makes a supervisor with settings of its own, and with patches that spoil runs which ask for it; not started."""
    (tmp_path / "patches_of_this_test.py").write_text(PATCHES)
    made: list[SupervisorProcess] = []

    def make(**settings: Any) -> SupervisorProcess:
        environment = {f"TILEDWRITER_{name.upper()}": str(value) for name, value in settings.items()}
        environment |= {
            "TILEDWRITER_QUIET_PERIOD": "1",
            "TILEDWRITER_PATCHES": '{"start": "patches_of_this_test:spoil"}',
            "PYTHONPATH": search_path(tmp_path),
        }
        made.append(SupervisorProcess(tmp_path / "journals", tiled_server, environment=environment))
        return made[-1]

    yield make
    for process in made:
        process.stop()


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_workers(supervisor: SupervisorProcess) -> list[psutil.Process]:
    wait_until(supervisor.workers, 60, "there is a worker")
    return supervisor.workers()


# Workers that die


def test_a_run_that_kills_its_workers_is_quarantined_and_journaled_while_others_are_written(
    supervise: Callable[..., SupervisorProcess],
    publisher_to: Callable[[SupervisorProcess], ZMQPublisher],
    tiled_server: TiledServer,
) -> None:
    with supervise() as supervisor:
        publisher = publisher_to(supervisor)
        deadly = documents(spoiled="deadly")
        uid = publish(publisher, deadly[:3])
        others = [publish(publisher, documents()) for _ in range(3)]
        assert all(publisher.wait_written(other, timeout=60) for other in others)
        assert wait_for_outcome(supervisor.journal_dir, uid) == "failed"
        publish(publisher, deadly[3:])
        assert publisher.flush(timeout=60)
        following = publish(publisher, documents())
        assert publisher.wait_written(following, timeout=60)
    with journal_of(supervisor.journal_dir, uid) as journal:
        assert f"died {MAX_DEATHS} times in a row" in journal.get("reason")
        assert journal.names() == {"start": 1, "descriptor": 1, "event": 3, "stop": 1}
        assert journal.get("outcome") == "failed"
    assert uid not in tiled_server.client()


# Workers that grow


def test_a_worker_that_takes_too_much_memory_is_replaced(
    supervise: Callable[..., SupervisorProcess],
    publisher_to: Callable[[SupervisorProcess], ZMQPublisher],
    tiled_server: TiledServer,
    tmp_path: Path,
) -> None:
    with supervise(worker_memory=500) as supervisor:
        publisher = publisher_to(supervisor)
        emitted = documents(spoiled="greedy once", marker=str(tmp_path / "marker"))
        uid = publish(publisher, emitted[:3])
        wait_until(lambda: happenings(supervisor.journal_dir, uid).count("worker started") == 2, 60, "it is replaced")
        publish(publisher, emitted[3:])
        assert publisher.wait_written(uid, timeout=60)
    assert seq_nums(tiled_server, uid) == [1, 2, 3]
    with journal_of(supervisor.journal_dir, uid) as journal:
        (ended,) = [entry for entry in journal.history() if entry.event == "worker ended"]
    assert "MiB of memory, of 500 MiB at most" in ended.detail["reason"]


def test_a_run_whose_workers_take_too_much_memory_over_and_over_is_quarantined_for_it(
    supervise: Callable[..., SupervisorProcess], publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    with supervise(worker_memory=500) as supervisor:
        publisher = publisher_to(supervisor)
        uid = publish(publisher, documents(spoiled="greedy")[:3])
        other = publish(publisher, documents())
        assert publisher.wait_written(other, timeout=60)
        assert wait_for_outcome(supervisor.journal_dir, uid) == "failed"
    with journal_of(supervisor.journal_dir, uid) as journal:
        assert "MiB of memory, of 500 MiB at most" in journal.get("reason")


# Workers that hang


def test_a_worker_that_hangs_is_replaced(
    supervise: Callable[..., SupervisorProcess], tmp_path: Path, tiled_server: TiledServer
) -> None:
    with (
        supervise(worker_silence=2) as supervisor,
        Acquisition(supervisor.address, tmp_path, events=600, delay=0.01) as acquisition,
    ):
        wait_until(lambda: happenings(supervisor.journal_dir, acquisition.run_uid), 60, "it is journaled")
        (hanging,) = wait_for_workers(supervisor)
        hanging.suspend()
        wait_until(lambda: is_gone(hanging), 30, "it is ended")
        assert acquisition.process.wait(120) == 0
        assert wait_for_outcome(supervisor.journal_dir, acquisition.run_uid) == "written"
        assert seq_nums(tiled_server, acquisition.run_uid) == list(range(1, 601))
        with journal_of(supervisor.journal_dir, acquisition.run_uid) as journal:
            reasons = [entry.detail["reason"] for entry in journal.history() if entry.event == "worker ended"]
    assert reasons == ["its worker did not answer for 2 s"]


def test_a_supervisor_that_was_stopped_for_a_while_does_not_blame_its_workers(
    supervise: Callable[..., SupervisorProcess], publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    with supervise(worker_silence=2) as supervisor:
        publisher = publisher_to(supervisor)
        emitted = documents()
        uid = publish(publisher, emitted[:-1])
        assert publisher.flush(timeout=60)
        supervisor.send(signal.SIGSTOP)
        stopped = time.monotonic()
        wait_until(lambda: time.monotonic() - stopped > 4, 60, "it was stopped for longer than workers may be silent")
        supervisor.send(signal.SIGCONT)
        # Longer than a worker may be silent, which one without documents is if nobody asks.
        wait_until(lambda: time.monotonic() - stopped > 10, 20, "time goes by")
        publish(publisher, emitted[-1:])
        assert publisher.wait_written(uid, timeout=60)
    assert happenings(supervisor.journal_dir, uid).count("worker started") == 1


def test_a_worker_of_a_killed_supervisor_that_hangs_is_ended_by_the_next(
    supervise: Callable[..., SupervisorProcess], tmp_path: Path, tiled_server: TiledServer
) -> None:
    with (
        supervise() as supervisor,
        Acquisition(supervisor.address, tmp_path, events=300, delay=0.01) as acquisition,
    ):
        uid = acquisition.run_uid
        wait_until(lambda: happenings(supervisor.journal_dir, uid), 60, "it is journaled")
        (orphan,) = wait_for_workers(supervisor)
        orphan.suspend()
        supervisor.kill()
        supervisor.start()
        wait_until(lambda: is_gone(orphan), 30, "it is ended")
        assert acquisition.process.wait(120) == 0
        assert wait_for_outcome(supervisor.journal_dir, uid) == "written"
        assert seq_nums(tiled_server, uid) == list(range(1, 301))
    assert f"Process {orphan.pid}, a worker of run {uid}" in supervisor.log.read_text()


@pytest.fixture
def stranger() -> Iterator[psutil.Process]:
    """A process that is none of ours."""
    code = "import time; print(flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        # Until then it grows.
        process.stdout.readline()
        yield psutil.Process(process.pid)
        process.kill()


def test_a_process_is_known_by_its_pid_and_the_time_of_its_creation(stranger: psutil.Process) -> None:
    processes = Processes()
    identity = processes.identity(stranger.pid)
    assert identity == (stranger.pid, stranger.create_time())
    earlier = (stranger.pid, stranger.create_time() - 10)
    assert not processes.is_alive(earlier)
    assert not processes.kill(earlier)
    assert stranger.is_running()
    assert processes.memory(stranger.pid) == pytest.approx(stranger.memory_info().rss, rel=0.5)
    assert processes.is_alive(identity)
    assert processes.kill(identity)
    wait_until(lambda: not processes.is_alive(identity), 60, "it ends")
    assert not processes.kill(identity)


def test_what_has_the_pid_of_an_earlier_worker_by_now_is_left_alone(
    supervise: Callable[..., SupervisorProcess], stranger: psutil.Process
) -> None:
    supervisor = supervise()
    uid = journal_by_hand(supervisor.journal_dir, documents(), worker=[stranger.pid, stranger.create_time() - 100])
    with supervisor:
        assert wait_for_outcome(supervisor.journal_dir, uid) == "written"
    assert stranger.is_running()
    assert stranger.status() != psutil.STATUS_ZOMBIE


def journal_by_hand(journal_dir: Path, emitted: list[tuple[str, Any]], **state: Any) -> str:
    journal_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    uid = str(emitted[0][1]["uid"])
    with Journal(journal_dir / journal_filename(uid), "create", run_uid=uid) as journal:
        for name, doc in emitted:
            journal.append_one(name, Encoder().encode(doc))
        for key, value in state.items():
            journal.set(key, value)
    return uid


# Late audits


def plan_audit(journal_dir: Path, uid: str, at: float) -> None:
    """Have a finished run looked at again: its journal was never among those of finished runs."""
    with Journal(bring_back(find_run_file(journal_dir, uid)), "write") as journal:
        journal.set("audit_at", at)


def test_a_written_run_is_looked_at_again_when_its_journal_says_so_and_stays_written_meanwhile(
    supervise: Callable[..., SupervisorProcess],
    publisher_to: Callable[[SupervisorProcess], ZMQPublisher],
    tiled_server: TiledServer,
) -> None:
    supervisor = supervise()
    with supervisor:
        publisher = publisher_to(supervisor)
        uid = publish(publisher, documents())
        assert publisher.wait_written(uid, timeout=60)
    plan_audit(supervisor.journal_dir, uid, time.time() + 4)
    with supervisor:
        began = time.time()
        assert happenings(supervisor.journal_dir, uid).count("worker started") == 1
        while happenings(supervisor.journal_dir, uid).count("worker started") == 1:
            assert publisher.wait_written(uid, timeout=60)
            assert time.time() < began + 60
        with journal_of(supervisor.journal_dir, uid) as journal:
            visits = [entry.time for entry in journal.history() if entry.event == "worker started"]
        assert visits[1] >= began + 2
        wait_until(lambda: happenings(supervisor.journal_dir, uid).count("written") == 2, 60, "it is written again")
        assert publisher.wait_written(uid, timeout=60)
        wait_until(lambda: not supervisor.workers(), 30, "its worker has ended")
    with journal_of(supervisor.journal_dir, uid) as journal:
        assert journal.get("outcome") == "written"
        assert journal.get("audit_at") is None
    assert seq_nums(tiled_server, uid) == [1, 2, 3]
    assert "stop" in metadata(tiled_server, uid)
    log = supervisor.log.read_text()
    assert f"Run {uid} is starting" not in log
    assert "out of order" not in log


def test_a_late_audit_finds_out_that_tiled_is_away_as_any_run_does(
    tmp_path: Path, own_tiled_server: TiledServer, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    environment = {"TILEDWRITER_PARK_AFTER": "0.5", "TILEDWRITER_QUIET_PERIOD": "1"}
    supervisor = SupervisorProcess(tmp_path / "journals", own_tiled_server, environment=environment)
    with supervisor:
        publisher = publisher_to(supervisor)
        uids = [publish(publisher, documents()) for _ in range(3)]
        assert all(publisher.wait_written(uid, timeout=60) for uid in uids)
    for uid in uids:
        plan_audit(supervisor.journal_dir, uid, time.time())
    own_tiled_server.stop()
    with supervisor:
        away = "Tiled has refused requests since"
        wait_until(lambda: away in supervisor.log.read_text(), 60, "it is found to be away")
        own_tiled_server.start()
        following = publish(publisher, documents())
        assert publisher.wait_written(following, timeout=60)
        assert "Tiled accepts requests again" in supervisor.log.read_text()


def journal_to_audit(directory: Path, emitted: list[tuple[str, Any]]) -> str:
    """A journal of a run that was written, and whose late audit is due; returns the run's uid."""
    return journal_by_hand(directory, emitted, outcome="written", audit_at=time.time() - 1)


@pytest.fixture
def dying_audits(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts supervisors on the journals whose workers die as soon as they have begun; ends them in the end."""
    script = SUPPORT / "dying_workers.py"
    made: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, str(script), "audit", str(tmp_path / "journals")]
        made.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()


def test_an_audit_that_kills_its_workers_is_given_up_until_the_next_supervisor(
    tmp_path: Path, dying_audits: Callable[[], subprocess.Popen[str]]
) -> None:
    journals = tmp_path / "journals"
    uid = journal_to_audit(journals, documents())
    for times in (1, 2):
        process = dying_audits()
        wait_until(lambda: happenings(journals, uid).count("audit given up") == times, 60, "it is given up")  # noqa: B023
        seen = time.monotonic()
        wait_until(lambda: time.monotonic() - seen > 2, 60, "nobody tries again")  # noqa: B023
        assert happenings(journals, uid).count("worker started") == times * MAX_DEATHS
        process.terminate()
        _, logged = process.communicate(timeout=30)
        assert process.returncode == 0
        assert f"`tiledwriter-journal verify {uid} {journals}`" in logged
    with journal_of(journals, uid) as journal:
        assert journal.get("outcome") == "written"
        assert journal.get("audit_at") is not None
        assert journal.history()[-1].detail == {"reason": f"its worker died {MAX_DEATHS} times in a row"}


# Room


def test_an_idle_run_makes_room_for_others_and_goes_on_when_its_documents_come(
    supervise: Callable[..., SupervisorProcess],
    publisher_to: Callable[[SupervisorProcess], ZMQPublisher],
    tiled_server: TiledServer,
) -> None:
    with supervise(max_workers=1) as supervisor:
        publisher = publisher_to(supervisor)
        emitted = documents()
        idle = publish(publisher, emitted[:3])
        assert publisher.flush(timeout=60)
        other = publish(publisher, documents())
        assert publisher.wait_written(other, timeout=60)
        assert len(supervisor.workers()) <= 1
        publish(publisher, emitted[3:])
        assert publisher.wait_written(idle, timeout=60)
    assert seq_nums(tiled_server, idle) == [1, 2, 3]


def test_the_supervisor_can_be_stopped_while_a_worker_waits_for_space_on_the_journals_disk(
    small_disk: Path, tiled_server: TiledServer, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    journals = small_disk / "journals"
    journals.mkdir()
    with SupervisorProcess(journals, tiled_server, environment={"TILEDWRITER_MIN_FREE": "0"}) as supervisor:
        filling = fill(small_disk)
        publisher = publisher_to(supervisor)
        publish(publisher, documents())
        wait_for_workers(supervisor)
        assert supervisor.stop() == 0
        filling.unlink()
    assert "by force" not in supervisor.log.read_text()
