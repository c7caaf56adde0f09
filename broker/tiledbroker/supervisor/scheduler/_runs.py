"""The scheduler's record of each run: its state, its worker while it has one, and the publishers to inform about it.

Nothing here reads a clock, a file or a process. Times are those of `time.monotonic`, in seconds, unless stated
otherwise.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from ..._wording import as_sentence, format_run_command
from ...protocol import messages
from .._lifecycle import FINAL, Event, State, next_state
from .._publishers import Publisher
from .._tasks import ProcessIdentity
from ..status import RunStatus, RunWorker
from ._effects import SendToWorker, TellPublisher

if TYPE_CHECKING:
    from .._journal_facts import JournalFacts

log = logging.getLogger(__name__)

MAX_DEATHS: Final = 8
"""Consecutive deaths of a run's worker without progress, after which the run is quarantined."""

MAX_DEATHS_WITHOUT_WRITES: Final = 24
"""The same limit if documents were journaled between the deaths but none was written."""

FINISH_TIMEOUT_SECONDS: Final = 10.0
"""Time that a worker has to end after it was told to; then it is killed."""

_FIRST_RESTART_DELAY_SECONDS: Final = 0.05
_MAX_RESTART_DELAY_SECONDS: Final = 30.0
_IDLE_OPEN_SECONDS: Final = 10.0
# Shorter than for an open run, because no documents are expected after the stop document.
_IDLE_CLOSING_SECONDS: Final = 1.0

RunMessage: TypeAlias = messages.Documents | messages.Abandoned
"""A message that continues or ends a run."""


class Purpose(Enum):
    """Why a worker was started."""

    STORE = "store documents"
    RESUME = "write what is left"
    AUDIT = "audit"


@dataclass
class Worker:
    """The worker process of a run, from its request to its end.

    Attributes
    ----------
    number
        Number of the worker; no two workers of a scheduler have the same.
    purpose
        Why it was started.
    is_probe
        It was also started to find out whether Tiled is back.
    answered_at
        Time of its last message.
    pinged_at
        Time of the last Ping to it.
    forked
        The process exists.
    ready
        It has opened the journal.
    relayed
        Index behind the last document of the run that was sent to it.
    finish_by
        Time at which it is killed, as it was told to end; None if it was not.
    kill_reason
        Why the scheduler ends it; "" if it does not.
    started
        Unix time at which it was requested.
    waits_for
        What its writing waits for, as a sentence; "" if it does not wait.
    """

    number: int
    purpose: Purpose
    is_probe: bool
    answered_at: float
    pinged_at: float
    forked: bool = False
    ready: bool = False
    relayed: int = 0
    finish_by: float | None = None
    kill_reason: str = ""
    started: float = 0.0
    waits_for: str = ""

    def has_died(self, exit_code: int | None) -> bool:
        """Return whether the worker has ended otherwise than in order: by itself, or because it was killed."""
        return exit_code != 0 or bool(self.kill_reason)

    def send_message(self, message: messages.Message) -> SendToWorker:
        """Return the effect that sends the worker a message, and note how far it has documents then."""
        if isinstance(message, messages.Documents):
            self.relayed = max(self.relayed, message.next)
        return SendToWorker(self.number, message)

    def tell_to_finish(self, now: float) -> SendToWorker:
        """Return the effect that tells the worker to end, and give it a time limit from now on."""
        self.finish_by = now + FINISH_TIMEOUT_SECONDS
        return self.send_message(messages.Finish())


@dataclass
class Run:
    """One run as the scheduler sees it.

    Attributes
    ----------
    uid
        Uid of the run.
    journal
        Path of the journal, which need not exist yet.
    state
        State in the table of `_lifecycle`.
    reason
        Reason of a failure; "" if there is none.
    start_crc
        Checksum of the start document; it distinguishes the run from another one that has the same uid.
    end
        Length of the journal and checksum of its last document, as last read from the journal of an ended run.
    next
        Number of documents that are durable in the journal.
    acknowledged
        Number of documents that an earlier worker had in the journal, and acknowledged.
    ended
        The journal has the end of the run.
    written
        Number of documents that are in Tiled.
    order
        Unix time at which the run arrived; no two runs have the same.
    client
        Name of the CURVE key that the run belongs to; "" until a client with a key has sent documents.
    orphan
        The worker named in the journal, perhaps one of an earlier supervisor that still runs.
    audit_at
        Unix time of the audit of a written run; None if it needs none.
    unusable
        The journal can be neither read nor written.
    unavailable
        The journal is unusable for a reason that may pass, such as too many open files.
    retry_requested
        The failure is to be removed from the journal when the worker has ended.
    worker
        The worker process; None while there is none.
    start_at
        Time before which no worker is started.
    heard_at
        Time at which documents came last.
    outages
        Number of workers that ended because Tiled was away, since the last progress in writing.
    deaths
        Deaths of workers since the last progress of any kind.
    deaths_without_writes
        Deaths of workers since the last progress in writing.
    queued_messages
        Messages to be sent to the worker when it is ready.
    publishers
        Publishers to inform about the run.
    scan_id, plan
        `scan_id` and `plan_name` of the start document; None if it has none, or is not known.
    since
        Unix time of the last change of state; None if unknown.
    noted_state
        The state when the tally was told of it last.
    found
        Number of documents that the journal had when the run was found.
    """

    uid: str
    journal: Path
    state: State = State.STARTING
    reason: str = ""
    start_crc: int | None = None
    end: tuple[int, int] | None = None
    next: int = 0
    acknowledged: int = 0
    ended: bool = False
    written: int = 0
    order: float = 0.0
    client: str = ""
    orphan: ProcessIdentity | None = None
    audit_at: float | None = None
    unusable: bool = False
    unavailable: bool = False
    retry_requested: bool = False
    worker: Worker | None = None
    start_at: float = 0.0
    heard_at: float = 0.0
    outages: int = 0
    deaths: int = 0
    deaths_without_writes: int = 0
    queued_messages: list[RunMessage] = field(default_factory=list)
    publishers: set[Publisher] = field(default_factory=set)
    scan_id: int | str | None = None
    plan: str | None = None
    since: float | None = None
    noted_state: State = State.STARTING
    found: int = 0

    @classmethod
    def from_facts(cls, facts: JournalFacts) -> Run:
        """Return a run as its journal shows it."""
        return cls(
            facts.uid,
            facts.journal,
            facts.state,
            facts.reason,
            start_crc=facts.start_crc,
            end=facts.end,
            next=facts.length,
            ended=facts.ended,
            order=facts.order,
            client=facts.client,
            orphan=facts.worker,
            audit_at=facts.audit_at,
            unusable=facts.unusable,
            unavailable=facts.unavailable,
            scan_id=facts.scan_id,
            plan=facts.plan,
            since=facts.since,
            noted_state=facts.state,
            found=facts.length,
        )

    @property
    def is_final(self) -> bool:
        """Whether the state is a final one, which the journal records."""
        return self.state in FINAL

    @property
    def outcome(self) -> str:
        """The final state; "" while there is none."""
        return self.state.value if self.is_final else ""

    @property
    def is_complete(self) -> bool:
        """Whether all documents of the run are in Tiled."""
        return self.state in (State.WRITTEN, State.INTERRUPTED)

    @property
    def has_work_left(self) -> bool:
        """Whether something can be written without further documents."""
        return not self.is_final and (self.ended or self.written < self.next)

    @property
    def is_catching_up(self) -> bool:
        """Whether a resumed worker still has documents to write, or a run to finish; that of a failed run has not."""
        if self.worker is None or self.worker.purpose is Purpose.STORE or self.state is State.FAILED:
            return False
        return self.ended or self.written < self.next

    @property
    def listening_worker(self) -> Worker | None:
        """The worker if it takes documents: it has opened the journal, and was not told to end."""
        worker = self.worker
        return worker if worker is not None and worker.ready and worker.finish_by is None else None

    def belongs_to(self, client: str) -> bool:
        """Return whether a client may send documents of the run and read its state."""
        return self.client in ("", client)

    def is_another_run(self, message: RunMessage) -> bool:
        """Return whether a message begins another run that has the same uid."""
        if not isinstance(message, messages.Documents) or message.first > 0:
            return False
        return self.start_crc not in (None, message.crcs[0])

    def _remember_start(self, message: RunMessage) -> None:
        """Remember the start document's checksum, to detect another run with the same uid."""
        if isinstance(message, messages.Documents) and message.first == 0 and self.start_crc is None:
            self.start_crc = message.crcs[0]

    def note_message(self, publisher: Publisher, message: RunMessage, now: float) -> None:
        """Note that a publisher has sent a message of the run, which is accepted."""
        self.publishers.add(publisher)
        self._remember_start(message)
        self.client = self.client or publisher.client
        self.heard_at = now

    def apply_event(self, event: Event) -> None:
        """Apply an event to the state.

        Raises
        ------
        LifecycleError
            The table has no such transition.
        """
        before, self.state = self.state, next_state(self.state, event)
        # `fail` logs the reason as well.
        if self.state not in (before, State.FAILED):
            # While Tiled is away, a parked run is tried again and again.
            level = logging.DEBUG if self.outages and not self.is_final else logging.INFO
            log.log(level, "Run %s is %s.", self.uid, self.state)

    def apply_outcome(self, outcome: State, reason: str) -> list[TellPublisher]:
        """Give the run its final state, and return the effects that tell publishers."""
        if outcome is State.FAILED:
            self.fail(reason)
        else:
            self.apply_event(Event(outcome.value))
            self.reason = reason
        return self.tell_publishers(messages.Written(self.uid, self.outcome, self.reason))

    def resume(self) -> None:
        """Leave a final or parked state, since a worker is about to continue the run."""
        if self.state is not State.STARTING:
            self.apply_event(Event.RESUMED)

    def tell_publishers(self, message: messages.Message) -> list[TellPublisher]:
        """Return the effects that send a message to all publishers of the run."""
        return [TellPublisher(publisher, message) for publisher in self.publishers]

    def reopen_for(self, next_: int) -> None:
        """Leave a complete state if the worker has stored documents behind the end, as an audit's worker may."""
        if self.is_complete and next_ > self.next:
            self.resume()
            self.apply_event(Event.READY)

    def note_end(self, *, ended: bool) -> None:
        """Note whether the journal has the end of the run."""
        self.ended = ended
        if ended and self.state is State.OPEN:
            self.apply_event(Event.ENDED)

    @property
    def lost(self) -> int:
        """Number of documents that were acknowledged and that the journal no longer has."""
        return max(0, self.acknowledged - self.next)

    def note_ready(
        self, worker: Worker, message: messages.Ready, *, is_stopping: bool
    ) -> list[SendToWorker | TellPublisher]:
        """Note what the worker has found in the journal, and return the messages that have waited for this."""
        worker.ready = True
        self.apply_event(Event.READY)
        self.acknowledged = max(self.acknowledged, self.next)
        self.next = worker.relayed = message.next
        self.note_end(ended=message.ended)
        if is_stopping or worker.finish_by is not None:
            return [worker.send_message(messages.Finish())]
        effects: list[SendToWorker | TellPublisher] = []
        if self.lost:
            log.error(
                "The journal %s of run %s lacks %d documents that were acknowledged: somebody has removed it, or put "
                "an older copy in its place. Publishers that still have them send them again.",
                self.journal,
                self.uid,
                self.lost,
            )
            effects += self.tell_publishers(messages.Refused(self.uid, self.next, messages.GAP))
        queued_messages, self.queued_messages = self.queued_messages, []
        return [*effects, *(worker.send_message(queued) for queued in queued_messages)]

    def note_refusal(self, worker: Worker, message: messages.Refused) -> list[TellPublisher]:
        """Note that the worker has refused documents, and return the effects that tell publishers."""
        # The index says nothing before the worker has opened the journal.
        index = message.index if worker.ready else self.next
        worker.relayed = min(worker.relayed, index)
        if not self.next:
            # Nothing is stored yet, so any start document is accepted again.
            self.start_crc = None
        return self.tell_publishers(messages.Refused(message.run, index, message.reason, message.detail))

    def describe_state(self) -> messages.RunState:
        """Return the state of the run as publishers are told it."""
        end_crc = self.end[1] if self.ended and self.end is not None and self.end[0] == self.next else None
        return messages.RunState(self.next, self.ended, self.outcome, self.reason, self.start_crc, end_crc)

    @property
    def known_written(self) -> int | None:
        """Number of documents in Tiled; None if an earlier worker wrote some, and no later one has told how many."""
        if self.is_complete:
            return self.next
        return self.written if self.written or not self.found else None

    def describe(self, *, waits_for: str = "", pid: int | None = None, memory: int | None = None) -> RunStatus:
        """Return the run for the snapshot of the service.

        Parameters
        ----------
        waits_for
            Why it does not go on; "" if it does.
        pid, memory
            Pid and resident bytes of its worker; None if unknown.
        """
        worker = self.worker
        return RunStatus(
            uid=self.uid,
            state=self.state.value,
            scan_id=self.scan_id,
            plan=self.plan,
            since=self.since,
            publisher=min((publisher.name for publisher in self.publishers), default=None),
            client=self.client,
            durable=self.next,
            written=self.known_written,
            ended=self.ended,
            waits_for=waits_for or None,
            reason=self.reason or None,
            worker=None if worker is None else RunWorker(pid, memory, worker.started),
            deaths=self.deaths_without_writes,
            journal=str(self.journal),
            unusable=self.unusable,
        )

    def advance(self, *, next_: int = 0, written: int = 0) -> None:
        """Update the worker's progress; only going beyond all earlier workers resets the count of deaths."""
        if next_ > self.next or written > self.written:
            self.deaths = 0
        if written > self.written:
            self.deaths_without_writes = self.outages = 0
        self.next = max(self.next, next_)
        self.written = max(self.written, written)

    def worker_may_end(self, now: float, *, away: bool) -> bool:
        """Return whether the worker may be ended to make room for a run with documents to store."""
        worker = self.listening_worker
        if worker is None or self.queued_messages or worker.relayed > self.next:
            return False
        if self.state in (State.OPEN, State.FAILED):
            nothing_to_write = self.state is State.FAILED or self.written >= self.next
            return nothing_to_write and now - self.heard_at >= _IDLE_OPEN_SECONDS
        idle = away or now - self.heard_at >= _IDLE_CLOSING_SECONDS
        return worker.purpose is Purpose.AUDIT or (self.state is State.CLOSING and idle)

    def queue_message(self, message: RunMessage) -> None:
        """Keep a message for the worker that is being started, unless an earlier kept message contains it."""
        last = next((kept for kept in reversed(self.queued_messages) if type(kept) is type(message)), None)
        if isinstance(message, messages.Documents) and isinstance(last, messages.Documents):
            if message.next > last.next:
                self.queued_messages = [kept for kept in self.queued_messages if not _contains(message, kept)]
                self.queued_messages.append(message)
        elif last is None:
            self.queued_messages.append(message)

    def forget_failure(self) -> None:
        """Forget a failure that was removed from the journal."""
        if self.state is State.FAILED:
            self.apply_event(Event.RESUMED)
        self.reason = ""
        self.deaths = self.deaths_without_writes = self.outages = 0
        self.start_at = 0.0

    def note_death(self, now: float) -> None:
        """Count a death of the run's worker, and set the time before which no other starts."""
        self.apply_event(Event.DIED)
        self.deaths += 1
        self.deaths_without_writes += 1
        delay = min(_MAX_RESTART_DELAY_SECONDS, _FIRST_RESTART_DELAY_SECONDS * 2 ** (self.deaths_without_writes - 1))
        self.start_at = now + delay

    @property
    def is_hopeless(self) -> bool:
        """Whether so many of the run's workers have died without progress that it must be quarantined."""
        return self.deaths >= MAX_DEATHS or self.deaths_without_writes >= MAX_DEATHS_WITHOUT_WRITES

    def fail(self, reason: str) -> None:
        """Put the run in quarantine, and log why."""
        self.apply_event(Event.FAILED)
        self.reason = reason
        log.error(
            "Run %s is in quarantine: %s Its documents are safe, and further ones are still journaled. "
            "See `%s`; after the cause is fixed: `%s`",
            self.uid,
            as_sentence(reason),
            *(format_run_command(name, self.uid, self.journal, self.journal.parent) for name in ("show", "retry")),
        )


def _contains(message: messages.Documents, other: RunMessage) -> bool:
    """Return whether a message has all documents of another one."""
    return isinstance(other, messages.Documents) and message.first <= other.first and other.next <= message.next
