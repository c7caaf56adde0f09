"""Everything a campaign runs: publishers, supervisor, Tiled, the cables between them, and the disks they write to."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, ClassVar, Final, Literal, TypeAlias

import psutil
from paths import SUPPORT, TESTS, search_path
from tiled_group import TiledGroup
from warm import ForkedProcess, run_process, start_process

from tiledbroker import Journal, JournalError, ZMQPublisher
from tiledbroker.publisher._publisher import SpoolPublisher
from tiledwriter.testing import ServerProcess, Storage, SupervisorProcess, TiledServer, free_port, wait_until

from .disk import SmallDisk
from .elsewhere import Elsewhere
from .gateway import Gateway
from .logs import JOURNAL_COMMAND, copy_files, files_of, replace_files, runs_in
from .pace import Pace
from .permissions import subject_to_permissions
from .publishing import PUBLISHED, Acquisition, read_published
from .referee import SETTLED, Emitted, Harm, journal_path
from .wire import Wire, Wires

_START_TIMEOUT: Final = 600.0
_USUAL_START: Final = 5.0
_AT_ONCE: Final = 2
_MANY_COPIES: Final = 6
_HOST_DIES: Final = 15.0
_STOPS: Final = 10.0
_PATIENCES: Final = 4
Source: TypeAlias = Literal["zeromq", "jetstream"]

_RUNS_PER_DISK: Final = 8
JOURNAL_DISK: Final = 256  # MB, for so many open runs
SPOOL_DISK: Final = 64


@dataclass(frozen=True)
class Setting:
    """What a site is like.

    Attributes
    ----------
    runs
        Open at a time, all publishers together.
    servers
        Tiled processes behind one address; more than one of them need PostgreSQL.
    quiet_period, late_audit
        Of the supervisor's workers, in seconds; the audit comes after the latest zombie.
    poison_after
        Seconds for which Tiled, though well, may fail a request until that is taken for the request's fault.
    events
        Fewest and most events of a run.
    pace, burst
        Each run has up to `burst` documents in a row, then a pause of `pace` seconds.
    http
        Port of the supervisor's status page; None for no page.
    source
        Whether publishers send to the ingest host, or to a site's log in JetStream that several ingest hosts read.
    nodes, hosts
        Nodes of the log, and ingest hosts that read it.
    publishers
        Number of publishers, each with at least one open run; None for one for two runs.
    lease_seconds, keep_in_log
        Of the hosts that read a log: validity of their leases, and time for which written runs stay in the log.
    """

    directory: Path
    seed: int = 1
    runs: int = 4
    storage: Storage = "sqlite"
    servers: int = 1
    quiet_period: float = 1.5
    late_audit: float = 15.0
    poison_after: float = 12.0
    events: tuple[int, int] = (60, 240)
    pace: float = 1.0
    burst: int = 6
    http: int | None = None
    source: Source = "zeromq"
    nodes: int = 3
    hosts: int = 3
    publishers: int | None = None
    lease_seconds: float = 12.0
    keep_in_log: float = 20.0

    def describe(self) -> str:
        """What the site is made of."""
        parts = [self.storage]
        if self.servers > 1:
            parts.append(f"{self.servers} Tiled processes")
        if self.source == "jetstream":
            parts.append(f"a log of {self.nodes} nodes, {self.hosts} ingest hosts")
        return ", ".join(parts)


def publishing_environment() -> dict[str, str]:
    """Of a process that runs `publishing`."""
    return {**os.environ, "PYTHONPATH": search_path(TESTS, SUPPORT)}


def read_witness(path: Path) -> dict[str, list[Emitted]]:
    """What a witness file says of each run, in the order of their start."""
    emitted: dict[str, list[Emitted]] = {}
    _read_on(path, 0, emitted)
    return emitted


def _read_on(path: Path, start: int, emitted: dict[str, list[Emitted]]) -> int:
    """Take in the lines from byte `start`; returns where the next one will begin."""
    if not path.exists():
        return start
    with path.open("rb") as file:
        file.seek(start)
        seen = file.read()
    seen = seen[: seen.rfind(b"\n") + 1]
    for line in seen.decode().splitlines():
        run_uid, _, name, checksum, when = line.split()
        emitted.setdefault(run_uid, []).append(Emitted(name, int(checksum), float(when)))
    return start + len(seen)


class Notebook:
    """What sessions of one destination write down in a directory: what was published, what was refused."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self.witness = directory / "witness"
        self._read_to = 0
        self._emitted: dict[str, list[Emitted]] = {}
        self._mutex = threading.Lock()

    def emitted(self) -> dict[str, list[Emitted]]:
        """What the witness has seen so far, by run."""
        with self._mutex:
            self._read_to = _read_on(self.witness, self._read_to, self._emitted)
            return dict(self._emitted)

    def published(self, run_uid: str) -> list[tuple[str, bytes]]:
        """Names and bodies of a run's documents; the last one may not have got to the callback."""
        path = self.directory / PUBLISHED / run_uid
        return read_published(path) if path.exists() else []

    def refused(self) -> dict[str, str]:
        """Runs that a publisher said are refused, and why."""
        return dict(json.loads(line) for line in self._lines("refused"))

    def raised(self) -> list[str]:
        """What a publisher raised when it was asked for its status."""
        return sorted(set(self._lines("raised")))

    def _lines(self, name: str) -> list[str]:
        path = self.directory / name
        return path.read_text().splitlines() if path.exists() else []


class Seat:
    """One spool, and the acquisition processes that use it one after the other.

    `away` is of sessions that have another destination than the site's supervisor.
    """

    def __init__(self, number: int, site: Site, spool: Path, directory: Path, *, at_once: int) -> None:
        self.number = number
        self.spool = spool
        self.mutex = threading.Lock()
        self.home = Notebook(directory)
        self.away = Notebook(directory / "away")
        self._directory = directory
        self._site = site
        self._at_once = at_once
        self._sessions = 0
        self._process: ForkedProcess | subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    def start(self, *, away: str = "") -> None:
        """Begin a session, with the supervisor at `away` if there is one given; returns at once."""
        self._sessions += 1
        setting = self._site.setting
        notebook = self.away if away else self.home
        given = Acquisition(
            address=away or self._site.address,
            name=f"seat-{self.number}",
            beamline=self._site.beamline_of(self.number),
            lingers=self._site.keeps_spools,
            spool=str(self.spool),
            witness=str(notebook.witness),
            files=str(self._site.files),
            control=str(notebook.directory),
            number=1000 * (1000 * self.number + self._sessions),
            seed=f"{setting.seed} {self.number} {self._sessions}",
            at_once=self._at_once,
            events=setting.events,
            pace=setting.pace,
            burst=setting.burst,
        )
        self._output = self._output or (self._directory / "publisher.log").open("ab")
        command = [*subject_to_permissions()[0], *given.command()]
        self._process = start_process(
            command, env=publishing_environment(), stdout=self._output, stderr=subprocess.STDOUT
        )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.poll()

    @property
    def process(self) -> psutil.Process | None:
        """The one that runs."""
        if not self.running or self._process is None:
            return None
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid)
        return None

    @property
    def degraded(self) -> bool:
        """Whether its publisher holds documents in memory that its disk does not take."""
        return (self._directory / "degraded").exists()

    @property
    def idle(self) -> bool:
        """Whether its session has no run any more, and waits until it is told to leave."""
        return not self.running or (self._directory / "idle").exists()

    def tell(self, word: str, *, on: bool = True) -> None:
        """ "hold", "finish" or "leave"; see `publishing`."""
        path = self._directory / word
        if on:
            path.touch()
        else:
            path.unlink(missing_ok=True)

    def send(self, number: signal.Signals) -> None:
        if self.running and self._process is not None:
            self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def leave(self, timeout: float) -> None:
        """End a session that is away in order, if it takes no longer than `timeout` seconds."""
        finish = self.away.directory / "finish"
        finish.touch()
        try:
            if self._process is not None:
                self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
        finally:
            finish.unlink()

    def close(self) -> None:
        self.kill()
        if self._output is not None:
            self._output.close()

    def emitted(self) -> dict[str, list[Emitted]]:
        """What was published for the site's supervisor so far, by run."""
        return self.home.emitted()

    def spooled(self) -> list[str]:
        """Those of these runs that have files in the spool."""
        return runs_in(self.spool, self.emitted())


@dataclass
class Snapshot:
    """Copies of the journal directory and of all spools, of one moment."""

    journals: Path
    spools: list[Path]
    emitted: set[str] = field(default_factory=set)


class Site:
    """Starts everything on entry, and ends it on exit; publishers send to one ingest host.

    `note` is told what happens that nobody has asked for.

    Attributes
    ----------
    keeps_spools
        Whether sessions stay until all is written.
    """

    keeps_spools: ClassVar[bool] = False

    def __init__(self, setting: Setting, note: Callable[[str], None]) -> None:
        self.setting = setting
        self.ending = threading.Event()  # faults heal as soon as it is set
        self.files = setting.directory / "files"
        self.locks = {
            name: threading.Lock()
            for name in ("supervisor", "worker", "tiled", "postgresql", "wire", "http", "journals", "tables")
        }
        self.harms: dict[str, Harm] = {}
        self.retired: list[Path] = []  # journal directories of ingest hosts that are gone, the newest last
        self.snapshots: list[Snapshot] = []
        self.complaints: list[str] = []  # what no run shows, and should not have been
        self.group: TiledGroup | None = None  # of several Tiled processes and a replica
        self.servers: list[TiledServer] = []
        self.elsewhere: Elsewhere | None = None
        self._retired_outcomes: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._journals_stay = threading.RLock()  # held by this process's readers, and while the directory is replaced
        self._note = note
        self._watch_ends = threading.Event()
        self._coming_up: dict[ServerProcess, float] = {}

    def __enter__(self) -> Site:
        directory = self.setting.directory
        self.files.mkdir(parents=True)
        self._stack = ExitStack()
        try:
            enter = self._stack.enter_context
            scale = max(1, self.open_runs // _RUNS_PER_DISK)
            self.journal_disk = enter(SmallDisk(directory / "journal-disk", scale * JOURNAL_DISK))
            self.spool_disk = enter(SmallDisk(directory / "spool-disk", scale * SPOOL_DISK))
            if self.setting.servers > 1:
                self.group = enter(TiledGroup(directory / "tiled", servers=self.setting.servers, readable=[self.files]))
                self.servers = self.group.servers
            else:
                self.servers = [self._make_server(directory / "tiled")]
                self._stack.callback(self.server.stop)
                self.bring_up(self.server)
            self.gateway = enter(Gateway(*(server.uri for server in self.servers)))
            self.journal_dir = self.journal_disk.directory / "journals"
            # Short, since sockets are in there.
            self.temporary = Path(enter(tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True)))
            self._start_ingest()
            self.seats = [self._seat(number, count) for number, count in enumerate(self._share_runs())]
            for seat in self.seats:
                seat.start()
            watch = threading.Thread(target=self._watch, name="watch", daemon=True)
            watch.start()
            self._stack.callback(watch.join)
            self._stack.callback(self._watch_ends.set)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.ending.set()
        self._stack.close()

    def _make_server(self, directory: Path) -> TiledServer:
        return TiledServer(directory, readable=[self.files], storage=self.setting.storage)

    def _start_ingest(self) -> None:
        """Start what is between publishers and Tiled."""
        port = free_port()
        options = () if self.setting.http is None else ("--http", str(self.setting.http))
        self.supervisor = SupervisorProcess(
            self.journal_dir, self._target(), port=port, options=options, environment=self._environment()
        )
        self._start_host(self.supervisor, "supervisor.log")
        self.wire: Wire | Wires = self._stack.enter_context(Wire(port))
        self.elsewhere = Elsewhere(self.setting.directory / "elsewhere", self.server)
        self._stack.callback(self.elsewhere.stop)

    def _target(self) -> Any:
        """Where supervisors write."""
        return SimpleNamespace(uri=self.gateway.uri, api_key=self.server.api_key, storage=self.server.storage)

    def _environment(self) -> dict[str, str]:
        """Settings of supervisors."""
        return {
            "TILEDWRITER_QUIET_PERIOD": str(self.setting.quiet_period),
            "TILEDWRITER_LATE_AUDIT": str(self.setting.late_audit),
            "TILEDWRITER_POISON_AFTER": str(self.setting.poison_after),
            "TMPDIR": str(self.temporary),
        }

    def _start_host(self, host: SupervisorProcess, log: str) -> None:
        host._command[:0] = subject_to_permissions()[0]
        host.log = self.setting.directory / log  # not on a disk that is full now and then
        self._stack.callback(host.stop)
        self.bring_up(host)

    def _seat(self, number: int, at_once: int) -> Seat:
        spool = self.spool_disk.directory / f"spool-{number}"
        seat = Seat(number, self, spool, self.setting.directory / f"seat-{number}", at_once=at_once)
        self._stack.callback(seat.close)
        return seat

    def _share_runs(self) -> list[int]:
        """How many runs each publisher has open at a time."""
        runs = self.setting.runs
        if self.setting.publishers is None:
            return [min(_AT_ONCE, runs - begun) for begun in range(0, runs, _AT_ONCE)]
        least, more = divmod(runs, self.setting.publishers)
        return [max(1, least + (number < more)) for number in range(self.setting.publishers)]

    @property
    def open_runs(self) -> int:
        """How many runs are open at a time, all publishers together."""
        return sum(self._share_runs())

    @property
    def address(self) -> str:
        """Where publishers send to."""
        return self.wire.address

    def beamline_of(self, number: int) -> str:
        """The beamline of a seat, "" where publishers have none."""
        return ""

    def make_publisher(self, spool: Path, *, name: str) -> SpoolPublisher:
        """A publisher in this process."""
        return ZMQPublisher(self.address, spool_dir=spool, name=name)

    @property
    def hosts(self) -> Sequence[SupervisorProcess]:
        """The ingest hosts."""
        return [self.supervisor]

    def lock_of(self, host: SupervisorProcess) -> threading.Lock:
        """Held while something is done to an ingest host."""
        return self.locks["supervisor"]

    @property
    def journal_dirs(self) -> list[Path]:
        """Journal directories of the ingest hosts."""
        return [self.journal_dir]

    def left_journal_dirs(self) -> list[Path]:
        """Those that no ingest host writes from any more."""
        return self.retired

    @property
    def server(self) -> TiledServer:
        """The only Tiled process, or the first one, which PostgreSQL belongs to."""
        return self.servers[0]

    @property
    def postgresql(self) -> ServerProcess | None:
        """Behind Tiled, if there is one."""
        return self.server._postgresql

    def pause(self, seconds: float) -> None:
        """Let a fault last, unless the campaign ends."""
        self.ending.wait(seconds)

    # Runs

    def emitted(self) -> dict[str, list[Emitted]]:
        """All documents that publishers' callbacks have returned from, by run."""
        return {run_uid: documents for seat in self.seats for run_uid, documents in seat.emitted().items()}

    def emitted_elsewhere(self) -> dict[str, list[Emitted]]:
        """The same of sessions with another destination."""
        return {run_uid: documents for seat in self.seats for run_uid, documents in seat.away.emitted().items()}

    def published(self, run_uid: str) -> list[tuple[str, bytes]]:
        """Names and bodies of what was published of a run."""
        return next((found for seat in self.seats if (found := seat.home.published(run_uid))), [])

    def harm(self, run_uid: str, done: Harm) -> None:
        """Note that a run's logs were harmed."""
        self.harms[run_uid] = self.harms.get(run_uid, Harm()) + done

    def refused(self) -> dict[str, str]:
        """Runs of which somebody said that they cannot go on, and why."""
        refused = dict(self._said)
        for seat in self.seats:
            refused |= seat.home.refused()
        return refused

    def journal(self, run_uid: str) -> Journal | None:
        """A run's journal, if there is one that can be opened just now."""
        try:
            path = journal_path(self.journal_dir, run_uid)
            return Journal(path) if path is not None else None
        except (JournalError, OSError, sqlite3.Error):
            return None

    def journaled(self, run_uid: str) -> int:
        """How many documents of a run are durable."""
        with self._journals_stay:
            journal = self.journal(run_uid)
            if journal is None:
                return 0
            with journal:
                return journal.length

    def outcome(self, run_uid: str) -> str:
        """What became of a run, at this ingest host or at one that is gone."""
        with self._journals_stay:
            journal = self.journal(run_uid)
            if journal is not None:
                with journal, suppress(sqlite3.Error, JournalError):
                    if outcome := str(journal.get("outcome", "")):
                        return outcome
            return self._retired_outcomes.get(run_uid, "")

    def settled(self, run_uid: str) -> bool:
        """Whether the run has an outcome here, and its late audit is over."""
        with self._journals_stay:
            journal = self.journal(run_uid)
            if journal is None:
                return False
            with journal:
                try:
                    return bool(journal.get("outcome")) and journal.get("audit_at") is None
                except (sqlite3.Error, JournalError):
                    return False

    def was_settled(self, run_uid: str) -> bool:
        """Whether an ingest host that is gone had brought the run to its end."""
        return self._retired_outcomes.get(run_uid, "") in SETTLED

    # Copies, and ingest hosts that come and go. Whoever calls this holds the locks.

    def take_snapshot(self) -> Snapshot:
        """Copy the journal directory and all spools as of one moment, at which all processes stand still."""
        place = self.setting.directory / "snapshots" / str(time.monotonic_ns())
        family = [*self.ingest_processes(), *(seat.process for seat in self.seats if seat.process is not None)]
        with suspended(family):
            journals = copy_files(self.journal_dir, place / "journals")
            spools = [copy_files(seat.spool, place / seat.spool.name) for seat in self.seats]
        snapshot = Snapshot(journals, spools, set(self.emitted()))
        self.snapshots.append(snapshot)
        for old in self.snapshots[1:-_MANY_COPIES]:  # the first one stays: it is the oldest that can come back
            shutil.rmtree(old.journals.parent)
            self.snapshots.remove(old)
        return snapshot

    def ingest_processes(self) -> list[psutil.Process]:
        """The supervisor and all that it has started."""
        return family_of(self.supervisor)

    def kill_ingest_host(self) -> None:
        """End the supervisor and all its processes at once, and wait for those of supervisors killed before."""
        kill_family(self.supervisor)

    def replace_journals(self, copy: Path | None) -> None:
        """Have the journal directory hold what a copy holds, or nothing; what it held is kept for the referee."""
        self._replace_journals(self.journal_dir, copy)

    def _replace_journals(self, directory: Path, copy: Path | None) -> None:
        retired = self.setting.directory / f"retired-{len(self.retired)}"
        with self._journals_stay:
            for run_uid in self.emitted():
                if outcome := self.outcome(run_uid):
                    self._retired_outcomes[run_uid] = outcome
            copy_files(directory, retired)
            self.retired.append(retired)
            replace_files(directory, copy)

    # Processes

    def bring_up(self, process: ServerProcess) -> None:
        """Start a process until it has started, as systemd does."""
        began = time.monotonic()
        self._coming_up[process] = began
        try:
            while True:
                try:
                    process.start()
                    return
                except (RuntimeError, TimeoutError, OSError) as error:
                    if time.monotonic() > began + _START_TIMEOUT:
                        raise
                    self._note(f"{type(process).__name__} does not start; trying again: {str(error)[-300:]}")
                    time.sleep(0.5)
        finally:
            del self._coming_up[process]

    @property
    def waits_for_start(self) -> bool:
        """Whether a process takes long to start, as on a machine that has much else to do."""
        return any(time.monotonic() - began > _USUAL_START for began in list(self._coming_up.values()))

    def workers(self) -> list[psutil.Process]:
        """The workers of all ingest hosts."""
        return [worker for host in self.hosts for worker in host.workers()]

    def worker(self, choice: float) -> psutil.Process | None:
        """One of the workers there are."""
        workers = sorted(self.workers(), key=lambda process: process.pid)
        return workers[int(choice * len(workers))] if workers else None

    def _watch(self) -> None:
        """Start again what has ended without a fault of ours."""
        while not self._watch_ends.wait(0.5):
            for lock, name, process in self._watched():
                self._revive(lock, name, process)
            for seat in self.seats:
                if seat.mutex.acquire(blocking=False):
                    try:
                        if seat.returncode not in (None, 0):
                            self._note(f"A publisher has ended by itself, with {seat.returncode}.")
                            seat.start()
                    finally:
                        seat.mutex.release()

    def _watched(self) -> Iterator[tuple[threading.Lock, str, ServerProcess]]:
        """Processes that are started again: with their locks, and with what is noted then, which may be ""."""
        yield self.locks["supervisor"], "supervisor", self.supervisor
        for server in self.servers:
            yield self.locks["tiled"], "tiled", server

    def _revive(self, lock: threading.Lock, name: str, process: ServerProcess) -> None:
        if lock.acquire(blocking=False):
            try:
                if not process.running:
                    if name:
                        self._note(f"The {name} has ended by itself, with {process.returncode}.")
                    # This closes its log.
                    process.kill()
                    self.bring_up(process)
            finally:
                lock.release()

    # The end

    def finish(self, patience: float) -> None:
        """Have all runs end, and wait until they are settled; `ending` is set and all faults have healed.

        Given up when nothing happens for `patience` seconds, or no run settles for four times as long.
        """
        for seat in self.seats:
            seat.tell("hold", on=False)
            seat.tell("finish")
        self._end_runs(patience)
        self.gateway.wait_for_late_requests()
        left = self._wait_until_settled(set(self.emitted()), patience)
        if waiting := {run_uid for run_uid in left if self._has_to_settle(run_uid)}:
            self._note(f"{len(waiting)} runs do not settle.")
        self._end_sessions(patience)
        for seat in self.seats:
            self.complaints += [f"a publisher's {raised}" for raised in seat.home.raised()]

    def _end_runs(self, patience: float) -> None:
        """Return when publishers have sent all that they have."""
        self._end_sessions(patience)
        for seat in self.seats:
            self._ship(seat, patience)

    def _end_sessions(self, patience: float) -> None:
        """Wait for the end of sessions that were told to finish, and to leave."""
        with suppress(TimeoutError):
            wait_until(lambda: not any(seat.running for seat in self.seats), patience, "publishers have ended")
        for seat in self.seats:
            if seat.running:
                self._note("A publisher does not end; it is killed.")
            with seat.mutex:
                seat.kill()

    def _wait_until_settled(self, runs: set[str], patience: float) -> set[str]:
        """Until all runs have their outcome that have to; those that need not have one are given some time, too.

        While Tiled is written to, a run may take longer, as on a machine that has much else to do.
        """
        waiting = set(runs)
        spare = 2 * self.setting.late_audit
        deadline = time.monotonic() + patience
        last_deadline = time.monotonic() + _PATIENCES * patience
        lenient_deadline = time.monotonic() + spare
        writes = self.gateway.writes
        pace = Pace(0.5)
        while waiting and time.monotonic() < min(deadline, last_deadline):
            time.sleep(pace.pause_seconds)
            if self.gateway.writes > writes:
                writes, deadline = self.gateway.writes, time.monotonic() + patience
            with pace.look():
                settled = {run_uid for run_uid in waiting if self.settled(run_uid)}
            if settled:
                waiting -= settled
                deadline, lenient_deadline = time.monotonic() + patience, time.monotonic() + spare
                last_deadline = time.monotonic() + _PATIENCES * patience
            if time.monotonic() > lenient_deadline and not any(map(self._has_to_settle, waiting)):
                break
        return waiting

    def _has_to_settle(self, run_uid: str) -> bool:
        """Whether nothing was done to a run, or came about before, for which it may be left open."""
        harm = self.harms.get(run_uid, Harm())
        told = harm.damaged and (run_uid in self.refused() or self.journal(run_uid) is None)
        return harm.readable and not told and not self.was_settled(run_uid)

    @staticmethod
    def spool_elsewhere(seat: Seat) -> Path:
        """Where files are put in the end that are in a spool for the other destination."""
        return seat.spool.with_name(f"{seat.spool.name}-elsewhere")

    def _ship(self, seat: Seat, timeout: float) -> None:
        """What is left in a spool is brought to the supervisor, but for what was published for another one."""
        elsewhere = self.spool_elsewhere(seat)
        elsewhere.mkdir(exist_ok=True)
        for run_uid in seat.away.emitted():
            for path in files_of(seat.spool, run_uid):
                path.rename(elsewhere / path.name)
        if not (left := seat.spooled()):
            return
        command = [*JOURNAL_COMMAND, "ship", str(seat.spool), self.wire.address]
        try:
            done = run_process(command, timeout=timeout)
        except subprocess.TimeoutExpired:
            self._note(f"The spool of seat {seat.number} could not be shipped in {timeout:.0f} s.")
            return
        if done.returncode:
            said = f"{done.stdout} {done.stderr}"
            self._note(f"ship ended with {done.returncode}: {said[-600:]}")
            self._said |= {run_uid: f"ship: {said[-300:]}" for run_uid in left if run_uid in said}


@contextmanager
def held(*locks: Any) -> Iterator[None]:
    """Several locks, taken in one order by all."""
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


@contextmanager
def suspended(processes: list[psutil.Process]) -> Iterator[None]:
    """Have processes stand still, as all do when a file system makes a snapshot."""
    stopped = []
    try:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
                stopped.append(process)
        wait_until(lambda: all(map(_stands_still, stopped)), _STOPS, "processes stand still")
        yield
    finally:
        for process in reversed(stopped):
            with suppress(psutil.NoSuchProcess):
                process.resume()


def _stands_still(process: psutil.Process) -> bool:
    try:
        return process.status() in {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
    except psutil.NoSuchProcess:
        return True


def family_of(host: SupervisorProcess) -> list[psutil.Process]:
    """A supervisor and all that it has started."""
    try:
        supervisor = psutil.Process(host.pid)
        return [supervisor, *supervisor.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill_family(host: SupervisorProcess) -> None:
    """End a supervisor and all its processes at once, and wait for those of supervisors killed before."""
    family = family_of(host)
    host.kill()
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    wait_until(lambda: not _users(host.journal_dir), _HOST_DIES, "nobody uses the journal directory")


def _users(directory: Path) -> list[psutil.Process]:
    """Processes, but for this one, that have files below a directory open."""
    users = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and any(
                Path(file.path).is_relative_to(directory) for file in process.open_files()
            ):
                users.append(process)
    return users
