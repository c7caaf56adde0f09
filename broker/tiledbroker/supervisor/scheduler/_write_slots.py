"""Write slots: how many workers write to Tiled at a time, and whose turn it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ...protocol import messages
from ._effects import SendToWorker

SLOTS_OF_STORAGE: Final = {"postgresql": 2}
"""Write slots by the kind of database that Tiled stores tables in; one for any other, and while it is not known.

SQLite takes one write at a time and answers others with an error, and DuckDB loses rows of concurrent writers.
"""

HELD_SECONDS: Final = 5.0
"""Time after which a slot that is still held, by a request that takes long, is given to another worker as well."""


@dataclass(frozen=True)
class _EndedRun:
    """An ended run that a worker waits to write, and when it arrived compared with others."""

    uid: str
    order: float


class WriteSlots:
    """Gives write slots to workers. A worker that ends loses its slot. Each method returns the messages to send.

    More than a few requests at a time do not make a Tiled server faster. Who waits gets a slot by these rules:

    - Open runs and ended ones take turns, so that a scan is not late because of what an outage has left.
    - Open runs get slots in the order in which they ask for them.
    - Of ended runs, the one that arrived first and the one that has waited longest take turns. So runs are completed
      one after the other although all are being written, and a host that serves for a short time only completes some.

    No run waits for ever while others are written.

    Parameters
    ----------
    limit
        Slots; None for as many as the storage takes.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._storage = ""
        # Runs by the numbers of their workers, in the order in which these have asked; holders with the time of the
        # grant.
        self._open: dict[int, str] = {}
        self._ended: dict[int, _EndedRun] = {}
        self._open_is_next = True
        self._first_is_next = True
        self._holders: dict[int, tuple[str, float]] = {}
        self._recalled: set[int] = set()

    @property
    def slots(self) -> int:
        """Number of workers that may write at a time."""
        return self._limit or SLOTS_OF_STORAGE.get(self._storage, 1)

    @property
    def waiting(self) -> int:
        """Number of workers that wait for a slot."""
        return len(self._open) + len(self._ended)

    def change_limit(self, limit: int | None) -> None:
        """Change the number of slots, from the next grant on."""
        self._limit = limit

    def request(self, number: int, run: str, now: float, *, order: float | None = None) -> list[SendToWorker]:
        """Queue a worker for a slot.

        Parameters
        ----------
        number, run
            The worker and the uid of its run.
        now
            The time (`time.monotonic`).
        order
            Orders ended runs by when they arrived; None for an open run.
        """
        if order is None:
            self._ended.pop(number, None)
            self._open[number] = run
        else:
            self._open.pop(number, None)
            self._ended[number] = _EndedRun(run, order)
        return self.grant(now)

    def release(self, number: int, storage: str, now: float) -> list[SendToWorker]:
        """Take a slot back, and note the kind of storage that the worker has seen; "" if none."""
        self._storage = storage or self._storage
        return self.forget(number, now)

    def forget(self, number: int, now: float) -> list[SendToWorker]:
        """Forget a worker, which has ended or wants nothing more."""
        self._open.pop(number, None)
        self._ended.pop(number, None)
        self._holders.pop(number, None)
        self._recalled.discard(number)
        return self.grant(now)

    def grant(self, now: float) -> list[SendToWorker]:
        """Give free slots to those that wait, and ask for those that are kept without being used."""
        sent = []
        while self.waiting and self._count_used(now) < self.slots:
            number, run = self._take_next()
            self._holders[number] = run, now
            if self.waiting:
                # It need not be asked to release the slot.
                self._recalled.add(number)
            sent.append(SendToWorker(number, messages.SlotGranted(run, shared=bool(self.waiting))))
        if self.waiting:
            for number, (run, _) in self._holders.items():
                if number not in self._recalled:
                    self._recalled.add(number)
                    sent.append(SendToWorker(number, messages.SlotRecalled(run)))
        return sent

    def _take_next(self) -> tuple[int, str]:
        """Remove the worker that gets the next slot from those that wait, and return its number and its run."""
        if self._open and (self._open_is_next or not self._ended):
            self._open_is_next = False
            number = next(iter(self._open))
            return number, self._open.pop(number)
        self._open_is_next = True
        number = self._choose_ended()
        return number, self._ended.pop(number).uid

    def _choose_ended(self) -> int:
        first_is_next, self._first_is_next = self._first_is_next, not self._first_is_next
        if first_is_next:
            return min(self._ended, key=lambda number: self._ended[number].order)
        return next(iter(self._ended))

    def _count_used(self, now: float) -> int:
        return sum(now - since < HELD_SECONDS for _, since in self._holders.values())
