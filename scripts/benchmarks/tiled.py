"""How many documents a second can be read in Tiled: from the first callback until the run is there, complete."""

from __future__ import annotations

import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pyarrow
from bluesky_tiled_plugins import TiledWriter as PeerWriter
from tiled.structures.array import ArrayStructure, BuiltinDtype
from tiled.structures.core import StructureFamily
from tiled.structures.data_source import Asset, DataSource, Management

from tiledwriter.testing import Storage

from .documents import FRAME, Emitted, frames_of, run_of, uid_of
from .rounds import OURS, Figure, Rounds
from .sequences import FILE_TEMPLATE, TIFF_FILES, sequence_of
from .service import Service, service

BATCH_SIZES = (1, 100, 1_000, 10_000)
FEW = 100  # documents for a batch size of 1, which takes a request for each
BUDGET = 10.0
REQUESTS = "the requests alone"
ROWS = 10_000  # per request


@dataclass(frozen=True)
class Load:
    """A kind of run.

    `make` makes one of so many documents; `read` gives how many of them the run's node in Tiled has. `few_requests`
    gives what makes such a run in the root container with as few requests as there can be.
    """

    what: str
    documents: int
    make: Callable[[int], Emitted]
    read: Callable[[Any], int]
    few_requests: Callable[[int], Callable[[Any], None]] | None = None


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """Events of 5, 50 and 500 keys, and frames in a file or many; the peer at the batch size that suits it best."""
    with tempfile.TemporaryDirectory() as place:
        loads = _loads(Path(place), 10 if quick else 1)
        yield from _on("sqlite", Path(place), loads, rounds)
        if not quick:
            yield from _on("postgresql", Path(place), loads[:1], rounds)


def _loads(place: Path, divisor: int) -> list[Load]:
    def events(keys: int, documents: int) -> Load:
        return Load(
            f"events of {keys} keys", documents, partial(run_of, keys=keys), _rows, partial(_append_rows, keys=keys)
        )

    frames = 200_000 // divisor
    return [
        events(5, 200_000 // divisor),
        events(50, 60_000 // divisor),
        events(500, 6_000 // divisor),
        Load("frames in an HDF5 file", frames, partial(_frames, file=place / "frames.h5", most=frames), _frames_there),
        Load("frames in TIFF files", 3_000 // divisor, _files, _frames_there, _register_files),
    ]


def _rows(run: Any) -> int:
    return len(run["primary"]["seq_num"].read())


def _frames(frames: int, file: Path, most: int) -> Emitted:
    frames_of(most, file)
    return frames_of(frames, file)


def _files(files: int) -> Emitted:
    return list(sequence_of(files, _new_directory()))


def _new_directory() -> str:
    """Path of a directory that no other run has files in, as Tiled keeps each file once."""
    return f"/data/{uuid.uuid4()}"


def _frames_there(run: Any) -> int:
    return int(run["primary"]["camera"].shape[0])


def _on(storage: Storage, place: Path, loads: list[Load], rounds: int) -> Iterator[Figure]:
    directory = place / storage
    directory.mkdir()
    with service(directory, storage=storage, readable=[place]) as running:
        for load in loads:
            batch_size = _best_batch_size(running, load)
            sides = {
                OURS: lambda load=load: _ours(running, load),
                "TiledWriter": lambda load=load, size=batch_size: _peer(running, load, size, load.documents),
            }
            if load.few_requests:
                sides[REQUESTS] = lambda load=load: _requests(running, load)
            for values in Rounds(sides).run(rounds).values():
                what = f"{load.what}, {storage}, best batch size {batch_size}"
                yield Figure(what, "documents/s", values, BUDGET, "TiledWriter", more_is_better=True)


def _best_batch_size(running: Service, load: Load) -> int:
    """For the peer, by runs of some batches, or of a tenth of the documents."""

    def rate(size: int) -> float:
        documents = FEW if size == 1 else max(load.documents // 10, 2 * size)
        return _peer(running, load, size, min(documents, load.documents))["readable"]

    return max(BATCH_SIZES, key=rate)


def _ours(running: Service, load: Load) -> Mapping[str, float]:
    emitted = load.make(load.documents)
    began = time.perf_counter()
    running.wait_written(running.publish(emitted))
    seconds = time.perf_counter() - began
    _check(running, load, emitted, load.documents)
    return {"readable": len(emitted) / seconds}


def _peer(running: Service, load: Load, batch_size: int, documents: int) -> Mapping[str, float]:
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
    assert load.few_requests is not None
    make_run, root = load.few_requests(load.documents), running.server.client()
    began = time.perf_counter()
    make_run(root)
    return {"readable": load.documents / (time.perf_counter() - began)}


def _append_rows(rows: int, keys: int) -> Callable[[Any], None]:
    part = _part(min(ROWS, rows), keys)

    def make_run(root: Any) -> None:
        run = root.create_container(metadata={"start": {}})
        table = run.create_container("primary").create_appendable_table(part.schema)
        for first in range(0, rows, ROWS):
            table.append_partition(0, part[: rows - first])
        assert len(table["seq_num"].read()) == rows

    return make_run


def _part(rows: int, keys: int) -> pyarrow.Table:
    """The first rows of such a run."""
    events = [document for name, document in run_of(rows, keys=keys) if name == "event"]
    columns: dict[str, list[Any]] = {field: [event[field] for event in events] for field in ("seq_num", "time")}
    for key in events[0]["data"]:
        columns[key] = [event["data"][key] for event in events]
        columns[f"ts_{key}"] = [event["timestamps"][key] for event in events]
    return pyarrow.table(columns)


def _register_files(files: int) -> Callable[[Any], None]:
    directory = _new_directory()
    data_type = BuiltinDtype.from_numpy_dtype(numpy.dtype("<u2"))
    chunks = ((1,) * files, *((length,) for length in FRAME))
    assets = [
        Asset(f"file://localhost{directory}/{FILE_TEMPLATE.format(number)}", False, "data_uris", number)
        for number in range(files)
    ]
    source = DataSource(
        StructureFamily.array,
        ArrayStructure(data_type, chunks, (files, *FRAME)),
        mimetype=TIFF_FILES,
        assets=assets,
        management=Management.external,
    )

    def make_run(root: Any) -> None:
        stream = root.create_container(metadata={"start": {}}).create_container("primary")
        assert stream.new(StructureFamily.array, [source], key="camera").shape[0] == files

    return make_run


def _check(running: Service, load: Load, emitted: Emitted, documents: int) -> None:
    there = load.read(running.server.client()[uid_of(emitted)])
    assert there == documents, f"{there} of {documents} are in Tiled."
