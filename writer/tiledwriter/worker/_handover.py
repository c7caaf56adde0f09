"""Documents on their way from the thread that journals them to the one that writes them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice

from tiledbroker import Record


class Handover:
    """The newest documents of a journal, for a reader that follows closely: a shorter way than by the file.

    Whatever is not here is in the journal, where it has to be before it is put here.

    Parameters
    ----------
    max_bytes
        Of bodies; what comes beyond has to be read from the journal.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._news = threading.Event()
        self._bytes = 0
        self._mutex = threading.Lock()
        self._batches: deque[Sequence[Record]] = deque()  # without a gap

    def wait(self, timeout: float) -> None:
        """Block until there may be something new in the journal, or somebody calls `wake`; for so many seconds."""
        self._news.wait(timeout)
        self._news.clear()

    def wake(self) -> None:
        """Have the reader look again."""
        self._news.set()

    def put(self, records: Sequence[Record]) -> None:
        """Offer documents that follow each other, the newest in the journal, and wake the reader."""
        self._keep(records)
        self.wake()

    def _keep(self, records: Sequence[Record]) -> None:
        size = _bytes(records)
        with self._mutex:
            if not records or self._bytes + size > self._max_bytes:
                return
            if self._batches and _end(self._batches[-1]) != records[0].idx:
                return
            self._batches.append(records)
            self._bytes += size

    def take(self, start: int, limit: int) -> list[Record]:
        """Documents from index `start` on, about `limit`; none if that one is not here. Those before it are forgotten.

        Until the next call they can be taken again.
        """
        taken: list[Record] = []
        with self._mutex:
            while self._batches and _end(self._batches[0]) <= start:
                self._bytes -= _bytes(self._batches.popleft())
            if self._batches and self._batches[0][0].idx <= start:
                for batch in self._batches:
                    taken += islice(batch, start + len(taken) - batch[0].idx, None)
                    if len(taken) >= limit:
                        break
        return taken


def _end(records: Sequence[Record]) -> int:
    return records[-1].idx + 1


def _bytes(records: Sequence[Record]) -> int:
    return sum([len(record.body) for record in records])
