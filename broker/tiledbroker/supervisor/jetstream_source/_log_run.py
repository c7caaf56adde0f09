"""What the source knows of one run in the log, and what follows from what the supervisor says of it.

Opens no connections and reads no clock. A run in the log is in one of five phases:

- *looking*: its receipt is being read.
- *waiting*: it is not complete, and another host has it, or nobody has it yet.
- *asking*: this host has it, and asks the supervisor where the journal ends.
- *reading*: documents are read, and receipts are stored.
- *complete*: the receipt says that all of it is in Tiled; what is left is to remove it from the log.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import msgspec

from ..._outcomes import COMPLETE, FAILED
from ...jetstream import EntryReader, Receipt, Tail, documents_subject
from ...protocol import messages

ASK_AGAIN_SECONDS: Final = 30.0
"""Pause between two questions about a run that has ended and has no outcome, or has failed."""
LATER_SECONDS: Final = 1.0
"""Pause before documents are handed on again that were refused for now."""


class Phase(Enum):
    """Phase of a run in the log."""

    LOOKING = "looking"
    WAITING = "waiting"
    ASKING = "asking"
    READING = "reading"
    COMPLETE = "complete"


class Step(Enum):
    """What may change the phase of a run."""

    LOOK = "it may have another owner, or other documents"
    FOUND_OPEN = "its receipt does not say that it is complete, and this host does not have it"
    FOUND_OWN = "its receipt does not say that it is complete, and this host has it"
    FOUND_COMPLETE = "its receipt says that it is complete"
    ASK = "the supervisor may know something new"
    ANSWERED = "the supervisor has told where the journal ends"
    STORED = "the receipt that says that it is complete is stored"


TRANSITIONS: Final[dict[tuple[Phase, Step], Phase]] = {
    (Phase.LOOKING, Step.LOOK): Phase.LOOKING,
    (Phase.LOOKING, Step.FOUND_OPEN): Phase.WAITING,
    (Phase.LOOKING, Step.FOUND_OWN): Phase.ASKING,
    (Phase.LOOKING, Step.FOUND_COMPLETE): Phase.COMPLETE,
    (Phase.WAITING, Step.LOOK): Phase.LOOKING,
    (Phase.ASKING, Step.LOOK): Phase.LOOKING,
    (Phase.ASKING, Step.ANSWERED): Phase.READING,
    (Phase.READING, Step.LOOK): Phase.LOOKING,
    (Phase.READING, Step.ASK): Phase.ASKING,
    (Phase.READING, Step.STORED): Phase.COMPLETE,
    (Phase.COMPLETE, Step.LOOK): Phase.LOOKING,
}


@dataclass
class LogRun:
    """A run in the log. Only the loop uses it.

    Attributes
    ----------
    phase
        Its phase; changed by `take_step` only.
    tail
        How far the log is.
    receipt, revision
        The receipt that is stored, and its number; None and 0 if there is none.
    receipt_known
        Whether it was read at least once.
    told
        The receipt as it should be.
    next
        Index of the next document to hand on.
    position
        Number in the stream of the last message that was read.
    entry_start
        Position before the first message of the entry that is being read.
    in_flight
        Next index, bytes and the position before it of each entry that was handed on and is not durable.
    wanted
        This host wants to claim it.
    looker, doubter, reader_task, storer
        Tasks that read the receipt, look whether the run is still there, read documents, and store receipts; None or
        done if there are none.
    """

    beamline: str
    uid: str
    tail: Tail = field(default_factory=Tail)
    phase: Phase = Phase.LOOKING
    receipt: Receipt | None = None
    revision: int = 0
    receipt_known: bool = False
    told: Receipt = field(default_factory=Receipt)
    next: int = 0
    position: int = 0
    entry_start: int = 0
    rereads: int = 0
    reader: EntryReader = field(default_factory=EntryReader)
    in_flight: deque[tuple[int, int, int]] = field(default_factory=deque)
    not_before: float = 0.0
    ask_at: float = math.inf
    receipt_at: float = -math.inf
    wanted: bool = False
    looker: asyncio.Task[None] | None = None
    doubter: asyncio.Task[None] | None = None
    reader_task: asyncio.Task[None] | None = None
    storer: asyncio.Task[None] | None = None

    def take_step(self, step: Step) -> Phase:
        """Change the phase, and return it.

        Raises
        ------
        KeyError
            The table has no such transition.
        """
        self.phase = TRANSITIONS[self.phase, step]
        return self.phase

    @property
    def subject(self) -> str:
        return documents_subject(self.beamline, self.uid)

    @property
    def bytes_in_flight(self) -> int:
        return sum(size for _, size, _ in self.in_flight)

    @property
    def is_own(self) -> bool:
        """Whether this host has it, and it is not complete."""
        return self.phase in (Phase.ASKING, Phase.READING)

    @property
    def is_to_be_written(self) -> bool:
        """Whether it has ended, and this host has it or wants it, and has not written it or failed to."""
        is_done = self.told.refused or self.told.outcome == FAILED or self.told.outcome in COMPLETE
        return self.tail.ended and (self.wanted or (self.is_own and not is_done))

    @property
    def has_news(self) -> bool:
        """Whether the receipt that is stored is not as it should be; when it was stored does not matter."""
        stored = self.receipt or Receipt()
        return msgspec.structs.replace(self.told, at=0.0, seq=0) != msgspec.structs.replace(stored, at=0.0, seq=0)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do but to remove it from the log."""
        return self.told.is_complete and self.told.next >= self.tail.next and self.told.start_crc == self.tail.start_crc

    def begin_at(self, state: messages.RunState, host: str, now: float) -> None:
        """Begin where the journal ends.

        Parameters
        ----------
        state
            What the supervisor has answered.
        host
            Name of this host, for the receipt.
        now
            The time (`time.monotonic`).
        """
        before, tail = self.receipt, self.tail
        start_crc = tail.start_crc if tail.start_crc is not None else state.start_crc
        self.told = Receipt(
            next=state.next,
            ended=state.ended,
            outcome=state.outcome,
            reason=state.reason,
            start_crc=start_crc,
            end_crc=state.end_crc,
            seq=0 if before is None else before.seq,
            host=host,
        )
        is_other = None not in (state.start_crc, tail.start_crc) and state.start_crc != tail.start_crc
        if is_other:
            # The supervisor refuses the start document, and says why.
            self.told = Receipt(start_crc=start_crc, host=host)
            self.next = self.position = 0
        else:
            self.next = state.next
            hint = 0 if before is None or before.next > state.next or before.start_crc != start_crc else before.seq
            self.position = min(hint, max(0, tail.seq - 1))
        self.in_flight.clear()
        self.reader.forget()
        if state.ended and not is_other and state.next >= tail.next:
            self.next = max(self.next, tail.next)
            if tail.next == state.next and None not in (state.end_crc, tail.end_crc) and state.end_crc != tail.end_crc:
                self.refuse("its last document in the log is another one than in the journal of the ingest host")
        self._await_outcome(now)

    def note_durable(self, next_: int, *, ended: bool, now: float) -> None:
        """Note how far the journal is. An outcome that is known says nothing about further documents."""
        if next_ > self.told.next and self.told.outcome in COMPLETE:
            self.told = msgspec.structs.replace(self.told, outcome="", reason="")
        seq = self.told.seq
        while self.in_flight and self.in_flight[0][0] <= next_:
            seq = self.in_flight.popleft()[2]
        self.told = msgspec.structs.replace(
            self.told,
            next=max(self.told.next, next_),
            ended=ended,
            start_crc=self.tail.start_crc if self.told.start_crc is None else self.told.start_crc,
            end_crc=self.tail.end_crc if ended and next_ == self.tail.next else None,
            delayed="",
            seq=seq,
        )
        self.next = max(self.next, next_)
        self.rereads = 0
        self._await_outcome(now)

    def note_outcome(self, outcome: str, reason: str, now: float) -> None:
        """Note the outcome that the journal records."""
        self.told = msgspec.structs.replace(self.told, outcome=outcome, reason=reason)
        self._await_outcome(now)

    def _await_outcome(self, now: float) -> None:
        """Ask again later for a run whose outcome may become known in another way than by a message."""
        waits = self.told.ended and self.told.outcome not in COMPLETE
        self.ask_at = now + ASK_AGAIN_SECONDS if waits or self.told.outcome == FAILED else math.inf

    def note_refusal(self, refusal: messages.Refused, now: float) -> None:
        """Hand documents on again that the supervisor does not take now, or none any more."""
        if refusal.reason not in (messages.GAP, messages.LATER):
            self.refuse(refusal.reason)
            self.in_flight.clear()
            return
        self.rewind(refusal.index)
        if refusal.reason == messages.LATER:
            self.told = msgspec.structs.replace(self.told, delayed=refusal.detail)
            self.not_before = now + LATER_SECONDS

    def refuse(self, reason: str) -> None:
        """Read no more of the run, and let the receipt say why."""
        self.told = msgspec.structs.replace(self.told, refused=reason)

    def rewind(self, index: int) -> None:
        """Hand documents on from an index again."""
        place = next((before for next_, _, before in self.in_flight if next_ > index), 0)
        self.position = min(self.position, place) if self.in_flight else 0
        self.in_flight.clear()
        self.reader.forget()
        self.next = index

    def read_anew(self) -> None:
        """Read documents from the beginning of the log again."""
        self.position = 0
        self.in_flight.clear()
        self.reader.forget()


def is_busy(task: asyncio.Task[None] | None) -> bool:
    """Return whether a task is there that has not ended."""
    return task is not None and not task.done()
