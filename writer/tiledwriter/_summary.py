"""What a journal tells about its run, in words for a human."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from tiledbroker import CodecError, Journal

from ._names import run_key
from ._plain_text import text_of

_LARGEST: Final = 2**63


@dataclass(frozen=True)
class RunSummary:
    """One run: what it is, how far it got, and why it waits.

    Attributes
    ----------
    started
        Unix time of the start document, in seconds.
    state
        "written", "interrupted", "failed", or "open" and "closing" before that.
    rows
        Rows, or datums, that Tiled has confirmed, by node below the run.
    why
        What the run waits for; "" if for nothing.
    """

    uid: str
    file: str
    plan: str
    scan_id: int | None
    started: float | None
    documents: dict[str, int]
    state: str
    why: str
    rows: dict[str, int] = field(default_factory=dict)
    worker: bool = False
    worker_starts: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def summarize(journal: Journal) -> RunSummary:
    """The summary of a journal or spool file."""
    start = _start_document(journal)
    outcome = journal.get("outcome")
    history = journal.history()
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
        state=outcome or ("closing" if journal.ended else "open"),
        why=_why(journal, outcome, history),
        rows={
            node.removeprefix(prefix): progress.rows for node, progress in journal.progress().items() if progress.rows
        },
        worker=journal.being_written,
        worker_starts=sum(entry.event == "worker started" for entry in history),
    )


def _start_document(journal: Journal) -> dict[str, Any]:
    first = journal.read(0, 1)
    try:
        return first[0].document() if first else {}
    except CodecError:
        return {}


def _why(journal: Journal, outcome: str | None, history: list[Any]) -> str:
    if outcome == "failed":
        return f"in quarantine: {journal.get('reason', 'no reason was recorded')}"
    if outcome == "interrupted":
        return "the acquisition process ended without a stop document"
    if outcome is not None:
        return ""
    if not journal.being_written:
        return "no process has it open; the next supervisor or publisher that uses this directory goes on with it"
    for entry in reversed(history):
        if entry.event == "waiting":
            ago = time.time() - entry.time
            return f"Tiled does not take requests since {ago:.0f} s: {entry.detail.get('reason', '')}"
        if entry.event in ("resumed", "worker started"):
            break
    unresolved = [node for node, progress in journal.progress().items() if progress.intent is not None]
    if unresolved:
        return f"a request is under way, or its fate is being found out: {', '.join(unresolved)}"
    return "" if journal.ended else "waiting for documents"
