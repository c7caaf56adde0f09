"""Shipping state of one run, and what shipping needs of the spool and of its runs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from .._errors import JournalInvalid, SpoolDamaged

if TYPE_CHECKING:
    from ..log import Record
    from ..protocol import messages

FEW_DOCUMENTS: Final = 64
"""Number of waiting documents from which a batch is sent without the pause that the supervisor asks for."""
FEW_BYTES: Final = 64 * 2**10
"""Bytes of waiting documents from which a batch is sent without that pause."""


class ShippedRun(Protocol):
    """The log of one run in the spool; see `RunLog` for its attributes.

    `acknowledged` and `is_durable` are set by the session, all others by the spool.
    """

    run_uid: str
    stopped: bool
    abandoned: bool
    acknowledged: int
    damage: str
    is_adopted: bool
    is_durable: bool

    @property
    def first(self) -> int:
        """Index of the first record that is not deleted."""

    @property
    def length(self) -> int:
        """Number of records, which is the index of the next one."""

    @property
    def files(self) -> list[Path]:
        """Paths of the log's files, sorted by first index."""

    def count_bytes(self, start: int) -> int:
        """Return the bytes of the records from index `start` on, roughly; see `RunLog.count_bytes`."""

    def read(self, start: int, limit: int, max_bytes: int) -> list[Record]:
        """Return at most `limit` records with at most `max_bytes` bytes from index `start`; see `RunLog.read`."""


class ShippedSpool(Protocol):
    """The runs to ship; see `Spool`."""

    @property
    def refused(self) -> dict[str, str]:
        """Reasons why runs in the directory are not shipped, by uid."""

    def runs(self) -> Sequence[ShippedRun]:
        """Return all runs that are being shipped or kept."""

    def abandon(self) -> None:
        """Mark all open runs as abandoned."""

    def remove(self, run: ShippedRun) -> None:
        """Schedule the deletion of a run's files."""


@dataclass
class Shipment:
    """Shipping state of one run.

    Attributes
    ----------
    run
        Log of the run in the spool.
    known
        True if the run's state on the ingest host is known on this connection.
    sent, durable
        Index of the next document to send, and of the first one that is not durable on the ingest host.
    ended
        True if the ingest host has the run's end.
    refused
        Reason why the run is not shipped; "" if it is.
    delayed
        Reason why the run cannot be shipped at the moment; "" if it can.
    not_before
        Time before which nothing is sent, in seconds.
    pause
        Seconds to leave between two batches with few documents, as the supervisor or the link asks.
    sent_at
        Time at which the last batch was sent, in seconds.
    in_flight
        Next index and number of bytes of each batch that was sent and is not acknowledged.
    """

    run: ShippedRun
    known: bool
    sent: int = 0
    durable: int = 0
    ended: bool = False
    refused: str = ""
    delayed: str = ""
    not_before: float = 0.0
    pause: float = 0.0
    sent_at: float = -math.inf
    in_flight: deque[tuple[int, int]] = field(default_factory=deque)
    # First index of each batch that was read, and the Unix time at which that document was published.
    _published: deque[tuple[int, float]] = field(default_factory=deque)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of bodies that were sent and are not acknowledged."""
        return sum(size for _, size in self.in_flight)

    @property
    def delivered(self) -> bool:
        """True if all documents in the spool are durable on the ingest host; the run may not have ended yet."""
        return self.durable >= self.run.length

    @property
    def settled(self) -> bool:
        """True if nothing more can be shipped: the run is durable, or refused."""
        return self.run.is_durable or bool(self.refused)

    @property
    def waiting(self) -> int:
        """Number of documents that are still to be sent."""
        return 0 if self.refused else self.run.length - self.sent

    @property
    def behind(self) -> int:
        """Number of documents that are not acknowledged."""
        return max(0, self.run.length - self.durable)

    def find_oldest(self) -> float | None:
        """Return the Unix time at which the oldest unacknowledged document, or one of its batch, was published.

        None if there is no such document, or the time is not known.
        """
        if not self.behind:
            return None
        while len(self._published) > 1 and self._published[1][0] <= self.durable:
            self._published.popleft()
        if not self._published and self.sent == self.durable:
            try:
                self._note_published(self.run.read(self.sent, 1, 1))
            except (JournalInvalid, OSError):
                # `read_next` reports it.
                return None
        return self._published[0][1] if self._published else None

    def _note_published(self, records: Sequence[Record]) -> None:
        if records and (not self._published or self._published[-1][0] < records[0].idx):
            self._published.append((records[0].idx, records[0].received))

    @property
    def due_at(self) -> float:
        """Time from which documents can be sent, or damage of the log reported; infinity if there is nothing to do."""
        if not self.known or self.refused:
            return math.inf
        if not (self.run.length > self.sent or self.run.damage):
            return math.inf
        return max(self.not_before, self.sent_at + self.pause) if self._may_wait else self.not_before

    @property
    def _may_wait(self) -> bool:
        """Whether the documents that are still to be sent are few, small, and not the last ones."""
        if not self.pause or self.run.stopped or self.run.abandoned or self.run.damage:
            return False
        return self.waiting < FEW_DOCUMENTS and self.run.count_bytes(self.sent) < FEW_BYTES

    def is_paused(self, now: float) -> bool:
        """Return True if documents wait for others to be sent with."""
        return self.not_before <= now < self.due_at < math.inf

    def is_abandonment_due(self, now: float) -> bool:
        """Return True if the supervisor can be told now that the run ends without a stop document."""
        if not self.run.abandoned or self.ended or self.refused or self.run.damage or not self.known:
            return False
        return self.delivered and now >= self.not_before

    def read_next(self, limit: int, max_bytes: int) -> list[Record]:
        """Return the next records to send, as `RunLog.read` does.

        Raises
        ------
        SpoolDamaged
            They do not continue the run, or there are none because the log is damaged behind its last readable record.
        OSError
            The file cannot be read.
        """
        run = self.run
        records = run.read(self.sent, limit, max_bytes)
        if [record.idx for record in records] != list(range(self.sent, self.sent + len(records))):
            raise SpoolDamaged(next(iter(run.files), "memory"), f"document {self.sent} is not where it should be")
        if not records and run.damage:
            path, _, damage = run.damage.partition(": ")
            raise SpoolDamaged(path, f"it is damaged behind document {run.length - 1}: {damage}")
        self._note_published(records)
        return records

    def note_sent(self, batch: messages.Documents, now: float) -> None:
        """Record that a batch was sent."""
        self.sent = batch.next
        self.sent_at = now
        self.in_flight.append((batch.next, len(batch.body)))

    def rewind(self, index: int) -> None:
        """Continue sending at `index`, and expect no acknowledgement of earlier batches."""
        self.sent = index
        self.in_flight.clear()
        self._published.clear()

    def forget_state(self) -> None:
        """Forget the run's state on the ingest host, because the connection is new."""
        self.known = False
        self.in_flight.clear()
        self.pause = 0.0

    def begin(self, index: int) -> None:
        """Continue at `index`, which the supervisor reports. It can go back, for example if its disk was replaced."""
        self.known, self.refused, self.delayed, self.not_before = True, "", "", 0.0
        self.durable = self.run.acknowledged = index
        self.ended = self.run.is_durable = False
        self.rewind(index)

    def acknowledge(self, index: int) -> None:
        """Record that all documents below `index` are durable on the ingest host."""
        if index > self.durable:
            self.delayed = ""
        self.durable = self.run.acknowledged = max(self.durable, index)
        self.sent = max(self.sent, self.durable)
        while self.in_flight and self.in_flight[0][0] <= index:
            self.in_flight.popleft()

    def delay(self, reason: str, until: float) -> None:
        """Send nothing before the time `until`, in seconds."""
        self.delayed, self.not_before = reason, until

    def refuse(self, reason: str) -> None:
        """Ship nothing more of the run."""
        self.refused = reason
        self.in_flight.clear()
