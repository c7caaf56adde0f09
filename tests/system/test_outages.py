"""Runs that wait for Tiled: few processes while it is away, one that tries, and the others after it, in order.

TILEDWRITER_TEST_RUNS sets how many runs are published while Tiled is away: the suite's default is small.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from event_model import compose_run
from faulty_proxy import PASS, Fault, FaultyProxy, answer
from runs import happenings, seq_nums, wait_for_outcome

from tiledbroker import Encoder, Journal, ZMQPublisher
from tiledbroker.log import read_outage
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

RUNS = int(os.environ.get("TILEDWRITER_TEST_RUNS", "16"))
EVENTS = 5
MAX_WORKERS = 8
MAX_RESUMED = 3

pytestmark = [
    pytest.mark.filterwarnings("default"),  # the reading client warns about itself
    pytest.mark.timeout(600 + 5 * RUNS),
]


class Memory(threading.Thread):
    """Watches a supervisor, its fork server and its workers: how many there are, and what they take."""

    def __init__(self, supervisor: SupervisorProcess) -> None:
        super().__init__(name="tiledwriter-test-memory")
        self._supervisor = psutil.Process(supervisor.pid)
        self._stopping = threading.Event()
        self.workers = self.rss = self.supervisor_rss = 0

    def __enter__(self) -> Memory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.join()

    def run(self) -> None:
        while not self._stopping.wait(0.1):
            sizes = []
            for process in [self._supervisor, *self._supervisor.children(recursive=True)]:
                try:
                    sizes.append((process.memory_info().rss, process.memory_full_info().pss))
                except psutil.Error:
                    continue
            if sizes:
                self.supervisor_rss = max(self.supervisor_rss, sizes[0][0])
                self.rss = max(self.rss, sum(pss for _, pss in sizes))
                self.workers = max(self.workers, len(self._worker_pids()))

    def _worker_pids(self) -> list[int]:
        try:
            return [worker.pid for child in self._supervisor.children() for worker in child.children()]
        except psutil.Error:
            return []


def publish_run(publisher: ZMQPublisher, events: int = EVENTS) -> str:
    """A whole run; returns its uid."""
    run = compose_run()
    stream = run.compose_descriptor(name="primary", data_keys={"x": {"source": "s", "dtype": "number", "shape": []}})
    publisher("start", run.start_doc)
    publisher("descriptor", stream.descriptor_doc)
    for i in range(events):
        publisher("event", stream.compose_event(data={"x": float(i)}, timestamps={"x": float(i)}))
    publisher("stop", run.compose_stop())
    return str(run.start_doc["uid"])


def supervisor_for(server: TiledServer | Gate, directory: Path, **environment: str) -> SupervisorProcess:
    environment = {
        "TILEDWRITER_MAX_WORKERS": str(MAX_WORKERS),
        "TILEDWRITER_MAX_RESUMED": str(MAX_RESUMED),
        "TILEDWRITER_PARK_AFTER": "1",
        "TILEDWRITER_QUIET_PERIOD": "1",
        **environment,
    }
    return SupervisorProcess(directory / "journals", server, environment=environment)


def outcomes(journal_dir: Path, uids: list[str]) -> dict[str, float]:
    """When each of the runs that have an outcome got it."""
    times = {}
    for uid in uids:
        try:
            with journal_of(journal_dir, uid) as journal:
                if journal.get("outcome") == "written":
                    times[uid] = journal.history()[-1].time
        except LookupError:
            continue
    return times


def most_overtaken(order: list[str], times: dict[str, float]) -> int:
    """By how many later ones a run was overtaken at most."""
    done = sorted(order, key=times.__getitem__)
    return max(sum(done.index(later) < done.index(uid) for later in order[i + 1 :]) for i, uid in enumerate(order))


def test_runs_published_while_tiled_is_away_take_few_processes_and_are_complete_in_order_when_it_is_back(
    tmp_path: Path, own_tiled_server: TiledServer
) -> None:
    own_tiled_server.stop()
    with supervisor_for(own_tiled_server, tmp_path) as supervisor, Memory(supervisor) as memory:
        publishers = [ZMQPublisher(supervisor.address, spool_dir=tmp_path / f"spool-{i}") for i in range(2)]
        try:
            began = time.monotonic()
            published: list[list[str]] = [[], []]
            for number in range(RUNS):
                published[number % 2].append(publish_run(publishers[number % 2]))
            assert all(publisher.flush(300 + RUNS) for publisher in publishers)
            journaled = time.monotonic() - began
            uids = published[0] + published[1]
            wait_until(lambda: len(supervisor.workers()) <= 1, 120, "all runs are parked")
            own_tiled_server.start()
            returned = time.monotonic()
            for uid in uids:
                assert wait_for_written(supervisor, uid) == "written"
            complete = time.monotonic() - returned
        finally:
            for publisher in publishers:
                publisher.close(timeout=0)
        times = outcomes(supervisor.journal_dir, uids)
    overtaken = [most_overtaken(order, times) for order in published]
    sys.stdout.write(
        f"\n{RUNS} runs: journaled in {journaled:.1f} s; at most {memory.workers} workers; supervisor "
        f"{memory.supervisor_rss / 2**20:.0f} MiB RSS, all processes {memory.rss / 2**20:.0f} MiB PSS; complete "
        f"{complete:.1f} s after Tiled's return, {RUNS / complete:.1f} runs/s; overtaken by at most {max(overtaken)}\n"
    )
    assert memory.workers <= MAX_WORKERS
    assert max(overtaken) < MAX_RESUMED
    for uid in uids:
        assert seq_nums(own_tiled_server, uid) == list(range(1, EVENTS + 1))


def wait_for_written(supervisor: SupervisorProcess, uid: str) -> str:
    def outcome() -> str:
        with journal_of(supervisor.journal_dir, uid) as journal:
            return str(journal.get("outcome", ""))

    wait_until(outcome, 180 + RUNS, f"run {uid} has an outcome")
    return outcome()


def wait_until_parked(supervisor: SupervisorProcess, uid: str) -> None:
    wait_until(lambda: times_parked(supervisor.journal_dir, uid) > 0, 60, f"run {uid} is parked")


def times_parked(journal_dir: Path, uid: str) -> int:
    """How many workers of a run have ended because of the outage that it meets."""
    try:
        with journal_of(journal_dir, uid) as journal:
            outage = read_outage(journal)
    except LookupError:
        return 0
    return 0 if outage is None else outage.parked


def test_a_finished_run_gives_its_worker_up_while_tiled_is_away_and_an_open_one_does_not(
    tmp_path: Path, own_tiled_server: TiledServer, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    own_tiled_server.stop()
    with supervisor_for(own_tiled_server, tmp_path) as supervisor:
        publisher = publisher_to(supervisor)
        publisher("start", {"uid": "open", "time": 1.0})
        finished_run = publish_run(publisher)
        assert publisher.flush(timeout=60)
        wait_until_parked(supervisor, finished_run)
        # Once Tiled is back, a slow start of it can park the run after its stop.
        assert happenings(supervisor.journal_dir, "open").count("worker started") == 1
        assert times_parked(supervisor.journal_dir, "open") == 0
        own_tiled_server.start()
        assert publisher.wait_written(finished_run, timeout=120)
        wait_until(lambda: "resumed" in happenings(supervisor.journal_dir, "open"), 60, "the open run goes on, too")
        publisher("stop", {"uid": "s", "run_start": "open", "time": 2.0, "exit_status": "success"})
        assert publisher.wait_written("open", timeout=60)


def test_a_parked_run_is_known_to_its_publisher_and_to_others(
    tmp_path: Path, own_tiled_server: TiledServer, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    own_tiled_server.stop()
    with supervisor_for(own_tiled_server, tmp_path) as supervisor:
        publisher = publisher_to(supervisor)
        run = compose_run()
        start, stop = run.start_doc, run.compose_stop()
        for again in (publisher, publisher_to(supervisor)):  # the second one sends what is there already
            again("start", start)
            again("stop", stop)
            assert again.flush(timeout=60)
            wait_until_parked(supervisor, start["uid"])
            assert not again.wait_written(start["uid"], timeout=0.5)
            assert again.status().waiting == 0
        own_tiled_server.start()
        assert publisher.wait_written(start["uid"], timeout=120)
    with journal_of(supervisor.journal_dir, start["uid"]) as journal:
        assert journal.names() == {"start": 1, "stop": 1}
    assert "out of order" not in supervisor.log.read_text()


def test_a_supervisor_that_starts_with_many_unfinished_runs_resumes_a_few_at_a_time_in_order(
    tmp_path: Path, tiled_server: TiledServer
) -> None:
    supervisor = supervisor_for(tiled_server, tmp_path)
    supervisor.journal_dir.mkdir()
    uids = []
    for number in range(3 * MAX_RESUMED):
        run = compose_run()
        uids.append(str(run.start_doc["uid"]))
        with Journal(supervisor.journal_dir / f"{uids[-1]}.sqlite", "create", run_uid=uids[-1]) as journal:
            journal.append_one("start", Encoder().encode(run.start_doc))
            journal.append_one("stop", Encoder().encode(run.compose_stop()))
            journal.set("arrived", 1000.0 + number)
    with supervisor, Memory(supervisor) as memory:
        for uid in uids:
            assert wait_for_written(supervisor, uid) == "written"
        times = outcomes(supervisor.journal_dir, uids)
    assert 1 <= memory.workers <= MAX_RESUMED
    assert most_overtaken(uids, times) < MAX_RESUMED


def test_draining_waits_for_tiled(tmp_path: Path, own_tiled_server: TiledServer) -> None:
    with supervisor_for(own_tiled_server, tmp_path) as supervisor:
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool")
        own_tiled_server.stop()
        uids = [publish_run(publisher) for _ in range(3)]
        assert publisher.flush(timeout=60)
        publisher.close(timeout=0)
    parked = [times_parked(supervisor.journal_dir, uid) for uid in uids]
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--drain", "--tiled", own_tiled_server.uri]
    environment = {**os.environ, "TILED_API_KEY": own_tiled_server.api_key, "TILEDWRITER_PARK_AFTER": "0.5"}
    with subprocess.Popen([*command, "--journal-dir", str(supervisor.journal_dir)], env=environment) as draining:
        try:
            for uid, times in zip(uids, parked, strict=True):
                wait_until(lambda: times_parked(supervisor.journal_dir, uid) > times, 60, "it is tried")  # noqa: B023
            assert draining.poll() is None
            own_tiled_server.start()
            assert draining.wait(120) == 0
        finally:
            draining.kill()
    for uid in uids:
        assert seq_nums(own_tiled_server, uid) == list(range(1, EVENTS + 1))
        history = happenings(supervisor.journal_dir, uid)
        assert history.count("waiting") == history.count("resumed")
        assert "parked" not in history


class Gate(FaultyProxy):
    """In front of a Tiled server: while it is shut, writing meets a fault, and asking for its health another."""

    def __init__(self, server: TiledServer, fault: Fault, health: Fault = PASS) -> None:
        super().__init__(server.uri)
        self.node = ""
        """Where the path of a request to be met with the fault ends, if not all are."""
        self.api_key, self.storage = server.api_key, server.storage
        self._health = health
        self.shut: Fault | None = fault

    def fault_for(self, method: str, path: str) -> Fault:
        if self.shut is None:
            return PASS
        if path == "/healthz":
            return self._health
        return self.shut if method in {"POST", "PATCH"} and path.endswith(self.node) else PASS


@pytest.mark.parametrize(
    ("status", "health"),
    [(401, PASS), (403, PASS), (503, PASS), (500, answer(503))],
    ids=["401", "403", "503", "500 and not well"],
)
def test_a_server_that_lets_nobody_in_is_away(
    status: int,
    health: Fault,
    tmp_path: Path,
    tiled_server: TiledServer,
    publisher_to: Callable[[SupervisorProcess], ZMQPublisher],
) -> None:
    with (
        Gate(tiled_server, answer(status), health) as gate,
        supervisor_for(gate, tmp_path, TILEDWRITER_POISON_AFTER="2") as supervisor,
    ):
        publisher = publisher_to(supervisor)
        uid = publish_run(publisher)
        wait_until_parked(supervisor, uid)
        gate.shut = None
        assert publisher.wait_written(uid, timeout=120)
    assert seq_nums(tiled_server, uid) == list(range(1, EVENTS + 1))


def test_a_run_that_the_server_answers_500_is_not_taken_for_an_outage(
    tmp_path: Path, tiled_server: TiledServer, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    """Parked again and again, it would never be found to be poison."""
    with (
        Gate(tiled_server, answer(500)) as gate,
        supervisor_for(gate, tmp_path, TILEDWRITER_POISON_AFTER="4") as supervisor,
    ):
        gate.node = "/primary/internal"  # and the databases take rows of other tables
        uid = publish_run(publisher_to(supervisor))
        assert wait_for_outcome(supervisor.journal_dir, uid) == "failed"
        history = happenings(supervisor.journal_dir, uid)
    assert times_parked(supervisor.journal_dir, uid) == 0
    assert history.count("worker started") == 1
