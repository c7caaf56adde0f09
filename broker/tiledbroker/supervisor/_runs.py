"""What the supervisor knows of each run: its state, its worker, and who is to be told about it."""

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
    from ._front import Publisher

log = logging.getLogger(__name__)

MAX_DEATHS: Final = 8
"""Deaths of a run's worker in a row, without progress, after which the run is quarantined."""

MAX_FRUITLESS_DEATHS: Final = 24
"""The same, where documents came and were journaled between them, but nothing was written."""

_FIRST_DELAY: Final = 0.05
_MAX_DELAY: Final = 30.0
_IDLE_OPEN: Final = 10.0
_IDLE_CLOSING: Final = 1.0

ProcessIdentity: TypeAlias = tuple[int, float]
"""A process: its pid, and the Unix time of its creation."""


@dataclass(frozen=True)
class WorkerTask:
    """What a worker process is told: one run, its journal, and where to report.

    Attributes
    ----------
    mailbox
        ZeroMQ URL of the supervisor's socket for workers.
    token
        The worker's identity on that socket.
    drain
        End once everything in the journal is written, even if the run is open.
    order
        Where the run stands among all runs, by the time at which it came.
    client
        Whose key its documents came with; "" without CURVE.
    lifeline
        Descriptor that can be read once the supervisor is gone; -1 if there is none. The fork server puts it in.
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
    """What to run in a worker process, and which modules to import before the first one is needed."""

    target: Callable[[WorkerTask], None]
    preload: tuple[str, ...] = ()


@dataclass
class Run:
    """One run as the supervisor sees it."""

    uid: str
    journal: Path
    state: State = State.STARTING
    reason: str = ""
    start_crc: int | None = None  # of its start document: what tells it from another run of the same uid
    end: tuple[int, int] | None = None  # when the journal was read: its length, and its last document's checksum
    next: int = 0  # documents that are durable here
    ended: bool = False
    relayed: int = 0  # documents handed to the worker of now
    written: int = 0  # documents that are in Tiled
    order: float = 0.0  # Unix time at which it came; no two have the same
    heard: float = 0.0  # when documents came last
    audit_at: float | None = None  # Unix time at which a run that is written wants to be looked at again
    client: str = ""  # whose it is; "" as long as nobody has shown a key
    unusable: bool = False  # its journal can be neither read nor written
    unavailable: bool = False  # ... at the moment
    process: WorkerProcess | None = None
    worker: ProcessIdentity | None = None
    orphan: ProcessIdentity | None = None  # the worker that its journal names, of an earlier supervisor perhaps
    token: bytes = b""
    ready: bool = False
    resumed: bool = False  # the worker of now was started to write what is left
    probe: bool = False  # ... and to find out whether Tiled is back
    auditing: bool = False  # ... or to look at a run that is written
    finish_by: float | None = None  # it was told to end, and is ended then
    accused: str = ""  # why it was
    answered: float = 0.0
    asked: float = 0.0
    tries: int = 0  # how often it found Tiled away
    deaths: int = 0
    fruitless_deaths: int = 0
    start_at: float = 0.0
    backlog: list[messages.Documents | messages.Abandoned] = field(default_factory=list)
    publishers: set[Publisher] = field(default_factory=set)

    @classmethod
    def load(cls, journal_dir: Path, uid: str) -> Run:
        """A run as its journal shows it; an unreadable journal gives a failed run."""
        try:
            path = find_run_file(journal_dir, uid)
        except OSError as error:
            return cls._unusable(journal_dir / journal_filename(uid), uid, error)
        return cls.from_file(path, uid) if path.exists() else cls(uid, path)

    @classmethod
    def from_file(cls, path: Path, uid: str | None = None) -> Run:
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
                run.orphan = _identity(journal.get("worker"))
                audit_at = journal.get("audit_at")
                run.audit_at = None if audit_at is None else float(audit_at)
                if outcome := journal.get("outcome"):
                    run.state = State(outcome)
                    run.reason = str(journal.get("reason", ""))
        except (JournalError, sqlite3.Error, OSError, ValueError, TypeError, LookupError, OverflowError) as error:
            run = cls._unusable(path, uid or path.stem, error)
        return run

    @classmethod
    def _unusable(cls, path: Path, uid: str, error: Exception) -> Run:
        log.error("A journal cannot be used; it is left as it is: %s", error)
        run = cls(uid, path, State.FAILED, f"its journal cannot be used: {error}", unusable=True)
        # Too many open files, say. The next one who asks may find it well.
        run.unavailable = isinstance(error, sqlite3.OperationalError | OSError)
        return run

    def begin(self, message: messages.Documents | messages.Abandoned) -> None:
        """Note by what the run is told from others of its uid."""
        if isinstance(message, messages.Documents) and message.first == 0 and self.start_crc is None:
            self.start_crc = message.crcs[0]

    def start_over(self) -> None:
        """Its worker has not taken something: as long as nothing is stored, anything may be its start."""
        if not self.next:
            self.start_crc = None

    def may_hold(self, message: messages.Documents | messages.Abandoned) -> bool:
        """Whether a message can be of this run, and not of another one that has its uid."""
        if not isinstance(message, messages.Documents):
            return True
        if message.first == 0 and self.start_crc not in (None, message.crcs[0]):
            return False
        if not (self.ended and message.next <= self.next):
            return True  # its worker looks closer
        with Journal(self.journal, run_uid=self.uid) as journal:
            return journal.has(message.first, message.crcs)

    def is_of(self, client: str) -> bool:
        """Whether a client may add to it, and hear of it."""
        return self.client in ("", client)

    @property
    def final(self) -> bool:
        return self.state in FINAL

    @property
    def outcome(self) -> str:
        return self.state.value if self.final else ""

    def happens(self, event: Event) -> None:
        """Move along the table of states."""
        before, self.state = self.state, next_state(self.state, event)
        if before is not self.state:
            log.info("Run %s is %s.", self.uid, self.state)

    def view(self) -> messages.RunState:
        """What a publisher is told about the run."""
        end_crc = self.end[1] if self.ended and self.end is not None and self.end[0] == self.next else None
        return messages.RunState(self.next, self.ended, self.outcome, self.reason, self.start_crc, end_crc)

    @property
    def complete(self) -> bool:
        """Whether all there is of it is in Tiled."""
        return self.state in (State.WRITTEN, State.INTERRUPTED)

    @property
    def left(self) -> bool:
        """Whether there is something to be written that needs no further documents."""
        return not self.final and (self.ended or self.written < self.next)

    def advance(self, *, next_: int = 0, written: int = 0) -> None:
        """Note how far the worker is; only what none was before counts as progress."""
        if next_ > self.next or written > self.written:
            self.deaths = 0
        if written > self.written:
            self.fruitless_deaths = self.tries = 0
        self.next = max(self.next, next_)
        self.written = max(self.written, written)

    def can_wait(self, now: float, *, away: bool) -> bool:
        """Whether its worker may be ended to make room for a run that has documents to be stored."""
        if not self.ready or self.finish_by is not None or self.backlog or self.relayed > self.next:
            return False
        if self.state is State.OPEN:
            return self.written >= self.next and now - self.heard >= _IDLE_OPEN
        return self.auditing or (self.state is State.CLOSING and (away or now - self.heard >= _IDLE_CLOSING))

    def put_off(self, message: messages.Documents | messages.Abandoned) -> None:
        """Keep a message for the worker that is being started; what is kept already is not kept twice."""
        last = next((kept for kept in reversed(self.backlog) if type(kept) is type(message)), None)
        if isinstance(message, messages.Documents) and isinstance(last, messages.Documents):
            if message.next > last.next:
                self.backlog.append(message)
        elif last is None:
            self.backlog.append(message)

    def try_again(self) -> None:
        """Forget a failure, which its journal does not name any more."""
        if self.state is State.FAILED:
            self.happens(Event.RESUMED)
        self.reason = ""
        self.deaths = self.fruitless_deaths = self.tries = 0
        self.start_at = 0.0

    def worker_died(self, exit_code: int | None) -> bool:
        """Note a death; True if the run is to be quarantined for it."""
        self.happens(Event.DIED)
        self.deaths += 1
        self.fruitless_deaths += 1
        delay = min(_MAX_DELAY, _FIRST_DELAY * 2 ** (self.fruitless_deaths - 1))
        self.start_at = time.monotonic() + delay
        log.warning(
            "The worker of run %s ended with exit code %s; starting another in %.2f s.", self.uid, exit_code, delay
        )
        return self.deaths >= MAX_DEATHS or self.fruitless_deaths >= MAX_FRUITLESS_DEATHS

    def quarantine(self, reason: str) -> None:
        """Record in the journal that the run is failed; its worker must be gone."""
        self.happens(Event.FAILED)
        self.reason = reason
        log.error("Run %s is in quarantine: %s. Its documents are in %s.", self.uid, reason, self.journal)
        state = {"outcome": State.FAILED.value, "reason": reason}
        self.record("quarantined", {"reason": reason}, state)

    def give_audit_up(self) -> None:
        """Record in the journal that nobody looks at the run again; its worker must be gone."""
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
        """Note in the journal what the supervisor knows; its worker must be gone."""
        try:
            with Journal(self.journal, "write", lock_timeout=2.0) as journal, journal.atomic():
                for key, value in (state or {}).items():
                    journal.set(key, value)
                journal.note(event, **detail)
        except (JournalError, sqlite3.Error, OSError) as error:
            log.error("That could not be noted in the journal %s: %s", self.journal, error)


def _identity(worker: Any) -> ProcessIdentity | None:
    return (int(worker[0]), float(worker[1])) if worker else None
