"""Consolidate the external files of a data key, announced document by document, into one Tiled data source."""

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
"""The largest number of files of one data key; without a limit, one small document could claim any number of files."""

MAX_CHUNKS: Final = 10_000_000
"""The largest number of chunks along one dimension."""

MAX_LISTED_ROWS: Final = 200_000
"""The largest number of HDF5 rows that are listed one by one for Tiled, because they are not consecutive."""


@dataclass(frozen=True)
class Patch:
    """A region of an array: its offset and its shape, one number for each dimension."""

    offset: Shape
    shape: Shape

    def union(self, other: Patch) -> Patch:
        """Return the smallest region that covers both regions."""
        offset = tuple(map(min, self.offset, other.offset))
        end = map(max, self._end_offset(), other._end_offset())
        return Patch(offset, tuple(stop - start for start, stop in zip(offset, end, strict=True)))

    def _end_offset(self) -> Shape:
        return tuple(start + size for start, size in zip(self.offset, self.shape, strict=True))


@dataclass
class _Run:
    """Consecutive frames: positions `start` onwards in the files, of the events from `seq_num` on.

    `seq_num` is None if the documents name no events.
    """

    seq_num: int | None
    start: int
    count: int

    @property
    def seq_stop(self) -> int:
        """The sequence number after that of the last frame's event."""
        return (self.seq_num or 0) + self.count

    def continues_at(self, start: int, seq_num: int | None) -> bool:
        """Return whether a frame at this position, of this event, is the next one."""
        known = None if self.seq_num is None else self.seq_stop
        return start == self.start + self.count and seq_num == known


class FrameOrder:
    """The frames of a node, in the order of their events.

    Frames are sorted by sequence number. A repeated sequence number means that a plan was rewound; its frames come
    after all earlier ones, as the rows of the events do.
    """

    def __init__(self) -> None:
        self.count = 0
        # Whether the frames, in the order of the rows, are consecutive in the files.
        self.follows = True
        self._runs: list[_Run] = []
        # The index in `_runs` from which on sequence numbers increase and do not repeat.
        self._rewound_at = 0

    def add(self, start: int, count: int, seq_num: int | None, *, insert: bool = True) -> int:
        """Add consecutive frames; return the row of the first one.

        Parameters
        ----------
        start
            The position of the first frame in the files.
        count
            The number of frames.
        seq_num
            The sequence number of the first frame's event, or None if unknown.
        insert
            Whether the frames may be inserted before others. Without it, they are added at the end.
        """
        at, rewound = self._insertion_index(count, seq_num)
        if rewound or (at < len(self._runs) and not insert):
            self._rewound_at = at = len(self._runs)
        row = self._first_row(at)
        self.follows = self.follows and (not self._runs or (row == self.count and self._stop_index == start))
        before = self._runs[at - 1] if at > self._rewound_at else None
        if before is not None and before.continues_at(start, seq_num):
            before.count += count
        elif count:
            self._runs.insert(at, _Run(seq_num, start, count))
        self.count += count
        return row

    def row_of(self, count: int, seq_num: int | None) -> int:
        """Return the row that the first of these frames would have in the order of the events."""
        return self._first_row(self._insertion_index(count, seq_num)[0])

    def is_next(self, start: int, seq_num: int | None) -> bool:
        """Return whether a frame at this position, of this event, comes next both in the files and in the events."""
        return not self._runs or (self.follows and start == self._stop_index and self.row_of(1, seq_num) == self.count)

    @property
    def repeats(self) -> bool:
        """Whether any sequence number is repeated."""
        return self._rewound_at > 0

    @property
    def first(self) -> int:
        """The position of the first frame in the files."""
        return self._runs[0].start if self._runs else 0

    @property
    def _stop_index(self) -> int:
        return self._runs[-1].start + self._runs[-1].count

    def _first_row(self, at: int) -> int:
        return self.count if at == len(self._runs) else sum(run.count for run in self._runs[:at])

    def _insertion_index(self, count: int, seq_num: int | None) -> tuple[int, bool]:
        """Return the index in `_runs` for frames of the events from `seq_num` on, and whether any has a frame already.

        In the second case, the index is the end of `_runs`.
        """
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
        """The positions of the frames in the files, in the order of the rows."""
        ranges: list[range] = []
        for run in self._runs:
            if ranges and ranges[-1].stop == run.start:
                ranges[-1] = range(ranges[-1].start, run.start + run.count)
            else:
                ranges.append(range(run.start, run.start + run.count))
        return ranges

    @property
    def seq_nums(self) -> list[range]:
        """The known sequence numbers of the frames' events, in the order of the rows."""
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
    """The frames that the documents of a run have named, by file, over all streams.

    Tiled joins the files of an array with all frames that they contain. The position of a frame therefore depends on
    the number of frames in the files before, which only the documents tell.
    """

    def __init__(self) -> None:
        self._files: dict[Any, range] = {}

    def add(self, file: Any, numbers: range) -> None:
        """Record that a file contains these frames."""
        known = self._files.get(file, numbers)
        self._files[file] = range(known.start, max(known.stop, numbers.stop))

    def of(self, file: Any) -> range:
        """Return the range from the first to the last frame named for a file; an empty range if there is none."""
        return self._files.get(file, range(0))


@dataclass(frozen=True)
class _Joined:
    """The position of a file's frames among those of all files of a data key: frame number `base` is at `place`."""

    base: int
    place: int


@dataclass
class _Files:
    """The numbered files of one resource, named by its URI and a template for their numbers."""

    uri: str
    template: str

    @property
    def file(self) -> tuple[str, str]:
        """The key by which these files are known, as if they were one file."""
        return self.uri, self.template

    def name(self, number: int) -> str:
        """Return the URI of the file with this number."""
        tail = self.template.format(number)
        return self.uri + (tail.lstrip("/") if self.uri.endswith("/") else tail)


class Consolidator:
    """Base class of consolidators: one Tiled data source for the files of one external data key in one stream.

    To support a new kind of file, subclass this class or one of its subclasses: list the `mimetypes`, and implement
    `consume` and `data_source`. If a document describes data that Tiled cannot serve, the constructor and the methods
    raise DocumentError and leave the data source unchanged, so that earlier data stays available.

    Parameters
    ----------
    stream_resource
        The first StreamResource document of the data key.
    descriptor
        The descriptor of the stream.

    Attributes
    ----------
    mimetypes
        The mimetypes that the class handles; empty for any.
    asset_parameter
        The name of the parameter by which Tiled's adapter receives the files.
    data_key
        The data key.
    mimetype
        The mimetype of the files.
    parameters
        The parameters of the StreamResource.
    metadata
        Metadata for the node.
    notes
        Notes on declarations that could not be followed.
    announced
        The frames that the run's documents have named, over all streams.
    """

    mimetypes: ClassVar[frozenset[str]] = frozenset()
    asset_parameter: ClassVar[str] = "data_uris"

    @classmethod
    def variant(cls, stream_resource: Document) -> type[Consolidator]:  # noqa: ARG003 - subclasses look at it
        """Return the class for a resource, because one mimetype may stand for several layouts."""
        return cls

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        self.data_key: str = stream_resource["data_key"]
        self.mimetype: str = stream_resource["mimetype"]
        self._described: Document = descriptor["data_keys"].get(self.data_key, {})
        if self.mimetypes and self.mimetype not in self.mimetypes:
            raise self._registration_error(f"{type(self).__name__} does not handle {self.mimetype}")
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
        # By uid of the resource.
        self._file_of: dict[str, Any] = {}
        # By file, in the order in which they are joined.
        self._joined: dict[Any, _Joined] = {}

    @property
    def rows(self) -> int:
        """The number of rows (datums) so far."""
        return self._rows

    @property
    def problem(self) -> str:
        """The reason why Tiled cannot serve these files, according to the run's documents; "" if it can."""
        return ""

    def add_resource(self, stream_resource: Document) -> None:
        """Add another StreamResource of the same data key.

        Raises
        ------
        DocumentError
            The files of the resource cannot be joined to the others. This base class accepts one resource only.
        """
        raise self._registration_error(f"{type(self).__name__} takes one resource, not also {stream_resource['uid']!r}")

    def consume(self, stream_datum: Document) -> Patch:
        """Add the rows of a StreamDatum.

        Returns
        -------
        Patch
            The region of the array that changes.

        Raises
        ------
        DocumentError
            Tiled cannot serve these rows.
        """
        raise NotImplementedError

    def data_source(self) -> dict[str, Any]:
        """Return the current data source, in JSON types.

        Callers must not change it, because its parts are shared.
        """
        raise NotImplementedError

    def _registration_error(self, what: str) -> DocumentError:
        advice = "Correct the documents with patches of the RunNormalizer."
        return DocumentError(f"External data of {self.data_key!r} cannot be registered: {what}. {advice}")

    def _add_note(self, text: str) -> None:
        note = f"Data key '{self.data_key}': {text}"
        if note not in self.notes:
            self.notes.append(note)

    def _checked_indices(self, stream_datum: Document) -> range:
        indices = stream_datum["indices"]
        if not {"start", "stop"} <= indices.keys() or not 0 <= indices["start"] <= indices["stop"]:
            # The message does not name the document: of documents decoded by column, only the first is available.
            raise self._registration_error(f"a stream_datum has {indices!r} as indices")
        return range(indices["start"], indices["stop"])

    def _locate_frames(self, stream_datum: Document, numbers: range) -> tuple[int, int]:
        """Return the number of the first of these frames in its file, and its position among the frames of all files.

        Some detectors number the frames of each file from 0, others continue from file to file. The latter is assumed
        if the first frame of a file has the number of frames in all files before.
        """
        file = self._file_of.get(stream_datum["stream_resource"])
        if file is None:
            file = next(reversed(self._file_of.values()), None)
        self.announced.add(file, numbers)
        joined = self._joined.get(file)
        if joined is None:
            place = sum(self.announced.of(known).stop - where.base for known, where in self._joined.items())
            accepts_more = place > 0 and self.announced.of(file).start == place
            joined = self._joined[file] = _Joined(place if accepts_more else 0, place)
            if accepts_more:
                self._add_note(
                    f"frame {place} is taken to be the first of further files, as there were {place} before."
                )
        number = numbers.start - joined.base
        if number < 0:
            raise self._registration_error(f"frame {numbers.start} comes before the first of its file, {joined.base}")
        return number, joined.place + number

    def announce(self, stream_datum: Document) -> None:
        """Record frames that a file contains but that are left out of the data source."""
        file = self._file_of.get(stream_datum["stream_resource"])
        indices = stream_datum["indices"]
        if file is not None and {"start", "stop"} <= indices.keys():
            self.announced.add(file, range(indices["start"], indices["stop"]))

    def _has_room(self, file: Any, stop: int) -> bool:
        """Return whether the frames of a file can extend to position `stop` without overlapping the next file."""
        place = self._joined[file].place
        return all(where.place <= place or where.place >= stop for where in self._joined.values())

    def _add_assets(self, uris: Iterable[str]) -> None:
        """Add files, without repeating those that are already known."""
        common = {"is_directory": False, "parameter": self.asset_parameter}
        for uri in uris:
            if uri in self._assets:
                continue
            if len(self._assets) >= MAX_FILES:
                raise self._registration_error(f"it has more than {MAX_FILES} files")
            self._assets[uri] = {"data_uri": uri, **common, "num": len(self._assets)}

    def _add_repeated_assets(self, uris: list[str]) -> None:
        """Add files, repeating those that are already known.

        Tiled keeps each URI once, so a repeated file gets another spelling of its URI.
        """
        if len(self._assets) + len(uris) > MAX_FILES:
            raise self._registration_error(f"it has more than {MAX_FILES} files")
        for uri in uris:
            spelled = uri
            while spelled in self._assets:
                folder, _, name = spelled.rpartition("/")
                spelled = f"{folder}/./{name}"
            self._add_assets([spelled])

    def _add_numbered_files(self, stream_resource: Document, template: str) -> None:
        """Add a resource whose files are named by its URI and a template."""
        files = _Files(stream_resource["uri"], template)
        if _WIDE_NUMBER.search(template):
            raise self._registration_error(f"template {template!r:.200} asks for a number of a thousand digits or more")
        try:
            files.name(0)
        except (LookupError, ValueError) as error:
            raise self._registration_error(
                f"template {template!r} cannot be filled in with a number ({error})"
            ) from error
        self._files_of[stream_resource["uid"]] = self._files.setdefault(files.file, files)
        self._file_of[stream_resource["uid"]] = files.file

    def _numbered_uris(self, stream_datum: Document, numbers: range) -> list[str]:
        if numbers.stop - numbers.start > MAX_FILES:
            raise self._registration_error(f"stream_datum {stream_datum.get('uid')!r} has more than {MAX_FILES} files")
        files = self._files_of.get(stream_datum["stream_resource"]) or next(reversed(self._files_of.values()))
        return [files.name(number) for number in numbers]

    def _data_source(
        self, family: str, structure: Document, parameters: Document, properties: Document
    ) -> dict[str, Any]:
        layout = {"structure_family": family, "structure": structure, "mimetype": self.mimetype}
        reading = {
            "parameters": _json_value(parameters),
            "properties": properties,
            "assets": list(self._assets.values()),
        }
        return {**layout, **reading, "management": "external"}


class ArrayConsolidator(Consolidator):
    """Consolidator for files that together hold one array; in this class itself, each resource is one file.

    Each datum is one step along a new first axis ('stack'), or `datum_shape[0]` steps along the existing first axis
    ('concat'). The class uses the StreamResource parameters join_method, join_chunks, chunk_shape and multiplier.

    If the adapter of a subclass accepts a selection of rows in any order, the subclass sets `selects_rows` and passes
    `selected_rows` to the adapter in `adapter_parameters`. Otherwise, the documents must name all frames of the files,
    in order.

    Attributes
    ----------
    join_method
        'stack' or 'concat', unless the StreamResource says otherwise.
    join_chunks
        Whether chunks may span several datums when they are joined by 'concat'.
    selects_rows
        Whether the adapter accepts a selection of rows.
    in_order_of_events
        Whether the frames are in the order of their events.
    datum_shape
        The shape of one datum.
    data_type
        The type of the elements, in Tiled's form.
    dims
        The names of the dimensions, or None.
    chunk_shape
        The shape of a chunk; dimensions beyond its length have a single chunk.
    frames
        The frames of the node.
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
            raise self._registration_error(f"join_method is {self.join_method!r}, neither 'stack' nor 'concat'")
        if not self._described:
            raise self._registration_error("its stream's descriptor has no such data key")
        self.datum_shape = self._datum_shape()
        self.data_type = self._data_type()
        self.dims = self._dimension_names()
        self._declared_chunk: Shape = self._as_chunk_shape(self.parameters.get("chunk_shape"))
        self.chunk_shape = self._chunk_shape()
        if len(self.chunk_shape) > len(self.shape):
            self._add_note(f"chunk_shape {self.chunk_shape} has more dimensions than its array; the first ones count.")
            self.chunk_shape = self.chunk_shape[: len(self.shape)]
        self.frames = FrameOrder()
        self._add_resource_files(stream_resource)

    @property
    def shape(self) -> Shape:
        """The shape of the whole array."""
        if self.join_method == "concat" and self.datum_shape:
            return (self._rows * self.datum_shape[0], *self.datum_shape[1:])
        return (self._rows, *self.datum_shape)

    @property
    def chunks(self) -> list[list[int]]:
        """The sizes of the chunks along each dimension; dimensions beyond `chunk_shape` have a single chunk."""
        shape, chunk = self.shape, self.chunk_shape
        chunks = [_chunk_sizes(size, step) for size, step in zip(shape, chunk, strict=False)]
        if chunk and self.datum_shape and self.join_method == "concat" and not self.join_chunks:
            chunks[0] = _chunk_sizes(self.datum_shape[0], chunk[0], self._rows)
        return chunks + [[size] for size in shape[len(chunk) :]]

    def add_resource(self, stream_resource: Document) -> None:
        """Add another file; the chunk shape of the first resource stays valid."""
        chunk_shape = self._as_chunk_shape(stream_resource["parameters"].get("chunk_shape"))
        if chunk_shape != self._declared_chunk:
            self._add_note(f"chunk_shape differs between its resources; {self._declared_chunk} counts.")
        self._add_resource_files(stream_resource)

    def consume(self, stream_datum: Document) -> Patch:
        """Add the rows of a StreamDatum; return the region of the array that changes."""
        indices = self._checked_indices(stream_datum)
        self._check_size(len(indices))
        seq_num = _seq_num(stream_datum, len(indices))
        _, place = self._locate_frames(stream_datum, indices)
        self._check_place(stream_datum, indices, place, seq_num)
        return self._insert_frames(place, len(indices), seq_num)

    @property
    def problem(self) -> str:
        """The file, if any, for which more frames were announced after the next file had been joined to it."""
        places = [*(where.place for where in self._joined.values())][1:]
        for (file, where), following in zip(self._joined.items(), places, strict=False):
            if self.announced.of(file).stop - where.base > following - where.place:
                return (
                    f"{file[0]} has more frames than were announced before those of the next file, and Tiled joins all."
                )
        return ""

    def selected_rows(self) -> str | list[int] | None:
        """Return the selection of the node's rows from the files.

        Returns
        -------
        str, list of int or None
            A slice, or the numbers of the rows in order. None for all rows from the first one on.
        """
        ranges, step = self.frames.ranges, self.rows_per_datum
        if len(ranges) > 1:
            return [row for part in ranges for row in range(part.start * step, part.stop * step)]
        if not ranges or (ranges[0].start == 0 and not self._reshapes_rows):
            return None
        return f"{ranges[0].start * step}:{ranges[0].stop * step}"

    @property
    def rows_per_datum(self) -> int:
        """The number of rows in the file for one datum."""
        return self._rows_per_datum()[0]

    @property
    def _reshapes_rows(self) -> bool:
        """Whether Tiled reshapes the rows of a file, which fails if the file has more rows than the documents name.

        Otherwise, Tiled serves as many rows as the structure declares.
        """
        step, certain = self._rows_per_datum()
        return certain and self.join_method == "stack" and (step > 1 or self.datum_shape[:1] == (1,))

    def _rows_per_datum(self) -> tuple[int, bool]:
        """Return the number of rows in the file for one datum, and whether it is certain.

        A datum of shape (4,) may be one row of a file of shape (n, 4) or four rows of a file of shape (4 n,). The chunk
        shape decides, because it has as many dimensions as the file.
        """
        shape, dimensions = self.datum_shape, len(self._declared_chunk)
        if not shape or shape[0] == 1:
            return 1, True
        if self.join_method == "concat" or self.parameters.get("multiplier") or dimensions == len(shape):
            return shape[0], True
        return 1, dimensions == len(shape) + 1 or (not dimensions and len(shape) == 2)

    def _check_size(self, more: int) -> None:
        """Refuse frames that would need more than `MAX_CHUNKS` chunks, before they are counted."""
        rows = self._rows + more
        size = rows * self.datum_shape[0] if self.join_method == "concat" and self.datum_shape else rows
        if size // (self.chunk_shape[0] if self.chunk_shape else size or 1) > MAX_CHUNKS:
            raise self._registration_error(
                f"it would have more than {MAX_CHUNKS} chunks; chunk_shape is {self.chunk_shape}"
            )

    def _check_place(self, stream_datum: Document, indices: range, place: int, seq_num: int | None) -> None:
        """Refuse frames that Tiled's adapter cannot serve at their position in the array."""
        file = self._file_of.get(stream_datum["stream_resource"])
        if file in self._joined and not self._has_room(file, place + len(indices)):
            raise self._registration_error(
                f"frames {_format_range(indices)} of {file} come after those of further files"
            )
        frames = self.frames
        follows = frames.is_next(place, seq_num)
        if not indices or (follows and (place if not frames.count else frames.first) == 0):
            return
        if not self.selects_rows:
            what = f"frames {_format_range(indices)} are not the next ones of its files"
            raise self._registration_error(f"{what}, and Tiled gives no other rows of {self.mimetype} files")
        if not follows and (frames.count + len(indices)) * self.rows_per_datum > MAX_LISTED_ROWS:
            raise self._registration_error(f"more than {MAX_LISTED_ROWS} rows of its files do not follow each other")
        if not self._rows_per_datum()[1]:
            self._add_note("its documents do not say how many rows of a file make a frame; one is taken to.")

    def _insert_frames(self, place: int, count: int, seq_num: int | None, *, insert: bool = True) -> Patch:
        """Count frames; return the region from their first row to the end, because later rows move."""
        first = self.frames.add(place, count, seq_num, insert=insert)
        self._rows += count
        rows, *rest = self.shape
        step = self.datum_shape[0] if self.join_method == "concat" and self.datum_shape else 1
        return Patch((first * step, *[0] * len(rest)), (rows - first * step, *rest))

    def adapter_parameters(self) -> dict[str, Any]:
        """Return the parameters that Tiled's adapter needs to read the files."""
        return {}

    def data_source(self) -> dict[str, Any]:
        """Return the current data source, of structure family 'array'."""
        array = {"data_type": self.data_type, "shape": list(self.shape), "chunks": self.chunks}
        structure = {**array, "dims": self.dims, "resizable": False}
        return self._data_source("array", structure, self.adapter_parameters(), self._source_properties())

    def _source_properties(self) -> dict[str, Any]:
        return {}

    def _add_resource_files(self, stream_resource: Document) -> None:
        uri = stream_resource["uri"]
        self._file_of[stream_resource["uid"]] = uri, stream_resource["parameters"].get("dataset")
        self._add_assets([uri])
        if len(self._assets) > 1:
            self._add_note(
                "its frames are in several files, each of which is taken to have no others than were announced."
            )

    def _datum_shape(self) -> Shape:
        """Return the shape of one datum; if there is a `multiplier` (frames per datum), it is the first dimension."""
        sizes = tuple(self._described.get("shape") or ())
        if None in sizes:
            raise self._registration_error(f"its shape {sizes} varies, which {self.mimetype} files cannot")
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
        """Return the type of the elements in Tiled's form; float64 if the descriptor declares none."""
        declared = self._described.get("dtype_numpy")
        try:
            dtype = numpy.dtype("<f8") if declared is None else declared_dtype(declared)
            structured = dtype.fields is not None
            described = asdict((StructDtype if structured else BuiltinDtype).from_numpy_dtype(dtype))
        except (TypeError, ValueError) as error:
            raise self._registration_error(
                f"its dtype_numpy {declared!r} is not a type that Tiled serves ({error})"
            ) from error
        return dict(json.loads(json.dumps(described)))

    def _dimension_names(self) -> list[str] | None:
        dims = list(self._described.get("dims") or ())
        if dims and self.join_method == "stack":
            dims = ["time", *dims]
        if len(dims) not in {0, len(self.shape)}:
            self._add_note(f"{len(self.shape)} dimensions do not have the names {dims}.")
            return None
        return dims or None

    def _chunk_shape(self) -> Shape:
        return self._declared_chunk

    def _as_chunk_shape(self, declared: Any) -> Shape:
        """Return a declared chunk shape, or an empty one if the declaration is invalid."""
        sizes = declared.tolist() if isinstance(declared, numpy.ndarray) else declared
        if not sizes:
            return ()
        if isinstance(sizes, list | tuple) and all(_is_size(size) for size in sizes):
            return tuple(int(size) for size in sizes)
        self._add_note(f"chunk_shape {declared!r:.200} is none; it is taken to be unknown.")
        return ()


class CSVConsolidator(ArrayConsolidator):
    """Consolidator for tables of numbers in text files without a header, concatenated along the rows.

    Tiled's adapter reads each file as a whole, as one chunk, and fails if the number of rows differs from the size of
    the chunk.
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
        """The sizes of the chunks along each dimension; along the first one, each file is one chunk."""
        rows = self.datum_shape[0] if self.join_method == "concat" and self.datum_shape else 1
        return [[count * rows for count in self._datums_of_files().values()] or [0], *super().chunks[1:]]

    @property
    def problem(self) -> str:
        """The file, if any, with datums that are missing from this node: left out, or part of another stream."""
        for file, count in self._datums_of_files().items():
            announced = self.announced.of(file).stop - self._joined[file].base
            if announced > count:
                named = "is" if count == 1 else "are"
                what = f"{file[0]} has {announced} datums, of which {count} {named} named"
                return f"{what}, and Tiled reads such files as a whole."
        return super().problem

    def consume(self, stream_datum: Document) -> Patch:
        """Add the rows of a StreamDatum; return the region of the array that changes."""
        self._add_note("Tiled reads its files as a whole; they are taken to have no other rows than were announced.")
        return super().consume(stream_datum)

    def data_source(self) -> dict[str, Any]:
        """Return the current data source, without files that have no rows yet, except the first file."""
        source = super().data_source()
        return {**source, "assets": source["assets"][: max(1, len(self._datums_of_files()))]}

    def _datums_of_files(self) -> dict[Any, int]:
        """Return the number of datums in each file that has any."""
        begun = {file: where.place for file, where in self._joined.items() if where.place < self._rows}
        ends = [*begun.values(), self._rows][1:]
        return {file: end - place for (file, place), end in zip(begun.items(), ends, strict=True)}

    def adapter_parameters(self) -> dict[str, Any]:
        """Return the options of the CSV reader."""
        options = {"header": None, **self.parameters}
        return {name: value for name, value in options.items() if name in self._READER_OPTIONS}


class _HDF5Dataset(ArrayConsolidator):
    """Base class for datasets in HDF5 files: the parameters of the adapter and the selection of rows."""

    mimetypes = frozenset({"application/x-hdf5"})

    def adapter_parameters(self) -> dict[str, Any]:
        """Return the path of the dataset in the files, the selection of rows, and the options to open the files."""
        given = self.parameters
        if "dataset" not in given:
            raise self._registration_error("its StreamResource has no 'dataset' among its parameters")
        optional = {name: given[name] for name in ("slice", "squeeze") if given.get(name)}
        if selected := self._combined_slice(self.selected_rows()):
            optional["slice"] = selected
        swmr, locking = given.get("swmr", True), given.get("locking")
        return {"dataset": given["dataset"], **optional, "swmr": swmr, "locking": locking}

    def _combined_slice(self, rows: str | list[int] | None) -> str | list[int] | None:
        """Return the adapter's `slice`: the selected rows combined with the `slice` that the documents request."""
        wanted = self.parameters.get("slice")
        if not wanted or rows is None:
            return rows
        _, colon, rest = str(wanted).partition(":,")
        return f"{rows},{rest}" if colon and self._slices_frames else None

    @property
    def _slices_frames(self) -> bool:
        """Whether the `slice` that the documents request, if any, can be combined with a selection of rows."""
        wanted = self.parameters.get("slice")
        return not wanted or str(wanted).strip().startswith(":,")

    def _check_place(self, stream_datum: Document, indices: range, place: int, seq_num: int | None) -> None:
        super()._check_place(stream_datum, indices, place, seq_num)
        follows = self.frames.is_next(place, seq_num)
        from_first = follows and (self.frames.first if self.frames.count else place) == 0
        wanted = self.parameters.get("slice")
        if indices and wanted and not from_first and not (follows and self._slices_frames):
            raise self._registration_error(
                f"frames {_format_range(indices)} cannot be selected beside its slice {wanted!r}"
            )


class HDF5Consolidator(_HDF5Dataset):
    """Consolidator for datasets with the same path in HDF5 files, one file per resource.

    In addition to the parameters of `ArrayConsolidator`, the class uses the StreamResource parameters dataset
    (required), slice, squeeze, swmr and locking. A resource with a template gets a `HDF5SequenceConsolidator`.
    """

    selects_rows = True

    @classmethod
    def variant(cls, stream_resource: Document) -> type[Consolidator]:
        """Return the class for a resource: the sequence class if the resource has a template."""
        return HDF5SequenceConsolidator if stream_resource["parameters"].get("template") else cls

    def add_resource(self, stream_resource: Document) -> None:
        """Add another file with the same dataset."""
        first, dataset = self.parameters.get("dataset"), stream_resource["parameters"].get("dataset")
        if dataset != first:
            raise self._registration_error(f"its resources have different datasets: {first!r}, {dataset!r}")
        super().add_resource(stream_resource)


class SequenceConsolidator(ArrayConsolidator):
    """Consolidator for numbered files, one or more per datum.

    In addition to the parameters of `ArrayConsolidator`, the class uses the StreamResource parameters template
    (required), filename and files_per_datum.

    Attributes
    ----------
    files_per_datum
        The number of files for each datum.
    """

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        self._split = False
        super().__init__(stream_resource, descriptor)
        self.files_per_datum = self._files_per_datum()

    def add_resource(self, stream_resource: Document) -> None:
        """Add the files of another resource, which has its own template."""
        before, self.parameters = self.parameters, dict(stream_resource["parameters"])
        try:
            self._add_resource_files(stream_resource)
        except DocumentError:
            self.parameters = before
            raise
        self.files_per_datum = self._files_per_datum()

    def consume(self, stream_datum: Document) -> Patch:
        """Add the rows of a StreamDatum and their files; return the region of the array that changes."""
        indices, per_datum = self._checked_indices(stream_datum), self.files_per_datum
        if len(indices) * per_datum > MAX_FILES:
            raise self._registration_error(f"stream_datum {stream_datum.get('uid')!r} has more than {MAX_FILES} files")
        self._check_size(len(indices))
        number, _ = self._locate_frames(stream_datum, indices)
        numbers = range(number * per_datum, (number + len(indices)) * per_datum)
        self._add_repeated_assets(self._numbered_uris(stream_datum, numbers))
        several = self.join_method == "stack" and len(self.datum_shape) > 1 and per_datum > 1
        self._split = self._split or (several and self.datum_shape[0] % per_datum == 0)
        return self._append_frames(len(indices), _seq_num(stream_datum, len(indices)))

    @property
    def problem(self) -> str:
        """Always "", because the node has exactly the files that the documents name."""
        return ""

    def selected_rows(self) -> None:
        """Return None for all rows, because the list of files already selects the frames."""

    def _append_frames(self, count: int, seq_num: int | None) -> Patch:
        """Count frames after all others, because the numbers of the files in the data source never change."""
        if count and self.frames.row_of(count, seq_num) != self._rows:
            self.in_order_of_events = False
            self._add_note("its frames are in the order in which they were announced, not in that of the events.")
        return self._insert_frames(self._rows, count, seq_num, insert=False)

    def _source_properties(self) -> dict[str, Any]:
        """Return the layout of the files in the array, one entry per file, if a datum spans several files."""
        if not self._split:
            return {}
        frames = self._frames_per_file()
        inner = [[size] for size in self.datum_shape[1:]]
        return {"chunks": [[1] * len(self._assets), *([[frames]] if frames > 1 else []), *inner]}

    def _file_template(self) -> str:
        template = self.parameters.get("template")
        if not template:
            raise self._registration_error("its StreamResource has no 'template' among its parameters")
        return compile_template(template, self.parameters.get("filename") or "")

    def _add_resource_files(self, stream_resource: Document) -> None:
        self._add_numbered_files(stream_resource, self._file_template())

    def _chunk_shape(self) -> Shape:
        chunk = super()._chunk_shape() or (1,)
        if self.join_method == "stack":
            return chunk
        if not self.datum_shape:
            raise self._registration_error(
                "files can be joined by 'concat' only when each holds an array; its shape is ()"
            )
        frames = self.datum_shape[0]
        if chunk[0] > 0 and frames % chunk[0]:
            problem = f"{chunk[0]} frames per file do not divide a datum of {frames}"
            self._add_note(f"{problem}; each datum is taken to be one file.")
            return (frames,)
        return chunk

    def _files_per_datum(self) -> int:
        frames = self.datum_shape[0] if self.datum_shape else 1
        return int(self.parameters.get("files_per_datum") or max(frames // self._frames_per_file(), 1))

    def _frames_per_file(self) -> int:
        """Return the number of steps along a datum's first axis in one file."""
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
    """Consolidator for datasets with the same path in numbered HDF5 files."""


class TIFFConsolidator(SequenceConsolidator):
    """Consolidator for numbered TIFF images."""

    mimetypes = frozenset({"multipart/related;type=image/tiff"})


class JPEGConsolidator(SequenceConsolidator):
    """Consolidator for numbered JPEG images."""

    mimetypes = frozenset({"multipart/related;type=image/jpeg"})


class NPYConsolidator(SequenceConsolidator):
    """Consolidator for numbered NPY files with one frame each, named according to the `NPY_SEQ` spec."""

    mimetypes = frozenset({"multipart/related;type=application/x-npy"})

    def _file_template(self) -> str:
        return compile_template("%s_%d.npy", self.parameters.get("filename") or "")

    def _chunk_shape(self) -> Shape:
        frame = tuple(self._described.get("shape") or ())
        return (1, *frame)[: len(self.shape)]


class BytesConsolidator(Consolidator):
    """Consolidator for files of any kind, which clients download unchanged.

    With a template there is one file per datum, otherwise one per resource.
    """

    mimetypes = frozenset({"application/octet-stream"})

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        super().__init__(stream_resource, descriptor)
        self.add_resource(stream_resource)

    def add_resource(self, stream_resource: Document) -> None:
        """Add the file or files of another resource."""
        template, filename = (stream_resource["parameters"].get(name) or "" for name in ("template", "filename"))
        self._add_numbered_files(stream_resource, compile_template(template, filename))

    def consume(self, stream_datum: Document) -> Patch:
        """Add the files of a StreamDatum; return the region of its rows."""
        indices = self._checked_indices(stream_datum)
        if len(indices) > MAX_FILES:
            raise self._registration_error(f"stream_datum {stream_datum.get('uid')!r} has more than {MAX_FILES} files")
        number, _ = self._locate_frames(stream_datum, indices)
        uris = self._numbered_uris(stream_datum, range(number, number + len(indices)))
        # Without a template, all datums of a resource are in one file.
        add = self._add_repeated_assets if len(set(uris)) == len(uris) and self._is_numbered else self._add_assets
        add(uris)
        first, self._rows = self._rows, self._rows + len(indices)
        return Patch((first,), (len(indices),))

    @property
    def _is_numbered(self) -> bool:
        return any("{" in files.template for files in self._files.values())

    def data_source(self) -> dict[str, Any]:
        """Return the current data source, of structure family 'bytes'."""
        return self._data_source("bytes", {}, {}, {})


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
    """Return the consolidator for a data key.

    A mimetype without a class gets an `ArrayConsolidator`, with one file per resource. The adapters configured on the
    Tiled server decide whether such files can be read.

    Parameters
    ----------
    stream_resource
        The first StreamResource of the data key, whose mimetype selects the class.
    descriptor
        The descriptor of the stream.
    registry
        Classes by mimetype, which take precedence over `REGISTRY`.

    Raises
    ------
    DocumentError
        The documents do not describe data that Tiled can serve.
    """
    mimetype = stream_resource["mimetype"]
    consolidator = {**REGISTRY, **(registry or {})}.get(mimetype, ArrayConsolidator)
    return consolidator.variant(stream_resource)(stream_resource, descriptor)


def compile_template(template: str, filename: str = "") -> str:
    """Return a template for a number in the style of `str.format`.

    Parameters
    ----------
    template
        A template in the style of `str.format` or of C's `printf`. The first '%s' stands for the file name, further
        ones for an empty string: "%s%s_%06d.tif" becomes "name_{:06d}.tif".
    filename
        The file name.
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


def _chunk_sizes(total: int, step: int, repeat: int = 1) -> list[int]:
    """Split `total` into pieces of at most `step`; return the pieces, repeated `repeat` times, or [0] if none."""
    rest = total % step
    return ([step] * (total // step) + [rest] * (rest > 0)) * repeat or [0]


def _seq_num(stream_datum: Document, count: int) -> int | None:
    """Return the sequence number of a StreamDatum's first event; None unless each frame has one event."""
    numbers = stream_datum.get("seq_nums")
    if not isinstance(numbers, Mapping):
        return None
    start, stop = numbers.get("start"), numbers.get("stop")
    return start if isinstance(start, int) and isinstance(stop, int) and stop - start == count else None


def _is_size(value: Any) -> bool:
    return isinstance(value, int | numpy.integer) and not isinstance(value, bool) and bool(value > 0)


def _format_range(numbers: range) -> str:
    return f"{numbers.start} to {numbers.stop - 1}"


def _json_value(value: Any) -> Any:
    """Convert a parameter to JSON types."""
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, numpy.ndarray | numpy.generic):
        return value.tolist()
    return [_json_value(item) for item in value] if isinstance(value, list | tuple) else value
