"""What the workers' reports say about Tiled, as one state: workers come and go, and an outage outlives them."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import Final, NamedTuple

from ...protocol import messages
from .._clock import Instant
from ._health import TILED_GRACE_SECONDS
from ._snapshot import Latency, TiledLook, TiledStatus

_BUCKETS: Final = len(messages.LATENCY_BOUNDS_SECONDS) + 1


class _Look(NamedTuple):
    """A request of the supervisor itself: why it had no answer, "" if it had one, and since when it is like that."""

    at: float
    since: float
    problem: str


class TiledReports:
    """Tiled as all workers together have found it.

    Times are those of `time.monotonic`, as the host's clock may be set at any time. They become Unix times by the clock
    of the moment at which the state is told.

    Tiled is reachable if the last sign of it was that it accepts requests, and not if it was that it does not.

    Parameters
    ----------
    address
        Address of Tiled as configured; "" if only the workers know it.

    Attributes
    ----------
    reachable
        Whether Tiled accepts requests; None while no worker has asked.
    since
        Time since which it does or does not; None while no worker has asked.
    problem
        Reason why it does not; "" if it does.
    needs_person
        That reason will not pass by itself.
    """

    def __init__(self, address: str = "") -> None:
        self.reachable: bool | None = None
        self.since: float | None = None
        self.problem = ""
        self.needs_person = False
        self._address = address
        self._version = ""
        self._answered_at: float | None = None
        self._failed_at: float | None = None
        self._written_at: float | None = None
        self._look: _Look | None = None
        self._requests: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._latencies = [0] * _BUCKETS
        self._latency_sum = 0.0

    def add(self, report: messages.Report) -> None:
        """Take a report in."""
        self._address = report.address or self._address
        self._version = report.version or self._version
        self._requests.update(report.requests)
        self._retries.update(report.retries)
        if len(report.latencies) == _BUCKETS:
            self._latencies = [known + new for known, new in zip(self._latencies, report.latencies, strict=True)]
            self._latency_sum += report.latency_sum
        self._written_at = _later(self._written_at, report.written_monotonic)
        failed_before = self._failed_at
        self._answered_at = _later(self._answered_at, report.answered_monotonic)
        self._failed_at = _later(self._failed_at, report.failed_monotonic)
        if self._failed_at != failed_before and report.problem:
            self._note_problem(report)
        if self._answered_at is not None and (self._failed_at is None or self._answered_at > self._failed_at):
            self._note_reachable(self._answered_at, reachable=True)
            self.problem, self.needs_person = "", False
        elif self._failed_at is not None:
            self._note_reachable(self._failed_at, reachable=False)

    def note_look(self, problem: str, now: float) -> None:
        """Note that the supervisor has asked: "", or the reason why there was no answer. Another thread may call it."""
        before = self._look
        lasts = before is not None and bool(before.problem) == bool(problem)
        self._look = _Look(now, before.since if before is not None and lasts else now, problem)

    def _note_problem(self, report: messages.Report) -> None:
        self.problem, self.needs_person = report.problem, report.needs_person

    def _note_reachable(self, at: float, *, reachable: bool) -> None:
        if self.reachable is not reachable:
            self.reachable, self.since = reachable, at

    @property
    def asked_at(self) -> float | None:
        """Time of the last sign of Tiled, good or bad; None if there was none."""
        return _later(self._answered_at, self._failed_at)

    def describe(self, now: Instant) -> TiledStatus:
        """Return the state for the snapshot."""
        look, shift = self._look, now.unix - now.monotonic
        away = self._find_absence(look)
        cumulative = list(accumulate(self._latencies))
        return TiledStatus(
            address=self._address or None,
            version=self._version or None,
            reachable=self.reachable if away is None else False,
            since=_shift(self.since if away is None else away.since, shift),
            asked=_shift(self.asked_at if away is None else away.at, shift),
            last_write=_shift(self._written_at, shift),
            problem=(self.problem or None) if away is None else away.problem,
            requests=dict(self._requests),
            retries=dict(self._retries),
            latency=Latency(
                list(zip(messages.LATENCY_BOUNDS_SECONDS, cumulative, strict=False)), self._latency_sum, cumulative[-1]
            ),
            look=None if look is None else _describe_look(look, shift),
        )

    def _find_absence(self, look: _Look | None) -> _Look | None:
        """Return the supervisor's look if it has had no answer for a while, and no worker has had one since."""
        if look is None or not look.problem or look.at - look.since < TILED_GRACE_SECONDS:
            return None
        return look if self.asked_at is None or self.asked_at < look.since else None


def _describe_look(look: _Look, shift: float) -> TiledLook:
    return TiledLook(look.at + shift, not look.problem, look.problem or None, look.since + shift)


def _shift(at: float | None, seconds: float) -> float | None:
    return None if at is None else at + seconds


def _later(one: float | None, other: float | None) -> float | None:
    return max((time for time in (one, other) if time is not None), default=None)
