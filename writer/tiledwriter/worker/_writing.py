"""The thread that writes one run from its journal to Tiled, resuming where it stopped.

`RunWriting._write_or_fail` decides that a run is put in quarantine because of an error.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from tiledbroker import Journal, Record
from tiledbroker._crash_points import crash_point
from tiledbroker._errors import StoreUnavailable
from tiledbroker._outcomes import FAILED, INTERRUPTED, WRITTEN
from tiledbroker._rate_limited_log import RateLimitedLog
from tiledbroker._wording import as_sentence
from tiledbroker.ownership import DecisionStore

from .._errors import ColumnsRefused, ColumnsTooNarrow, FoldAgain, MimetypeRefused, OperationRefused, Stopped, describe
from ..catalog import Client, Connection, Decisions, RequestCounts, TiledCatalog, WriteSlot
from ..mapping import BATCH_BYTES, Fold, FoldPlan, Operation, WritingOptions, fold_until_planned
from ._prefetch import FoldedBatch, FoldPrefetch
from ._record_buffer import RecordBuffer
from ._run_outage import RunOutage

log = logging.getLogger(__name__)

# Operations that may wait until a node is quiet while others continue; beyond this, no further documents are taken.
MAX_BLOCKED_OPERATIONS: Final = 32
STORE_RETRY_PAUSE_SECONDS: Final = 1.0
"""Seconds after which the journal, or the store of decisions, is tried again."""
STOP_WAIT_SECONDS: Final = 15.0
"""Seconds to wait for the journal's next document when Tiled already has the run's stop document."""

_SHORTEST_POLL_SECONDS: Final = 0.25
_LONGEST_POLL_SECONDS: Final = 2.0
# While some nodes wait until they are quiet, others continue with documents that arrive meanwhile.
_LONGEST_PAUSE_SECONDS: Final = 0.5


class RunWriting:
    """Writes one run until it is complete, has failed, or the process ends.

    `start` starts the thread; `stop` ends and joins it. `notify` announces new documents in the journal and passes them
    on.

    Parameters
    ----------
    journal
        Journal of the run, which also records progress and history.
    connect
        Returns the `tiled.client` container to write into.
    options
        Options for writing runs.
    drain
        End when everything in the journal is written, even if the run is open.
    on_progress
        Called in the writing thread with the index up to which documents are in Tiled.
    on_end
        Called in the writing thread with the outcome ("written", "interrupted", "failed", or "" for none) and its
        reason.
    on_reached
        Called when Tiled answers for the first time, again after it was away, and now and then while it answers.
    on_unreachable
        Called when Tiled begins to refuse requests because it is away, or does so for another reason, with the Unix
        time since which it does, the reason, and whether only a person can end this. If it is None, this is logged.
    write_slot
        Permission to write to Tiled, if other workers write, too.
    decision_store
        Where other hosts find the decisions about the run; None if none can take it over.
    """

    def __init__(
        self,
        journal: Journal,
        connect: Callable[[], Client],
        options: WritingOptions,
        *,
        drain: bool,
        on_progress: Callable[[int], None],
        on_end: Callable[[str, str], None],
        on_reached: Callable[[], None] = lambda: None,
        on_unreachable: Callable[[float, str, bool], None] | None = None,
        write_slot: WriteSlot | None = None,
        decision_store: DecisionStore | None = None,
    ) -> None:
        self._journal = journal
        self._decisions = Decisions(journal, decision_store)
        self._options = options
        self._drain = drain
        self._on_progress = on_progress
        self._on_end = on_end
        self._stopping = threading.Event()
        self._record_buffer = RecordBuffer(BATCH_BYTES)
        self._prefetch: FoldPrefetch | None = None
        self._connection = Connection(
            connect,
            self._stopping,
            self._report_tiled,
            poison_after=options.poison_after,
            write_slot=write_slot,
            on_reached=self._note_answer,
            log_outages=on_unreachable is None,
        )
        self._write_slot = write_slot
        self._outage = RunOutage(journal)
        self._on_reached = on_reached
        self._on_unreachable = on_unreachable or (lambda _since, _reason, _needs_person: None)
        self._limited_log = RateLimitedLog(log)
        self._reported_cursor = -1
        self._has_concluded = False
        self._blocked_by = ""
        self._thread = threading.Thread(target=self._run, name="tiledwriter-writing", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread; abandon a request in flight after `timeout` seconds."""
        self._stopping.set()
        if self._prefetch is not None:
            self._prefetch.close()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def notify(self, records: Sequence[Record] = ()) -> None:
        """Announce new documents in the journal, of which `records` are the last."""
        self._record_buffer.put_records(records)

    @property
    def has_concluded(self) -> bool:
        """Whether the outcome of a complete run was recorded. It does not change within a journal's transaction."""
        return self._has_concluded

    @property
    def counts(self) -> RequestCounts:
        """Counts of the requests to Tiled, and the last signs of it."""
        return self._connection.counts

    @property
    def waits_for(self) -> str:
        """What the writing waits for, as a sentence; "" if it does not wait."""
        if problem := self._connection.counts.problem:
            return f"Tiled does not accept requests: {problem}"
        return self._connection.stuck or self._blocked_by

    @property
    def unavailable_since(self) -> float | None:
        """Time (`time.monotonic`) since which Tiled has accepted no requests; None while it does."""
        return self._connection.unavailable_since

    def _report_tiled(self, event: str, *, reason: str = "", away: bool = False, needs_person: bool = False) -> None:
        """Record that Tiled refuses requests, or accepts them again; tell of an outage."""
        if event == "resumed":
            self._outage.end_outage()
            return
        since = self._outage.note_refusal(reason, away=away)
        if away:
            self._on_unreachable(since, reason, needs_person)

    def _note_answer(self) -> None:
        self._outage.note_answer()
        self._on_reached()

    def _run(self) -> None:
        outcome, reason = "", ""
        try:
            while not self._stopping.is_set():
                try:
                    result = self._write_or_fail()
                    if result is not None:
                        outcome, reason = result
                        break
                except (sqlite3.OperationalError, StoreUnavailable) as error:
                    # Restart from the journal: progress that it could not record is determined again.
                    self._wait_for_store(error)
        except Stopped:
            pass
        finally:
            self._rest()
            self._on_end(outcome, reason)

    def _wait_for_store(self, error: sqlite3.OperationalError | StoreUnavailable) -> None:
        if isinstance(error, StoreUnavailable):
            text = (
                f"What is decided about run {self._journal.run_uid} cannot be kept where other hosts find it: {error}"
            )
        else:
            text = f"{self._journal.path} cannot be written: {error}"
        self._limited_log.log(logging.ERROR, "disk", "%s", text)
        self._blocked_by = as_sentence(text)
        self._rest()
        self._stopping.wait(STORE_RETRY_PAUSE_SECONDS)

    def _write_or_fail(self) -> tuple[str, str] | None:
        """Write, and return the outcome and its reason as recorded in the journal; None if there is more to write."""
        try:
            outcome, reason, detail = self._write_run(), "", {}
        except (Stopped, sqlite3.OperationalError, StoreUnavailable):
            raise
        except Exception as error:
            if self._stopping.is_set():
                # The main thread may have closed the journal during this, so the error says nothing about the run.
                raise Stopped(str(error)) from error
            if isinstance(error, OperationRefused) and self._connection.distrust_server():
                # Since another worker connected, the server may have been replaced, or the container removed. That is
                # for a person to fix, as the connection says, and not the run's fault.
                log.warning("%s This worker connects to Tiled by itself and tries again.", as_sentence(str(error)))
                return None
            log.exception("Run %s cannot be written.", self._journal.run_uid)
            outcome, reason, detail = FAILED, f"{type(error).__name__}: {error}", describe(error)
        if outcome and not self._record_outcome(outcome, reason, **detail):
            return None
        return outcome, reason

    def _record_outcome(self, outcome: str, reason: str, **detail: Any) -> bool:
        """Record the outcome; return False if documents have come after the end, so that it is none."""
        if outcome != FAILED:
            # Not within the transaction, which keeps documents from being journaled.
            self._decisions.share(outcome=outcome)
        try:
            with self._journal.atomic():
                self._outage.end_outage()
                if outcome == INTERRUPTED and self._journal.length > self._reported_cursor:
                    return False
                self._journal.set("outcome", outcome)
                self._journal.set("reason", reason or None)
                # Requests whose answers were lost may still be carried out, so the run must be audited once more.
                late = outcome != FAILED and self._journal.get("late_audit")
                self._journal.set("audit_at", time.time() + self._options.late_audit if late else None)
                self._journal.set("late_audit", None)
                self._journal.note(outcome, documents=self._journal.length, **detail)
                self._has_concluded = outcome != FAILED
        except BaseException:
            self._has_concluded = False
            raise
        crash_point("writing: outcome recorded")
        return True

    def _write_run(self) -> str:
        self._decisions.load()
        self._blocked_by = ""
        # Every replay must yield the same operations.
        if self._decisions.made.max_array_size is None:
            self._decisions.record(max_array_size=self._options.max_array_size)
        catalog = TiledCatalog(
            self._connection, self._journal, self._decisions, quiet_period=self._options.quiet_period
        )
        return fold_until_planned(
            FoldPlan.of(self._decisions.made, self._options.max_array_size),
            lambda plan: self._follow_journal(Fold.of(self._journal, self._options, plan), catalog),
            self._record_plan,
        )

    def _record_plan(self, error: FoldAgain, plan: FoldPlan) -> None:
        """Record what the next fold of the run needs."""
        if isinstance(error, ColumnsRefused):
            self._decisions.record(max_array_size=plan.max_array_size)
            self._journal.note("no list columns", reason=str(error))
        elif isinstance(error, ColumnsTooNarrow):
            self._decisions.record(column_types=plan.decided_types)
            crash_point("writing: columns to be widened")
            self._journal.note("wider columns", columns=[[*where, kind] for where, kind in error.needed.items()])
        elif isinstance(error, MimetypeRefused):
            self._decisions.record(refused_mimetypes=list(plan.refused_mimetypes))
            self._journal.note("mimetype refused", mimetype=error.mimetype, reason=str(error))

    def _follow_journal(self, fold: Fold, catalog: TiledCatalog) -> str:
        """Fold and write documents until the run has ended; return the outcome."""
        waiting: list[Operation] = []
        poll = _SHORTEST_POLL_SECONDS
        latest_document = time.monotonic()
        with FoldPrefetch(fold, self._journal, self._record_buffer) as prefetch:
            self._prefetch = prefetch
            while not self._stopping.is_set():
                if len(waiting) <= MAX_BLOCKED_OPERATIONS and prefetch.accepts_more:
                    folded = self._take_batch(prefetch, wait=not (self._drain or waiting or catalog.waits_for_stop))
                    waiting += folded.operations
                    if folded.normalized:
                        self._journal.store_normalized(folded.normalized)
                        crash_point("writing: normalized documents recorded")
                    if folded.documents:
                        latest_document = time.monotonic()
                if folded.too_narrow:
                    raise ColumnsTooNarrow(folded.too_narrow)
                before, waiting = len(waiting), catalog.apply(waiting)
                self._blocked_by = _describe_blocks(waiting, catalog)
                self._rest()
                if waiting:
                    self._stopping.wait(min(catalog.choose_pause(poll), _LONGEST_PAUSE_SECONDS))
                    poll = min(_LONGEST_POLL_SECONDS, 1.5 * poll) if len(waiting) == before else _SHORTEST_POLL_SECONDS
                    continue
                poll = _SHORTEST_POLL_SECONDS
                if folded.error is not None:
                    raise folded.error
                if catalog.waits_for_stop and not self._journal.ended and not folded.documents:
                    if time.monotonic() - latest_document > STOP_WAIT_SECONDS:
                        catalog.raise_tiled_has_more()
                    self._stopping.wait(_SHORTEST_POLL_SECONDS)
                if folded.cursor != self._reported_cursor:
                    self._reported_cursor = folded.cursor
                    self._on_progress(folded.cursor)
                if folded.finished:
                    # The journal may have got a stop document since the end of the fold.
                    return WRITTEN if folded.stopped else INTERRUPTED
                if not folded.documents and self._drain:
                    return ""
        raise Stopped("Stopped on request.")

    def _take_batch(self, prefetch: FoldPrefetch, *, wait: bool) -> FoldedBatch:
        """Return the next batch, with all documents that arrive until this worker may write."""
        if wait and self._write_slot is not None:
            prefetch.wait_for_some()
            # A document that can never be written must not wait for Tiled.
            if not prefetch.is_complete:
                self._connection.open()
                self._write_slot.acquire(self._stopping)
        return prefetch.take_batch(wait=wait)

    def _rest(self) -> None:
        if self._write_slot is not None:
            self._write_slot.rest()


def _describe_blocks(waiting: Sequence[Operation], catalog: TiledCatalog) -> str:
    """Return why the catalog does not apply operations, as a sentence; "" if it applies all of them."""
    if waiting:
        path = waiting[0].path
        return f"It is not certain what Tiled has of {path}; it is continued once that has not changed for a while."
    if catalog.waits_for_stop:
        return "Tiled has a stop document of this run that the journal lacks; further documents may bring it."
    return ""
