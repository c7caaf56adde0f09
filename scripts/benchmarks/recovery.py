"""How soon a supervisor that is started again goes on, with 100,000 documents waiting in its journals."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

from runs import happenings

from tiledbroker import Encoder, Journal, journal_filename
from tiledwriter.testing import journal_of, wait_until

from .documents import Emitted, run_of, uid_of
from .rounds import OURS, Figure, Rounds
from .service import PATIENCE, Service, service

DOCUMENTS = 100_000
RUNS = (1, 10)
ROUNDS = 3  # at most: each takes a minute
FIRST_WRITE = 2.0
REPLAY = 30_000.0
POLL = 0.005


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """Nothing of the runs being in Tiled, and all but the last event.

    The first write is a request that changes something, in the log of the Tiled server; time runs from before the
    supervisor's process is made. All in Tiled: the stop documents, too.

    A run of which the server has most is replayed from its first document before something is written. For the speed
    of that, time runs from when the worker has opened the journal.
    """
    documents = DOCUMENTS // (20 if quick else 1)
    with tempfile.TemporaryDirectory() as place:
        places = (Path(place) / str(number) for number in count())
        for runs in RUNS:
            sides = {OURS: lambda runs=runs: _nothing_written(next(places), runs, documents // runs)}
            values = Rounds(sides).run(min(rounds, ROUNDS), warm_up=False)
            what = f"{documents:,} documents of {runs} run{'s' * (runs > 1)}, nothing in Tiled"
            yield Figure(f"{what}: first write", "s", values["first write"], FIRST_WRITE)
            yield Figure(f"{what}: until all is in Tiled", "documents/s", values["written"])
        sides = {OURS: lambda: _almost_written(next(places), documents)}
        values = Rounds(sides).run(min(rounds, ROUNDS), warm_up=False)
        what = f"{documents:,} documents of a run, all but one in Tiled"
        yield Figure(f"{what}: first write", "s", values["first write"])
        yield Figure(f"{what}: replay", "documents/s", values["replayed"], REPLAY, more_is_better=True)


def _nothing_written(place: Path, runs: int, events: int) -> Mapping[str, float]:
    place.mkdir()
    emitted = [run_of(events) for _ in range(runs)]
    with service(place) as running:
        running.server.stop()
        for run in emitted:
            running.publish(run)
        assert running.publisher.flush(300)
        _kill(running)
        running.server.start()
        began, sent = time.time(), _writes(running)
        running.supervisor.start()
        first = _next_write(running, sent)
        wait_until(lambda: all(_is_written(running, run) for run in emitted), PATIENCE, "all runs are written")
        seconds = time.time() - began
    return {"first write": first - began, "written": sum(map(len, emitted)) / seconds}


def _almost_written(place: Path, events: int) -> Mapping[str, float]:
    place.mkdir()
    *most, (name, last), _stop = run_of(events)
    uid = uid_of(most)
    with service(place) as running:
        running.publish(most)
        wait_until(lambda: running.publisher.flush(60) and running.rows(uid) == events - 1, PATIENCE, "rows are there")
        _kill(running)
        path = running.supervisor.journal_dir / journal_filename(uid)
        with Journal(path, "write", run_uid=uid) as journal:
            journal.append_one(name, Encoder().encode(last))
        began, sent = time.time(), _writes(running)
        running.supervisor.start()
        first = _next_write(running, sent)
        with journal_of(running.supervisor.journal_dir, uid) as journal:
            open_run_file = max(entry.time for entry in journal.history() if entry.event == "worker started")
    return {"first write": first - began, "replayed": (1 + len(most)) / (first - open_run_file)}


def _kill(running: Service) -> None:
    workers = running.supervisor.workers()
    running.supervisor.kill()
    wait_until(lambda: not any(worker.is_running() for worker in workers), 60, "no worker is left")


def _writes(running: Service) -> int:
    """How many requests that change something the server has answered."""
    log = running.server.log.read_bytes()
    return sum(log.count(b"%s /api/v1/" % method) for method in (b"POST", b"PUT", b"PATCH"))


def _next_write(running: Service, sent: int) -> float:
    deadline = time.time() + PATIENCE
    while _writes(running) == sent:
        assert time.time() < deadline
        time.sleep(POLL)
    return time.time()


def _is_written(running: Service, run: Emitted) -> bool:
    return "written" in happenings(running.supervisor.journal_dir, uid_of(run))
