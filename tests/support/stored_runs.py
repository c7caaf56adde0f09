"""Runs in journals, written to a real Tiled server by the service's own machinery, for tests that look at both."""

from __future__ import annotations

import threading
import zlib
from pathlib import Path
from typing import Any

import numpy
import tifffile
from event_model import compose_run

from tiledbroker import Encoder, Journal, Record, journal_filename
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import TiledServer
from tiledwriter.worker._writing import RunWriting

Documents = list[tuple[str, dict[str, Any]]]

NUMBER = {"source": "test", "dtype": "number", "shape": []}
TEXT = {"source": "test", "dtype": "string", "shape": []}
FLAG = {"source": "test", "dtype": "boolean", "shape": []}
COUNT = {"source": "test", "dtype": "integer", "shape": []}
PAIR = {"source": "test", "dtype": "array", "shape": [2], "dtype_numpy": "<i8"}
WAVE = {"source": "test", "dtype": "array", "shape": [30], "dtype_numpy": "<f8"}
FRAME = {"source": "test", "dtype": "array", "shape": [1, 2, 3], "dtype_numpy": "<u2", "external": "STREAM:"}


def a_run(events: int = 6, frames: Path | None = None, *, pairs: bool = False, **metadata: Any) -> Documents:
    """A run with all kinds of nodes, and values that are easily lost: missing ones, NaN, text beyond ASCII.

    With `pairs` there is a list column, where the server's tables have those.
    """
    run = compose_run(metadata={"plan_name": "count", **metadata})
    keys = {"x": NUMBER, "n": COUNT, "flag": FLAG, "comment": TEXT, "wave": WAVE}
    if pairs:
        keys["pair"] = PAIR
    external = {} if frames is None else {"camera": FRAME}
    stream = run.compose_descriptor(name="primary", data_keys={**keys, **external})
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    if frames is not None:
        documents += _frames(run, stream, frames, events)
    for i in range(events):
        data = {
            "x": float("nan") if i == 1 else i / 3,
            "n": None if i == 2 else i,
            "flag": None if i == 3 else bool(i % 2),
            "comment": f"é {i}",
            "wave": numpy.full(30, i / 7),
        }
        if pairs:
            data["pair"] = [i, -i]
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, float(i)), validate=False)
        documents.append(("event", event))
    return [*documents, ("stop", run.compose_stop())]


def _frames(run: Any, stream: Any, directory: Path, events: int) -> Documents:
    directory.mkdir(exist_ok=True)
    for i in range(events):
        tifffile.imwrite(directory / f"img_{i:03d}.tif", numpy.full((2, 3), i, "<u2"))
    parameters = {"template": "img_{:03d}.tif", "chunk_shape": [1, 2, 3], "join_method": "concat"}
    resource, compose_datum = run.compose_stream_resource(
        mimetype="multipart/related;type=image/tiff",
        uri=f"file://localhost{directory}/",
        data_key="camera",
        parameters=parameters,
    )
    datum = compose_datum(indices={"start": 0, "stop": events}, descriptor=stream.descriptor_doc)
    return [("stream_resource", resource), ("stream_datum", datum)]


def uid_of(documents: Documents) -> str:
    return str(documents[0][1]["uid"])


def journaled(documents: Documents, directory: Path) -> Path:
    """A journal of the run that nobody has written yet."""
    directory.mkdir(exist_ok=True)
    path = directory / journal_filename(uid_of(documents))
    with Journal(path, "create", run_uid=uid_of(documents)) as journal:
        add(journal, documents)
    return path


def records_of(documents: Documents) -> list[Record]:
    """The documents as a journal has them."""
    encoder = Encoder()
    bodies = [(name, encoder.encode(document)) for name, document in documents]
    return [Record(i, name, 0.0, zlib.crc32(body), body) for i, (name, body) in enumerate(bodies)]


def add(journal: Journal, documents: Documents) -> None:
    encoder = Encoder()
    with journal.atomic():
        for name, document in documents:
            journal.append_one(name, encoder.encode(document))


def write(path: Path, server: TiledServer, options: WritingOptions | None = None) -> str:
    """Write what a journal holds; returns the outcome."""
    ended = threading.Event()
    outcomes: list[str] = []

    def on_end(outcome: str, reason: str) -> None:
        outcomes.append(outcome or reason)
        ended.set()

    with Journal(path, "write") as journal:
        made = options or WritingOptions(quiet_period=0.3)
        writing = RunWriting(journal, server.client, made, drain=True, on_progress=lambda _: None, on_end=on_end)
        writing.start()
        assert ended.wait(60)
        writing.stop(5)
    return outcomes[0]
