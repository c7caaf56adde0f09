"""What the supervisor reads from a run's journal, as frozen facts for the scheduler, and what it notes in it."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .._errors import JournalError, JournalInvalid
from ..log import Journal, find_run_file, journal_filename, read_start_label
from ._lifecycle import State
from ._tasks import ProcessIdentity

log = logging.getLogger(__name__)

_LOCK_TIMEOUT_SECONDS: Final = 2.0


@dataclass(frozen=True)
class JournalFacts:
    """What a journal says of its run.

    Attributes
    ----------
    uid
        Uid of the run.
    journal
        Path of the journal, which need not exist yet.
    state
        The final state that the journal records; `State.STARTING` if it records none.
    reason
        Reason of a failure; "" if there is none.
    length
        Number of documents in the journal.
    ended
        The journal has the end of the run.
    start_crc
        Checksum of the start document; None if the journal has none.
    end
        Length of the journal and checksum of its last document if the run has ended.
    order
        Unix time at which the run arrived; 0 if it is new.
    client
        Name of the CURVE key that the run belongs to; "" without one.
    worker
        The process that wrote the journal last, perhaps one of an earlier supervisor that still runs.
    audit_at
        Unix time of the audit that the journal asks for; None if it asks for none.
    unusable
        The journal can be neither read nor written.
    unavailable
        The journal is unusable for a reason that may pass, such as too many open files.
    scan_id, plan
        `scan_id` and `plan_name` of the start document; None if it has none, or one of another type.
    since
        Unix time of the last entry of the history; None if there is none.
    """

    uid: str
    journal: Path
    state: State = State.STARTING
    reason: str = ""
    length: int = 0
    ended: bool = False
    start_crc: int | None = None
    end: tuple[int, int] | None = None
    order: float = 0.0
    client: str = ""
    worker: ProcessIdentity | None = None
    audit_at: float | None = None
    unusable: bool = False
    unavailable: bool = False
    scan_id: int | str | None = None
    plan: str | None = None
    since: float | None = None

    @property
    def complete(self) -> bool:
        """Whether all documents of the run are in Tiled."""
        return self.state in (State.WRITTEN, State.INTERRUPTED)


def find_facts(journal_dir: Path, uid: str) -> JournalFacts:
    """Return the facts of a run's journal in a directory: those of a new run if it has none."""
    try:
        path = find_run_file(journal_dir, uid)
    except OSError as error:
        return _describe_unusable(journal_dir / journal_filename(uid), uid, error)
    return read_facts(path, uid) if path.exists() else JournalFacts(uid, path)


def read_facts(path: Path, uid: str | None = None) -> JournalFacts:
    """Return the facts of a journal file; those of a failed run if the file cannot be used.

    Parameters
    ----------
    path
        The journal.
    uid
        Uid of the run that it must belong to; None for any.
    """
    try:
        with Journal(path, "read", run_uid=uid) as journal:
            if journal_filename(journal.run_uid) != path.name:
                raise JournalInvalid(path, f"it is that of run {journal.run_uid!r}, and has another name.")
            return _collect_facts(journal, path)
    except Exception as error:
        # A damaged file can contain any value.
        return _describe_unusable(path, uid or path.stem, error)


def _collect_facts(journal: Journal, path: Path) -> JournalFacts:
    length, ended = journal.length, journal.ended
    start = next(iter(journal.read(0, 1)), None)
    last = next(iter(journal.read(length - 1, 1)), None) if ended else None
    worker, audit_at = journal.get("worker"), journal.get("audit_at")
    outcome = journal.outcome
    scan_id, plan = (None, None) if start is None else read_start_label(start.body)
    return JournalFacts(
        journal.run_uid,
        path,
        State(outcome) if outcome else State.STARTING,
        str(journal.get("reason", "")) if outcome else "",
        length=length,
        ended=ended,
        start_crc=None if start is None else start.crc,
        end=None if last is None else (length, last.crc),
        order=float(journal.get("arrived") or (0.0 if start is None else start.received)),
        client=str(journal.get("client", "")),
        worker=(int(worker[0]), float(worker[1])) if worker else None,
        audit_at=None if audit_at is None else float(audit_at),
        scan_id=scan_id,
        plan=plan,
        since=journal.changed_at(),
    )


def _describe_unusable(path: Path, uid: str, error: Exception) -> JournalFacts:
    # Too many open files, for example, may pass.
    unavailable = isinstance(error, sqlite3.OperationalError | OSError)
    problem = _explain(path, error)
    log.error("A journal cannot be used; it is left as it is: %s", problem)
    reason = f"its journal cannot be used: {problem}"
    return JournalFacts(uid, path, State.FAILED, reason, unusable=True, unavailable=unavailable)


def _explain(path: Path, error: Exception) -> str:
    """Return what is wrong with a journal, with its path; the system's reason where SQLite has none."""
    if isinstance(error, sqlite3.Error):
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as refusal:
            error = refusal
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or path}: {error.strerror}"
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def record_event(path: Path, event: str, detail: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write an entry of the history, and state, to a journal. Its worker must be gone. Errors are logged only.

    Parameters
    ----------
    path
        The journal.
    event
        Name of the event.
    detail
        Values of the entry by name.
    state
        Values of the journal's state by key.
    """
    try:
        with Journal(path, "write", lock_timeout=_LOCK_TIMEOUT_SECONDS) as journal, journal.atomic():
            for key, value in state.items():
                journal.set(key, value)
            journal.note(event, **detail)
    except (JournalError, sqlite3.Error, OSError) as error:
        log.error("The event %r could not be noted in the journal %s: %s", event, path, error)
