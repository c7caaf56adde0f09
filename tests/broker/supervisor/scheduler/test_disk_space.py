"""Free space on the journals' disk: when documents are refused, and what is said about it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from ingest_model import IngestModel

from tiledbroker._filesystem import measure_space
from tiledbroker.protocol import messages
from tiledbroker.supervisor._publishers import Publisher
from tiledbroker.supervisor.scheduler._disk_space import (
    DEFAULT_MIN_FREE_BYTES,
    REPORT_INTERVAL_SECONDS,
    DiskSpace,
    DiskState,
    Space,
)
from tiledbroker.supervisor.scheduler._effects import RefuseDocuments

MIB = 2**20
TOTAL = 10_000 * MIB


@pytest.fixture
def disk(caplog: pytest.LogCaptureFixture) -> DiskSpace:
    caplog.set_level(logging.INFO, logger="tiledbroker.supervisor")
    return DiskSpace(Path("/journals"), 100 * MIB)


def states(disk: DiskSpace, *free: int) -> list[str]:
    """States at these numbers of free MiB, one after the other."""
    found = []
    for second, mebibytes in enumerate(free):
        disk.update(Space(mebibytes * MIB, TOTAL), float(second))
        found.append(disk.state.value)
    return found


def test_states_follow_free_space_with_hysteresis(disk: DiskSpace) -> None:
    assert states(disk, 200, 199, 249, 250, 99, 124, 125, 199, 249, 250) == [
        *("well", "low", "low", "well"),
        *("full", "full", "low", "low", "low", "well"),
    ]


def test_each_change_is_said_once(disk: DiskSpace, caplog: pytest.LogCaptureFixture) -> None:
    states(disk, 300, 150, 150, 90, 90, 80, 90, 130, 130, 300, 300)
    lines = [f"{record.levelname} {record.getMessage()}" for record in caplog.records]
    assert lines == [
        (
            "WARNING Space on the journals' disk gets short: 150.0 MiB free in /journals. Below min_free, which is "
            "100.0 MiB, no documents are accepted."
        ),
        (
            "ERROR No documents are accepted, and publishers keep theirs in their spools, until there is space: the "
            "journal's disk is full: 90.0 MiB free in /journals, and min_free is 100.0 MiB."
        ),
        "WARNING Documents are accepted again after 4 s: 130.0 MiB free in /journals.",
        "INFO There is enough space on the journals' disk again: 300.0 MiB free in /journals.",
    ]


def test_full_disk_is_said_again_every_ten_minutes(disk: DiskSpace, caplog: pytest.LogCaptureFixture) -> None:
    for second in range(int(2 * REPORT_INTERVAL_SECONDS) + 1):
        disk.update(Space(0, TOTAL), float(second))
    first, *again = [record.getMessage() for record in caplog.records]
    assert first.startswith("No documents are accepted")
    assert [line.partition(":")[0] for line in again] == [
        "For 10 min no documents have been accepted",
        "For 20 min no documents have been accepted",
    ]


@pytest.mark.parametrize(
    ("total", "minimum"),
    [(MIB, MIB // 100), (16 * MIB, 16 * MIB // 100), (2**40, DEFAULT_MIN_FREE_BYTES)],
)
def test_default_is_small_on_small_disks(total: int, minimum: int) -> None:
    disk = DiskSpace(Path())
    disk.update(Space(total, total), 0.0)
    assert disk.min_free == minimum


@pytest.mark.parametrize("minimum", [None, 0, 100 * MIB])
def test_unknown_space_refuses_nothing(minimum: int | None) -> None:
    disk = DiskSpace(Path(), minimum)
    disk.update(None, 0.0)
    assert disk.state is DiskState.WELL


def test_zero_refuses_nothing() -> None:
    disk = DiskSpace(Path(), 0)
    disk.update(Space(0, TOTAL), 0.0)
    assert disk.state is DiskState.WELL


def test_changed_minimum_counts_from_next_measurement(disk: DiskSpace) -> None:
    assert states(disk, 90) == ["full"]
    disk.change_min_free(10 * MIB)
    assert states(disk, 90) == ["well"]


# What the scheduler does with it


@pytest.fixture
def ingest() -> IngestModel:
    model = IngestModel(disk=DiskSpace(Path("/journals"), 100 * MIB))
    model.scheduler.finish_survey()
    return model


@pytest.fixture
def alice() -> Publisher:
    return Publisher(b"alice", "", "127.0.0.1", name="alice")


def batch(first: int, *names: str) -> messages.Documents:
    return messages.Documents("run", first, list(names), [1] * len(names), list(range(first, first + len(names))))


def measure(ingest: IngestModel, mebibytes: int) -> None:
    ingest.scheduler.take_disk_space(Space(mebibytes * MIB, TOTAL), ingest.now)


def test_new_run_waits_for_space(ingest: IngestModel, alice: Publisher) -> None:
    measure(ingest, 50)
    ingest.send(alice, batch(0, "start", "descriptor"))
    why = "the journal's disk is full: 50.0 MiB free in /journals, and min_free is 100.0 MiB"
    assert ingest.told(alice) == [messages.Refused("run", 0, messages.LATER, why)]
    ingest.pass_by(1.0)
    assert not ingest.workers
    assert not ingest.scheduler.runs
    measure(ingest, 200)
    ingest.send(alice, batch(0, "start", "descriptor"))
    ingest.store(ingest.start("run"))
    assert ingest.told(alice, messages.Durable) == [messages.Durable("run", 2, False)]


def test_open_run_goes_on_behind_what_is_durable(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch(0, "start", "descriptor"))
    worker = ingest.start("run")
    ingest.store(worker)
    measure(ingest, 50)
    for first in (2, 3):
        ingest.send(alice, batch(first, "event"))
    refusals = ingest.told(alice, messages.Refused)
    assert [(refusal.index, refusal.reason) for refusal in refusals] == [(2, "later"), (2, "later")]
    assert {effect.topic for effect in ingest.effects if isinstance(effect, RefuseDocuments)} == {"disk"}
    assert not worker.inbox
    measure(ingest, 130)
    ingest.send(alice, batch(2, "event", "event"))
    ingest.store(worker)
    assert ingest.told(alice, messages.Durable)[-1] == messages.Durable("run", 4, False)


def test_end_of_run_waits_too(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch(0, "start"))
    ingest.store(ingest.start("run"))
    measure(ingest, 50)
    ingest.send(alice, messages.Abandoned("run", 1))
    assert ingest.told(alice, messages.Refused)[-1].reason == messages.LATER


def test_what_is_durable_is_acknowledged_without_space(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch(0, "start", "stop"))
    worker = ingest.start("run")
    ingest.store(worker)
    measure(ingest, 50)
    ingest.send(alice, batch(0, "start", "stop"))
    assert ingest.told(alice, messages.Refused) == []
    assert ingest.told(alice)[-1] == messages.Durable("run", 2, True)


def test_runs_are_written_without_space(ingest: IngestModel, alice: Publisher) -> None:
    ingest.send(alice, batch(0, "start", "stop"))
    worker = ingest.start("run")
    ingest.store(worker)
    measure(ingest, 50)
    ingest.write(worker)
    ingest.end(worker)
    assert ingest.told(alice, messages.Written) == [messages.Written("run", "written", "")]


def test_missing_directory_has_no_known_space(tmp_path: Path) -> None:
    assert measure_space(tmp_path / "missing") is None


def test_space_of_small_disk_is_measured(small_disk: Path) -> None:
    space = measure_space(small_disk)
    assert space is not None
    free, total = space
    assert 0 < free <= total == MIB
