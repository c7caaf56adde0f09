"""Prefetch of the fold: documents are folded while Tiled handles the previous request."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from tiledbroker import Journal, JournalInvalid, Record

from .._errors import UnwritableDocument
from ..mapping import BATCH_BYTES, BATCH_DOCUMENTS, Fold, Operation
from ._record_buffer import RecordBuffer

HOLD_SECONDS: Final = 5.0
"""Seconds for which a few frames of a key with many frames may be held back, see `RunWriter.has_held_frames`."""

_DOCUMENT_WAIT_SECONDS: Final = 1.0


@dataclass(frozen=True)
class FoldedBatch:
    """Further documents of a journal, folded into operations.

    Attributes
    ----------
    documents
        Number of documents folded.
    operations
        Their operations, which are complete for all documents before `cursor`.
    cursor
        Index up to which nothing is held back; documents from here on may be folded, but held back in part.
    finished
        The fold has reached the end of the run.
    error
        The reason why nothing follows: the next document cannot be folded or read. None if there is none.
    too_narrow
        Column types that the values need, by stream and data key, see `RunWriter.too_narrow`.
    normalized
        What the journal has to record before the operations are applied, see `Fold.take_normalized`.
    """

    documents: int
    operations: list[Operation]
    cursor: int
    finished: bool
    error: UnwritableDocument | JournalInvalid | None
    too_narrow: dict[tuple[str, str], str]
    normalized: list[tuple[int, bytes]]


class FoldPrefetch:
    """Folds a journal's documents in its own thread, until the result is taken.

    All documents that arrive while Tiled handles one request thus go into the next one, which is ready in time. A
    request takes Tiled about 10 to 100 ms, however few rows it has, and longer with more columns.

    Parameters
    ----------
    fold
        The fold, which nothing else may use meanwhile.
    journal
        The journal to read documents from.
    record_buffer
        Buffer of the newest documents, which also signals new ones.
    """

    def __init__(self, fold: Fold, journal: Journal, record_buffer: RecordBuffer) -> None:
        self._fold = fold
        self._journal = journal
        self._record_buffer = record_buffer
        # The documents folded so far are wanted: if there are any, as long as `_patient`, and not yet, until `_taken`.
        self._wanted = threading.Event()
        self._patient = False
        self._taken = threading.Event()
        self._has_some = threading.Event()
        self._closed = False
        # The index of the first document that may be held back, and the time at which none was held back last.
        self._nothing_held = fold.cursor, time.monotonic()
        self._thread = ThreadPoolExecutor(1, "tiledwriter-folding")
        self._next: Future[FoldedBatch] | None = None
        self._submit()

    def __enter__(self) -> FoldPrefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._thread.shutdown()

    def close(self) -> None:
        """Stop folding, from any thread; a blocked `take_batch` returns what there is."""
        self._closed = True
        self._record_buffer.wake()

    @property
    def accepts_more(self) -> bool:
        """Whether `take_batch` can return more."""
        return self._next is not None

    def take_batch(self, *, wait: bool) -> FoldedBatch:
        """Return what was folded since the last call. With `wait`, block until there is something."""
        assert self._next is not None
        self._patient = wait
        self._wanted.set()
        self._taken.set()
        self._record_buffer.wake()
        folded = self._next.result()
        self._wanted.clear()
        self._taken.clear()
        if self._fold.accepts_more and folded.error is None:
            self._submit()
        else:
            self._next = None
        return folded

    @property
    def is_complete(self) -> bool:
        """Whether what `take_batch` returns is complete, so that nothing that arrives meanwhile goes along."""
        return self._next is None or self._next.done()

    def wait_for_some(self) -> None:
        """Block until `take_batch` with `wait` would return at once; what arrives until that call is folded as well."""
        self._patient = True
        self._wanted.set()
        self._record_buffer.wake()
        self._has_some.wait()

    def _submit(self) -> None:
        self._has_some.clear()
        self._next = self._thread.submit(self._fold_batch)
        self._next.add_done_callback(lambda _: self._has_some.set())

    def _fold_batch(self) -> FoldedBatch:
        fold = self._fold
        start = fold.cursor
        operations: list[Operation] = []
        damage: JournalInvalid | None = None
        while not self._closed:
            wanted = self._wanted.is_set()
            try:
                records = self._read_on()
            except JournalInvalid as error:
                damage = error
                break
            if records:
                operations += fold.collect(records)
            elif self._journal.ended and self._journal.length <= fold.cursor:
                operations += fold.abandon()
            if not fold.accepts_more or fold.flush_due:
                break
            is_enough = fold.cursor > start or not self._patient
            if not records:
                is_enough = is_enough or (fold.has_held_frames and self._is_due)
            if wanted and is_enough:
                self._has_some.set()
                if self._taken.is_set():
                    break
            if not records:
                self._record_buffer.wait(
                    min(_DOCUMENT_WAIT_SECONDS, max(0.01, self._seconds_left))
                    if wanted and fold.has_held_frames
                    else _DOCUMENT_WAIT_SECONDS
                )
        reason = fold.error or damage
        everything = not (self._patient and fold.accepts_more) or self._closed or self._is_due or reason is not None
        operations += fold.flush(everything=everything)
        if not fold.has_held_frames:
            self._nothing_held = fold.cursor, time.monotonic()
        cursor = self._nothing_held[0]
        return FoldedBatch(
            *(fold.cursor - start, operations, cursor, fold.finished),
            *(reason, fold.too_narrow, fold.take_normalized()),
        )

    @property
    def _is_due(self) -> bool:
        """Whether frames were held back for `HOLD_SECONDS`."""
        return self._seconds_left <= 0

    @property
    def _seconds_left(self) -> float:
        """Seconds for which frames may still be held back."""
        return self._nothing_held[1] + HOLD_SECONDS - time.monotonic()

    def _read_on(self) -> list[Record]:
        """Return the next documents, a limited number."""
        start = self._fold.cursor
        records = self._record_buffer.take_records(start, BATCH_DOCUMENTS)
        if records or self._journal.length <= start:
            return records
        return self._journal.read(start, BATCH_DOCUMENTS, BATCH_BYTES)
