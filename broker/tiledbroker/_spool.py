"""The acquisition host's store: every document the callback returned from, until the ingest host has it on disk."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ._codec import Encoder
from ._errors import JournalError, JournalInvalid, JournalLocked, RoutingError
from ._journal import SUFFIX, Journal, Record, journal_filename, run_files, take
from ._limited import LimitedLog
from ._routing import RunRouting

log = logging.getLogger(__name__)

_RETRY_INTERVAL: Final = 1.0
_RECOVERY_SLICE: Final = 500
_REMINDER: Final = 600.0  # seconds between two words on a file that cannot be shipped
_MAX_ADOPTED: Final = 300  # runs here, beyond which no others are taken over: each takes a descriptor
_ADOPTED_AT_ONCE: Final = 50
_DISK_ERRORS: Final = (sqlite3.Error, OSError, JournalError)


class RunLog:
    """One run's documents: its spool file, followed by what a failing disk would not take."""

    def __init__(self, path: Path, run_uid: str, *, adopted: Journal | None = None) -> None:
        self.run_uid = run_uid
        self.stopped = adopted is not None and adopted.stopped
        self.abandoned = adopted is not None and not self.stopped
        self._path = path
        self._mutex = threading.RLock()
        self._journal = adopted
        self._reader: Journal | None = None
        self._overflow: list[Record] = []
        self._next_try = 0.0
        self._dirty = False
        self._resting = False

    @property
    def length(self) -> int:
        """Number of documents."""
        with self._mutex:
            return self._stored + len(self._overflow)

    @property
    def degraded(self) -> bool:
        """Whether some documents are in memory only."""
        return bool(self._overflow)

    @property
    def _stored(self) -> int:
        return 0 if self._journal is None else self._journal.length

    def append(self, name: str, body: bytes) -> None:
        """Store one document: on disk, or in memory where the disk fails."""
        with self._mutex:
            self.stopped = name == "stop"
            if not self._overflow:
                try:
                    self._wake()
                    if self._journal is None:
                        self._journal = self._create()
                    self._journal.append_one(name, body)
                    self._dirty = True
                    return
                except _DISK_ERRORS as error:
                    self._report(error)
            self._overflow.append(Record(self.length, name, time.time(), zlib.crc32(body), body))

    def recover(self) -> None:
        """Bring what is in memory to the disk, if it takes it again; tried at most once a second.

        In slices, between which the callback gets its turn.
        """
        if not self._overflow or time.monotonic() < self._next_try:
            return
        while self._overflow:
            with self._mutex:
                slice_ = self._overflow[:_RECOVERY_SLICE]
                try:
                    self._wake()
                    if self._journal is None:
                        self._journal = self._create()
                    self._journal.append(slice_[0].idx, [(record.name, record.crc, record.body) for record in slice_])
                except _DISK_ERRORS:
                    self._next_try = time.monotonic() + _RETRY_INTERVAL
                    return
                del self._overflow[: len(slice_)]
                self._dirty = True
        log.warning("The spool file %s takes documents again; nothing was lost.", self._path)

    def read(self, start: int, limit: int, max_bytes: int) -> list[Record]:
        """Documents from index `start`, as `Journal.read` does."""
        with self._mutex:
            stored = self._stored
            if start >= stored:
                return take(self._overflow[start - stored :][:limit], max_bytes)
            if self._resting:
                with Journal(self._path) as reader:
                    return reader.read(start, limit, max_bytes)
            if self._reader is None:
                self._reader = Journal(self._path)
            reader = self._reader
        # Outside the lock, and on a connection of its own: the callback does not wait for this.
        return reader.read(start, limit, max_bytes)

    def sync(self) -> None:
        """Make what was appended survive a power cut."""
        if self._dirty and self._journal is not None:
            self._dirty = False
            self._journal.sync()

    def rest(self) -> None:
        """Keep no more of a finished run's file open than its lock: there can be hundreds when the network is away."""
        with self._mutex:
            if self._journal is None or self._resting or self._overflow or self._dirty:
                return
            if self.stopped or self.abandoned:
                self._close_reader()
                self._journal.rest()
                self._resting = True

    def _wake(self) -> None:
        """A document comes after the stop, which it does not in a run as it should be."""
        if self._resting and self._journal is not None:
            self._journal.close()
            self._journal = Journal(self._path, "write", durability="callback")
            self._resting = False

    def remove(self) -> None:
        """Forget the run: all of it is durable elsewhere."""
        with self._mutex:
            self._close_reader()
            if self._journal is not None:
                self._journal.remove()
                self._journal = None
            self._overflow.clear()

    def close(self) -> None:
        """Leave the file for the next publisher."""
        with self._mutex:
            if self._overflow:
                log.error(
                    "%d documents of run %s are lost: the spool file %s failed, and this process ends.",
                    len(self._overflow),
                    self.run_uid,
                    self._path,
                )
            self._close_reader()
            if self._journal is not None:
                self._journal.close()
                self._journal = None

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _create(self) -> Journal:
        journal = Journal(self._path, "create", run_uid=self.run_uid, durability="callback")
        if journal.length:
            journal.close()
            raise JournalInvalid(self._path, "a run with the same uid is already spooled here.")
        return journal

    def _report(self, error: Exception) -> None:
        log.error(
            "The spool file %s cannot be written (%s). Documents of run %s are kept in memory and shipped from there; "
            "they are lost if this process ends before they are shipped.",
            self._path,
            error,
            self.run_uid,
        )


class Spool:
    """A directory with one file per run, written by the callback and read by the shipper.

    Parameters
    ----------
    directory
        Made if missing, readable by its owner only. Several publishers may share it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.unrouted = 0
        self.more_to_adopt = False
        self._mutex = threading.Lock()
        self._routing = RunRouting()
        self._encoder = Encoder()
        self._runs: dict[str, RunLog] = {}
        self._unrouted_log: RunLog | None = None
        self._limited = LimitedLog(log)
        self._left = LimitedLog(log, _REMINDER)
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            log.error("The spool directory %s cannot be made (%s); documents are kept in memory.", directory, error)

    def append(self, name: str, document: Mapping[str, Any]) -> None:
        """Store one document with each run it belongs to."""
        with self._mutex:
            body = self._encoder.encode(document)
            if replaced := self._encoder.take_replaced():
                self._limited.log(
                    logging.WARNING,
                    "repr",
                    "A %s document has values that cannot be stored (%s); their repr is stored instead.",
                    name,
                    ", ".join(sorted(set(replaced))),
                )
            try:
                run_uids = self._routing.route(name, document)
            except RoutingError as error:
                self._keep_unrouted(name, body, error)
                return
            for run_uid in run_uids:
                run = self._runs.get(run_uid)
                if run is None:
                    run = self._runs[run_uid] = RunLog(self.directory / journal_filename(run_uid), run_uid)
                run.append(name, body)

    def runs(self) -> list[RunLog]:
        """All runs here, in the order of their start."""
        return list(self._runs.values())

    def adopt(self) -> list[RunLog]:
        """Take over the runs that sessions which are gone have left in the directory, oldest first, some at a time."""
        self.more_to_adopt = len(self._runs) >= _MAX_ADOPTED
        if self.more_to_adopt:
            return []
        adopted = []
        known = {run._path for run in self.runs()}
        for path in sorted(run_files(self.directory), key=_modified):
            if path in known:
                continue
            try:
                journal = Journal(path, "write", durability="callback")
            except JournalLocked:
                continue
            except _DISK_ERRORS as error:
                self._left.log(logging.ERROR, str(path), "A spool file cannot be shipped: %s", error)
                continue
            if journal.length == 0:
                journal.remove()
                continue
            run = self._runs[journal.run_uid] = RunLog(path, journal.run_uid, adopted=journal)
            run.rest()
            adopted.append(run)
            if len(adopted) >= _ADOPTED_AT_ONCE:
                self.more_to_adopt = True
                break
        return adopted

    def abandon(self) -> None:
        """No more documents will come: runs that are open stay without a stop."""
        for run in self.runs():
            run.abandoned = not run.stopped

    def remove(self, run: RunLog) -> None:
        """Delete a run's file."""
        with self._mutex:
            self._runs.pop(run.run_uid, None)
        run.remove()

    def sync(self) -> None:
        """Make what was appended survive a power cut, and try a disk that failed again."""
        for run in self.runs():
            run.recover()
            run.sync()
            run.rest()

    def close(self) -> None:
        """Close all files, leaving their contents to the next publisher."""
        with self._mutex:
            for run in self._runs.values():
                run.close()
            if self._unrouted_log is not None:
                self._unrouted_log.close()

    def _keep_unrouted(self, name: str, body: bytes, error: RoutingError) -> None:
        if self._unrouted_log is None:
            label = f"_unrouted-{os.getpid()}-{time.time_ns()}"
            self._unrouted_log = RunLog(self.directory / (label + SUFFIX), label)
        self._unrouted_log.append(name, body)
        self.unrouted += 1
        self._limited.log(
            logging.ERROR, "unrouted", "%s It is kept in %s and not shipped.", error, self._unrouted_log._path
        )


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
