"""The dashboard and the alert rules in the documentation work with the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import snapshots
import yaml
from paths import ROOT
from prometheus_client.parser import text_string_to_metric_families
from promql import Scrape, evaluate, metric_names

from tiledwriter.status._metrics import write_metrics
from tiledwriter.status._source import Observation

MONITOR = ROOT / "docs" / "how-to" / "monitor"
ALERTS = MONITOR / "alerts.yml"
RULES = {rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
DASHBOARD = json.loads((MONITOR / "grafana-dashboard.json").read_text())
# What a rule sees besides what this product says.
PROMETHEUS_OWN = {"up"}


def metrics_of(snapshot: dict[str, Any] | None) -> str:
    """What a scrape finds; None if the supervisor is away."""
    answer = None if snapshot is None else snapshots.answer_of(snapshot)
    problem = "no answer" if snapshot is None else None
    return write_metrics(Observation(snapshots.NOW, answer, problem, snapshots.NOW, None), "")[0].decode()


def everything() -> dict[str, Any]:
    """A snapshot that has all there can be."""
    snapshot = snapshots.quarantine()
    snapshot["lease"] = snapshots.standby()["lease"]
    snapshot["log"] = snapshots.with_log()["log"]
    return snapshot


def dying_workers() -> dict[str, Any]:
    snapshot = snapshots.well()
    snapshot["workers"]["restarts"] += 9
    return snapshot


def strangers() -> dict[str, Any]:
    snapshot = snapshots.well()
    snapshot["totals"]["refused"] = {"key": 3}
    return snapshot


def busy_workers() -> dict[str, Any]:
    snapshot = snapshots.well()
    snapshot["totals"]["refused"] = {"later": 3, "gap": 1, "window": 1, "disk": 1}
    return snapshot


def never_written() -> dict[str, Any]:
    snapshot = snapshots.outage()
    snapshot["tiled"] |= {"reachable": None, "last_write": None}
    return snapshot


def log_away() -> dict[str, Any]:
    values = dict.fromkeys(("server", "version", "bytes", "max_bytes", "messages", "replicas", "replicas_current"))
    return snapshots.with_log(**values, reachable=False, problem="no answer", lag={}, unfinished_runs=None)


def log_almost_full() -> dict[str, Any]:
    return snapshots.with_log(bytes=460 * snapshots.GIB)


def log_on_two_nodes() -> dict[str, Any]:
    return snapshots.with_log(replicas_current=2)


DRILLS = {
    "well": (snapshots.well, set()),
    "started": (snapshots.started, set()),
    "outage": (snapshots.outage, {"TiledwriterTiledAway", "TiledwriterNotWritten"}),
    "quarantine": (snapshots.quarantine, {"TiledwriterQuarantine"}),
    "disk full": (
        snapshots.disk_full,
        {"TiledwriterFailed", "TiledwriterNotAcknowledged", "TiledwriterDiskLow", "TiledwriterDiskFull"},
    ),
    "away": (lambda: None, {"TiledwriterAway"}),
    "dying workers": (dying_workers, {"TiledwriterWorkersDie"}),
    "strangers": (strangers, {"TiledwriterRefused"}),
    "busy workers": (busy_workers, set()),
    "never written": (never_written, {"TiledwriterNotWritten"}),
    "with a log": (snapshots.with_log, set()),
    "log away": (log_away, {"TiledwriterLogAway"}),
    "log almost full": (log_almost_full, {"TiledwriterLogAlmostFull"}),
    "log on two nodes": (log_on_two_nodes, {"TiledwriterLogReplicaLost"}),
    "standby": (snapshots.standby, {"TiledwriterNobodyServes"}),
}


@pytest.mark.parametrize("drill", DRILLS)
def test_alerts_fire_when_and_only_when_they_should(drill):
    snapshot, expected = DRILLS[drill]
    before = Scrape(metrics_of(snapshots.well()), snapshots.NOW - 900)
    now = Scrape(metrics_of(snapshot()), snapshots.NOW)
    assert {name for name, rule in RULES.items() if evaluate(rule["expr"], now, before)} == expected


def test_a_dead_http_process_is_an_alert_too():
    gone = Scrape("", snapshots.NOW, up=False)
    assert evaluate(RULES["TiledwriterAway"]["expr"], gone, gone)


def test_every_alert_fires_in_some_drill():
    assert set.union(*(expected for _, expected in DRILLS.values())) == set(RULES)


def test_the_first_refusal_of_every_kind_is_an_increase():
    # Prometheus sees no increase from a series that is not there to a number.
    sources = (ROOT / "broker" / "tiledbroker" / "supervisor").rglob("*.py")
    calls = r'\b(?:refuse|_record_refusal|RefuseDocuments)\(\s*"(\w+)"'
    topics = {topic for source in sources for topic in re.findall(calls, source.read_text())}
    told = {
        sample.labels["topic"]
        for family in text_string_to_metric_families(metrics_of(snapshots.started()))
        for sample in family.samples
        if sample.name == "tiledwriter_refused_messages_total"
    }
    assert "key" in topics
    assert topics <= told


def test_every_alert_says_what_it_means_and_how_bad_it_is():
    for rule in RULES.values():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["description"]


def test_alert_rules_use_metrics_that_exist():
    used = {name for rule in RULES.values() for name in metric_names(rule["expr"])}
    assert used - PROMETHEUS_OWN <= Scrape(metrics_of(everything()), 0.0).names


def dashboard_expressions() -> list[str]:
    targets = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    annotations = [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
    variables = re.findall(r"label_values\((\w+),", json.dumps(DASHBOARD["templating"]))
    # Grafana replaces its variables before Prometheus sees the expression.
    return [expression.replace("$__rate_interval", "5m") for expression in (*targets, *annotations, *variables)]


def test_the_dashboard_uses_metrics_that_exist():
    used = {name for expression in dashboard_expressions() for name in metric_names(expression)}
    names = Scrape(metrics_of(everything()), 0.0).names
    assert used <= names
    assert len(used) > 20


def test_the_dashboard_shows_every_metric():
    used = {name for expression in dashboard_expressions() for name in metric_names(expression)}
    known = Scrape(metrics_of(everything()), 0.0).names - PROMETHEUS_OWN
    assert known - used == {"tiledwriter_supervisor_last_answer_timestamp_seconds"}


def test_panels_of_the_dashboard_have_places_of_their_own():
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_the_monitoring_page_names_every_metric_and_alert():
    page = (ROOT / "docs" / "how-to" / "monitor.md").read_text()
    for family in text_string_to_metric_families(metrics_of(everything())):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in page
    assert all(f"`{alert}`" in page for alert in RULES)


promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


@promtool
def test_promtool_accepts_the_rules():
    subprocess.run(["promtool", "check", "rules", ALERTS], check=True, capture_output=True)


@promtool
@pytest.mark.parametrize("drill", DRILLS)
def test_promtool_fires_the_same_alerts(drill, tmp_path):
    snapshot, expected = DRILLS[drill]
    # Half an hour before, then a quarter of an hour of the drill, in minutes.
    series = series_of(metrics_of(snapshots.well()), metrics_of(snapshot()), 30, 15)
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(expected)]
    test = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": series,
                "promql_expr_test": [
                    {
                        "expr": 'group by (alertname) (ALERTS{alertstate="firing"})',
                        "eval_time": "40m",
                        "exp_samples": samples,
                    }
                ],
            }
        ],
    }
    path = tmp_path / "test.yml"
    path.write_text(yaml.safe_dump(test))
    ended = subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def series_of(before: str, after: str, minutes_before: int, minutes_after: int) -> list[dict[str, str]]:
    """The series of promtool's test, which begins at time 0."""
    offset = (minutes_before + 10) * 60 - snapshots.NOW
    first, second = (samples_of(text, offset) for text in (before, after))
    first['up{job="tiledwriter"}'] = second['up{job="tiledwriter"}'] = 1.0
    return [
        {
            "series": name,
            "values": " ".join(
                f"{values[name]}x{minutes}" if name in values else f"_x{minutes}"
                for values, minutes in ((first, minutes_before), (second, minutes_after))
            ),
        }
        for name in {**first, **second}
    ]


def samples_of(text: str, offset: float) -> dict[str, float]:
    return {
        sample.name + "{" + ",".join(f'{key}="{value}"' for key, value in sample.labels.items()) + "}": (
            max(sample.value + offset, 0.0) if sample.name.endswith("timestamp_seconds") else sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
