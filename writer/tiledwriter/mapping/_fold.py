"""Fold the records of a run into Tiled operations."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from .._errors import DocumentError, UnwritableDocument
from ._columnar import MAX_BATCH_BYTES, MIN_BATCH_DOCUMENTS, ColumnarDecoder
from ._document_checks import DocumentChecks, check_place, check_run
from ._fold_plan import FoldPlan
from ._guest_normalizer import GuestNormalizer
from ._normalizer import RunNormalizer
from ._operations import Operation
from ._path_map import MappedUri
from ._recorded_normalizer import NormalizedLog, RecordedNormalizer
from ._run_writer import RunWriter
from ._stream_filter import RunStreamFilter
from ._writing_options import WritingOptions

if TYPE_CHECKING:
    from tiledbroker import Record, RunReader

BATCH_DOCUMENTS: Final = 10_000
"""The recommended number of records to read from a journal at once."""

BATCH_BYTES: Final = 16 * 2**20
"""The recommended size, in bytes, of the records to read from a journal at once."""

MAX_PENDING_EVENT_BYTES: Final = 24 * 2**20

# After columnar decoding fails, the next attempt waits for this number of documents.
_ROW_WISE_DOCUMENTS: Final = 256

# The fields that the normalizer must pass on unchanged for columnar decoding to be valid.
_VALUES: Final = {"event": ("data", "timestamps"), "stream_datum": ("indices",)}


class Fold:
    """The fold of one run: takes the run's records in order and returns the operations that write them.

    The fold performs no I/O and depends on its arguments only. It checks documents after the user's patches; see
    `DocumentChecks`.

    Parameters
    ----------
    run_uid
        The uid of the run.
    options
        The writing options.
    max_array_size
        The largest array in an event, in numbers, that becomes a list column. It replaces the value in `options`.
    on_resource
        Called with each stream resource, as `RunNormalizer` emits it, and with the result of the path map.
    client
        The name of the client that sent the run, for the check of access tags.
    column_types
        Column types by `(stream, data key)` that an earlier fold of the run found necessary; see `too_narrow`.
    refused_mimetypes
        Mimetypes of files that Tiled does not know how to read; see `RunWriter`.
    log
        The run's journal, in which the results of a normalizer of the facility's own are recorded; None if nothing is.

    Attributes
    ----------
    cursor
        The index of the next record to fold.
    finished
        Whether the run has ended, by a stop document or by `abandon`.
    stopped
        Whether the run's stop document was folded.
    error
        The error of the document that cannot be folded, if any.
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
        refused_mimetypes: Collection[str] = (),
        log: NormalizedLog | None = None,
    ) -> None:
        self.cursor = 0
        self.finished = self.stopped = False
        self.error: UnwritableDocument | None = None
        self._pending_bytes = 0
        self._run_uid = run_uid
        self._client = client
        self._access_tags = options.access_tags
        self._on_resource = on_resource
        self._path_map = options.path_map
        self._run_stream_filter = RunStreamFilter(options.streams)
        self._checks = DocumentChecks()
        self._normalizer = _make_normalizer(options, log)
        self._normalizer.check = self._checks
        self._columnar = ColumnarDecoder()
        self._columnar_from = 0
        # The user's patches and normalizers must see each document.
        self._columnar_names: frozenset[str] = frozenset()
        if isinstance(self._normalizer, RunNormalizer):
            self._columnar_names = ColumnarDecoder.names - self._normalizer.patches.keys()
        self._writer = RunWriter(
            max_array_size=max_array_size,
            guessed_types=self._normalizer.guessed_types,
            consolidators=options.plugins.load_consolidators(),
            column_types=column_types,
            refused_mimetypes=refused_mimetypes,
            keeps_stream=options.streams.keeps,
        )

    @classmethod
    def of(
        cls,
        journal: RunReader,
        options: WritingOptions,
        plan: FoldPlan,
        on_resource: Callable[[Mapping[str, Any], MappedUri], None] | None = None,
    ) -> Fold:
        """Return a fold for the run of a journal with a plan; for the other arguments see `Fold`."""
        return cls(
            journal.run_uid,
            options,
            plan.max_array_size,
            on_resource,
            client=journal.get("client", ""),
            column_types=plan.column_types,
            refused_mimetypes=plan.refused_mimetypes,
            log=journal,
        )

    @property
    def too_narrow(self) -> dict[tuple[str, str], str]:
        """Column types needed to hold all values so far; see `RunWriter.too_narrow`."""
        return self._writer.too_narrow

    @property
    def accepts_more(self) -> bool:
        """Whether the fold can take further records."""
        return not self.finished and self.error is None

    @property
    def flush_due(self) -> bool:
        """Whether a `flush` is due because the collected rows take much memory."""
        return self._writer.flush_due or self._pending_bytes > MAX_PENDING_EVENT_BYTES

    def feed(self, records: Sequence[Record]) -> list[Operation]:
        """Fold records and flush; return the operations.

        The fold may take only the first of the records: it stops when a flush is due (`flush_due`), at the end of the
        run, and at a document that cannot be folded, for which it sets `error`. `cursor` is the index of the next
        record to feed.
        """
        return [*self.collect(records), *self.flush()]

    @property
    def has_held_frames(self) -> bool:
        """Whether frames are held back; see `RunWriter.has_held_frames`."""
        return self._writer.has_held_frames

    def flush(self, *, everything: bool = True) -> list[Operation]:
        """Return the operations for the collected rows; see `RunWriter.flush`."""
        self._pending_bytes = 0
        return self._end_of_batch(lambda: self._writer.flush(everything=everything))

    def collect(self, records: Sequence[Record]) -> list[Operation]:
        """Fold records like `feed`, but keep rows back until `flush`."""
        operations: list[Operation] = []
        at = 0
        # Documents after the stop document stay in the journal.
        while at < len(records) and not self.finished:
            record = records[at]
            try:
                if record.idx != self.cursor:
                    raise DocumentError(f"It follows where document {self.cursor} should be; the journal is damaged.")
                check_place(record.idx, record.name)
                document = record.document()
                translated = self._normalize(record.idx, record.name, document)
                operations += self._fold_documents(translated)
            except Exception as error:
                self.error = UnwritableDocument(record.idx, record.name, error)
                break
            self.cursor = record.idx + 1
            self.stopped = self.stopped or record.name == "stop"
            self._pending_bytes += len(record.body)
            if self.flush_due:
                break
            at += 1
            if self._can_decode_by_column(record.name, document, translated):
                taken = self._feed_batch(record, translated[0][1], records, at)
                self.cursor += taken
                at += taken
        return operations

    def take_normalized(self) -> list[tuple[int, bytes]]:
        """Return what the journal has to record before the operations so far are applied; see `RecordedNormalizer`."""
        return [] if isinstance(self._normalizer, RunNormalizer) else self._normalizer.take_fresh()

    def _normalize(self, idx: int, name: str, document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        if isinstance(self._normalizer, RunNormalizer):
            return self._normalizer(name, document)
        return self._normalizer.normalize(idx, name, document)

    def _can_decode_by_column(
        self, name: str, document: Mapping[str, Any], translated: list[tuple[str, dict[str, Any]]]
    ) -> bool:
        """Return whether documents that differ from this one in values only can be decoded by column.

        That requires that the normalizer passes them on unchanged, that the stream filter keeps them, that none of
        their kind has deviated from its schema, and that the run writer accepts batches of them.

        Parameters
        ----------
        name, document
            The document as received.
        translated
            The modern documents that the normalizer made of it.
        """
        if name not in self._columnar_names or self.cursor < self._columnar_from or len(translated) != 1:
            return False
        (_, modern) = translated[0]
        return (
            all(modern[field] is document[field] for field in _VALUES[name])
            and self._run_stream_filter.keeps(name, modern)
            and not self._checks.tolerates(name)
            and self._writer.accepts_batch(name, modern)
        )

    def _feed_batch(self, model: Record, document: Mapping[str, Any], records: Sequence[Record], start: int) -> int:
        """Decode by column the records from `start` on that differ from a model in values only.

        Parameters
        ----------
        model, document
            The record before `start`, and the modern document that was made of it.
        records, start
            The records, and the position of the first one to decode.

        Returns
        -------
        int
            The number of records taken; 0 if columnar decoding does not apply.
        """
        size = len(model.body)
        nearest = records[start + MIN_BATCH_DOCUMENTS - 1 : start + MIN_BATCH_DOCUMENTS]
        if not nearest or len(nearest[0].body) != size:
            return 0
        bodies: list[bytes] = []
        for record in records[start : start + max(MIN_BATCH_DOCUMENTS, MAX_BATCH_BYTES // size)]:
            idx, name, _, crc, body = record
            if len(body) != size or name != model.name or idx != self.cursor + len(bodies) or zlib.crc32(body) != crc:
                break
            bodies.append(body)
        batch = (
            self._columnar.decode_batch(model.name, model.body, bodies) if len(bodies) >= MIN_BATCH_DOCUMENTS else None
        )
        if batch is None:
            self._columnar_from = self.cursor + _ROW_WISE_DOCUMENTS
            return 0
        self._pending_bytes += batch.nbytes
        return self._writer.add_batch(model.name, document, batch)

    def abandon(self) -> list[Operation]:
        """Return the operations that end a run without a stop document."""
        self.finished = True
        return self._end_of_batch(self._abandon_run)

    def _abandon_run(self) -> list[Operation]:
        normalizer = self._normalizer
        documents = normalizer.abandon() if isinstance(normalizer, RunNormalizer) else normalizer.abandon(self.cursor)
        operations = self._fold_documents(documents)
        self._pass_notes_on()
        return [*operations, *self._writer.abandon()]

    def _pass_notes_on(self) -> None:
        """Pass the notes of all stages to the run writer, which writes them to Tiled."""
        for note in [*self._checks.notes, *self._normalizer.notes, *self._run_stream_filter.notes]:
            self._writer.note(note)

    def _end_of_batch(self, operations: Callable[[], list[Operation]]) -> list[Operation]:
        """Return the operations for the rows kept back.

        If that fails, set `error`: the cause is the last document, or one before it.
        """
        try:
            return operations()
        except Exception as error:
            self.error = self.error or UnwritableDocument(self.cursor - 1, "or one before", error)
            return []

    def _fold_documents(self, documents: Iterable[tuple[str, dict[str, Any]]]) -> list[Operation]:
        """Return the operations for modern documents."""
        operations: list[Operation] = []
        for name, document in documents:
            check_run(self._run_uid, name, document)
            if name == "start":
                self._access_tags.check(self._client, document)
            if not self._run_stream_filter.keeps(name, document):
                continue
            if name == "stop":
                self.finished = self.stopped = True
                self._pass_notes_on()
            operations += self._writer(name, self._on_server(document) if name == "stream_resource" else document)
        return operations

    def _on_server(self, resource: dict[str, Any]) -> dict[str, Any]:
        """Return a stream resource with the URI by which the Tiled server reaches the files."""
        mapped = self._path_map(resource["uri"])
        if self._on_resource is not None:
            self._on_resource(resource, mapped)
        return {**resource, "uri": mapped.uri}


def _make_normalizer(options: WritingOptions, log: NormalizedLog | None) -> RunNormalizer | RecordedNormalizer:
    """Return the normalizer of one run. What a facility's own one makes is recorded."""

    def make() -> RunNormalizer | GuestNormalizer:
        return options.plugins.make_normalizer(options.spec_to_mimetype)

    if options.plugins.normalizer is not None:
        return RecordedNormalizer(make, log)
    normalizer = make()
    assert isinstance(normalizer, RunNormalizer)
    return normalizer
