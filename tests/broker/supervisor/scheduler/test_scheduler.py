"""What the scheduler decides, without a process, a file, a socket or a clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ingest_model import UNIX, IngestModel, ModelWorker

from tiledbroker.protocol import messages
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor._publishers import Publisher
from tiledbroker.supervisor._service_view import describe_service
from tiledbroker.supervisor.scheduler._audit_schedule import PUT_OFF_SECONDS
from tiledbroker.supervisor.scheduler._effects import (
    FileJournal,
    KillOrphan,
    ReadForAudit,
    RecordEvent,
    SendToWorker,
    StartWorker,
)
from tiledbroker.supervisor.scheduler._runs import MAX_DEATHS, Purpose
from tiledbroker.supervisor.scheduler._scheduler import ORPHAN_GRACE_SECONDS, STOP_TIMEOUT_SECONDS, SURVEY_LEAD_SECONDS
from tiledbroker.supervisor.status._texts import format_time

CRCS = {"start": 1, "descriptor": 2, "event": 3, "stop": 4}


def batch(uid: str, first: int, *names: str, salt: int = 0) -> messages.Documents:
    """Documents of a run; `salt` makes them those of another run."""
    return messages.Documents(uid, first, list(names), [1] * len(names), [CRCS[name] + salt for name in names])


def whole(uid: str, *, salt: int = 0) -> messages.Documents:
    return batch(uid, 0, "start", "descriptor", "event", "stop", salt=salt)


def publisher(name: str = "publisher", client: str = "") -> Publisher:
    return Publisher(name.encode(), client, "127.0.0.1", name=name)


@pytest.fixture
def ingest() -> IngestModel:
    model = IngestModel(max_workers=4, max_resumed=2)
    model.scheduler.finish_survey()
    return model


@pytest.fixture
def alice() -> Publisher:
    return publisher("alice")


# From documents to written


def test_documents_of_new_run_start_worker_and_reach_it_when_it_is_ready(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    ingest.send(alice, batch("run", 1, "descriptor"))
    ingest.pass_by(0.0)
    worker = ingest.worker_of("run")
    ingest.fork(worker)
    assert not worker.inbox
    ingest.open_journal(worker)
    assert list(worker.inbox) == [batch("run", 0, "start"), batch("run", 1, "descriptor")]
    ingest.send(alice, batch("run", 2, "event"))
    assert worker.inbox[-1] == batch("run", 2, "event")


def test_publisher_is_told_what_is_durable_and_what_is_written(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, whole("run"))
    worker = ingest.start("run")
    ingest.store(worker)
    ingest.write(worker)
    ingest.end(worker)
    assert ingest.told(alice) == [messages.Durable("run", 4, True), messages.Written("run", "written", "")]
    assert ingest.journals["run"].is_filed
    assert not ingest.scheduler.runs


def test_outcome_is_read_from_the_journal_if_the_message_is_lost(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, whole("run"))
    worker = ingest.start("run")
    ingest.store(worker)
    journal = ingest.journals["run"]
    journal.facts = replace(journal.facts, state=State.WRITTEN)
    ingest.end(worker)
    assert ingest.told(alice, messages.Written) == [messages.Written("run", "written", "")]


def test_run_has_one_worker_at_a_time(ingest: IngestModel, alice: Publisher) -> None:
    for first in range(10):
        ingest.send(alice, batch("run", first, "start" if first == 0 else "event"))
        ingest.pass_by(1.0)
    assert len(ingest.workers) == 1


def test_run_is_told_to_all_its_publishers_but_not_to_gone_ones(ingest: IngestModel, alice: Publisher) -> None:
    bob, carol = publisher("bob"), publisher("carol")
    ingest.send(alice, batch("run", 0, "start"))
    worker = ingest.start("run")
    ingest.scheduler.add_publisher(bob, ["run", "unknown"])
    ingest.scheduler.add_publisher(carol, ["run"])
    ingest.scheduler.remove_publisher(carol)
    ingest.store(worker)
    assert ingest.told(alice) == ingest.told(bob) == [messages.Durable("run", 1, False)]
    assert ingest.told(carol) == []


# Refusals


@pytest.mark.parametrize("message", [batch("run", 3, "event"), messages.Abandoned("run", 0)])
def test_unknown_run_begins_with_its_start(ingest: IngestModel, alice: Publisher, message: messages.Documents) -> None:
    ingest.send(alice, message)
    assert ingest.told(alice) == [messages.Refused("run", 0, messages.GAP)]
    assert not ingest.scheduler.runs


def test_documents_of_another_run_with_the_same_uid_are_refused(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    bob = publisher("bob")
    ingest.send(bob, batch("run", 0, "start", salt=10))
    assert ingest.told(bob) == [messages.Refused("run", 0, messages.ANOTHER_RUN)]


def test_documents_that_an_ended_run_has_are_acknowledged_without_a_worker(
    ingest: IngestModel, alice: Publisher
) -> None:
    ingest.journal("run").append(whole("run"))
    ingest.send(alice, whole("run"))
    assert ingest.told(alice) == [messages.Durable("run", 4, True)]
    ingest.pass_by(1.0)
    assert not ingest.workers


def test_documents_that_an_ended_run_has_otherwise_are_refused(ingest: IngestModel, alice: Publisher) -> None:
    ingest.journal("run").append(whole("run"))
    ingest.send(alice, batch("run", 2, "event", "stop", salt=10))
    assert ingest.told(alice) == [messages.Refused("run", 0, messages.ANOTHER_RUN)]


def test_run_belongs_to_the_client_that_began_it(ingest: IngestModel) -> None:
    alice, mallory = publisher("alice", "beamline-1"), publisher("mallory", "beamline-2")
    ingest.send(alice, batch("run", 0, "start"))
    ingest.send(mallory, batch("run", 1, "event"))
    assert ingest.told(mallory) == [messages.Refused("run", 0, "a run of this uid belongs to another client")]
    ingest.scheduler.add_publisher(mallory, ["run"])
    ingest.store(ingest.start("run"))
    assert len(ingest.told(mallory)) == 1
    assert ingest.scheduler.describe_run("run", "beamline-2", None) == messages.RunState(0, ended=False, outcome="")
    assert ingest.scheduler.describe_run("run", "beamline-1", None).next == 1


@pytest.mark.parametrize(("passing", "reason"), [(True, messages.LATER), (False, "its journal is damaged")])
def test_unusable_journal_refuses_documents(ingest: IngestModel, alice: Publisher, passing: bool, reason: str) -> None:
    ingest.journal("run", state=State.FAILED, reason="its journal is damaged", unusable=True, unavailable=passing)
    ingest.send(alice, batch("run", 0, "start"))
    (refusal,) = ingest.told(alice)
    assert isinstance(refusal, messages.Refused)
    assert refusal.reason == reason
    assert "damaged" in refusal.reason + refusal.detail


def test_client_may_have_only_so_many_runs_open() -> None:
    ingest, alice, bob = IngestModel(max_open_runs=2), publisher("alice", "a"), publisher("bob", "b")
    for uid in ("run-1", "run-2", "run-3"):
        ingest.send(alice, batch(uid, 0, "start"))
    (refusal,) = ingest.told(alice)
    assert isinstance(refusal, messages.Refused)
    assert (refusal.run, refusal.reason) == ("run-3", messages.LATER)
    assert refusal.detail == "2 runs of this client are open, which is the limit"
    ingest.send(bob, batch("run-4", 0, "start"))
    assert ingest.told(bob) == []
    ingest.scheduler.remove_publisher(alice)
    alice = publisher("alice", "a")
    ingest.send(alice, batch("run-3", 0, "start"))
    assert ingest.told(alice) == []


def test_refusal_of_a_worker_that_has_not_opened_the_journal_has_the_known_index(
    ingest: IngestModel, alice: Publisher
) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    ingest.pass_by(0.0)
    worker = ingest.worker_of("run")
    ingest.say(worker, messages.Refused("run", 77, messages.LATER, "the journal's disk is full"))
    assert ingest.told(alice) == [messages.Refused("run", 0, messages.LATER, "the journal's disk is full")]


# Room


def test_no_more_workers_than_allowed(ingest: IngestModel, alice: Publisher) -> None:
    for number in range(7):
        ingest.send(alice, batch(f"run-{number}", 0, "start"))
    ingest.pass_by(0.0)
    assert [worker.uid for worker in ingest.workers.values()] == ["run-0", "run-1", "run-2", "run-3"]
    ingest.end(ingest.start("run-2"), exit_code=1)
    ingest.pass_by(0.01)
    assert "run-4" in [worker.uid for worker in ingest.workers.values()]


def finish_sent(ingest: IngestModel) -> list[str]:
    return [
        ingest.workers[effect.worker].uid
        for effect in ingest.effects
        if isinstance(effect, SendToWorker) and effect.message == messages.Finish()
    ]


def test_idle_run_makes_room_and_goes_on_when_its_documents_come(ingest: IngestModel, alice: Publisher) -> None:
    workers = []
    for number in range(4):
        ingest.send(alice, batch(f"run-{number}", 0, "start"))
        workers.append(ingest.start(f"run-{number}"))
        ingest.store(workers[-1])
        ingest.write(workers[-1])
        ingest.pass_by(1.0)
    ingest.send(alice, batch("next", 0, "start"))
    ingest.pass_by(1.0)
    assert finish_sent(ingest) == []
    ingest.pass_by(9.0)
    assert finish_sent(ingest) == ["run-0"]
    ingest.send(alice, batch("run-0", 1, "event"))
    ingest.end(workers[0])
    ingest.pass_by(0.0)
    assert [worker.uid for worker in ingest.workers.values()] == ["run-1", "run-2", "run-3", "next"]
    ingest.end(ingest.worker_of("run-3"), exit_code=0)
    assert ingest.start("run-0").inbox[-1] == batch("run-0", 1, "event")


def test_only_as_many_workers_end_as_there_are_runs_waiting(ingest: IngestModel, alice: Publisher) -> None:
    for number in range(4):
        ingest.send(alice, batch(f"run-{number}", 0, "start"))
        worker = ingest.start(f"run-{number}")
        ingest.store(worker)
        ingest.write(worker)
    ingest.pass_by(60.0)
    ingest.send(alice, batch("next", 0, "start"))
    for _ in range(5):
        ingest.pass_by(0.5)
    assert len(finish_sent(ingest)) == 1


# Deaths


def test_dead_worker_is_replaced_after_growing_delays(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    delays = []
    for _ in range(5):
        worker = ingest.start("run")
        ingest.end(worker, exit_code=-9)
        died = ingest.seconds
        while not ingest.workers:
            ingest.pass_by(0.01)
        delays.append(round(ingest.seconds - died, 2))
    assert delays == [0.05, 0.1, 0.2, 0.4, 0.8]


def test_documents_that_died_with_a_worker_are_asked_for_again(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    worker = ingest.start("run")
    ingest.store(worker)
    ingest.send(alice, batch("run", 1, "event", "event"))
    ingest.end(worker, exit_code=-9)
    assert ingest.told(alice)[-1] == messages.Refused("run", 1, messages.GAP)


def test_worker_that_dies_over_and_over_quarantines_its_run_alone(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("deadly", 0, "start"))
    ingest.send(alice, batch("fine", 0, "start"))
    ingest.start("fine")
    for _ in range(MAX_DEATHS):
        ingest.end(ingest.start("deadly"), exit_code=1)
    reason = f"its worker died {MAX_DEATHS} times in a row without progress"
    assert ingest.told(alice, messages.Written) == [messages.Written("deadly", "failed", reason)]
    assert ingest.journals["deadly"].facts.state is State.FAILED
    assert ingest.journals["deadly"].events == ["quarantined"]
    ingest.pass_by(1000.0)
    assert [worker.uid for worker in ingest.workers.values()] == ["fine"]


def test_quarantine_is_one_line_of_the_log_with_its_reason_and_commands(
    ingest: IngestModel, alice: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ingest.send(alice, whole("deadly"))
    for _ in range(MAX_DEATHS):
        ingest.end(ingest.start("deadly"), exit_code=1)
    failed_open_run(ingest, alice, "spoiled")
    said = [text for record in caplog.records if "quarantine" in (text := record.getMessage())]
    reasons = {"deadly": f"its worker died {MAX_DEATHS} times in a row without progress", "spoiled": "a 422"}
    for line, (uid, reason) in zip(said, reasons.items(), strict=True):
        assert line.startswith(f"Run {uid} is in quarantine: {reason}. Its documents are safe")
        assert f"See `tiledwriter-journal show {uid} " in line
    assert not [record for record in caplog.records if record.getMessage().endswith("is failed.")]


def test_the_last_death_does_not_promise_another_worker(
    ingest: IngestModel, alice: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    ingest.send(alice, whole("deadly"))
    for _ in range(MAX_DEATHS):
        ingest.end(ingest.start("deadly"), exit_code=1)
    said = [record.getMessage() for record in caplog.records if "exit code" in record.getMessage()]
    assert said[0] == "The worker of run deadly ended with exit code 1; starting another in 0.05 s or later."
    assert ["starting another in" in line for line in said] == [True] * (MAX_DEATHS - 1) + [False]
    assert said[-1].endswith("ended with exit code 1; no other is started.")


def test_quarantined_run_is_still_journaled(ingest: IngestModel, alice: Publisher) -> None:
    ingest.journal("run", state=State.FAILED, reason="a 422", length=1, start_crc=CRCS["start"])
    ingest.send(alice, batch("run", 1, "event"))
    worker = ingest.start("run")
    ingest.store(worker)
    assert ingest.told(alice) == [messages.Durable("run", 2, False)]


def test_worker_that_is_never_forked_counts_no_death(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    for _ in range(3 * MAX_DEATHS):
        ingest.pass_by(1.0)
        ingest.end(ingest.worker_of("run"), exit_code=None)
    assert ingest.scheduler.runs["run"].deaths == 0


def test_publisher_is_told_why_no_worker_can_be_started(ingest: IngestModel, alice: Publisher) -> None:
    ingest.start_error = "too many open files"
    ingest.send(alice, batch("run", 0, "start"))
    ingest.pass_by(0.0)
    assert ingest.told(alice) == [messages.Refused("run", 0, messages.LATER, "too many open files")]
    ingest.start_error = ""
    ingest.pass_by(0.9)
    assert not ingest.workers
    ingest.pass_by(0.1)
    assert ingest.worker_of("run")


def test_message_of_a_replaced_worker_is_ignored(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    worker = ingest.start("run")
    ingest.end(worker, exit_code=-9)
    ingest.say(worker, messages.Durable("run", 99, True))
    assert ingest.scheduler.runs["run"].next == 0


def test_run_is_begun_anew_from_its_journal_after_an_error(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    worker = ingest.start("run")
    ingest.store(worker)
    del ingest.workers[worker.number]
    ingest.perform(ingest.scheduler.reload_run(ingest.scheduler.runs["run"], ingest.facts("run"), ingest.now))
    assert ingest.told(alice)[-1].reason == messages.LATER  # type: ignore[union-attr]
    assert ingest.start("run")


def failed_open_run(ingest: IngestModel, alice: Publisher, uid: str) -> ModelWorker:
    """A run in quarantine whose worker goes on journaling."""
    ingest.send(alice, batch(uid, 0, "start"))
    worker = ingest.start(uid)
    ingest.store(worker)
    ingest.journals[uid].facts = replace(ingest.journals[uid].facts, state=State.FAILED, reason="a 422")
    ingest.say(worker, messages.Written(uid, "failed", "a 422"))
    return worker


def test_quarantined_runs_make_room_for_others(ingest: IngestModel, alice: Publisher) -> None:
    for number in range(4):
        failed_open_run(ingest, alice, f"failed-{number}")
    ingest.send(alice, batch("next", 0, "start"))
    ingest.pass_by(10.0)
    assert finish_sent(ingest) == ["failed-0"]
    ingest.end(ingest.worker_of("failed-0"))
    assert ingest.start("next")


def test_quarantined_run_that_was_resumed_holds_up_no_other(ingest: IngestModel, alice: Publisher) -> None:
    for uid in ("failed-0", "failed-1", "fine"):
        ingest.journal(uid, length=1, start_crc=CRCS["start"])
        ingest.perform(ingest.scheduler.add_journal(ingest.facts(uid), ingest.now))
    for uid in ("failed-0", "failed-1"):
        ingest.say(ingest.start(uid), messages.Written(uid, "failed", "a 422"))
    ingest.pass_by(0.0)
    assert ingest.worker_of("fine")


def test_kept_messages_that_a_later_one_contains_are_dropped(ingest: IngestModel, alice: Publisher) -> None:
    for count in range(1, 6):
        ingest.send(alice, batch("run", 0, "start", *["event"] * count))
    assert ingest.scheduler.runs["run"].queued_messages == [batch("run", 0, "start", *["event"] * 5)]


def test_error_while_the_end_of_a_worker_is_handled_is_survived(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    worker = ingest.start("run")
    ingest.store(worker)
    run = ingest.scheduler.runs["run"]
    ingest.end(worker, exit_code=1)  # the worker is forgotten already
    ingest.perform(ingest.scheduler.reload_run(run, ingest.facts("run"), ingest.now))
    ingest.pass_by(20.0)
    assert ingest.worker_of("run")


# Outages


def parked(ingest: IngestModel, alice: Publisher, *uids: str) -> None:
    """Runs whose workers ended because Tiled is away."""
    for uid in uids:
        ingest.send(alice, whole(uid))
        worker = ingest.start(uid)
        ingest.store(worker)
        ingest.end(worker)
        assert ingest.scheduler.runs[uid].state is State.PARKED


def test_one_run_is_tried_at_a_time_while_tiled_is_away(ingest: IngestModel, alice: Publisher) -> None:
    parked(ingest, alice, "run-0", "run-1", "run-2")
    ingest.pass_by(1.0)
    assert len(ingest.workers) == 1
    tried = []
    for _ in range(6):
        (worker,) = ingest.workers.values()
        tried.append(worker.uid)
        ingest.fork(worker)
        ingest.open_journal(worker)
        ingest.end(worker)
        while not ingest.workers:
            ingest.pass_by(0.5)
    assert sorted(tried) == ["run-0", "run-0", "run-1", "run-1", "run-2", "run-2"]


def test_others_follow_a_few_at_a_time_once_tiled_is_back(ingest: IngestModel, alice: Publisher) -> None:
    parked(ingest, alice, *(f"run-{number}" for number in range(4)))
    ingest.pass_by(1.0)
    (worker,) = ingest.workers.values()
    ingest.fork(worker)
    ingest.open_journal(worker)
    ingest.say(worker, messages.Reached(worker.uid))
    ingest.pass_by(0.0)
    assert [each.uid for each in ingest.workers.values()] == ["run-0", "run-1"]
    ingest.write(worker)
    ingest.end(worker)
    ingest.pass_by(0.0)
    assert [each.uid for each in ingest.workers.values()] == ["run-1", "run-2"]


def test_new_documents_bring_a_parked_run_back_at_once(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    worker = ingest.start("run")
    ingest.store(worker)
    ingest.end(worker)
    ingest.send(alice, batch("run", 1, "event"))
    ingest.pass_by(0.0)
    assert ingest.worker_of("run")
    assert not ingest.scheduler.runs_to_resume


# What an earlier supervisor left


def add_journals(ingest: IngestModel, *uids: str) -> None:
    for number, uid in enumerate(uids):
        ingest.journal(uid, length=4, ended=True, start_crc=1, order=float(len(uids) - number))
        ingest.perform(ingest.scheduler.add_journal(ingest.facts(uid), ingest.now))


def test_unfinished_runs_are_resumed_in_their_order_when_the_survey_is_done() -> None:
    ingest = IngestModel(max_resumed=2)
    add_journals(ingest, "latest", "second", "first")
    ingest.pass_by(0.0)
    assert not ingest.workers
    ingest.scheduler.finish_survey()
    ingest.pass_by(0.0)
    assert [worker.uid for worker in ingest.workers.values()] == ["first", "second"]


def test_long_survey_does_not_delay_the_first_runs_for_ever() -> None:
    ingest = IngestModel()
    add_journals(ingest, "run")
    ingest.pass_by(SURVEY_LEAD_SECONDS)
    assert ingest.worker_of("run")


def test_orphan_gets_time_to_end_and_is_killed_after_it() -> None:
    ingest = IngestModel()
    ingest.scheduler.finish_survey()
    orphan = (42, 1000.0)
    ingest.orphans.add(orphan)
    ingest.journal("run", length=4, ended=True, worker=orphan)
    ingest.perform(ingest.scheduler.add_journal(ingest.facts("run"), ingest.now))
    while ingest.seconds < 100.0 + ORPHAN_GRACE_SECONDS - 0.1:
        ingest.pass_by(0.1)
        assert not ingest.workers
    for _ in range(5):
        ingest.pass_by(0.1)
    assert ingest.effects.count(KillOrphan(orphan)) == 1
    assert ingest.worker_of("run")


def test_written_journal_is_filed_and_empty_one_is_left(ingest: IngestModel) -> None:
    ingest.journal("written", state=State.WRITTEN, length=4, ended=True)
    ingest.journal("empty")
    ingest.journal("failed", state=State.FAILED, length=4, ended=True)
    for uid in ("written", "empty", "failed"):
        ingest.perform(ingest.scheduler.add_journal(ingest.facts(uid), ingest.now))
    ingest.pass_by(10.0)
    assert [uid for uid, journal in ingest.journals.items() if journal.is_filed] == ["written"]
    assert not ingest.workers


def test_journal_that_cannot_be_read_for_a_moment_is_resumed_later(ingest: IngestModel) -> None:
    journal = ingest.journal("run", length=4, ended=True)
    facts = replace(journal.facts, state=State.FAILED, reason="too many open files", unusable=True, unavailable=True)
    ingest.perform(ingest.scheduler.add_journal(facts, ingest.now))
    ingest.pass_by(PUT_OFF_SECONDS - 1.0)
    assert not ingest.workers
    ingest.pass_by(1.0)
    ingest.pass_by(0.5)
    assert ingest.worker_of("run")


def test_draining_names_a_journal_that_cannot_be_read_and_does_not_wait_for_it() -> None:
    ingest = IngestModel(drain=True)
    facts = replace(ingest.journal("run").facts, state=State.FAILED, reason="not ours", unusable=True, unavailable=True)
    ingest.perform(ingest.scheduler.add_journal(facts, ingest.now))
    ingest.scheduler.finish_survey()
    assert ingest.scheduler.is_done(ingest.now)
    assert [run.uid for run in ingest.scheduler.unwritten_runs()] == ["run"]


def test_journal_that_stays_unreadable_is_read_less_and_less_often(ingest: IngestModel) -> None:
    facts = replace(ingest.journal("run").facts, state=State.FAILED, unusable=True, unavailable=True)
    ingest.journals["run"].facts = facts
    ingest.perform(ingest.scheduler.add_journal(facts, ingest.now))
    for _ in range(3600):
        ingest.pass_by(1.0)
    assert 4 <= ingest.effects.count(ReadForAudit("run")) <= 8


# Audits


def to_audit(ingest: IngestModel, uid: str, after: float) -> None:
    facts = {"state": State.WRITTEN, "length": 4, "ended": True, "audit_at": UNIX + ingest.seconds + after}
    ingest.journal(uid, **facts)
    ingest.perform(ingest.scheduler.add_journal(ingest.facts(uid), ingest.now))


def test_written_run_is_audited_when_its_time_has_come_and_filed_then(ingest: IngestModel) -> None:
    to_audit(ingest, "run", after=60.0)
    ingest.pass_by(59.0)
    assert not ingest.workers
    worker = ingest.start("run")
    assert ingest.scheduler.runs["run"].worker.purpose is Purpose.AUDIT  # type: ignore[union-attr]
    ingest.write(worker)
    ingest.end(worker)
    assert ingest.journals["run"].is_filed
    assert not ingest.scheduler.runs


def test_audits_leave_half_of_the_workers_to_runs(ingest: IngestModel) -> None:
    for number in range(10):
        to_audit(ingest, f"run-{number}", after=0.0)
    for _ in range(10):
        ingest.pass_by(1.0)
    assert len(ingest.workers) == 2


def test_audit_waits_until_there_is_little_else_to_do(alice: Publisher) -> None:
    ingest = IngestModel(max_workers=2)
    ingest.scheduler.finish_survey()
    ingest.send(alice, whole("busy"))
    busy = ingest.start("busy")
    to_audit(ingest, "run", after=0.0)
    for _ in range(20):
        ingest.pass_by(1.0)
    assert [worker.uid for worker in ingest.workers.values()] == ["busy"]
    ingest.store(busy)
    ingest.write(busy)
    ingest.end(busy)
    assert ingest.start("run")


def test_audit_that_kills_its_workers_is_given_up(ingest: IngestModel) -> None:
    to_audit(ingest, "run", after=0.0)
    deaths = 0
    while not ingest.journals["run"].events:
        ingest.end(ingest.start("run"), exit_code=1)
        deaths += 1
    assert deaths == MAX_DEATHS
    assert ingest.journals["run"].events == ["audit given up"]
    ingest.pass_by(10_000.0)
    assert not ingest.workers
    assert ingest.journals["run"].facts.state is State.WRITTEN


def test_audit_is_put_off_while_tiled_is_away(ingest: IngestModel) -> None:
    to_audit(ingest, "run", after=0.0)
    ingest.end(ingest.start("run"))
    ingest.pass_by(PUT_OFF_SECONDS - 1.0)
    assert not ingest.workers
    ingest.pass_by(1.0)
    assert ingest.worker_of("run")


def test_documents_for_a_run_that_is_audited_go_to_its_worker(ingest: IngestModel, alice: Publisher) -> None:
    to_audit(ingest, "run", after=0.0)
    worker = ingest.start("run")
    ingest.send(alice, batch("run", 4, "event"))
    assert list(worker.inbox) == [batch("run", 4, "event")]


def test_documents_that_wait_for_an_audit_s_worker_are_not_lost_with_it(ingest: IngestModel, alice: Publisher) -> None:
    to_audit(ingest, "run", after=0.0)
    ingest.pass_by(0.5)
    ingest.send(alice, batch("run", 4, "event"))
    ingest.end(ingest.worker_of("run"), exit_code=None)  # it was never forked
    ingest.pass_by(1.0)
    assert list(ingest.start("run").inbox) == [batch("run", 4, "event")]


def test_late_stop_document_that_an_audit_takes_completes_the_run(ingest: IngestModel, alice: Publisher) -> None:
    facts = {"state": State.INTERRUPTED, "length": 3, "ended": True, "audit_at": UNIX + ingest.seconds}
    ingest.journal("run", **facts)
    ingest.perform(ingest.scheduler.add_journal(ingest.facts("run"), ingest.now))
    worker = ingest.start("run")
    ingest.send(alice, batch("run", 3, "stop"))
    ingest.store(worker)
    # Whoever asks now is not told that the run is complete.
    assert ingest.scheduler.describe_run("run", "", None).outcome == ""
    assert [run.uid for run in ingest.scheduler.unwritten_runs()] == ["run"]
    ingest.write(worker)
    assert ingest.told(alice)[-1] == messages.Written("run", "written", "")


@pytest.mark.parametrize("exit_code", [0, -9])
def test_late_stop_document_that_a_worker_stores_as_it_ends_is_written_by_the_next(
    ingest: IngestModel, alice: Publisher, exit_code: int
) -> None:
    facts = {"state": State.INTERRUPTED, "length": 3, "ended": True, "audit_at": UNIX + ingest.seconds}
    ingest.journal("run", **facts)
    ingest.perform(ingest.scheduler.add_journal(ingest.facts("run"), ingest.now))
    worker = ingest.start("run")
    ingest.send(alice, batch("run", 3, "stop"))
    ingest.store(worker)
    ingest.end(worker, exit_code)
    ingest.write(ingest.start("run"))
    assert ingest.told(alice)[-1] == messages.Written("run", "written", "")


def test_unreadable_journal_is_no_outage(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, whole("run"))
    worker = ingest.start("run")
    ingest.store(worker)
    del ingest.workers[worker.number]
    unreadable = replace(ingest.facts("run"), state=State.FAILED, unusable=True, unavailable=True)
    ingest.perform(ingest.scheduler.handle_worker_end(worker.number, 0, unreadable, ingest.now))
    assert ingest.scheduler.runs["run"].outages == 0
    assert ingest.scheduler.runs["run"].state is State.PARKED


def test_pruned_journal_is_not_audited(ingest: IngestModel) -> None:
    to_audit(ingest, "run", after=1.0)
    del ingest.journals["run"]
    ingest.pass_by(2.0)
    assert not ingest.workers


# Retries


def test_retry_resumes_a_quarantined_run(ingest: IngestModel) -> None:
    journal = ingest.journal("run", state=State.FAILED, reason="a 422", length=4, ended=True)
    ingest.perform(ingest.scheduler.request_retry(ingest.facts("run"), ingest.now))
    assert journal.facts.state is State.STARTING
    assert ingest.withdrawn == [Path("run.sqlite")]
    worker = ingest.start("run")
    ingest.write(worker)
    assert journal.facts.state is State.WRITTEN


def test_retry_ends_the_worker_that_only_journals_first(ingest: IngestModel, alice: Publisher) -> None:
    ingest.journal("run", state=State.FAILED, reason="a 422", length=1, start_crc=CRCS["start"])
    ingest.send(alice, batch("run", 1, "event"))
    worker = ingest.start("run")
    ingest.store(worker)
    ingest.perform(ingest.scheduler.request_retry(ingest.facts("run"), ingest.now))
    assert worker.inbox.pop() == messages.Finish()
    assert not ingest.withdrawn
    ingest.end(worker)
    ingest.perform(ingest.scheduler.request_retry(ingest.facts("run"), ingest.now))
    assert ingest.withdrawn
    assert ingest.start("run")


def test_retry_of_a_run_that_has_not_failed_is_withdrawn(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    worker = ingest.start("run")
    ingest.store(worker)
    ingest.perform(ingest.scheduler.request_retry(ingest.facts("run"), ingest.now))
    assert ingest.withdrawn == [Path("run.sqlite")]
    assert not worker.inbox


def test_retry_is_not_starved_by_documents(ingest: IngestModel, alice: Publisher) -> None:
    worker = failed_open_run(ingest, alice, "run")
    ingest.perform(ingest.scheduler.request_retry(ingest.facts("run"), ingest.now))
    ingest.send(alice, batch("run", 1, "event"))
    ingest.end(worker)
    assert ingest.withdrawn == [Path("run.sqlite")]
    assert ingest.journals["run"].facts.state is State.STARTING
    assert list(ingest.start("run").inbox) == [batch("run", 1, "event")]


def test_retry_that_is_not_possible_loses_no_documents(ingest: IngestModel, alice: Publisher) -> None:
    worker = failed_open_run(ingest, alice, "run")
    ingest.send(alice, batch("run", 1, "event"))
    ingest.store(worker)
    run = ingest.scheduler.runs["run"]
    ingest.end(worker)
    run.queue_message(batch("run", 2, "event"))
    ingest.scheduler.runs["run"] = run
    ingest.perform(ingest.scheduler.refuse_retry(run.journal))
    assert ingest.withdrawn == [run.journal]
    assert list(ingest.start("run").inbox) == [batch("run", 2, "event")]


# The end


def test_stop_tells_workers_until_they_end(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    ingest.send(alice, batch("other", 0, "start"))
    worker = ingest.start("run")
    ingest.store(worker)
    ingest.scheduler.stop(ingest.now)
    for _ in range(3):
        ingest.pass_by(0.5)
    assert list(worker.inbox) == [messages.Finish()] * 3
    assert not ingest.scheduler.is_done(ingest.now)
    ingest.end(worker)
    assert ingest.scheduler.is_done(ingest.now)
    ingest.pass_by(100.0)
    assert [each.uid for each in ingest.workers.values()] == ["other"]


def test_stop_waits_only_so_long_and_a_second_one_not_at_all(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start"))
    ingest.start("run")
    ingest.scheduler.stop(ingest.now)
    ingest.pass_by(STOP_TIMEOUT_SECONDS - 0.1)
    assert not ingest.scheduler.is_done(ingest.now)
    ingest.scheduler.stop(ingest.now)
    assert ingest.scheduler.is_done(ingest.now)


def test_journal_of_run_written_while_stopping_is_filed(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, whole("run"))
    worker = ingest.start("run")
    ingest.store(worker)
    ingest.write(worker)
    ingest.scheduler.stop(ingest.now)
    ingest.end(worker)
    assert [effect.journal.stem for effect in ingest.effects if isinstance(effect, FileJournal)] == ["run"]


def test_draining_ends_when_nothing_is_left_and_names_what_is_not_written() -> None:
    ingest = IngestModel(drain=True)
    add_journals(ingest, "good", "bad")
    ingest.scheduler.finish_survey()
    worker = ingest.start("good")
    ingest.write(worker)
    ingest.end(worker)
    assert not ingest.scheduler.is_done(ingest.now)
    for _ in range(MAX_DEATHS):
        ingest.end(ingest.start("bad"), exit_code=1)
    assert ingest.scheduler.is_done(ingest.now)
    assert [run.uid for run in ingest.scheduler.unwritten_runs()] == ["bad"]


def test_next_time_is_that_of_the_next_start(ingest: IngestModel, alice: Publisher) -> None:
    assert ingest.scheduler.find_next_time(ingest.now) == float("inf")
    ingest.send(alice, batch("run", 0, "start"))
    assert ingest.scheduler.find_next_time(ingest.now) <= ingest.seconds
    ingest.end(ingest.start("run"), exit_code=1)
    assert ingest.scheduler.find_next_time(ingest.now) == pytest.approx(ingest.seconds + 0.05)


# Any schedule of faults


class Schedule:
    """A random schedule of documents, outages, deaths and pauses, and then quiet in which everything must be written.

    Each publisher does what the shipper does: it sends again from where it is told.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.ingest = IngestModel(max_workers=self.random.randint(1, 4), max_resumed=self.random.randint(1, 3))
        self.ingest.scheduler.finish_survey()
        self.away = False
        self.runs = {f"run-{number}": ["start", *["event"] * self.random.randint(1, 6), "stop"] for number in range(5)}
        self.publishers = {uid: publisher(uid) for uid in self.runs}
        self.sent = dict.fromkeys(self.runs, 0)
        self.steps: list[Callable[[], None]] = [
            self.send_some,
            self.send_some,
            self.pass_time,
            self.pass_time,
            self.let_worker_act,
            self.let_worker_act,
            self.let_worker_act,
            self.kill_worker,
            self.change_tiled,
        ]

    def run(self) -> None:
        for _ in range(self.random.randint(20, 120)):
            self.random.choice(self.steps)()
        self.away = False
        for _ in range(2000):
            if self.is_over():
                return
            self.hear_answers()
            self.send_some(every=True)
            self.ingest.pass_by(0.5)
            for worker in list(self.ingest.workers.values()):
                self.act(worker, slow=False)
        raise AssertionError({uid: journal.facts for uid, journal in self.ingest.journals.items()})

    def is_over(self) -> bool:
        journals = self.ingest.journals
        return len(journals) == len(self.runs) and all(journal.is_filed for journal in journals.values())

    def hear_answers(self) -> None:
        for uid, each in self.publishers.items():
            for answer in self.ingest.answers.pop(each, []):
                if isinstance(answer, messages.Refused):
                    assert answer.reason in (messages.GAP, messages.LATER)
                    self.sent[uid] = min(self.sent[uid], answer.index)

    def send_some(self, *, every: bool = False) -> None:
        self.hear_answers()
        for uid in list(self.runs) if every else [self.random.choice(list(self.runs))]:
            first, names = self.sent[uid], self.runs[uid]
            count = len(names) if every else self.random.randint(1, 3)
            if first < len(names):
                message = batch(uid, first, *names[first : first + count])
                self.ingest.send(self.publishers[uid], message)
                self.sent[uid] = message.next

    def pass_time(self) -> None:
        self.ingest.pass_by(self.random.choice([0.0, 0.1, 1.0, 15.0]))

    def let_worker_act(self) -> None:
        if self.ingest.workers:
            self.act(self.random.choice(list(self.ingest.workers.values())), slow=True)

    def act(self, worker: ModelWorker, *, slow: bool) -> None:
        if not worker.forked:
            self.ingest.fork(worker)
            return
        run = self.ingest.scheduler.runs[worker.uid]
        if run.worker is not None and not run.worker.ready:
            self.ingest.open_journal(worker)
            return
        told_to_finish = messages.Finish() in worker.inbox
        self.ingest.store(worker)
        if not self.away:
            self.ingest.write(worker, self.random.randint(0, 3) if slow else None)
        is_written = self.ingest.journal(worker.uid).facts.state is State.WRITTEN
        if told_to_finish or is_written or (self.away and self.ingest.journal(worker.uid).facts.ended):
            self.ingest.end(worker)

    def kill_worker(self) -> None:
        if self.ingest.workers:
            worker = self.random.choice(list(self.ingest.workers.values()))
            if worker.forked or self.random.random() < 0.5:
                self.ingest.end(worker, -9)

    def change_tiled(self) -> None:
        self.away = not self.away


@pytest.mark.parametrize("seeds", range(10))
def test_every_run_is_whole_and_written_after_any_schedule_of_faults(seeds: int) -> None:
    for seed in range(30 * seeds, 30 * (seeds + 1)):
        schedule = Schedule(seed)
        schedule.run()
        for uid, names in schedule.runs.items():
            journal = schedule.ingest.journals[uid]
            assert journal.crcs == [CRCS[name] for name in names], (seed, uid)
            assert journal.facts.state is State.WRITTEN, (seed, uid)
        starts = [effect for effect in schedule.ingest.effects if isinstance(effect, StartWorker)]
        assert len({effect.worker for effect in starts}) == len(starts)
        filed = [effect.journal for effect in schedule.ingest.effects if isinstance(effect, FileJournal)]
        assert {path.stem for path in filed} == set(schedule.runs)
        assert not [effect for effect in schedule.ingest.effects if isinstance(effect, RecordEvent)], seed


# Outages


def test_outage_of_open_runs_is_known_and_survives_their_parking(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, whole("run"))
    worker = ingest.start("run")
    ingest.store(worker)
    since = ingest.now.unix - 50.0
    ingest.say(worker, messages.Unreachable("run", since, "ConnectError: refused"))
    assert ingest.scheduler.outage.since == since
    for _ in range(5):
        ingest.end(worker)
        worker = ingest.start("run")
    assert ingest.scheduler.outage.since == since
    assert ingest.scheduler.measure_backlog() == (1, 4)
    assert describe_service(ingest.scheduler) == (
        f"Tiled has refused requests since {format_time(since)}: ConnectError: refused; runs: 1 closing"
    )
    ingest.say(worker, messages.Reached("run"))
    assert ingest.scheduler.outage.since is None


def test_progress_through_journal_ends_no_outage(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch("run", 0, "start", "descriptor"))
    worker = ingest.start("run")
    ingest.store(worker)
    ingest.say(worker, messages.Unreachable("run", ingest.now.unix, "503"))
    ingest.say(worker, messages.Progress("run", 1))
    assert ingest.scheduler.outage.since is not None


def test_parked_run_is_tried_quietly(ingest: IngestModel, alice: Publisher, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="tiledbroker.supervisor")
    ingest.send(alice, whole("run"))
    worker = ingest.start("run")
    ingest.store(worker)
    ingest.end(worker)
    assert caplog.text.count("Run run is parked") == 1
    caplog.clear()
    for _ in range(5):
        ingest.end(ingest.start("run"))
    assert [record.getMessage() for record in caplog.records] == []


def test_service_without_runs_says_so(ingest: IngestModel) -> None:
    assert describe_service(ingest.scheduler) == "runs: none is open"
