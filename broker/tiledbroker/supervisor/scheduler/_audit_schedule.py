"""Schedule of late audits: when a worker compares a written run with its journal again."""

from __future__ import annotations

from typing import Final

from ._runs import MAX_DEATHS

PAUSE_AFTER_FIRST_DEATH_SECONDS: Final = 5.0
# Seconds until the next attempt at an audit that could not be done for another reason.
PUT_OFF_SECONDS: Final = 60.0


class AuditSchedule:
    """Audit times and consecutive worker deaths by run uid. Times are Unix times, as in journals."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        # No audit is due before; there may be none then either.
        self._none_before = float("inf")
        self._consecutive_deaths: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._at)

    def schedule(self, uid: str, at: float) -> None:
        """Schedule an audit of the run at Unix time `at`."""
        self._at[uid] = at
        self._none_before = min(self._none_before, at)

    def may_have_due(self, now: float) -> bool:
        """Return False if certainly no audit is due. It is asked all the time, and takes no time."""
        return now >= self._none_before

    def pop_due(self, now: float) -> str | None:
        """Remove and return a run whose audit is due, or None."""
        if not self.may_have_due(now):
            return None
        uid = next((uid for uid, at in self._at.items() if at <= now), None)
        if uid is not None:
            del self._at[uid]
        else:
            self._none_before = min(self._at.values(), default=float("inf"))
        return uid

    def pause_after(self, uid: str, *, died: bool) -> float | None:
        """Return the seconds to wait after an unfinished audit, or None to give up after `MAX_DEATHS` deaths.

        Each further death doubles the pause.
        """
        before = self._consecutive_deaths.pop(uid, 0)
        if not died:
            return PUT_OFF_SECONDS
        deaths = before + 1
        if deaths >= MAX_DEATHS:
            return None
        self._consecutive_deaths[uid] = deaths
        return PAUSE_AFTER_FIRST_DEATH_SECONDS * 2.0**before

    def discard(self, uid: str) -> None:
        """Forget the run: its audit is done."""
        self._at.pop(uid, None)
        self._consecutive_deaths.pop(uid, None)
