"""Many workers' reports about Tiled become one state."""

from __future__ import annotations

from typing import Any

from tiledbroker.protocol.messages import LATENCY_BOUNDS_SECONDS, Report
from tiledbroker.supervisor._clock import Instant
from tiledbroker.supervisor.status._tiled_reports import TiledReports

UNIX = 1_000_000_000.0
NOW = Instant(100.0, UNIX)
AWAY = {"failed_monotonic": 20.0, "problem": "503"}


def told(*reports: dict[str, Any]) -> TiledReports:
    result = TiledReports("profile beamline")
    for report in reports:
        result.add(Report("run", **report))
    return result


def test_nothing_is_known_before_the_first_report() -> None:
    reports = told()
    assert (reports.reachable, reports.since, reports.asked_at) == (None, None, None)
    assert reports.describe(NOW).address == "profile beamline"


def test_a_worker_that_has_not_asked_says_nothing_of_tiled() -> None:
    assert told({"plan": "count"}).reachable is None


def test_an_outage_lasts_from_its_first_sign_until_an_answer() -> None:
    reports = told({"answered_monotonic": 10.0}, AWAY, {**AWAY, "failed_monotonic": 30.0})
    assert (reports.reachable, reports.since, reports.problem) == (False, 20.0, "503")
    reports.add(Report("run", answered_monotonic=40.0, failed_monotonic=30.0))
    assert (reports.reachable, reports.since, reports.problem) == (True, 40.0, "")
    assert reports.asked_at == 40.0


def test_an_old_failure_of_another_worker_is_no_outage() -> None:
    reports = told({"answered_monotonic": 30.0}, AWAY)
    assert (reports.reachable, reports.since, reports.problem) == (True, 30.0, "")


def test_an_outage_outlives_the_workers_that_saw_it() -> None:
    reports = told(AWAY, {"plan": "of a new worker"})
    assert (reports.reachable, reports.since) == (False, 20.0)


def test_the_last_problem_is_told() -> None:
    reports = told(AWAY, {"failed_monotonic": 25.0, "problem": "401: no", "needs_person": True})
    assert (reports.problem, reports.needs_person, reports.since) == ("401: no", True, 20.0)
    reports.add(Report("run", answered_monotonic=40.0))
    assert not reports.needs_person


def test_counts_add_up() -> None:
    buckets = [0] * (len(LATENCY_BOUNDS_SECONDS) + 1)
    buckets[1] = 2
    report = {"requests": {"ok": 2}, "retries": {"busy": 1}, "latencies": buckets, "latency_sum": 0.02}
    described = told(report, {**report, "requests": {"ok": 1, "refused": 1}}).describe(NOW)
    assert described.requests == {"ok": 3, "refused": 1}
    assert described.retries == {"busy": 2}
    assert described.latency.count == 4
    assert described.latency.buckets[:3] == [(0.005, 0), (0.01, 4), (0.025, 4)]


def test_a_histogram_of_other_buckets_is_left_out() -> None:
    assert told({"latencies": [1, 2], "latency_sum": 5.0}).describe(NOW).latency.count == 0


def test_the_last_write_and_the_address_are_the_latest_known() -> None:
    described = told({"address": "http://tiled:8000", "version": "0.2.14", "written_monotonic": 9.0}, {}).describe(NOW)
    assert (described.address, described.version, described.last_write) == ("http://tiled:8000", "0.2.14", UNIX - 91)
