"""Whether a run's journal is whole, and whether Tiled holds what it should of the run. Nothing is changed."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tiledbroker import JournalError, JournalInvalid, RunReader, SpooledRun
from tiledbroker.log import FileLock

from .._findings import Example, Finding
from .._names import run_key
from ..catalog import Connection, Nodes, StoredNodes
from ..journals import CONFIGURE, MEND, SPOOLED, UNREADABLE, DocumentsCheck, DryRun, ProgressCheck, opened, reason_of
from ..mapping import WritingOptions
from ..worker import FAILED
from ._comparison import Comparison

PATIENCE: Final = 30.0  # seconds for a request

_ATTEMPTS: Final = 3


@dataclass(frozen=True)
class Verification:
    """What was found out about one run.

    Attributes
    ----------
    state
        As `tiledwriter-journal ls` has it; "damaged" or "unreadable" if that cannot be told.
    documents
        How many there are; None if the file cannot be used.
    nodes, rows
        How many were compared with Tiled; None if nothing was.
    """

    uid: str
    file: str
    state: str
    documents: int | None
    findings: tuple[Finding, ...] = ()
    nodes: int | None = None
    rows: int | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing was found to be wrong."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """In types that JSON has."""
        return {
            **{name: getattr(self, name) for name in ("uid", "file", "state", "documents", "nodes", "rows", "ok")},
            "findings": [finding.as_dict() for finding in self.findings],
        }


def runs_without_journal(connection: Connection, uids: Collection[str]) -> list[str]:
    """Return the keys of runs that Tiled has, and that are none of these.

    Raises
    ------
    TiledUnavailable
        Tiled was not there, or does not accept the credentials.
    """
    known = set(map(run_key, uids))
    return [key for key in Nodes(connection).runs() if key not in known]


def verify(path: Path, options: WritingOptions, connection: Connection | None) -> Verification:
    """Check a journal, and compare it with Tiled if there is a connection.

    It may be in use. Of a run that is not complete, what Tiled has confirmed has to be there.

    Raises
    ------
    TiledUnavailable
        Tiled was not there, or does not accept the credentials.
    """
    for _ in range(_ATTEMPTS):
        result = _verify(path, options, connection)
        if result.ok or not _in_use(path):
            break  # else it may have changed under our eyes
    return result


def _verify(path: Path, options: WritingOptions, connection: Connection | None) -> Verification:
    uid, state = path.stem, "damaged"
    length: int | None = None
    try:
        with opened(path, "inspect") as journal:
            uid, length = journal.run_uid, journal.length
            damage = [Example(None, found=line) for line in journal.damage()]
            state = SPOOLED if isinstance(journal, SpooledRun) else _state_of(journal)
            findings, comparison = _check(journal, options, connection)
    except (JournalInvalid, ValueError) as error:
        unusable = Finding("file", f"it cannot be used: {error}", advice=MEND)
        return Verification(uid, str(path), state, length, (unusable,))
    except (JournalError, OSError) as error:
        unreadable = Finding("file", f"it cannot be read: {reason_of(error)}")
        return Verification(uid, str(path), UNREADABLE, None, (unreadable,))
    if damage:
        findings.insert(0, Finding("file", "it is damaged", None, len(damage), tuple(damage[:3]), MEND))
    compared = (None, None) if comparison is None else (comparison.nodes, comparison.rows)
    return Verification(uid, str(path), state, length, tuple(findings), *compared)


def _state_of(journal: RunReader) -> str:
    return str(journal.get("outcome") or ("closing" if journal.ended else "open"))


def _check(
    journal: RunReader, options: WritingOptions, connection: Connection | None
) -> tuple[list[Finding], Comparison | None]:
    documents = DocumentsCheck(journal)
    findings = documents.findings()
    if findings and any(finding.advice for finding in findings):
        return findings, None  # what the documents amount to is not known
    progress = ProgressCheck(journal)
    dry_run = DryRun(journal, options)
    with tempfile.TemporaryDirectory(prefix="tiledwriter-verify-") as directory:
        comparison = None
        if connection is not None:
            confirmed = None if progress.complete else progress.confirmed
            comparison = Comparison(StoredNodes(connection, Path(directory)), confirmed)
        for operation in dry_run:
            progress.add(operation)
            if comparison is not None:
                comparison.add(operation)
        findings += _fold_findings(dry_run, progress)
        if dry_run.error is None:
            findings += progress.findings(stopped=documents.stopped)
        if comparison is not None:
            if comparison.again():
                for operation in dry_run:
                    comparison.add(operation)
            findings += comparison.findings(stopped=documents.stopped)
    return findings, comparison


def _fold_findings(dry_run: DryRun, progress: ProgressCheck) -> Sequence[Finding]:
    """A run in quarantine may have a document that cannot be written; any other may not."""
    if dry_run.error is None or progress.outcome == FAILED:
        return []
    return [Finding(f"document {dry_run.error.index}", f"it cannot be written: {dry_run.error}", advice=CONFIGURE)]


def _in_use(path: Path) -> bool:
    """Whether somebody writes the file, or has left something of it elsewhere since; also if that cannot be told."""
    try:
        return FileLock(path.with_name(path.name + ".lock")).held or path.with_name(path.name + "-wal").exists()
    except OSError:
        return True
