"""Whether the core's memory grows with the length of a run: of each kind of document, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import psutil

from tiledwriter.mapping._fold import BATCH_DOCUMENTS

from .core import Folding
from .documents import Document, frames_of, stream_of
from .rounds import OURS, Along, Figure

SIZES = (10_000, 100_000, 1_000_000)
BUDGET_MIB = 8.0
"""By how much memory may grow from a tenth of the longest run to its end: what Python's allocator takes and keeps."""


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:  # noqa: ARG001 - memory hardly varies
    """Memory of a process that folds events, frames in an HDF5 file, and legacy pairs of datum and event."""
    for what in _RUNS:
        most = SIZES[-2] if quick else _MOST.get(what, SIZES[-1])
        script = "from benchmarks.long_runs import main; main()"
        command = [sys.executable, "-c", script, what, str(most)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
        sizes: Mapping[str, float] = json.loads(done.stdout)
        for documents, size in sizes.items():
            yield Figure(what, "MiB", {OURS: [size]}, along=Along("documents", float(documents)))
        grown = sizes[str(most)] - sizes[str(most // 10)]
        yield Figure(f"{what}: growth from {most // 10:,} to {most:,}", "MiB", {OURS: [grown]}, BUDGET_MIB)


def pairs(count: int) -> Iterator[Document]:
    """A run of an area detector of ophyd: a datum and an event for each of its images."""
    data_key = {"source": "bench", "dtype": "array", "shape": [4, 4], "dtype_numpy": "<u2", "external": "FILESTORE:"}
    number = {"source": "bench", "dtype": "number", "shape": [], "dtype_numpy": "<f8"}
    yield "start", {"uid": "run", "time": 0.0}
    descriptor = {
        "uid": "d",
        "run_start": "run",
        "name": "primary",
        "time": 0.0,
        "configuration": {},
        "object_keys": {},
    }
    yield "descriptor", {**descriptor, "data_keys": {"camera": data_key, "x": number}, "hints": {}}
    place = {"root": "/", "resource_path": "data.h5", "resource_kwargs": {"frame_per_point": 1}}
    yield "resource", {"uid": "r", "spec": "AD_HDF5", "run_start": "run", "path_semantics": "posix", **place}
    for n in range(count):
        yield "datum", {"datum_id": f"r/{n}", "resource": "r", "datum_kwargs": {"point_number": n}}
        data = {"data": {"camera": f"r/{n}", "x": n / 2}, "timestamps": {"camera": 1.5, "x": 1.5}}
        about = {"uid": f"event-{n}", "descriptor": "d", "seq_num": n + 1, "time": n / 8, "filled": {"camera": False}}
        yield "event", {**about, **data}
    yield "stop", {"uid": "s", "run_start": "run", "time": 0.0, "exit_status": "success"}


def frames(count: int) -> Iterator[Document]:
    """A detector of ophyd-async that tells of each frame of an HDF5 file."""
    documents = iter(frames_of(0, Path("/dev/null")))
    first = list(islice(documents, 3))
    yield from first
    descriptor, resource = first[1][1]["uid"], first[2][1]["uid"]
    for n in range(count):
        ids = {"uid": f"{resource}/{n}", "stream_resource": resource, "descriptor": descriptor}
        limits = {"indices": {"start": n, "stop": n + 1}, "seq_nums": {"start": n + 1, "stop": n + 2}}
        yield "stream_datum", {**ids, **limits}
    yield from documents


def descriptors(count: int) -> Iterator[Document]:
    """A device that is configured anew, again and again."""
    documents = list(stream_of(0))
    yield from documents[:2]
    for n in range(count):
        configuration = {"device": {"data": {"gain": n / 2}, "timestamps": {"gain": 0.0}, "data_keys": {}}}
        yield "descriptor", {**documents[1][1], "uid": f"descriptor-{n}", "configuration": configuration}
    yield documents[2]


_RUNS: Mapping[str, Callable[[int], Iterator[Document]]] = {
    "events of 5 keys": stream_of,
    "frames in an HDF5 file": frames,
    "legacy pairs of datum and event": pairs,
    "further descriptors": descriptors,
}
_MOST = {"events of 5 keys": 10_000_000, "further descriptors": 1_000}


def main() -> None:
    """Fold a run; write as JSON how much memory the process has after so many documents, in MiB."""
    what, most = sys.argv[1], int(sys.argv[2])
    print(json.dumps(memory_of(_RUNS[what](most), most)))


def memory_of(documents: Iterable[Document], most: int) -> dict[str, float]:
    """Memory at a tenth of all documents and at the end, by their number."""
    folding = Folding()
    process = psutil.Process()
    sizes = {}
    count, left = 0, iter(documents)
    steps = [size for size in (most // 100, most // 10, most) if size]
    for step in steps:
        while count < step and (batch := list(islice(left, min(BATCH_DOCUMENTS, step - count)))):
            folding.feed(batch)
            count += len(batch)
        sizes[str(step)] = process.memory_full_info().uss / 2**20
    return sizes
