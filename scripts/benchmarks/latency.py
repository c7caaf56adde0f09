"""How soon an event can be read: from the callback until Tiled has confirmed its row, beside Tiled's own append."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pyarrow

from tiledwriter.testing import journal_of, wait_until

from .documents import run_of, uid_of
from .rounds import OURS, Along, Figure, Rounds
from .service import PATIENCE, Service, service, sum_of_rows

APPEND = "Tiled's append request"
EVENTS = {1: 10, 10: 50, 100: 300}  # by rate
LONE = (1, 10)  # rates at which an event is alone
BUDGET = 2.0
POLL = 0.001


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """At 1, 10 and 100 Hz. A row counts once the worker has noted Tiled's answer, which is after it can be read."""
    with tempfile.TemporaryDirectory() as place, service(Path(place)) as running:
        for rate, events in EVENTS.items():
            count = events // 5 if quick else events
            sides = {
                OURS: lambda rate=rate, count=count: _ours(running, rate, count),
                APPEND: lambda rate=rate, count=count: _append(running, rate, count),
            }
            for what, values in Rounds(sides).run(rounds).items():
                budget = BUDGET if rate in LONE and what == "p50" else None
                peer = APPEND if budget else None
                yield Figure(what, "ms", values, budget, peer, along=Along("events/s", rate))


def _ours(running: Service, rate: float, events: int) -> Mapping[str, float]:
    *most, stop = run_of(1 + events)
    uid = uid_of(most)
    for document in most[:3]:  # the first event makes the table
        running.publisher(*document)
    wait_until(lambda: running.publisher.flush(60) and running.rows(uid) == 1, 60, "the first event is in Tiled")
    rest = most[3:]
    emitted: list[float] = []
    took: list[float] = []
    with journal_of(running.supervisor.journal_dir, uid) as journal:
        began = time.perf_counter()
        while len(took) < events:
            now = time.perf_counter()
            assert now - began < PATIENCE
            there = sum_of_rows(journal.progress()) - 1
            took += [time.perf_counter() - at for at in emitted[len(took) : there]]
            if len(emitted) < events and now >= began + len(emitted) / rate:
                emitted.append(time.perf_counter())
                running.publisher(*rest[len(emitted) - 1])
            time.sleep(POLL)
    running.publisher(*stop)
    running.wait_written(uid)
    assert len(running.server.client()[uid]["primary"]["seq_num"].read()) == 1 + events
    return _percentiles(took)


def _append(running: Service, rate: float, events: int) -> Mapping[str, float]:
    """The same rows, each in a request of Tiled's client, which cannot keep a rate above that of its requests."""
    *_, (_, event), _ = run_of(1)
    row = {"seq_num": [1], "time": [0.0]}
    for name, value in event["data"].items():
        row |= {name: [value], f"ts_{name}": [0.0]}
    table = pyarrow.table(row)
    client: Any = running.server.client().create_appendable_table(table.schema)
    append = partial(client.append_partition, 0)
    append(table)
    took = []
    began = time.perf_counter()
    for number in range(events):
        time.sleep(max(0.0, began + number / rate - time.perf_counter()))
        sent = time.perf_counter()
        append(table)
        took.append(time.perf_counter() - sent)
    return _percentiles(took)


def _percentiles(took: list[float]) -> Mapping[str, float]:
    in_ms = 1e3 * numpy.array(took)
    return {"p50": float(numpy.percentile(in_ms, 50)), "p95": float(numpy.percentile(in_ms, 95))}
