"""Runs that are shipped while others send garbage to the supervisor's port, and what that costs."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from event_model import compose_run
from runs import supervisor_without_tiled

from tiledbroker import ZMQPublisher
from tiledwriter.testing import SupervisorProcess, journal_of

SENDERS = 2


@dataclass
class Figures:
    """What a flood was, and what it cost.

    Times are seconds from a run's first document to its last being durable; memory is the supervisor's, in bytes.
    """

    connections: int = 0
    sent: int = 0
    undisturbed: list[float] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)
    memory_before: int = 0
    memory_highest: int = 0
    files_highest: int = 0
    incomplete: list[str] = field(default_factory=list)

    @property
    def throughput(self) -> float:
        """During the flood, as a part of what it is otherwise."""
        return statistics.median(self.undisturbed) / statistics.median(self.disturbed)

    def lines(self, events: int) -> Iterator[str]:
        """In words."""
        yield f"{self.connections} garbage connections, {self.sent / 2**20:.0f} MiB of garbage"
        for name, times in (("undisturbed", self.undisturbed), ("during the flood", self.disturbed)):
            seconds = statistics.median(times)
            yield f"{name}: {len(times)} runs of {events} events, median {events / seconds:.0f} events/s"
        yield f"throughput during the flood: {self.throughput:.2f} of undisturbed"
        yield (
            f"supervisor: {self.memory_before / 2**20:.0f} MiB before, {self.memory_highest / 2**20:.0f} MiB at most, "
            f"{self.files_highest} files open at most"
        )
        yield f"runs that are not complete: {len(self.incomplete)}"


def flood(directory: Path, *options: str, connections: int, megabytes: int, events: int, curve: Any = None) -> Figures:
    """Ship runs, one after the other, before and during a flood."""
    figures = Figures()
    supervisor = supervisor_without_tiled(directory / "journals", *options)
    publisher = None
    try:
        supervisor.start()
        process = psutil.Process(supervisor.pid)
        publisher = ZMQPublisher(supervisor.address, spool_dir=directory / "spool", curve=curve, on_error="raise")
        _ship(supervisor, publisher, events, Figures())  # the first worker takes longer
        for _ in range(5):
            figures.undisturbed.append(_ship(supervisor, publisher, events, figures))
        figures.memory_before = figures.memory_highest = process.memory_info().rss
        with _garbage(supervisor, connections, megabytes) as senders:
            while any(sender.poll() is None for sender in senders) or not figures.disturbed:
                figures.disturbed.append(_ship(supervisor, publisher, events, figures))
                figures.memory_highest = max(figures.memory_highest, process.memory_info().rss)
                figures.files_highest = max(figures.files_highest, process.num_fds())
            for sender in senders:
                made, sent = map(int, sender.communicate()[0].split())
                figures.connections += made
                figures.sent += sent
    finally:
        if publisher is not None:
            publisher.close(timeout=0)
        supervisor.stop()
    return figures


@contextmanager
def _garbage(supervisor: SupervisorProcess, connections: int, megabytes: int) -> Iterator[list[subprocess.Popen[str]]]:
    command = [sys.executable, str(Path(__file__).with_name("garbage.py")), supervisor.address.rpartition(":")[2]]
    share = [str(connections // SENDERS), str(megabytes // SENDERS)]
    senders = [
        subprocess.Popen([*command, *share, str(seed)], stdout=subprocess.PIPE, text=True) for seed in range(SENDERS)
    ]
    try:
        yield senders
    finally:
        for sender in senders:
            sender.kill()
            sender.wait()
            if sender.stdout is not None:
                sender.stdout.close()


def _ship(supervisor: SupervisorProcess, publisher: ZMQPublisher, events: int, figures: Figures) -> float:
    """Publish a run and wait until it is durable; returns how long that took."""
    run = compose_run(validate=False)
    stream = run.compose_descriptor(
        name="primary", data_keys={"x": {"source": "test", "dtype": "number", "shape": []}}, validate=False
    )
    rows = [stream.compose_event(data={"x": 1.0}, timestamps={"x": 0.0}, validate=False) for _ in range(events)]
    stop = run.compose_stop(validate=False)
    began = time.monotonic()
    publisher("start", run.start_doc)
    publisher("descriptor", stream.descriptor_doc)
    for row in rows:
        publisher("event", row)
    publisher("stop", stop)
    publisher.flush(120)
    seconds = time.monotonic() - began
    uid = str(run.start_doc["uid"])
    try:
        with journal_of(supervisor.journal_dir, uid) as journal:
            complete = journal.length == events + 3 and journal.ended
    except LookupError:
        complete = False
    if not complete:
        figures.incomplete.append(uid)
    return seconds
