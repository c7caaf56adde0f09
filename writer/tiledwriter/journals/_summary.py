"""Summary of a run from its journal or spool file: documents, progress, state and reason for waiting."""

from __future__ import annotations

import stat
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from tiledbroker import CodecError, HistoryEntry, RunReader, SpooledRun
from tiledbroker._outcomes import FAILED, INTERRUPTED, WRITTEN
from tiledbroker.log import ReleasedSpoolFile, read_outage

from .._names import run_key
from .._plain_text import text_of
from ._run_files import is_superseded, reason_of, status_of

PARKED: Final = "parked"
UNREADABLE: Final = "unreadable"
DAMAGED: Final = "damaged"
SPOOLED: Final = "spooled"
REFUSED: Final = "refused"
STATES: Final = (WRITTEN, INTERRUPTED, FAILED, REFUSED, PARKED, "closing", "open", SPOOLED, DAMAGED, UNREADABLE)
"""All states of a run, in the order in which totals list them.

A journal is "damaged" only for `verify`, and if no supervisor uses it: it has the name of another run, or is
unfinished and in the folder of finished runs.

Only runs in a site's log are "refused".
"""

WRITTEN_WITHOUT_STOP: Final = "the journal says that it is written, but its last document is no stop document"

_MAX_NUMBER: Final = 2**63


@dataclass(frozen=True)
class RunSummary:
    """Summary of one run: identity, progress, and reason for waiting.

    Attributes
    ----------
    uid
        Uid of the run.
    file
        Path of the journal, or of a segment of the spool.
    plan
        Name of the plan; "" if the start document has none.
    scan_id
        Scan id; None if the start document has no usable one.
    started
        Unix time of the start document, in seconds; None if it has no usable one.
    documents
        Number of documents by name; None if the file cannot be read.
    state
        One of `STATES`: of a journal, "open", "closing" or "parked", and finally "written", "interrupted" or "failed";
        of a spooled run, "spooled" or "damaged"; "damaged" if the file has the name of another run, or is in the folder
        of finished runs and unfinished; "unreadable" if it cannot be read.
    why
        Reason why the run waits or ended without being written, or why its file cannot be read; "" if there is none.
    rows
        Number of rows, or datums, that Tiled has confirmed, by node below the run; None if the file cannot be read.
    worker
        True if a process has the file open for writing; None if unknown.
    worker_starts
        Number of worker starts in the history; None if the file cannot be read.
    size
        Size of the run's files in bytes; None if unknown.
    destination
        URL of the supervisor that a spooled run is for; None if unknown, and for journals.
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
    size: int | None = None
    destination: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the attributes as a dictionary of JSON types."""
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
    """Return the summary of a run whose file, or of runs whose directory, cannot be read."""
    return RunSummary(uid, file, "", None, None, None, UNREADABLE, why, None, None, None, _size_of([Path(file)]))


def summarize(journal: RunReader) -> RunSummary:
    """Return the summary of a journal or spool file."""
    start = _start_document(journal)
    history = journal.history()
    worker, doubt = _worker_of(journal)
    if isinstance(journal, SpooledRun):
        state, why = _of_spooled(journal, worker=worker, doubt=doubt)
    elif isinstance(journal, ReleasedSpoolFile) and journal.tail_damage:
        state, why = DAMAGED, journal.tail_damage
    else:
        state = _run_state(journal, history, worker=worker)
        why = _state_reason(journal, state, history, worker=worker, doubt=doubt)
    prefix = f"{run_key(journal.run_uid)}/"
    scan_id = start.get("scan_id")
    started = start.get("time")
    return RunSummary(
        uid=journal.run_uid,
        file=str(journal.path),
        plan=text_of(start.get("plan_name", "")),
        scan_id=scan_id if isinstance(scan_id, int) and abs(scan_id) < _MAX_NUMBER else None,
        started=float(started) if isinstance(started, int | float) and abs(started) < _MAX_NUMBER else None,
        documents=journal.names(),
        state=state,
        why=why,
        rows={
            node.removeprefix(prefix): progress.rows for node, progress in journal.progress().items() if progress.rows
        },
        worker=worker,
        worker_starts=sum(entry.event == "worker started" for entry in history),
        size=_size_of(_files_of(journal)),
        destination=journal.destination if isinstance(journal, SpooledRun) else None,
    )


def _files_of(journal: RunReader) -> list[Path]:
    if isinstance(journal, SpooledRun):
        return journal.files
    return [journal.path, journal.path.with_name(journal.path.name + "-wal")]


def _size_of(files: Sequence[Path]) -> int | None:
    """Return the total size of files in bytes, ignoring others; None if none is there or one may not be seen."""
    try:
        found = [status for status in map(status_of, files) if status is not None]
    except OSError:
        return None
    sizes = [status.st_size for status in found if stat.S_ISREG(status.st_mode)]
    return sum(sizes) if sizes else None


def _start_document(journal: RunReader) -> dict[str, Any]:
    first = journal.read(0, 1)
    try:
        return first[0].document() if first else {}
    except CodecError:
        return {}


def _worker_of(journal: RunReader) -> tuple[bool | None, str]:
    """Return True if a process has the file open for writing, or None and the reason if that is unknown."""
    try:
        return journal.being_written, ""
    except OSError as error:
        return None, reason_of(error)


def _of_spooled(run: SpooledRun, *, worker: bool | None, doubt: str) -> tuple[str, str]:
    """Return the state of a spooled run and the reason for waiting; the spool does not know its state in Tiled."""
    if damage := run.damage():
        return DAMAGED, damage[0]
    if run.misnamed:
        return SPOOLED, f"no publisher ships it: {run.misnamed}"
    if worker:
        kept = "it is kept until it is in Tiled, also while it is in quarantine; the ingest host knows its state"
        return SPOOLED, f"{run.holder} ships it to {run.destination}; {kept}"
    if worker is None:
        return SPOOLED, f"it is unknown if its session, for {run.destination}, has ended: {doubt}"
    return SPOOLED, f"its session has ended; the next publisher for {run.destination} on {run.holder.host} will ship it"


def _run_state(journal: RunReader, history: Sequence[HistoryEntry], *, worker: bool | None) -> str:
    outcome = journal.outcome
    if outcome is not None:
        return outcome
    outage = read_outage(journal)
    if not worker and outage is not None and outage.parked:
        return PARKED
    # Journals of version 0.1 have no such state.
    if not worker and _latest_event(history, "parked", "worker started", "retry requested") == "parked":
        return PARKED
    return "closing" if journal.ended else "open"


def _state_reason(
    journal: RunReader, state: str, history: Sequence[HistoryEntry], *, worker: bool | None, doubt: str
) -> str:
    if state == FAILED:
        return f"in quarantine: {journal.get('reason', 'no reason was recorded')}"
    if state == INTERRUPTED:
        return "the acquisition process ended without a stop document"
    if state == WRITTEN:
        return "" if journal.stopped else WRITTEN_WITHOUT_STOP
    if is_superseded(journal.path):
        return "another host has served since this copy was made; nothing is written from it"
    if state == PARKED:
        return "Tiled was unavailable, and all documents are here; a supervisor will resume the run when Tiled is back"
    if worker is None:
        return f"it is unknown if a process has it open: {doubt}"
    if not worker and not journal.length:
        return "no process has it open, and it has no documents; its publisher has all, or the copy lacks its -wal file"
    if not worker:
        return "no process has it open; the next supervisor or publisher that uses this directory will continue it"
    return _why_at_work(journal, history)


def _why_at_work(journal: RunReader, history: Sequence[HistoryEntry]) -> str:
    if (outage := read_outage(journal)) is not None:
        return f"Tiled has refused requests for {time.time() - outage.since:.0f} s: {outage.reason}"
    for entry in reversed(history):
        # As in journals of version 0.1.
        if entry.event == "waiting":
            seconds = time.time() - entry.time
            return f"Tiled has refused requests for {seconds:.0f} s: {entry.detail.get('reason', '')}"
        if entry.event in ("resumed", "worker started"):
            break
    unresolved = [node for node, progress in journal.progress().items() if progress.intent is not None]
    if unresolved:
        return f"a request is in flight, or its outcome is being determined: {', '.join(unresolved)}"
    return "" if journal.ended else "waiting for documents"


def _latest_event(history: Sequence[HistoryEntry], *events: str) -> str | None:
    """Return the latest of these events in the history; None if there is none."""
    return next((entry.event for entry in reversed(history) if entry.event in events), None)
