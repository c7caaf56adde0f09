"""Runs as tools read them, wherever they are: a journal, segments of a spool, or a spool file of version 0.1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from .._errors import JournalInvalid, SpoolDamaged
from ._journal import HistoryEntry, Journal, NodeProgress, journal_files
from ._lock import FileLock
from ._record import Record
from ._released_spool import ReleasedSpoolFile
from ._run_log import RunLog
from ._segment import SEGMENT_SUFFIX, Segment, read_header
from ._spool_files import files_in, find_segment, lock_path, segment_files, segment_path

_BATCH_DOCUMENTS: Final = 10_000
_BATCH_BYTES: Final = 2**24


class SpooledRun:
    """A run in a spool, for reading beside its publisher: what `Journal` has for readers.

    Parameters
    ----------
    path
        Any segment of the run.

    Raises
    ------
    JournalInvalid
        The file is no segment of a spool.
    OSError
        A file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = find_segment(Path(path))
        header, damage = read_header(self.path)
        if header is None:
            raise JournalInvalid(self.path, f"{damage or 'no run has begun to use it'}.")
        self._header = header
        self.run_uid = header.run
        self.destination = header.destination
        self.holder = header.holder
        self._log = self._loaded(header.log)

    def _loaded(self, label: str) -> RunLog:
        files = segment_files(files_in(self.path.parent)).get(label, [])
        return RunLog.load([Segment.load(file.path) for file in files] or [Segment.load(self.path)])

    def __enter__(self) -> SpooledRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing stays open between two calls."""

    @property
    def being_written(self) -> bool:
        """Whether its session lives."""
        return FileLock(lock_path(self.path.parent, self.holder.session)).held

    @property
    def length(self) -> int:
        """Number of documents, up to the first that cannot be believed."""
        return self._log.length

    def refresh(self) -> int:
        """Count again, for a run that goes on."""
        self.path = find_segment(segment_path(self.path.parent, self._header))
        header, _ = read_header(self.path)
        if header is not None:
            self._log = self._loaded(header.log)
        return self._log.length

    def read(self, start: int, limit: int = _BATCH_DOCUMENTS, max_bytes: int = _BATCH_BYTES) -> list[Record]:
        """Return documents from index `start`: at most `limit` of them, and at most `max_bytes` but at least one.

        Raises
        ------
        SpoolDamaged
            A file is damaged there.
        OSError
            A file cannot be read.
        """
        records = self._log.read(max(start, 0), limit, max_bytes)
        if not records and limit > 0 and self._log.damage:
            path, _, damage = self._log.damage.partition(": ")
            raise SpoolDamaged(path, f"it is damaged: {damage}.")
        return records

    def records(self) -> Iterator[Record]:
        """Yield all documents, in order, read a batch at a time; damage is an error after the last sound one."""
        start = self._log.first
        while batch := self.read(start):
            yield from batch
            start = batch[-1].idx + 1

    def names(self) -> dict[str, int]:
        """Return how many documents there are of each name, up to the first that cannot be believed."""
        names: Counter[str] = Counter()
        try:
            for record in self.records():
                names[record.name] += 1
        except SpoolDamaged:
            pass
        return dict(names)

    def damage(self) -> list[str]:
        """Return what is wrong, after having read all of it; nothing if all is as it was written."""
        try:
            for _ in self.records():
                pass
        except SpoolDamaged as error:
            return [str(error)]
        return []

    @property
    def stopped(self) -> bool:
        """Whether the run's stop document is here."""
        return self._log.stopped

    @property
    def abandoned(self) -> bool:
        """Whether its session is gone and there is no stop document."""
        return not self.stopped and not self.being_written

    @property
    def ended(self) -> bool:
        """Whether no more documents are to come."""
        return self.stopped or self.abandoned

    def get(self, key: str, default: Any = None) -> Any:
        """Return `default`: what became of a run is in its journal."""
        del key
        return default

    def progress(self) -> dict[str, NodeProgress]:
        """Return nothing: what is in Tiled is in the journal."""
        return {}

    def history(self) -> list[HistoryEntry]:
        """Return nothing: what happened to a run is in its journal."""
        return []


RunReader: TypeAlias = Journal | SpooledRun
"""A run that is open for reading, wherever it is."""


def open_run(path: str | Path, mode: Literal["read", "inspect"] = "read") -> RunReader:
    """Open a run for reading: a journal, a segment of a spool, or a spool file of version 0.1.

    Raises
    ------
    JournalInvalid
        The file is none of these, or is damaged.
    OSError
        It cannot be read.
    """
    if Path(path).name.endswith(SEGMENT_SUFFIX):
        return SpooledRun(path)
    return ReleasedSpoolFile(path, mode)


def run_files(directory: Path) -> list[Path]:
    """Return one file for each run in a spool or journal directory, by name: of a spooled run, its first segment.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    return sorted(labelled_run_files(directory).values(), key=lambda path: path.name)


def labelled_run_files(directory: Path) -> dict[str, Path]:
    """Return the same by label: what tells a run from others, also of its uid, once its file has another name.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    logs = segment_files(files_in(directory)).items()
    segments = {label: directory / files[0].name for label, files in logs if not files[0].stem.startswith("_")}
    return {**{str(path): path for path in journal_files(directory)}, **segments}


__all__ = ["RunReader", "SpooledRun", "labelled_run_files", "open_run", "run_files"]
