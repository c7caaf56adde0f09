"""How arrays of events lie on Tiled's disk, after a slow scan and after a flood, and what reading them back takes."""

from __future__ import annotations

import math
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy
from bluesky_tiled_plugins import TiledWriter as PeerWriter
from event_model import compose_run

from .documents import Emitted, uid_of
from .rounds import OURS, Figure
from .service import Service, service

PEER = "TiledWriter"
BATCH_SIZES = (100, 1_000, 10_000)
FLOATS = 64
SLOW_EVENTS, HERTZ = 60, 2.0
FLOOD_EVENTS = 10_000
READS = 20  # of which the fastest counts
ROUNDS = 3  # at most: a slow scan takes half a minute

BUDGETS = {
    ("chunks", "files"): 1.0,
    ("on disk", "KiB"): 1.02,  # the rest of a chunk is packed zeros
    ("read back", "ms"): 1.1,
    ("written", "s"): None,
    ("requests", "requests"): None,
}
_REFERENCES = frozenset({"uid", "run_start", "descriptor"})

Write = Callable[[Emitted], None]


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """A slow scan and a flood of arrays; the peer at the batch size whose flood is written first."""
    with tempfile.TemporaryDirectory() as place, service(Path(place)) as running:
        flood = arrays_of(FLOOD_EVENTS // (10 if quick else 1))
        best = min(BATCH_SIZES, key=lambda size: _seconds(partial(_through_peer, running, size), again(flood)))
        peer = partial(_through_peer, running, best)
        scans = [
            ("slow scan, 60 events at 2 Hz", arrays_of(SLOW_EVENTS), 0.0 if quick else 1 / HERTZ),
            ("flood of 10,000 events", flood, 0.0),
        ]
        for what, emitted, pause in scans:
            sides = {OURS: partial(_through_service, running, pause), PEER: peer}
            figures: dict[str, dict[str, list[float]]] = {}
            for _ in range(min(rounds, ROUNDS)):
                for quantity, by_side in _compare(running, sides, emitted).items():
                    for side, value in by_side.items():
                        figures.setdefault(quantity, {}).setdefault(side, []).append(value)
            for (quantity, unit), budget in BUDGETS.items():
                title = f"{what}, {FLOATS} floats each, {quantity}, best batch size {best}"
                yield Figure(title, unit, figures[quantity], budget, PEER if budget else None)


def arrays_of(events: int) -> Emitted:
    """A run whose events have one array each."""
    data_key = {"source": "bench", "dtype": "array", "dtype_numpy": "<f8", "shape": [FLOATS]}
    run = compose_run(validate=False)
    stream = run.compose_descriptor(name="primary", data_keys={"wave": data_key}, validate=False)
    values = numpy.random.default_rng(1).normal(size=(events, FLOATS))
    emitted: Emitted = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for row in values:
        event = stream.compose_event(data={"wave": row}, timestamps={"wave": 0.0}, validate=False)
        emitted.append(("event", event))
    return [*emitted, ("stop", run.compose_stop(validate=False))]


def again(emitted: Emitted) -> Emitted:
    """The same documents as another run."""
    old, new = uid_of(emitted), str(uuid.uuid4())

    def renamed(document: dict[str, Any]) -> dict[str, Any]:
        return {key: value.replace(old, new) if key in _REFERENCES else value for key, value in document.items()}

    return [(name, renamed(document)) for name, document in emitted]


def _through_service(running: Service, pause: float, emitted: Emitted) -> None:
    began = time.monotonic()
    for number, (name, document) in enumerate(emitted):
        time.sleep(max(0.0, began + number * pause - time.monotonic()))
        running.publisher(name, document)
    running.wait_written(uid_of(emitted))


def _through_peer(running: Service, batch_size: int, emitted: Emitted) -> None:
    writer = PeerWriter(running.server.client(), batch_size=batch_size)
    for name, document in emitted:
        writer(name, document)


def _seconds(write: Write, emitted: Emitted) -> float:
    """Seconds that writing a run takes."""
    began = time.perf_counter()
    write(emitted)
    return time.perf_counter() - began


def _compare(running: Service, sides: Mapping[str, Write], emitted: Emitted) -> dict[str, dict[str, float]]:
    """What each side's array takes, by quantity and side; both are read in turns."""
    figures: dict[str, dict[str, float]] = {}
    nodes = {}
    for side, write in sides.items():
        run = again(emitted)
        before = running.server.log.stat().st_size
        seconds = _seconds(write, run)
        node = nodes[side] = running.server.client()[uid_of(run)]["primary"]["wave"]
        directory = Path(node.data_sources()[0].assets[0].data_uri.removeprefix("file://localhost"))
        sizes = [file.stat().st_size for file in directory.rglob("*") if file.is_file()]
        measured = {
            "chunks": float(len(sizes) - 1),  # one file is the description
            "on disk": sum(sizes) / 2**10,
            "written": seconds,
            "requests": float(_requests(running.server.log, before)),
        }
        for quantity, value in measured.items():
            figures.setdefault(quantity, {})[side] = value
    expected = numpy.array([document["data"]["wave"] for name, document in emitted if name == "event"])
    fastest = dict.fromkeys(sides, math.inf)
    for _ in range(READS):
        for side, node in nodes.items():
            began = time.perf_counter()
            found = numpy.asarray(node.read())
            fastest[side] = min(fastest[side], 1e3 * (time.perf_counter() - began))
            assert numpy.array_equal(found, expected)
    return {**figures, "read back": fastest}


def _requests(log: Path, start: int) -> int:
    """Requests since then that have given the array rows or a shape."""
    with log.open("rb") as open_run_file:
        open_run_file.seek(start)
        return len(re.findall(rb"(?:PATCH|PUT) /api/v1/(?:array/full|data_source)/[^ ]*/wave", open_run_file.read()))
