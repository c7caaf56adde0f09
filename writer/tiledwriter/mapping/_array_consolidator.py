"""The base class of consolidators for files that together hold one array."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import asdict
from typing import Any, ClassVar, Final

import numpy
from tiled.structures.array import ArrayStructure, BuiltinDtype, StructDtype

from ._consolidator import Consolidator, Document, first_seq_num, json_value
from ._dtypes import declared_dtype
from ._frames import Region, Shape, dataset_path, file_of

MAX_CHUNKS: Final = 10_000_000
"""The largest number of chunks along one dimension."""

MAX_LISTED_ROWS: Final = 200_000
"""The largest number of HDF5 rows that are listed one by one for Tiled, because they are not consecutive."""


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
    keeps_rows
        Whether the adapter cannot, or not always, put the rows of a file into another shape, so that datums are joined
        by 'concat' where they are certain to have several rows, or one row and a dimension for it.
    shared_parameters
        The parameters that all resources of a data key must share, because Tiled reads all files with those of one.
    datum_shape
        The shape of one datum.
    data_type
        The type of the elements, in Tiled's form.
    dims
        The names of the dimensions, or None.
    chunk_shape
        The shape of a chunk; dimensions beyond its length have a single chunk.
    """

    join_method: str = "stack"
    join_chunks: bool = True
    selects_rows: ClassVar[bool] = False
    keeps_rows: ClassVar[bool] = False
    shared_parameters: ClassVar[tuple[str, ...]] = ("multiplier", "join_method")

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        super().__init__(stream_resource, descriptor)
        self.join_method = self.parameters.get("join_method", self.join_method)
        self.join_chunks = self.parameters.get("join_chunks", self.join_chunks)
        if self.join_method not in ("stack", "concat"):
            raise self._registration_error(f"join_method is {self.join_method!r}, neither 'stack' nor 'concat'")
        if self.parameters.get("join_method") == "concat":
            message = (
                f"Files of {self.mimetype} use join_method='concat', which Bluesky deprecates; use 'stack' instead."
            )
            warnings.warn(message, DeprecationWarning, stacklevel=2)
        self._multiplier = self._size("multiplier")
        if not self._described:
            raise self._registration_error("its stream's descriptor has no such data key")
        self.datum_shape = self._datum_shape()
        self.data_type = self._data_type()
        self._declared_chunk: Shape = self._as_chunk_shape(self.parameters.get("chunk_shape"))
        if self.keeps_rows:
            self._keep_rows()
        self.dims = self._dimension_names()
        self.chunk_shape = self._chunk_shape()
        if len(self.chunk_shape) > len(self.shape):
            self._add_note(f"chunk_shape {self.chunk_shape} has more dimensions than its array; the first ones count.")
            self.chunk_shape = self.chunk_shape[: len(self.shape)]
        self._add_resource_files(stream_resource)

    @property
    def shape(self) -> Shape:
        """The shape of the whole array."""
        if self.join_method == "concat" and self.datum_shape:
            return (self._rows * self.datum_shape[0], *self.datum_shape[1:])
        return (self._rows, *self.datum_shape)

    @property
    def chunks(self) -> tuple[Shape, ...]:
        """The sizes of the chunks along each dimension; dimensions beyond `chunk_shape` have a single chunk."""
        shape, chunk = self.shape, self.chunk_shape
        chunks = [_chunk_sizes(size, step) for size, step in zip(shape, chunk, strict=False)]
        if chunk and self.datum_shape and self.join_method == "concat" and not self.join_chunks:
            chunks[0] = _chunk_sizes(self.datum_shape[0], chunk[0], self._rows)
        return (*chunks, *((size,) for size in shape[len(chunk) :]))

    @property
    def orig_chunks(self) -> tuple[Shape, ...] | None:
        """The layout of the files, if it is another one than that of the array; else None."""
        chunks = self._source_properties().get("chunks")
        return None if chunks is None else tuple(map(tuple, chunks))

    def structure(self) -> ArrayStructure:
        """Return the structure of the array, in Tiled's data class."""
        structure: ArrayStructure = self.get_data_source().structure
        return structure

    def add_resource(self, stream_resource: Document) -> None:
        """Add another file; the chunk shape of the first resource stays valid."""
        self._check_shared_parameters(stream_resource)
        chunk_shape = self._as_chunk_shape(stream_resource["parameters"].get("chunk_shape"))
        if chunk_shape != self._declared_chunk:
            self._add_note(f"chunk_shape differs between its resources; {self._declared_chunk} counts.")
        self._add_resource_files(stream_resource)

    def consume(self, stream_datum: Document) -> Region:
        """Add the rows of a StreamDatum; return the region of the array that changes."""
        indices = self._checked_indices(stream_datum)
        self._check_size(len(indices))
        seq_num = first_seq_num(stream_datum, len(indices))
        _, place = self._locate_frames(stream_datum, indices)
        self._check_place(stream_datum, indices, place, seq_num)
        self._compare_events(stream_datum, seq_num)
        first = self.frames.add_frames(place, len(indices), seq_num)
        self._rows += len(indices)
        # Later rows move.
        return self._region_from(first)

    @property
    def problem(self) -> str:
        """The file, if any, for which more frames were announced after the next file had been joined to it."""
        places = [*(where.place for where in self._joined.values())][1:]
        for (file, where), following in zip(self._joined.items(), places, strict=False):
            if self.announced.frames_of(file).stop - where.base > following - where.place:
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
        if self.join_method == "concat" or self._multiplier or dimensions == len(shape):
            return shape[0], True
        return 1, dimensions == len(shape) + 1 or (not dimensions and len(shape) == 2)

    def _keep_rows(self) -> None:
        """Join datums as their rows are in the file."""
        if self._reshapes_rows:
            rows, self.join_method = self.rows_per_datum, "concat"
            if rows > 1:
                self._add_note(f"the {rows} rows of each frame follow each other in its first dimension.")

    def _check_shared_parameters(self, stream_resource: Document) -> None:
        """Refuse a further resource whose frames would be read as those of the resources before are."""
        for name in self.shared_parameters:
            first, other = (json_value(given.get(name)) for given in (self.parameters, stream_resource["parameters"]))
            if first != other and _spelled_alike(name, first) != _spelled_alike(name, other):
                raise self._registration_error(f"its resources have different {name}s: {first!r}, {other!r}")

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
        file = self._file_of(stream_datum)
        if file in self._joined and not self._has_room(file, place + len(indices)):
            raise self._registration_error(
                f"frames {format_range(indices)} of {file[0]} come after those of further files"
            )
        frames = self.frames
        follows = frames.is_next(place, seq_num)
        if not indices or (follows and (place if not frames.count else frames.first) == 0):
            return
        if not self.selects_rows:
            what = f"frames {format_range(indices)} are not the next ones of its files"
            raise self._registration_error(f"{what}, and Tiled gives no other rows of {self.mimetype} files")
        if not follows and (frames.count + len(indices)) * self.rows_per_datum > MAX_LISTED_ROWS:
            raise self._registration_error(f"more than {MAX_LISTED_ROWS} rows of its files do not follow each other")
        if not self._rows_per_datum()[1]:
            self._add_note("its documents do not say how many rows of a file make a frame; one is taken to.")

    def _region_from(self, first: int) -> Region:
        """Return the region from a datum's row to the end."""
        rows, *rest = self.shape
        step = self.datum_shape[0] if self.join_method == "concat" and self.datum_shape else 1
        return Region((first * step, *[0] * len(rest)), (rows - first * step, *rest))

    def adapter_parameters(self) -> dict[str, Any]:
        """Return the parameters that Tiled's adapter needs to read the files."""
        return {}

    def data_source(self) -> dict[str, Any]:
        """Return the current data source, of structure family 'array'."""
        array = {"data_type": self.data_type, "shape": list(self.shape), "chunks": list(map(list, self.chunks))}
        structure = {**array, "dims": self.dims, "resizable": False}
        return self._data_source("array", structure, self.adapter_parameters(), self._source_properties())

    def _source_properties(self) -> dict[str, Any]:
        return {}

    def _add_resource_files(self, stream_resource: Document) -> None:
        uri = stream_resource["uri"]
        self._file_of_resource[stream_resource["uid"]] = file_of(stream_resource)
        self._add_assets([uri])
        if len(self._assets) > 1:
            self._add_note(
                "its frames are in several files, each of which is taken to have no others than were announced."
            )

    def _datum_shape(self) -> Shape:
        """Return the shape of one datum; if there is a `multiplier` (frames per datum), it is the first dimension."""
        sizes = tuple(self._described.get("shape") or ())
        if any(size is None or size < 0 for size in sizes):
            raise self._registration_error(f"its shape {sizes} varies, which {self.mimetype} files cannot")
        if 0 in sizes:
            raise self._registration_error(f"its shape {sizes} has a 0, so it is not known what a frame is")
        if any(size > sys.maxsize for size in sizes):
            raise self._registration_error(f"its shape {sizes} is larger than any array")
        shape: Shape = tuple(int(size) for size in sizes)
        if shape == (1,) and self.join_method == "stack":
            shape = ()
        multiplier = self._multiplier
        if not multiplier:
            return shape
        self.metadata["frame_per_point"] = multiplier
        frame = shape[1:] if shape[:1] in {(1,), (multiplier,)} else shape
        return (multiplier, *frame)

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
        # Further names are of no use, but the first ones are those of the first dimensions.
        return dims[: len(self.shape)] if len(dims) >= len(self.shape) else None

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


def _chunk_sizes(total: int, step: int, repeat: int = 1) -> Shape:
    """Split `total` into pieces of at most `step`; return the pieces, repeated `repeat` times, or (0,) if none."""
    rest = total % step
    return ((step,) * (total // step) + (rest,) * (rest > 0)) * repeat or (0,)


def _spelled_alike(name: str, value: Any) -> Any:
    """Return a parameter in one of the spellings that mean the same; None for what counts as absent."""
    return dataset_path(value) if name == "dataset" and value else value or None


def _is_size(value: Any) -> bool:
    return isinstance(value, int | numpy.integer) and not isinstance(value, bool) and bool(value > 0)


def format_range(numbers: range) -> str:
    return f"{numbers.start} to {numbers.stop - 1}"
