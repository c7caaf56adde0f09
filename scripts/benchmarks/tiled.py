"""How many documents a second can be read in Tiled: from the first callback until the run is there, complete."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
from bluesky_tiled_plugins import TiledWriter as PeerWriter

from tiledwriter.testing import Storage

from .documents import Emitted, frames_of, run_of, uid_of
from .rounds import OURS, Figure, Rounds
from .service import Service, service

BATCH_SIZES = (1, 100, 1_000, 10_000)
FEW = 100  # documents for a batch size of 1, which takes a request for each
BUDGET = 10.0
REQUESTS = "the requests alone"
ROWS = 10_000  # per request


@dataclass(frozen=True)
class Load:
    """A kind of run.

    `make` makes one of so many documents; `read` gives how many of them the run's node in Tiled has. Events have so
    many `keys`.
    """

    what: str
    documents: int
    make: Callable[[int], Emitted]
    read: Callable[[Any], int]
    keys: int = 0


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """Events of 5, 50 and 500 keys, and of frames in a file; the peer at the batch size that suits it best."""
    with tempfile.TemporaryDirectory() as place:
        loads = _loads(Path(place), 10 if quick else 1)
        yield from _on("sqlite", Path(place), loads, rounds)
        if not quick:
            yield from _on("postgresql", Path(place), loads[:1], rounds)


def _loads(place: Path, divisor: int) -> list[Load]:
    def events(keys: int, documents: int) -> Load:
        return Load(f"events of {keys} keys", documents, partial(run_of, keys=keys), _rows, keys)

    frames = 200_000 // divisor
    return [
        events(5, 200_000 // divisor),
        events(50, 60_000 // divisor),
        events(500, 6_000 // divisor),
        Load("frames in an HDF5 file", frames, partial(_frames, file=place / "frames.h5", most=frames), _frames_there),
    ]


def _rows(run: Any) -> int:
    return len(run["primary"]["seq_num"].read())


def _frames(frames: int, file: Path, most: int) -> Emitted:
    frames_of(most, file)
    return frames_of(frames, file)


def _frames_there(run: Any) -> int:
    return int(run["primary"]["camera"].shape[0])


def _on(storage: Storage, place: Path, loads: list[Load], rounds: int) -> Iterator[Figure]:
    directory = place / storage
    directory.mkdir()
    with service(directory, storage=storage, readable=[place]) as running:
        for load in loads:
            batch_size = max(BATCH_SIZES, key=lambda size, load=load: _peer(running, load, size)["readable"])
            sides = {
                OURS: lambda load=load: _ours(running, load),
                "TiledWriter": lambda load=load, batch_size=batch_size: _peer(running, load, batch_size),
            }
            if load.keys:
                sides[REQUESTS] = lambda load=load: _requests(running, load)
            for values in Rounds(sides).run(rounds).values():
                what = f"{load.what}, {storage}, best batch size {batch_size}"
                yield Figure(what, "documents/s", values, BUDGET, "TiledWriter", more_is_better=True)


def _ours(running: Service, load: Load) -> Mapping[str, float]:
    emitted = load.make(load.documents)
    began = time.perf_counter()
    running.wait_written(running.publish(emitted))
    seconds = time.perf_counter() - began
    _check(running, load, emitted, load.documents)
    return {"readable": len(emitted) / seconds}


def _peer(running: Service, load: Load, batch_size: int) -> Mapping[str, float]:
    documents = load.documents if batch_size > 1 else min(load.documents, FEW)
    emitted = load.make(documents)
    writer = PeerWriter(running.server.client(), batch_size=batch_size)
    began = time.perf_counter()
    for name, doc in emitted:
        writer(name, doc)
    seconds = time.perf_counter() - began
    _check(running, load, emitted, documents)
    return {"readable": len(emitted) / seconds}


def _requests(running: Service, load: Load) -> Mapping[str, float]:
    """What a run takes Tiled if nothing is to be done between its requests: what no writer can be faster than."""
    part = _part(load, min(ROWS, load.documents))
    began = time.perf_counter()
    run = running.server.client().create_container(metadata={"start": {}})
    table = run.create_container("primary").create_appendable_table(part.schema)
    for first in range(0, load.documents, ROWS):
        table.append_partition(0, part[: load.documents - first])
    assert len(table["seq_num"].read()) == load.documents
    return {"readable": load.documents / (time.perf_counter() - began)}


def _part(load: Load, rows: int) -> pyarrow.Table:
    """The first rows of such a run."""
    events = [document for name, document in run_of(rows, keys=load.keys) if name == "event"]
    columns: dict[str, list[Any]] = {field: [event[field] for event in events] for field in ("seq_num", "time")}
    for key in events[0]["data"]:
        columns[key] = [event["data"][key] for event in events]
        columns[f"ts_{key}"] = [event["timestamps"][key] for event in events]
    return pyarrow.table(columns)


def _check(running: Service, load: Load, emitted: Emitted, documents: int) -> None:
    there = load.read(running.server.client()[uid_of(emitted)])
    assert there == documents, f"{there} of {documents} are in Tiled."
