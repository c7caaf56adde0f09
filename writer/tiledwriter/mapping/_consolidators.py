"""Detectors announce their files piece by piece; this file adds the pieces up to data sources that Tiled can serve."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import numpy
from tiled.structures.array import BuiltinDtype, StructDtype

from .._errors import DocumentError
from ._dtypes import declared_dtype

Document = Mapping[str, Any]
Shape = tuple[int, ...]

_WIDE_NUMBER: Final = re.compile(r"\{[^{}]*[0-9]{4}")

MAX_FILES: Final = 1_000_000
"""Files of one data key; a few bytes can claim any number of them."""

MAX_CHUNKS: Final = 10_000_000
"""Chunks along one dimension."""

MAX_LISTED_ROWS: Final = 200_000
"""Rows of HDF5 files that are told to Tiled one by one, since they do not follow each other."""


@dataclass(frozen=True)
class Patch:
    """The box of an array that has been added: where it begins and how large it is, per dimension."""

    offset: Shape
    shape: Shape

    def union(self, other: Patch) -> Patch:
        """The smallest box that covers both."""
        offset = tuple(map(min, self.offset, other.offset))
        end = map(max, self._end(), other._end())
        return Patch(offset, tuple(stop - start for start, stop in zip(offset, end, strict=True)))

    def _end(self) -> Shape:
        return tuple(start + size for start, size in zip(self.offset, self.shape, strict=True))


@dataclass
class _Run:
    """Frames that follow each other, in their files as in the events: `seq_num` is None where no events are named."""

    seq_num: int | None
    start: int
    count: int

    @property
    def seq_stop(self) -> int:
        return (self.seq_num or 0) + self.count

    def continues_at(self, start: int, seq_num: int | None) -> bool:
        """Whether a frame at this place, of this event, is the next one."""
        known = None if self.seq_num is None else self.seq_stop
        return start == self.start + self.count and seq_num == known


class FrameOrder:
    """Which frames a node has, in the order of the events.

    That is the order of their sequence numbers. Where these repeat, a plan was rewound: then the frames come after
    those that are there, as the rows of the events do.
    """

    def __init__(self) -> None:
        self.count = 0
        self.follows = True  # each frame is the one after that before it in the files
        self._runs: list[_Run] = []
        self._rewound_at = 0  # from this run on no sequence number is there twice

    def add(self, start: int, count: int, seq_num: int | None, *, insert: bool = True) -> int:
        """Add frames from `start` on; returns the row of the first one. Without `insert` they are the last ones."""
        at, rewound = self._place(count, seq_num)
        if rewound or (at < len(self._runs) and not insert):
            self._rewound_at = at = len(self._runs)
        row = self._row(at)
        self.follows = self.follows and (not self._runs or (row == self.count and self._stop == start))
        before = self._runs[at - 1] if at > self._rewound_at else None
        if before is not None and before.continues_at(start, seq_num):
            before.count += count
        elif count:
            self._runs.insert(at, _Run(seq_num, start, count))
        self.count += count
        return row

    def row_of(self, count: int, seq_num: int | None) -> int:
        """The row of the first of these frames by the order of events."""
        return self._row(self._place(count, seq_num)[0])

    def is_next(self, start: int, seq_num: int | None) -> bool:
        """Whether a frame from there, of this event, would come after all others, in the files as in the events."""
        return not self._runs or (self.follows and start == self._stop and self.row_of(1, seq_num) == self.count)

    @property
    def repeats(self) -> bool:
        """Whether sequence numbers repeat."""
        return self._rewound_at > 0

    @property
    def first(self) -> int:
        """Where the first frame is in the files."""
        return self._runs[0].start if self._runs else 0

    @property
    def _stop(self) -> int:
        return self._runs[-1].start + self._runs[-1].count

    def _row(self, at: int) -> int:
        return self.count if at == len(self._runs) else sum(run.count for run in self._runs[:at])

    def _place(self, count: int, seq_num: int | None) -> tuple[int, bool]:
        """Where in the runs frames of events from this one on are to be, and whether there are such events already."""
        end = len(self._runs)
        if end == self._rewound_at or seq_num is None or self._runs[-1].seq_num is None:
            return end, False
        if seq_num >= self._runs[-1].seq_stop:
            return end, False
        at = bisect_left(self._runs, seq_num, self._rewound_at, key=_first_event)
        before = self._runs[at - 1] if at > self._rewound_at else None
        repeated = at == end or _first_event(self._runs[at]) < seq_num + count
        repeated = repeated or (before is not None and before.seq_stop > seq_num)
        return (end, True) if repeated else (at, False)

    @property
    def ranges(self) -> list[range]:
        """The places of the frames in their files."""
        ranges: list[range] = []
        for run in self._runs:
            if ranges and ranges[-1].stop == run.start:
                ranges[-1] = range(ranges[-1].start, run.start + run.count)
            else:
                ranges.append(range(run.start, run.start + run.count))
        return ranges

    @property
    def seq_nums(self) -> list[range]:
        """The sequence numbers of the frames' events, as far as they are known."""
        ranges: list[range] = []
        for run in self._runs:
            if run.seq_num is None:
                continue
            if ranges and ranges[-1].stop == run.seq_num:
                ranges[-1] = range(ranges[-1].start, run.seq_stop)
            else:
                ranges.append(range(run.seq_num, run.seq_stop))
        return ranges


def _first_event(run: _Run) -> int:
    return -1 if run.seq_num is None else run.seq_num


class AnnouncedFrames:
    """Which frames of which files the documents of a run have named, for whatever stream they were.

    Files that hold one array together are joined one after the other, whatever is in them. So it matters how many
    frames they have, and nothing but the documents can tell that.
    """

    def __init__(self) -> None:
        self._files: dict[Any, range] = {}

    def add(self, file: Any, numbers: range) -> None:
        """Take note that these frames are in a file."""
        known = self._files.get(file, numbers)
        self._files[file] = range(known.start, max(known.stop, numbers.stop))

    def of(self, file: Any) -> range:
        """From the first one named to the last."""
        return self._files.get(file, range(0))


@dataclass(frozen=True)
class _Joined:
    """Where the frames of a file are among those of all files of a key: frame `base` is the one at `place`."""

    base: int
    place: int


@dataclass
class _Files:
    """The numbered files of one resource, `file` for short."""

    uri: str
    template: str

    @property
    def file(self) -> tuple[str, str]:
        return self.uri, self.template

    def name(self, number: int) -> str:
        tail = self.template.format(number)
        return self.uri + (tail.lstrip("/") if self.uri.endswith("/") else tail)


class Consolidator:
    """Add up the files of one external data key of one stream to one Tiled data source.

    Subclass it, or one of its subclasses, for a new kind of file: list the `mimetypes`, implement `data_source`.
    Made from the key's first StreamResource and the stream's descriptor. Attributes: `data_key`; `metadata`, for the
    node; `notes`, where what was declared could not be followed; `announced`, which frames the run's documents have
    named, of all streams. Documents that do not describe data that can be served raise DocumentError, before anything
    has changed: what there was before goes on being served.
    """

    mimetypes: ClassVar[frozenset[str]] = frozenset()
    asset_parameter: ClassVar[str] = "data_uris"

    @classmethod
    def variant(cls, stream_resource: Document) -> type[Consolidator]:  # noqa: ARG003 - subclasses look at it
        """The class to use for this resource: a mimetype may stand for several layouts."""
        return cls

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        self.data_key: str = stream_resource["data_key"]
        self.mimetype: str = stream_resource["mimetype"]
        self._described: Document = descriptor["data_keys"].get(self.data_key, {})
        if self.mimetypes and self.mimetype not in self.mimetypes:
            raise self._wrong(f"{type(self).__name__} does not handle {self.mimetype}")
        self.parameters: dict[str, Any] = dict(stream_resource["parameters"])
        self.metadata: dict[str, Any] = {}
        self.notes: list[str] = []
        if self.parameters.get("spec"):
            self.metadata["spec"] = self.parameters["spec"]
        self.announced = AnnouncedFrames()
        self._rows = 0
        self._assets: dict[str, dict[str, Any]] = {}
        self._files: dict[tuple[str, str], _Files] = {}
        self._files_of: dict[str, _Files] = {}
        self._file_of: dict[str, Any] = {}  # by resource
        self._joined: dict[Any, _Joined] = {}  # by file

    @property
    def rows(self) -> int:
        """How many rows (datums) there are so far."""
        return self._rows

    @property
    def problem(self) -> str:
        """Why Tiled cannot read these files, as far as the run's documents tell, whatever it is told; "" if it can."""
        return ""

    def add_resource(self, stream_resource: Document) -> None:
        """Go on with another StreamResource of the same data key."""
        raise self._wrong(f"{type(self).__name__} takes one resource, not also {stream_resource['uid']!r}")

    def consume(self, stream_datum: Document) -> Patch:
        """Add the rows of a StreamDatum; return the box that they fill."""
        raise NotImplementedError

    def data_source(self) -> dict[str, Any]:
        """The data source as it is now, in types that JSON has. Its parts are shared: do not change them."""
        raise NotImplementedError

    def _wrong(self, what: str) -> DocumentError:
        advice = "Correct the documents with patches of the RunNormalizer."
        return DocumentError(f"External data of {self.data_key!r} cannot be registered: {what}. {advice}")

    def _note(self, text: str) -> None:
        note = f"Data key '{self.data_key}': {text}"
        if note not in self.notes:
            self.notes.append(note)

    def _indices(self, stream_datum: Document) -> range:
        indices = stream_datum["indices"]
        if not {"start", "stop"} <= indices.keys() or not 0 <= indices["start"] <= indices["stop"]:
            # Not which one: of frames that are read together, only the first document is at hand.
            raise self._wrong(f"a stream_datum has {indices!r} as indices")
        return range(indices["start"], indices["stop"])

    def _locate(self, stream_datum: Document, numbers: range) -> tuple[int, int]:
        """The number of the first of these frames in its file, and its place among the frames of all files.

        Some devices count from zero in each file, others go on counting: those whose first frame in a file has the
        number of all frames before.
        """
        file = self._file_of.get(stream_datum["stream_resource"])
        if file is None:
            file = next(reversed(self._file_of.values()), None)
        self.announced.add(file, numbers)
        joined = self._joined.get(file)
        if joined is None:
            place = sum(self.announced.of(known).stop - where.base for known, where in self._joined.items())
            goes_on = place > 0 and self.announced.of(file).start == place
            joined = self._joined[file] = _Joined(place if goes_on else 0, place)
            if goes_on:
                self._note(f"frame {place} is taken to be the first of further files, as there were {place} before.")
        number = numbers.start - joined.base
        if number < 0:
            raise self._wrong(f"frame {numbers.start} comes before the first of its file, {joined.base}")
        return number, joined.place + number

    def announce(self, stream_datum: Document) -> None:
        """Take note of frames that a file has, though they are left out."""
        file = self._file_of.get(stream_datum["stream_resource"])
        indices = stream_datum["indices"]
        if file is not None and {"start", "stop"} <= indices.keys():
            self.announced.add(file, range(indices["start"], indices["stop"]))

    def _has_room(self, file: Any, stop: int) -> bool:
        """Whether a file can have so many frames without reaching into the next one."""
        place = self._joined[file].place
        return all(where.place <= place or where.place >= stop for where in self._joined.values())

    def _add_assets(self, uris: Iterable[str]) -> None:
        """Add files; one that is there already is there once."""
        common = {"is_directory": False, "parameter": self.asset_parameter}
        for uri in uris:
            if uri in self._assets:
                continue
            if len(self._assets) >= MAX_FILES:
                raise self._wrong(f"it has more than {MAX_FILES} files")
            self._assets[uri] = {"data_uri": uri, **common, "num": len(self._assets)}

    def _add_repeated_assets(self, uris: list[str]) -> None:
        """Add files, one that is there already once more: by another spelling, since Tiled keeps each URI once."""
        if len(self._assets) + len(uris) > MAX_FILES:
            raise self._wrong(f"it has more than {MAX_FILES} files")
        for uri in uris:
            spelled = uri
            while spelled in self._assets:
                folder, _, name = spelled.rpartition("/")
                spelled = f"{folder}/./{name}"
            self._add_assets([spelled])

    def _add_numbered_files(self, stream_resource: Document, template: str) -> None:
        """Take in a resource whose files are named by its uri and a template."""
        files = _Files(stream_resource["uri"], template)
        if _WIDE_NUMBER.search(template):
            raise self._wrong(f"template {template!r:.200} asks for a number of a thousand digits or more")
        try:
            files.name(0)
        except (LookupError, ValueError) as error:
            raise self._wrong(f"template {template!r} cannot be filled in with a number ({error})") from error
        self._files_of[stream_resource["uid"]] = self._files.setdefault(files.file, files)
        self._file_of[stream_resource["uid"]] = files.file

    def _numbered_uris(self, stream_datum: Document, numbers: range) -> list[str]:
        if numbers.stop - numbers.start > MAX_FILES:
            raise self._wrong(f"stream_datum {stream_datum.get('uid')!r} has more than {MAX_FILES} files")
        files = self._files_of.get(stream_datum["stream_resource"]) or next(reversed(self._files_of.values()))
        return [files.name(number) for number in numbers]

    def _source(self, family: str, structure: Document, parameters: Document, properties: Document) -> dict[str, Any]:
        layout = {"structure_family": family, "structure": structure, "mimetype": self.mimetype}
        reading = {"parameters": _plain(parameters), "properties": properties, "assets": list(self._assets.values())}
        return {**layout, **reading, "management": "external"}


class ArrayConsolidator(Consolidator):
    """Files that together hold one array; as it is, each resource is one file.

    Every datum is one step along a new first axis ('stack'), or `datum_shape[0]` steps along the existing one
    ('concat'). StreamResource parameters used: join_method, join_chunks, chunk_shape, multiplier.

    Subclasses whose adapter can be told which rows of the files to serve, in any order, say so in `adapter_parameters`
    by `selected_rows`, and set `selects_rows`. For others the documents have to name all frames of the files in order.
    """

    join_method: str = "stack"
    join_chunks: bool = True
    selects_rows: ClassVar[bool] = False

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        super().__init__(stream_resource, descriptor)
        self.in_order_of_events = True
        self.join_method = self.parameters.get("join_method", self.join_method)
        self.join_chunks = self.parameters.get("join_chunks", self.join_chunks)
        if self.join_method not in {"stack", "concat"}:
            raise self._wrong(f"join_method is {self.join_method!r}, neither 'stack' nor 'concat'")
        if not self._described:
            raise self._wrong("its stream's descriptor has no such data key")
        self.datum_shape = self._datum_shape()
        self.data_type = self._data_type()
        self.dims = self._dims()
        self._declared_chunk: Shape = self._as_chunk_shape(self.parameters.get("chunk_shape"))
        self.chunk_shape = self._chunk_shape()
        if len(self.chunk_shape) > len(self.shape):
            self._note(f"chunk_shape {self.chunk_shape} has more dimensions than its array; the first ones count.")
            self.chunk_shape = self.chunk_shape[: len(self.shape)]
        self.frames = FrameOrder()
        self._add_resource_files(stream_resource)

    @property
    def shape(self) -> Shape:
        """Shape of the whole array, skipped rows included."""
        if self.join_method == "concat" and self.datum_shape:
            return (self._rows * self.datum_shape[0], *self.datum_shape[1:])
        return (self._rows, *self.datum_shape)

    @property
    def chunks(self) -> list[list[int]]:
        """Chunk sizes along each dimension: `chunk_shape` as often as it fits, one chunk where it says nothing."""
        shape, chunk = self.shape, self.chunk_shape
        chunks = [_sizes(size, step) for size, step in zip(shape, chunk, strict=False)]
        if chunk and self.datum_shape and self.join_method == "concat" and not self.join_chunks:
            chunks[0] = _sizes(self.datum_shape[0], chunk[0], self._rows)
        return chunks + [[size] for size in shape[len(chunk) :]]

    def add_resource(self, stream_resource: Document) -> None:
        """Go on with another file."""
        chunk_shape = self._as_chunk_shape(stream_resource["parameters"].get("chunk_shape"))
        if chunk_shape != self._declared_chunk:
            self._note(f"chunk_shape differs between its resources; {self._declared_chunk} counts.")
        self._add_resource_files(stream_resource)

    def consume(self, stream_datum: Document) -> Patch:
        """Add the rows of a StreamDatum; return the box that they fill."""
        indices = self._indices(stream_datum)
        self._check_size(len(indices))
        seq_num = _seq_num(stream_datum, len(indices))
        _, place = self._locate(stream_datum, indices)
        self._check_place(stream_datum, indices, place, seq_num)
        return self._insert(place, len(indices), seq_num)

    @property
    def problem(self) -> str:
        """Which file has turned out to have more frames than it was taken to have when another was joined to it."""
        places = [*(where.place for where in self._joined.values())][1:]
        for (file, where), following in zip(self._joined.items(), places, strict=False):
            if self.announced.of(file).stop - where.base > following - where.place:
                return (
                    f"{file[0]} has more frames than were announced before those of the next file, and Tiled joins all."
                )
        return ""

    def selected_rows(self) -> str | list[int] | None:
        """Which rows of the files the node has: a slice, or their numbers in order; None for all from the first on."""
        ranges, step = self.frames.ranges, self.rows_per_datum
        if len(ranges) > 1:
            return [row for part in ranges for row in range(part.start * step, part.stop * step)]
        if not ranges or (ranges[0].start == 0 and not self._reshapes):
            return None
        return f"{ranges[0].start * step}:{ranges[0].stop * step}"

    @property
    def rows_per_datum(self) -> int:
        """How many rows of its file one datum takes."""
        return self._rows_per_datum()[0]

    @property
    def _reshapes(self) -> bool:
        """Whether Tiled makes another shape of the file's rows, for which there must not be more rows than are named.

        Without that it serves as many as it was told.
        """
        step, certain = self._rows_per_datum()
        return certain and self.join_method == "stack" and (step > 1 or self.datum_shape[:1] == (1,))

    def _rows_per_datum(self) -> tuple[int, bool]:
        """Rows that a datum takes in its file, and whether that is certain.

        A datum of shape (4,) may be one row of a file of shape (n, 4), or four of one of shape (4 n,): as many
        dimensions as the file has, has its chunk shape.
        """
        shape, dimensions = self.datum_shape, len(self._declared_chunk)
        if not shape or shape[0] == 1:
            return 1, True
        if self.join_method == "concat" or self.parameters.get("multiplier") or dimensions == len(shape):
            return shape[0], True
        return 1, dimensions == len(shape) + 1 or (not dimensions and len(shape) == 2)

    def _check_size(self, more: int) -> None:
        """Refuse what could not be described, before it is counted."""
        rows = self._rows + more
        size = rows * self.datum_shape[0] if self.join_method == "concat" and self.datum_shape else rows
        if size // (self.chunk_shape[0] if self.chunk_shape else size or 1) > MAX_CHUNKS:
            raise self._wrong(f"it would have more than {MAX_CHUNKS} chunks; chunk_shape is {self.chunk_shape}")

    def _check_place(self, stream_datum: Document, indices: range, place: int, seq_num: int | None) -> None:
        """Refuse frames that Tiled's adapter could not serve where they belong."""
        file = self._file_of.get(stream_datum["stream_resource"])
        if file in self._joined and not self._has_room(file, place + len(indices)):
            raise self._wrong(f"frames {_span(indices)} of {file} come after those of further files")
        frames = self.frames
        follows = frames.is_next(place, seq_num)
        if not indices or (follows and (place if not frames.count else frames.first) == 0):
            return
        if not self.selects_rows:
            what = f"frames {_span(indices)} are not the next ones of its files"
            raise self._wrong(f"{what}, and Tiled gives no other rows of {self.mimetype} files")
        if not follows and (frames.count + len(indices)) * self.rows_per_datum > MAX_LISTED_ROWS:
            raise self._wrong(f"more than {MAX_LISTED_ROWS} rows of its files do not follow each other")
        if not self._rows_per_datum()[1]:
            self._note("its documents do not say how many rows of a file make a frame; one is taken to.")

    def _insert(self, place: int, count: int, seq_num: int | None, *, insert: bool = True) -> Patch:
        """Count frames; return the box that they fill, and with it those that come after them."""
        first = self.frames.add(place, count, seq_num, insert=insert)
        self._rows += count
        rows, *rest = self.shape
        step = self.datum_shape[0] if self.join_method == "concat" and self.datum_shape else 1
        return Patch((first * step, *[0] * len(rest)), (rows - first * step, *rest))

    def adapter_parameters(self) -> dict[str, Any]:
        """What Tiled's adapter has to be told to read the files."""
        return {}

    def data_source(self) -> dict[str, Any]:
        """The data source as it is now, of structure family 'array'."""
        array = {"data_type": self.data_type, "shape": list(self.shape), "chunks": self.chunks}
        structure = {**array, "dims": self.dims, "resizable": False}
        return self._source("array", structure, self.adapter_parameters(), self._properties())

    def _properties(self) -> dict[str, Any]:
        return {}

    def _add_resource_files(self, stream_resource: Document) -> None:
        uri = stream_resource["uri"]
        self._file_of[stream_resource["uid"]] = uri, stream_resource["parameters"].get("dataset")
        self._add_assets([uri])
        if len(self._assets) > 1:
            self._note("its frames are in several files, each of which is taken to have no others than were announced.")

    def _datum_shape(self) -> Shape:
        """Shape of one datum, with the `multiplier` (frames per datum) as its first dimension."""
        sizes = tuple(self._described.get("shape") or ())
        if None in sizes:
            raise self._wrong(f"its shape {sizes} varies, which {self.mimetype} files cannot")
        shape: Shape = tuple(int(size) for size in sizes)
        if shape == (1,) and self.join_method == "stack":
            shape = ()
        multiplier = self.parameters.get("multiplier")
        if not multiplier:
            return shape
        self.metadata["frame_per_point"] = multiplier
        frame = shape[1:] if shape[:1] in {(1,), (multiplier,)} else shape
        return (int(multiplier), *frame)

    def _data_type(self) -> dict[str, Any]:
        """The element type as Tiled spells it; float64 when the descriptor does not say."""
        declared = self._described.get("dtype_numpy")
        try:
            dtype = numpy.dtype("<f8") if declared is None else declared_dtype(declared)
            structured = dtype.fields is not None
            described = asdict((StructDtype if structured else BuiltinDtype).from_numpy_dtype(dtype))
        except (TypeError, ValueError) as error:
            raise self._wrong(f"its dtype_numpy {declared!r} is not a type that Tiled serves ({error})") from error
        return dict(json.loads(json.dumps(described)))

    def _dims(self) -> list[str] | None:
        dims = list(self._described.get("dims") or ())
        if dims and self.join_method == "stack":
            dims = ["time", *dims]
        if len(dims) not in {0, len(self.shape)}:
            self._note(f"{len(self.shape)} dimensions do not have the names {dims}.")
            return None
        return dims or None

    def _chunk_shape(self) -> Shape:
        return self._declared_chunk

    def _as_chunk_shape(self, declared: Any) -> Shape:
        """A chunk shape as it was declared, or nothing where that is none."""
        sizes = declared.tolist() if isinstance(declared, numpy.ndarray) else declared
        if not sizes:
            return ()
        if isinstance(sizes, list | tuple) and all(_is_size(size) for size in sizes):
            return tuple(int(size) for size in sizes)
        self._note(f"chunk_shape {declared!r:.200} is none; it is taken to be unknown.")
        return ()


class CSVConsolidator(ArrayConsolidator):
    """Tables of numbers in text files without a header, one below the other.

    Tiled's adapter reads each file as a whole, as one chunk, and fails if it has other rows than that.
    """

    mimetypes = frozenset({"text/csv;header=absent"})
    join_method = "concat"
    join_chunks = False

    _READER_OPTIONS: ClassVar = (
        *("assume_missing", "comment", "delimiter", "dtype", "encoding", "header"),
        *("names", "nrows", "sep", "skipfooter", "skiprows", "usecols"),
    )

    @property
    def chunks(self) -> list[list[int]]:
        """Chunk sizes along each dimension: along the first one a chunk for each file."""
        rows = self.datum_shape[0] if self.join_method == "concat" and self.datum_shape else 1
        return [[count * rows for count in self._datums_of_files().values()] or [0], *super().chunks[1:]]

    @property
    def problem(self) -> str:
        """Which file has datums that are not in this node, as another stream has them or they were left out."""
        for file, count in self._datums_of_files().items():
            announced = self.announced.of(file).stop - self._joined[file].base
            if announced > count:
                named = "is" if count == 1 else "are"
                what = f"{file[0]} has {announced} datums, of which {count} {named} named"
                return f"{what}, and Tiled reads such files as a whole."
        return super().problem

    def consume(self, stream_datum: Document) -> Patch:
        """Add the rows of a StreamDatum; return the box that they fill."""
        self._note("Tiled reads its files as a whole; they are taken to have no other rows than were announced.")
        return super().consume(stream_datum)

    def data_source(self) -> dict[str, Any]:
        """The data source as it is now, with the files that have rows, and the first one."""
        source = super().data_source()
        return {**source, "assets": source["assets"][: max(1, len(self._datums_of_files()))]}

    def _datums_of_files(self) -> dict[Any, int]:
        """How many datums each file has that has any."""
        begun = {file: where.place for file, where in self._joined.items() if where.place < self._rows}
        ends = [*begun.values(), self._rows][1:]
        return {file: end - place for (file, place), end in zip(begun.items(), ends, strict=True)}

    def adapter_parameters(self) -> dict[str, Any]:
        """Options of the CSV reader."""
        options = {"header": None, **self.parameters}
        return {name: value for name, value in options.items() if name in self._READER_OPTIONS}


class _HDF5Dataset(ArrayConsolidator):
    mimetypes = frozenset({"application/x-hdf5"})

    def adapter_parameters(self) -> dict[str, Any]:
        """Where the data is in the files, and how to open them."""
        given = self.parameters
        if "dataset" not in given:
            raise self._wrong("its StreamResource has no 'dataset' among its parameters")
        optional = {name: given[name] for name in ("slice", "squeeze") if given.get(name)}
        if selected := self._selection(self.selected_rows()):
            optional["slice"] = selected
        swmr, locking = given.get("swmr", True), given.get("locking")
        return {"dataset": given["dataset"], **optional, "swmr": swmr, "locking": locking}

    def _selection(self, rows: str | list[int] | None) -> str | list[int] | None:
        """The adapter's `slice`: of these rows what the documents want of them."""
        wanted = self.parameters.get("slice")
        if not wanted or rows is None:
            return rows
        _, colon, rest = str(wanted).partition(":,")
        return f"{rows},{rest}" if colon and self._slices_frames else None

    @property
    def _slices_frames(self) -> bool:
        """Whether what the documents want of their frames, if anything, can be selected beside rows."""
        wanted = self.parameters.get("slice")
        return not wanted or str(wanted).strip().startswith(":,")

    def _check_place(self, stream_datum: Document, indices: range, place: int, seq_num: int | None) -> None:
        super()._check_place(stream_datum, indices, place, seq_num)
        follows = self.frames.is_next(place, seq_num)
        from_first = follows and (self.frames.first if self.frames.count else place) == 0
        wanted = self.parameters.get("slice")
        if indices and wanted and not from_first and not (follows and self._slices_frames):
            raise self._wrong(f"frames {_span(indices)} cannot be selected beside its slice {wanted!r}")


class HDF5Consolidator(_HDF5Dataset):
    """Datasets of the same path in HDF5 files, one file per resource.

    StreamResource parameters used besides those of arrays: dataset (required), slice, squeeze, swmr, locking.
    A `template` makes it a `HDF5SequenceConsolidator`.
    """

    selects_rows = True

    @classmethod
    def variant(cls, stream_resource: Document) -> type[Consolidator]:
        """One file, or with a `template` several."""
        return HDF5SequenceConsolidator if stream_resource["parameters"].get("template") else cls

    def add_resource(self, stream_resource: Document) -> None:
        """Go on with another file, of the same dataset."""
        first, dataset = self.parameters.get("dataset"), stream_resource["parameters"].get("dataset")
        if dataset != first:
            raise self._wrong(f"its resources have different datasets: {first!r}, {dataset!r}")
        super().add_resource(stream_resource)


class SequenceConsolidator(ArrayConsolidator):
    """Numbered files, one or more per datum.

    StreamResource parameters used besides those of arrays: template (required), filename, files_per_datum.
    """

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        self._split = False
        super().__init__(stream_resource, descriptor)
        self.files_per_datum = self._files_per_datum()

    def add_resource(self, stream_resource: Document) -> None:
        """Go on with the files of another resource, with its own template."""
        before, self.parameters = self.parameters, dict(stream_resource["parameters"])
        try:
            self._add_resource_files(stream_resource)
        except DocumentError:
            self.parameters = before
            raise
        self.files_per_datum = self._files_per_datum()

    def consume(self, stream_datum: Document) -> Patch:
        """Add the rows of a StreamDatum and their files; return the box that they fill."""
        indices, per_datum = self._indices(stream_datum), self.files_per_datum
        if len(indices) * per_datum > MAX_FILES:
            raise self._wrong(f"stream_datum {stream_datum.get('uid')!r} has more than {MAX_FILES} files")
        self._check_size(len(indices))
        number, _ = self._locate(stream_datum, indices)
        numbers = range(number * per_datum, (number + len(indices)) * per_datum)
        self._add_repeated_assets(self._numbered_uris(stream_datum, numbers))
        several = self.join_method == "stack" and len(self.datum_shape) > 1 and per_datum > 1
        self._split = self._split or (several and self.datum_shape[0] % per_datum == 0)
        return self._append(len(indices), _seq_num(stream_datum, len(indices)))

    @property
    def problem(self) -> str:
        """None: whatever else there is, a sequence has the files that were named."""
        return ""

    def selected_rows(self) -> None:
        """All rows: which frames there are is said by the files."""

    def _append(self, count: int, seq_num: int | None) -> Patch:
        """Count frames after all others: files are numbered once and for all."""
        if count and self.frames.row_of(count, seq_num) != self._rows:
            self.in_order_of_events = False
            self._note("its frames are in the order in which they were announced, not in that of the events.")
        return self._insert(self._rows, count, seq_num, insert=False)

    def _properties(self) -> dict[str, Any]:
        """Where a datum is split over files: how the files divide the array, one entry per file."""
        if not self._split:
            return {}
        frames = self._frames_per_file()
        inner = [[size] for size in self.datum_shape[1:]]
        return {"chunks": [[1] * len(self._assets), *([[frames]] if frames > 1 else []), *inner]}

    def _template(self) -> str:
        template = self.parameters.get("template")
        if not template:
            raise self._wrong("its StreamResource has no 'template' among its parameters")
        return compile_template(template, self.parameters.get("filename") or "")

    def _add_resource_files(self, stream_resource: Document) -> None:
        self._add_numbered_files(stream_resource, self._template())

    def _chunk_shape(self) -> Shape:
        chunk = super()._chunk_shape() or (1,)
        if self.join_method == "stack":
            return chunk
        if not self.datum_shape:
            raise self._wrong("files can be joined by 'concat' only when each holds an array; its shape is ()")
        frames = self.datum_shape[0]
        if chunk[0] > 0 and frames % chunk[0]:
            problem = f"{chunk[0]} frames per file do not divide a datum of {frames}"
            self._note(f"{problem}; each datum is taken to be one file.")
            return (frames,)
        return chunk

    def _files_per_datum(self) -> int:
        frames = self.datum_shape[0] if self.datum_shape else 1
        return int(self.parameters.get("files_per_datum") or max(frames // self._frames_per_file(), 1))

    def _frames_per_file(self) -> int:
        """How many steps along a datum's first axis one file holds."""
        datum, chunk = self.datum_shape, self.chunk_shape
        if not datum:
            return 1
        if explicit := self.parameters.get("files_per_datum"):
            return max(datum[0] // int(explicit), 1)
        if self.join_method == "concat":
            return chunk[0]
        if self.metadata.get("frame_per_point"):
            return 1
        divides = len(chunk) == len(datum) and chunk[1:] == datum[1:] and datum[0] % chunk[0] == 0
        return chunk[0] if divides else datum[0]


class HDF5SequenceConsolidator(_HDF5Dataset, SequenceConsolidator):
    """Datasets of the same path in numbered HDF5 files."""


class TIFFConsolidator(SequenceConsolidator):
    """Numbered TIFF images."""

    mimetypes = frozenset({"multipart/related;type=image/tiff"})


class JPEGConsolidator(SequenceConsolidator):
    """Numbered JPEG images."""

    mimetypes = frozenset({"multipart/related;type=image/jpeg"})


class NPYConsolidator(SequenceConsolidator):
    """Numbered NPY files of one frame each, named as the `NPY_SEQ` spec has it."""

    mimetypes = frozenset({"multipart/related;type=application/x-npy"})

    def _template(self) -> str:
        return compile_template("%s_%d.npy", self.parameters.get("filename") or "")

    def _chunk_shape(self) -> Shape:
        frame = tuple(self._described.get("shape") or ())
        return (1, *frame)[: len(self.shape)]


class BytesConsolidator(Consolidator):
    """Files of any kind, to be downloaded as they are: with a `template` one per datum, otherwise one per resource."""

    mimetypes = frozenset({"application/octet-stream"})

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        super().__init__(stream_resource, descriptor)
        self.add_resource(stream_resource)

    def add_resource(self, stream_resource: Document) -> None:
        """Go on with the file or files of another resource."""
        template, filename = (stream_resource["parameters"].get(name) or "" for name in ("template", "filename"))
        self._add_numbered_files(stream_resource, compile_template(template, filename))

    def consume(self, stream_datum: Document) -> Patch:
        """Add the files of a StreamDatum; return their numbers."""
        indices = self._indices(stream_datum)
        if len(indices) > MAX_FILES:
            raise self._wrong(f"stream_datum {stream_datum.get('uid')!r} has more than {MAX_FILES} files")
        number, _ = self._locate(stream_datum, indices)
        uris = self._numbered_uris(stream_datum, range(number, number + len(indices)))
        # Without a template all datums of a resource are in one file.
        add = self._add_repeated_assets if len(set(uris)) == len(uris) and self._is_numbered else self._add_assets
        add(uris)
        first, self._rows = self._rows, self._rows + len(indices)
        return Patch((first,), (len(indices),))

    @property
    def _is_numbered(self) -> bool:
        return any("{" in files.template for files in self._files.values())

    def data_source(self) -> dict[str, Any]:
        """The data source as it is now, of structure family 'bytes'."""
        return self._source("bytes", {}, {}, {})


_INCLUDED: Final = (
    *(BytesConsolidator, CSVConsolidator, HDF5Consolidator),
    *(JPEGConsolidator, NPYConsolidator, TIFFConsolidator),
)
REGISTRY: Final[Mapping[str, type[Consolidator]]] = {
    mimetype: consolidator for consolidator in _INCLUDED for mimetype in consolidator.mimetypes
}


def consolidator_for(
    stream_resource: Document, descriptor: Document, registry: Mapping[str, type[Consolidator]] | None = None
) -> Consolidator:
    """The consolidator for a data key, by the mimetype of its first StreamResource.

    `registry` has classes by mimetype and goes before `REGISTRY`. A mimetype that neither has is taken for arrays, one
    file per resource: whether Tiled can read them is the business of the adapters its server is configured with.
    """
    mimetype = stream_resource["mimetype"]
    consolidator = {**REGISTRY, **(registry or {})}.get(mimetype, ArrayConsolidator)
    return consolidator.variant(stream_resource)(stream_resource, descriptor)


def compile_template(template: str, filename: str = "") -> str:
    """A template with one number in the style of `str.format`, from that or from the style of C.

    The first '%s' stands for the file name, further ones for nothing: "%s%s_%06d.tif" becomes "name_{:06d}.tif".
    """
    literal = filename.replace("{", "{{").replace("}", "}}")
    before, slot, after = template.replace("{:s}", "%s", 1).partition("%s")
    template = before + (literal if slot else "") + after.replace("%s", "")
    return re.sub(r"%([-+#0 ]*)(\d*)(?:\.(\d+))?d", _number_field, template)


def _number_field(match: re.Match[str]) -> str:
    flags, width, digits = match.groups()
    sign = "+" if "+" in flags else " " if " " in flags else ""
    if digits:
        return f"{{:0{max(int(digits), int(width or 0))}d}}"
    align, zero = ("<", "") if "-" in flags else ("", "0" if "0" in flags else "")
    return f"{{:{align}{sign}{zero}{width}d}}"


def _sizes(total: int, step: int, repeat: int = 1) -> list[int]:
    """Pieces of at most `step` that make up `total`, and all that `repeat` times; [0] for nothing."""
    rest = total % step
    return ([step] * (total // step) + [rest] * (rest > 0)) * repeat or [0]


def _seq_num(stream_datum: Document, count: int) -> int | None:
    """The sequence number of a StreamDatum's first event; None unless there are as many as there are frames."""
    numbers = stream_datum.get("seq_nums")
    if not isinstance(numbers, Mapping):
        return None
    start, stop = numbers.get("start"), numbers.get("stop")
    return start if isinstance(start, int) and isinstance(stop, int) and stop - start == count else None


def _is_size(value: Any) -> bool:
    return isinstance(value, int | numpy.integer) and not isinstance(value, bool) and bool(value > 0)


def _span(numbers: range) -> str:
    return f"{numbers.start} to {numbers.stop - 1}"


def _plain(value: Any) -> Any:
    """A parameter in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, numpy.ndarray | numpy.generic):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
