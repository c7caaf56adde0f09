"""One run of `TiledWriter`: writes it to Tiled while it is measured, or moves it to the backups."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, TypeAlias

from tiledbroker import Encoder, decode

from .._errors import ColumnsRefused, ColumnsTooNarrow, FoldAgain, MimetypeRefused, TiledUnavailable
from .._names import run_key
from ..catalog import Connection, MemoryLedger, TiledCatalog
from ..mapping import (
    QUIET_PERIOD_SECONDS,
    Consolidator,
    DocumentPatch,
    FoldPlan,
    GuestNormalizer,
    Operation,
    RunNormalizer,
    RunWriter,
    declares_dtype,
    fold_until_planned,
    make_normalizer,
    registered_consolidators,
    unpack_pages,
)
from ._backup import Backup, Recording

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
    audit: bool


class PassThrough:
    """Stands for a normalizer where documents are modern already."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.guessed_types: set[tuple[str, str]] = set()

    def __call__(self, name: str, document: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        """Return the document, or the events of an event page."""
        if name == "descriptor":
            keys = document.get("data_keys", {})
            self.guessed_types |= {(document["name"], key) for key, value in keys.items() if not declares_dtype(value)}
        return list(unpack_pages(name, document))


def _make_normalizer(options: RunOptions) -> RunNormalizer | GuestNormalizer | PassThrough:
    if not options.normalizer:
        return PassThrough()
    return make_normalizer(options.normalizer, options.patches, options.spec_to_mimetype)


class CallbackRun:
    """Called with each document of a run, encoded as `tiledbroker.Encoder` does.

    The documents are recorded until the run ends, for two reasons. First, the backups get the whole run if it fails.
    Second, the run is folded again from its first document if its tables need other columns, because the server has no
    list columns or a value does not fit its declared type. What is folded are the normalized documents: a facility's
    normalizer may draw uids, so it must see each document once. Up to `MAX_MEMORY_BYTES` of each recording are in
    memory, the rest is in a temporary file, so memory is bounded however long the run is.
    """

    def __init__(self, run_uid: str, options: RunOptions, backups: list[Backup]) -> None:
        self._run_uid = run_uid
        self._options = options
        self._backups = backups
        self._recording: Recording | None = Recording() if backups else None
        self._normalized = Recording()
        self._encoder = Encoder()
        self._error: BaseException | None = None
        self._plan = FoldPlan(options.max_array_size)
        self._ledger = MemoryLedger(run_uid)
        self._connection = Connection(
            lambda: options.client, threading.Event(), self._ledger.note, patience=options.patience
        )
        self._catalog = TiledCatalog(
            self._connection, self._ledger, quiet_period=QUIET_PERIOD_SECONDS, audit_undisturbed=options.audit
        )
        self._writer: RunWriter | None = None

    @cached_property
    def _normalizer(self) -> RunNormalizer | GuestNormalizer | PassThrough:
        # Made for the first document, so that the backups get the run if it cannot be made.
        return _make_normalizer(self._options)

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
        self._normalized.clear()

    def _process_document(self, name: str, body: bytes) -> None:
        """Fold a document and apply its operations; if necessary, fold the whole run again."""
        normalized = [
            (modern_name, self._encoder.encode(modern)) for modern_name, modern in self._normalizer(name, decode(body))
        ]
        for item in normalized:
            self._normalized.append(*item)
        documents: Iterable[tuple[str, bytes]] = normalized

        def fold_documents(plan: FoldPlan) -> None:
            for item in documents:
                self._fold_and_apply(plan, *item)

        def begin_again(error: FoldAgain, plan: FoldPlan) -> None:
            nonlocal documents
            if isinstance(error, ColumnsRefused):
                self._ledger.note("no list columns", reason=str(error))
            elif isinstance(error, ColumnsTooNarrow):
                self._ledger.note("wider columns", columns=error.needed)
            elif isinstance(error, MimetypeRefused):
                self._ledger.note("mimetype refused", mimetype=error.mimetype, reason=str(error))
            self._plan, self._writer, documents = plan, None, self._normalized

        fold_until_planned(self._plan, fold_documents, begin_again)
        if name == "stop" and self._options.validate:
            run = self._options.client[run_key(self._run_uid)]
            run.validate(ignore_errors=self._options.ignore_errors, raise_on_error=True)

    def _fold_and_apply(self, plan: FoldPlan, name: str, body: bytes) -> None:
        """Fold a normalized document, and apply the operations that are due."""
        if self._writer is None:
            self._writer = self._make_writer(plan)
        document = decode(body)
        if name == "stop":
            for note in self._normalizer.notes:
                self._writer.note(note)
        operations = self._writer(name, document)
        if self._writer.flush_due:
            operations += self._writer.flush()
        elif name in ("event", "stream_datum"):
            operations += self._writer.flush_batch(document, max(1, self._options.batch_size))
        if needed := self._writer.too_narrow:
            raise ColumnsTooNarrow(needed)
        self._apply_operations(operations)

    def _make_writer(self, plan: FoldPlan) -> RunWriter:
        return RunWriter(
            max_array_size=plan.max_array_size if plan.max_array_size >= 0 else sys.maxsize,
            guessed_types=self._normalizer.guessed_types,
            # A module that registers consolidators may be imported at any time.
            consolidators={**self._options.consolidators, **registered_consolidators()},
            column_types=plan.column_types,
            refused_mimetypes=plan.refused_mimetypes,
        )

    def _apply_operations(self, operations: list[Operation]) -> None:
        """Apply operations, and wait until the outcome of each is known, for a limited time."""
        waiting = self._catalog.apply(operations)
        limit = self._options.patience + QUIET_PERIOD_SECONDS
        since, left = time.monotonic(), len(waiting)
        while waiting:
            seconds_left = since + limit - time.monotonic()
            if seconds_left <= 0:
                raise TiledUnavailable(
                    f"After {limit:.0f} s it is unknown whether Tiled did {len(waiting)} operations."
                )
            time.sleep(min(seconds_left, self._catalog.choose_pause(_OUTCOME_POLL_SECONDS)))
            waiting = self._catalog.apply(waiting)
            if len(waiting) < left:
                since, left = time.monotonic(), len(waiting)
