"""A site's log in NATS JetStream: the callback beside bluesky-nats, and documents/s with one to three ingest hosts."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import nats
import psutil
from bluesky_nats.nats_publisher import NATSPublisher
from bluesky_nats.nats_runtime import NatsRuntime
from bluesky_nats.outbox import Delivery, Outbox
from log_site import LogSite
from nats.aio.client import Client
from nats.js.client import JetStreamContext
from runs import supervisor_without_tiled

from tiledbroker import JetStreamPublisher, ZMQPublisher, run_files
from tiledwriter.testing import SupervisorProcess, wait_until

from .callback import BUDGETS, PUBLISHER, Subscriber, bluesky_publisher, time_calls
from .durable import PublishingProcesses, publishing_processes
from .rounds import OURS, Along, Figure, Rounds, Side

NODES = 3
BLUESKY_NATS = "bluesky-nats"
ZEROMQ = "tiledwriter, one host, ZeroMQ"
CONDITIONS = ("normal", "log down")
# Each of its calls waits for the log.
SHARE_OF_BLUESKY_NATS = 0.2
HOSTS = (1, 2, 3)
PUBLISHERS = 6
EVENTS = 10_000
LEASE_SECONDS = 10
IN_LOG = "acknowledged by the log"
IN_JOURNAL = "durable in a journal"
PEER_STREAM = "bluesky-nats"


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """p50, p99 and the longest call with the log there and away; then what one, two and three ingest hosts take in."""
    with tempfile.TemporaryDirectory() as place:
        for condition in CONDITIONS:
            yield from _measure_callback(Path(place), condition, rounds, 200 if quick else 1000)
    yield from _measure_hosts(rounds, EVENTS // (10 if quick else 1))


def _measure_callback(place: Path, condition: str, rounds: int, events: int) -> Iterator[Figure]:
    directory = place / condition.replace(" ", "-")
    with LogSite(directory / "log", nodes=NODES) as site, ExitStack() as stack:
        sides = {
            OURS: stack.enter_context(_ours(site, directory, condition)),
            PUBLISHER: stack.enter_context(bluesky_publisher("normal" if condition == "normal" else "ingest down")),
        }
        if condition == "normal":
            sides[BLUESKY_NATS] = stack.enter_context(_bluesky_nats(site))
        calls = {name: lambda side=side: time_calls(side, events) for name, side in sides.items()}
        for what, values in Rounds(calls).run(rounds).items():
            budget = BUDGETS.get(what)
            yield Figure(f"callback, {condition}, {what}", "us", values, budget, PUBLISHER if budget else None)


@contextmanager
def _ours(site: LogSite, directory: Path, condition: str) -> Iterator[Subscriber]:
    with _hosts(site, directory, 1):
        publisher = JetStreamPublisher(site.address.servers, beamline="bench", spool_dir=directory / "spool")
        wait_until(lambda: publisher.status().connected, 60, "the log answers")
        if condition == "log down":
            for node in site.nodes:
                node.kill()
        try:
            yield Subscriber(publisher, (lambda _: publisher.flush(60)) if condition == "normal" else lambda _: None)
        finally:
            publisher.close(timeout=0)


@contextmanager
def _bluesky_nats(site: LogSite) -> Iterator[Subscriber]:
    """Their publisher, with a stream of its own on the same nodes."""

    async def add_stream(log: JetStreamContext) -> None:
        await log.add_stream(name=PEER_STREAM, subjects=["events.>"], storage="file", num_replicas=NODES)

    with NatsRuntime() as runtime:
        client: Client = runtime.connect(nats.connect(list(site.address.servers)))
        log = client.jetstream()
        runtime.setup(add_stream(log))
        publisher = NATSPublisher(Outbox(runtime, client, delivery=Delivery.CRITICAL), log, "events.bench")
        yield Subscriber(publisher, share=SHARE_OF_BLUESKY_NATS)


@contextmanager
def _hosts(site: LogSite, directory: Path, count: int) -> Iterator[list[SupervisorProcess]]:
    """Ingest hosts that have watched the log for long enough to claim runs. Tiled is away."""
    with ExitStack() as stack:
        hosts = []
        for number in range(count):
            host = supervisor_without_tiled(
                directory / f"host-{number}",
                *("--source", str(site.address)),
                environment={"TILEDWRITER_LEASE_SECONDS": str(LEASE_SECONDS)},
            )
            hosts.append(stack.enter_context(host))
        wait_until(lambda: site.count_ready_hosts() == count, 240, "all hosts are ready")
        yield hosts


def _measure_hosts(rounds: int, events: int) -> Iterator[Figure]:
    for hosts in HOSTS:
        sides: dict[str, Side] = {
            OURS: partial(_publish_through_log, hosts=hosts, events=events),
            ZEROMQ: partial(_publish_through_zeromq, events=events),
        }
        for what, values in Rounds(sides).run(rounds, warm_up=False).items():
            is_cost = what.startswith("processor time")
            unit = "us per document" if is_cost else "documents/s"
            yield Figure(what, unit, values, more_is_better=not is_cost, along=Along("ingest hosts", hosts))


def _publish_through_log(*, hosts: int, events: int) -> Mapping[str, float]:
    with (
        tempfile.TemporaryDirectory() as place,
        LogSite(Path(place) / "log", nodes=NODES) as site,
        _hosts(site, Path(place), hosts) as supervisors,
    ):
        spools = [Path(place) / f"spool-{number}" for number in range(PUBLISHERS)]
        makers = [
            partial(
                JetStreamPublisher,
                site.address.servers,
                beamline=f"bench-{number}",
                spool_dir=spool,
                keep_until="durable",
            )
            for number, spool in enumerate(spools)
        ]
        with publishing_processes(makers, events) as processes:
            parts = {"nodes": [node.pid for node in site.nodes], "hosts": [host.pid for host in supervisors]}
            return _publish(processes, spools, parts)


def _publish_through_zeromq(*, events: int) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory() as place, supervisor_without_tiled(Path(place) / "journals") as supervisor:
        spools = [Path(place) / f"spool-{number}" for number in range(PUBLISHERS)]
        makers = [partial(ZMQPublisher, supervisor.address, spool_dir=spool, keep_until="durable") for spool in spools]
        with publishing_processes(makers, events) as processes:
            return _publish(processes, spools, {"hosts": [supervisor.pid]})


def _publish(
    processes: PublishingProcesses, spools: Sequence[Path], parts: Mapping[str, Sequence[int]]
) -> Mapping[str, float]:
    """Publish all runs; documents/s, and processor time per document of each part."""
    before = {part: _processor_seconds(pids) for part, pids in parts.items()}
    began = time.perf_counter()
    used = {"publishers": processes.publish()}
    in_log = time.perf_counter() - began
    wait_until(lambda: not any(run_files(spool) for spool in spools), 300, "all is durable")
    in_journal = time.perf_counter() - began
    used |= {part: _processor_seconds(pids) - before[part] for part, pids in parts.items()}
    rates = {IN_JOURNAL: processes.documents / in_journal}
    if "nodes" in parts:
        rates[IN_LOG] = processes.documents / in_log
    costs = {f"processor time of {part}": 1e6 * seconds / processes.documents for part, seconds in used.items()}
    return rates | costs


def _processor_seconds(pids: Sequence[int]) -> float:
    """Return the processor time of processes with all that they have started."""
    seconds = 0.0
    for pid in pids:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system
    return seconds
