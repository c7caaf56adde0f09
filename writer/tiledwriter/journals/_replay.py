"""Write runs from backups, exported documents and journals to Tiled, with the writing code of the worker."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from tiledbroker import Journal, JournalError, JournalLocked, RoutingError, RunReader
from tiledbroker._outcomes import FAILED
from tiledbroker.log import RunRouting

from .._errors import BackupUnreadable
from ..callback import read_backup
from ..catalog import Client
from ..mapping import WritingOptions
from ..worker import RunWriting
from ._run_files import has_supervisor, journal_dir_of, open_run_file, reason_of
from ._summary import UNREADABLE

UNFINISHED: Final = "unfinished"

_STOP_TIMEOUT_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.5
_SQLITE: Final = b"SQLite format 3\0"


@dataclass(frozen=True)
class Replayed:
    """Result of the replay of one run, or of a file that cannot be read.

    Attributes
    ----------
    file
        File that the run comes from.
    uid
        Uid of the run; "" for an unreadable file.
    documents
        Number of documents.
    outcome
        "written"; "interrupted" if written without a stop document; "failed"; "unfinished" if the replay was stopped
        before; "unreadable".
    reason
        Reason for "failed" or "unreadable"; else "".
    """

    file: str
    uid: str
    documents: int
    outcome: str
    reason: str = ""

    @property
    def done(self) -> bool:
        """True if the run is completely in Tiled."""
        return self.outcome not in (FAILED, UNFINISHED, UNREADABLE)


class ReplayProgress(NamedTuple):
    """Progress of a replay.

    Attributes
    ----------
    run
        Number of the run that is being written, from 1.
    runs
        Number of all runs.
    documents
        Number of its documents that have been written.
    total
        Number of its documents.
    """

    run: int
    runs: int
    documents: int
    total: int


class Ending(Protocol):
    """Flag that ends a replay early, such as a `threading.Event`."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class _Run:
    file: Path
    journal: Path


def replay(
    files: Iterable[Path],
    connect: Callable[[], Client],
    options: WritingOptions,
    directory: Path,
    ending: Ending,
    *,
    on_progress: Callable[[ReplayProgress], None] = lambda _: None,
) -> Iterator[Replayed]:
    """Write all runs in the files one after another, and yield the result of each.

    All files are read before anything is written: the documents of each run first go to a journal in `directory`. As
    in a worker, the journal makes it possible to wait for Tiled and to write nothing twice. Nodes of a run that exist
    in Tiled are adopted.

    Parameters
    ----------
    files
        Backups, exported documents or journals.
    connect
        Returns a `tiled.client` container to write into.
    options
        Writing options.
    directory
        Existing directory for temporary journals; the caller removes it.
    ending
        Stops the replay early when set; the remaining runs are "unfinished".
    on_progress
        Called when documents have been written, also by other threads.

    Raises
    ------
    JournalLocked
        Another process writes the run of one of the journals, or will. Nothing has been written.
    """
    runs: list[_Run] = []
    places = (directory / f"{number}.sqlite" for number in count())
    for file in files:
        try:
            runs += _copy_runs(file, places)
        except JournalLocked:
            raise
        except (BackupUnreadable, JournalError, OSError) as error:
            yield Replayed(str(file), "", 0, UNREADABLE, reason_of(error))
    for number, run in enumerate(runs, 1):
        with Journal(run.journal, "write") as journal:
            progress = ReplayProgress(number, len(runs), 0, journal.length)
            on_progress(progress)

            def on_documents(count: int, progress: ReplayProgress = progress) -> None:
                on_progress(progress._replace(documents=count))

            outcome, reason = (
                (UNFINISHED, "") if ending.is_set() else _write_run(journal, connect, options, ending, on_documents)
            )
            yield Replayed(str(run.file), journal.run_uid, journal.length, outcome, reason)


def _copy_runs(file: Path, places: Iterator[Path]) -> list[_Run]:
    """Copy each run in a file to a journal, and return the runs."""
    with file.open("rb") as stream:
        is_journal = stream.read(len(_SQLITE)) == _SQLITE
    runs = [_copy_journal(file, next(places))] if is_journal else _sort_documents(file, places)
    if not runs:
        raise BackupUnreadable(file, None, "it contains no documents.")
    return runs


def _copy_journal(file: Path, place: Path) -> _Run:
    """Copy a journal's documents, but not their progress, which may be that of another server.

    Raises
    ------
    JournalLocked
        Another process writes the run, or will.
    """
    # Where a link points to, because what lies beside the journal tells if it is in use.
    with open_run_file(Path(os.path.realpath(file))) as source, _new_journal(place, source.run_uid) as journal:
        _require_concluded(source)
        with journal.atomic():
            for record in source.records():
                journal.append(record.idx, [(record.name, record.crc, record.body)])
        if not journal.length:
            raise BackupUnreadable(file, None, "it contains no documents.")
        _mark_abandoned(journal)
        return _Run(file, journal.path)


def _require_concluded(journal: RunReader) -> None:
    """Raise `JournalLocked` if a process writes a run, or will: two writers of one run would double its rows."""
    if journal.being_written:
        raise JournalLocked(journal.path)
    if journal.outcome is None and has_supervisor(journal.path):
        raise JournalLocked(
            journal.path,
            f"it is not concluded: the supervisor of {journal_dir_of(journal.path)} will write it. It can be replayed "
            "once it is written, interrupted or in quarantine.",
        )


def _sort_documents(file: Path, places: Iterator[Path]) -> list[_Run]:
    """Sort the documents of a file by run, one journal per run.

    A repeated start document begins another run of the same uid, because the file may be a concatenation of backups.
    """
    routing = RunRouting()
    journals: dict[str, Journal] = {}
    runs: list[_Run] = []
    try:
        for entry in read_backup(file):
            uid = str(entry.document.get("uid"))
            if entry.name == "start" and uid in journals:
                routing.forget(uid)
                _finish_journal(journals.pop(uid))
            try:
                deliveries = routing.deliver(entry.name, entry.document, entry.body)
            except RoutingError as error:
                problem = (
                    f"{error} Delete the line or add the missing documents; nothing of this file has been written."
                )
                raise BackupUnreadable(file, entry.line, problem) from error
            for run_uid, name, body in deliveries:
                if entry.name == "start":
                    journals[run_uid] = _new_journal(next(places), run_uid)
                    runs.append(_Run(file, journals[run_uid].path))
                journals[run_uid].append_one(name, body)
                if entry.name == "stop":
                    _finish_journal(journals.pop(run_uid))
    finally:
        for journal in journals.values():
            _finish_journal(journal)
    return runs


def _finish_journal(journal: Journal) -> None:
    _mark_abandoned(journal)
    journal.close()


def _mark_abandoned(journal: Journal) -> None:
    """Mark a journal without a stop document as abandoned: the file has no more documents of the run."""
    if not journal.stopped:
        journal.set("abandoned", True)


def _new_journal(place: Path, run_uid: str) -> Journal:
    return Journal(place, "create", run_uid=run_uid)


def _write_run(
    journal: Journal,
    connect: Callable[[], Client],
    options: WritingOptions,
    ending: Ending,
    on_documents: Callable[[int], None],
) -> tuple[str, str]:
    """Write a run, and return its outcome and reason."""
    ended = threading.Event()
    ends: list[tuple[str, str]] = []

    def on_end(outcome: str, reason: str) -> None:
        ends.append((outcome, reason))
        ended.set()

    writing = RunWriting(journal, connect, options, drain=True, on_progress=on_documents, on_end=on_end)
    writing.start()
    while not ended.wait(_POLL_SECONDS) and not ending.is_set():
        pass
    writing.stop(_STOP_TIMEOUT_SECONDS)
    outcome, reason = ends[0] if ends else ("", "")
    return outcome or UNFINISHED, reason
