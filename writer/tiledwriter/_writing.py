"""The thread that writes one run: journal to core to catalog, at Tiled's pace, from wherever it stopped."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from tiledbroker import Journal, Record
from tiledbroker._crash_points import crash_point
from tiledbroker._limited import LimitedLog

from ._access_tags import AccessTagLimits
from ._alike import FEWEST, MOST_BYTES, AlikeReader
from ._catalog import LATE_AUDIT, QUIET_PERIOD, TiledCatalog
from ._connection import POISON_AFTER, Client, Connection
from ._document_checks import DocumentChecks, check_place, check_run
from ._errors import (
    ColumnsRefused,
    ColumnsTooNarrow,
    DocumentError,
    NodeRewound,
    Stopped,
    UnwritableDocument,
    describe,
)
from ._handover import Handover
from ._normalizer import RunNormalizer
from ._operations import Operation
from ._path_map import MappedUri, PathMap
from ._plugins import Plugins
from ._run_writer import MAX_ARRAY_SIZE, RunWriter
from ._stream_filter import StreamFilter, StreamSieve
from ._turns import Turns

log = logging.getLogger(__name__)

BATCH_DOCUMENTS: Final = 10_000
BATCH_BYTES: Final = 16 * 2**20
MAX_WAITING: Final = 32  # operations that wait for a node to settle while others go on
DISK_PAUSE: Final = 1.0
LATE_AUDIT_AFTER: Final = 300.0
WRITE_SLOTS: Final = 2
_SETTLING_POLL: Final = 0.25
_IDLE: Final = 1.0
_ALIKE_PAUSE: Final = 256  # documents, after which it is tried again whether they look alike
_VALUES: Final = {"event": ("data", "timestamps"), "stream_datum": ("indices",)}

WRITTEN: Final = "written"
INTERRUPTED: Final = "interrupted"
FAILED: Final = "failed"


@dataclass(frozen=True)
class WritingOptions:
    """How runs are written.

    Attributes
    ----------
    max_array_size
        Arrays in events of up to this many numbers become list columns, where the server's tables have those.
    quiet_period
        Seconds; see `TiledCatalog`.
    poison_after
        Seconds; see `Connection`.
    late_audit
        Seconds after its end at which a run is compared with its journal once more, if answers were lost.
    write_slots
        Requests at a time that write to Tiled, over all workers of a journal directory.
    spec_to_mimetype
        For old resources, in addition to the specs that `RunNormalizer` knows.
    plugins
        The user's own normalizer, patches and consolidators.
    streams
        Which streams are written at all.
    path_map
        From the acquisition host's file paths to the Tiled server's.
    access_tags
        Which access tags the runs of a client may ask for.
    """

    max_array_size: int = MAX_ARRAY_SIZE
    quiet_period: float = QUIET_PERIOD
    poison_after: float = POISON_AFTER
    late_audit: float = LATE_AUDIT_AFTER
    write_slots: int = WRITE_SLOTS
    spec_to_mimetype: Mapping[str, str] = field(default_factory=dict)
    plugins: Plugins = field(default_factory=Plugins)
    streams: StreamFilter = field(default_factory=StreamFilter)
    path_map: PathMap = field(default_factory=PathMap)
    access_tags: AccessTagLimits = field(default_factory=AccessTagLimits)


class Fold:
    """The pure core applied to a run's records: which operations they amount to.

    Documents are checked as they are after the user's patches; see `DocumentChecks`. `client` is whose the run is.
    `on_resource` is told of each stream resource, as `RunNormalizer` emits it, and where the path map says it is.
    """

    def __init__(
        self,
        run_uid: str,
        options: WritingOptions,
        max_array_size: int,
        on_resource: Callable[[Mapping[str, Any], MappedUri], None] | None = None,
        *,
        client: str = "",
        column_types: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self.cursor = 0
        self.finished = False
        self.error: UnwritableDocument | None = None
        self._run_uid = run_uid
        self._client = client
        self._access_tags = options.access_tags
        self._on_resource = on_resource
        self._path_map = options.path_map
        self._sieve = StreamSieve(options.streams)
        self._normalizer = options.plugins.make_normalizer(options.spec_to_mimetype)
        self._checks = self._normalizer.check = DocumentChecks()
        self._alike = AlikeReader()
        self._alike_from = 0
        # Who brings code of his own sees each document.
        alike = AlikeReader.names - self._normalizer.patches.keys()
        self._read_alike = alike if type(self._normalizer) is RunNormalizer else frozenset()
        self._writer = RunWriter(
            max_array_size=max_array_size,
            guessed_types=self._normalizer.guessed_types,
            consolidators=options.plugins.load_consolidators(),
            column_types=column_types,
        )

    @classmethod
    def of(
        cls,
        journal: Journal,
        options: WritingOptions,
        max_array_size: int,
        column_types: Mapping[tuple[str, str], str],
        on_resource: Callable[[Mapping[str, Any], MappedUri], None] | None = None,
    ) -> Fold:
        """For the run of a journal."""
        client = journal.get("client", "")
        return cls(journal.run_uid, options, max_array_size, on_resource, client=client, column_types=column_types)

    @property
    def too_narrow(self) -> dict[tuple[str, str], str]:
        """See `RunWriter.too_narrow`."""
        return self._writer.too_narrow

    def feed(self, records: list[Record]) -> list[Operation]:
        """Operations for further records, or for the first of them: `cursor` says where to go on.

        A document that cannot be folded ends it: see `error`.
        """
        operations: list[Operation] = []
        at = 0
        while at < len(records) and not self.finished:  # what comes after the stop document stays in the journal
            record = records[at]
            try:
                if record.idx != self.cursor:
                    raise DocumentError(f"It follows where document {self.cursor} should be; the journal is damaged.")
                check_place(record.idx, record.name)
                document = record.document()
                translated = self._normalizer(record.name, document)
                operations += self._write(translated)
            except Exception as error:
                self.error = UnwritableDocument(record.idx, record.name, error)
                break
            self.cursor = record.idx + 1
            if self._writer.crowded:
                break
            at += 1
            if self._can_read_alike(record.name, document, translated):
                taken = self._feed_alike(record, document, records, at)
                self.cursor += taken
                at += taken
        return operations + self._end_of_batch(self._writer.flush)

    def _can_read_alike(
        self, name: str, document: Mapping[str, Any], translated: list[tuple[str, dict[str, Any]]]
    ) -> bool:
        """Whether documents that differ from this one in values only come to rows as it did, by way of nothing else."""
        if name not in self._read_alike or self.cursor < self._alike_from or len(translated) != 1:
            return False
        (_, modern) = translated[0]
        return (
            all(modern[field] is document[field] for field in _VALUES[name])
            and self._sieve.keeps(name, modern)
            and not self._checks.tolerates(name)
            and self._writer.takes_alike(name, modern)
        )

    def _feed_alike(self, model: Record, document: Mapping[str, Any], records: Sequence[Record], start: int) -> int:
        """Take in the records from `start` on that differ from a model in values only; how many that are."""
        size = len(model.body)
        nearest = records[start + FEWEST - 1 : start + FEWEST]
        if not nearest or len(nearest[0].body) != size:
            return 0
        bodies: list[bytes] = []
        for record in records[start : start + max(FEWEST, MOST_BYTES // size)]:
            idx, name, _, crc, body = record
            if len(body) != size or name != model.name or idx != self.cursor + len(bodies) or zlib.crc32(body) != crc:
                break
            bodies.append(body)
        alike = self._alike.read(model.name, model.body, bodies) if len(bodies) >= FEWEST else None
        if alike is None:
            self._alike_from = self.cursor + _ALIKE_PAUSE
            return 0
        return self._writer.add_alike(model.name, document, alike)

    def abandon(self) -> list[Operation]:
        """Operations that end a run without a stop document."""
        self.finished = True
        return self._end_of_batch(lambda: [*self._write(self._normalizer.abandon()), *self._writer.abandon()])

    def _end_of_batch(self, operations: Callable[[], list[Operation]]) -> list[Operation]:
        """Operations for what was kept back so far; should that fail, one of these documents was the cause."""
        try:
            return operations()
        except Exception as error:
            self.error = self.error or UnwritableDocument(self.cursor - 1, "or one before", error)
            return []

    def _write(self, documents: Iterable[tuple[str, dict[str, Any]]]) -> list[Operation]:
        """Operations for modern documents."""
        operations: list[Operation] = []
        for name, document in documents:
            check_run(self._run_uid, name, document)
            if name == "start":
                self._access_tags.check(self._client, document)
            if not self._sieve.keeps(name, document):
                continue
            if name == "stop":
                self.finished = True
                for note in [*self._checks.notes, *self._normalizer.notes, *self._sieve.notes]:
                    self._writer.note(note)
            operations += self._writer(name, self._on_server(document) if name == "stream_resource" else document)
        return operations

    def _on_server(self, resource: dict[str, Any]) -> dict[str, Any]:
        """A stream resource with its files where the Tiled server sees them."""
        mapped = self._path_map(resource["uri"])
        if self._on_resource is not None:
            self._on_resource(resource, mapped)
        return {**resource, "uri": mapped.uri}


@dataclass(frozen=True)
class Folded:
    """Some more documents of a journal: which operations they amount to, and where the fold is after them."""

    documents: int = 0
    operations: Sequence[Operation] = ()
    cursor: int = 0
    finished: bool = False
    error: UnwritableDocument | None = None
    too_narrow: dict[tuple[str, str], str] = field(default_factory=dict)

    @property
    def goes_on(self) -> bool:
        """Whether further documents can be folded."""
        return not self.finished and self.error is None


class RunWriting:
    """Writes one run until it is complete, has failed, or the process ends.

    `start` begins, `stop` ends it and joins the thread. New documents in the journal are announced, and handed over, by
    `notify`.

    Parameters
    ----------
    journal
        Of the run; its progress and history are kept here.
    connect
        Makes the `tiled.client` container to write into.
    drain
        End when everything in the journal is written, even if the run is open.
    on_progress
        Called with the index up to which documents are in Tiled.
    on_end
        Called with the outcome ("written", "interrupted", "failed", or "" if there is none) and its reason.
    on_reached
        Called when Tiled answers for the first time, and again after it was away.
    """

    def __init__(
        self,
        journal: Journal,
        connect: Callable[[], Client],
        options: WritingOptions,
        *,
        drain: bool,
        on_progress: Callable[[int], None],
        on_end: Callable[[str, str], None],
        on_reached: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._options = options
        self._drain = drain
        self._on_progress = on_progress
        self._on_end = on_end
        self._stopping = threading.Event()
        self._news = threading.Event()
        self._handover = Handover(BATCH_BYTES)
        self._connection = Connection(
            connect,
            self._stopping,
            journal.note,
            poison_after=options.poison_after,
            turns=Turns(journal.path.parent / ".turns", options.write_slots),
            on_reached=on_reached,
        )
        self._limited = LimitedLog(log)
        self._told = -1
        self._thread = threading.Thread(target=self._run, name="tiledwriter-writing", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """End the thread; a request that is under way is given up after `timeout` seconds."""
        self._stopping.set()
        self._news.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def notify(self, records: Sequence[Record] = ()) -> None:
        """There are new documents in the journal; `records` are the last of them."""
        self._handover.put(records)
        self._news.set()

    @property
    def away_since(self) -> float | None:
        """Since when (`time.monotonic`) Tiled takes no requests; None while it does."""
        return self._connection.away_since

    def _run(self) -> None:
        outcome, reason = "", ""
        try:
            while not self._stopping.is_set():
                try:
                    outcome, reason = self._write_or_fail()
                    break
                except sqlite3.OperationalError as error:
                    # What the journal did not take is found out again from the journal.
                    self._limited.log(logging.ERROR, "disk", "%s cannot be written: %s", self._journal.path, error)
                    self._stopping.wait(DISK_PAUSE)
        except Stopped:
            pass
        finally:
            self._on_end(outcome, reason)

    def _write_or_fail(self) -> tuple[str, str]:
        """The outcome and its reason, as recorded in the journal."""
        try:
            outcome, reason, detail = self._write(), "", {}
        except (Stopped, sqlite3.OperationalError):
            raise
        except Exception as error:
            if self._stopping.is_set():  # the journal may have been closed under us
                raise Stopped(str(error)) from error
            log.exception("Run %s cannot be written; it is put in quarantine.", self._journal.run_uid)
            outcome, reason, detail = FAILED, f"{type(error).__name__}: {error}", describe(error)
        if outcome:
            self._conclude(outcome, reason, **detail)
        return outcome, reason

    def _conclude(self, outcome: str, reason: str, **detail: Any) -> None:
        with self._journal.atomic():
            self._journal.set("outcome", outcome)
            self._journal.set("reason", reason or None)
            # Requests whose answers were lost may be carried out yet: somebody has to look again, once.
            late = outcome != FAILED and self._journal.get(LATE_AUDIT)
            self._journal.set("audit_at", time.time() + self._options.late_audit if late else None)
            self._journal.set(LATE_AUDIT, None)
            self._journal.note(outcome, documents=self._journal.length, **detail)
        crash_point("writing: outcome recorded")

    def _write(self) -> str:
        catalog = TiledCatalog(self._connection, self._journal, quiet_period=self._options.quiet_period)
        while True:
            # Kept in the journal: whoever replays it has to come to the same operations.
            max_array_size = self._journal.get("max_array_size")
            if max_array_size is None:
                max_array_size = self._options.max_array_size
                self._journal.set("max_array_size", max_array_size)
            column_types = {(stream, key): kind for stream, key, kind in self._journal.get("column_types", [])}
            try:
                return self._follow(Fold.of(self._journal, self._options, max_array_size, column_types), catalog)
            except NodeRewound:
                pass
            except ColumnsRefused as error:
                self._journal.set("max_array_size", 0)
                self._journal.note("no list columns", reason=str(error))
            except ColumnsTooNarrow as error:
                column_types.update(error.needed)
                self._journal.set("column_types", [[*where, kind] for where, kind in column_types.items()])
                crash_point("writing: columns to be widened")
                self._journal.note("wider columns", columns=[[*where, kind] for where, kind in error.needed.items()])

    def _follow(self, fold: Fold, catalog: TiledCatalog) -> str:
        """Fold and write until the run has ended; the next documents are folded while Tiled takes the last ones."""
        waiting: list[Operation] = []
        folded = Folded()
        ahead: Future[Folded] | None = None
        with ThreadPoolExecutor(1, "tiledwriter-folding") as folding:
            while not self._stopping.is_set():
                self._news.clear()
                operations: Sequence[Operation] = ()
                if len(waiting) <= MAX_WAITING:
                    folded = self._fold_more(fold) if ahead is None else ahead.result()
                    more = folded.goes_on and self._journal.length > folded.cursor
                    ahead = folding.submit(self._fold_more, fold) if more else None
                    operations = folded.operations
                if folded.too_narrow:
                    raise ColumnsTooNarrow(folded.too_narrow)
                waiting = catalog.apply([*waiting, *operations])
                if waiting:
                    self._stopping.wait(_SETTLING_POLL)
                    continue
                if folded.error is not None:
                    raise folded.error
                if folded.cursor != self._told:
                    self._told = folded.cursor
                    self._on_progress(folded.cursor)
                if folded.finished:
                    return WRITTEN if self._journal.stopped else INTERRUPTED
                if not folded.documents and ahead is None:
                    if self._drain:
                        return ""
                    self._news.wait(_IDLE)
        raise Stopped("Told to stop.")

    def _fold_more(self, fold: Fold) -> Folded:
        """The next documents of the journal, folded."""
        records: list[Record] = []
        operations: list[Operation] = []
        if not fold.finished and fold.error is None:
            records = self._read_on(fold.cursor)
            if not records and self._journal.ended:
                records = self._read_on(fold.cursor)  # there may be some now
                if not records:
                    operations = fold.abandon()
            if records:
                operations = fold.feed(records)
        return Folded(len(records), operations, fold.cursor, fold.finished, fold.error, fold.too_narrow)

    def _read_on(self, start: int) -> list[Record]:
        """Some documents from index `start` on."""
        records = self._handover.take(start, BATCH_DOCUMENTS)
        if records or self._journal.length <= start:
            return records
        return self._journal.read(start, BATCH_DOCUMENTS, BATCH_BYTES)
