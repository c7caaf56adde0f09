"""Schedule of late audits: when a worker compares a written run with its journal again, and when this is given up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from ..._wording import format_run_command
from .._clock import Instant
from ._effects import FileJournal, RecordEvent
from ._runs import MAX_DEATHS, Purpose, Run, Worker

if TYPE_CHECKING:
    from .._journal_facts import JournalFacts

log = logging.getLogger(__name__)

PAUSE_AFTER_FIRST_DEATH_SECONDS: Final = 5.0
# Seconds until the next attempt at an audit that could not be done for another reason.
PUT_OFF_SECONDS: Final = 60.0


class AuditSchedule:
    """Audit times and consecutive worker deaths by run uid. Times are Unix times, as in journals.

    Parameters
    ----------
    drain
        Leave audits that are not due yet to the next supervisor.
    """

    def __init__(self, *, drain: bool = False) -> None:
        self._drain = drain
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

    def schedule_unless_draining(self, uid: str, at: float, now: Instant) -> None:
        """Schedule an audit of the run at Unix time `at`, unless it is to be left to the next supervisor."""
        if not self._drain or at <= now.unix:
            self.schedule(uid, at)
        else:
            log.warning("Run %s is to be audited later; the next supervisor does so.", uid)

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

    def plan_next(
        self,
        run: Run,
        worker: Worker,
        facts: JournalFacts,
        now: Instant,
        *,
        died: bool = False,
        is_stopping: bool = False,
    ) -> list[FileJournal | RecordEvent]:
        """Schedule the audit of a written run if its journal asks for one, or give it up; file the journal otherwise.

        Parameters
        ----------
        run
            A run all of whose documents are in Tiled.
        worker
            Its worker, which has ended.
        facts
            What its journal says now.
        now
            The time.
        died
            The worker died.
        is_stopping
            The supervisor ends. The next one reads the journal.
        """
        wanted = now.unix + PUT_OFF_SECONDS if facts.unavailable else facts.audit_at
        if wanted is None:
            self.discard(run.uid)
            return [FileJournal(run.journal)] if facts.complete else []
        if is_stopping:
            return []
        pause = self.pause_after(run.uid, died=died) if worker.purpose is Purpose.AUDIT else 0.0
        if pause is None:
            return [self._give_up(run)]
        self.schedule_unless_draining(run.uid, max(wanted, now.unix + pause), now)
        return []

    def _give_up(self, run: Run) -> RecordEvent:
        reason = f"its worker died {MAX_DEATHS} times in a row"
        log.error(
            "Run %s is written, but its late audit is given up: %s. The next supervisor tries it again. To compare the "
            "run with Tiled, give the service's --config or --tiled to `%s`",
            run.uid,
            reason,
            format_run_command("verify", run.uid, run.journal, run.journal.parent),
        )
        return RecordEvent(run.journal, "audit given up", {"reason": reason})
