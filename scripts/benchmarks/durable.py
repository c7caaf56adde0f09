"""How many documents a second become durable on the ingest host: publisher, supervisor, worker, journal."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path

from runs import supervisor_without_tiled

from tiledbroker import ZMQPublisher, run_files
from tiledwriter.testing import SupervisorProcess, wait_until

from .documents import Emitted, run_of
from .jetstream import JetStream
from .rounds import OURS, Figure, Rounds, Side
from .service import connected_publisher

BUDGETS = {1: 30_000, 4: 40_000, 16: None}
PUBLISHED = "published and acknowledged"
SYNCED = "JetStream, sync_interval: always"
UNSYNCED = "JetStream, default"
SHARE_OF_SYNCED = 10  # it takes long


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """One run, and several at once; from the first callback to the last acknowledgement, and from spools that are full.

    Tiled is away: what is measured ends at the journals.
    """
    documents = 4_000 if quick else 40_000
    for runs, budget in BUDGETS.items():
        with tempfile.TemporaryDirectory() as place, supervisor_without_tiled(Path(place) / "journals") as supervisor:
            events = documents // runs
            sides: dict[str, Side] = {
                OURS: lambda supervisor=supervisor, place=Path(place), events=events, runs=runs: {
                    PUBLISHED: _published(supervisor, place, [run_of(events) for _ in range(runs)]),
                    "shipped from a spool": _spooled(supervisor, place, [run_of(events) for _ in range(runs)]),
                },
                SYNCED: _jetstream(Path(place) / "synced", runs, events // SHARE_OF_SYNCED, always=True),
                UNSYNCED: _jetstream(Path(place) / "default", runs, events, always=False),
            }
            for what, values in Rounds(sides).run(rounds).items():
                bound = budget if what == PUBLISHED else None
                title = f"{runs} run{'s' * (runs > 1)}, {what}"
                yield Figure(title, "documents/s", values, bound, more_is_better=True)


def _published(supervisor: SupervisorProcess, place: Path, emitted: list[Emitted]) -> float:
    publisher = connected_publisher(supervisor, place / "spool")
    began = time.perf_counter()
    documents = _emit(publisher, emitted)
    assert publisher.flush(300)
    seconds = time.perf_counter() - began
    publisher.close()
    return documents / seconds


def _spooled(supervisor: SupervisorProcess, place: Path, emitted: list[Emitted]) -> float:
    """What an acquisition process leaves that had no connection."""
    spool = place / "spool-of-another"
    absent = ZMQPublisher("tcp://127.0.0.1:1", spool_dir=spool)
    documents = _emit(absent, emitted)
    absent.close(timeout=0)
    began = time.perf_counter()
    publisher = connected_publisher(supervisor, spool, adopt="any-destination", keep_until="durable")
    wait_until(lambda: not run_files(spool), 300, "all is durable")
    seconds = time.perf_counter() - began
    publisher.close()
    return documents / seconds


def _jetstream(place: Path, runs: int, events: int, *, always: bool) -> Side:
    """A server of its own for each round."""
    places = (place / str(number) for number in count())

    def once() -> Mapping[str, float]:
        emitted = [run_of(events) for _ in range(runs)]
        with JetStream(next(places), always=always) as server:
            return {PUBLISHED: server.published(emitted)}

    return once


def _emit(publisher: ZMQPublisher, emitted: list[Emitted]) -> int:
    """All runs at once, document by document."""
    for step in zip(*emitted, strict=True):
        for name, doc in step:
            publisher(name, doc)
    return sum(map(len, emitted))
