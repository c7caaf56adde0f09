"""Shipping in one process on one clock: runs in memory, a model of the supervisor, a network that fails on schedule."""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tiledbroker import Record, SpoolDamaged
from tiledbroker.protocol import messages
from tiledbroker.protocol.messages import RunState
from tiledbroker.publisher._session import ShippingSession

URL = "tcp://ingest:5579"
WINDOW = 2**23
MAX_DOCUMENT = 2**28
MAX_STEPS = 20_000

NOTHING = RunState(0, ended=False, outcome="")


class MemoryRun:
    """A run log that has no files."""

    def __init__(self, run_uid: str, *, is_adopted: bool = False) -> None:
        self.run_uid = run_uid
        self.stopped = False
        self.abandoned = self.is_adopted = is_adopted
        self.acknowledged = self.first = 0
        self.damage = ""
        self.is_durable = False
        self.error: Exception | None = None
        self.records: list[Record] = []
        self.files: list[Path] = []

    @property
    def length(self) -> int:
        return len(self.records)

    def append(self, count: int = 1, *, size: int = 10, stop: bool = False) -> MemoryRun:
        """Append so many documents, the last one of which is a stop document if `stop`."""
        for number in range(self.length, self.length + count):
            body = f"{self.run_uid} {number}".encode().ljust(size, b".")
            self.records.append(Record(number, "event", 0.0, zlib.crc32(body), body))
        if stop:
            self.records[-1] = self.records[-1]._replace(name="stop")
            self.stopped, self.abandoned = True, False
        return self

    def count_bytes(self, start: int) -> int:
        return sum(len(record.body) for record in self.records[start:])

    def read(self, start: int, limit: int, max_bytes: int) -> list[Record]:
        if self.error is not None:
            raise self.error
        if start < self.first:
            raise SpoolDamaged("memory", f"documents before {self.first} were deleted")
        found: list[Record] = []
        for record in self.records[start : start + limit]:
            max_bytes -= len(record.body)
            if found and max_bytes < 0:
                break
            found.append(record)
        return found


class MemorySpool:
    """The runs that a session ships."""

    def __init__(self, runs: Iterable[MemoryRun] = ()) -> None:
        self.refused: dict[str, str] = {}
        self.removed: list[str] = []
        self._runs = {run.run_uid: run for run in runs}

    def add(self, run: MemoryRun) -> MemoryRun:
        self._runs[run.run_uid] = run
        return run

    def runs(self) -> list[MemoryRun]:
        return list(self._runs.values())

    def abandon(self) -> None:
        for run in self._runs.values():
            run.abandoned = not run.stopped

    def remove(self, run: object) -> None:
        assert isinstance(run, MemoryRun)
        if self._runs.get(run.run_uid) is run:
            del self._runs[run.run_uid]
            self.removed.append(run.run_uid)


@dataclass
class Journal:
    """What the modelled supervisor has of a run."""

    records: list[tuple[str, int, bytes]] = field(default_factory=list)
    ended: bool = False
    written_at: float | None = None
    """Time from which the run is in Tiled; None while it has not ended."""

    def state(self, now: float) -> RunState:
        written = self.written_at is not None and now >= self.written_at
        return RunState(len(self.records), ended=self.ended, outcome="written" if written else "")


class SupervisorModel:
    """A supervisor that keeps what it is sent, and answers at once."""

    def __init__(self, seconds_to_write: float = 0.0) -> None:
        self.journals: dict[str, Journal] = {}
        self.busy_until = 0.0
        self._seconds_to_write = seconds_to_write
        self._welcomed = False

    def lose_connection(self) -> None:
        self._welcomed = False

    def go_back(self, now: float, count: int) -> None:
        """Lose the last documents of all runs that are not in Tiled, as a restored disk would."""
        for journal in self.journals.values():
            if journal.state(now).outcome != "written":
                del journal.records[max(0, len(journal.records) - count) :]
                if not journal.records or journal.records[-1][0] != "stop":
                    journal.ended, journal.written_at = False, None

    def ask_again(self, uid: str) -> messages.Message:
        """What is said after a worker died with documents that were on their way to it."""
        return messages.Refused(uid, len(self._journal(uid).records), messages.GAP)

    def answer(self, message: messages.Message, now: float) -> list[messages.Message]:
        if isinstance(message, messages.Hello):
            self._welcomed = True
            states = {uid: self._journal(uid).state(now) for uid in (*message.runs, *message.awaited)}
            return [messages.Welcome(WINDOW, MAX_DOCUMENT, states)]
        if not self._welcomed:
            return [messages.Refused("", 0, messages.NO_HELLO)]
        if isinstance(message, messages.Ping):
            return [messages.Pong(message.token)]
        if isinstance(message, messages.Documents | messages.Abandoned):
            return [self._take(message, now)]
        raise AssertionError(message)

    def _journal(self, uid: str) -> Journal:
        return self.journals.setdefault(uid, Journal())

    def _take(self, message: messages.Documents | messages.Abandoned, now: float) -> messages.Message:
        journal = self._journal(message.run)
        if now < self.busy_until:
            return messages.Refused(message.run, message.first, messages.LATER, "the journal's disk is full")
        following = len(journal.records)
        if message.first > following:
            return messages.Refused(message.run, following, messages.GAP)
        if isinstance(message, messages.Abandoned):
            assert message.length == following, "a run ends behind all of its documents"
            self._end(journal, now)
        else:
            records = list(message.unpack())
            known = following - message.first
            assert journal.records[message.first :][: len(records)] == records[:known], "documents are sent unchanged"
            journal.records += records[known:]
            if journal.records[-1][0] == "stop":
                self._end(journal, now)
        return messages.Durable(message.run, len(journal.records), ended=journal.ended)

    def _end(self, journal: Journal, now: float) -> None:
        if not journal.ended:
            journal.ended, journal.written_at = True, now + self._seconds_to_write


@dataclass(frozen=True)
class Fault:
    """Something that happens at a time, and lasts."""

    kind: Literal["cut", "hang", "go back", "block", "busy", "lose workers"]
    at: float
    seconds: float


@dataclass(frozen=True)
class Publication:
    """A run: documents that are appended at intervals from a time on, and how it ends."""

    at: float
    documents: int
    interval: float
    stops: bool
    is_adopted: bool


class World:
    """A session, the supervisor, the network between them, and time.

    Parameters
    ----------
    publications
        What is published.
    faults
        What goes wrong.
    delays
        Seconds that messages travel, one after the other, again from the first one after the last one.
    stop_at
        Time at which the publisher is closed.
    """

    def __init__(
        self, publications: list[Publication], faults: list[Fault], delays: list[float], *, stop_at: float
    ) -> None:
        self.now = 0.0
        self.supervisor = SupervisorModel(seconds_to_write=3.0)
        self.published: dict[str, MemoryRun] = {}
        self.spool = MemorySpool()
        self.session = ShippingSession(self.spool, "model/0", URL)
        self._delays = itertools.cycle(delays)
        self._up: deque[tuple[float, messages.Message]] = deque()
        self._down: deque[tuple[float, messages.Message]] = deque()
        self._open = False
        self._opens_at = 0.0
        self._blocked_until = self._hangs_until = 0.0
        self._plan = sorted(
            [(fault.at, number, fault) for number, fault in enumerate(faults)]
            + [step for number, each in enumerate(publications) for step in self._plan_run(100 + number, each)]
            + [(stop_at, 1000, None)],
            key=lambda step: step[:2],
        )

    def _plan_run(self, number: int, publication: Publication) -> list[tuple[float, int, object]]:
        run = MemoryRun(f"run-{number}", is_adopted=publication.is_adopted)
        self.published[run.run_uid] = run
        count = publication.documents
        if publication.is_adopted:
            run.append(count, stop=publication.stops)
            return [(publication.at, number, (run, None))]
        times = [publication.at + index * publication.interval for index in range(count)]
        return [(at, number, (run, publication.stops and index == count - 1)) for index, at in enumerate(times)]

    def run(self) -> None:
        """Let time pass until the spool is empty."""
        for _ in range(MAX_STEPS):
            self._act()
            if not self._plan and not self.spool.runs():
                return
            self.now = max(self.now, self._next_time())
        raise AssertionError(f"the spool is not empty after {self.now:g} s")

    def _act(self) -> None:
        while self._plan and self._plan[0][0] <= self.now:
            self._happen(self._plan.pop(0)[2])
        if not self._open and self.now >= self._opens_at:
            self.session.open_connection(self.now)
            self.session.note_activity(self.now)
            self._open = True
        if self._open:
            self._deliver()
            self.session.update_runs()
            self._send()
            if self.session.is_silent(self.now):
                self._cut(0.1)

    def _happen(self, event: object) -> None:
        if isinstance(event, tuple):
            run, stop = event
            self.spool.add(run)
            if stop is not None:
                run.append(stop=stop)
        elif isinstance(event, Fault):
            self._break(event)
        else:
            self.session.stop()

    def _break(self, fault: Fault) -> None:
        until = self.now + fault.seconds
        if fault.kind == "block":
            self._blocked_until = until
        elif fault.kind == "hang":
            self._hangs_until = until
        elif fault.kind == "busy":
            self.supervisor.busy_until = until
        elif fault.kind == "lose workers":
            lost = [each for each in self._up if isinstance(each[1], messages.Documents)]
            self._up = deque(each for each in self._up if each not in lost)
            for _, documents in lost:
                self._reply([self.supervisor.ask_again(documents.run)])
        else:
            self._cut(fault.seconds)
            if fault.kind == "go back":
                self.supervisor.go_back(self.now, round(fault.seconds))

    def _cut(self, seconds: float) -> None:
        if self._open:
            self.session.lose_connection()
        self.supervisor.lose_connection()
        self._open, self._opens_at = False, self.now + seconds
        self._up.clear()
        self._down.clear()

    def _deliver(self) -> None:
        if self.now < self._hangs_until:
            return
        while self._up and self._up[0][0] <= self.now:
            self._reply(self.supervisor.answer(self._up.popleft()[1], self.now))
        while self._down and self._down[0][0] <= self.now:
            self.session.receive(self._down.popleft()[1], self.now)

    def _reply(self, answers: list[messages.Message]) -> None:
        self._down.extend((self._arrival(self._down), answer) for answer in answers)

    def _send(self) -> None:
        for message in self.session.messages_due(self.now):
            if self.now < self._blocked_until:
                break
            self._up.append((self._arrival(self._up), message))

    def _arrival(self, queue: deque[tuple[float, messages.Message]]) -> float:
        arrival = self.now + next(self._delays)
        return max(arrival, queue[-1][0]) if queue else arrival

    def _next_time(self) -> float:
        times = [step[0] for step in self._plan[:1]]
        if self._open:
            times += [max(queue[0][0], self._hangs_until) for queue in (self._up, self._down) if queue]
            times.append(max(self.session.next_at(self.now), self._blocked_until))
        else:
            times.append(self._opens_at)
        return min(times)
