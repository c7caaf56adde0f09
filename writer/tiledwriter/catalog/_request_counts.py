"""Counts of the requests to Tiled, and the last signs of it, for the status of the service."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx

from .._errors import Ambiguous, NotProcessed, NotTiled, Paused, Refused, ServerFailed

OK: Final = "ok"
"""Outcome of a request that Tiled carried out."""

_KEY_STATUSES: Final = ("401", "403")
_BUSY_STATUS: Final = "429"


def name_outcome(error: BaseException | None) -> str:
    """Return the name of a request's outcome, under which it is counted. `docs/reference/status.md` lists the names."""
    in_transport = error is not None and isinstance(error.__cause__, httpx.TransportError)
    match error:
        case None:
            return OK
        case Refused():
            return "refused"
        case ServerFailed():
            return "server_error"
        case NotTiled():
            return "not_tiled"
        case Paused():
            return "unauthorized" if str(error).startswith(_KEY_STATUSES) else "misconfigured"
        case NotProcessed():
            return "unreachable" if in_transport else "busy" if str(error).startswith(_BUSY_STATUS) else "unavailable"
        case Ambiguous():
            return "no_answer" if in_transport else "unavailable"
    return "other"


@dataclass(frozen=True)
class CountedRequests:
    """Requests since those before were taken; see `messages.Report` for the attributes."""

    requests: dict[str, int] = field(default_factory=dict)
    retries: dict[str, int] = field(default_factory=dict)
    latencies: list[int] = field(default_factory=list)
    latency_sum: float = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether there were none."""
        return not self.requests and not self.retries


class RequestCounts:
    """Counts of one connection. One thread counts, and another one may take the counts.

    Parameters
    ----------
    bounds
        Upper bounds of the buckets for durations in seconds, in ascending order.
    read_clocks
        Returns Unix time and `time.monotonic` in seconds.

    Attributes
    ----------
    address, version
        Address and version of Tiled; "" while they are not known.
    answered_at, failed_at, written_at
        Unix times of the last sign that Tiled accepts requests, of the last sign that it does not, and of the last
        write; None if there was none.
    answered_monotonic, failed_monotonic, written_monotonic
        The same by `time.monotonic`.
    problem
        Reason why it does not accept requests at the moment; "" if it does, or has not been asked.
    needs_person
        That reason will not pass by itself.
    """

    def __init__(
        self,
        bounds: Sequence[float],
        read_clocks: Callable[[], tuple[float, float]] = lambda: (time.time(), time.monotonic()),
    ) -> None:
        self.address = self.version = ""
        self.answered_at: float | None = None
        self.answered_monotonic: float | None = None
        self.failed_at: float | None = None
        self.failed_monotonic: float | None = None
        self.written_at: float | None = None
        self.written_monotonic: float | None = None
        self.problem = ""
        self.needs_person = False
        self._bounds = bounds
        self._read_clocks = read_clocks
        self._mutex = threading.Lock()
        self._clear_counts()

    def count_attempt(self, error: BaseException | None, *, is_write: bool) -> None:
        """Count a request by its outcome: the error that it ended with, or None."""
        with self._mutex:
            self._requests[name_outcome(error)] += 1
        if error is None and is_write:
            self.written_at, self.written_monotonic = self._read_clocks()

    def count_answer(self, seconds: float) -> None:
        """Count an answer, whatever it says, that came after so many seconds."""
        with self._mutex:
            self._latencies[bisect_left(self._bounds, seconds)] += 1
            self._latency_sum += seconds

    def count_retry(self, error: BaseException | None) -> None:
        """Count a request that is repeated because of `error`."""
        with self._mutex:
            self._retries[name_outcome(error)] += 1

    def note_presence(self, problem: str = "", *, needs_person: bool = False) -> None:
        """Note a sign that Tiled accepts requests, or with `problem` that it does not."""
        self.problem, self.needs_person = problem, needs_person
        if problem:
            self.failed_at, self.failed_monotonic = self._read_clocks()
        else:
            self.answered_at, self.answered_monotonic = self._read_clocks()

    def take(self) -> CountedRequests:
        """Return what was counted since the last call."""
        with self._mutex:
            taken = CountedRequests(dict(self._requests), dict(self._retries), self._latencies, self._latency_sum)
            self._clear_counts()
        return taken

    def _clear_counts(self) -> None:
        self._requests: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._latencies = [0] * (len(self._bounds) + 1)
        self._latency_sum = 0.0
