"""Detectors announce their files piece by piece; this file adds the pieces up to data sources that Tiled can serve."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final

import numpy
from tiled.structures.array import BuiltinDtype, StructDtype

from tiledwriter._dtypes import declared_dtype
from tiledwriter._errors import DocumentError

Document = Mapping[str, Any]
Shape = tuple[int, ...]

_WIDE_NUMBER: Final = re.compile(r"\{[^{}]*[0-9]{4}")

MAX_FILES: Final = 1_000_000
"""Files of one data key; a few bytes can claim any number of them."""

MAX_CHUNKS: Final = 10_000_000
"""Chunks along one dimension."""


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
class _Files:
    """The numbered files of one resource; `first` is the number that the first of them would have in the sequence."""

    uri: str
    template: str
    first: int

    def uris(self, numbers: range) -> Iterator[str]:
        # Some devices count from zero again in each resource, others go on counting.
        self.first = min(self.first, numbers.start)
        return (self.name(number - self.first) for number in numbers)

    def name(self, number: int) -> str:
        tail = self.template.format(number)
        return self.uri + (tail.lstrip("/") if self.uri.endswith("/") else tail)


class Consolidator:
    """Add up the files of one external data key of one stream to one Tiled data source.

    Subclass it, or one of its subclasses, for a new kind of file: list the `mimetypes`, implement `data_source`.
    Made from the key's first StreamResource and the stream's descriptor. Attributes: `data_key`; `metadata`, for the
    node; `notes`, where what was declared could not be followed. Documents that do not describe data that can be
    served raise DocumentError.
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
        self._rows = 0
        self._assets: dict[str, dict[str, Any]] = {}
        self._files: dict[tuple[str, str], _Files] = {}
        self._files_of: dict[str, _Files] = {}

    @property
    def rows(self) -> int:
        """How many rows (datums) there are so far."""
        return self._rows

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

    def _indices(self, stream_datum: Document) -> range:
        indices = stream_datum["indices"]
        if not {"start", "stop"} <= indices.keys() or indices["stop"] < indices["start"]:
            raise self._wrong(f"stream_datum {stream_datum.get('uid')!r} has {indices!r} as indices")
        return range(indices["start"], indices["stop"])

    def _add_assets(self, uris: Iterable[str]) -> None:
        """Add files; one that is named again, as when a plan is rewound, is there once: Tiled keeps it once."""
        common = {"is_directory": False, "parameter": self.asset_parameter}
        for uri in uris:
            if uri in self._assets:
                continue
            if len(self._assets) >= MAX_FILES:
                raise self._wrong(f"it has more than {MAX_FILES} files")
            self._assets[uri] = {"data_uri": uri, **common, "num": len(self._assets)}

    def _add_numbered_files(self, stream_resource: Document, template: str) -> None:
        """Take in a resource whose files are named by its uri and a template."""
        files = _Files(stream_resource["uri"], template, len(self._assets))
        if _WIDE_NUMBER.search(template):
            raise self._wrong(f"template {template!r:.200} asks for a number of a thousand digits or more")
        try:
            files.name(0)
        except (LookupError, ValueError) as error:
            raise self._wrong(f"template {template!r} cannot be filled in with a number ({error})") from error
        # A stream that is configured anew names the same files again, and goes on counting.
        self._files_of[stream_resource["uid"]] = self._files.setdefault((files.uri, template), files)

    def _numbered_uris(self, stream_datum: Document, numbers: range) -> Iterator[str]:
        if numbers.stop - numbers.start > MAX_FILES:
            raise self._wrong(f"stream_datum {stream_datum.get('uid')!r} has more than {MAX_FILES} files")
        files = self._files_of.get(stream_datum["stream_resource"])
        return (files or next(reversed(self._files_of.values()))).uris(numbers)

    def _source(self, family: str, structure: Document, parameters: Document, properties: Document) -> dict[str, Any]:
        layout = {"structure_family": family, "structure": structure, "mimetype": self.mimetype}
        reading = {"parameters": _plain(parameters), "properties": properties, "assets": list(self._assets.values())}
        return {**layout, **reading, "management": "external"}


class ArrayConsolidator(Consolidator):
    """Files that together hold one array; as it is, each resource is one file.

    Every datum is one step along a new first axis ('stack'), or `datum_shape[0]` steps along the existing one
    ('concat'). StreamResource parameters used: join_method, join_chunks, chunk_shape, multiplier.
    """

    join_method: str = "stack"
    join_chunks: bool = True

    def __init__(self, stream_resource: Document, descriptor: Document) -> None:
        super().__init__(stream_resource, descriptor)
        self.join_method = self.parameters.get("join_method", self.join_method)
        self.join_chunks = self.parameters.get("join_chunks", self.join_chunks)
        if self.join_method not in {"stack", "concat"}:
            raise self._wrong(f"join_method is {self.join_method!r}, neither 'stack' nor 'concat'")
        if not self._described:
            raise self._wrong("its stream's descriptor has no such data key")
        self.datum_shape = self._datum_shape()
        self.data_type = self._data_type()
        self.dims = self._dims()
        self.chunk_shape = self._chunk_shape()
        if any(size <= 0 for size in self.chunk_shape) or len(self.chunk_shape) > len(self.shape):
            raise self._wrong(f"chunk_shape {self.chunk_shape} does not fit a shape of {self.shape}")
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
        for size, step in zip(shape, chunk, strict=False):
            if size // step > MAX_CHUNKS:
                raise self._wrong(f"it would have more than {MAX_CHUNKS} chunks; chunk_shape is {self.chunk_shape}")
        chunks = [_sizes(size, step) for size, step in zip(shape, chunk, strict=False)]
        if chunk and self.datum_shape and self.join_method == "concat" and not self.join_chunks:
            chunks[0] = _sizes(self.datum_shape[0], chunk[0], self._rows)
        return chunks + [[size] for size in shape[len(chunk) :]]

    def add_resource(self, stream_resource: Document) -> None:
        """Go on with another file, of the same chunk shape."""
        chunk_shape = tuple(stream_resource["parameters"].get("chunk_shape") or ())
        if chunk_shape != tuple(self.parameters.get("chunk_shape") or ()):
            raise self._wrong(f"its resources have different values of chunk_shape: {self.chunk_shape}, {chunk_shape}")
        self._add_resource_files(stream_resource)

    def consume(self, stream_datum: Document) -> Patch:
        """Add the rows of a StreamDatum; return the box that they fill."""
        first = self.shape[0]
        self._rows += len(self._indices(stream_datum))
        rows, *rest = self.shape
        return Patch((first, *[0] * len(rest)), (rows - first, *rest))

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
        self._add_assets([stream_resource["uri"]])

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
            self.notes.append(f"Data key '{self.data_key}': {len(self.shape)} dimensions do not have the names {dims}.")
            return None
        return dims or None

    def _chunk_shape(self) -> Shape:
        return tuple(int(size) for size in self.parameters.get("chunk_shape") or ())


class CSVConsolidator(ArrayConsolidator):
    """Tables of numbers in text files without a header, one below the other."""

    mimetypes = frozenset({"text/csv;header=absent"})
    join_method = "concat"
    join_chunks = False

    _READER_OPTIONS: ClassVar = (
        *("assume_missing", "comment", "delimiter", "dtype", "encoding", "header"),
        *("names", "nrows", "sep", "skipfooter", "skiprows", "usecols"),
    )

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
        swmr, locking = given.get("swmr", True), given.get("locking")
        return {"dataset": given["dataset"], **optional, "swmr": swmr, "locking": locking}


class HDF5Consolidator(_HDF5Dataset):
    """Datasets of the same path in HDF5 files, one file per resource.

    StreamResource parameters used besides those of arrays: dataset (required), slice, squeeze, swmr, locking.
    A `template` makes it a `HDF5SequenceConsolidator`.
    """

    @classmethod
    def variant(cls, stream_resource: Document) -> type[Consolidator]:
        """One file, or with a `template` several."""
        return HDF5SequenceConsolidator if stream_resource["parameters"].get("template") else cls

    def add_resource(self, stream_resource: Document) -> None:
        """Go on with another file, of the same dataset and chunk shape."""
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
        self.parameters = dict(stream_resource["parameters"])
        self._add_resource_files(stream_resource)
        self.files_per_datum = self._files_per_datum()

    def consume(self, stream_datum: Document) -> Patch:
        """Add the rows of a StreamDatum and their files; return the box that they fill."""
        indices, per_datum = self._indices(stream_datum), self.files_per_datum
        numbers = range(indices.start * per_datum, indices.stop * per_datum)
        self._add_assets(self._numbered_uris(stream_datum, numbers))
        several = self.join_method == "stack" and len(self.datum_shape) > 1 and per_datum > 1
        self._split = self._split or (several and self.datum_shape[0] % per_datum == 0)
        return super().consume(stream_datum)

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
            self.notes.append(f"Data key '{self.data_key}': {problem}; each datum is taken to be one file.")
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
        numbers = self._indices(stream_datum)
        self._add_assets(self._numbered_uris(stream_datum, numbers))
        self._rows += len(numbers)
        return Patch((numbers.start,), (len(numbers),))

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


def _plain(value: Any) -> Any:
    """A parameter in types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, numpy.ndarray | numpy.generic):
        return value.tolist()
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
