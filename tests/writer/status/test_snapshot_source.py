"""The supervisor is asked over its socket, once for all who want to know."""

from __future__ import annotations

import asyncio
import json
import time

import pytest
import snapshots
from fake_supervisor import FakeSupervisor

from tiledwriter.status._snapshot import SupervisorAway, read_answer
from tiledwriter.status._source import SnapshotSource


def test_a_snapshot_is_read_from_the_socket(tmp_path):
    with FakeSupervisor(tmp_path, snapshots.many_runs(200)):
        answer = read_answer(tmp_path)
    assert len(answer.snapshot.runs.open) + len(answer.snapshot.runs.troubled) >= 200
    assert json.loads(answer.text) == {**snapshots.many_runs(200), "now": answer.snapshot.now}


def test_a_path_longer_than_sockets_can_have_is_no_obstacle(tmp_path):
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    with FakeSupervisor(directory, snapshots.well()):
        assert read_answer(directory).snapshot.state == "well"


def test_without_a_supervisor_the_directory_is_named(tmp_path):
    with pytest.raises(SupervisorAway, match=f"No supervisor uses {tmp_path}"):
        read_answer(tmp_path)
    with pytest.raises(SupervisorAway, match="No supervisor"):
        read_answer(tmp_path / "missing")


def test_a_supervisor_that_hangs_is_waited_for_a_limited_time(tmp_path):
    with FakeSupervisor(tmp_path, None), pytest.raises(SupervisorAway, match="has not answered for"):
        read_answer(tmp_path, timeout=0.2)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        json.dumps(snapshots.well()).encode()[:-20],
        b"[" * 100_000,
        b'{"schema": 1}',
        json.dumps({**snapshots.well(), "state": 5}).encode(),
        json.dumps({**snapshots.well(), "schema": 2}).encode(),
        b"\xff\xfe",
    ],
    ids=["empty", "cut", "deep", "bare", "type", "schema", "binary"],
)
def test_an_answer_that_is_cut_or_strange_is_no_answer(tmp_path, body):
    with FakeSupervisor(tmp_path, body), pytest.raises(SupervisorAway, match=r"no whole status|has schema 2"):
        read_answer(tmp_path)


@pytest.mark.parametrize("seconds", [-86_400, 86_400])
def test_a_snapshot_of_another_time_is_no_answer(tmp_path, seconds):
    body = json.dumps({**snapshots.well(), "now": time.time() + seconds}).encode()
    with FakeSupervisor(tmp_path, body), pytest.raises(SupervisorAway, match="86400 s away from the time of asking"):
        read_answer(tmp_path)


def test_a_snapshot_of_another_directory_is_no_answer(tmp_path):
    asked, other, link = tmp_path / "asked", tmp_path / "other", tmp_path / "link"
    for directory in (asked, other):
        directory.mkdir()
    link.symlink_to(asked)
    with (
        FakeSupervisor(asked, {**snapshots.well(), "journal_dir": str(other)}),
        pytest.raises(SupervisorAway, match=f"the supervisor of {other}"),
    ):
        read_answer(asked)
    # In a container, the directory may have a path that is not there here.
    for name in (link, tmp_path / "missing"):
        with FakeSupervisor(asked, {**snapshots.well(), "journal_dir": str(name)}):
            assert read_answer(link).snapshot.journal_dir == str(name)


class Supervisor:
    """Answers or not, and counts."""

    def __init__(self):
        self.asked = 0
        self.away = False

    def __call__(self):
        self.asked += 1
        if self.away:
            raise SupervisorAway("gone")
        return snapshots.answer_of(snapshots.well())


def test_many_who_ask_at_once_cost_one_question():
    supervisor = Supervisor()
    source = SnapshotSource(supervisor)

    async def ask():
        return await asyncio.gather(*(source.observe() for _ in range(50)))

    observations = asyncio.run(ask())
    assert len(set(map(id, observations))) == 1


def test_an_old_answer_is_kept_with_its_age_and_the_beginning_of_the_silence(monkeypatch):
    monkeypatch.setattr("tiledwriter.status._source.MAX_AGE_SECONDS", 0.0)
    supervisor = Supervisor()
    times = iter([100.0, 110.0, 120.0, 130.0])
    source = SnapshotSource(supervisor, lambda: next(times))

    async def ask():
        first = await source.observe()
        supervisor.away = True
        second, third = await source.observe(), await source.observe()
        supervisor.away = False
        return first, second, third, await source.observe()

    first, second, third, back = asyncio.run(ask())
    assert first.current is not None
    assert second.current is None
    assert (third.problem, third.answered, third.away_since, third.now) == ("gone", 100.0, 110.0, 120.0)
    assert third.answer is not None
    assert (back.problem, back.away_since, back.answered) == (None, None, 130.0)
