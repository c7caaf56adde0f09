"""The claim window: how many runs that have ended a host takes on before it has written those that it has.

Runs that are going on are claimed at once, as somebody may be looking at them. Runs that have ended can wait in the
log, where each host can get them: a host that claims all of them reads all, has a worker for each, and asks Tiled about
each, and if it is lost, the next host does the same again.

Reads no clock.
"""

from __future__ import annotations

from collections import deque
from typing import Final

MIN_RUNS: Final = 4
"""Ended runs that a host takes on without having written any lately."""
WRITTEN_SECONDS: Final = 10.0
"""A host takes on as many ended runs as it has completed within this time."""
FIRST_STUCK_SECONDS: Final = 5.0
"""Time after which a host that has its share takes on one more run: what it has may wait for a Tiled of its own."""
MAX_STUCK_SECONDS: Final = 60.0
"""That time is doubled for each further run, up to this one."""


class ClaimWindow:
    """Tells how many ended runs may be claimed now. Times are seconds of any clock that does not go back."""

    def __init__(self) -> None:
        self._written_at: deque[float] = deque()
        self._written = 0
        self._stuck_seconds = FIRST_STUCK_SECONDS
        # When one more run is taken on, whatever this host has.
        self._stuck_at = float("-inf")

    def note_written(self, now: float) -> None:
        """Note that a run is complete."""
        self._forget_old(now)
        self._written_at.append(now)
        self._written += 1

    def _forget_old(self, now: float) -> None:
        while self._written_at and self._written_at[0] <= now - WRITTEN_SECONDS:
            self._written_at.popleft()

    def take_room(self, in_hand: int, now: float) -> int:
        """Return how many runs the caller may claim now, which it does as far as there are any.

        Parameters
        ----------
        in_hand
            Ended runs that this host has or wants, and has not written.
        now
            The time.
        """
        self._forget_old(now)
        # For each run that was written lately, another one is taken on, whatever else waits.
        more, self._written = min(self._written, len(self._written_at)), 0
        room = max(MIN_RUNS, len(self._written_at)) - in_hand
        if room > 0:
            self._stuck_seconds = FIRST_STUCK_SECONDS
            self._stuck_at = now + self._stuck_seconds
        elif now >= self._stuck_at:
            self._stuck_seconds = min(2 * self._stuck_seconds, MAX_STUCK_SECONDS)
            self._stuck_at = now + self._stuck_seconds
            more += 1
        return max(room, more)
