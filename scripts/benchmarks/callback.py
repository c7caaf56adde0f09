"""How long the RunEngine is held up by one document: ours and the peers', whatever becomes of the other end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy
from bluesky.callbacks.buffer import BufferingWrapper
from bluesky.callbacks.zmq import Proxy, Publisher
from bluesky_tiled_plugins import TiledWriter as PeerWriter
from tiled.client import from_uri

from tiledbroker import ZMQPublisher
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, wait_until

from .documents import run_of, uid_of
from .rounds import OURS, Figure, Rounds

PUBLISHER = "bluesky's Publisher"
EACH_EVENT = "TiledWriter, batch_size=1"
BATCHES = "TiledWriter, batch_size=10000"
BUFFERED = "BufferingWrapper(TiledWriter)"

CONDITIONS = ("normal", "ingest down", "ingest stopped", "Tiled down")
PACES = {"at 1 kHz": 0.001, "back to back": 0.0}  # seconds between documents
BUDGETS = {"at 1 kHz, p50": 0.4, "at 1 kHz, p99": 1.0, "at 1 kHz, longest": 2.0}
OUTAGE_EVENTS = 20


@dataclass
class Subscriber:
    """What is subscribed to the RunEngine.

    `settle` is called with a run's uid after it, and waits until nobody works on it any more; `share` is which part of
    the events it is given, so that slow ones do not take all the time.
    """

    callback: Callable[..., Any]
    settle: Callable[[str], Any] = lambda _: None
    share: float = 1.0


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """p50, p99 and the longest call, in all conditions; those that write in the process only while all is well."""
    events = 200 if quick else 1000
    with tempfile.TemporaryDirectory() as place, TiledServer(Path(place) / "tiled") as server:
        for condition in CONDITIONS:
            with ExitStack() as stack:
                directory = Path(place) / condition.replace(" ", "-")
                sides = {
                    OURS: stack.enter_context(_ours(condition, server, directory)),
                    PUBLISHER: stack.enter_context(bluesky_publisher(condition)),
                }
                if condition == "normal":
                    sides |= _in_process(server.client())
                calls = {name: lambda side=side: time_calls(side, events) for name, side in sides.items()}
                for what, values in Rounds(calls).run(rounds).items():
                    budget = BUDGETS.get(what)
                    yield Figure(f"{condition}, {what}", "us", values, budget, PUBLISHER if budget else None)
        if not quick:
            with _ours("normal", server, Path(place) / "outage") as ours:
                yield _outage(ours, server)


def time_calls(side: Subscriber, events: int) -> Mapping[str, float]:
    """Return microseconds per call, of one run at each pace."""
    figures = {}
    for pace, pause in PACES.items():
        emitted = run_of(int(side.share * events))
        took = []
        for name, doc in emitted:
            began = time.perf_counter()
            side.callback(name, doc)
            took.append(time.perf_counter() - began)
            if pause:
                time.sleep(pause)
        side.settle(uid_of(emitted))
        of_events = 1e6 * numpy.array(took[2:-1])
        figures[f"{pace}, p50"] = float(numpy.percentile(of_events, 50))
        figures[f"{pace}, p99"] = float(numpy.percentile(of_events, 99))
        figures[f"{pace}, longest"] = float(of_events.max())
    return figures


def _outage(ours: Subscriber, server: TiledServer) -> Figure:
    """How long a run is held up if Tiled goes away in its middle: until all calls have returned, or one has raised."""
    client = from_uri(server.uri, api_key=server.api_key)  # the server's own ends with it
    values = {}
    for name, side in {OURS: ours, EACH_EVENT: Subscriber(PeerWriter(client, batch_size=1))}.items():
        *most, last = run_of(OUTAGE_EVENTS)
        for document in most[: OUTAGE_EVENTS // 2]:
            side.callback(*document)
        server.stop()
        try:
            began = time.perf_counter()
            with suppress(Exception):
                for document in [*most[OUTAGE_EVENTS // 2 :], last]:
                    side.callback(*document)
            values[name] = [time.perf_counter() - began]
        finally:
            server.start()
    client.context.http_client.close()
    return Figure(f"Tiled goes away before the last {OUTAGE_EVENTS // 2} events of a run, all calls", "s", values)


@contextmanager
def _ours(condition: str, server: TiledServer, directory: Path) -> Iterator[Subscriber]:
    directory.mkdir()
    supervisor = SupervisorProcess(directory / "journals", server)
    if condition == "Tiled down":
        server.stop()
    try:
        if condition != "ingest down":
            supervisor.start()
        publisher = ZMQPublisher(supervisor.address, spool_dir=directory / "spool")
        if condition == "ingest stopped":
            wait_until(lambda: publisher.status().connected, 60, "the supervisor answers")
            supervisor.send(signal.SIGSTOP)
        settle = {"normal": lambda uid: publisher.wait_written(uid, 60), "Tiled down": lambda _: publisher.flush(60)}
        yield Subscriber(publisher, settle.get(condition, lambda _: None))
        publisher.close(timeout=0)
    finally:
        if condition == "ingest stopped":
            supervisor.send(signal.SIGCONT)
        supervisor.stop()
        if condition == "Tiled down":
            server.start()


@contextmanager
def bluesky_publisher(condition: str) -> Iterator[Subscriber]:
    with ExitStack() as stack:
        port = free_port()
        if condition != "ingest down":
            process, port = stack.enter_context(proxy_process())
            if condition == "ingest stopped":
                assert process.pid is not None
                os.kill(process.pid, signal.SIGSTOP)
        publisher = Publisher(f"127.0.0.1:{port}")
        stack.callback(publisher.close)
        yield Subscriber(publisher)


@contextmanager
def proxy_process() -> Iterator[tuple[BaseProcess, int]]:
    """A process with bluesky's Proxy, and the port that publishers send to."""
    into, out = free_port(), free_port()
    process = multiprocessing.get_context("spawn").Process(target=_proxy, args=(into, out), daemon=True)
    process.start()
    try:
        wait_until(lambda: _listens(into), 60, "the proxy listens")
        yield process, into
    finally:
        process.kill()
        process.join()


def _proxy(into: int, out: int) -> None:
    Proxy(into, out).start()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _in_process(client: Any) -> dict[str, Subscriber]:
    def writer(batch_size: int) -> PeerWriter:
        return PeerWriter(client, batch_size=batch_size)

    return {
        EACH_EVENT: Subscriber(writer(1), share=0.1),
        BATCHES: Subscriber(writer(10_000)),
        BUFFERED: _buffered(writer(10_000)),
    }


def _buffered(writer: PeerWriter) -> Subscriber:
    ended = threading.Event()

    def write(name: str, doc: Any) -> None:
        try:
            writer(name, doc)
        finally:
            if name == "stop":
                ended.set()

    def settle(_: str) -> None:
        assert ended.wait(120)
        ended.clear()

    return Subscriber(BufferingWrapper(write), settle)
