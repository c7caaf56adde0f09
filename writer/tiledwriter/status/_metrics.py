"""The snapshot as Prometheus metrics. A value that is not known is absent, because 0 would be an answer.

While the supervisor does not answer, only that is reported: old numbers would pass for present ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector, CollectorRegistry

from ._snapshot import Disk, Latency, Publisher, Run, Snapshot, Tiled
from ._source import Observation

STATES: Final = ("well", "degraded", "failed")

# Runs that are finished are counted since the start, all others as they are now.
_FINISHED: Final = ("written", "interrupted")
_MAX_LABEL_CHARACTERS: Final = 200

_Number = int | float | None


def package_version() -> str:
    """Return the installed version of this package; "unknown" if it is not installed."""
    try:
        return version("tiledwriter")
    except PackageNotFoundError:
        return "unknown"


def write_metrics(observation: Observation, accept: str) -> tuple[bytes, str]:
    """Return the metrics and their content type, in the format that an Accept header asks for."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(observation))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class SnapshotCollector(Collector):
    """Collects the metrics of one observation of the supervisor."""

    def __init__(self, observation: Observation) -> None:
        self._observation = observation

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics whose values are known."""
        yield InfoMetricFamily("tiledwriter_build", "Version of tiledwriter.", {"version": package_version()})
        snapshot = self._observation.current
        yield _gauge("supervisor_up", "1 if the supervisor answers, else 0.", int(snapshot is not None))
        yield from _present(
            _gauge,
            "supervisor_last_answer_timestamp_seconds",
            "Unix time of the supervisor's last answer.",
            self._observation.answered,
        )
        if snapshot is None:
            return
        yield from _service_metrics(snapshot)
        yield from _run_metrics(snapshot)
        yield from _publisher_metrics(snapshot.publishers)
        if snapshot.tiled is not None:
            yield from _tiled_metrics(snapshot.tiled)
        yield from _worker_metrics(snapshot)
        yield from _disk_metrics(snapshot.disks)


def _service_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "tiledwriter_service_state", "1 for the state that the supervisor says it is in.", labels=["state"]
    )
    for name in dict.fromkeys((*STATES, snapshot.state)):
        state.add_metric([name], int(name == snapshot.state))
    yield state
    yield _gauge("start_timestamp_seconds", "Unix time at which the supervisor started.", snapshot.started)
    totals = snapshot.totals
    yield from _present(_counter, "documents", "Documents made durable in journals.", totals.documents)
    yield from _present(_counter, "received_bytes", "Bytes of the documents made durable.", totals.bytes)
    yield from _present(_counter, "written_documents", "Documents written to Tiled.", totals.written_documents)
    yield from _counts("refused_messages", "Messages refused, by topic.", "topic", totals.refused)


def _run_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    counts = snapshot.runs.counts
    now = {state: count for state, count in counts.items() if state not in _FINISHED}
    yield from _gauges("runs", "Runs by state.", "state", now)
    finished = {state: count for state, count in counts.items() if state in _FINISHED}
    yield from _counts("runs_finished", "Runs finished since the start, by outcome.", "outcome", finished)
    yield from _present(
        _gauge,
        "unwritten_documents",
        "Documents in journals that are not confirmed in Tiled, of all runs in flight.",
        count_unwritten(snapshot),
    )


def count_unwritten(snapshot: Snapshot) -> int | None:
    """Return how many durable documents are not in Tiled yet; None if that is not known of any run.

    Runs in quarantine do not count: theirs are not on the way.
    """
    runs = [run for run in all_runs(snapshot) if run.state != "failed"]
    known = [run.durable - run.written for run in runs if run.durable is not None and run.written is not None]
    return sum(known) if known or not runs else None


def all_runs(snapshot: Snapshot) -> list[Run]:
    """Return the open and the troubled runs, each once."""
    return list({run.uid: run for run in (*snapshot.runs.open, *snapshot.runs.troubled)}.values())


def _publisher_metrics(publishers: Iterable[Publisher]) -> Iterator[Metric]:
    # Two publishers may have one name: their labels must not occur twice.
    groups: dict[tuple[str, str], list[Publisher]] = {}
    for publisher in publishers:
        groups.setdefault((_label(publisher.name), _label(publisher.client)), []).append(publisher)
    yield _gauge("publishers_connected", "Connected publishers.", sum(map(len, groups.values())))
    columns: list[tuple[str, str, Callable[[list[Publisher]], _Number]]] = [
        (
            "publisher_lag_documents",
            "Documents in a publisher's spool.",
            lambda all_: _total(p.lag_documents for p in all_),
        ),
        ("publisher_lag_bytes", "Bytes in a publisher's spool.", lambda all_: _total(p.lag_bytes for p in all_)),
        (
            "publisher_oldest_unacknowledged_seconds",
            "Age of a publisher's oldest document that is not durable here.",
            lambda all_: max(
                (p.oldest_unacknowledged for p in all_ if p.oldest_unacknowledged is not None), default=None
            ),
        ),
    ]
    for name, text, value_of in columns:
        family = GaugeMetricFamily(f"tiledwriter_{name}", text, labels=["publisher", "client"])
        for labels, group in groups.items():
            value = value_of(group)
            if value is not None:
                family.add_metric(labels, value)
        if family.samples:
            yield family


def _tiled_metrics(tiled: Tiled) -> Iterator[Metric]:
    reachable = None if tiled.reachable is None else int(tiled.reachable)
    yield from _present(_gauge, "tiled_up", "1 if Tiled answered when it was asked last, else 0.", reachable)
    yield from _present(
        _gauge, "tiled_last_write_timestamp_seconds", "Unix time of the last write to Tiled.", tiled.last_write
    )
    yield from _counts("tiled_requests", "Requests to Tiled, by outcome.", "outcome", tiled.requests)
    yield from _counts("tiled_retries", "Requests to Tiled that were repeated, by cause.", "cause", tiled.retries)
    if tiled.latency is not None:
        yield from _latency_metrics(tiled.latency)


def _latency_metrics(latency: Latency) -> Iterator[Metric]:
    if latency.count is None or latency.sum is None:
        return
    bounds = [(str(float(bound)), float(count)) for bound, count in latency.buckets if math.isfinite(bound)]
    family = HistogramMetricFamily("tiledwriter_tiled_request_duration_seconds", "Duration of requests to Tiled.")
    family.add_metric([], [*bounds, ("+Inf", float(latency.count))], latency.sum)
    yield family


def _worker_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    workers = snapshot.workers
    yield from _present(_gauge, "workers", "Worker processes.", workers.running)
    yield from _present(_gauge, "workers_max", "Maximum number of worker processes.", workers.max)
    yield from _present(_gauge, "worker_memory_bytes", "Resident memory of all workers.", workers.memory)
    yield from _present(_gauge, "runs_waiting_for_worker", "Runs that wait for a worker.", workers.waiting_for_worker)
    restarts = workers.restarts if workers.restarts is not None else snapshot.totals.restarts
    yield from _present(_counter, "worker_restarts", "Workers started anew after their end.", restarts)


def _disk_metrics(disks: Iterable[Disk]) -> Iterator[Metric]:
    by_label = {(_label(disk.path), _label(disk.purpose)): disk for disk in disks}
    columns: list[tuple[str, str, Callable[[Disk], _Number]]] = [
        ("disk_free_bytes", "Free space of a disk.", lambda disk: disk.free),
        ("disk_size_bytes", "Size of a disk.", lambda disk: disk.total),
        ("disk_min_free_bytes", "Free space below which documents are no longer taken.", lambda disk: disk.min_free),
    ]
    for name, text, value_of in columns:
        family = GaugeMetricFamily(f"tiledwriter_{name}", text, labels=["path", "purpose"])
        for labels, disk in by_label.items():
            value = value_of(disk)
            if value is not None:
                family.add_metric(labels, value)
        if family.samples:
            yield family


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tiledwriter_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"tiledwriter_{name}", text, value)


def _present(make: Callable[[str, str, float], Metric], name: str, text: str, value: _Number) -> Iterator[Metric]:
    if value is not None:
        yield make(name, text, value)


def _gauges(name: str, text: str, label: str, values: dict[str, int | None]) -> Iterator[Metric]:
    family = GaugeMetricFamily(f"tiledwriter_{name}", text, labels=[label])
    for key, value in values.items():
        if value is not None:
            family.add_metric([_label(key)], value)
    if family.samples:
        yield family


def _counts(
    name: str, text: str, label: str, values: dict[str, int | None] | dict[str, int] | None
) -> Iterator[Metric]:
    family = CounterMetricFamily(f"tiledwriter_{name}", text, labels=[label])
    for key, value in (values or {}).items():
        if value is not None:
            family.add_metric([_label(key)], value)
    if family.samples:
        yield family


def _label(text: str | None) -> str:
    """Return the value of a label, which comes from other hosts and can be anything."""
    return (text or "")[:_MAX_LABEL_CHARACTERS].encode("utf-8", "backslashreplace").decode()


def _total(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
