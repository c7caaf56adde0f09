"""What a run becomes in Tiled, found out from its journal alone: for people and programs to look at beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

import numpy
from tiled.structures.array import BuiltinDtype, StructDtype

from tiledbroker import RunReader

from .._errors import UnwritableDocument
from ..mapping import (
    BATCH_BYTES,
    BATCH_DOCUMENTS,
    Audit,
    Column,
    CreateArray,
    DescribeExternal,
    ExtendExternal,
    Fold,
    MappedUri,
    Operation,
    RegisterExternal,
    WritingOptions,
)

_NOT_SHOWN: Final = frozenset({"path", "identity", "values"})
_SHAPES: Final = {
    (CreateArray, "shape"): "row_shape",
    (ExtendExternal, "shape"): "new_shape",
    (ExtendExternal, "offset"): "new_offset",
}


@dataclass(frozen=True)
class ResourcePaths:
    """Where the files of one resource are.

    Attributes
    ----------
    published, registered
        The resource's URI as `RunNormalizer` emits it, and after the path map.
    rule
        The path map's rule that was applied, if one was.
    files
        URIs of its files, as registered; none if nothing in Tiled refers to it.
    found
        How many of them this host has; None where they are not in a file system.
    """

    uid: str
    data_key: str
    mimetype: str
    published: str
    registered: str
    rule: str | None
    files: tuple[str, ...]
    found: int | None


class DryRun:
    """Folds a journal as a worker would, with the same options.

    Iterate to get the operations; then the attributes are complete.

    Attributes
    ----------
    max_array_size
        The one that the run's worker has settled on, if it has had one.
    error
        The document that cannot be folded, if there is one; there are no operations for it and what follows.
    """

    def __init__(self, journal: RunReader, options: WritingOptions) -> None:
        self.max_array_size = int(journal.get("max_array_size", options.max_array_size))
        self._journal = journal
        self._options = options
        self._column_types = {(stream, key): kind for stream, key, kind in journal.get("column_types", [])}
        self._begin()

    def _begin(self) -> None:
        types = dict(self._column_types)
        self._fold = Fold.of(self._journal, self._options, self.max_array_size, types, self._on_resource)
        self._resources: dict[str, tuple[Mapping[str, Any], MappedUri]] = {}
        self._files: dict[str, tuple[str, ...]] = {}  # by node

    @property
    def error(self) -> UnwritableDocument | None:
        return self._fold.error

    @property
    def complete(self) -> bool:
        """Whether nothing is to come: the run was stopped or abandoned."""
        return self._fold.finished

    def __iter__(self) -> Iterator[Operation]:
        while self._widens_columns():
            pass
        self._begin()
        yield from self._operations()

    def _widens_columns(self) -> bool:
        """Whether a value needs a wider column than planned; a worker that meets one begins anew, too."""
        self._begin()
        for _ in self._operations():
            if self._fold.too_narrow:
                self._column_types.update(self._fold.too_narrow)
                return True
        return False

    def _operations(self) -> Iterator[Operation]:
        while self._fold.goes_on:
            records = self._journal.read(self._fold.cursor, BATCH_DOCUMENTS, BATCH_BYTES)
            if not records:
                break
            yield from self._seen(self._fold.feed(records))
        if self._journal.ended and self._fold.goes_on:
            yield from self._seen(self._fold.abandon())

    def paths(self) -> list[ResourcePaths]:
        """Where the files of every resource are, after iteration."""
        return [self._paths(resource, mapped) for resource, mapped in self._resources.values()]

    def _seen(self, operations: list[Operation]) -> Iterator[Operation]:
        for operation in operations:
            if isinstance(operation, Audit):  # it changes nothing
                continue
            if isinstance(operation, RegisterExternal | ExtendExternal):
                source = operation.data_source
                self._files[operation.path] = tuple(asset["data_uri"] for asset in source["assets"])
            yield operation

    def _on_resource(self, resource: Mapping[str, Any], mapped: MappedUri) -> None:
        self._resources[resource["uid"]] = (resource, mapped)

    def _paths(self, resource: Mapping[str, Any], mapped: MappedUri) -> ResourcePaths:
        key = str(resource["data_key"])
        known = [uri for path, uris in self._files.items() if path.rpartition("/")[2] == key for uri in uris]
        # A sequence's resource names the directory, or what the file names begin with.
        files = [uri for uri in known if uri == mapped.uri] or [uri for uri in known if uri.startswith(mapped.uri)]
        published = (str(resource["uid"]), key, str(resource["mimetype"]), str(resource["uri"]))
        return ResourcePaths(*published, *mapped, tuple(files), _found(files or [mapped.uri]))


def summary_of(operation: Operation) -> dict[str, Any]:
    """An operation without its data, in types that JSON has."""
    result: dict[str, Any] = {"operation": type(operation).__name__, "path": operation.path}
    for field in fields(operation):
        if field.name not in _NOT_SHOWN:
            name = _SHAPES.get((type(operation), field.name), field.name)
            result |= _summary_of_field(name, getattr(operation, field.name))
    if (stop := getattr(operation, "stop", None)) is not None:
        result["stop"] = stop
    if isinstance(operation, DescribeExternal):
        del result["assets"]  # they are as they are
    values = getattr(operation, "values", None)
    if isinstance(values, numpy.ndarray):
        result |= {"dtype": values.dtype.str, "shape": list(values.shape)}
    return result


def _summary_of_field(name: str, value: Any) -> dict[str, Any]:
    if name == "metadata":
        return {"metadata": list(value)} if value else {}
    if name == "data_source":
        return _summary_of_source(value)
    if name == "access_tags" and value is None:
        return {}
    return {name: _plain(value)}


def _summary_of_source(source: Mapping[str, Any]) -> dict[str, Any]:
    structure = source["structure"]
    result = {"structure_family": source["structure_family"], "mimetype": source["mimetype"]}
    if "data_type" in structure:
        result["dtype"] = _dtype(structure["data_type"])
    result |= {name: structure[name] for name in ("shape", "chunks", "dims") if structure.get(name) is not None}
    if source.get("parameters"):
        result["parameters"] = source["parameters"]
    return {**result, "assets": [asset["data_uri"] for asset in source["assets"]]}


def _dtype(described: Mapping[str, Any]) -> Any:
    kind = StructDtype if "fields" in described else BuiltinDtype
    dtype: numpy.dtype[Any] = kind.from_json(described).to_numpy_dtype()
    return dtype.str if dtype.fields is None else _plain(dtype.descr)


def _plain(value: Any) -> Any:
    if isinstance(value, Column):
        return {"name": value.name, "type": value.type}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _found(uris: list[str]) -> int | None:
    """How many of the files this host has, their paths taken as Tiled takes them."""
    places = [urlparse(uri) for uri in uris]
    if any(place.scheme != "file" for place in places):
        return None
    return sum(Path(place.path).exists() for place in places)
