"""Write slots: how many workers write to Tiled at a time, and whose turn it is."""

from __future__ import annotations

from typing import Final

from ...protocol import messages
from ._effects import SendToWorker

SLOTS_OF_STORAGE: Final = {"postgresql": 2}
"""Write slots by the kind of database that Tiled stores tables in; one for any other, and while it is not known.

SQLite takes one write at a time and answers others with an error, and DuckDB loses rows of concurrent writers.
"""

HELD_SECONDS: Final = 5.0
"""Time after which a slot that is still held, by a request that takes long, is given to another worker as well."""


class WriteSlots:
    """Gives write slots to workers in the order in which they ask. A worker that ends loses its slot.

    More than a few requests at a time do not make a Tiled server faster. Whoever waits gets a slot after all that asked
    before, so no run waits for ever while others are written. Each method returns the messages to send.

    Parameters
    ----------
    limit
        Slots; None for as many as the storage takes.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._storage = ""
        # Workers by number, with the uids of their runs; holders with the time (`time.monotonic`) of the grant.
        self._waiting: dict[int, str] = {}
        self._holders: dict[int, tuple[str, float]] = {}
        self._recalled: set[int] = set()

    @property
    def slots(self) -> int:
        """Number of workers that may write at a time."""
        return self._limit or SLOTS_OF_STORAGE.get(self._storage, 1)

    @property
    def waiting(self) -> int:
        """Number of workers that wait for a slot."""
        return len(self._waiting)

    def change_limit(self, limit: int | None) -> None:
        """Change the number of slots, from the next grant on."""
        self._limit = limit

    def request(self, number: int, run: str, now: float) -> list[SendToWorker]:
        """Queue a worker for a slot."""
        self._waiting[number] = run
        return self.grant(now)

    def release(self, number: int, storage: str, now: float) -> list[SendToWorker]:
        """Take a slot back, and note the kind of storage that the worker has seen; "" if none."""
        self._storage = storage or self._storage
        return self.forget(number, now)

    def forget(self, number: int, now: float) -> list[SendToWorker]:
        """Forget a worker, which has ended or wants nothing more."""
        self._waiting.pop(number, None)
        self._holders.pop(number, None)
        self._recalled.discard(number)
        return self.grant(now)

    def grant(self, now: float) -> list[SendToWorker]:
        """Give free slots to those that wait, and ask for those that are kept without being used."""
        sent = []
        while self._waiting and self._count_used(now) < self.slots:
            number = next(iter(self._waiting))
            run = self._waiting.pop(number)
            self._holders[number] = run, now
            if self._waiting:
                # It need not be asked to release the slot.
                self._recalled.add(number)
            sent.append(SendToWorker(number, messages.SlotGranted(run, shared=bool(self._waiting))))
        if self._waiting:
            for number, (run, _) in self._holders.items():
                if number not in self._recalled:
                    self._recalled.add(number)
                    sent.append(SendToWorker(number, messages.SlotRecalled(run)))
        return sent

    def _count_used(self, now: float) -> int:
        return sum(now - since < HELD_SECONDS for _, since in self._holders.values())
