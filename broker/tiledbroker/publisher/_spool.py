"""The durable store on the acquisition host, which keeps each document until its run can be deleted.

The callback copies a document into a memory-mapped segment while it holds the spool's lock. It needs no system call for
this, unless it has to map anonymous memory because no spare file is ready. `maintain`, which the flusher thread calls,
creates, syncs, seals, adopts and deletes files without holding that lock.
`docs/explanations/states-of-a-document.md` shows the states and the locks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from .._errors import PublisherClosed, RoutingError
from .._rate_limited_log import RateLimitedLog
from ..log import RECENT_ASSETS, Encoder, FileLock, RunLog, RunRouting, Segment, lock_path, new_session, spare_path
from ._adoption import RunAdopter
from ._shipment import ShippedRun

log = logging.getLogger(__name__)

FIRST_SEGMENT_BYTES: Final = 2**20
SEGMENT_BYTES: Final = 4 * 2**20
MAX_SEGMENT_BYTES: Final = 64 * 2**20
SPARE_SEGMENTS: Final = 4
MAX_SPARE_LARGE_SEGMENTS: Final = 4
MAX_OPEN_SEGMENTS: Final = 64
ADOPT_INTERVAL_SECONDS: Final = 15.0
SPARES_LEFT_TO_WAKE: Final = SPARE_SEGMENTS // 2
"""Number of spare segments at which the flusher makes others at once, and not within its interval."""
LOCK_TIMEOUT_SECONDS: Final = 5.0
"""Maximum time to wait for our own lock file, which an adopter locks briefly to see if its session is alive."""
DEFAULT_SPOOL_LIMIT_BYTES: Final = 4 * 2**30

_REHEARSED: Final[Sequence[tuple[str, dict[str, Any]]]] = (
    ("start", {"uid": "run", "time": 0.0, "scan_id": 1, "plan_args": {"detectors": ["camera"], "num": 1}}),
    ("descriptor", {"uid": "stream", "run_start": "run", "data_keys": {"x": {"dtype": "number", "shape": []}}}),
    ("event", {"uid": "event", "descriptor": "stream", "time": 0.0, "data": {"x": 1.0}, "timestamps": {"x": 0.0}}),
    ("stop", {"uid": "stop", "run_start": "run", "time": 0.0, "exit_status": "success"}),
)

Adoption: TypeAlias = Literal["own", "any-destination", "any-host"]


class Spool:
    """A directory of run logs, written by the callback, maintained by the flusher and read by the shipper.

    Parameters
    ----------
    directory
        Created if missing, accessible by its owner only. Several publishers may share it.
    destination
        URL of the supervisor that the runs are for.
    adopt
        Which runs of dead sessions to adopt: "own" for those made on this host for this destination; "any-destination"
        to include other destinations; "any-host" to include other destinations and other hosts.
    released_directory
        Spool directory of version 0.1, if it is another one.
    limit_bytes
        Total size of the files beyond which runs are deleted as soon as they are durable on the ingest host.

    Attributes
    ----------
    unrouted
        Number of documents that belong to no known run.
    problem
        Reason why the directory cannot be used; "" if it can.
    refused
        Reasons why runs in the directory are not shipped, by uid.
    """

    def __init__(
        self,
        directory: Path,
        *,
        destination: str = "",
        adopt: Adoption = "own",
        released_directory: Path | None = None,
        limit_bytes: int = DEFAULT_SPOOL_LIMIT_BYTES,
    ) -> None:
        self.directory = directory
        self.unrouted = 0
        self.problem = ""
        self._destination = destination
        self._limit_bytes = limit_bytes
        self._holder = new_session()
        self._mutex = threading.RLock()
        self._closed = False
        self._routing = RunRouting(RECENT_ASSETS)
        self._encoder = Encoder()
        self._runs: dict[str, RunLog] = {}
        self._open: dict[str, RunLog] = {}
        self._others: list[RunLog] = []
        self._deleted: list[RunLog] = []
        self._shipped: set[str] = set()
        self._unrouted_log: RunLog | None = None
        self._repeated: dict[str, str] = {}
        self._lock: FileLock | None = None
        self._spares: list[Segment] = []
        self._spares_made = 0
        self._large_bytes = SEGMENT_BYTES
        self._large_wanted = 0
        self._names_changed = False
        self._wake = threading.Event()
        self._limited_log = RateLimitedLog(log)
        self._left = RunAdopter(
            directory,
            self._holder,
            destination,
            released_directory=released_directory,
            any_destination=adopt != "own",
            any_host=adopt == "any-host",
        )
        self._adopt_at = 0.0
        # Number of runs adopted so far.
        self._adopted = 0
        with self._noting_problem():
            self._rehearse()
            self._create_spares()

    def _rehearse(self) -> None:
        """Do what the callback does, in memory: what a process does for the first time takes it twice as long."""
        routing = RunRouting(RECENT_ASSETS)
        run = RunLog("", self.directory, self._holder, self._destination, shipped=False)
        for name, document in _REHEARSED:
            for _, kind, content in routing.deliver(name, document, self._encoder.encode(document)):
                run.append(kind, content, self._take_segment)

    # Methods of the callback, which never wait for a disk.

    def append(self, name: str, document: Mapping[str, Any]) -> None:
        """Append one document to each run that it belongs to.

        Raises
        ------
        PublisherClosed
            The spool is closed.
        """
        with self._mutex:
            if self._closed:
                raise PublisherClosed("This publisher is closed.")
            body = self._encoder.encode(document)
            if self._encoder.replaced:
                self._limited_log.log(
                    logging.WARNING,
                    "repr",
                    "A %s document has values that cannot be stored (%s); their repr is stored instead.",
                    name,
                    ", ".join(sorted(set(self._encoder.take_replaced()))),
                )
            try:
                deliveries = self._routing.deliver(name, document, body)
            except RoutingError as error:
                self._keep_unrouted(name, body, error)
                return
            for run_uid, kind, content in deliveries:
                run = self._start_run(run_uid) if name == "start" else self._open[run_uid]
                if run.append(kind, content, self._take_segment):
                    self._wake.set()
                if name == "stop":
                    del self._open[run_uid]

    def _start_run(self, run_uid: str) -> RunLog:
        run = self._open[run_uid] = RunLog(run_uid, self.directory, self._holder, self._destination)
        if run_uid not in self._runs:
            self._runs[run_uid] = run
        else:
            self._others.append(run)
            self._repeated[run_uid] = (
                "another run with the same uid is in the spool already; this one is kept, and will be shipped by a "
                "later session once the other one is gone"
            )
            log.error("Run %s is not shipped: %s.", run_uid, self._repeated[run_uid])
        return run

    def _take_segment(self, size: int, *, first: bool) -> Segment:
        """Return an unused segment of at least `size` bytes: a spare file if there is one, else anonymous memory."""
        candidates = range(len(self._spares)) if first else reversed(range(len(self._spares)))
        for number in candidates:
            if self._spares[number].capacity >= size:
                segment = self._spares.pop(number)
                if len(self._spares) <= SPARES_LEFT_TO_WAKE:
                    self._wake.set()
                return segment
        self._large_bytes = max(self._large_bytes, min(4 * size, max(size, MAX_SEGMENT_BYTES)))
        self._wake.set()
        return Segment.in_memory(max(size, FIRST_SEGMENT_BYTES if first else self._large_bytes))

    def _keep_unrouted(self, name: str, body: bytes, error: RoutingError) -> None:
        if self._unrouted_log is None:
            label = f"_unrouted-{self._holder.session}"
            self._unrouted_log = RunLog(label, self.directory, self._holder, self._destination, shipped=False)
            self._others.append(self._unrouted_log)
        printable = str(name).encode("ascii", "backslashreplace")[:50].decode()
        self._unrouted_log.append(printable, body, self._take_segment)
        self.unrouted += 1
        self._limited_log.log(
            logging.ERROR,
            "unrouted",
            "%s It is kept in %s and not shipped.",
            error,
            next(iter(self._unrouted_log.final_files), "memory"),
        )

    # Methods for any thread.

    @property
    def refused(self) -> dict[str, str]:
        """Reasons why runs in the directory are not shipped, by uid."""
        with self._mutex:
            return {**self._left.refused, **self._repeated}

    @property
    def degraded(self) -> bool:
        """True if documents are in memory only, because the disk fails."""
        return bool(self.problem) and any(run.degraded for run in self._all_runs())

    @property
    def has_repeated(self) -> bool:
        """True if a run of this session is not shipped because another run in the spool has the same uid."""
        return bool(self._repeated)

    @property
    def is_durable(self) -> bool:
        """True if all runs are durable on the ingest host, including their ends."""
        return not self._repeated and all(run.is_durable for run in self.runs())

    def runs(self) -> list[RunLog]:
        """Return all runs that are being shipped or kept, in the order in which they started or were adopted."""
        with self._mutex:
            return list(self._runs.values())

    @property
    def shipped(self) -> frozenset[str]:
        """The `log_id` of each run of a dead session that is deleted as durable, or without documents."""
        with self._mutex:
            return frozenset(self._shipped | self._left.deleted)

    def abandon(self) -> None:
        """Mark all open runs as abandoned: they get no more documents, and no stop document."""
        for run in self.runs():
            run.abandoned = not run.stopped

    def remove(self, run: ShippedRun) -> None:
        """Schedule the deletion of a durable run's files by the flusher."""
        with self._mutex:
            current = self._runs.get(run.run_uid)
            if current is not None and current is run:
                del self._runs[run.run_uid]
                self._deleted.append(current)
                if current.is_adopted:
                    self._shipped.add(current.log_id)
        self._wake.set()

    # Methods of the flusher thread, which may wait for a disk.

    def wake_flusher(self) -> None:
        """Make `wait_for_work` return."""
        self._wake.set()

    def wait_for_work(self, timeout: float) -> None:
        """Wait until `maintain` is needed immediately, or until the timeout in seconds has passed."""
        self._wake.wait(timeout)
        self._wake.clear()

    def maintain(self) -> bool:
        """Create segments, write documents to disk, delete runs that are not needed, and adopt runs of dead sessions.

        Failed steps set `problem`, and are retried in the next call.

        Returns
        -------
        bool
            True if runs were adopted.
        """
        problem = ""
        before = self._adopted
        for step in (
            self._create_spares,
            self._store_documents,
            self._flush_runs,
            self._reclaim_space,
            self._adopt_runs,
        ):
            try:
                step()
            except OSError as error:
                problem = problem or str(error)
        self._note_problem(problem)
        return self._adopted > before

    def _create_spares(self) -> None:
        """Create spare segments for the callback."""
        self._claim_directory()
        with self._mutex:
            small = sum(segment.capacity < SEGMENT_BYTES for segment in self._spares)
            large = sum(segment.capacity >= self._large_bytes for segment in self._spares)
        growing = sum(run.is_growing for run in self.runs())
        self._large_wanted = min(max(self._large_wanted, growing), MAX_SPARE_LARGE_SEGMENTS)
        sizes = [FIRST_SEGMENT_BYTES] * (SPARE_SEGMENTS - small) + [self._large_bytes] * (self._large_wanted - large)
        # Create the large segments first, because they are more urgent.
        for size in reversed(sizes):
            segment = self._create_segment(size)
            with self._mutex:
                self._spares.append(segment)
                self._spares.sort(key=lambda spare: spare.capacity)

    def _claim_directory(self) -> None:
        if self._lock is not None and self._lock.is_in_place:
            return
        if self._lock is not None:
            # The directory was deleted. Lock a file in the new one, or other publishers take this session for dead.
            self._lock.release()
            self._lock = None
            self._names_changed = True
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(lock_path(self.directory, self._holder.session))
        lock.acquire(LOCK_TIMEOUT_SECONDS)
        self._lock = lock

    def _create_segment(self, size: int) -> Segment:
        self._claim_directory()
        self._spares_made += 1
        self._names_changed = True
        return Segment.create(spare_path(self.directory, self._holder.session, self._spares_made), size)

    def _store_documents(self) -> None:
        """Move documents that are in memory only into files."""
        errors: list[OSError] = []
        for run in self._all_runs():
            try:
                run.forget_deleted_files()
                if run.degraded:
                    run.store(self._create_segment, self._mutex)
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _flush_runs(self, *, sealing: bool = False) -> None:
        errors: list[OSError] = []
        for run in self._all_runs():
            try:
                self._names_changed |= run.flush(sealing=sealing)
            except OSError as error:
                errors.append(error)
        if self._names_changed:
            _sync_directory(self.directory)
            self._names_changed = False
        if sum(run.open_segments for run in self._all_runs()) > MAX_OPEN_SEGMENTS:
            for run in self._all_runs():
                run.detach()
        if errors:
            raise errors[0]

    def _reclaim_space(self) -> None:
        """Delete removed runs, and documents that are durable on the ingest host if the spool exceeds its limit."""
        runs = self.runs()
        excess = sum(run.size for run in runs) - self._limit_bytes
        errors: list[OSError] = []
        for run in sorted(runs, key=lambda run: not run.is_durable):
            if excess <= 0 and self._limit_bytes:
                break
            before = run.size
            if run.is_durable:
                self.remove(run)
                excess -= before
                continue
            try:
                run.forget_before(run.acknowledged)
            except OSError as error:
                errors.append(error)
            excess -= before - run.size
        with self._mutex:
            deleted = self._deleted.copy()
        for run in deleted:
            try:
                run.delete()
            except OSError as error:
                errors.append(error)
                continue
            with self._mutex:
                self._deleted.remove(run)
        if errors:
            raise errors[0]

    def _adopt_runs(self) -> None:
        """Adopt runs that dead sessions left in the directory, a limited number per call."""
        if time.monotonic() < self._adopt_at:
            return
        with self._mutex:
            known = {run.log_id for run in (*self._runs.values(), *self._others, *self._deleted)}
            uids = set(self._runs)
        adopted = self._left.adopt(known, uids)
        with self._mutex:
            for run in adopted:
                if run.run_uid in self._runs:
                    # A run with the same uid has started in this session since `uids` was read.
                    run.close()
                else:
                    self._runs[run.run_uid] = run
                    self._adopted += 1
        self._adopt_at = 0.0 if self._left.has_more else time.monotonic() + ADOPT_INTERVAL_SECONDS
        if self._left.has_more:
            self._wake.set()

    def close(self) -> None:
        """Write all documents to disk, close the files, and release the locks so that the next publisher can adopt.

        Runs in memory that cannot be written are lost, which is logged.
        """
        with self._mutex:
            self._closed = True
        with self._noting_problem():
            self._store_documents()
        with self._noting_problem():
            self._flush_runs(sealing=True)
        with self._noting_problem():
            self._reclaim_space()
        for run in self._all_runs():
            if lost := run.documents_in_memory:
                log.error(
                    "%d documents of run %s are lost: the spool %s failed (%s), and this process is ending.",
                    lost - max(0, min(lost, run.acknowledged - (run.length - lost))),
                    run.run_uid,
                    self.directory,
                    self.problem,
                )
            run.close()
        for spare in self._spares:
            with contextlib.suppress(OSError):
                spare.delete()
        self._spares.clear()
        self._left.close()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                self._lock.release(remove=True)

    def _all_runs(self) -> list[RunLog]:
        with self._mutex:
            return [*self._runs.values(), *self._others]

    @contextlib.contextmanager
    def _noting_problem(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._note_problem(str(error))

    def _note_problem(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error(
                "The spool %s cannot be written (%s). Documents that have no file are kept in memory and shipped from "
                "there; they are lost if this process ends first.",
                self.directory,
                problem,
            )
        elif self.problem and not problem:
            log.warning("The spool %s can be written again.", self.directory)
        self.problem = problem


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
