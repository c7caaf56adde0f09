"""The supervisor's record of each run: its state, its worker, and the publishers to inform about it."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from .._errors import JournalError, JournalInvalid
from ..log import Journal, find_run_file, journal_filename
from ..protocol import messages
from ._lifecycle import FINAL, Event, State, next_state

if TYPE_CHECKING:
    from ._fork_server import WorkerProcess
    from ._frontend import Publisher

log = logging.getLogger(__name__)

MAX_DEATHS: Final = 8
"""Consecutive deaths of a run's worker without progress, after which the run is quarantined."""

MAX_DEATHS_WITHOUT_WRITES: Final = 24
"""The same limit if documents were journaled between the deaths but none was written."""

# Seconds before a worker is restarted after its first death; the delay doubles with each further one.
_FIRST_DELAY: Final = 0.05
_MAX_DELAY: Final = 30.0
# Seconds without documents after which the worker of an open run may be ended to make room for others.
_IDLE_OPEN: Final = 10.0
# Seconds without documents after which the worker of a closing run may be ended to make room for others.
_IDLE_CLOSING: Final = 1.0

ProcessIdentity: TypeAlias = tuple[int, float]
"""A process: its pid, and the Unix time of its creation."""


@dataclass(frozen=True)
class WorkerTask:
    """What a worker process is told: its run, the journal, and the socket to report to.

    Attributes
    ----------
    mailbox
        ZeroMQ URL of the supervisor's socket for workers.
    token
        The worker's identity on that socket.
    run_uid
        Uid of the run.
    journal
        Path of the run's journal.
    drain
        End once everything in the journal is written, even if the run is open.
    order
        Unix time at which the run arrived; it orders the runs, and no two are equal.
    client
        Name of the CURVE key with which the documents came; "" without CURVE.
    lifeline
        Descriptor that becomes readable when the supervisor is gone; -1 if there is none. The fork server sets it.
    """

    mailbox: str
    token: bytes
    run_uid: str
    journal: Path
    drain: bool
    order: float = 0.0
    client: str = ""
    lifeline: int = -1


@dataclass(frozen=True)
class WorkerCommand:
    """What a worker process runs.

    Attributes
    ----------
    target
        Function that a worker process calls.
    preload
        Modules that the fork server imports before it forks the first worker.
    """

    target: Callable[[WorkerTask], None]
    preload: tuple[str, ...] = ()


@dataclass
class Run:
    """One run as the supervisor sees it. Times are those of `time.monotonic` unless stated otherwise.

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
    ended
        The journal has the end of the run.
    relayed
        Number of documents of the run up to the last one sent to the current worker.
    written
        Number of documents that are in Tiled.
    order
        Unix time at which the run arrived; no two runs have the same.
    heard
        Time at which documents came last.
    audit_at
        Unix time of the audit of a written run; None if it needs none.
    client
        Name of the CURVE key that the run belongs to; "" until a client with a key has sent documents.
    unusable
        The journal can be neither read nor written.
    unavailable
        The journal is unusable for a reason that may pass, such as too many open files.
    process
        The worker process; None while there is none.
    worker
        Pid and creation time of that process.
    orphan
        The worker named in the journal, perhaps one of an earlier supervisor that still runs.
    token
        The worker's identity on the supervisor's socket.
    ready
        The worker has opened the journal.
    resumed
        The worker was started to write what is left in the journal.
    probe
        The worker was also started to find out if Tiled is back.
    auditing
        The worker was started to audit a written run.
    finish_by
        The worker was told to end, and is killed at this time.
    kill_reason
        Why the supervisor ends the worker; "" if it does not.
    answered
        Time of the worker's last message.
    asked
        Time of the last Ping to the worker.
    tries
        Number of workers that ended because Tiled was away, since the last progress in writing.
    deaths
        Deaths of the worker since the last progress of any kind.
    deaths_without_writes
        Deaths of the worker since the last progress in writing.
    start_at
        Time before which no worker is started.
    queued_messages
        Messages to be sent to the worker when it is ready.
    publishers
        Publishers to inform about the run.
    """

    uid: str
    journal: Path
    state: State = State.STARTING
    reason: str = ""
    start_crc: int | None = None
    end: tuple[int, int] | None = None
    next: int = 0
    ended: bool = False
    relayed: int = 0
    written: int = 0
    order: float = 0.0
    heard: float = 0.0
    audit_at: float | None = None
    client: str = ""
    unusable: bool = False
    unavailable: bool = False
    process: WorkerProcess | None = None
    worker: ProcessIdentity | None = None
    orphan: ProcessIdentity | None = None
    token: bytes = b""
    ready: bool = False
    resumed: bool = False
    probe: bool = False
    auditing: bool = False
    finish_by: float | None = None
    kill_reason: str = ""
    answered: float = 0.0
    asked: float = 0.0
    tries: int = 0
    deaths: int = 0
    deaths_without_writes: int = 0
    start_at: float = 0.0
    queued_messages: list[messages.Documents | messages.Abandoned] = field(default_factory=list)
    publishers: set[Publisher] = field(default_factory=set)

    @classmethod
    def load(cls, journal_dir: Path, uid: str) -> Run:
        """Return a run as its journal shows it: a new run without a journal, a failed run if it cannot be read."""
        try:
            path = find_run_file(journal_dir, uid)
        except OSError as error:
            return cls._create_unusable(journal_dir / journal_filename(uid), uid, error)
        return cls.from_file(path, uid) if path.exists() else cls(uid, path)

    @classmethod
    def from_file(cls, path: Path, uid: str | None = None) -> Run:
        """Return the run of a journal file; a failed run if the file cannot be used."""
        try:
            with Journal(path, "read", run_uid=uid) as journal:
                if journal_filename(journal.run_uid) != path.name:
                    raise JournalInvalid(path, f"it is that of run {journal.run_uid!r}, and has another name.")
                run = cls(journal.run_uid, path, next=journal.length, ended=journal.ended)
                start = next(iter(journal.read(0, 1)), None)
                run.start_crc = None if start is None else start.crc
                if run.ended:
                    run.end = next(((run.next, last.crc) for last in journal.read(run.next - 1, 1)), None)
                run.order = float(journal.get("arrived") or (0.0 if start is None else start.received))
                run.client = str(journal.get("client", ""))
                run.orphan = _process_identity(journal.get("worker"))
                audit_at = journal.get("audit_at")
                run.audit_at = None if audit_at is None else float(audit_at)
                if outcome := journal.get("outcome"):
                    run.state = State(outcome)
                    run.reason = str(journal.get("reason", ""))
        except (JournalError, sqlite3.Error, OSError, ValueError, TypeError, LookupError, OverflowError) as error:
            run = cls._create_unusable(path, uid or path.stem, error)
        return run

    @classmethod
    def _create_unusable(cls, path: Path, uid: str, error: Exception) -> Run:
        log.error("A journal cannot be used; it is left as it is: %s", error)
        run = cls(uid, path, State.FAILED, f"its journal cannot be used: {error}", unusable=True)
        # For example too many open files, which may pass.
        run.unavailable = isinstance(error, sqlite3.OperationalError | OSError)
        return run

    def begin(self, message: messages.Documents | messages.Abandoned) -> None:
        """Remember the start document's checksum, to detect another run with the same uid."""
        if isinstance(message, messages.Documents) and message.first == 0 and self.start_crc is None:
            self.start_crc = message.crcs[0]

    def start_over(self) -> None:
        """Accept any start document again, since the worker refused documents and nothing is stored yet."""
        if not self.next:
            self.start_crc = None

    def may_hold(self, message: messages.Documents | messages.Abandoned) -> bool:
        """Return False if a message belongs to another run that has the same uid."""
        if not isinstance(message, messages.Documents):
            return True
        if message.first == 0 and self.start_crc not in (None, message.crcs[0]):
            return False
        if not (self.ended and message.next <= self.next):
            # The worker compares it with the journal.
            return True
        with Journal(self.journal, run_uid=self.uid) as journal:
            return journal.has(message.first, message.crcs)

    def belongs_to(self, client: str) -> bool:
        """Return whether a client may send documents of the run and read its state."""
        return self.client in ("", client)

    @property
    def final(self) -> bool:
        """Whether the state is a final one, which the journal records."""
        return self.state in FINAL

    @property
    def outcome(self) -> str:
        """The final state; "" while there is none."""
        return self.state.value if self.final else ""

    def apply_event(self, event: Event) -> None:
        """Apply an event to the state."""
        before, self.state = self.state, next_state(self.state, event)
        if before is not self.state:
            log.info("Run %s is %s.", self.uid, self.state)

    def view(self) -> messages.RunState:
        """Return the state of the run as publishers are told it."""
        end_crc = self.end[1] if self.ended and self.end is not None and self.end[0] == self.next else None
        return messages.RunState(self.next, self.ended, self.outcome, self.reason, self.start_crc, end_crc)

    @property
    def complete(self) -> bool:
        """Whether all documents of the run are in Tiled."""
        return self.state in (State.WRITTEN, State.INTERRUPTED)

    @property
    def left(self) -> bool:
        """Whether something can be written without further documents."""
        return not self.final and (self.ended or self.written < self.next)

    def advance(self, *, next_: int = 0, written: int = 0) -> None:
        """Update the worker's progress; only going beyond all earlier workers resets the count of deaths."""
        if next_ > self.next or written > self.written:
            self.deaths = 0
        if written > self.written:
            self.deaths_without_writes = self.tries = 0
        self.next = max(self.next, next_)
        self.written = max(self.written, written)

    def worker_may_end(self, now: float, *, away: bool) -> bool:
        """Return whether the worker may be ended to make room for a run with documents to store."""
        if not self.ready or self.finish_by is not None or self.queued_messages or self.relayed > self.next:
            return False
        if self.state is State.OPEN:
            return self.written >= self.next and now - self.heard >= _IDLE_OPEN
        return self.auditing or (self.state is State.CLOSING and (away or now - self.heard >= _IDLE_CLOSING))

    def queue_message(self, message: messages.Documents | messages.Abandoned) -> None:
        """Keep a message for the worker that is being started, unless an earlier kept message contains it."""
        last = next((kept for kept in reversed(self.queued_messages) if type(kept) is type(message)), None)
        if isinstance(message, messages.Documents) and isinstance(last, messages.Documents):
            if message.next > last.next:
                self.queued_messages.append(message)
        elif last is None:
            self.queued_messages.append(message)

    def try_again(self) -> None:
        """Forget a failure that was removed from the journal."""
        if self.state is State.FAILED:
            self.apply_event(Event.RESUMED)
        self.reason = ""
        self.deaths = self.deaths_without_writes = self.tries = 0
        self.start_at = 0.0

    def worker_died(self, exit_code: int | None) -> bool:
        """Count a death and set the delay of the next start; return True if the run must be quarantined."""
        self.apply_event(Event.DIED)
        self.deaths += 1
        self.deaths_without_writes += 1
        delay = min(_MAX_DELAY, _FIRST_DELAY * 2 ** (self.deaths_without_writes - 1))
        self.start_at = time.monotonic() + delay
        log.warning(
            "The worker of run %s ended with exit code %s; starting another in %.2f s.", self.uid, exit_code, delay
        )
        return self.deaths >= MAX_DEATHS or self.deaths_without_writes >= MAX_DEATHS_WITHOUT_WRITES

    def quarantine(self, reason: str) -> None:
        """Record the failure in the journal. The worker must be gone."""
        self.apply_event(Event.FAILED)
        self.reason = reason
        log.error("Run %s is in quarantine: %s. Its documents are in %s.", self.uid, reason, self.journal)
        state = {"outcome": State.FAILED.value, "reason": reason}
        self.record("quarantined", {"reason": reason}, state)

    def give_audit_up(self) -> None:
        """Record in the journal that the audit is given up. The worker must be gone."""
        reason = f"its worker died {MAX_DEATHS} times in a row"
        log.error(
            "Run %s is written, but its late audit is given up: %s. To compare it with Tiled: "
            "tiledwriter-journal verify --tiled URI %s. The next supervisor tries the audit again.",
            self.uid,
            reason,
            self.journal,
        )
        self.record("audit given up", {"reason": reason})

    def record(self, event: str, detail: Mapping[str, Any], state: Mapping[str, Any] | None = None) -> None:
        """Write an event, and optionally state, to the journal. The worker must be gone. Errors are logged only."""
        try:
            with Journal(self.journal, "write", lock_timeout=2.0) as journal, journal.atomic():
                for key, value in (state or {}).items():
                    journal.set(key, value)
                journal.note(event, **detail)
        except (JournalError, sqlite3.Error, OSError) as error:
            log.error("That could not be noted in the journal %s: %s", self.journal, error)


def _process_identity(worker: Any) -> ProcessIdentity | None:
    return (int(worker[0]), float(worker[1])) if worker else None
