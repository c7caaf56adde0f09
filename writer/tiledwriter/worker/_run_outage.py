"""What a run's journal says of an outage of Tiled: one entry of the history, whatever number of workers meet it.

The entry is revised while the outage lasts, by each worker that tries, also after a restart of the supervisor.
"""

from __future__ import annotations

import time

import msgspec

from tiledbroker import Journal
from tiledbroker.log import OutageState, read_outage, record_outage


class RunOutage:
    """The outage of Tiled that a run meets at present, if any, as its journal records it.

    Each method is one transaction, and raises `sqlite3.OperationalError` if the disk does not take it.

    Parameters
    ----------
    journal
        Journal of the run, open for writing.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def note_worker(self) -> bool:
        """Count another worker if there is an outage; return False if there is none."""
        outage = read_outage(self._journal)
        if outage is not None:
            self._revise_entry(msgspec.structs.replace(outage, workers=outage.workers + 1))
        return outage is not None

    def note_refusal(self, reason: str, *, away: bool) -> float:
        """Note why Tiled refuses requests, and whether it is away; return the Unix time since which it refuses some."""
        outage = read_outage(self._journal)
        if outage is None:
            with self._journal.atomic():
                entry = self._journal.note("waiting", reason=reason)
                outage = OutageState(entry=entry, since=time.time(), reason=reason, away=away)
                record_outage(self._journal, outage)
        elif (outage.reason, outage.away) != (reason, away):
            self._revise_entry(msgspec.structs.replace(outage, reason=reason, away=away))
        return outage.since

    def note_parking(self) -> None:
        """Count that a worker has ended because only Tiled's absence keeps the run from being written."""
        if read_outage(self._journal) is None:
            self.note_refusal("Tiled is unavailable", away=True)
        outage = read_outage(self._journal)
        if outage is not None:
            self._revise_entry(msgspec.structs.replace(outage, parked=outage.parked + 1))

    def note_answer(self) -> None:
        """Note that Tiled has answered a request, though perhaps not the one that it refuses."""
        outage = read_outage(self._journal)
        if outage is not None and outage.away:
            self.end_outage()

    def end_outage(self) -> None:
        """Note that Tiled carries requests out again, or that the run needs no more."""
        outage = read_outage(self._journal)
        if outage is not None:
            seconds = round(time.time() - outage.since, 1)
            with self._journal.atomic():
                record_outage(self._journal, None)
                self._journal.note("resumed", seconds=seconds, workers=outage.workers, parked=outage.parked)

    def _revise_entry(self, outage: OutageState) -> None:
        with self._journal.atomic():
            record_outage(self._journal, outage)
            self._journal.revise_note(outage.entry, reason=outage.reason, workers=outage.workers, parked=outage.parked)
