"""Buffer of new documents between the thread that journals them and the thread that writes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice

from tiledbroker import Record


class RecordBuffer:
    """The newest documents of a journal, so that a reader that keeps up need not read the file.

    All documents are committed to the journal before they are put here, so the reader reads those that are missing here
    from the journal.

    Parameters
    ----------
    max_bytes
        Limit of the sum of bodies; documents that would exceed it are not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._signal = threading.Event()
        self._bytes = 0
        self._mutex = threading.Lock()
        # Batches without gaps between them.
        self._batches: deque[Sequence[Record]] = deque()

    def set_signal(self, signal: threading.Event) -> None:
        """Set this event from now on when the journal may have new documents; at once if the last one is still set."""
        with self._mutex:
            if self._signal.is_set() and signal is not self._signal:
                self._signal.clear()
                signal.set()
            self._signal = signal

    def wake(self) -> None:
        """Make the reader check the journal again."""
        with self._mutex:
            self._signal.set()

    def put_records(self, records: Sequence[Record]) -> None:
        """Add consecutive documents, which are the newest in the journal, and wake the reader."""
        self._keep_batch(records)
        self.wake()

    def _keep_batch(self, records: Sequence[Record]) -> None:
        size = _bytes(records)
        with self._mutex:
            if not records or self._bytes + size > self._max_bytes:
                return
            if self._batches and _end_index(self._batches[-1]) != records[0].idx:
                return
            self._batches.append(records)
            self._bytes += size

    def take_records(self, start: int, limit: int) -> list[Record]:
        """Return about `limit` documents from index `start` on, or none if that one is not here.

        Documents before `start` are dropped. Until the next call, the same documents can be taken again.
        """
        taken: list[Record] = []
        with self._mutex:
            while self._batches and _end_index(self._batches[0]) <= start:
                self._bytes -= _bytes(self._batches.popleft())
            if self._batches and self._batches[0][0].idx <= start:
                for batch in self._batches:
                    taken += islice(batch, start + len(taken) - batch[0].idx, None)
                    if len(taken) >= limit:
                        break
        return taken


def _end_index(records: Sequence[Record]) -> int:
    return records[-1].idx + 1


def _bytes(records: Sequence[Record]) -> int:
    return sum([len(record.body) for record in records])
