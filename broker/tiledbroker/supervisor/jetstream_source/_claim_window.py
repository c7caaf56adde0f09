"""The claim window: how many runs that have ended a host takes on before it has written those that it has.

Runs that are going on are claimed at once, as somebody may be looking at them. Runs that have ended can wait in the
log, where each host can get them: a host that claims all of them reads all, has a worker for each, and asks Tiled about
each, and if it is lost, the next host does the same again.

Reads no clock.
"""

from __future__ import annotations

from collections import deque
from typing import Final

MIN_RUNS: Final = 8
"""Ended runs that a host takes on without having written any lately."""
WRITTEN_SECONDS: Final = 10.0
"""A host takes on as many ended runs as it has completed within this time."""
STUCK_SECONDS: Final = 5.0
"""Time after which a host takes on one more run, whatever it has: some runs may wait for a Tiled of their own."""


class ClaimWindow:
    """Tells how many ended runs may be claimed now. Times are seconds of any clock that does not go back."""

    def __init__(self) -> None:
        self._written_at: deque[float] = deque()
        self._claimed_at = float("-inf")

    def note_written(self, now: float) -> None:
        """Note that a run is complete."""
        self._written_at.append(now)

    def note_claimed(self, now: float) -> None:
        """Note that runs are claimed."""
        self._claimed_at = now

    def find_room(self, in_hand: int, now: float) -> int:
        """Return how many more runs to claim beside those that this host has and has not written."""
        while self._written_at and self._written_at[0] <= now - WRITTEN_SECONDS:
            self._written_at.popleft()
        room = max(MIN_RUNS, len(self._written_at)) - in_hand
        if room <= 0 and now >= self._claimed_at + STUCK_SECONDS:
            return 1
        return max(0, room)
