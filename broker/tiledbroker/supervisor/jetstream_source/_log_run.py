"""What the source knows of one run in the log. Opens no connections and reads no clock."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from ...jetstream import EntryReader, Receipt, Tail, documents_subject


@dataclass
class LogRun:
    """A run in the log. Only the loop uses it.

    Attributes
    ----------
    tail
        How far the log is.
    receipt, revision
        The receipt that is stored, and its number; None and 0 if there is none.
    told
        The receipt as it should be.
    known
        True once the supervisor has told where the journal ends.
    next
        Index of the next document to hand on.
    position
        Number in the stream of the last message that was read.
    entry_start
        Position before the first message of the entry that is being read.
    in_flight
        Next index, bytes and the position before it of each entry that was handed on and is not durable.
    """

    beamline: str
    uid: str
    tail: Tail = field(default_factory=Tail)
    receipt: Receipt | None = None
    revision: int = 0
    told: Receipt = field(default_factory=Receipt)
    known: bool = False
    asking: bool = False
    next: int = 0
    position: int = 0
    entry_start: int = 0
    rereads: int = 0
    reader: EntryReader = field(default_factory=EntryReader)
    in_flight: deque[tuple[int, int, int]] = field(default_factory=deque)
    is_reading: bool = False
    not_before: float = 0.0
    ask_at: float = math.inf
    receipt_at: float = -math.inf
    is_storing: bool = False

    @property
    def subject(self) -> str:
        return documents_subject(self.beamline, self.uid)

    @property
    def bytes_in_flight(self) -> int:
        return sum(size for _, size, _ in self.in_flight)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do but to remove it from the log."""
        return self.told.is_complete and self.told.next >= self.tail.next and self.told.start_crc == self.tail.start_crc

    def rewind(self, index: int) -> None:
        """Hand documents on from an index again."""
        place = next((before for next_, _, before in self.in_flight if next_ > index), 0)
        self.position = min(self.position, place) if self.in_flight else 0
        self.in_flight.clear()
        self.reader.forget()
        self.next = index
