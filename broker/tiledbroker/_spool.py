"""The acquisition host's store: every document the callback returned from, until the ingest host has it on disk."""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from ._codec import Encoder
from ._crash_points import crash_point
from ._errors import JournalError, JournalInvalid, JournalLocked, RoutingError
from ._journal import SUFFIX, Journal, journal_filename, unfinished_run_files
from ._limited import LimitedLog
from ._record import Record, take
from ._routing import RunRouting
from ._tail import Tail, tail_of

log = logging.getLogger(__name__)

_STORE_INTERVAL: Final = 1.0
_SLICE: Final = 4_096  # documents
_FLOOD: Final = 5_000  # documents that wait to be shipped: these wait in memory, and may never need the file
_FEW: Final = 50  # documents, for which the callback may have to wait
_FEW_BYTES: Final = 2**20
_MUCH_MEMORY: Final = 64 * 2**20  # in which a flood waits for the shipper, which is faster than the disk
_REMINDER: Final = 600.0  # seconds between two words on a file that cannot be shipped
_MAX_ADOPTED: Final = 300  # runs here, beyond which no others are taken over: each takes a descriptor
_ADOPTED_AT_ONCE: Final = 50
_new: Final = tuple.__new__  # a named tuple's own goes through Python
_DISK_ERRORS: Final = (sqlite3.Error, OSError, JournalError)


class RunLog:
    """One run's documents: those in its spool file, and the newest ones behind them.

    The newest are in memory, where the shipper reads them, and in the file's tail, which outlives the process. `sync`
    brings them into the file, with more time than the callback has. In a flood it only sees to it that memory suffices:
    what has been acknowledged stays in the tail alone. `mutex` is held by whoever calls `append`.

    Attributes
    ----------
    shipped, acknowledged
        Up to where documents are on their way, and up to where they are durable elsewhere; the shipper says so.
    removed
        Whether nobody wants it any more.
    """

    def __init__(self, path: Path, run_uid: str, mutex: threading.RLock, *, adopted: Journal | None = None) -> None:
        self.run_uid = run_uid
        self.stopped = adopted is not None and adopted.stopped
        self.abandoned = adopted is not None and not self.stopped
        self._path = path
        self._mutex = mutex
        self._storing = threading.Lock()
        self._reading = threading.Lock()
        self._journal = adopted
        self._stored = 0 if adopted is None else adopted.length
        self._reader: Journal | None = None
        self._tail: Tail | None = None
        self._in_tail = 0  # documents behind those in the file that are no longer in memory
        self._fresh: list[Record] = []
        self._fresh_bytes = 0
        self._unsafe_from: int | None = None  # the first document that is in memory only
        self.shipped = self._shipped_before = 0
        self.acknowledged = 0
        self.removed = False
        self._next_store = self._next_try = 0.0
        self._resting = False
        self._limited = LimitedLog(log)

    @property
    def length(self) -> int:
        """Number of documents."""
        with self._mutex:
            return self._first_fresh + len(self._fresh)

    @property
    def _first_fresh(self) -> int:
        """Index of the first document in memory."""
        return self._stored + self._in_tail

    @property
    def degraded(self) -> bool:
        """Whether some documents are in memory only."""
        return self._unsafe_from is not None

    @property
    def _pressing(self) -> bool:
        """Whether memory should be relieved of what is new."""
        return self._fresh_bytes > _MUCH_MEMORY

    @property
    def _settled(self) -> bool:
        """Whether all of it is in the file."""
        in_file = (
            not self._fresh
            and not self._in_tail
            and self._unsafe_from is None
            and (self._tail is None or self._tail.empty)
        )
        return in_file or self.removed

    def append(self, name: str, body: bytes) -> None:
        """Keep one document: on disk, or in memory where the disk fails. This is what the RunEngine waits for."""
        self.stopped = name == "stop"
        idx = self._stored + self._in_tail + len(self._fresh)
        record = _new(Record, (idx, name, time.time(), zlib.crc32(body), body))
        if self._unsafe_from is None:
            try:
                if self._tail is None:
                    self._open_file()
                    self._tail = Tail(self._path)
                self._tail.append(record)
            except _DISK_ERRORS as error:
                self._unsafe_from = idx
                self._report(error)
        self._fresh.append(record)
        self._fresh_bytes += len(body)

    def sync(self) -> None:
        """Make what was appended survive a power cut, and bring it into the file once a second.

        What fails is tried again after a second.
        """
        now = time.monotonic()
        if self._settled or now < self._next_try:
            return
        try:
            if self._pressing or now >= self._next_store:
                self._next_store = now + _STORE_INTERVAL
                self._store()
            elif self._tail is not None:
                self._tail.sync()
        except _DISK_ERRORS as error:
            self._next_try = now + _STORE_INTERVAL
            self._limited.log(logging.ERROR, "store", "The spool file %s cannot be written: %s", self._path, error)

    def _store(self) -> None:
        """In slices, while the callback goes on; of a flood that is being shipped, what memory has no room for."""
        with self._storing:
            if self.removed:
                return
            with self._mutex:
                journal = self._open_file()
            flood = self._is_flood()
            if flood and self._pressing:
                self._release()
            if not flood or self._pressing:
                half = self._stored + (self.length - self._stored) // 2
                self._move_many(journal, max(half, self.shipped) if flood else sys.maxsize)
            with self._mutex:
                if self._are_few:
                    self._move(journal, self._fresh[:_FEW])
                    crash_point("publisher: documents in the file and in its tail")
                    self._clear_tail()
            journal.sync()
            if self._tail is not None:
                self._tail.sync()

    def _is_flood(self) -> bool:
        """Whether documents that wait are being shipped, and are many, or the last ones."""
        shipped, before = self.shipped, self._shipped_before
        self._shipped_before = shipped
        return shipped > before and (self.stopped or self.length - shipped > _FLOOD)

    def _release(self) -> None:
        """Give back the memory of documents that are in the tail and, for good, elsewhere."""
        while True:
            with self._mutex:
                count = min(_SLICE, len(self._fresh), self.acknowledged - self._first_fresh)
                if self._unsafe_from is not None or count <= 0:
                    return
                self._forget(count)
                self._in_tail += count

    def _forget(self, count: int) -> None:
        """Have the oldest documents in memory there no longer."""
        self._fresh_bytes -= sum([len(record.body) for record in self._fresh[:count]])
        del self._fresh[:count]

    def _move_many(self, journal: Journal, end: int) -> None:
        """Bring documents up to index `end` into the file; of those that come meanwhile, some are left."""
        records = self._tail_from(self._stored)
        while self._in_tail and not self.removed and self._stored < end:
            self._move(journal, list(islice(records, min(_SLICE, self._in_tail))))
        for _ in range(2 + len(self._fresh) // _SLICE):
            if self.removed or self._are_few or self._stored >= end:
                break
            self._move(journal, self._fresh[: min(_SLICE, end - self._stored)])

    def read(self, start: int, limit: int, max_bytes: int) -> list[Record]:
        """Documents from index `start`, as `Journal.read` does."""
        with self._mutex:
            first = start - self._first_fresh
            if first >= 0:
                return take(self._fresh[first : first + limit], max_bytes)
        # What was acknowledged is asked for again.
        if start >= self._stored and limit <= _FEW:
            with self._storing:
                return take(islice(self._tail_from(start), limit), max_bytes)
        if start >= self._stored:
            with self._storing:
                self._move_many(self._open_file(), self._first_fresh)
        # Outside the mutex, and on a connection of its own: the callback does not wait for this.
        with self._reading:
            if self._resting:
                with Journal(self._path, with_tail=False) as reader:
                    return reader.read(start, limit, max_bytes)
            if self._reader is None:
                self._reader = Journal(self._path, with_tail=False)
            return self._reader.read(start, limit, max_bytes)

    def rest(self) -> None:
        """Keep no more of a finished run's file open than its lock: there can be hundreds when the network is away."""
        if self._resting or not (self.stopped or self.abandoned):
            return
        with self._storing, self._reading, self._mutex:
            if self._journal is not None and self._settled:
                self._close_reader()
                self._close_tail()
                self._journal.rest()
                self._resting = True

    def remove(self) -> None:
        """Forget the run: all of it is durable elsewhere."""
        self.removed = True
        with self._storing, self._reading, self._mutex:
            self._close_reader()
            self._close_tail()
            self._fresh.clear()
            self._stored = self._in_tail = 0
            if self._journal is not None:
                self._journal.remove()
                self._journal = None

    def close(self) -> None:
        """Leave the file for the next publisher."""
        self._next_store = self._next_try = 0.0
        self.sync()
        with self._storing, self._reading, self._mutex:
            if self._unsafe_from is not None:
                log.error(
                    "%d documents of run %s are lost: the spool file %s failed, and this process ends.",
                    self.length - max(self._stored, self._unsafe_from),
                    self.run_uid,
                    self._path,
                )
            self._close_reader()
            self._close_tail()
            if self._journal is not None:
                self._journal.close()
                self._journal = None

    def _open_file(self) -> Journal:
        if self._journal is None:
            self._journal = self._create()
        elif self._resting:  # a document comes after the stop, which it does not in a run as it should be
            self._journal.close()
            self._journal = Journal(self._path, "write", durability="callback")
            self._resting = False
        return self._journal

    @property
    def _are_few(self) -> bool:
        """Whether the callback can wait for what is new to be moved."""
        return not self._in_tail and len(self._fresh) <= _FEW and self._fresh_bytes <= _FEW_BYTES

    def _tail_from(self, start: int) -> Iterator[Record]:
        """Documents from index `start` on that are in the tail alone."""
        expected = start
        for record in () if self._tail is None else self._tail.records(start):
            if record.idx != expected or expected >= self._first_fresh:
                break
            yield record
            expected += 1
        if expected < self._first_fresh and not self.removed:
            raise OSError(errno.EIO, f"document {expected} is not there any more", str(tail_of(self._path)))

    def _move(self, journal: Journal, oldest: list[Record]) -> None:
        """Bring the oldest of the documents that are not in the file there."""
        journal.extend(oldest)
        with self._mutex:
            self._stored += len(oldest)
            if self._in_tail:
                self._in_tail -= len(oldest)
            else:
                self._forget(len(oldest))

    def _clear_tail(self) -> None:
        if self._tail is None:
            self._tail = Tail(self._path)
        self._tail.clear()
        if self._unsafe_from is not None:
            self._unsafe_from = None
            log.warning("The spool file %s takes documents again; nothing was lost.", self._path)

    def _close_tail(self) -> None:
        if self._tail is not None:
            self._tail.close()
            self._tail = None

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
        self._mutex = threading.RLock()
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
            if self._encoder.replaced:
                self._limited.log(
                    logging.WARNING,
                    "repr",
                    "A %s document has values that cannot be stored (%s); their repr is stored instead.",
                    name,
                    ", ".join(sorted(set(self._encoder.take_replaced()))),
                )
            try:
                run_uids = self._routing.route(name, document)
            except RoutingError as error:
                self._keep_unrouted(name, body, error)
                return
            for run_uid in run_uids:
                run = self._runs.get(run_uid)
                if run is None:
                    run = self._runs[run_uid] = RunLog(self.directory / journal_filename(run_uid), run_uid, self._mutex)
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
        try:
            left = sorted(unfinished_run_files(self.directory), key=_modified)
        except OSError as error:
            self._left.log(logging.ERROR, str(self.directory), "What others have left cannot be shipped: %s", error)
            return []
        for path in left:
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
            run = self._runs[journal.run_uid] = RunLog(path, journal.run_uid, self._mutex, adopted=journal)
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
            run.sync()
            run.rest()
        if self._unrouted_log is not None:
            self._unrouted_log.sync()

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
            self._unrouted_log = RunLog(self.directory / (label + SUFFIX), label, self._mutex)
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
