"""The pure core applied to a run's records."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from .._errors import DocumentError, UnwritableDocument
from ._alike import FEWEST, MOST_BYTES, AlikeReader
from ._document_checks import DocumentChecks, check_place, check_run
from ._normalizer import RunNormalizer
from ._operations import Operation
from ._path_map import MappedUri
from ._run_writer import RunWriter
from ._stream_filter import StreamSieve
from ._writing_options import WritingOptions

if TYPE_CHECKING:
    from tiledbroker import Record, RunReader

BATCH_DOCUMENTS: Final = 10_000
BATCH_BYTES: Final = 16 * 2**20
"""How much of a journal is best read at a time."""

MAX_PENDING: Final = 24 * 2**20  # bytes of events, or of their values where these were decoded together
_ALIKE_PAUSE: Final = 256  # documents, after which it is tried again whether they look alike
_VALUES: Final = {"event": ("data", "timestamps"), "stream_datum": ("indices",)}


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
        self._pending_bytes = 0
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
        journal: RunReader,
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

    @property
    def goes_on(self) -> bool:
        """Whether further records can be folded."""
        return not self.finished and self.error is None

    @property
    def crowded(self) -> bool:
        """Whether it is time to `flush`: what was collected takes much memory."""
        return self._writer.crowded or self._pending_bytes > MAX_PENDING

    def feed(self, records: Sequence[Record]) -> list[Operation]:
        """Operations for further records, or for the first of them: `cursor` says where to go on.

        A document that cannot be folded ends it: see `error`.
        """
        return [*self.collect(records), *self.flush()]

    @property
    def holds(self) -> bool:
        """See `RunWriter.holds`."""
        return self._writer.holds

    def flush(self, *, everything: bool = True) -> list[Operation]:
        """Operations for the rows that were collected; see `RunWriter.flush`."""
        self._pending_bytes = 0
        return self._end_of_batch(lambda: self._writer.flush(everything=everything))

    def collect(self, records: Sequence[Record]) -> list[Operation]:
        """The same as `feed`, but rows are kept back until `flush`."""
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
            self._pending_bytes += len(record.body)
            if self.crowded:
                break
            at += 1
            if self._can_read_alike(record.name, document, translated):
                taken = self._feed_alike(record, document, records, at)
                self.cursor += taken
                at += taken
        return operations

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
        self._pending_bytes += alike.nbytes
        return self._writer.add_alike(model.name, document, alike)

    def abandon(self) -> list[Operation]:
        """Operations that end a run without a stop document."""
        self.finished = True
        return self._end_of_batch(self._abandon)

    def _abandon(self) -> list[Operation]:
        operations = self._write(self._normalizer.abandon())
        self._pass_notes_on()
        return [*operations, *self._writer.abandon()]

    def _pass_notes_on(self) -> None:
        """Tell the writer, which writes them to Tiled, all notes that others took."""
        for note in [*self._checks.notes, *self._normalizer.notes, *self._sieve.notes]:
            self._writer.note(note)

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
                self._pass_notes_on()
            operations += self._writer(name, self._on_server(document) if name == "stream_resource" else document)
        return operations

    def _on_server(self, resource: dict[str, Any]) -> dict[str, Any]:
        """A stream resource with its files where the Tiled server sees them."""
        mapped = self._path_map(resource["uri"])
        if self._on_resource is not None:
            self._on_resource(resource, mapped)
        return {**resource, "uri": mapped.uri}
