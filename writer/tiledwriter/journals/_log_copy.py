"""Copies a run from a site's log to a journal of its own, from which it is exported or replayed like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tiledbroker import Journal
from tiledbroker._errors import RunNotWhole
from tiledbroker.jetstream import LoggedRun, LogReader


def copy_from_log(
    reader: LogReader, run: LoggedRun, path: Path, on_progress: Callable[[int], None] = lambda _: None
) -> None:
    """Copy a run to a new journal.

    Parameters
    ----------
    reader
        The log.
    run
        The run, as it was described by the reader.
    path
        The journal to make.
    on_progress
        Called with the number of documents so far.

    Raises
    ------
    RunNotWhole
        A document is missing or damaged; the journal is incomplete then.
    LogUnavailable
        The log gives no answer.
    """
    receipt, tail = run.own_receipt, run.tail
    if receipt is not None and receipt.next > tail.next:
        reason = f"the log lacks its documents {tail.next} to {receipt.next - 1}, which {receipt.host} has had"
        raise RunNotWhole(run.uid, reason)
    if not tail.next:
        raise RunNotWhole(run.uid, "the log has no documents of it")
    with Journal(path, "create", run_uid=run.uid) as journal:
        journal.set("client", run.beamline)
        for documents in reader.read_documents(run):
            journal.append(documents.first, list(documents.unpack()))
            on_progress(journal.length)
        if journal.length != tail.next:
            raise RunNotWhole(run.uid, f"{journal.length} of its {tail.next} documents were read")
        if tail.ended and not journal.stopped:
            journal.set("abandoned", True)
