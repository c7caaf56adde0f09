"""An hour of throughput, lag and latency, from samples of the snapshot that this process takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, TypeVar

from tiledbroker.supervisor import Latency, Snapshot

from ._source import Observation

PERIOD_SECONDS: Final = 5.0
KEPT_SECONDS: Final = 3600.0

_MAX_SAMPLES: Final = int(KEPT_SECONDS / PERIOD_SECONDS)
_QUANTILE: Final = 0.95

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Sample:
    """What one snapshot says; all but `time` is None if it is not known.

    Attributes
    ----------
    time
        Unix time in seconds.
    started
        Unix time at which the supervisor started; counts of different starts cannot be compared.
    documents, written, size
        Documents made durable, documents written to Tiled and bytes made durable since the start.
    lag_documents, lag_bytes
        What the spools of all connected publishers hold.
    latency
        Durations of requests to Tiled since the start.
    """

    time: float
    started: float | None = None
    documents: int | None = None
    written: int | None = None
    size: int | None = None
    lag_documents: int | None = None
    lag_bytes: int | None = None
    latency: Latency | None = None


Columns = dict[str, list[float | None]]


class History:
    """A ring of samples."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=_MAX_SAMPLES)

    def add_observation(self, observation: Observation) -> None:
        """Keep what is plotted of an observation; one without an answer makes a gap."""
        last = self._samples[-1].time if self._samples else None
        if last is None or observation.now > last:
            self._samples.append(_sample_of(observation))

    def columns(self) -> Columns:
        """Return the columns of the plots: `time`, and values that are None where they are not known.

        Rates are per second, between a sample and the one before it; durations are in seconds.
        """
        return columns_of(list(self._samples))


def columns_of(samples: list[Sample]) -> Columns:
    """Return the columns of consecutive samples; the first sample has no rates."""
    result: Columns = {name: [] for name in _COLUMNS}
    for before, after in pairwise(samples):
        seconds = after.time - before.time
        # After a restart of the supervisor, or a gap, nothing is known of the time between.
        same = before.started is not None and before.started == after.started and 0 < seconds < 10 * PERIOD_SECONDS
        rate = 1 / seconds if same else None
        mean, quantile = _latency_between(before.latency, after.latency) if same else (None, None)
        values = (
            after.time,
            _rate(before.documents, after.documents, rate),
            _rate(before.written, after.written, rate),
            _rate(before.size, after.size, rate),
            after.lag_documents,
            after.lag_bytes,
            mean,
            quantile,
        )
        for name, value in zip(_COLUMNS, values, strict=True):
            result[name].append(value)
    return result


_COLUMNS: Final = (
    "time",
    "documents_per_second",
    "written_per_second",
    "bytes_per_second",
    "lag_documents",
    "lag_bytes",
    "latency_mean",
    "latency_p95",
)


def _sample_of(observation: Observation) -> Sample:
    snapshot = observation.current
    if snapshot is None:
        return Sample(observation.now)
    return Sample(
        observation.now,
        snapshot.started,
        snapshot.totals.documents,
        snapshot.totals.written_documents,
        snapshot.totals.bytes,
        total_lag(snapshot)[0],
        total_lag(snapshot)[1],
        snapshot.tiled.latency,
    )


def total_lag(snapshot: Snapshot) -> tuple[int | None, int | None]:
    """Return documents and bytes in the spools of all connected publishers; None if one of them does not say."""
    documents = [publisher.lag_documents for publisher in snapshot.publishers]
    sizes = [publisher.lag_bytes for publisher in snapshot.publishers]
    return combine_if_known(sum, documents), combine_if_known(sum, sizes)


def combine_if_known(combine: Callable[[list[_Number]], _Number], values: Sequence[_Number | None]) -> _Number | None:
    """Return what `combine`, such as `sum`, makes of values; None if one of them is not known."""
    known = [value for value in values if value is not None]
    return combine(known) if len(known) == len(values) else None


def _rate(before: int | None, after: int | None, per_second: float | None) -> float | None:
    if before is None or after is None or per_second is None or after < before:
        return None
    return (after - before) * per_second


def _latency_between(before: Latency | None, after: Latency | None) -> tuple[float | None, float | None]:
    """Return mean and 95th percentile of the requests between two histograms; None without requests."""
    if before is None or after is None or len(before.buckets) != len(after.buckets):
        return None, None
    count = after.count - before.count
    if count <= 0:
        return None, None
    mean = max(after.sum - before.sum, 0.0) / count
    for (bound, total), (_, earlier) in zip(after.buckets, before.buckets, strict=True):
        if total - earlier >= _QUANTILE * count:
            return mean, bound
    return mean, None
