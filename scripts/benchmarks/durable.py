"""How many documents a second become durable on the ingest host: publisher, supervisor, worker, journal."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

from runs import supervisor_without_tiled

from tiledbroker import ZMQPublisher, run_files
from tiledwriter.testing import SupervisorProcess, wait_until

from .documents import Emitted, run_of
from .jetstream import JetStream
from .rounds import OURS, Figure, Rounds, Side, Values
from .service import connected_publisher

RUNS = (1, 4, 16, 64)
BUDGET = 70_000.0  # documents per second of one run
SHARE_OF_ONE_RUN = 0.8  # of its documents per second, for several runs at once
PUBLISHERS = 8
DOCUMENTS = 40_000
OPENING = 3  # documents with which a run is open: start, descriptor, first event
EVENTS_OF_A_RUN = 2_500  # at least, so that what a run costs by itself is not what is measured
ONE_RUN = "tiledwriter, one run"
PUBLISHED = "published and acknowledged"
SPOOLED = "shipped from a spool"
SYNCED = "JetStream, sync_interval: always"
UNSYNCED = "JetStream, default"
SHARE_OF_SYNCED = 10  # it takes long


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """One run, and several at once; from the first callback to the last acknowledgement, and from spools that are full.

    Tiled is away: what is measured ends at the journals.
    """
    share = 10 if quick else 1
    documents = DOCUMENTS // share

    def one_run() -> Mapping[str, float]:
        return {PUBLISHED: _on_empty_host(partial(_published, runs=1, events=documents))}

    for runs in RUNS:
        events = max(documents // runs, EVENTS_OF_A_RUN // share)
        with tempfile.TemporaryDirectory() as place:
            sides: dict[str, Side] = {
                OURS: lambda events=events, runs=runs: {
                    PUBLISHED: _on_empty_host(partial(_published, runs=runs, events=events)),
                    SPOOLED: _on_empty_host(partial(_spooled, runs=runs, events=events)),
                },
                SYNCED: _jetstream(Path(place) / "synced", runs, events // SHARE_OF_SYNCED, always=True),
                UNSYNCED: _jetstream(Path(place) / "default", runs, events, always=False),
            }
            if runs > 1:
                sides[ONE_RUN] = one_run
            for what, values in Rounds(sides).run(rounds).items():
                yield _figure(f"{runs} run{'s' * (runs > 1)}, {what}", values, is_judged=what == PUBLISHED)

    def processes() -> Mapping[str, float]:
        return {PUBLISHED: _on_empty_host(partial(_published_by_processes, events=documents // PUBLISHERS))}

    for what, values in Rounds({OURS: processes, ONE_RUN: one_run}).run(rounds).items():
        yield _figure(f"{PUBLISHERS} runs, each published by a process of its own, {what}", values, is_judged=True)


def _figure(title: str, values: Values, *, is_judged: bool) -> Figure:
    """Documents per second; judged beside one run's where that was measured in turn."""
    if not is_judged:
        return Figure(title, "documents/s", values, more_is_better=True)
    if ONE_RUN in values:
        return Figure(title, "documents/s", values, SHARE_OF_ONE_RUN, ONE_RUN, more_is_better=True)
    return Figure(title, "documents/s", values, BUDGET, more_is_better=True)


def _on_empty_host(publish: Callable[[SupervisorProcess, Path], float]) -> float:
    """Runs of other rounds are in nobody's way: without Tiled, they stay."""
    with tempfile.TemporaryDirectory() as place, supervisor_without_tiled(Path(place) / "journals") as supervisor:
        return publish(supervisor, Path(place))


def _published_by_processes(supervisor: SupervisorProcess, place: Path, *, events: int) -> float:
    makers = [
        partial(ZMQPublisher, supervisor.address, spool_dir=place / f"spool-{number}") for number in range(PUBLISHERS)
    ]
    with publishing_processes(makers, events) as processes:
        began = time.perf_counter()
        processes.publish()
        return processes.documents / (time.perf_counter() - began)


@dataclass
class PublishingProcesses:
    """Processes with one publisher and one open run each.

    Attributes
    ----------
    documents
        How many documents all of them are going to publish.
    """

    documents: int
    _ends: list[Connection]

    def publish(self) -> float:
        """Publish all documents, and return once they are acknowledged; processor time of all processes in seconds."""
        for here in self._ends:
            here.send("go")
        return float(sum(here.recv() for here in self._ends))


@contextmanager
def publishing_processes(makers: Sequence[Callable[[], ZMQPublisher]], events: int) -> Iterator[PublishingProcesses]:
    """Processes in which a publisher is made by each of `makers`, and which have opened their runs."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in makers]
    processes = [
        context.Process(target=_publish_when_told, args=(there, make, events))
        for (_, there), make in zip(ends, makers, strict=True)
    ]
    for process in processes:
        process.start()
    try:
        yield PublishingProcesses(sum(here.recv() for here, _ in ends), [here for here, _ in ends])
    finally:
        for process in processes:
            process.kill()
            process.join()


def _publish_when_told(other: Connection, make: Callable[[], ZMQPublisher], events: int) -> None:
    """In a process of its own: say how many documents there are, and publish them."""
    emitted = run_of(events)
    publisher = make()
    _emit(publisher, [emitted[:OPENING]])
    assert publisher.flush(300)
    other.send(len(emitted) - OPENING)
    other.recv()
    used = time.process_time()
    _emit(publisher, [emitted[OPENING:]])
    assert publisher.flush(300)
    other.send(time.process_time() - used)
    other.recv()  # it is killed here, as a spool is of no use any more


def _published(supervisor: SupervisorProcess, place: Path, *, runs: int, events: int) -> float:
    """With all runs open, as `start` measures how long it takes to open one."""
    emitted = [run_of(events) for _ in range(runs)]
    publisher = connected_publisher(supervisor, place / "spool")
    _emit(publisher, [documents[:OPENING] for documents in emitted])
    assert publisher.flush(300)
    began = time.perf_counter()
    documents = _emit(publisher, [documents[OPENING:] for documents in emitted])
    assert publisher.flush(300)
    seconds = time.perf_counter() - began
    publisher.close()
    return documents / seconds


def _spooled(supervisor: SupervisorProcess, place: Path, *, runs: int, events: int) -> float:
    """What an acquisition process leaves that had no connection, for a supervisor that has had a worker before."""
    with closing(connected_publisher(supervisor, place / "spool")) as earlier:
        _emit(earlier, [run_of(1)])
        assert earlier.flush(300)
    spool = place / "spool-of-another"
    absent = ZMQPublisher("tcp://127.0.0.1:1", spool_dir=spool)
    documents = _emit(absent, [run_of(events) for _ in range(runs)])
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
