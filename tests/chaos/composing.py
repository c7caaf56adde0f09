"""The runs of a campaign: documents as a RunEngine makes them, whose values say which run and row they belong to."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy
from event_model import compose_run

Document: TypeAlias = tuple[str, dict[str, Any]]

FRAME = (4, 5)
TRACE = 32  # numbers; more than a list column takes
DATUM = 5  # frames that one stream_datum tells of
EDGE = 7112.0  # eV
SPAN = 300.0


@dataclass
class RunPlan:
    """What one run is like. `hurry` makes it end at its next event.

    Attributes
    ----------
    rewound
        Row after which the scan goes back by three sequence numbers; 0 for none.
    widened
        Row from which on a column of integers has halves; 0 for none.
    """

    number: int
    events: int
    trace: bool = True
    camera: bool = True
    monitor: bool = True
    rewound: int = 0
    widened: int = 0
    aborted: bool = False
    hurry: bool = False

    @classmethod
    def at_random(cls, number: int, chance: random.Random, *, events: tuple[int, int]) -> RunPlan:
        length = chance.randint(*events)
        return cls(
            number,
            length,
            trace=chance.random() < 0.5,
            camera=chance.random() < 0.5,
            monitor=chance.random() < 0.5,
            rewound=chance.randrange(4, length) if length > 4 and chance.random() < 0.3 else 0,
            widened=chance.randrange(1, length) if chance.random() < 0.25 else 0,
            aborted=chance.random() < 0.2,
        )

    @classmethod
    def with_everything(cls, number: int, events: int) -> RunPlan:
        return cls(number, events, rewound=events // 2, widened=events - 1)

    def documents(self, directory: Path) -> Iterator[Document]:
        """The run's documents, each made when it is asked for; `directory` takes the detector's file."""
        run = compose_run(metadata=self._metadata(), validate=False)
        yield "start", run.start_doc
        primary = run.compose_descriptor(
            name="primary",
            data_keys=self._data_keys(),
            hints={"detectors": {"fields": ["transmission", "i0"]}},
            validate=False,
        )
        yield "descriptor", primary.descriptor_doc
        datum = monitor = None
        if self.monitor:
            level = {"source": "chaos", "dtype": "number", "shape": []}
            monitor = run.compose_descriptor(name="monitor", data_keys={"level": level}, validate=False)
            yield "descriptor", monitor.descriptor_doc
        if self.camera:
            resource, datum = run.compose_stream_resource(
                mimetype="application/x-hdf5",
                uri=f"file://localhost{self._file(directory, run.start_doc['uid'])}",
                data_key="camera",
                parameters={"dataset": "/entry/data", "chunk_shape": [1, *FRAME], "join_method": "concat"},
                validate=False,
            )
            yield "stream_resource", resource
        told = row = 0
        seq_num = 1
        while row < self.events and not self.hurry:
            data = self._data(row)
            stamps = dict.fromkeys(data, time.time())
            yield "event", primary.compose_event(data=data, timestamps=stamps, seq_num=seq_num, validate=False)
            row += 1
            seq_num = seq_num - 2 if row == self.rewound else seq_num + 1
            if row % DATUM == 0:
                if datum is not None:
                    yield "stream_datum", _told(datum, primary.descriptor_doc, told, row)
                    told = row
                if monitor is not None:
                    data = {"level": row + self.number / 2**32}
                    stamps = dict.fromkeys(data, time.time())
                    yield "event", monitor.compose_event(data=data, timestamps=stamps, validate=False)
        if datum is not None and told < row:
            yield "stream_datum", _told(datum, primary.descriptor_doc, told, row)
        yield "stop", run.compose_stop(exit_status="abort" if self.aborted else "success", validate=False)

    def _metadata(self) -> dict[str, Any]:
        dimension = "energy" if self.trace else "time"
        return {
            "plan_name": "energy_scan" if self.trace else "count",
            "scan_id": self.number,
            "hints": {"dimensions": [[[dimension], "primary"]]},
        }

    def _data_keys(self) -> dict[str, Any]:
        keys: dict[str, Any] = {
            "energy": {"source": "chaos", "dtype": "number", "shape": [], "units": "eV"},
            "transmission": {"source": "chaos", "dtype": "number", "shape": [], "units": "counts"},
            "i0": {"source": "chaos", "dtype": "number", "shape": [], "units": "counts"},
            "position": {"source": "chaos", "dtype": "number", "shape": []},
            "counter": {"source": "chaos", "dtype": "integer", "shape": []},
            "label": {"source": "chaos", "dtype": "string", "shape": []},
            "corners": {"source": "chaos", "dtype": "array", "dtype_numpy": "<f8", "shape": [3]},
        }
        if self.trace:
            keys["trace"] = {"source": "chaos", "dtype": "array", "dtype_numpy": "<f8", "shape": [TRACE]}
        if self.camera:
            keys["camera"] = {
                "source": "chaos",
                "dtype": "array",
                "dtype_numpy": "<i2",
                "shape": [1, *FRAME],
                "external": "STREAM:",
            }
        return keys

    def _data(self, row: int) -> dict[str, Any]:
        place = self.number * 2**20 + row
        data: dict[str, Any] = {
            **_spectrum(row / self.events, random.Random(place)),
            "position": place / 8,
            "counter": place + 0.5 if self.widened and row >= self.widened else place,
            "label": f"run {self.number} row {row}",
            "corners": [place + corner / 4 for corner in range(3)],
        }
        if self.trace:
            data["trace"] = numpy.arange(TRACE) / 64 + place
        return data

    def _file(self, directory: Path, run_uid: str) -> Path:
        """The detector's file: all of it is there before the first frame is told of."""
        path = directory / f"{run_uid}.h5"
        with h5py.File(path, "w") as file:
            frames = numpy.arange(self.events, dtype="<i2")[:, None, None] + numpy.zeros(FRAME, "<i2")
            file.create_dataset("entry/data", data=frames, chunks=(1, *FRAME))
        return path


def _spectrum(progress: float, noise: random.Random) -> dict[str, float]:
    """One point of a scan across an absorption edge, as far as it has got (0 to 1)."""
    energy = EDGE + SPAN * (progress - 0.4)
    absorbed = (1 + 0.12 * math.sin(energy / 9)) / (1 + math.exp((EDGE - energy) / 6))
    return {"energy": energy, "transmission": 900 * absorbed + noise.gauss(60, 12), "i0": noise.gauss(1200, 9)}


def _told(compose_datum: Any, descriptor: Any, start: int, stop: int) -> dict[str, Any]:
    return dict(compose_datum(indices={"start": start, "stop": stop}, descriptor=descriptor, validate=False))
