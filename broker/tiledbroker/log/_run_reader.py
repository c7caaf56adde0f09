"""Common interface to read a run from a journal, from segments of a spool, or from a spool file of version 0.1."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from .._errors import JournalInvalid, SpoolDamaged
from ._journal import HistoryEntry, Journal, NodeProgress
from ._journal_files import SUFFIX, journal_files
from ._lock import FileLock
from ._record import Record
from ._released_spool import ReleasedSpoolFile
from ._run_log import RunLog
from ._segment import SEGMENT_SUFFIX, Segment, read_header
from ._spool_files import files_in, find_segment, lock_path, segment_path, sort_segments

_BATCH_DOCUMENTS: Final = 10_000
_BATCH_BYTES: Final = 2**24


class SpooledRun:
    """Reader of a run in a spool, with the reading methods of `Journal`. Its publisher may still be writing it.

    Parameters
    ----------
    path
        Any segment of the run.

    Attributes
    ----------
    misnamed
        Path of a file whose name keeps publishers from shipping it, and the reason; "" if there is none.

    Raises
    ------
    JournalInvalid
        The file is not a segment of a spool.
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
        self._log = self._load_log(header.log)

    def _load_log(self, label: str) -> RunLog:
        logs, strays = sort_segments(files_in(self.path.parent))
        files = logs.get(label, [])
        problems = {file.path: f"it should be called {file.name}" for file in files if file.is_misnamed}
        if self.path in strays:
            problems[self.path] = strays[self.path]
        self.misnamed = next((f"{path}: {problem}" for path, problem in problems.items()), "")
        return RunLog.load([Segment.load(file.path) for file in files] or [Segment.load(self.path)])

    def __enter__(self) -> SpooledRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing, because files are open only during a call."""

    @property
    def being_written(self) -> bool:
        """True if the session that made the run is alive.

        Raises
        ------
        OSError
            That cannot be seen from here.
        """
        held = FileLock(lock_path(self.path.parent, self.holder.session)).held
        if not held and not self.holder.is_of_this_host:
            raise OSError(errno.EREMOTE, f"{self.holder} may be alive, which cannot be seen from here")
        return held

    @property
    def files(self) -> list[Path]:
        """Paths of the run's files, sorted by first index."""
        return self._log.files

    @property
    def length(self) -> int:
        """Number of documents before the first damaged or missing one."""
        return self._log.length

    def refresh(self) -> int:
        """Update and return `length`, for a run that is still being written."""
        self.path = find_segment(segment_path(self.path.parent, self._header))
        header, _ = read_header(self.path)
        if header is not None:
            self._log = self._load_log(header.log)
        return self._log.length

    def read(self, start: int, limit: int = _BATCH_DOCUMENTS, max_bytes: int = _BATCH_BYTES) -> list[Record]:
        """Return records from index `start`.

        Parameters
        ----------
        start
            Index of the first document.
        limit
            Maximum number of documents.
        max_bytes
            Maximum total size of their bodies, in bytes. At least one document is returned, whatever its size.

        Raises
        ------
        SpoolDamaged
            The document at `start` is damaged or deleted, or lies behind damage.
        OSError
            A file cannot be read.
        """
        records = self._log.read(max(start, 0), limit, max_bytes)
        if not records and limit > 0 and self._log.damage:
            path, _, damage = self._log.damage.partition(": ")
            raise SpoolDamaged(path, f"it is damaged: {damage}.")
        return records

    def records(self) -> Iterator[Record]:
        """Yield all records in order, reading them in batches; raise `SpoolDamaged` at the first damaged one."""
        start = self._log.first
        while batch := self.read(start):
            yield from batch
            start = batch[-1].idx + 1

    def names(self) -> dict[str, int]:
        """Return the number of documents by document name, up to the first damaged document."""
        names: Counter[str] = Counter()
        try:
            for record in self.records():
                names[record.name] += 1
        except SpoolDamaged:
            pass
        return dict(names)

    def damage(self) -> list[str]:
        """Read all documents, and return a description of the first damage; an empty list if there is none."""
        try:
            for _ in self.records():
                pass
        except SpoolDamaged as error:
            return [str(error)]
        return []

    @property
    def stopped(self) -> bool:
        """True if the spool has the run's stop document."""
        return self._log.stopped

    @property
    def abandoned(self) -> bool:
        """True if the session is known to have ended and there is no stop document."""
        try:
            return not self.stopped and not self.being_written
        except OSError:
            return False

    @property
    def ended(self) -> bool:
        """True if it is known that no more documents will come: the run is stopped or abandoned."""
        return self.stopped or self.abandoned

    @property
    def outcome(self) -> None:
        """None, because only journals have the outcome of a run."""
        return None

    def get(self, key: str, default: Any = None) -> Any:
        """Return `default`, because only journals have the state of a run."""
        del key
        return default

    def progress(self) -> dict[str, NodeProgress]:
        """Return an empty dict, because only journals have the progress in Tiled."""
        return {}

    encode_result = staticmethod(Journal.encode_result)
    decode_result = staticmethod(Journal.decode_result)

    @property
    def revise_below(self) -> int:
        """Return 0, because only journals have the results of a normalizer."""
        return 0

    def read_normalized(self, start: int, limit: int) -> dict[int, bytes]:
        """Return an empty dict, because only journals have the results of a normalizer."""
        del start, limit
        return {}

    def history(self) -> list[HistoryEntry]:
        """Return an empty list, because only journals have a history."""
        return []


RunReader: TypeAlias = Journal | SpooledRun
"""Type of a run that is open for reading, in a journal or in a spool."""


def open_run(path: str | Path, mode: Literal["read", "inspect"] = "read") -> RunReader:
    """Open a run for reading.

    Parameters
    ----------
    path
        A journal, any segment of the run in a spool, or a spool file of version 0.1.
    mode
        Mode of `Journal`, for journals and spool files of version 0.1. Segments are never modified in any mode.

    Raises
    ------
    JournalInvalid
        The file is none of these, or is damaged.
    OSError
        The file cannot be read.
    """
    if Path(path).name.endswith(SEGMENT_SUFFIX):
        return SpooledRun(path)
    return ReleasedSpoolFile(path, mode)


def run_files(directory: Path) -> list[Path]:
    """Return one file for each run in a spool or journal directory, sorted by name.

    For a run in segments, this is its first segment under its final name, which `open_run` also finds before the file
    is renamed to it. A segment of which it is not known what run it belongs to counts as a run.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    return sorted(labelled_run_files(directory).values(), key=lambda path: path.name)


def labelled_run_files(directory: Path) -> dict[str, Path]:
    """Return the files of `run_files` by label.

    The label of a run in segments is the random label of its log, which differs between runs with the same uid and does
    not change when the first file is renamed or deleted. That of another run or file is its path.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    logs, strays = sort_segments(files_in(directory))
    segments = {label: directory / files[0].name for label, files in logs.items() if not _is_unrouted(files[0].stem)}
    return {**{str(path): path for path in (*journal_files(directory), *strays)}, **segments}


def unrouted_files(directory: Path) -> list[Path]:
    """Return a file of each log of documents that belong to no known run, which are never shipped, sorted by name.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    paths = files_in(directory)
    segments = [files[0].path for files in sort_segments(paths).logs.values() if _is_unrouted(files[0].stem)]
    released = [path for path in paths if _is_unrouted(path.name) and path.name.endswith(SUFFIX)]
    return sorted([*segments, *released], key=lambda path: path.name)


def _is_unrouted(name: str) -> bool:
    return name.startswith("_unrouted")


__all__ = ["RunReader", "SpooledRun", "labelled_run_files", "open_run", "run_files", "unrouted_files"]
