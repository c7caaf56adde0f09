"""Publisher, supervisor, workers and Tiled in one process on one clock, with faults on a schedule.

The session of the publisher and the scheduler of the supervisor are the real ones. Spool, network, journals, workers
and Tiled are models in memory. A seed is a schedule: the same seed does the same again.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from ingest_model import IngestModel, ModelJournal, ModelWorker
from shipping import MAX_DOCUMENT, URL, WINDOW, MemoryRun, MemorySpool

from tiledbroker.protocol import messages
from tiledbroker.publisher._session import ShippingSession
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor._publishers import Publisher
from tiledbroker.supervisor.scheduler._disk_space import DiskSpace, Space
from tiledbroker.supervisor.scheduler._effects import Effect, KillOrphan, SendToWorker, StartWorker
from tiledbroker.supervisor.scheduler._scheduler import Scheduler
from tiledbroker.supervisor.scheduler._worker_monitor import WorkerLimits

FAULTS_SECONDS: Final = 8.0
"""Time during which documents are published and faults begin."""
QUIET_SECONDS: Final = 300.0
"""Time in which everything must be in Tiled after that."""
SILENCE_SECONDS: Final = 5.0
"""Time after which a worker that does not answer is replaced."""

_NEVER: Final = float("inf")
_CHECK_SECONDS: Final = 1.0
_SHORTEST_SLEEP_SECONDS: Final = 0.001
_MIN_FREE: Final = 1000
_ENOUGH, _FULL = Space(10_000, 100_000), Space(10, 100_000)


class TiledInMemory:
    """What Tiled has of each run: the checksums of its documents, and its outcome.

    It appends what it is sent, wherever that belongs. Only who writes can see to it that nothing is doubled.
    """

    def __init__(self) -> None:
        self.away = False
        self.rows: dict[str, list[int]] = {}
        self.outcomes: dict[str, str] = {}

    def append(self, uid: str, crcs: list[int]) -> None:
        """Append documents of a run."""
        self.rows.setdefault(uid, []).extend(crcs)


@dataclass
class WorkerLife:
    """A worker process beyond what the supervisor knows of it."""

    worker: ModelWorker
    identity: tuple[int, float]
    is_open: bool = False
    is_writing: bool = False
    is_halted: bool = False
    is_orphan: bool = False
    is_dead: bool = False
    must_finish: bool = False
    written: int = 0
    """Number of documents that it knows to be in Tiled."""
    request: list[int] = field(default_factory=list)
    """Checksums that are on their way to Tiled."""
    refused_at: float | None = None
    """Time since which Tiled has refused its requests."""

    @property
    def uid(self) -> str:
        return self.worker.uid


class SimulatedIngest(IngestModel):
    """An ingest host that tells the simulation what its workers have to do."""

    def __init__(self, simulation: Simulation, **settings: Any) -> None:
        self._simulation = simulation
        super().__init__(**settings)

    def _perform_effect(self, effect: Effect) -> list[Effect]:
        more = super()._perform_effect(effect)
        if isinstance(effect, StartWorker) and effect.worker in self.workers:
            self._simulation.begin_worker(self.workers[effect.worker])
        elif isinstance(effect, SendToWorker):
            self._simulation.wake_worker(effect.worker)
        elif isinstance(effect, KillOrphan):
            self._simulation.kill_orphan(effect.process)
        return more

    def end(self, worker: ModelWorker, exit_code: int | None = 0) -> None:
        self._simulation.bury_worker(worker)
        super().end(worker, exit_code)


class Simulation:
    """One schedule of publications and faults.

    Parameters
    ----------
    seed
        Determines all that happens.

    Attributes
    ----------
    published
        The runs that were published, by uid, with all their documents.
    happened
        What happened when, to explain a failure.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.published: dict[str, MemoryRun] = {}
        self.happened: list[str] = []
        self.tiled = TiledInMemory()
        self._settings = {
            "max_workers": self.random.randint(1, 3),
            "max_resumed": self.random.randint(1, 2),
            "limits": WorkerLimits(silence=SILENCE_SECONDS),
        }
        self._lives: dict[int, WorkerLife] = {}
        self._orphans: list[WorkerLife] = []
        self._steps: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._epoch = 1.0
        self._disk_is_full = False
        self.ingest = SimulatedIngest(self, **self._settings, disk=self._make_disk())
        self.ingest.scheduler.finish_survey()
        self._is_up = True
        self._check_at = self._ingest_at = self.now + _CHECK_SECONDS
        self._ingest_is_due = self._session_is_due = False
        self._session_at = 0.0
        self._ends_at = self.now + FAULTS_SECONDS
        self._session_number = 0
        self._publisher: Publisher | None = None
        self._is_welcomed = False
        self._hangs_until = 0.0
        self._sent_until = self._told_until = 0.0
        self._connection = 0
        self.spool = MemorySpool()
        self.session = self._begin_session()
        for number in range(self.random.randint(1, 3)):
            self._plan_run(f"run-{number}")
        for _ in range(self.random.randint(0, 6)):
            self.after(self.random.uniform(0.0, FAULTS_SECONDS), self.random.choice(self._faults()))
        # Runs without a stop document end with the publisher.
        self.after(FAULTS_SECONDS, self._close_publisher)

    @property
    def now(self) -> float:
        return self.ingest.seconds

    def after(self, seconds: float, step: Callable[[], object]) -> None:
        """Do something later."""
        heapq.heappush(self._steps, (self.now + seconds, next(self._numbers), step))

    def run(self) -> None:
        """Let time pass until all that was published is in Tiled and the publisher knows.

        Raises
        ------
        AssertionError
            Something is wrong, or nothing goes on although all faults are over.
        """
        deadline = self._ends_at + QUIET_SECONDS
        while self.now < self._ends_at or not self._is_over():
            while self._steps and self._steps[0][0] <= self.now:
                heapq.heappop(self._steps)[2]()
            if self._is_up and (self._ingest_is_due or self._ingest_at <= self.now):
                self._turn_supervisor()
            if self._publisher is not None and (self._session_is_due or self._session_at <= self.now):
                self._turn_session()
            at = self._steps[0][0] if self._steps else _NEVER
            if self._is_up:
                at = min(at, self._ingest_at)
            if self._publisher is not None:
                at = min(at, self._session_at)
            self.ingest.seconds = max(self.now, at)
            if self.now > deadline:
                raise AssertionError(f"not written after {QUIET_SECONDS:g} s without faults: {self._describe()}")

    def _is_over(self) -> bool:
        return not self.spool.runs() and len(self.tiled.outcomes) == len(self.published)

    def _describe(self) -> object:
        return self.tiled.outcomes, {run.run_uid: vars(run) for run in self.spool.runs()}, self.ingest.journals

    def _turn_session(self) -> None:
        """Do what the shipper's thread does when something has happened."""
        self._session_is_due = False
        self.session.update_runs()
        for message in self.session.messages_due(self.now):
            self._send_up(message)
        if self.session.is_silent(self.now):
            self._cut(0.1)
        self._session_at = max(self.session.next_at(self.now), self.now + _SHORTEST_SLEEP_SECONDS)

    def _turn_supervisor(self) -> None:
        """Do what the supervisor's loop does when something has happened."""
        self._ingest_is_due = False
        scheduler, now = self.ingest.scheduler, self.ingest.now
        if self.now >= self._check_at:
            self._check_at = self.now + _CHECK_SECONDS
            scheduler.take_disk_space(_FULL if self._disk_is_full else _ENOUGH, now)
            self.ingest.perform(scheduler.check_workers({}, now))
        self.ingest.perform(scheduler.schedule(now))
        self._send_answers()
        self._ingest_at = min(self._check_at, max(scheduler.find_next_time(now), self.now + _SHORTEST_SLEEP_SECONDS))

    # The acquisition host.

    def _plan_run(self, uid: str) -> None:
        at = self.random.uniform(0.0, FAULTS_SECONDS / 2)
        interval = self.random.choice([0.0, 0.004, 0.5])
        count = self.random.randint(1, 8)
        stops = self.random.random() < 0.8
        for index in range(count):
            stop = stops and index == count - 1
            self.after(at, lambda session=self._session_number, stop=stop: self._publish(uid, session, stop=stop))
            at += interval

    def _publish(self, uid: str, session: int, *, stop: bool) -> None:
        if session != self._session_number:
            # The process that acquired this run is dead.
            return
        if uid not in self.published:
            self.published[uid] = self.spool.add(MemoryRun(uid))
        self.published[uid].append(stop=stop)
        self._session_is_due = True

    def _begin_session(self) -> ShippingSession:
        session = ShippingSession(self.spool, f"model/{self._session_number}", URL)
        self.after(0.0, lambda number=self._session_number: self._connect(number))
        return session

    def _close_publisher(self) -> None:
        self.session.stop()
        self._session_is_due = True

    def _restart_acquisition(self) -> None:
        """Kill the acquisition process; the next one adopts its spool."""
        self._note("acquisition process killed")
        self._lose_connection()
        self._session_number += 1
        for run in self.spool.runs():
            run.is_adopted, run.abandoned, run.is_durable = True, not run.stopped, False
        self.session = self._begin_session()

    # The network.

    def _connect(self, session: int) -> None:
        if session != self._session_number or self._publisher is not None:
            return
        if not self._is_up:
            self.after(0.5, lambda: self._connect(session))
            return
        self._connection += 1
        identity = self._connection.to_bytes(messages.IDENTITY_BYTES, "big")
        self._publisher, self._is_welcomed = Publisher(identity, "", "127.0.0.1", name="model"), False
        self.session.open_connection(self.now)
        self.session.note_activity(self.now)
        self._session_is_due = True

    def _cut(self, seconds: float) -> None:
        self._lose_connection()
        self.after(seconds, lambda session=self._session_number: self._connect(session))

    def _lose_connection(self) -> None:
        publisher, self._publisher = self._publisher, None
        if publisher is None:
            return
        self.session.lose_connection()
        scheduler = self.ingest.scheduler
        # The supervisor notices some time later.
        self.after(self.random.choice([0.0, 3.0]), lambda: scheduler.remove_publisher(publisher))

    def _travel(self, earliest: float) -> float:
        """Return when a message arrives that is sent now, behind those that were sent before."""
        return max(self.now + self.random.choice([0.0, 0.001, 0.2]), earliest, self._hangs_until)

    def _send_up(self, message: messages.Message) -> None:
        publisher = self._publisher
        self._sent_until = self._travel(self._sent_until)

        def arrive() -> None:
            if self._is_up and publisher is self._publisher and publisher is not None:
                self._receive(publisher, message)

        self.after(self._sent_until - self.now, arrive)

    def _tell(self, publisher: Publisher, message: messages.Message) -> None:
        self._told_until = self._travel(self._told_until)

        def arrive() -> None:
            if publisher is self._publisher:
                self.session.receive(message, self.now)
                self._session_is_due = True

        self.after(self._told_until - self.now, arrive)

    def _send_answers(self) -> None:
        answers, self.ingest.answers = self.ingest.answers, {}
        for publisher, told in answers.items():
            for message in told:
                if isinstance(message, messages.Durable):
                    assert message.next <= len(self.ingest.journals[message.run].crcs), "durable and not in the journal"
                if isinstance(message, messages.Refused):
                    assert message.reason in (messages.GAP, messages.LATER), message
                self._tell(publisher, message)

    # The supervisor.

    def _make_disk(self) -> DiskSpace:
        return DiskSpace(Path(), _MIN_FREE)

    def _receive(self, publisher: Publisher, message: messages.Message) -> None:
        """Do what the frontend and the loop do with a message of a publisher."""
        self._ingest_is_due = True
        scheduler = self.ingest.scheduler
        if isinstance(message, messages.Hello):
            self._is_welcomed = True
            uids = [*message.runs, *message.awaited]
            known = [uid for uid in uids if uid in scheduler.runs]
            states = {
                uid: scheduler.describe_run(uid, "", None if uid in known else self.ingest.facts(uid)) for uid in uids
            }
            scheduler.add_publisher(publisher, known)
            self._tell(publisher, messages.Welcome(WINDOW, MAX_DOCUMENT, states))
        elif not self._is_welcomed:
            self._tell(publisher, messages.Refused("", 0, messages.NO_HELLO))
        elif isinstance(message, messages.Ping):
            self._tell(publisher, messages.Pong(message.token))
        elif isinstance(message, messages.Documents | messages.Abandoned):
            self.ingest.send(publisher, message)

    def _kill_supervisor(self, seconds: float) -> None:
        """Kill the supervisor; its workers notice and end, each in its time."""
        if not self._is_up:
            return
        self._note(f"supervisor killed for {seconds:.1f} s")
        self._is_up = False
        self._cut(seconds)
        self.ingest.answers.clear()
        lives = list(self._lives.values())
        self._lives.clear()
        self.ingest.workers.clear()
        for life in lives:
            life.is_orphan = True
            if not life.worker.forked:
                self._die(life)
                continue
            self.ingest.orphans.add(life.identity)
            self._orphans.append(life)
            # One that hangs never ends by itself.
            if not life.is_halted:
                self.after(self.random.uniform(0.0, 3.0), lambda life=life: self._die(life))
        self.after(seconds, self._start_supervisor)

    def _start_supervisor(self) -> None:
        self._epoch += 1.0
        scheduler = self.ingest.scheduler = Scheduler(self.ingest.now, **self._settings, disk=self._make_disk())
        self._is_up = True
        self._check_at = self._ingest_at = self.now
        for journal in list(self.ingest.journals.values()):
            if not journal.is_filed:
                self.ingest.perform(scheduler.add_journal(journal.facts, self.ingest.now))
        scheduler.finish_survey()

    # Workers.

    def begin_worker(self, worker: ModelWorker) -> None:
        """Make a process in a moment."""
        life = self._lives[worker.number] = WorkerLife(worker, (worker.number, self._epoch))
        self.after(self.random.choice([0.01, 0.3]), lambda: self._fork(life))

    def wake_worker(self, number: int) -> None:
        """Have a worker read its messages in a moment."""
        life = self._lives[number]
        self.after(self.random.choice([0.0, 0.1]), lambda: self._read_messages(life))

    def bury_worker(self, worker: ModelWorker) -> None:
        """Note that a worker process is gone."""
        self._die(self._lives.pop(worker.number))

    def kill_orphan(self, identity: tuple[int, float]) -> None:
        """Kill a worker of an earlier supervisor."""
        for life in [life for life in self._orphans if life.identity == identity]:
            self._die(life)

    def _die(self, life: WorkerLife) -> None:
        if life.is_dead:
            return
        life.is_dead = True
        self.ingest.orphans.discard(life.identity)
        if life.request and not self.tiled.away and self.random.random() < 0.5:
            # Its last request has got through; nobody is told. The quiet period of the next worker outlasts it.
            self.tiled.append(life.uid, life.request)

    def _exit(self, life: WorkerLife, exit_code: int) -> None:
        if life.is_orphan:
            self._die(life)
        elif not life.is_dead:
            self._ingest_is_due = True
            self.ingest.end(life.worker, exit_code)

    def _say(self, life: WorkerLife, message: messages.Message) -> None:
        if not (life.is_orphan or life.is_dead):
            self._ingest_is_due = True
            self.ingest.say(life.worker, message)

    def _fork(self, life: WorkerLife) -> None:
        if life.is_dead:
            return
        self.ingest.fork(life.worker)
        self.after(self.random.choice([0.02, 0.5]), lambda: self._open(life))

    def _open(self, life: WorkerLife) -> None:
        if life.is_dead or life.is_halted or life.is_orphan:
            return
        journal = self.ingest.journal(life.uid)
        journal.facts = replace(journal.facts, worker=life.identity)
        life.is_open = True
        # What is in Tiled is read back, as no worker knows whether its predecessor's last request got through.
        life.written = len(self.tiled.rows.get(life.uid, ()))
        self.ingest.open_journal(life.worker)
        self._say(life, messages.Progress(life.uid, life.written))
        self._read_messages(life)

    def _read_messages(self, life: WorkerLife) -> None:
        if not life.is_open or life.is_dead or life.is_halted:
            return
        inbox, journal = life.worker.inbox, self.ingest.journal(life.uid)
        while inbox and not life.is_dead:
            message = inbox.popleft()
            if isinstance(message, messages.Finish):
                life.must_finish = True
            elif isinstance(message, messages.Ping):
                self._say(life, messages.Pong(message.token))
            elif isinstance(message, messages.Documents | messages.Abandoned):
                if journal.append(message):
                    self._say(life, messages.Durable(life.uid, len(journal.crcs), journal.facts.ended))
                else:
                    self._say(life, messages.Refused(life.uid, len(journal.crcs), messages.GAP))
        self._write(life)

    def _write(self, life: WorkerLife) -> None:
        """Send the next request, or end."""
        if life.is_dead or life.is_halted or life.is_writing:
            return
        journal = self.ingest.journal(life.uid)
        if life.must_finish or journal.facts.complete:
            self._exit(life, 0)
        elif self.tiled.away and (life.written < len(journal.crcs) or journal.facts.ended):
            self._wait_for_tiled(life, journal)
        elif life.written < len(journal.crcs):
            life.is_writing = True
            life.request = journal.crcs[life.written : life.written + self.random.randint(1, 5)]
            self.after(self.random.choice([0.03, 0.3, 2.0]), lambda: self._answer(life))
        elif journal.facts.ended:
            self._finish_run(life, journal)

    def _wait_for_tiled(self, life: WorkerLife, journal: ModelJournal) -> None:
        if life.refused_at is None:
            life.refused_at = self.now
            self._say(life, messages.Unreachable(life.uid, self.ingest.now.unix, "503"))
        if journal.facts.ended and self.now >= life.refused_at + 1.0:
            self._exit(life, 0)
        else:
            self.after(0.5, lambda: self._write(life))

    def _answer(self, life: WorkerLife) -> None:
        """Let a request reach Tiled, and its answer the worker."""
        if life.is_dead:
            return
        life.is_writing = False
        request, life.request = life.request, []
        if not self.tiled.away:
            self.tiled.append(life.uid, request)
            life.written += len(request)
            life.refused_at = None
            self._say(life, messages.Reached(life.uid))
            self._say(life, messages.Progress(life.uid, life.written))
        self._read_messages(life)

    def _finish_run(self, life: WorkerLife, journal: ModelJournal) -> None:
        stopped = self.published[life.uid].stopped
        state = State.WRITTEN if stopped else State.INTERRUPTED
        self.tiled.outcomes[life.uid] = state.value
        journal.facts = replace(journal.facts, state=state)
        self._say(life, messages.Reached(life.uid))
        self._say(life, messages.Written(life.uid, state.value, ""))
        self._exit(life, 0)

    # Faults.

    def _faults(self) -> list[Callable[[], None]]:
        return [
            self._cut_cable,
            self._hang_network,
            self._kill_worker,
            self._kill_worker,
            self._halt_worker,
            lambda: self._kill_supervisor(self.random.choice([0.05, 1.0, 4.0])),
            self._restart_acquisition,
            self._stop_tiled,
            self._fill_disk,
            self._refuse_forks,
        ]

    def _note(self, what: str) -> None:
        self.happened.append(f"{self.now:.3f} {what}")

    def _cut_cable(self) -> None:
        self._note("cable cut")
        if self._publisher is not None:
            self._cut(self.random.uniform(0.0, 8.0))

    def _hang_network(self) -> None:
        self._note("network hangs")
        self._hangs_until = self.now + self.random.uniform(0.0, 9.0)

    def _kill_worker(self) -> None:
        if self._lives:
            life = self.random.choice(list(self._lives.values()))
            self._note(f"worker of {life.uid} killed")
            self._exit(life, -9)

    def _halt_worker(self) -> None:
        forked = [life for life in self._lives.values() if life.worker.forked]
        if forked:
            life = self.random.choice(forked)
            self._note(f"worker of {life.uid} hangs")
            life.is_halted = True

    def _stop_tiled(self) -> None:
        self._note("Tiled is away")
        self.tiled.away = True
        self.after(self.random.uniform(0.0, 8.0), lambda: setattr(self.tiled, "away", False))

    def _fill_disk(self) -> None:
        self._note("disk is full")
        self._disk_is_full = True
        self.after(self.random.uniform(0.0, 4.0), lambda: setattr(self, "_disk_is_full", False))

    def _refuse_forks(self) -> None:
        self._note("no process can be made")
        self.ingest.start_error = "too many processes"
        self.after(self.random.uniform(0.0, 4.0), lambda: setattr(self.ingest, "start_error", ""))
