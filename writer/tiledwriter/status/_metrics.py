"""The snapshot as Prometheus metrics. A value that is not known is absent, because 0 would be an answer.

While the supervisor does not answer, only that is reported: old numbers would pass for present ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
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

from tiledbroker import __version__
from tiledbroker.supervisor import DiskStatus, Latency, LogStatus, PublisherConnection, RunStatus, Snapshot, TiledStatus

from ._history import combine_if_known
from ._source import Observation

STATES: Final = ("well", "degraded", "failed")

# Runs that are finished are counted since the start, all others as they are now.
_FINISHED: Final = ("written", "interrupted")
_MAX_LABEL_CHARACTERS: Final = 200
# Topics of refusals. Each is told from the start: Prometheus sees no increase in a counter that begins with a number.
_REFUSAL_TOPICS: Final = (
    *("key", "identity", "hello", "protocol", "version", "connections"),
    *("document", "owner", "uid", "journal", "refused"),
    *("later", "gap", "window", "disk"),
)

_Number = int | float | None


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
        yield InfoMetricFamily("tiledwriter_build", "Version of tiledwriter.", {"version": __version__})
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
        yield from _publisher_metrics(snapshot)
        if snapshot.tiled is not None:
            yield from _tiled_metrics(snapshot.tiled)
        yield from _worker_metrics(snapshot)
        yield from _disk_metrics(snapshot.disks)
        if snapshot.lease is not None:
            held = {snapshot.lease.place: int(snapshot.lease.held)}
            yield from _gauges("lease_held", "1 if this host holds the lease, 0 if it stands by.", "lease", held)
        if snapshot.log is not None:
            yield from _log_metrics(snapshot.log)


def _log_metrics(log: LogStatus) -> Iterator[Metric]:
    up = None if log.reachable is None else int(log.reachable)
    yield from _present(_gauge, "log_up", "1 if the site's log answered when it was asked last, else 0.", up)
    yield from _present(_gauge, "log_bytes", "Bytes of documents in the log, on each node.", log.bytes)
    yield from _present(_gauge, "log_max_bytes", "Bytes at which the log takes no more.", log.max_bytes)
    yield from _present(_gauge, "log_messages", "Messages in the log.", log.messages)
    yield from _present(_gauge, "log_replicas", "Nodes that should have each message.", log.replicas)
    yield from _present(_gauge, "log_replicas_current", "Nodes that have all messages.", log.replicas_current)
    text = "Documents of a beamline that are in the log and not in journals, without those of other hosts' runs."
    yield from _gauges("log_lag_documents", text, "beamline", log.lag)
    text = "Runs in the log that are not complete in Tiled, by the host that has told of them."
    yield from _gauges("log_unfinished_runs", text, "host", log.unfinished_runs or {})


def _service_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "tiledwriter_service_state", "1 for the state that the supervisor says it is in.", labels=["state"]
    )
    for name in dict.fromkeys((*STATES, snapshot.state)):
        state.add_metric([name], int(name == snapshot.state))
    yield state
    yield _gauge("start_timestamp_seconds", "Unix time at which the supervisor started.", snapshot.started)
    totals = snapshot.totals
    yield _counter("documents", "Documents made durable in journals.", totals.documents)
    yield _counter("received_bytes", "Bytes of the documents received.", totals.bytes)
    yield _counter("written_documents", "Documents written to Tiled.", totals.written_documents)
    refused = {**dict.fromkeys(_REFUSAL_TOPICS, 0), **totals.refused}
    yield from _counts("refused_messages", "Messages refused, by topic.", "topic", refused)


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
    """Return how many documents in journals are not confirmed in Tiled; None if not all runs are listed.

    Runs in quarantine do not count, because theirs are not on the way. A run of which nobody has told yet what is in
    Tiled counts with all of its documents.
    """
    if snapshot.runs.unlisted_open:
        return None
    runs = [run for run in all_runs(snapshot) if run.state != "failed"]
    return sum(max(run.durable - (run.written or 0), 0) for run in runs)


def all_runs(snapshot: Snapshot) -> list[RunStatus]:
    """Return the open and the troubled runs, each once."""
    return list({run.uid: run for run in (*snapshot.runs.open, *snapshot.runs.troubled)}.values())


def _publisher_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    yield _gauge("publishers_connected", "Connected publishers.", len(snapshot.publishers))
    # Two publishers may have one name: their labels must not occur twice.
    groups: dict[tuple[str, str], list[PublisherConnection]] = {}
    for publisher in snapshot.publishers:
        groups.setdefault((_label(publisher.name), _label(publisher.client)), []).append(publisher)
    labels = ["publisher", "client"]
    documents = {key: combine_if_known(sum, [one.lag_documents for one in group]) for key, group in groups.items()}
    yield from _family("publisher_lag_documents", "Documents in a publisher's spool.", labels, documents)
    sizes = {key: combine_if_known(sum, [one.lag_bytes for one in group]) for key, group in groups.items()}
    yield from _family("publisher_lag_bytes", "Bytes in a publisher's spool.", labels, sizes)
    ages = {
        key: combine_if_known(max, [age_of_oldest(one, snapshot) for one in group]) for key, group in groups.items()
    }
    text = "Age of a publisher's oldest document that is not durable here."
    yield from _family("publisher_oldest_unacknowledged_seconds", text, labels, ages)


def age_of_oldest(publisher: PublisherConnection, snapshot: Snapshot) -> float | None:
    """Return for how many seconds a publisher's oldest document waits; 0 if none does, None if that is not known."""
    if publisher.oldest_unacknowledged is None:
        return 0.0 if publisher.lag_documents == 0 else None
    return max(snapshot.now - publisher.oldest_unacknowledged, 0.0)


def _tiled_metrics(tiled: TiledStatus) -> Iterator[Metric]:
    reachable = None if tiled.reachable is None else int(tiled.reachable)
    yield from _present(_gauge, "tiled_up", "1 if Tiled answered when it was asked last, else 0.", reachable)
    yield from _present(
        _gauge, "tiled_last_write_timestamp_seconds", "Unix time of the last write to Tiled.", tiled.last_write
    )
    yield from _counts("tiled_requests", "Requests to Tiled, by outcome.", "outcome", tiled.requests)
    yield from _counts("tiled_retries", "Requests to Tiled that were repeated, by cause.", "cause", tiled.retries)
    yield _latency_metric(tiled.latency)


def _latency_metric(latency: Latency) -> Metric:
    bounds = [(str(float(bound)), float(count)) for bound, count in latency.buckets if math.isfinite(bound)]
    family = HistogramMetricFamily("tiledwriter_tiled_request_duration_seconds", "Duration of requests to Tiled.")
    family.add_metric([], [*bounds, ("+Inf", float(latency.count))], latency.sum)
    return family


def _worker_metrics(snapshot: Snapshot) -> Iterator[Metric]:
    workers = snapshot.workers
    yield _gauge("workers", "Worker processes.", workers.running)
    yield _gauge("workers_max", "Maximum number of worker processes.", workers.max)
    yield from _present(_gauge, "worker_memory_bytes", "Resident memory of all workers.", workers.memory)
    yield _gauge("runs_waiting_for_worker", "Runs that wait for a worker.", workers.waiting_for_worker)
    yield from _present(
        _gauge, "workers_waiting_to_write", "Workers that wait for their turn to write.", workers.waiting_to_write
    )
    yield _counter("worker_restarts", "Deaths of workers, replaced or not.", workers.restarts)


def _disk_metrics(disks: Iterable[DiskStatus]) -> Iterator[Metric]:
    by_label = {(_label(disk.path), _label(disk.purpose)): disk for disk in disks}
    labels = ["path", "purpose"]
    free = {key: disk.free for key, disk in by_label.items()}
    yield from _family("disk_free_bytes", "Free space of a disk.", labels, free)
    sizes = {key: disk.total for key, disk in by_label.items()}
    yield from _family("disk_size_bytes", "Size of a disk.", labels, sizes)
    needed = {key: disk.min_free for key, disk in by_label.items()}
    yield from _family("disk_min_free_bytes", "Free space below which documents are not taken.", labels, needed)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"tiledwriter_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"tiledwriter_{name}", text, value)


def _present(make: Callable[[str, str, float], Metric], name: str, text: str, value: _Number) -> Iterator[Metric]:
    if value is not None:
        yield make(name, text, value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, int]) -> Iterator[Metric]:
    """Yield gauges with one label, or nothing if there are no values."""
    family = GaugeMetricFamily(f"tiledwriter_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([_label(key)], value)
    if values:
        yield family


def _counts(name: str, text: str, label: str, values: Mapping[str, int]) -> Iterator[Metric]:
    """Yield counters with one label, or nothing if there are no values."""
    family = CounterMetricFamily(f"tiledwriter_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([_label(key)], value)
    if values:
        yield family


def _family(
    name: str, text: str, labels: list[str], values: Mapping[tuple[str, str], int | float | None]
) -> Iterator[Metric]:
    """Yield a gauge with those values that are known, or nothing if none is."""
    family = GaugeMetricFamily(f"tiledwriter_{name}", text, labels=labels)
    for key, value in values.items():
        if value is not None:
            family.add_metric(key, value)
    if family.samples:
        yield family


def _label(text: str) -> str:
    """Return the value of a label, which comes from other hosts and can be anything."""
    return text[:_MAX_LABEL_CHARACTERS].encode("utf-8", "backslashreplace").decode()
