"""The snapshot of the service says what scheduler, publishers and workers know, and no more."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from ingest_model import UNIX, IngestModel, ModelWorker

from tiledbroker.protocol import messages
from tiledbroker.protocol.messages import LATENCY_BOUNDS_SECONDS, Documents, Report
from tiledbroker.supervisor._clock import Instant
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor._publishers import Publisher
from tiledbroker.supervisor._service_view import ServiceIdentity, Surroundings, describe_service, make_snapshot
from tiledbroker.supervisor.scheduler._runs import MAX_DEATHS
from tiledbroker.supervisor.status._failed_runs import MAX_NAMED
from tiledbroker.supervisor.status._health import TILED_GRACE_SECONDS
from tiledbroker.supervisor.status._snapshot import (
    MAX_LISTED_RUNS,
    DiskStatus,
    RunStatus,
    Snapshot,
    TiledLook,
    decode_snapshot,
    encode_snapshot,
)
from tiledbroker.supervisor.status._tiled_reports import TiledReports

DISK = DiskStatus("/journals", "journals", 50 * 2**30, 100 * 2**30, 0, "well")
IDENTITY = ServiceIdentity(
    "1.2.3", "ingest", 42, UNIX, "/journals", {"listen": "tcp://127.0.0.1:5579"}, "tiledwriter-supervisor check"
)


def batch(uid: str, first: int, *names: str) -> Documents:
    return Documents(uid, first, list(names), [3] * len(names), [1] * len(names), b"..." * len(names))


def whole(uid: str) -> Documents:
    return batch(uid, 0, "start", "descriptor", "event", "stop")


class Service(IngestModel):
    """An ingest host of which snapshots are taken.

    Attributes
    ----------
    clock_step
        Seconds by which the host's clock was set.
    """

    clock_step = 0.0

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"max_workers": 4, "max_resumed": 2, **settings})
        self.scheduler.finish_survey()
        self.reports = TiledReports("http://tiled:8000")
        self.alice = Publisher(b"alice", "", "127.0.0.1", name="alice", connected_at=UNIX)
        self.disk = DISK

    @property
    def now(self) -> Instant:
        return super().now._replace(unix=super().now.unix + self.clock_step)

    def look(self, **around: Any) -> Snapshot:
        """Take a snapshot, as a reader of the socket gets it."""
        surroundings = {
            "listen": "tcp://127.0.0.1:5579",
            "publishers": [self.alice],
            "refused": {},
            "refused_at": {},
            "pids": {number: 1000 + number for number in self.workers},
            "memory": dict.fromkeys(self.workers, 2**20),
            "disks": [self.disk],
        }
        around_now = Surroundings(**{**surroundings, **around})
        made = make_snapshot(IDENTITY, self.scheduler, self.reports, around_now, self.now)
        return decode_snapshot(encode_snapshot(made))

    def report(self, worker: ModelWorker, **values: Any) -> None:
        report = Report(worker.uid, **values)
        self.reports.add(report)
        self.say(worker, report)

    def reach_tiled(self, worker: ModelWorker, **values: Any) -> None:
        now = self.now
        both = {"answered_at": now.unix, "written_at": now.unix}
        self.report(worker, **both, answered_monotonic=now.monotonic, written_monotonic=now.monotonic, **values)

    def miss_tiled(self, worker: ModelWorker, problem: str, **values: Any) -> None:
        now = self.now
        self.report(worker, problem=problem, failed_at=now.unix, failed_monotonic=now.monotonic, **values)

    def fail(self, uid: str, reason: str = "no sound form") -> None:
        """Let a run be written until it fails."""
        self.send(self.alice, whole(uid))
        worker = self.start(uid)
        self.store(worker)
        self.journal(uid).facts = self.failed_facts(uid, reason)
        self.say(worker, messages.Written(uid, "failed", reason))
        self.end(worker)

    def failed_facts(self, uid: str, reason: str) -> Any:
        return replace(self.facts(uid), state=State.FAILED, reason=reason)


@pytest.fixture
def service() -> Service:
    return Service()


def named(runs: list[RunStatus]) -> list[str]:
    return [run.uid for run in runs]


# Runs


def test_a_service_without_runs_is_well_and_says_that_tiled_was_not_asked(service: Service) -> None:
    snapshot = service.look()
    assert snapshot.state == "well"
    assert [reason.startswith("Tiled has not been asked yet") for reason in snapshot.reasons] == [True]
    assert snapshot.tiled.reachable is None
    assert (snapshot.version, snapshot.host, snapshot.pid) == ("1.2.3", "ingest", 42)
    assert snapshot.settings == {"listen": "tcp://127.0.0.1:5579"}


@pytest.mark.parametrize(
    ("problem", "seconds", "state", "text"),
    [
        ("", 0.5, "well", "Tiled answered at "),
        ("ConnectError", 0.5, "well", "Tiled has not answered yet (ConnectError)."),
        ("ConnectError", TILED_GRACE_SECONDS, "degraded", "Tiled does not accept requests since "),
    ],
)
def test_the_status_does_not_say_that_tiled_was_not_asked_when_it_was(
    service: Service, problem: str, seconds: float, state: str, text: str
) -> None:
    service.reports.note_look(problem, service.seconds - seconds)
    service.reports.note_look(problem, service.seconds)
    snapshot = service.look()
    assert snapshot.state == state
    (reason,) = snapshot.reasons
    assert reason.startswith(text)
    assert reason.endswith("`tiledwriter-supervisor check`")
    now = service.now.unix
    assert snapshot.tiled.look == TiledLook(now, not problem, problem or None, now - seconds)


def test_what_workers_say_of_tiled_counts_more_than_the_first_look(service: Service) -> None:
    service.reports.note_look("ConnectError", service.seconds - 60)
    service.reports.note_look("ConnectError", service.seconds - 30)
    service.send(service.alice, batch("run", 0, "start"))
    worker = service.start("run")
    service.store(worker)
    service.write(worker, 1)
    service.reach_tiled(worker)
    assert service.look().reasons == []


def test_a_tiled_that_went_away_while_there_was_nothing_to_write_is_a_defect_until_it_answers(service: Service) -> None:
    service.send(service.alice, whole("run"))
    worker = service.start("run")
    service.store(worker)
    service.write(worker)
    service.reach_tiled(worker)
    service.end(worker)
    gone = service.seconds + 3600
    for seconds in (0, TILED_GRACE_SECONDS - 1):
        service.reports.note_look("ConnectError", gone + seconds)
        assert service.look().tiled.reachable
    service.reports.note_look("ConnectError", gone + TILED_GRACE_SECONDS)
    snapshot = service.look()
    assert (snapshot.state, snapshot.tiled.reachable, snapshot.tiled.since) == ("degraded", False, UNIX + gone)
    assert "ConnectError. Nothing waits;" in snapshot.reasons[0]
    service.reports.note_look("", gone + 100)
    assert service.look().state == "well"


@pytest.fixture(params=[-3600.0, 3600.0], ids=["back", "forward"])
def service_with_other_time(service: Service, request: pytest.FixtureRequest) -> Service:
    """A service that wrote a run a second before the host's clock was set."""
    service.send(service.alice, whole("before"))
    worker = service.start("before")
    service.store(worker)
    service.write(worker)
    service.reach_tiled(worker)
    service.end(worker)
    service.seconds += 1.0
    service.clock_step = request.param
    return service


def test_the_age_of_what_is_known_of_tiled_is_right_after_the_clock_was_set(service_with_other_time: Service) -> None:
    snapshot = service_with_other_time.look()
    tiled = snapshot.tiled
    assert snapshot.state == "well"
    assert [snapshot.now - time for time in (tiled.since, tiled.asked, tiled.last_write) if time] == [1.0, 1.0, 1.0]


def test_an_outage_and_its_end_are_told_after_the_clock_was_set(service_with_other_time: Service) -> None:
    service = service_with_other_time
    service.send(service.alice, whole("run"))
    worker = service.start("run")
    service.store(worker)
    service.miss_tiled(worker, "503: away")
    assert service.look().state == "degraded"
    service.seconds += 1.0
    service.miss_tiled(worker, "401: no", needs_person=True)
    assert service.look().state == "failed"
    service.seconds += 1.0
    service.reach_tiled(worker)
    snapshot = service.look()
    assert (snapshot.state, snapshot.tiled.since) == ("well", service.now.unix)


def test_an_absence_is_told_after_the_clock_was_set(service_with_other_time: Service) -> None:
    service = service_with_other_time
    service.reports.note_look("ConnectError", service.seconds)
    assert service.look().state == "well"
    service.seconds += TILED_GRACE_SECONDS
    service.clock_step += 7200.0
    service.reports.note_look("ConnectError", service.seconds)
    snapshot = service.look()
    assert (snapshot.state, snapshot.tiled.since) == ("degraded", snapshot.now - TILED_GRACE_SECONDS)


def test_an_open_run_is_described(service: Service) -> None:
    service.send(service.alice, batch("run", 0, "start", "descriptor", "event"))
    worker = service.start("run")
    service.store(worker)
    service.write(worker, 2)
    service.reach_tiled(worker, scan_id=7, plan="count")
    snapshot = service.look()
    (run,) = snapshot.runs.open
    assert (run.uid, run.state, run.scan_id, run.plan) == ("run", "open", 7, "count")
    assert (run.durable, run.written, run.ended, run.publisher) == (3, 2, False, "alice")
    assert run.since == service.now.unix
    assert run.worker is not None
    assert (run.worker.pid, run.worker.memory) == (1000 + worker.number, 2**20)
    assert snapshot.runs.troubled == []
    assert snapshot.state == "well"
    assert snapshot.reasons == []


def test_written_runs_are_counted_once_and_not_listed(service: Service) -> None:
    service.send(service.alice, whole("run"))
    worker = service.start("run")
    service.store(worker)
    service.write(worker)
    service.reach_tiled(worker)
    service.end(worker)
    snapshot = service.look()
    assert snapshot.runs.counts["written"] == 1
    assert (snapshot.runs.open, snapshot.runs.troubled) == ([], [])
    last = snapshot.runs.last_finished
    assert last is not None
    assert (last.uid, last.state, last.durable, last.since, last.worker) == (
        "run",
        "written",
        4,
        service.now.unix,
        None,
    )
    assert (snapshot.totals.documents, snapshot.totals.bytes, snapshot.totals.written_documents) == (4, 12, 4)
    assert snapshot.state == "well"


def test_an_audit_does_not_count_a_run_again(service: Service) -> None:
    service.journal("old", state=State.WRITTEN, length=4, ended=True, audit_at=UNIX)
    service.perform(service.scheduler.add_journal(service.facts("old"), service.now))
    worker = service.start("old")
    service.say(worker, messages.Written("old", "written", ""))
    assert service.look().runs.counts["written"] == 0


def test_a_failed_run_is_kept_by_name_after_its_worker(service: Service) -> None:
    service.fail("run", "PoisonedOperation: 500")
    snapshot = service.look()
    (run,) = snapshot.runs.troubled
    assert (run.uid, run.state, run.reason, run.worker) == ("run", "failed", "PoisonedOperation: 500", None)
    assert snapshot.runs.counts["failed"] == 1
    assert snapshot.state == "degraded"
    assert "PoisonedOperation: 500. The error with its traceback: `" in snapshot.reasons[0]


def test_failed_runs_of_earlier_supervisors_are_named(service: Service) -> None:
    facts = service.journal("old", state=State.FAILED, reason="bad", length=3, scan_id=5, plan="scan", since=7.0).facts
    service.perform(service.scheduler.add_journal(facts, service.now))
    (run,) = service.look().runs.troubled
    assert (run.uid, run.reason, run.scan_id, run.plan, run.since) == ("old", "bad", 5, "scan", 7.0)
    assert run.durable == 3
    assert run.written is None


def test_failed_runs_without_a_worker_are_left_when_the_supervisor_stops(service: Service) -> None:
    facts = service.journal("old", state=State.FAILED, reason="bad", length=3).facts
    service.perform(service.scheduler.add_journal(facts, service.now))
    assert service.scheduler.count_unwritten() == {"failed": 1}
    assert describe_service(service.scheduler) == "runs: 1 failed"


def test_a_failed_run_that_is_retried_is_no_longer_failed(service: Service) -> None:
    service.fail("run")
    service.perform(service.scheduler.request_retry(service.facts("run"), service.now))
    snapshot = service.look()
    assert snapshot.runs.counts["failed"] == 0
    assert named(snapshot.runs.open) == ["run"]


def test_a_failed_run_stays_so_while_further_documents_are_journaled(service: Service) -> None:
    service.fail("run", "bad")
    service.send(service.alice, batch("run", 4, "event"))
    (run,) = service.look().runs.troubled
    assert (run.uid, run.reason) == ("run", "bad")
    worker = service.start("run")
    service.say(worker, messages.Written("run", "failed", "bad"))
    snapshot = service.look()
    assert named(snapshot.runs.troubled) == ["run"]
    assert snapshot.runs.counts["failed"] == 1


def test_a_run_whose_workers_die_is_failed(service: Service) -> None:
    service.send(service.alice, whole("run"))
    for _ in range(MAX_DEATHS):
        service.seconds += 60
        service.pass_by(1)
        worker = service.worker_of("run")
        service.fork(worker)
        service.end(worker, exit_code=7)
    snapshot = service.look()
    assert named(snapshot.runs.troubled) == ["run"]
    assert snapshot.totals.restarts == MAX_DEATHS
    assert any("A worker died" in reason for reason in snapshot.reasons)


def test_more_failed_runs_than_are_named_are_counted(service: Service) -> None:
    for number in range(MAX_NAMED + 3):
        facts = service.journal(f"old {number}", state=State.FAILED, reason="bad", length=3).facts
        service.perform(service.scheduler.add_journal(facts, service.now))
    runs = service.look().runs
    assert len(runs.troubled) == MAX_LISTED_RUNS
    assert runs.counts["failed"] == MAX_NAMED + 3
    assert runs.unlisted_troubled == 3
    service.perform(service.scheduler.request_retry(service.facts(f"old {MAX_NAMED + 1}"), service.now))
    assert service.look().runs.counts["failed"] == MAX_NAMED + 2


def test_a_retry_of_a_run_that_had_not_failed_changes_no_count(service: Service) -> None:
    for number in range(MAX_NAMED + 1):
        facts = service.journal(f"old {number}", state=State.FAILED, reason="bad", length=3).facts
        service.perform(service.scheduler.add_journal(facts, service.now))
    service.journal("other", length=2)
    service.scheduler.resume_cleared(service.facts("other"), was_failed=False)
    assert service.look().runs.counts["failed"] == MAX_NAMED + 1


def test_a_journal_that_cannot_be_read_is_troubled_until_it_can(service: Service) -> None:
    good = service.journal("run", length=3).facts
    bad = replace(good, state=State.FAILED, reason="its journal cannot be used", unusable=True, unavailable=True)
    for _ in range(2):
        service.perform(service.scheduler.add_journal(bad, service.now))
    assert service.look().runs.counts["failed"] == 1
    service.perform(service.scheduler.add_journal(good, service.now))
    snapshot = service.look()
    assert snapshot.runs.counts["failed"] == 0
    assert named(snapshot.runs.open) == ["run"]


def test_documents_in_tiled_of_a_run_that_was_found_are_not_known(service: Service) -> None:
    service.perform(service.scheduler.add_journal(service.journal("run", length=3).facts, service.now))
    (run,) = service.look().runs.open
    assert (run.durable, run.written) == (3, None)
    worker = service.start("run")
    service.write(worker, 2)
    assert service.look().runs.open[0].written == 2


# Why runs wait


def test_a_run_tells_what_its_worker_waits_for(service: Service) -> None:
    service.send(service.alice, whole("run"))
    worker = service.start("run")
    service.miss_tiled(worker, "503", waits_for="Tiled does not accept requests: 503")
    (run,) = service.look().runs.troubled
    assert run.waits_for == "Tiled does not accept requests: 503"
    service.reach_tiled(worker)
    assert service.look().runs.troubled == []


def test_a_run_that_waits_while_tiled_answers_others_needs_attention(service: Service) -> None:
    for uid in ("stuck", "other"):
        service.send(service.alice, batch(uid, 0, "start"))
    stuck, other = service.start("stuck"), service.start("other")
    service.reach_tiled(stuck, waits_for="Tiled answers others, but fails at PATCH.")
    service.reach_tiled(other)
    snapshot = service.look()
    assert snapshot.state == "degraded"
    assert snapshot.reasons == ["A run waits: stuck: Tiled answers others, but fails at PATCH."]


def test_a_parked_run_waits_for_tiled(service: Service) -> None:
    service.send(service.alice, whole("run"))
    worker = service.start("run")
    service.store(worker)
    service.miss_tiled(worker, "503: away")
    service.end(worker)
    snapshot = service.look()
    (run,) = snapshot.runs.troubled
    assert run.state == "parked"
    assert run.waits_for == "Tiled does not accept requests; this run is resumed when it does."
    assert snapshot.runs.counts["parked"] == 1
    assert snapshot.state == "degraded"
    assert "503: away. 1 run with 4 documents wait in the journals." in snapshot.reasons[0]


def test_a_run_without_room_waits_for_a_worker(service: Service) -> None:
    for number in range(5):
        service.send(service.alice, batch(f"run {number}", 0, "start"))
    service.pass_by(0.1)
    snapshot = service.look()
    (run,) = snapshot.runs.troubled
    assert run.waits_for == "All 4 workers are busy."
    assert (snapshot.workers.running, snapshot.workers.max, snapshot.workers.waiting_for_worker) == (4, 4, 1)
    assert any("all 4 workers are busy" in reason for reason in snapshot.reasons)


def test_workers_that_wait_for_their_turn_to_write_are_counted(service: Service) -> None:
    for number in range(3):
        service.send(service.alice, batch(f"run {number}", 0, "start"))
        worker = service.start(f"run {number}")
        service.store(worker)
        service.reach_tiled(worker)
        service.say(worker, messages.SlotWanted(worker.uid))
    snapshot = service.look()
    # Nothing is known of the storage, so one of them writes.
    assert snapshot.workers.waiting_to_write == 2
    # It is no defect that others wait.
    assert snapshot.reasons == []


def test_a_run_waits_for_another_worker_after_a_death(service: Service) -> None:
    service.send(service.alice, batch("run", 0, "start"))
    for _ in range(3):
        service.pass_by(60)
        worker = service.worker_of("run")
        service.fork(worker)
        service.end(worker, exit_code=7)
    (run,) = service.look().runs.troubled
    assert run.waits_for == "Its worker died 3 times; the next one starts in 0 s."
    assert run.deaths == 3


def test_runs_that_are_resumed_wait_for_their_turn(service: Service) -> None:
    for number in range(3):
        facts = service.journal(f"run {number}", length=3, order=UNIX + number).facts
        service.perform(service.scheduler.add_journal(facts, service.now))
    service.pass_by(0.1)
    (run,) = service.look().runs.troubled
    assert run.waits_for == "It is in the queue of 1 runs that are resumed, a few at a time."


# Publishers


def test_publishers_are_named_with_their_runs_and_lag(service: Service) -> None:
    service.send(service.alice, batch("run", 0, "start"))
    service.alice.note_lag(messages.Ping(3, 12, 3400, 30.0), service.now.unix)
    (alice,) = service.look().publishers
    assert (alice.name, alice.runs, alice.lag_documents, alice.lag_bytes) == ("alice", 1, 12, 3400)
    assert alice.oldest_unacknowledged == service.now.unix - 30


def test_the_lag_of_an_earlier_publisher_is_not_known(service: Service) -> None:
    service.alice.note_lag(messages.Ping(3), service.now.unix)
    (alice,) = service.look().publishers
    assert (alice.lag_documents, alice.lag_bytes, alice.oldest_unacknowledged) == (None, None, None)


@pytest.mark.parametrize("age", [-5.0, float("nan"), float("inf")])
def test_a_lag_that_makes_no_sense_is_not_known(service: Service, age: float) -> None:
    service.alice.note_lag(messages.Ping(3, -1, 3, age), service.now.unix)
    (alice,) = service.look().publishers
    assert (alice.lag_documents, alice.lag_bytes, alice.oldest_unacknowledged) == (None, None, None)


def test_refused_runs_of_a_publisher_are_told(service: Service) -> None:
    service.alice.refused["run"] = "a run of this uid belongs to another client"
    snapshot = service.look()
    assert snapshot.state == "degraded"
    assert "publisher alice is refused, such as run: a run of this uid" in snapshot.reasons[0]


@pytest.mark.parametrize("topic", ["key", "version", "connections", "identity"])
def test_publishers_that_are_kept_out_are_told_for_a_while(service: Service, topic: str) -> None:
    around: dict[str, Any] = {"refused": {topic: 3}, "refused_at": {topic: service.now.unix - 10}}
    snapshot = service.look(**around)
    assert snapshot.state == "degraded"
    assert snapshot.reasons[0].startswith("Publishers were refused")
    assert snapshot.totals.refused == {topic: 3}
    service.seconds += 600
    assert service.look(**around).state == "well"


def test_frames_of_strangers_are_counted_and_no_trouble(service: Service) -> None:
    snapshot = service.look(refused={"protocol": 9}, refused_at={"protocol": service.now.unix})
    assert snapshot.state == "well"
    assert snapshot.totals.refused == {"protocol": 9}


def test_documents_that_are_late_are_told(service: Service) -> None:
    service.alice.note_lag(messages.Ping(3, 12, 3400, 30.0), service.now.unix)
    assert service.look().state == "well"
    service.alice.note_lag(messages.Ping(4, 12, 3400, 90.0), service.now.unix)
    snapshot = service.look()
    assert snapshot.state == "degraded"
    assert "Publisher alice waits with 12 documents" in snapshot.reasons[0]


# Workers and disks that keep the service from its work


def test_a_disk_that_takes_no_journals_is_a_failure_until_one_is_written(service: Service) -> None:
    service.send(service.alice, batch("run", 0, "start"))
    worker = service.start("run")
    service.say(worker, messages.Refused("run", 0, messages.LATER, "the journal's disk is full"))
    snapshot = service.look()
    assert snapshot.state == "failed"
    assert "the journal's disk is full" in snapshot.reasons[0]
    service.store(worker)
    assert service.look().state != "failed"


@pytest.mark.parametrize(
    ("disk_state", "state", "word"),
    [
        ("well", "well", ""),
        ("low", "degraded", "almost full"),
        ("full", "failed", "Make space"),
        (None, "degraded", "measured"),
    ],
)
def test_the_disk_of_the_journals_counts(service: Service, disk_state: Any, state: str, word: str) -> None:
    service.disk = DiskStatus("/journals", "journals", 2**20, 2**40, 0, disk_state)
    snapshot = service.look()
    assert snapshot.state == state
    assert word in snapshot.reasons[0]


def test_a_key_that_tiled_refuses_is_a_failure(service: Service) -> None:
    service.send(service.alice, whole("run"))
    worker = service.start("run")
    service.miss_tiled(worker, "401: no", needs_person=True)
    snapshot = service.look()
    assert snapshot.state == "failed"
    assert "Tiled refuses all requests" in snapshot.reasons[0]
    assert "401: no" in snapshot.reasons[0]


def test_no_worker_for_long_is_a_failure_until_there_is_one(service: Service) -> None:
    service.start_error = "too many open files"
    service.send(service.alice, batch("run", 0, "start"))
    service.pass_by(0.1)
    assert service.look().state == "degraded"
    for _ in range(20):
        service.pass_by(1.0)
    snapshot = service.look()
    assert snapshot.state == "failed"
    assert "too many open files" in snapshot.reasons[0]
    service.start_error = ""
    worker = service.start("run")
    service.reach_tiled(worker)
    assert service.look().state == "well"


def test_journals_that_are_still_read_make_no_calm_answer() -> None:
    service = Service()
    service.scheduler._survey_done = False
    snapshot = service.look()
    assert snapshot.state == "degraded"
    assert "may lack runs" in snapshot.reasons[0]


def test_acknowledged_documents_that_a_journal_no_longer_has_are_missed_until_they_come_again(service: Service) -> None:
    service.send(service.alice, whole("run"))
    worker = service.start("run")
    service.store(worker)
    service.reach_tiled(worker)
    length = service.facts("run").length
    service.end(worker)
    del service.journals["run"]
    worker = service.start("run")
    snapshot = service.look()
    assert snapshot.state == "degraded"
    (reason,) = snapshot.reasons
    assert reason.startswith(f"The journal of run run in {snapshot.journal_dir} lacks {length} documents that were ack")
    service.send(service.alice, whole("run"))
    service.store(worker)
    assert service.look().state == "well"


def test_a_status_page_that_is_not_served_needs_attention(service: Service) -> None:
    snapshot = service.look(page_problem="127.0.0.1:8080 cannot be listened at")
    assert snapshot.state == "degraded"
    assert "metrics are not served: 127.0.0.1:8080 cannot be listened at. It is tried again" in snapshot.reasons[0]


# Size


def test_the_snapshot_names_no_more_runs_than_it_may(service: Service) -> None:
    for number in range(MAX_LISTED_RUNS + 5):
        facts = service.journal(f"run {number}", length=1, order=UNIX + number).facts
        service.perform(service.scheduler.add_journal(facts, service.now))
    runs = service.look().runs
    assert (len(runs.open), runs.unlisted_open) == (MAX_LISTED_RUNS, 5)
    assert sum(runs.counts.values()) == MAX_LISTED_RUNS + 5


def test_fields_of_newer_versions_are_left_out(service: Service) -> None:
    text = json.loads(encode_snapshot(service.look()))
    text["news"] = text["tiled"]["news"] = 1
    assert decode_snapshot(json.dumps(text).encode()).tiled.address == "http://tiled:8000"


def test_buckets_of_latencies_are_those_of_the_protocol(service: Service) -> None:
    service.reports.add(Report("run", latencies=[1] * (len(LATENCY_BOUNDS_SECONDS) + 1), latency_sum=9.0))
    latency = service.look().tiled.latency
    assert [bound for bound, _ in latency.buckets] == list(LATENCY_BOUNDS_SECONDS)
    assert [count for _, count in latency.buckets] == list(range(1, len(LATENCY_BOUNDS_SECONDS) + 1))
    assert (latency.count, latency.sum) == (len(LATENCY_BOUNDS_SECONDS) + 1, 9.0)
