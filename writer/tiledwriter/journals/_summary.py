"""What a journal tells about its run, in words for a human."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tiledbroker import CodecError, HistoryEntry, RunReader, SpooledRun

from .._names import run_key
from .._plain_text import text_of
from ._run_files import reason_of

PARKED: Final = "parked"
UNREADABLE: Final = "unreadable"
DAMAGED: Final = "damaged"
SPOOLED: Final = "spooled"
STATES: Final = ("written", "interrupted", "failed", PARKED, "closing", "open", SPOOLED, DAMAGED, UNREADABLE)
"""All that can be said of a run, in the order in which totals name them; "damaged" only by `verify`."""

_LARGEST: Final = 2**63


@dataclass(frozen=True)
class RunSummary:
    """One run: what it is, how far it got, and why it waits.

    Attributes
    ----------
    started
        Unix time of the start document, in seconds.
    documents
        How many, by name; None if the file cannot be read.
    state
        "written", "interrupted", "failed", or "open", "closing" and "parked" before that; "unreadable" if the file
        cannot be read.
    rows
        Rows, or datums, that Tiled has confirmed, by node below the run; None if the file cannot be read.
    why
        What the run waits for, or why its file cannot be read; "" if it waits for nothing.
    worker
        Whether a process has the file open for writing; None if that cannot be told.
    """

    uid: str
    file: str
    plan: str
    scan_id: int | None
    started: float | None
    documents: dict[str, int] | None
    state: str
    why: str
    rows: dict[str, int] | None = field(default_factory=dict)
    worker: bool | None = False
    worker_starts: int | None = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def document_count(self) -> int | None:
        """Number of documents; None if the file cannot be read."""
        return None if self.documents is None else sum(self.documents.values())

    @property
    def row_count(self) -> int | None:
        """Number of rows that Tiled has confirmed; None if the file cannot be read."""
        return None if self.rows is None else sum(self.rows.values())


def unreadable(uid: str, file: str, why: str) -> RunSummary:
    """The summary of a run whose file, or of runs whose directory, cannot be read."""
    return RunSummary(uid, file, "", None, None, None, UNREADABLE, why, None, None, None)


def summarize(journal: RunReader) -> RunSummary:
    """The summary of a journal or spool file."""
    start = _start_document(journal)
    history = journal.history()
    worker, doubt = _worker_of(journal)
    if isinstance(journal, SpooledRun):
        state, why = _of_spooled(journal, worker=worker)
    else:
        state = _state(journal, history, worker=worker)
        why = _why(journal, state, history, worker=worker, doubt=doubt)
    prefix = f"{run_key(journal.run_uid)}/"
    scan_id = start.get("scan_id")
    started = start.get("time")
    return RunSummary(
        uid=journal.run_uid,
        file=str(journal.path),
        plan=text_of(start.get("plan_name", "")),
        scan_id=scan_id if isinstance(scan_id, int) and abs(scan_id) < _LARGEST else None,
        started=float(started) if isinstance(started, int | float) and abs(started) < _LARGEST else None,
        documents=journal.names(),
        state=state,
        why=why,
        rows={
            node.removeprefix(prefix): progress.rows for node, progress in journal.progress().items() if progress.rows
        },
        worker=worker,
        worker_starts=sum(entry.event == "worker started" for entry in history),
    )


def _start_document(journal: RunReader) -> dict[str, Any]:
    first = journal.read(0, 1)
    try:
        return first[0].document() if first else {}
    except CodecError:
        return {}


def _worker_of(journal: RunReader) -> tuple[bool | None, str]:
    """Whether a process has the file open for writing; None if that cannot be told, and why."""
    try:
        return journal.being_written, ""
    except OSError as error:
        return None, reason_of(error)


def _of_spooled(run: SpooledRun, *, worker: bool | None) -> tuple[str, str]:
    """Return what a run in a spool is, and what it waits for: whether it is in Tiled is not known here."""
    if damage := run.damage():
        return DAMAGED, damage[0]
    if worker:
        return SPOOLED, f"{run.holder} ships it to {run.destination}, or waits for it to be written"
    return SPOOLED, f"its session has ended; the next publisher for {run.destination} on {run.holder.host} ships it"


def _state(journal: RunReader, history: Sequence[HistoryEntry], *, worker: bool | None) -> str:
    outcome = journal.get("outcome")
    if outcome is not None:
        return str(outcome)
    if not worker and _last(history, "parked", "worker started", "retry requested") == "parked":
        return PARKED
    return "closing" if journal.ended else "open"


def _why(journal: RunReader, state: str, history: Sequence[HistoryEntry], *, worker: bool | None, doubt: str) -> str:
    if state == "failed":
        return f"in quarantine: {journal.get('reason', 'no reason was recorded')}"
    if state == "interrupted":
        return "the acquisition process ended without a stop document"
    if state == "written":
        return ""
    if state == PARKED:
        return "Tiled was away and all documents are here; a supervisor resumes the run when Tiled is back"
    if worker is None:
        return f"it cannot be told whether a process has it open: {doubt}"
    if not worker:
        return "no process has it open; the next supervisor or publisher that uses this directory goes on with it"
    return _why_at_work(journal, history)


def _why_at_work(journal: RunReader, history: Sequence[HistoryEntry]) -> str:
    for entry in reversed(history):
        if entry.event == "waiting":
            seconds = time.time() - entry.time
            return f"Tiled has refused requests for {seconds:.0f} s: {entry.detail.get('reason', '')}"
        if entry.event in ("resumed", "worker started"):
            break
    unresolved = [node for node, progress in journal.progress().items() if progress.intent is not None]
    if unresolved:
        return f"a request is in flight, or its outcome is being determined: {', '.join(unresolved)}"
    return "" if journal.ended else "waiting for documents"


def _last(history: Sequence[HistoryEntry], *events: str) -> str | None:
    """The last of these events."""
    return next((entry.event for entry in reversed(history) if entry.event in events), None)
