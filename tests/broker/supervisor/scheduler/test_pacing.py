"""How long documents wait for company: alone not at all, and longer the more runs there are and the busier the host."""

from __future__ import annotations

import pytest
from ingest_model import IngestModel

from tiledbroker.protocol import messages
from tiledbroker.protocol.messages import Durable
from tiledbroker.supervisor._publishers import Publisher
from tiledbroker.supervisor.scheduler._pacing import MAX_PAUSE_SECONDS, Pacing


def pacing_of(runs: int, commit_seconds: float) -> float:
    """Return the pause after many deliveries that took so long each."""
    pacing = Pacing(lambda _now: runs)
    now = 0.0
    for number in range(1000):
        pacing.note_delivery(number, now)
        now += commit_seconds
        pacing.note_acknowledgement(number, now)
    return pacing.find_pause(now)


def test_a_run_that_is_alone_never_waits() -> None:
    assert pacing_of(1, 0.05) == 0.0
    assert pacing_of(0, 0.05) == 0.0


def test_the_pause_grows_with_the_runs_and_with_the_cost_of_a_delivery_up_to_a_limit() -> None:
    assert 0 < pacing_of(2, 0.001) < pacing_of(20, 0.001) < pacing_of(20, 0.002) < MAX_PAUSE_SECONDS
    assert pacing_of(50, 0.1) == MAX_PAUSE_SECONDS


def test_a_delivery_is_measured_from_its_first_message_and_a_dead_worker_is_not() -> None:
    pacing = Pacing(lambda _now: 2)
    pacing.note_delivery(1, 0.0)
    pacing.note_delivery(1, 0.09)
    pacing.note_acknowledgement(1, 0.1)
    once = pacing.find_pause(10.0)
    assert once > 0
    pacing.note_delivery(2, 20.0)
    pacing.forget(2)
    pacing.note_acknowledgement(2, 30.0)
    assert pacing.find_pause(40.0) == once


@pytest.mark.parametrize("runs", [1, 30])
def test_publishers_are_told_with_each_acknowledgement(runs: int) -> None:
    model = IngestModel()
    model.scheduler.finish_survey()
    publisher = Publisher(b"alice", "", "127.0.0.1", name="alice", connected_at=0.0)
    uids = [f"run-{number}" for number in range(runs)]
    for uid in uids:
        model.send(publisher, messages.documents(uid, 0, [("start", 1, b"...")]))
        model.start(uid)
    for uid in uids:
        model.send(publisher, messages.documents(uid, 1, [("event", 1, b"...")]))
    model.seconds += 0.02
    for uid in uids:
        model.say(model.worker_of(uid), Durable(uid, 2, ended=False))
    pauses = [message.pause for message in model.told(publisher, Durable) if isinstance(message, Durable)]
    assert (max(pauses) > 0) == (runs > 1)
    # A second later nothing arrives any more.
    model.seconds += 2.0
    model.say(model.worker_of(uids[0]), Durable(uids[0], 3, ended=False))
    assert model.told(publisher, Durable)[-1].pause == 0.0
