"""A model of an ingest host around the real scheduler: journals, workers and publishers in memory, on a made-up clock.

Nothing here is a process, a file or a socket, so thousands of schedules of faults run in a second.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tiledbroker.protocol import messages
from tiledbroker.supervisor._clock import Instant
from tiledbroker.supervisor._journal_facts import JournalFacts
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor._publishers import Publisher
from tiledbroker.supervisor.scheduler._effects import (
    ClearFailure,
    CompareDocuments,
    Effect,
    FileJournal,
    KillOrphan,
    KillWorker,
    ReadForAudit,
    RecordEvent,
    RefuseDocuments,
    SendToWorker,
    StartWorker,
    TellPublisher,
    WithdrawRetry,
)
from tiledbroker.supervisor.scheduler._runs import RunMessage
from tiledbroker.supervisor.scheduler._scheduler import Scheduler

UNIX = 1_000_000.0
"""Unix time at which the clock reads 0."""


@dataclass
class ModelJournal:
    """A journal: the checksums of its documents, and its state."""

    facts: JournalFacts
    crcs: list[int] = field(default_factory=list)
    written: int = 0
    is_filed: bool = False
    events: list[str] = field(default_factory=list)

    def append(self, message: RunMessage) -> bool:
        """Append what is new of a message; return False if there would be a gap."""
        if isinstance(message, messages.Abandoned):
            if message.next > len(self.crcs):
                return False
            self.facts = replace(self.facts, ended=True)
            return True
        if message.first > len(self.crcs):
            return False
        self.crcs += message.crcs[len(self.crcs) - message.first :]
        ended = self.facts.ended or "stop" in message.names
        end = (len(self.crcs), self.crcs[-1]) if ended else None
        order, start_crc = self.facts.order or 1.0, self.crcs[0]
        length = len(self.crcs)
        if length > self.facts.length and self.facts.complete:
            self.facts = replace(self.facts, state=State.STARTING, audit_at=None)
        self.facts = replace(self.facts, length=length, ended=ended, end=end, start_crc=start_crc, order=order)
        return True


@dataclass
class ModelWorker:
    """A worker process: its run and what it was sent. It does only what the test makes it do."""

    number: int
    uid: str
    forked: bool = False
    inbox: deque[messages.Message] = field(default_factory=deque)


class IngestModel:
    """A scheduler, performed without processes.

    Parameters
    ----------
    settings
        Arguments of the scheduler.

    Attributes
    ----------
    journals
        Journals by run uid.
    workers
        Worker processes by number, from the request to the end.
    answers
        What each publisher was told, in order.
    effects
        All effects so far.
    orphans
        Processes of an earlier supervisor that still run.
    """

    def __init__(self, **settings: Any) -> None:
        self.seconds = 100.0
        self.journals: dict[str, ModelJournal] = {}
        self.workers: dict[int, ModelWorker] = {}
        self.answers: dict[Publisher, list[messages.Message]] = {}
        self.effects: list[Effect] = []
        self.orphans: set[tuple[int, float]] = set()
        self.withdrawn: list[Path] = []
        self.start_error = ""
        self.scheduler = Scheduler(self.now, **settings)

    @property
    def now(self) -> Instant:
        return Instant(self.seconds, UNIX + self.seconds)

    def journal(self, uid: str, **facts: Any) -> ModelJournal:
        """Return the journal of a run; `facts` are those of a new one."""
        if uid not in self.journals:
            known = JournalFacts(uid, Path(f"{uid}.sqlite"), **facts)
            self.journals[uid] = ModelJournal(known, [0] * known.length)
        return self.journals[uid]

    def facts(self, uid: str) -> JournalFacts:
        """Return what the run's journal says."""
        return self.journals[uid].facts if uid in self.journals else JournalFacts(uid, Path(f"{uid}.sqlite"))

    # What publishers do.

    def send(self, publisher: Publisher, message: RunMessage) -> None:
        """Have the scheduler take a message of a publisher."""
        facts = None if message.run in self.scheduler.runs else self.facts(message.run)
        self.perform(self.scheduler.receive_documents(publisher, message, facts, self.now))

    def told(self, publisher: Publisher, kind: type[messages.Message] | None = None) -> list[messages.Message]:
        """Return what a publisher was told, of one kind."""
        return [message for message in self.answers.get(publisher, []) if kind is None or isinstance(message, kind)]

    # What workers do.

    def worker_of(self, uid: str) -> ModelWorker:
        """Return the worker of a run."""
        (worker,) = [worker for worker in self.workers.values() if worker.uid == uid]
        return worker

    def fork(self, worker: ModelWorker) -> None:
        """Let a worker process come to life."""
        worker.forked = True
        self.scheduler.confirm_fork(worker.number, self.now)

    def say(self, worker: ModelWorker, message: messages.Message) -> None:
        """Have the scheduler hear a message of a worker."""
        self.perform(self.scheduler.receive_message(worker.number, message, self.now))

    def open_journal(self, worker: ModelWorker) -> None:
        """Let a worker say that it is ready."""
        journal = self.journal(worker.uid)
        self.say(worker, messages.Ready(worker.uid, journal.facts.length, journal.facts.ended))

    def store(self, worker: ModelWorker) -> None:
        """Let a worker journal and acknowledge what it was sent."""
        while worker.inbox:
            message = worker.inbox.popleft()
            if isinstance(message, messages.Documents | messages.Abandoned):
                journal = self.journal(worker.uid)
                if journal.append(message):
                    self.say(worker, messages.Durable(worker.uid, len(journal.crcs), journal.facts.ended))
                else:
                    self.say(worker, messages.Refused(worker.uid, len(journal.crcs), messages.GAP))

    def write(self, worker: ModelWorker, count: int | None = None) -> None:
        """Let a worker write some documents, or all, and finish a run that has ended."""
        journal = self.journal(worker.uid)
        self.say(worker, messages.Reached(worker.uid))
        journal.written = len(journal.crcs) if count is None else min(journal.written + count, len(journal.crcs))
        self.say(worker, messages.Progress(worker.uid, journal.written))
        if journal.facts.ended and journal.written == len(journal.crcs):
            journal.facts = replace(journal.facts, state=State.WRITTEN, audit_at=None)
            self.say(worker, messages.Written(worker.uid, "written", ""))

    def end(self, worker: ModelWorker, exit_code: int | None = 0) -> None:
        """Let a worker process end."""
        del self.workers[worker.number]
        self.perform(self.scheduler.handle_worker_end(worker.number, exit_code, self.facts(worker.uid), self.now))

    def start(self, uid: str) -> ModelWorker:
        """Let time pass until a run has a worker that is ready."""
        while not [worker for worker in self.workers.values() if worker.uid == uid]:
            self.pass_by(0.5)
        worker = self.worker_of(uid)
        self.fork(worker)
        self.open_journal(worker)
        return worker

    # What the supervisor does.

    def pass_by(self, seconds: float) -> None:
        """Let time pass, with one turn of the supervisor's loop at its end."""
        self.seconds += seconds
        self.perform(self.scheduler.schedule(self.now))

    def perform(self, effects: list[Effect]) -> None:
        """Perform effects."""
        waiting = deque(effects)
        while waiting:
            effect = waiting.popleft()
            self.effects.append(effect)
            waiting.extend(self._perform_effect(effect))

    def _perform_effect(self, effect: Effect) -> list[Effect]:
        match effect:
            case StartWorker(number, uid, orphan=orphan):
                if self.start_error:
                    return self.scheduler.retry_start(number, self.start_error, self.now)
                if orphan in self.orphans:
                    return self.scheduler.postpone_for_orphan(number, self.now)
                assert uid not in [worker.uid for worker in self.workers.values()], "a run has two workers"
                self.workers[number] = ModelWorker(number, uid)
                if uid in self.journals:
                    self.journals[uid].is_filed = False
            case SendToWorker(number, message):
                self.workers[number].inbox.append(message)
            case KillWorker(number):
                self.end(self.workers[number], -9)
            case KillOrphan(process):
                self.orphans.discard(process)
            case TellPublisher(publisher, message):
                self.answers.setdefault(publisher, []).append(message)
            case RefuseDocuments(_, publisher, refusal):
                self.answers.setdefault(publisher, []).append(refusal)
            case CompareDocuments(publisher, _, message, length):
                self._compare(publisher, message, length)
            case ReadForAudit(uid):
                return self.scheduler.audit_run(self.facts(uid), self.now)
            case RecordEvent(journal, event, _, state):
                self._record(journal, event, dict(state))
            case FileJournal(journal):
                self.journals[journal.stem].is_filed = True
            case ClearFailure(journal):
                facts = self.journals[journal.stem].facts
                self.journals[journal.stem].facts = replace(facts, state=State.STARTING, reason="")
                return self.scheduler.resume_cleared(self.facts(journal.stem))
            case WithdrawRetry(journal):
                self.withdrawn.append(journal)
        return []

    def _compare(self, publisher: Publisher, message: messages.Documents, length: int) -> None:
        same = self.journals[message.run].crcs[message.first : message.next] == list(message.crcs)
        answer: messages.Message = messages.Refused(message.run, 0, messages.ANOTHER_RUN)
        if same:
            self.scheduler.add_publisher(publisher, [message.run])
            answer = messages.Durable(message.run, length, True)
        self.answers.setdefault(publisher, []).append(answer)

    def _record(self, path: Path, event: str, state: dict[str, Any]) -> None:
        journal = self.journal(path.stem)
        assert path.stem not in [worker.uid for worker in self.workers.values()], "its worker still runs"
        journal.events.append(event)
        if "outcome" in state:
            journal.facts = replace(journal.facts, state=State(state["outcome"]), reason=state["reason"])
