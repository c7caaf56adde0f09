"""Metrics say what the snapshot says, and nothing that is not known."""

from __future__ import annotations

import snapshots
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tiledwriter.status._metrics import write_metrics
from tiledwriter.status._source import Observation

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def observe(snapshot):
    return Observation(snapshots.NOW, snapshots.answer_of(snapshot), answered=snapshots.NOW)


def scrape(snapshot):
    body, _ = write_metrics(observe(snapshot), "")
    return values_in(body)


def values_in(body):
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def names_in(values):
    return {name for name, _ in values}


def test_the_numbers_are_those_of_the_snapshot():
    values = scrape(snapshots.well())
    assert values["tiledwriter_supervisor_up", ()] == 1
    assert values["tiledwriter_documents_total", ()] == 5_210_341
    assert values["tiledwriter_received_bytes_total", ()] == 3_100_200_300
    assert values["tiledwriter_unwritten_documents", ()] == 6
    assert values["tiledwriter_runs", (("state", "open"),)] == 2
    assert values["tiledwriter_runs_finished_total", (("outcome", "written"),)] == 318
    assert values["tiledwriter_service_state", (("state", "well"),)] == 1
    assert values["tiledwriter_service_state", (("state", "failed"),)] == 0
    publisher = (("client", "bl7"), ("publisher", "bl7-acq"))
    assert values["tiledwriter_publisher_lag_documents", publisher] == 12
    assert values["tiledwriter_publisher_oldest_unacknowledged_seconds", publisher] == 0.25
    assert values["tiledwriter_tiled_retries_total", (("cause", "503"),)] == 3
    assert values["tiledwriter_worker_restarts_total", ()] == 1
    assert values["tiledwriter_workers_waiting_to_write", ()] == 1
    disk = (("path", "/var/lib/tiledwriter"), ("purpose", "journals"))
    assert values["tiledwriter_disk_size_bytes", disk] == 500 * snapshots.GIB


def test_the_histogram_of_requests_is_cumulative_to_its_count():
    values = scrape(snapshots.well())
    bucket = "tiledwriter_tiled_request_duration_seconds_bucket"
    assert values[bucket, (("le", "0.025"),)] == 30_000
    assert values[bucket, (("le", "+Inf"),)] == 48_214
    assert values["tiledwriter_tiled_request_duration_seconds_count", ()] == 48_214
    assert values["tiledwriter_tiled_request_duration_seconds_sum", ()] == 1290.5


def test_unknown_values_are_absent():
    snapshot = snapshots.started()
    snapshot["workers"]["memory"] = None
    snapshot["disks"][0] |= {"free": None, "total": None, "state": None}
    names = names_in(scrape(snapshot))
    for absent in ("tiled_up", "tiled_last_write_timestamp_seconds", "worker_memory_bytes", "disk_free_bytes"):
        assert f"tiledwriter_{absent}" not in names
    assert {"tiledwriter_disk_min_free_bytes", "tiledwriter_workers"} <= names


def test_runs_that_are_not_listed_make_the_backlog_unknown():
    snapshot = snapshots.many_runs()
    assert "tiledwriter_unwritten_documents" in names_in(scrape(snapshot))
    snapshot["runs"]["unlisted_open"] = 1
    assert "tiledwriter_unwritten_documents" not in names_in(scrape(snapshot))


def test_documents_not_known_to_be_written_are_not_confirmed():
    snapshot = snapshots.well()
    snapshot["runs"]["open"][0]["written"] = None
    assert scrape(snapshot)["tiledwriter_unwritten_documents", ()] == 1842


def test_lags_that_publishers_do_not_tell_are_absent():
    snapshot = snapshots.well()
    snapshot["publishers"][0] |= dict.fromkeys(("lag_documents", "lag_bytes", "oldest_unacknowledged"))
    names = names_in(scrape(snapshot))
    assert not {name for name in names if name.startswith("tiledwriter_publisher_")}
    assert scrape(snapshot)["tiledwriter_publishers_connected", ()] == 1


def test_nothing_old_is_reported_while_the_supervisor_is_away():
    old = observe(snapshots.well())
    away = Observation(snapshots.NOW + 60, old.answer, "no answer", snapshots.NOW, snapshots.NOW + 5)
    values = values_in(write_metrics(away, "")[0])
    assert values["tiledwriter_supervisor_up", ()] == 0
    assert values["tiledwriter_supervisor_last_answer_timestamp_seconds", ()] == snapshots.NOW
    assert names_in(values) == {
        "tiledwriter_build_info",
        "tiledwriter_supervisor_up",
        "tiledwriter_supervisor_last_answer_timestamp_seconds",
    }


def test_two_publishers_of_one_name_make_one_series():
    snapshot = snapshots.well()
    snapshot["publishers"] *= 2
    snapshot["publishers"] = [dict(publisher) for publisher in snapshot["publishers"]]
    snapshot["publishers"][1] |= {"lag_documents": 30, "oldest_unacknowledged": snapshots.NOW - 7.0}
    values = scrape(snapshot)
    publisher = (("client", "bl7"), ("publisher", "bl7-acq"))
    assert values["tiledwriter_publisher_lag_documents", publisher] == 42
    assert values["tiledwriter_publisher_oldest_unacknowledged_seconds", publisher] == 7.0


def test_a_series_of_two_publishers_is_unknown_if_one_of_them_does_not_tell():
    snapshot = snapshots.well()
    silent = dict.fromkeys(("lag_documents", "lag_bytes", "oldest_unacknowledged"))
    snapshot["publishers"] += [snapshot["publishers"][0] | silent]
    values = scrape(snapshot)
    assert not {name for name in names_in(values) if name.startswith("tiledwriter_publisher_")}
    assert values["tiledwriter_publishers_connected", ()] == 2


def test_hostile_labels_stay_labels():
    snapshot = snapshots.well()
    snapshot["publishers"][0]["name"] = 'x"} 1\ntiledwriter_supervisor_up 0\n\\' + "y" * 5000
    body, _ = write_metrics(observe(snapshot), "")
    values = values_in(body)
    assert values["tiledwriter_supervisor_up", ()] == 1
    assert len(body) < 20_000


def test_open_metrics_is_spoken_to_those_who_ask_for_it():
    body, content_type = write_metrics(observe(snapshots.well()), OPEN_METRICS)
    assert content_type.startswith("application/openmetrics-text")
    names = {sample.name for family in parse_open_metrics(body.decode()) for sample in family.samples}
    assert "tiledwriter_documents_total" in names


def test_names_have_the_prefix_and_counters_end_with_total():
    body, _ = write_metrics(observe(snapshots.quarantine()), "")
    for family in parse(body.decode()):
        assert family.name.startswith("tiledwriter_")
        assert family.documentation
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_two_hundred_runs_do_not_make_more_series():
    assert len(scrape(snapshots.many_runs(200))) == len(scrape(snapshots.many_runs(10)))
