"""Documents that are measured with."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy
from event_model import compose_run

Document = tuple[str, dict[str, Any]]
Emitted = list[Document]

FRAME = (4, 4)


def stream_of(events: int, keys: int = 5) -> Iterator[Document]:
    """A run with one stream of so many events, each with so many numbers, made one by one."""
    names = [f"key_{number}" for number in range(keys)]
    data_keys = {name: {"source": "bench", "dtype": "number", "shape": []} for name in names}
    run = compose_run(validate=False)
    stream = run.compose_descriptor(name="primary", data_keys=data_keys, validate=False)
    yield "start", run.start_doc
    yield "descriptor", stream.descriptor_doc
    descriptor, uids = stream.descriptor_doc["uid"], str(uuid.uuid4())[:24]
    for number in range(events):
        yield (
            "event",
            {
                "uid": f"{uids}{number:012d}",
                "time": 1.7e9 + number,
                "data": dict.fromkeys(names, number + 0.5),
                "timestamps": dict.fromkeys(names, 1.7e9),
                "seq_num": number + 1,
                "filled": {},
                "descriptor": descriptor,
            },
        )
    stop = run.compose_stop(validate=False)
    yield "stop", {**stop, "num_events": {"primary": events}}


def run_of(events: int, keys: int = 5) -> Emitted:
    """The same, made before it is measured."""
    return list(stream_of(events, keys))


def frames_of(frames: int, file: Path) -> Emitted:
    """A run of a detector that writes an HDF5 file and tells of each frame; makes the file, unless it is there."""
    if not file.exists():
        with h5py.File(file, "w") as open_run_file:
            open_run_file["data"] = numpy.zeros((frames, *FRAME))
    data_key = {
        "source": "bench",
        "dtype": "array",
        "shape": [1, *FRAME],
        "dtype_numpy": "<f8",
        "external": "STREAM:",
    }
    run = compose_run(validate=False)
    stream = run.compose_descriptor(name="primary", data_keys={"camera": data_key}, validate=False)
    resource = run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{file}",
        data_key="camera",
        parameters={"dataset": "/data", "chunk_shape": [1, *FRAME]},
        validate=False,
    )
    emitted: Emitted = [
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        ("stream_resource", resource.stream_resource_doc),
    ]
    for number in range(frames):
        datum = resource.compose_stream_datum(
            indices={"start": number, "stop": number + 1},
            seq_nums={"start": number + 1, "stop": number + 2},
            descriptor=stream.descriptor_doc,
            validate=False,
        )
        emitted.append(("stream_datum", datum))
    return [*emitted, ("stop", run.compose_stop(validate=False))]


def uid_of(emitted: Emitted) -> str:
    """Of the run."""
    return str(emitted[0][1]["uid"])
