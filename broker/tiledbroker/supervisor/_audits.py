"""Runs that are written and wait to be looked at once more: when, and how often that has killed a worker."""

from __future__ import annotations

from typing import Final

from ._runs import MAX_DEATHS

FIRST_PAUSE: Final = 5.0  # after a death; each further one doubles it
PUT_OFF: Final = 60.0


class Audits:
    """Late audits by run uid. Times are Unix times, as in journals."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._deaths: dict[str, int] = {}  # in a row

    def __len__(self) -> int:
        return len(self._at)

    def plan(self, uid: str, at: float) -> None:
        """The run is to be looked at then."""
        self._at[uid] = at

    def take(self, now: float) -> str | None:
        """A run whose time has come, which then waits no more."""
        uid = next((uid for uid, at in self._at.items() if at <= now), None)
        if uid is not None:
            del self._at[uid]
        return uid

    def pause_after(self, uid: str, *, died: bool) -> float | None:
        """Seconds until the run whose audit came to nothing may be looked at again; None if it is given up."""
        before = self._deaths.pop(uid, 0)
        if not died:
            return PUT_OFF
        deaths = before + 1
        if deaths >= MAX_DEATHS:
            return None
        self._deaths[uid] = deaths
        return FIRST_PAUSE * 2.0**before

    def discard(self, uid: str) -> None:
        """The run has been looked at."""
        self._at.pop(uid, None)
        self._deaths.pop(uid, None)
