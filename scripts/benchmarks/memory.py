"""What runs cost in memory while they are open: of the supervisor, of each worker, of the publisher."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from tiledwriter.testing import SupervisorProcess, TiledServer, wait_until

from .rounds import OURS, Along, Figure, Rounds
from .service import PATIENCE, confirmed

OPEN_RUNS = (1, 10, 100)
EVENTS = 100
BUDGET = 25.0
ROUNDS = 2  # at most: it hardly varies

WORKER = "worker, memory of its own"
LARGEST = "largest worker"
SUPERVISOR = "supervisor"
FORK_SERVER = "what workers are forked from"
PUBLISHER = "publisher, on top of its process"


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """Memory that a process shares with no other, once all events of all open runs are in Tiled."""
    steps = OPEN_RUNS[: 2 if quick else None]
    with tempfile.TemporaryDirectory() as place, TiledServer(Path(place) / "tiled") as server:
        places = (Path(place) / str(number) for number in count())
        sides = {OURS: lambda: _memory(next(places), server, steps)}
        values = Rounds(sides).run(min(rounds, ROUNDS), warm_up=False)
        for key, of_sides in values.items():
            what, _, runs = key.rpartition(" ")
            budget = BUDGET if what in {WORKER, LARGEST} else None
            yield Figure(what, "MiB", of_sides, budget, along=Along("open runs", float(runs)))


def _memory(place: Path, server: TiledServer, steps: tuple[int, ...]) -> Mapping[str, float]:
    place.mkdir()
    most = str(max(steps))
    environment = {"TILEDWRITER_MAX_WORKERS": most, "TILEDWRITER_MAX_OPEN_RUNS": most}
    figures: dict[str, dict[int, float]] = {}
    with (
        SupervisorProcess(place / "journals", server, environment=environment) as supervisor,
        _publisher(supervisor, place / "spool") as publisher,
    ):
        for runs in steps:
            answer = _tell(publisher, runs)
            wait_until(lambda answer=answer: _are_written(supervisor, answer["runs"]), PATIENCE, "all rows are there")
            workers = [_own(worker) for worker in supervisor.workers()]
            assert len(workers) == runs
            process = psutil.Process(supervisor.pid)
            fork_server = next(child for child in process.children() if child.children())
            measured = {
                WORKER: statistics.median(workers),
                LARGEST: max(workers),
                SUPERVISOR: _own(process),
                FORK_SERVER: _own(fork_server),
                PUBLISHER: answer["own"],
            }
            for what, size in measured.items():
                figures.setdefault(what, {})[runs] = size / 2**20
    return {f"{what} {runs}": size for what, sizes in figures.items() for runs, size in sizes.items()}


@contextmanager
def _publisher(supervisor: SupervisorProcess, spool: Path) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("open_runs.py")
    command = [sys.executable, str(script), supervisor.address, str(spool), str(EVENTS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _tell(publisher: subprocess.Popen[str], runs: int) -> Any:
    """Have so many runs open; returns the answer."""
    assert publisher.stdin is not None
    assert publisher.stdout is not None
    publisher.stdin.write(f"{runs}\n")
    publisher.stdin.flush()
    return json.loads(publisher.stdout.readline())


def _are_written(supervisor: SupervisorProcess, uids: list[str]) -> bool:
    return all(confirmed(supervisor, uid) == EVENTS for uid in uids)


def _own(process: psutil.Process) -> int:
    return int(process.memory_full_info().uss)
