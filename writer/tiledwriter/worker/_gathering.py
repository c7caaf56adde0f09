"""Documents are folded as they come, and handed on together."""

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
from ._handover import Handover

HOLD_SECONDS: Final = 5.0
"""For how long a few frames may be held back of a key that has many, see `RunWriter.holds`."""

_IDLE: Final = 1.0  # seconds


@dataclass(frozen=True)
class Folded:
    """Some more documents of a journal, and which operations they amount to.

    The operations are for all documents before `cursor`; later ones that were folded may be held back.
    """

    documents: int
    operations: list[Operation]
    cursor: int
    finished: bool
    error: UnwritableDocument | JournalInvalid | None
    """Why there is nothing after them: the next document cannot be folded, or not be read."""
    too_narrow: dict[tuple[str, str], str]


class Gathering:
    """Folds a journal's documents in a thread of its own, from when they come until somebody takes the result.

    So whatever came while Tiled was busy with one request goes into the next one, and is ready for it. A request
    takes Tiled some 10 to 100 ms, the more columns the longer, however few rows it has.

    Parameters
    ----------
    fold
        Used by nobody else meanwhile.
    journal
        Where the documents are.
    handover
        Where they are, too, if they are new; it tells when to look for more.
    """

    def __init__(self, fold: Fold, journal: Journal, handover: Handover) -> None:
        self._fold = fold
        self._journal = journal
        self._handover = handover
        self._wanted = threading.Event()
        self._patient = False
        self._closed = False
        self._nothing_held = fold.cursor, time.monotonic()  # where and when
        self._thread = ThreadPoolExecutor(1, "tiledwriter-folding")
        self._next: Future[Folded] | None = self._thread.submit(self._gather)

    def __enter__(self) -> Gathering:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self._thread.shutdown()

    def close(self) -> None:
        """Fold no more, from whichever thread: whoever waits for documents gets what there is."""
        self._closed = True
        self._handover.wake()

    @property
    def goes_on(self) -> bool:
        """Whether there can be more to `take`."""
        return self._next is not None

    def take(self, *, wait: bool) -> Folded:
        """What was folded since the last time; if it is nothing, and one is to wait, as soon as there is something."""
        assert self._next is not None
        self._patient = wait
        self._wanted.set()
        self._handover.wake()
        folded = self._next.result()
        self._wanted.clear()
        self._next = self._thread.submit(self._gather) if self._fold.goes_on and folded.error is None else None
        return folded

    def _gather(self) -> Folded:
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
            if not fold.goes_on or fold.crowded:
                break
            if wanted and (fold.cursor > start or not self._patient):
                break
            if not records:
                if wanted and fold.holds and self._is_due:
                    break
                self._handover.wait(min(_IDLE, max(0.01, self._seconds_left)) if wanted and fold.holds else _IDLE)
        reason = fold.error or damage
        everything = not (self._patient and fold.goes_on) or self._closed or self._is_due or reason is not None
        operations += fold.flush(everything=everything)
        if not fold.holds:
            self._nothing_held = fold.cursor, time.monotonic()
        cursor = self._nothing_held[0]
        return Folded(fold.cursor - start, operations, cursor, fold.finished, reason, fold.too_narrow)

    @property
    def _is_due(self) -> bool:
        """Whether frames were held back for long enough."""
        return self._seconds_left <= 0

    @property
    def _seconds_left(self) -> float:
        """For how long frames may still be held back."""
        return self._nothing_held[1] + HOLD_SECONDS - time.monotonic()

    def _read_on(self) -> list[Record]:
        """The next documents, some at a time."""
        start = self._fold.cursor
        records = self._handover.take(start, BATCH_DOCUMENTS)
        if records or self._journal.length <= start:
            return records
        return self._journal.read(start, BATCH_DOCUMENTS, BATCH_BYTES)
