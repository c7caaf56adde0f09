"""How long publishers let lone documents of a run wait for company, so that many runs do not use up the ingest host.

`messages.Durable` takes the pause to publishers, where `Shipment.due_at` keeps it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

MAX_PAUSE_SECONDS: Final = 0.5
"""Longest pause that publishers are asked for."""

_COMMITS_PER_RUN: Final = 10.0
"""The pause leaves time for so many commits of each other run. Most of it is for writing, which comes after them."""
_SMOOTHING: Final = 0.05
_LONGEST_SAMPLE_SECONDS: Final = 0.1
_RECOUNT_SECONDS: Final = 0.25


class Pacing:
    """Pause between two deliveries of few documents to a worker, from their cost and the number of runs.

    Each delivery wakes a worker, which commits a transaction, however few documents it brings. Alone, a run is not to
    wait at all. The cost is measured from delivery to acknowledgement, so it grows when the host is busy: the more
    there is to do, the larger the steps.

    Parameters
    ----------
    count_active
        Returns how many runs get documents at present, given the time.
    """

    def __init__(self, count_active: Callable[[float], int]) -> None:
        self._count_active = count_active
        self._commit_seconds = 0.0
        self._active = 0
        self._recount_at = float("-inf")
        # Time of the oldest delivery to each worker, by its number, that is not acknowledged.
        self._delivered: dict[int, float] = {}

    def note_delivery(self, number: int, now: float) -> None:
        """Note that documents were sent to a worker."""
        self._delivered.setdefault(number, now)

    def note_acknowledgement(self, number: int, now: float) -> None:
        """Note that a worker has acknowledged documents."""
        since = self._delivered.pop(number, None)
        if since is not None:
            self._commit_seconds += _SMOOTHING * (min(now - since, _LONGEST_SAMPLE_SECONDS) - self._commit_seconds)

    def forget(self, number: int) -> None:
        """Forget a worker that has ended."""
        self._delivered.pop(number, None)

    def find_pause(self, now: float) -> float:
        """Return the pause in seconds."""
        if now >= self._recount_at:
            self._recount_at = now + _RECOUNT_SECONDS
            self._active = self._count_active(now)
        return min(MAX_PAUSE_SECONDS, _COMMITS_PER_RUN * max(0, self._active - 1) * self._commit_seconds)
