"""Verifies that a run's journal is intact and that Tiled holds what the journal yields. It changes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tiledbroker import JournalError, JournalInvalid, JournalTooNew, RunReader, SpooledRun
from tiledbroker._outcomes import FAILED
from tiledbroker.log import FileLock, journal_lock_path

from .._errors import TiledUnavailable
from .._findings import Example, Finding
from .._names import run_key
from ..catalog import Connection, Nodes, StoredNodes
from ..journals import (
    CHECK_OPTIONS,
    RECOVERY_ADVICE,
    SPOOLED,
    UNREADABLE,
    DocumentsCheck,
    DryRun,
    ProgressCheck,
    misnaming_of,
    open_run_file,
    reason_of,
)
from ..mapping import WritingOptions
from ._comparison import Comparison

PATIENCE_SECONDS: Final = 30.0

_MAX_ATTEMPTS: Final = 3


@dataclass(frozen=True)
class Verification:
    """Result of the verification of one run.

    Attributes
    ----------
    uid
        Uid of the run.
    file
        Path of its journal or spool file.
    state
        State as in `tiledwriter-journal ls`; "damaged" or "unreadable" if that is unknown.
    documents
        Number of documents; None if the file cannot be used.
    findings
        The problems.
    nodes, rows
        Number of nodes and rows compared with Tiled; None if nothing was compared.
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
        """Whether there are no findings."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """Return the result in JSON types."""
        return {
            **{name: getattr(self, name) for name in ("uid", "file", "state", "documents", "nodes", "rows", "ok")},
            "findings": [finding.as_dict() for finding in self.findings],
        }


def runs_without_journal(connection: Connection, uids: Collection[str]) -> list[str]:
    """Return the keys of runs in Tiled that are not among `uids`.

    Parameters
    ----------
    connection
        Connection to Tiled.
    uids
        Uids of the runs that have a journal.

    Raises
    ------
    TiledUnavailable
        Tiled does not answer, or does not accept the credentials.
    """
    known = set(map(run_key, uids))
    try:
        return [key for key in Nodes(connection).runs() if key not in known]
    except (LookupError, TypeError, ValueError) as error:
        raise TiledUnavailable(f"Tiled's list of runs cannot be used: {type(error).__name__}: {error}") from error


def verify(
    path: Path, options: WritingOptions, connection: Connection | None, *, check_name: bool = False
) -> Verification:
    """Check a journal, and compare it with Tiled if there is a connection.

    Another process may be writing the journal. If the run is not complete, only the parts that Tiled has confirmed must
    be there.

    Parameters
    ----------
    path
        Journal or spool file of the run.
    options
        Options with which the run is written.
    connection
        Connection to Tiled; None checks the journal only.
    check_name
        The file is in a journal or spool directory, so it must have the name of its run.

    Raises
    ------
    TiledUnavailable
        Tiled does not answer, or does not accept the credentials.
    """
    for _ in range(_MAX_ATTEMPTS):
        result = _verify_file(path, options, connection, check_name=check_name)
        if result.ok or not _in_use(path):
            # Otherwise the run may have changed during the verification, so verify it again.
            break
    return result


def _verify_file(
    path: Path, options: WritingOptions, connection: Connection | None, *, check_name: bool
) -> Verification:
    uid, state = path.stem, "damaged"
    length: int | None = None
    try:
        with open_run_file(path, "inspect") as journal:
            uid, length = journal.run_uid, journal.length
            misnaming = misnaming_of(journal) if check_name else ""
            damage = [Example(None, found=line) for line in journal.damage()]
            state = SPOOLED if isinstance(journal, SpooledRun) else _state_of(journal)
            findings, comparison = _check_journal(journal, options, connection)
    except JournalTooNew as error:
        return Verification(uid, str(path), UNREADABLE, None, (Finding("file", f"it cannot be read: {error}"),))
    except (JournalInvalid, ValueError) as error:
        unusable = Finding("file", f"it cannot be used: {error}", advice=RECOVERY_ADVICE)
        return Verification(uid, str(path), state, length, (unusable,))
    except (JournalError, OSError) as error:
        unreadable = Finding("file", f"it cannot be read: {reason_of(error)}")
        return Verification(uid, str(path), UNREADABLE, None, (unreadable,))
    if damage:
        findings.insert(0, Finding("file", "it is damaged", None, len(damage), tuple(damage[:3]), RECOVERY_ADVICE))
    if misnaming:
        findings.insert(0, Finding("file", misnaming))
    compared = (None, None) if comparison is None else (comparison.nodes, comparison.rows)
    return Verification(uid, str(path), state, length, tuple(findings), *compared)


def _state_of(journal: RunReader) -> str:
    return journal.outcome or ("closing" if journal.ended else "open")


def _check_journal(
    journal: RunReader, options: WritingOptions, connection: Connection | None
) -> tuple[list[Finding], Comparison | None]:
    documents = DocumentsCheck(journal)
    findings = documents.findings()
    if findings and any(finding.advice for finding in findings):
        # It is unknown which operations the documents yield.
        return findings, None
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
    """Return a finding if a document cannot be written, unless the run is in quarantine, where that is expected."""
    if dry_run.error is None or progress.outcome == FAILED:
        return []
    return [Finding(f"document {dry_run.error.index}", f"it cannot be written: {dry_run.error}", advice=CHECK_OPTIONS)]


def _in_use(path: Path) -> bool:
    """Return whether a process writes the file or has left part of it in a WAL file; True if that is unknown."""
    try:
        return FileLock(journal_lock_path(path)).held or path.with_name(path.name + "-wal").exists()
    except OSError:
        return True
