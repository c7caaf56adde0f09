"""The frames of files that a run's documents name, read from the files without the product's help."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlparse

import h5py
import numpy
import tifffile
from event_model import unpack_datum_page, unpack_event_page
from PIL import Image

_DATASETS: Final = {"AD_HDF5": "/entry/data/data", "XSP3": "/entry/instrument/detector/data"}
_BYTES: Final = "application/octet-stream"


class Part(NamedTuple):
    """Frames of a file that one document names, for the events from `seq_num` on."""

    seq_num: int
    resource: str
    indices: range


@dataclass
class Named:
    """What is named of one data key of a stream."""

    shape: tuple[int, ...]
    parts: list[Part] = field(default_factory=list)


@dataclass
class NamedFrames:
    """What documents name, by run, stream and data key, as they come."""

    keys: dict[tuple[str, str, str], Named] = field(default_factory=dict)
    _streams: dict[str, tuple[str, str, dict[str, Any]]] = field(default_factory=dict)
    _resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    _datums: dict[str, dict[str, Any]] = field(default_factory=dict)
    _stream_datums: list[Mapping[str, Any]] = field(default_factory=list)
    _references: list[tuple[str, str, int, str]] = field(default_factory=list)  # descriptor, key, seq_num, datum
    _counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _ends: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))

    def add(self, name: str, document: Mapping[str, Any]) -> None:
        """Take in a document."""
        if name == "descriptor":
            self._streams[document["uid"]] = (document["run_start"], document["name"], document["data_keys"])
        elif name in ("resource", "stream_resource"):
            self._resources[document["uid"]] = dict(document)
        elif name == "stream_datum":
            self._stream_datums.append(document)
        for datum in _datums(name, document):
            number = self._counts[datum["resource"]]
            self._counts[datum["resource"]] += 1
            self._datums[datum["datum_id"]] = {**datum, "number": number}
        for event in _events(name, document):
            keys = self._streams[event["descriptor"]][2]
            for key, value in event["data"].items():
                if "external" in keys.get(key, {}) and isinstance(value, str):
                    self._references.append((event["descriptor"], key, event["seq_num"], value))

    def end(self) -> None:
        """Look up the datums that events refer to, and stream resources; some may have come after these."""
        for document in self._stream_datums:
            resource = document["stream_resource"]
            if resource in self._resources:
                indices = range(document["indices"]["start"], document["indices"]["stop"])
                key = self._resources[resource]["data_key"]
                self._name(document["descriptor"], key, document["seq_nums"]["start"], resource, indices)
        for descriptor, key, seq_num, datum_id in self._references:
            datum = self._datums.get(datum_id)
            if datum is not None and datum["resource"] in self._resources:
                self._name(descriptor, key, seq_num, datum["resource"], self._indices(key, datum))

    def _indices(self, key: str, datum: Mapping[str, Any]) -> range:
        arguments = datum["datum_kwargs"]
        if "indices" in arguments:
            return range(arguments["indices"]["start"], arguments["indices"]["stop"])
        if "frame" in arguments:
            start, stop = self._ends[datum["resource"], key], arguments["frame"] + 1
            self._ends[datum["resource"], key] = stop
            return range(start, stop)
        number = arguments.get("point_number", arguments.get("index", datum["number"]))
        return range(number, number + 1)

    def _name(self, descriptor: str, key: str, seq_num: int, resource: str, indices: range) -> None:
        run, stream, keys = self._streams[descriptor]
        named = self.keys.setdefault((run, stream, key), Named(tuple(keys[key]["shape"])))
        named.parts.append(Part(seq_num, resource, indices))

    def of(self, run: str, stream: str) -> Iterator[tuple[str, Any]]:
        """Each data key of a stream, with all numbers of its frames in a row, or the files if they are of no kind."""
        for (run_uid, name, key), named in self.keys.items():
            if (run_uid, name) == (run, stream):
                parts = sorted(named.parts, key=lambda part: part.seq_num)
                yield key, self._content(named.shape, parts)

    def _content(self, shape: tuple[int, ...], parts: list[Part]) -> Any:
        numbers, files = [], []
        firsts: dict[str, int] = {}
        for part in parts:
            source = _Source.of(self._resources[part.resource])
            if source.mimetype == _BYTES:
                files += [path for path in map(source.path, part.indices) if path not in files]
                continue
            # A file that begins with the number of all frames before goes on counting.
            accepts_more = part.indices.start == len(numbers)
            first = firsts.setdefault(part.resource, part.indices.start if accepts_more else 0)
            numbers += [source.numbers(index - first, shape) for index in part.indices]
        return files or numpy.concatenate(numbers)


@dataclass
class _Source:
    """The files of one resource."""

    mimetype: str
    place: Path
    parameters: dict[str, Any]
    spec: str

    @classmethod
    def of(cls, resource: Mapping[str, Any]) -> _Source:
        if "mimetype" in resource:
            place = Path(urlparse(resource["uri"]).path)
            return cls(resource["mimetype"], place, dict(resource["parameters"]), "")
        spec = resource["spec"].upper()
        mimetype = {
            "AD_TIFF": "multipart/related;type=image/tiff",
            "NPY_SEQ": "multipart/related;type=application/x-npy",
        }
        kind = mimetype.get(spec, _BYTES if spec == "HOME_MADE" else "application/x-hdf5")
        place = Path("/", resource["root"], resource["resource_path"])
        return cls(kind, place, dict(resource["resource_kwargs"]), spec)

    def path(self, index: int) -> Path:
        template = self.parameters.get("template")
        if template is None:
            return self.place.with_name(f"{self.place.name}_{index}.npy") if self.spec == "NPY_SEQ" else self.place
        if "%" in template:
            return Path(template % (f"{self.place}/", self.parameters["filename"], index))
        return self.place / template.format(index)

    def numbers(self, index: int, shape: tuple[int, ...]) -> Any:
        """All numbers of the frames of one event."""
        count = self.parameters.get("frame_per_point") or self.parameters.get("multiplier")
        if self.mimetype.startswith("multipart/"):
            one = _read(self.path(0 if self.spec != "NPY_SEQ" else index)).size
            count = count or math.prod(shape) // one
            return numpy.concatenate([_read(self.path(index * count + n)).reshape(-1) for n in range(count)])
        data = self._data()
        row = math.prod(data.shape[1:])
        size = row * count if count else math.prod(shape)
        return data.reshape(-1)[index * size : (index + 1) * size]

    def _data(self) -> Any:
        if self.mimetype.startswith("text/csv"):
            return numpy.loadtxt(self.place, delimiter=",")
        dataset = self.parameters.get("path") or self.parameters.get("dataset")
        with h5py.File(self.place) as file:
            data = file[dataset or _DATASETS[self.spec]][...]
        if "slice" in self.parameters:
            parts = [[int(n) if n else None for n in part.split(":")] for part in self.parameters["slice"].split(",")]
            data = data[tuple(slice(*part) for part in parts)]
        return data.squeeze() if self.parameters.get("squeeze") else data


def _read(path: Path) -> Any:
    if path.suffix == ".npy":
        return numpy.load(path)
    return tifffile.imread(path) if path.suffix in (".tif", ".tiff") else numpy.asarray(Image.open(path))


def _datums(name: str, document: Mapping[str, Any]) -> list[Any]:
    if name == "datum":
        return [document]
    if name == "datum_page":
        return list(unpack_datum_page(document))  # type: ignore[arg-type]
    if name == "bulk_datum":
        pairs = zip(document["datum_ids"], document["datum_kwarg_list"], strict=True)
        return [{"resource": document["resource"], "datum_id": uid, "datum_kwargs": kwargs} for uid, kwargs in pairs]
    return []


def _events(name: str, document: Mapping[str, Any]) -> list[Any]:
    if name == "event":
        return [document]
    if name == "event_page":
        return list(unpack_event_page(document))  # type: ignore[arg-type]
    return [event for events in document.values() for event in events] if name == "bulk_events" else []
