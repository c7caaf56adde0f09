"""The outage of Tiled as the supervisor tells it: one line when it begins, one every ten minutes, one when it is over.

Workers say when Tiled refuses their requests and when it answers again. They end and others take their places during an
outage, but it stays the same one until Tiled has answered any of them. Nothing here reads a clock or a file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from .._clock import Instant
from ._texts import format_seconds, format_time

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 3.0
"""Age of an outage before it is reported; anything shorter is a hiccup."""
FLAPPING_GRACE_SECONDS: Final = 30.0
"""The same for an outage that begins less than `FLAPPING_SECONDS` after the last one."""
FLAPPING_SECONDS: Final = 60.0
REPORT_INTERVAL_SECONDS: Final = 600.0
"""Time between two reports of one outage."""
REFUSED_RUN_SECONDS: Final = 60.0
"""Time after which a run is named that Tiled refuses while it answers others. Longer than pauses between requests."""


class Backlog(NamedTuple):
    """What waits to be written.

    Attributes
    ----------
    runs
        Number of runs.
    documents
        Number of their documents that are in journals and are not known to be in Tiled.
    """

    runs: int
    documents: int

    def __str__(self) -> str:
        runs = f"{self.runs} run{'s' * (self.runs != 1)}"
        return f"{runs} with up to {self.documents} document{'s' * (self.documents != 1)}"


@dataclass
class _Refusal:
    """What the worker of a run said: since when Tiled refuses it, when it said so, and the reason."""

    began_at: float
    told_at: float
    reason: str
    needs_person: bool
    has_worker: bool = True


class TiledOutage:
    """The clock of the outage. Durations are by `time.monotonic`, as the host's clock may be set; `since` is Unix time.

    Attributes
    ----------
    since
        Unix time since which Tiled refuses requests; None while there is no outage.
    reason
        The latest reason that a worker has given; "" while there is no outage.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self.reason = ""
        self._refusals: dict[str, _Refusal] = {}
        # Runs named as refused while others are answered.
        self._named: set[str] = set()
        self._answered_at = self._ended_at = float("-inf")
        # When the outage began; infinite while there is none.
        self._began_at = float("inf")
        # Time of the next report; None before the first one.
        self._report_at: float | None = None
        self._needs_person = False

    def note_refusal(self, uid: str, since: float, reason: str, now: Instant, *, needs_person: bool = False) -> None:
        """Note that Tiled refuses the requests of a run since a Unix time; with `needs_person` until somebody acts."""
        began_at = now.monotonic - max(0.0, now.unix - since)
        self._refusals[uid] = _Refusal(began_at, now.monotonic, reason, needs_person)
        self._began_at = min(began_at, self._began_at)
        self.since = since if self.since is None else min(since, self.since)
        self.reason, self._needs_person = reason or self.reason, needs_person

    def note_parking(self, uid: str, now: Instant) -> None:
        """Note that the worker of a run has ended by itself because Tiled is away."""
        if uid not in self._refusals:
            # What the worker said of it was lost.
            self.note_refusal(uid, now.unix, "", now)
        self.note_worker_end(uid)

    def note_worker_end(self, uid: str) -> None:
        """Note that a run has no worker any more; what its worker said stays true until Tiled answers anybody."""
        if uid in self._refusals:
            self._refusals[uid].has_worker = False

    def note_answer(self, uid: str, now: Instant, measure: Callable[[], Backlog]) -> None:
        """Note that Tiled has answered the worker of a run, which ends the outage; `measure` returns what is left."""
        self._refusals.pop(uid, None)
        self._named.discard(uid)
        self._answered_at = now.monotonic
        if self.since is None:
            return
        if self._report_at is not None:
            log.info(
                "Tiled accepts requests again, after %s; %s are left to be written.",
                format_seconds(now.monotonic - self._began_at),
                measure(),
            )
            self._ended_at = now.monotonic
        self._report_at = None
        self._forget()
        # Those with a worker say themselves when they are answered.
        self._refusals = {uid: refusal for uid, refusal in self._refusals.items() if refusal.has_worker}

    def forget_run(self, uid: str) -> None:
        """Forget a run that has nothing left to write, or was given up."""
        self._refusals.pop(uid, None)
        self._named.discard(uid)
        if self.since is not None and self._report_at is None and not self._refusals:
            # It was never reported, and nobody is left to say that it is over.
            self._forget()

    def _forget(self) -> None:
        self.since, self._began_at, self.reason = None, float("inf"), ""

    def report(self, now: Instant, measure: Callable[[], Backlog]) -> None:
        """Log what there is to say now, if anything; `measure` returns what waits. Called once a second."""
        if self.since is not None:
            self._report_outage(self.since, now, measure)
        for uid, refusal in self._refusals.items():
            age = now.monotonic - refusal.began_at
            is_alone = refusal.told_at <= self._answered_at and age >= REFUSED_RUN_SECONDS
            if is_alone and uid not in self._named:
                self._named.add(uid)
                log.warning(
                    "Tiled has refused the requests of run %s for %s, and answers those of others: %s.",
                    uid,
                    format_seconds(age),
                    refusal.reason,
                )

    def _report_outage(self, since: float, now: Instant, measure: Callable[[], Backlog]) -> None:
        age = now.monotonic - self._began_at
        if self._report_at is None:
            is_flapping = now.monotonic - self._ended_at < FLAPPING_SECONDS
            if age < (FLAPPING_GRACE_SECONDS if is_flapping else GRACE_SECONDS):
                return
        elif now.monotonic < self._report_at:
            return
        self._report_at = now.monotonic + REPORT_INTERVAL_SECONDS
        log.log(
            logging.ERROR if self._needs_person else logging.WARNING,
            "Tiled has refused requests since %s (for %s%s); %s wait. Documents are journaled meanwhile.%s",
            format_time(since),
            format_seconds(age),
            f": {self.reason}" if self.reason else "",
            measure(),
            " Somebody has to act: this does not pass by itself." if self._needs_person else "",
        )
