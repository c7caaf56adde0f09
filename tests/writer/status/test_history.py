"""Rates are differences between two samples of one supervisor; gaps stay gaps."""

from __future__ import annotations

import snapshots

from tiledbroker.supervisor import Latency
from tiledwriter.status._history import KEPT_SECONDS, PERIOD_SECONDS, History, Sample, columns_of
from tiledwriter.status._source import Observation


def observe(time, problem=None, **totals):
    snapshot = snapshots.well()
    snapshot["totals"] |= totals
    return Observation(time, snapshots.answer_of(snapshot), problem, time)


def test_rates_are_per_second():
    history = History()
    history.add_observation(observe(100.0, documents=1000, written_documents=500))
    history.add_observation(observe(105.0, documents=1500, written_documents=510))
    columns = history.columns()
    assert columns["time"] == [105.0]
    assert columns["documents_per_second"] == [100.0]
    assert columns["written_per_second"] == [2.0]
    assert columns["lag_documents"] == [12]


def test_a_time_without_an_answer_is_a_gap_and_no_zero():
    history = History()
    for time, problem in ((100.0, None), (105.0, "away"), (110.0, None)):
        history.add_observation(observe(time, problem))
    columns = history.columns()
    assert columns["time"] == [105.0, 110.0]
    assert columns["documents_per_second"] == [None, None]
    assert columns["lag_documents"] == [None, 12]


def test_counts_of_two_supervisors_are_not_compared():
    samples = [Sample(0.0, started=1.0, documents=100), Sample(5.0, started=4.0, documents=200)]
    assert columns_of(samples)["documents_per_second"] == [None]


def test_a_count_that_falls_gives_no_rate():
    samples = [Sample(0.0, started=1.0, documents=100), Sample(5.0, started=1.0, documents=99)]
    assert columns_of(samples)["documents_per_second"] == [None]


def test_a_lag_that_one_publisher_does_not_tell_is_not_known():
    snapshot = snapshots.well()
    snapshot["publishers"].append({**snapshot["publishers"][0], "lag_documents": None})
    history = History()
    for time in (0.0, 5.0):
        history.add_observation(Observation(time, snapshots.answer_of(snapshot), answered=time))
    assert history.columns()["lag_documents"] == [None]


def test_latency_is_that_of_the_requests_between_two_samples():
    before = Latency([(0.1, 100), (1.0, 100), (5.0, 100)], 5.0, 100)
    after = Latency([(0.1, 110), (1.0, 120), (5.0, 120)], 11.0, 120)
    columns = columns_of([Sample(0.0, 1.0, latency=before), Sample(5.0, 1.0, latency=after)])
    assert columns["latency_mean"] == [0.3]
    assert columns["latency_p95"] == [1.0]
    idle = columns_of([Sample(0.0, 1.0, latency=after), Sample(5.0, 1.0, latency=after)])
    assert idle["latency_mean"] == [None]


def test_only_an_hour_is_kept():
    history = History()
    for i in range(2000):
        history.add_observation(observe(i * PERIOD_SECONDS))
    times = history.columns()["time"]
    assert times[-1] - times[0] < KEPT_SECONDS
    assert len(times) < 1000


def test_an_answer_that_is_seen_twice_is_one_sample():
    history = History()
    for _ in range(3):
        history.add_observation(observe(100.0))
    assert history.columns()["time"] == []
