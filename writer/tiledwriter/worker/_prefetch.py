"""Prefetch of the fold: documents are folded while Tiled handles the previous request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    stopped
        The run's stop document was folded.
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
    stopped: bool
    error: UnwritableDocument | JournalInvalid | None
    too_narrow: dict[tuple[str, str], str]
    normalized: list[tuple[int, bytes]]


class FoldPrefetch:
    """Folds a journal's documents, and goes on in a thread of its own while nobody waits for the result.

    All documents that arrive while Tiled handles one request thus go into the next one, which is ready in time. A
    request takes Tiled about 10 to 100 ms, however few rows it has, and longer with more columns. Whoever waits for
    documents folds them itself, so that a lone document wakes one thread only.

    All methods but `close` belong to the thread that writes.

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
        self._accepts_more = True
        self._closed = False
        # Whoever folds holds the lock, which guards all of this: what was folded since the last batch.
        self._folding = threading.Lock()
        self._start = fold.cursor
        self._operations: list[Operation] = []
        self._damage: JournalInvalid | None = None
        # Why the thread has ended, except by `close`.
        self._failure: Exception | None = None
        # The index of the first document that may be held back, and the time at which none was held back last.
        self._nothing_held = fold.cursor, time.monotonic()
        # Signals of documents to whoever is to fold them: the caller while it waits for some, the thread otherwise.
        self._news_for_caller = threading.Event()
        self._news_for_thread = threading.Event()
        self._is_wanted = False
        record_buffer.set_signal(self._news_for_thread)
        self._news_for_thread.set()
        self._thread = threading.Thread(target=self._fold_meanwhile, name="tiledwriter-folding", daemon=True)
        self._thread.start()

    def __enter__(self) -> FoldPrefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._thread.join()

    def close(self) -> None:
        """Stop folding, from any thread; a blocked `take_batch` returns what there is."""
        self._closed = True
        self._record_buffer.wake()
        self._news_for_thread.set()

    @property
    def accepts_more(self) -> bool:
        """Whether `take_batch` can return more."""
        return self._accepts_more

    def take_batch(self, *, wait: bool) -> FoldedBatch:
        """Return what was folded since the last call. With `wait`, block until there is something."""
        with self._fold_here():
            if wait:
                self._collect_some()
            else:
                self._collect()
            folded = self._end_batch(patient=wait)
            self._accepts_more = self._fold.accepts_more and folded.error is None
        return folded

    @property
    def is_complete(self) -> bool:
        """Whether what `take_batch` returns is complete, so that nothing that arrives meanwhile goes along."""
        return not self._accepts_more or self._closed or self._is_full

    def wait_for_some(self) -> None:
        """Block until `take_batch` with `wait` would return at once; what arrives until that call is folded as well."""
        with self._fold_here():
            self._collect_some()

    @contextmanager
    def _fold_here(self) -> Iterator[None]:
        """Fold in the calling thread within the `with` block, not in the thread of this object."""
        self._is_wanted = True
        with self._folding:
            self._is_wanted = False
            if self._failure is not None:
                raise self._failure
            self._record_buffer.set_signal(self._news_for_caller)
            try:
                yield
            finally:
                self._record_buffer.set_signal(self._news_for_thread)
                if self._journal.length > self._fold.cursor:
                    self._news_for_thread.set()

    def _fold_meanwhile(self) -> None:
        """Fold what arrives, as long as nobody else does."""
        while not self._closed:
            self._news_for_thread.wait()
            self._news_for_thread.clear()
            try:
                with self._folding:
                    while not (self._is_wanted or self._closed) and self._collect():
                        pass
            except Exception as error:
                self._failure = error
                return

    @property
    def _is_full(self) -> bool:
        """Whether nothing can be added to the batch."""
        return self._damage is not None or not self._fold.accepts_more or self._fold.flush_due

    def _collect_some(self) -> None:
        """Fold until there is something for a batch; wait for documents if there are none."""
        fold = self._fold
        while not self._closed:
            has_more = self._collect()
            if fold.cursor > self._start or self._is_full:
                return
            if not has_more:
                if fold.has_held_frames and self._is_due:
                    return
                patience = _DOCUMENT_WAIT_SECONDS
                if fold.has_held_frames:
                    patience = min(patience, max(0.01, self._seconds_left))
                self._news_for_caller.wait(patience)
                self._news_for_caller.clear()

    def _collect(self) -> bool:
        """Fold further documents, a limited number; return whether there were any."""
        if self._is_full:
            return False
        fold = self._fold
        try:
            records = self._read_on()
        except JournalInvalid as error:
            self._damage = error
            return False
        if records:
            self._operations += fold.collect(records)
        elif self._journal.ended and self._journal.length <= fold.cursor:
            self._operations += fold.abandon()
        return bool(records)

    def _end_batch(self, *, patient: bool) -> FoldedBatch:
        """Return what was folded since the last batch; few frames are held back if the caller is patient."""
        fold = self._fold
        reason = fold.error or self._damage
        everything = not (patient and fold.accepts_more) or self._closed or self._is_due or reason is not None
        operations = [*self._operations, *fold.flush(everything=everything)]
        reason = fold.error or self._damage
        if not fold.has_held_frames:
            self._nothing_held = fold.cursor, time.monotonic()
        documents = fold.cursor - self._start
        self._operations, self._start = [], fold.cursor
        return FoldedBatch(
            *(documents, operations, self._nothing_held[0], fold.finished, fold.stopped),
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
