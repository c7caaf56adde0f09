"""The status tells how a site's log is, and nothing of a log that gives no answer but that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from log_site import LogSite
from logged_runs import log_run, remove, tell
from snapshots import answer_of, with_log
from stored_runs import a_run

from tiledbroker.jetstream import LogReader
from tiledbroker.supervisor import LogStatus
from tiledbroker.supervisor.status import Symptoms, judge_service
from tiledwriter.cli import _log_watch
from tiledwriter.cli._log_watch import LogWatch
from tiledwriter.cli._status_table import _describe_log, _describe_log_runs
from tiledwriter.testing import wait_until


@contextmanager
def watching(site: LogSite) -> Iterator[list[LogStatus]]:
    """What a watch has told."""
    told: list[LogStatus] = []
    with LogWatch(site.address, told.append):
        yield told


@pytest.fixture(autouse=True)
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_log_watch, "_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr(_log_watch, "_COUNT_SECONDS", 0.2)


def test_a_log_is_told_with_its_space_and_the_owners_of_its_runs(log_site: LogSite) -> None:
    runs = [a_run() for _ in range(4)]
    for number, documents in enumerate(runs):
        tail = log_run(log_site, documents)
        if number:
            outcome = {3: "written"}.get(number, "")
            tell(log_site, str(documents[0][1]["uid"]), tail, host=f"ingest{min(number, 2)}", outcome=outcome)
    with watching(log_site) as told:
        assert told[0] == LogStatus(str(log_site.address))
        wait_until(lambda: told[-1].unfinished_runs == {"": 1, "ingest1": 1, "ingest2": 1}, 60, "runs are counted")
        found = told[-1]
        assert (found.reachable, found.problem) == (True, None)
        assert found.messages == 12
        assert 0 < (found.bytes or 0) < (found.max_bytes or 0) == 2**30
        assert (found.replicas, found.replicas_current) == (1, 1)
        remove(log_site, str(runs[0][0][1]["uid"]))
        wait_until(lambda: told[-1].unfinished_runs == {"ingest1": 1, "ingest2": 1}, 60, "a run has left the log")


def test_of_a_log_that_is_away_nothing_is_told_but_that(log_site: LogSite, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "tiledwriter.supervisor"), watching(log_site) as told:
        wait_until(lambda: told[-1].unfinished_runs is not None, 60, "the log is there")
        log_site.nodes[0].kill()
        wait_until(lambda: told[-1].reachable is False, 60, "the log is away")
        away = told[-1]
        assert away.problem
        assert away.since is not None
        assert (away.bytes, away.server, away.replicas, away.unfinished_runs) == (None, None, None, None)
        wait_until(lambda: (told[-1].asked or 0) > (away.asked or 0), 60, "it is asked again")
        assert told[-1].since == away.since
        log_site.start()
        wait_until(lambda: told[-1].reachable is True, 60, "the log is back")
        assert (told[-1].since or 0) > away.since
    said = [record.getMessage() for record in caplog.records if record.name == "tiledwriter.supervisor"]
    assert [text.partition(": ")[0].removeprefix(f"The log at {log_site.address} ") for text in said] == [
        "gives no answer",
        "answers now.",
    ]


def test_a_lost_node_of_three_is_told(tmp_path: Path) -> None:
    def current(site: LogSite) -> tuple[int, int]:
        with LogReader(site.address) as reader:
            found = reader.measure()
        return found.replicas_current, found.replicas

    with LogSite(tmp_path / "log", nodes=3) as site:
        wait_until(lambda: current(site) == (3, 3), 60, "all nodes have all of it")
        site.nodes[1].kill()
        with watching(site) as told:
            wait_until(lambda: told[-1].replicas_current == 2, 60, "the loss is told")
            assert told[-1].replicas == 3


# The judgement


def reasons(**changes: object) -> tuple[str, list[str]]:
    snapshot = answer_of(with_log(**changes)).snapshot
    judged = judge_service(snapshot, Symptoms(), "tiledwriter-supervisor check")
    return judged.state, judged.reasons


def test_a_log_in_order_is_no_reason() -> None:
    assert reasons() == ("well", [])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reachable": False, "problem": "no servers"}, "gives no answer since"),
        ({"read_problem": "the connection was lost"}, "is not read: the connection was lost."),
        ({"bytes": 460 * 2**30}, "is almost full: 460.0 GiB of 500.0 GiB."),
        ({"replicas_current": 2}, "Only 2 of 3 nodes of the log at"),
    ],
)
def test_what_is_wrong_with_a_log_makes_the_service_degraded(changes: dict[str, object], said: str) -> None:
    state, (reason,) = reasons(**changes)
    assert state == "degraded"
    assert said in reason


def test_a_host_that_stands_by_need_not_read() -> None:
    snapshot = with_log(read_problem="the log has not been reached yet")
    snapshot["lease"] = {
        **dict.fromkeys(("seconds_left", "problem", "renewed")), "held": False, "place": "p", "host": "h", "epoch": 1
    }  # fmt: skip
    judged = judge_service(answer_of(snapshot).snapshot, Symptoms())
    assert judged.state == "well"
    assert not any("is not read" in reason for reason in judged.reasons)


# The words


def test_the_line_of_a_log_has_only_what_is_known() -> None:
    found = answer_of(with_log()).snapshot
    assert found.log is not None
    assert _describe_log(found.log, found.now) == (
        "nats://log1:4222,log2:4222,log3:4222: answered 3 s ago (log2:4222, version 2.12.1); 40 GiB of 500 GiB, "
        "120000 messages; 3 of 3 replicas current"
    )
    assert list(_describe_log_runs(found.log)) == [
        ("Log's lag", "bl7 12 documents"),
        ("Log's runs", "not complete in Tiled: no host yet 1, ingest7 2"),
    ]
    away = msgspec.structs.replace(LogStatus(found.log.address), reachable=False, since=found.now - 60, problem="x")
    assert _describe_log(away, found.now).endswith("gives NO answer for 1 min")
    assert list(_describe_log_runs(away)) == []
    assert _describe_log(LogStatus("nats://a:1"), found.now) == "nats://a:1: not asked yet"
