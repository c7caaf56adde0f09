"""Everything a campaign runs: publishers, supervisor, Tiled, the cables between them, and the disks they write to."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, Final

import psutil
from paths import search_path

from tiledbroker import Journal, JournalError
from tiledbroker._journal import find_run_file
from tiledwriter.testing import ServerProcess, Storage, SupervisorProcess, TiledServer, free_port, wait_until

from .disk import SmallDisk
from .gateway import Gateway
from .publishing import Acquisition
from .referee import Cut, Emitted
from .wire import Wire

_TESTS: Final = Path(__file__).resolve().parent.parent
_START_TIMEOUT: Final = 600.0
_USUAL_START: Final = 5.0
_AT_ONCE: Final = 2
_JOURNAL_COMMAND: Final = (sys.executable, "-m", "tiledwriter.cli.journal")
JOURNAL_DISK: Final = 256  # MB
SPOOL_DISK: Final = 64


@dataclass(frozen=True)
class Setting:
    """What a site is like.

    Attributes
    ----------
    runs
        Open at a time, all publishers together.
    quiet_period, late_audit
        Of the supervisor's workers, in seconds; the audit comes after the latest zombie.
    events
        Fewest and most events of a run.
    pace, burst
        Each run has up to `burst` documents in a row, then a pause of `pace` seconds.
    """

    directory: Path
    seed: int = 1
    runs: int = 4
    storage: Storage = "sqlite"
    quiet_period: float = 1.5
    late_audit: float = 15.0
    events: tuple[int, int] = (60, 240)
    pace: float = 1.0
    burst: int = 6


def publishing_environment() -> dict[str, str]:
    """Of a process that runs `publishing`."""
    return {**os.environ, "PYTHONPATH": search_path(_TESTS)}


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


class Seat:
    """One spool, and the acquisition processes that use it one after the other."""

    def __init__(self, number: int, site: Site, spool: Path, directory: Path, *, at_once: int) -> None:
        directory.mkdir(parents=True)
        self.number = number
        self.spool = spool
        self.mutex = threading.Lock()
        self.cuts: dict[str, Cut] = {}
        self._directory = directory
        self._site = site
        self._at_once = at_once
        self._sessions = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        self._witness = directory / "witness"
        self._read_to = 0
        self._emitted: dict[str, list[Emitted]] = {}

    def start(self) -> None:
        """Begin a session; returns at once."""
        self._sessions += 1
        setting = self._site.setting
        given = Acquisition(
            address=self._site.wire.address,
            spool=str(self.spool),
            witness=str(self._witness),
            files=str(self._site.files),
            control=str(self._directory),
            number=1000 * (1000 * self.number + self._sessions),
            seed=f"{setting.seed} {self.number} {self._sessions}",
            at_once=self._at_once,
            events=setting.events,
            pace=setting.pace,
            burst=setting.burst,
        )
        self._output = self._output or (self._directory / "publisher.log").open("ab")
        self._process = subprocess.Popen(
            given.command(),
            env=publishing_environment(),
            stdout=self._output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self._process is None else self._process.poll()

    @property
    def degraded(self) -> bool:
        """Whether its publisher holds documents in memory that its disk does not take."""
        return (self._directory / "degraded").exists()

    def tell(self, word: str, *, on: bool = True) -> None:
        """ "hold" or "finish"; see `publishing`."""
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

    def close(self) -> None:
        self.kill()
        if self._output is not None:
            self._output.close()

    def emitted(self) -> dict[str, list[Emitted]]:
        """What the witness has seen so far, by run."""
        self._read_to = _read_on(self._witness, self._read_to, self._emitted)
        return self._emitted


class Site:
    """Starts everything on entry, and ends it on exit.

    `note` is told what happens that nobody has asked for.
    """

    def __init__(self, setting: Setting, note: Callable[[str], None]) -> None:
        self.setting = setting
        self.ending = threading.Event()  # faults heal as soon as it is set
        self.files = setting.directory / "files"
        self.locks = {
            name: threading.Lock()
            for name in ("supervisor", "worker", "tiled", "postgresql", "wire", "http", "journals")
        }
        self._note = note
        self._watch_ends = threading.Event()
        self._coming_up: dict[ServerProcess, float] = {}

    def __enter__(self) -> Site:
        directory = self.setting.directory
        self.files.mkdir(parents=True)
        self._stack = ExitStack()
        try:
            enter = self._stack.enter_context
            self.journal_disk = enter(SmallDisk(directory / "journal-disk", JOURNAL_DISK))
            self.spool_disk = enter(SmallDisk(directory / "spool-disk", SPOOL_DISK))
            self.server = TiledServer(directory / "tiled", readable=[self.files], storage=self.setting.storage)
            self._stack.callback(self.server.stop)
            self.bring_up(self.server)
            self.gateway = enter(Gateway(self.server.uri))
            port = free_port()
            self.journal_dir = self.journal_disk.directory / "journals"
            self.supervisor = SupervisorProcess(
                self.journal_dir,
                SimpleNamespace(uri=self.gateway.uri, api_key=self.server.api_key, storage=self.server.storage),
                port=port,
                environment={
                    "TILEDWRITER_QUIET_PERIOD": str(self.setting.quiet_period),
                    "TILEDWRITER_LATE_AUDIT": str(self.setting.late_audit),
                },
            )
            self.supervisor.log = directory / "supervisor.log"  # not on a disk that is full now and then
            self._stack.callback(self.supervisor.stop)
            self.bring_up(self.supervisor)
            self.wire = enter(Wire(port))
            self.seats = [self._seat(number, count) for number, count in enumerate(_shares(self.setting.runs))]
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

    def _seat(self, number: int, at_once: int) -> Seat:
        spool = self.spool_disk.directory / f"spool-{number}"
        seat = Seat(number, self, spool, self.setting.directory / f"seat-{number}", at_once=at_once)
        self._stack.callback(seat.close)
        return seat

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

    def cuts(self) -> dict[str, Cut]:
        return {run_uid: cut for seat in self.seats for run_uid, cut in seat.cuts.items()}

    def journal(self, run_uid: str) -> Journal | None:
        """A run's journal, if there is one that can be opened just now."""
        path = find_run_file(self.journal_dir, run_uid)
        try:
            return Journal(path) if path.exists() else None
        except (JournalError, OSError, sqlite3.Error):
            return None

    def outcome(self, run_uid: str) -> str:
        journal = self.journal(run_uid)
        if journal is None:
            return ""
        with journal:
            try:
                return str(journal.get("outcome", ""))
            except sqlite3.Error:
                return ""

    def settled(self, run_uid: str) -> bool:
        """Whether the run has an outcome, and its late audit is over."""
        journal = self.journal(run_uid)
        if journal is None:
            return False
        with journal:
            try:
                return bool(journal.get("outcome")) and journal.get("audit_at") is None
            except sqlite3.Error:
                return False

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

    def worker(self, choice: float) -> psutil.Process | None:
        """One of the workers there are."""
        workers = sorted(self.supervisor.workers(), key=lambda process: process.pid)
        return workers[int(choice * len(workers))] if workers else None

    def _watch(self) -> None:
        """Start again what has ended without a fault of ours."""
        while not self._watch_ends.wait(0.5):
            for name, process in (("supervisor", self.supervisor), ("tiled", self.server)):
                self._revive(name, process)
            for seat in self.seats:
                if seat.mutex.acquire(blocking=False):
                    try:
                        if seat.returncode not in (None, 0):
                            self._note(f"A publisher has ended by itself, with {seat.returncode}.")
                            seat.start()
                    finally:
                        seat.mutex.release()

    def _revive(self, name: str, process: ServerProcess) -> None:
        lock = self.locks[name]
        if lock.acquire(blocking=False):
            try:
                if not process.running:
                    self._note(f"The {name} has ended by itself, with {process.returncode}.")
                    self.bring_up(process)
            finally:
                lock.release()

    # The end

    def finish(self, patience: float) -> None:
        """Have all runs end, and wait until they are settled; `ending` is set and all faults have healed.

        Given up when nothing happens for `patience` seconds.
        """
        for seat in self.seats:
            seat.tell("hold", on=False)
            seat.tell("finish")
        with suppress(TimeoutError):
            wait_until(lambda: not any(seat.running for seat in self.seats), patience, "publishers have ended")
        for seat in self.seats:
            if seat.running:
                self._note("A publisher does not end; it is killed.")
            with seat.mutex:
                seat.kill()
            self._ship(seat, patience)
        self.gateway.wait_for_late_requests()
        waiting = set(self.emitted()) - {run_uid for run_uid, cut in self.cuts().items() if not cut.readable}
        deadline = time.monotonic() + patience
        while waiting and time.monotonic() < deadline:
            time.sleep(0.5)
            if settled := {run_uid for run_uid in waiting if self.settled(run_uid)}:
                waiting -= settled
                deadline = time.monotonic() + patience
        if waiting:
            self._note(f"{len(waiting)} runs do not settle.")

    def _ship(self, seat: Seat, timeout: float) -> None:
        """What is left in a spool is brought to the supervisor."""
        if not any(seat.spool.glob("*.sqlite")):
            return
        command = [*_JOURNAL_COMMAND, "ship", str(seat.spool), self.wire.address]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout)
            if done.returncode:
                self._note(f"ship ended with {done.returncode}: {done.stdout[-300:]} {done.stderr[-300:]}")
        except subprocess.TimeoutExpired:
            self._note(f"The spool of seat {seat.number} could not be shipped in {timeout:.0f} s.")


def _shares(runs: int) -> Iterator[int]:
    """How many runs each publisher has open at a time."""
    while runs > 0:
        yield min(runs, _AT_ONCE)
        runs -= _AT_ONCE


@contextmanager
def held(*locks: Any) -> Iterator[None]:
    """Several locks, taken in one order by all."""
    with ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield
