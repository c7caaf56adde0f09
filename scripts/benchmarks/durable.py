"""How many documents a second become durable on the ingest host: publisher, supervisor, worker, journal."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from runs import supervisor_without_tiled

from tiledbroker import ZMQPublisher
from tiledwriter.testing import SupervisorProcess, wait_until

from .documents import Emitted, run_of
from .rounds import OURS, Figure, Rounds

BUDGETS = {1: 30_000, 4: 40_000, 16: None}


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """One run, and several at once; from the first callback to the last acknowledgement, and from spools that are full.

    Tiled is away: what is measured ends at the journals.
    """
    documents = 4_000 if quick else 40_000
    for runs, budget in BUDGETS.items():
        with tempfile.TemporaryDirectory() as place:
            supervisor = supervisor_without_tiled(Path(place) / "journals")
            with supervisor:
                sides = {OURS: _shipping(supervisor, Path(place), runs, documents // runs)}
                for what, values in Rounds(sides).run(rounds).items():
                    bound = budget if what.startswith("published") else None
                    yield Figure(f"durable, {runs} runs: {what}", "documents/s", values, bound, more_is_better=True)


def _shipping(supervisor: SupervisorProcess, place: Path, runs: int, events: int) -> Callable[[], Mapping[str, float]]:
    def once() -> Mapping[str, float]:
        return {
            "published and acknowledged": _published(supervisor, place, [run_of(events) for _ in range(runs)]),
            "shipped from a spool": _spooled(supervisor, place, [run_of(events) for _ in range(runs)]),
        }

    return once


def _published(supervisor: SupervisorProcess, place: Path, emitted: list[Emitted]) -> float:
    publisher = ZMQPublisher(supervisor.address, spool_dir=place / "spool")
    wait_until(lambda: publisher.status().connected, 60, "the supervisor answers")
    began = time.perf_counter()
    count = _emit(publisher, emitted)
    assert publisher.flush(300)
    seconds = time.perf_counter() - began
    publisher.close()
    return count / seconds


def _spooled(supervisor: SupervisorProcess, place: Path, emitted: list[Emitted]) -> float:
    """What an acquisition process leaves that had no connection."""
    spool = place / "spool-of-another"
    absent = ZMQPublisher("tcp://127.0.0.1:1", spool_dir=spool)
    count = _emit(absent, emitted)
    absent.close(timeout=0)
    began = time.perf_counter()
    publisher = ZMQPublisher(supervisor.address, spool_dir=spool)
    wait_until(lambda: publisher.status().connected, 60, "the supervisor answers")
    wait_until(lambda: not list(spool.glob("*.sqlite")), 300, "all is durable")
    seconds = time.perf_counter() - began
    publisher.close()
    return count / seconds


def _emit(publisher: ZMQPublisher, emitted: list[Emitted]) -> int:
    """All runs at once, document by document."""
    for step in zip(*emitted, strict=True):
        for name, doc in step:
            publisher(name, doc)
    return sum(map(len, emitted))
