"""One run of `TiledWriter`: writes it to Tiled while it is measured, or moves it to the backups."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

from tiledbroker import decode

from .._errors import ColumnsRefused, ColumnsTooNarrow, FoldAgain, TiledUnavailable
from .._names import run_key
from ..catalog import Connection, MemoryLedger, TiledCatalog
from ..mapping import (
    QUIET_PERIOD_SECONDS,
    Consolidator,
    DocumentPatch,
    FoldPlan,
    Operation,
    RunWriter,
    declares_dtype,
    fold_until_planned,
)
from ._backup import Backup, Recording

if TYPE_CHECKING:
    from event_model import EventPage

log = logging.getLogger(__name__)

# Seconds between two checks of operations whose outcome is not known yet.
_OUTCOME_POLL_SECONDS: Final = 0.1

MakeNormalizer: TypeAlias = Callable[..., Any]


@dataclass(frozen=True)
class RunOptions:
    """Options of `TiledWriter` for its runs; see there."""

    client: Any
    normalizer: MakeNormalizer | None
    patches: Mapping[str, DocumentPatch]
    spec_to_mimetype: Mapping[str, str]
    consolidators: Mapping[str, type[Consolidator]]
    batch_size: int
    max_array_size: int
    validate: bool
    ignore_errors: list[str]
    patience: float


class CallbackFold:
    """The fold for one run's documents, with any kind of normalizer.

    A normalizer either returns the modern documents for each document, as `RunNormalizer` does, or has `subscribe` and
    emits them, as normalizers made for bluesky-tiled-plugins do. Such normalizers are the reason why this is not a
    `Fold`, which takes records of a journal, decodes them by column, and checks and filters what `RunNormalizer` emits.

    Attributes
    ----------
    pending
        Number of events and stream datums since the last flush.
    writer
        The `RunWriter` that makes the operations.
    """

    def __init__(self, options: RunOptions, plan: FoldPlan) -> None:
        self.pending = 0
        self._emitted: list[tuple[str, dict[str, Any]]] = []
        self._normalizer: Any = None
        if options.normalizer is not None:
            self._normalizer = options.normalizer(
                patches=dict(options.patches), spec_to_mimetype=dict(options.spec_to_mimetype)
            )
        self._guesses: set[tuple[str, str]] | None = None
        guessed = getattr(self._normalizer, "guessed_types", None)
        if guessed is None:
            guessed = self._guesses = set()
        self._emits = hasattr(self._normalizer, "subscribe")
        if self._emits:
            self._normalizer.subscribe(self._collect_emitted)
        self.writer = RunWriter(
            max_array_size=plan.max_array_size if plan.max_array_size >= 0 else sys.maxsize,
            guessed_types=guessed,
            consolidators=options.consolidators,
            column_types=plan.column_types,
        )

    def __call__(self, name: str, document: dict[str, Any]) -> list[Operation]:
        """Return the operations for a document, which may be changed."""
        if self._guesses is not None and name == "descriptor":
            keys = document.get("data_keys", {})
            self._guesses |= {(document["name"], key) for key, value in keys.items() if not declares_dtype(value)}
        return [
            operation
            for modern_name, modern in self._normalize_document(name, document)
            for operation in self._fold_document(modern_name, modern)
        ]

    def flush(self) -> list[Operation]:
        """Return the operations for everything pending."""
        self.pending = 0
        return self.writer.flush()

    def _normalize_document(self, name: str, document: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
        if self._normalizer is None:
            return [(name, document)]
        self._emitted = []
        returned: Iterable[tuple[str, dict[str, Any]]] = self._normalizer(name, document)
        return self._emitted if self._emits else returned

    def _collect_emitted(self, name: str, document: dict[str, Any]) -> None:
        self._emitted.append((name, document))

    def _fold_document(self, name: str, document: dict[str, Any]) -> Iterator[Operation]:
        for part_name, part in _unpack_page(name, document):
            self.pending += part_name in ("event", "stream_datum")
            stop = dict(part)
            if part_name == "stop":
                # Normalizers made for bluesky-tiled-plugins put their notes there.
                notes = [*stop.pop("_run_normalizer_notes", ()), *getattr(self._normalizer, "notes", ())]
                for note in notes:
                    self.writer.note(note)
            yield from self.writer(part_name, stop)


def _unpack_page(name: str, document: dict[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    """Return a document, or the events of an event page, since `RunWriter` takes no pages."""
    if name != "event_page":
        return [(name, document)]
    from event_model import unpack_event_page

    return [("event", dict(event)) for event in unpack_event_page(cast("EventPage", document))]


class CallbackRun:
    """Called with each document of a run, encoded as `tiledbroker.Encoder` does.

    The documents are recorded until the run ends, for two reasons. First, the backups get the whole run if it fails.
    Second, the run is folded again from its first document if its tables need other columns, because the server has no
    list columns or a value does not fit its declared type. Up to `MAX_MEMORY_BYTES` of the recording are in memory, the
    rest is in a temporary file, so memory is bounded however long the run is.
    """

    def __init__(self, run_uid: str, options: RunOptions, backups: list[Backup]) -> None:
        self._run_uid = run_uid
        self._options = options
        self._backups = backups
        self._recording: Recording | None = Recording()
        self._error: BaseException | None = None
        self._plan = FoldPlan(options.max_array_size)
        self._ledger = MemoryLedger(run_uid)
        self._connection = Connection(
            lambda: options.client, threading.Event(), self._ledger.note, patience=options.patience
        )
        self._catalog = TiledCatalog(self._connection, self._ledger, quiet_period=QUIET_PERIOD_SECONDS)
        self._fold: CallbackFold | None = None

    def __call__(self, name: str, body: bytes) -> None:
        """Process the next document. An error is raised unless a backup has the whole run."""
        if self._recording is not None:
            self._recording.append(name, body)
        if self._error is None:
            self._write_or_back_up(name, body)
        elif self._recording is not None and not self._back_up():
            raise self._error
        if name == "stop":
            self._finish_run()

    def _write_or_back_up(self, name: str, body: bytes) -> None:
        try:
            self._process_document(name, body)
        except BaseException as error:
            self._error = error
            log.exception(
                "Run %s failed at its %s document; nothing more of it is written to Tiled.", self._run_uid, name
            )
            if not self._back_up() or not isinstance(error, Exception):
                raise

    def _back_up(self) -> bool:
        """Move the recorded documents to the backups; return whether a backup has the whole run."""
        for backup in list(self._backups):
            try:
                backup.save(self._recording or ())
            except Exception:
                log.exception("Run %s cannot be backed up by %s.", self._run_uid, type(backup).__name__)
                self._backups.remove(backup)
        if self._recording is not None:
            self._recording.clear()
        if not self._backups:
            self._recording = None
        return bool(self._backups)

    def _finish_run(self) -> None:
        if self._error is not None:
            log.error("Run %s has ended, but is not complete in Tiled.", self._run_uid)
        if self._recording is not None:
            self._recording.clear()

    def _process_document(self, name: str, body: bytes) -> None:
        """Fold a document and apply its operations; if necessary, fold the whole run again."""
        # The recording is None only after a failure.
        assert self._recording is not None
        recording = self._recording
        documents: Iterable[tuple[str, bytes]] = [(name, body)]

        def fold_documents(plan: FoldPlan) -> None:
            for item in documents:
                self._fold_and_apply(plan, *item)

        def begin_again(error: FoldAgain, plan: FoldPlan) -> None:
            nonlocal documents
            if isinstance(error, ColumnsRefused):
                self._ledger.note("no list columns", reason=str(error))
            elif isinstance(error, ColumnsTooNarrow):
                self._ledger.note("wider columns", columns=error.needed)
            self._plan, self._fold, documents = plan, None, recording

        fold_until_planned(self._plan, fold_documents, begin_again)
        if name == "stop" and self._options.validate:
            run = self._options.client[run_key(self._run_uid)]
            run.validate(ignore_errors=self._options.ignore_errors, raise_on_error=True)

    def _fold_and_apply(self, plan: FoldPlan, name: str, body: bytes) -> None:
        if self._fold is None:
            self._fold = CallbackFold(self._options, plan)
        operations = self._fold(name, decode(body))
        if self._fold.pending >= max(1, self._options.batch_size) or self._fold.writer.flush_due:
            operations += self._fold.flush()
        if needed := self._fold.writer.too_narrow:
            raise ColumnsTooNarrow(needed)
        self._apply_operations(operations)

    def _apply_operations(self, operations: list[Operation]) -> None:
        """Apply operations, and wait until the outcome of each is known, for a limited time."""
        waiting = self._catalog.apply(operations)
        limit = self._options.patience + QUIET_PERIOD_SECONDS
        since, left = time.monotonic(), len(waiting)
        while waiting:
            if time.monotonic() - since > limit:
                raise TiledUnavailable(
                    f"After {limit:.0f} s it is unknown whether Tiled did {len(waiting)} operations."
                )
            time.sleep(_OUTCOME_POLL_SECONDS)
            waiting = self._catalog.apply(waiting)
            if len(waiting) < left:
                since, left = time.monotonic(), len(waiting)
