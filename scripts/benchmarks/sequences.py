"""What each frame of a long sequence of files costs Tiled: of its first thousand files, and of its last."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
from event_model import compose_run
from faulty_proxy import FaultyProxy

from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

from .documents import FRAME, Document
from .rounds import OURS, Along, Figure
from .service import PATIENCE, connected_publisher

FILES = 10_000
COMPARED = 1_000  # files, at either end
RATES = (50, 500)  # frames/s
EVERY = 25  # frames it is looked how many Tiled was told of
TIFF_FILES = "multipart/related;type=image/tiff"
FILE_TEMPLATE = "image_{:06d}.tiff"
BUDGET = 1.2
ROUNDS = 1  # at most: the slow one takes minutes


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """Bytes sent and Tiled's processor time per frame, of TIFF files that are announced one by one."""
    files = 3_000 if quick else FILES
    places = count()
    with tempfile.TemporaryDirectory() as place, TiledServer(Path(place) / "tiled") as server:
        for rate in RATES[1:] if quick else RATES:
            figures: dict[str, dict[str, list[float]]] = {}
            for _ in range(min(rounds, ROUNDS)):
                directory = Path(place) / str(next(places))
                directory.mkdir()
                for end, costs in zip(("first", "last"), _costs(directory, server, files, rate), strict=True):
                    for quantity, cost in costs.items():
                        figures.setdefault(quantity, {}).setdefault(end, []).append(cost)
            for quantity, by_end in figures.items():
                what, unit = f"{quantity}, {files:,} TIFF files at {rate} frames/s", _UNITS[quantity]
                for end, number in (("first", COMPARED), ("last", files)):
                    yield Figure(what, unit, {OURS: by_end[end]}, along=Along("files", number))
                ratio = [last / first for first, last in zip(by_end["first"], by_end["last"], strict=True)]
                yield Figure(f"{what}: the last thousand compared with the first", "x", {OURS: ratio}, BUDGET)


_UNITS = {"bytes sent": "bytes per frame", "processor time of Tiled": "ms per frame"}


def sequence_of(files: int, directory: str = "/data/of/a/beamline") -> Iterator[Document]:
    """A run of a detector that writes TIFF files to a directory, which need not exist, and tells of each one."""
    key = {"source": "bench", "dtype": "array", "shape": [*FRAME], "dtype_numpy": "<u2", "external": "STREAM:"}
    run = compose_run(validate=False)
    stream = run.compose_descriptor(name="primary", data_keys={"camera": key}, validate=False)
    resource = run.compose_stream_resource(
        mimetype=TIFF_FILES,
        uri=f"file://localhost{directory}/",
        data_key="camera",
        parameters={"template": FILE_TEMPLATE, "chunk_shape": [1, *FRAME]},
        validate=False,
    )
    yield "start", run.start_doc
    yield "descriptor", stream.descriptor_doc
    yield "stream_resource", resource.stream_resource_doc
    for number in range(files):
        datum = resource.compose_stream_datum(
            indices={"start": number, "stop": number + 1},
            seq_nums={"start": number + 1, "stop": number + 2},
            descriptor=stream.descriptor_doc,
            validate=False,
        )
        yield "stream_datum", datum
    yield "stop", run.compose_stop(validate=False)


def _costs(place: Path, server: TiledServer, files: int, rate: float) -> list[Mapping[str, float]]:
    """Costs per frame of the first files, and of the last ones."""
    tiled = psutil.Process(server.pid)
    with FaultyProxy(server.uri) as proxy:
        counted: Any = SimpleNamespace(uri=proxy.uri, api_key=server.api_key, storage=server.storage)
        with (
            SupervisorProcess(place / "journals", counted) as supervisor,
            closing(connected_publisher(supervisor, place / "spool")) as publisher,
        ):
            run_uid = ""
            used_by: list[tuple[int, float]] = []  # frames told, and processor time until then
            began, number = time.monotonic(), 0
            for name, document in sequence_of(files):
                run_uid = run_uid or str(document["uid"])
                if name == "stop":
                    wait_until(lambda uid=run_uid: _told(supervisor, uid) == files, PATIENCE, "Tiled was told")
                number += name == "stream_datum"
                told = _told(supervisor, run_uid) if name == "stop" or number % EVERY == 0 else -1
                if told >= 0 and (not used_by or told > used_by[-1][0]):
                    used = tiled.cpu_times()
                    used_by.append((told, 1e3 * (used.user + used.system)))
                publisher(name, document)
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
    sent = [(0, 0.0)]  # frames told, and bytes sent for all of them: what is in flight is not told yet
    for request in proxy.requests:
        if request.is_for("PUT", "data_source"):
            told = json.loads(request.body)["data_source"]["structure"]["shape"][0]
            sent.append((told, sent[-1][1] + len(request.body)))
    return [
        {"bytes sent": _per_frame(sent, end, files), "processor time of Tiled": _per_frame(used_by, end, files)}
        for end in ("first", "last")
    ]


def _per_frame(samples: list[tuple[int, float]], end: str, files: int) -> float:
    """What each of the first or last thousand frames took, by what all frames took that were told at a time."""
    if end == "first":
        before, after = samples[0], next(sample for sample in samples if sample[0] >= COMPARED)
    else:
        before, after = next(it for it in reversed(samples) if it[0] <= files - COMPARED), samples[-1]
    return (after[1] - before[1]) / (after[0] - before[0])


def _told(supervisor: SupervisorProcess, run_uid: str) -> int:
    """How many frames Tiled has confirmed."""
    try:
        with journal_of(supervisor.journal_dir, run_uid) as journal:
            return sum(node.rows for path, node in journal.progress().items() if path.endswith("/camera"))
    except LookupError:
        return 0
