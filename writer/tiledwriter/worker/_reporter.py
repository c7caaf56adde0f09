"""Decides when the worker reports to the supervisor what only it knows, and puts the report together."""

from __future__ import annotations

from typing import Final, Protocol

from tiledbroker import Journal, JournalInvalid
from tiledbroker.log import read_start_label
from tiledbroker.protocol import messages

from ..catalog import CountedRequests, RequestCounts

REPORT_SECONDS: Final = 1.0
"""Shortest time between two reports, unless something has changed."""


class Reported(Protocol):
    """What is reported of the writing of a run; see `RunWriting`."""

    @property
    def counts(self) -> RequestCounts: ...
    @property
    def waits_for(self) -> str: ...


class Reporter:
    """Makes the reports of one worker.

    Parameters
    ----------
    journal
        Journal of the run.
    writing
        Writing of the run.
    """

    def __init__(self, journal: Journal, writing: Reported) -> None:
        self._journal = journal
        self._writing = writing
        self._label: tuple[int | str | None, str | None] | None = None
        self._told: tuple[object, ...] = ()
        self._counted = CountedRequests()
        self._next_at = 0.0

    def next_report(self, now: float, *, last: bool = False) -> messages.Report | None:
        """Return the report that is due; None if there is nothing new, or little and the last report was just made.

        Parameters
        ----------
        now
            Time (`time.monotonic`).
        last
            No other report follows, so leave nothing for it.
        """
        if self._label is None and self._journal.length:
            self._label = self._read_label()
        counts = self._writing.counts
        conditions = (self._label, counts.version, counts.problem, self._writing.waits_for)
        if conditions == self._told and now < self._next_at and not last:
            return None
        counted = counts.take()
        if conditions == self._told and counted.is_empty:
            return None
        self._told = conditions
        self._next_at = now + REPORT_SECONDS
        return self._make_report(counted)

    def _make_report(self, counted: CountedRequests) -> messages.Report:
        scan_id, plan = self._label or (None, None)
        counts = self._writing.counts
        return messages.Report(
            self._journal.run_uid,
            scan_id,
            plan,
            counts.address,
            counts.version,
            counts.answered_at,
            counts.failed_at,
            counts.written_at,
            counts.problem,
            counts.needs_person,
            self._writing.waits_for,
            counted.requests,
            counted.retries,
            counted.latencies,
            counted.latency_sum,
            counts.answered_monotonic,
            counts.failed_monotonic,
            counts.written_monotonic,
        )

    def _read_label(self) -> tuple[int | str | None, str | None]:
        try:
            start = next(iter(self._journal.read(0, 1)), None)
        except JournalInvalid:
            # The writing puts the run in quarantine.
            return None, None
        return (None, None) if start is None else read_start_label(start.body)
