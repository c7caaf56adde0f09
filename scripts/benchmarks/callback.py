"""How long the RunEngine is held up by one document: ours and the peers', whatever becomes of the other end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy
from bluesky.callbacks.buffer import BufferingWrapper
from bluesky.callbacks.zmq import Proxy, Publisher
from bluesky_tiled_plugins import TiledWriter as PeerWriter

from tiledbroker import ZMQPublisher
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port

from .documents import run_of
from .rounds import OURS, Figure, Rounds

PUBLISHER = "bluesky's Publisher"
CONDITIONS = ("normal", "ingest down", "ingest stopped", "Tiled down")
PAUSE = 0.001  # seconds between documents


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """p50, p99 and the longest call, in all conditions; those that write in the process only while all is well."""
    events = 200 if quick else 1000
    with tempfile.TemporaryDirectory() as place, TiledServer(Path(place) / "tiled") as server:
        for condition in CONDITIONS:
            with ExitStack() as stack:
                sides: dict[str, Callable[[Any], None]] = {
                    OURS: stack.enter_context(_ours(condition, server, Path(place) / condition.replace(" ", "-"))),
                    PUBLISHER: stack.enter_context(_publisher(condition)),
                }
                if condition == "normal":
                    sides |= _in_process(server)
                calls = {name: lambda callback=callback: _calls(callback, events) for name, callback in sides.items()}
                for what, values in Rounds(calls).run(rounds).items():
                    budget = {"p50": 0.8, "p99": 1.5}.get(what)
                    peer = PUBLISHER if budget else None
                    yield Figure(f"callback, {condition}: {what}", "us", values, budget=budget, peer=peer)


def _calls(callback: Callable[..., Any], events: int) -> Mapping[str, float]:
    """Microseconds per call, of one run."""
    emitted = run_of(events)
    took = []
    for name, doc in emitted:
        began = time.perf_counter()
        callback(name, doc)
        took.append(time.perf_counter() - began)
        time.sleep(PAUSE)
    of_events = 1e6 * numpy.array(took[2:-1])
    return {
        "p50": float(numpy.percentile(of_events, 50)),
        "p99": float(numpy.percentile(of_events, 99)),
        "longest": float(of_events.max()),
    }


@contextmanager
def _ours(condition: str, server: TiledServer, directory: Path) -> Iterator[ZMQPublisher]:
    directory.mkdir()
    supervisor = SupervisorProcess(directory / "journals", server)
    if condition == "Tiled down":
        server.stop()
    try:
        if condition != "ingest down":
            supervisor.start()
        publisher = ZMQPublisher(supervisor.address, spool_dir=directory / "spool")
        if condition == "ingest stopped":
            supervisor.send(signal.SIGSTOP)
        yield publisher
        publisher.close(timeout=0)
    finally:
        if condition == "ingest stopped":
            supervisor.send(signal.SIGCONT)
        supervisor.stop()
        if condition == "Tiled down":
            server.start()


@contextmanager
def _publisher(condition: str) -> Iterator[Publisher]:
    into, out = free_port(), free_port()
    proxy = multiprocessing.get_context("spawn").Process(target=_proxy, args=(into, out), daemon=True)
    if condition != "ingest down":
        proxy.start()
        time.sleep(3.0)  # nobody says when it is there
        if condition == "ingest stopped":
            assert proxy.pid is not None
            os.kill(proxy.pid, signal.SIGSTOP)
    publisher = Publisher(f"127.0.0.1:{into}")
    try:
        yield publisher
    finally:
        publisher.close()
        if proxy.pid is not None:
            proxy.kill()
            proxy.join()


def _proxy(into: int, out: int) -> None:
    Proxy(into, out).start()


def _in_process(server: TiledServer) -> dict[str, Callable[..., Any]]:
    def writer(batch_size: int) -> PeerWriter:
        return PeerWriter(server.client(), batch_size=batch_size)

    return {
        "TiledWriter, batch_size=1": writer(1),
        "TiledWriter, batch_size=10000": writer(10_000),
        "BufferingWrapper(TiledWriter)": BufferingWrapper(writer(10_000)),
    }
