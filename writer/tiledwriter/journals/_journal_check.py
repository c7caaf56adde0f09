"""Check a journal for completeness and consistency, without a server."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy

from tiledbroker import CodecError, JournalInvalid, NodeProgress, Record, RoutingError, RunReader, decode
from tiledbroker._errors import DocumentsMissing
from tiledbroker._outcomes import COMPLETE, WRITTEN
from tiledbroker.log import RunRouting
from tiledbroker.ownership import RunDecisions

from .._findings import Finding, Tally
from ..mapping import (
    AppendRows,
    CreateArray,
    CreateContainer,
    CreateTable,
    ExtendExternal,
    Operation,
    RegisterExternal,
    RemoveNode,
    WriteArray,
)

RECOVERY_ADVICE: Final = (
    "Keep the file. If the publisher's spool, a backup or Tiled has the run, take it from there; "
    "`sqlite3 FILE .recover` saves the parts that SQLite can still read."
)
CHECK_OPTIONS: Final = "Is --config the configuration that the run was written with?"

_BATCH_DOCUMENTS: Final = 10_000


class DocumentsCheck:
    """Check of every document: checksum, index, order and references.

    Parameters
    ----------
    journal
        The run.

    Attributes
    ----------
    stopped
        True once the check has found a stop document, at any position.
    """

    def __init__(self, journal: RunReader) -> None:
        self._journal = journal
        self._routing = RunRouting()
        self._next = 0
        self.stopped = False
        self._missing, self._unreadable, self._damaged = Tally(), Tally(), Tally()
        self._undecodable, self._misplaced, self._late = Tally(), Tally(), Tally()
        self._events = EventsCheck()

    def findings(self) -> list[Finding]:
        """Read all documents and return the findings."""
        for record in self._read_records():
            self._check_record(record)
        return [
            *self._missing.finding("documents", "{} missing, from these indexes on", advice=RECOVERY_ADVICE),
            *self._unreadable.finding("documents", "{} unreadable", advice=RECOVERY_ADVICE),
            *self._damaged.finding("documents", "{} with a wrong checksum", advice=RECOVERY_ADVICE),
            *self._undecodable.finding("documents", "{} not in the encoding of journals", advice=RECOVERY_ADVICE),
            *self._misplaced.finding("documents", "{} in a wrong position"),
            *self._late.finding("documents", "{} after the stop document, which are not written"),
            # Lost documents also leave gaps in the sequence numbers, which would be reported twice.
            *(self._events.findings() if not self._lost_count else []),
        ]

    @property
    def _lost_count(self) -> int:
        """Number of documents that are missing, unreadable, damaged or undecodable."""
        return self._missing.count + self._unreadable.count + self._damaged.count + self._undecodable.count

    def _read_records(self) -> Iterator[Record]:
        """Yield all readable documents; if a batch cannot be read, read its documents one by one."""
        start, one_by_one_until, gap = 0, 0, self._journal.length
        while start < self._journal.length:
            try:
                batch = self._journal.read(start, 1 if start < one_by_one_until else min(_BATCH_DOCUMENTS, gap - start))
            except DocumentsMissing as error:
                start, gap = (start, error.first) if error.first > start else (error.following, self._journal.length)
                continue
            except (JournalInvalid, sqlite3.DatabaseError) as error:
                if start >= one_by_one_until:
                    one_by_one_until = start + _BATCH_DOCUMENTS
                    continue
                self._unreadable.add(start, found=str(error))
                start += 1
                self._next = max(self._next, start)
                continue
            if not batch:
                return
            yield from batch
            start = batch[-1].idx + 1
            gap = self._journal.length if start >= gap else gap

    def _check_record(self, record: Record) -> None:
        if record.idx > self._next:
            self._missing.add(self._next, times=record.idx - self._next)
        self._next = record.idx + 1
        found = zlib.crc32(record.body)
        if found != record.crc:
            self._damaged.add(record.idx, f"{record.crc:08x}", f"{found:08x}")
            return
        try:
            document = decode(record.body)
        except CodecError as error:
            self._undecodable.add(record.idx, found=str(error))
            return
        if self.stopped:
            self._late.add(record.idx, found=record.name)
        else:
            self._check_routing(record, document)

    def _check_routing(self, record: Record, document: Any) -> None:
        """Check a document's references with the routing rules of the acquisition host."""
        self.stopped = record.name == "stop"
        try:
            runs = self._routing.route(record.name, document)
        except RoutingError as error:
            if not self._lost_count:
                self._misplaced.add(record.idx, found=str(error))
            return
        if record.name == "event":
            self._events.add(record.idx, document)
        elif record.name == "event_page":
            self._events.begin_anew(document.get("descriptor"))
        if self._journal.run_uid not in runs:
            self._misplaced.add(record.idx, self._journal.run_uid, ", ".join(runs))


class EventsCheck:
    """Check for missing or duplicated events in documents with consecutive indices.

    If documents were lost or duplicated before they got their indices, the indices do not show it. The check relies
    on two rules: in a stream, `seq_num` rises by one, or goes back when a plan is rewound; and event uids are unique.
    """

    def __init__(self) -> None:
        self._latest_seq_nums: dict[Any, int] = {}
        self._uid_digests = array("q")
        self._document_indices = array("q")
        self._skipping = Tally()

    def add(self, idx: int, event: Mapping[str, Any]) -> None:
        """Add the next event, which is document `idx`."""
        stream, seq_num = event.get("descriptor"), event.get("seq_num")
        if isinstance(seq_num, int):
            latest = self._latest_seq_nums.get(stream)
            if latest is not None and seq_num > latest + 1:
                self._skipping.add(idx, latest + 1, seq_num, times=seq_num - latest - 1)
            self._latest_seq_nums[stream] = seq_num
        digest = hashlib.blake2b(str(event.get("uid", idx)).encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._uid_digests.append(int.from_bytes(digest, "big", signed=True))
        self._document_indices.append(idx)

    def begin_anew(self, descriptor: Any) -> None:
        """Restart the sequence numbers of a stream after an event page, which is not checked."""
        self._latest_seq_nums.pop(descriptor, None)

    def findings(self) -> list[Finding]:
        """Return the findings on the events."""
        doubled = Tally()
        digests, places = numpy.asarray(self._uid_digests), numpy.asarray(self._document_indices)
        order = numpy.argsort(digests, kind="stable")
        for at in numpy.flatnonzero(digests[order][1:] == digests[order][:-1]):
            doubled.add(int(places[order[at + 1]]), found=f"the event of document {places[order[at]]}")
        return [
            *self._skipping.finding("documents", "missing events, by sequence numbers: {}"),
            *doubled.finding("documents", "duplicate events: {}"),
        ]


class ProgressCheck:
    """Comparison of the progress that a journal records with the operations that its documents lead to.

    Parameters
    ----------
    journal
        The run.

    Attributes
    ----------
    outcome
        Recorded outcome; None if there is none yet.
    confirmed
        Recorded progress of each node by path.
    """

    def __init__(self, journal: RunReader) -> None:
        # Read the progress before the documents: a worker may add to both meanwhile, and documents that are newer than
        # the progress are harmless.
        self.outcome: str | None = journal.outcome
        self.confirmed: Mapping[str, NodeProgress] = journal.progress()
        self._rewrites = RunDecisions.of(journal.get).rewrites
        self._ends: dict[str, int] = {}

    @property
    def complete(self) -> bool:
        """True if the recorded outcome says that all documents of the run are in Tiled."""
        return self.outcome in COMPLETE

    def add(self, operation: Operation) -> None:
        """Add the next operation."""
        if isinstance(operation, AppendRows | WriteArray | ExtendExternal):
            self._ends[operation.path] = operation.stop
        elif isinstance(operation, CreateContainer | CreateTable | CreateArray | RegisterExternal):
            self._ends.setdefault(operation.path, 0)
        elif isinstance(operation, RemoveNode):
            self._ends.pop(operation.path, None)

    def findings(self, *, stopped: bool) -> list[Finding]:
        """Return the findings on the progress, after all operations were added.

        Parameters
        ----------
        stopped
            True if the documents include a stop document.
        """
        copies = {rewrite.copy for rewrite in self._rewrites.values()}
        unknown, beyond, short, open_ = Tally(), Tally(), Tally(), Tally()
        for node, progress in self.confirmed.items():
            if node not in self._ends:
                if node not in copies:
                    unknown.add(None, found=node)
            elif max(progress.rows, progress.intent or 0) > self._ends[node]:
                beyond.add(None, f"{node}: up to {self._ends[node]}", max(progress.rows, progress.intent or 0))
        if self.complete:
            for node, end in self._ends.items():
                rows, intent = self.confirmed.get(node, (0, None))
                if rows < end:
                    short.add(None, f"{node}: {end}", rows)
                elif intent is not None:
                    open_.add(None, found=f"{node}: to {intent} rows")
        stopless = Tally()
        if self.outcome == WRITTEN and not stopped:
            stopless.add(None)
        said = f"the run is {self.outcome}, but"
        return [
            *unknown.finding("progress", "nodes that do not follow from the documents: {}", advice=CHECK_OPTIONS),
            *beyond.finding("progress", "nodes with more rows than the documents have: {}", advice=CHECK_OPTIONS),
            *short.finding("progress", f"{said} nodes have unconfirmed rows: {{}}", advice=CHECK_OPTIONS),
            *open_.finding("progress", f"{said} requests are unconfirmed: {{}}"),
            *stopless.finding("state", f"{said} there is no stop document"),
        ]
