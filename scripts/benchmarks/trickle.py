"""Many open runs that get an event now and then: how late rows are readable, and what a lone document costs whom.

Settings are untouched. A row counts as readable once a worker has noted Tiled's answer.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy
import psutil

from tiledbroker import Journal, ZMQPublisher
from tiledwriter.testing import Storage, SupervisorProcess, TiledServer, journal_of

from .documents import Emitted, run_of, uid_of
from .rounds import OURS, Along, Figure
from .service import PATIENCE, connected_publisher, sum_of_rows

STORAGES: tuple[Storage, ...] = ("sqlite", "postgresql")
RATE = 20.0  # events/s of each run
SECONDS_BY_RUNS = {1: 75.0, 20: 300.0, 50: 300.0, 100: 150.0}  # long enough to see whether lateness grows
SETTLED = 30.0  # seconds after which all runs should have rows
RUNS_PER_PUBLISHER = 10
POLL = 0.5
LATENESS_BUDGETS = {20: 3.0, 50: 6.0}  # seconds, 95th percentile
WRITTEN_BUDGETS = {20: 10.0, 50: 25.0}  # seconds from the last stop
WORKER_BUDGETS = {1: 0.6, 50: 0.2}  # ms per document
SUPERVISOR_BUDGET = 0.1
ROUNDS = 1  # at most: each takes half an hour
QUICK_SECONDS, QUICK_SETTLED = 15.0, 5.0


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """With 1, 20, 50 and 100 runs at 20 Hz, on SQLite and PostgreSQL."""
    for storage in STORAGES:
        for count, whole in islice(SECONDS_BY_RUNS.items(), 2 if quick else None):
            seconds, settled = (QUICK_SECONDS, QUICK_SETTLED) if quick else (whole, SETTLED)
            figures: dict[str, list[float]] = {}
            for _ in range(min(rounds, ROUNDS)):
                with tempfile.TemporaryDirectory() as place:
                    for what, value in _Trickle(Path(place), storage, count, seconds, settled).run().items():
                        figures.setdefault(what, []).append(value)
            for what, values in figures.items():
                unit = "ms per document" if what.startswith("processor") else "x" if "of the median" in what else "s"
                budget = _find_budget(what, count)
                yield Figure(f"{what}, {storage}", unit, {OURS: values}, budget, along=Along("open runs", count))


def _find_budget(what: str, count: int) -> float | None:
    if what.startswith("p95 of lateness"):
        return LATENESS_BUDGETS.get(count)
    if what.startswith("worst run"):
        return 2.0 if count in LATENESS_BUDGETS else None
    if what.startswith("last run written"):
        return WRITTEN_BUDGETS.get(count)
    if what == "processor time of workers":
        return WORKER_BUDGETS.get(count)
    return SUPERVISOR_BUDGET if what == "processor time of the supervisor" else None


@dataclass
class _Run:
    """One of the runs, and what was seen of it."""

    documents: Emitted
    publisher: ZMQPublisher
    emitted: list[float] = field(default_factory=list)
    # When it was looked at, and for how long the oldest unreadable row had been waiting.
    lateness: list[tuple[float, float]] = field(default_factory=list)
    first_row_at: float | None = None
    journal: Journal | None = None

    def look(self, journals: Path, now: float) -> None:
        if self.journal is None:
            try:
                self.journal = journal_of(journals, uid_of(self.documents))
            except Exception:
                return
        rows = sum_of_rows(self.journal.progress())
        if rows and self.first_row_at is None:
            self.first_row_at = now
        self.lateness.append((now, now - self.emitted[rows] if rows < len(self.emitted) else 0.0))


class _Trickle:
    """Open runs, all begun at once, with events one at a time in turns."""

    def __init__(self, place: Path, storage: Storage, count: int, seconds: float, settled: float) -> None:
        self._place = place
        self._storage = storage
        self._count = count
        self._seconds = seconds
        self._settled = settled

    def run(self) -> Mapping[str, float]:
        """Return seconds and milliseconds by what they are of."""
        with ExitStack() as stack:
            server = stack.enter_context(TiledServer(self._place / "tiled", storage=self._storage))
            supervisor = stack.enter_context(SupervisorProcess(self._place / "journals", server))
            publishers = [
                connected_publisher(supervisor, self._place / f"spool-{number}", name=f"beamline-{number}")
                for number in range(-(-self._count // RUNS_PER_PUBLISHER))
            ]
            for publisher in publishers:
                stack.callback(publisher.close, timeout=0)
            events = int(RATE * self._seconds)
            runs = [_Run(run_of(events), publishers[number % len(publishers)]) for number in range(self._count)]
            try:
                return self._emit(runs, supervisor, server)
            finally:
                for run in runs:
                    if run.journal is not None:
                        run.journal.close()

    def _emit(self, runs: list[_Run], supervisor: SupervisorProcess, server: TiledServer) -> Mapping[str, float]:
        began = time.monotonic()
        for run in runs:
            for document in run.documents[:2]:
                run.publisher(*document)
        sent, total, look_at = 0, len(runs) * int(RATE * self._seconds), began + POLL
        before: tuple[int, _Spent] | None = None
        while sent < total:
            now = time.monotonic()
            for number in range(sent, min(total, int((now - began) * RATE * len(runs)))):
                run = runs[number % len(runs)]
                run.emitted.append(time.monotonic())
                run.publisher(*run.documents[2 + number // len(runs)])
                sent += 1
            if now >= look_at:
                for run in runs:
                    run.look(supervisor.journal_dir, time.monotonic())
                look_at = time.monotonic() + POLL
            if before is None and now - began >= self._settled:
                before = sent, _Spent.by(supervisor, server)
            time.sleep(0.002)
        assert before is not None
        spent = _Spent.by(supervisor, server).since(before[1], sent - before[0])
        for run in runs:
            run.publisher(*run.documents[-1])
        stopped = time.monotonic()
        for run in runs:
            assert run.publisher.wait_written(uid_of(run.documents), PATIENCE)
        written = time.monotonic() - stopped
        first_rows = [(run.first_row_at or stopped) - began for run in runs]
        by_run = [[late for at, late in run.lateness if at >= began + self._settled] for run in runs]
        p95_by_run = [float(numpy.percentile(late, 95)) for late in by_run]
        everything = [late for late_of_run in by_run for late in late_of_run]
        from_start = [late for run in runs for _, late in run.lateness]
        middle = began + (self._settled + self._seconds) / 2
        last_half = [late for run in runs for at, late in run.lateness if at >= middle]
        return {
            "median of lateness": float(numpy.median(everything)),
            "p95 of lateness": float(numpy.percentile(everything, 95)),
            "p95 of lateness in the last half": float(numpy.percentile(last_half, 95)),
            "lateness from the start, p95": float(numpy.percentile(from_start, 95)),
            "worst run, p95 as a part of the median": max(p95_by_run) / max(float(numpy.median(p95_by_run)), POLL),
            "first row readable, median": float(numpy.median(first_rows)),
            "first row readable, last run": max(first_rows),
            "last run written after the last stop": written,
            **spent,
        }


@dataclass(frozen=True)
class _Spent:
    """Processor time in seconds of the ingest host's processes."""

    supervisor: float
    workers: float
    tiled: float
    acquisition: float

    @classmethod
    def by(cls, supervisor: SupervisorProcess, server: TiledServer) -> _Spent:
        service = psutil.Process(supervisor.pid)
        others = sum(map(_processor_seconds, service.children(recursive=True)))
        tiled = _processor_seconds(psutil.Process(server.pid))
        tiled += sum(map(_processor_seconds, psutil.Process(server.pid).children(recursive=True)))
        return cls(_processor_seconds(service), others, tiled, time.process_time())

    def since(self, earlier: _Spent, documents: int) -> dict[str, float]:
        """Return milliseconds per document since an earlier time."""
        per = 1e3 / documents
        return {
            "processor time of workers": per * (self.workers - earlier.workers),
            "processor time of the supervisor": per * (self.supervisor - earlier.supervisor),
            "processor time of Tiled": per * (self.tiled - earlier.tiled),
            "processor time of acquisition, with the measuring": per * (self.acquisition - earlier.acquisition),
        }


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
