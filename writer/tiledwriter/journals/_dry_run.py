"""Derive the Tiled operations and file paths of a run from its journal alone, for inspection without a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlparse

import numpy
from tiled.structures.array import BuiltinDtype, StructDtype

from tiledbroker import RunReader
from tiledbroker.ownership import RunDecisions

from .._errors import ColumnsTooNarrow, UnwritableDocument
from ..mapping import (
    BATCH_BYTES,
    BATCH_DOCUMENTS,
    Audit,
    Column,
    CreateArray,
    DescribeExternal,
    ExtendExternal,
    Fold,
    FoldPlan,
    MappedUri,
    Operation,
    RegisterExternal,
    WritingOptions,
    fold_until_planned,
)

_NOT_SHOWN: Final = frozenset({"path", "identity", "values"})
_SHAPES: Final = {
    (CreateArray, "shape"): "row_shape",
    (ExtendExternal, "shape"): "new_shape",
    (ExtendExternal, "offset"): "new_offset",
}


@dataclass(frozen=True)
class ResourcePaths:
    """Locations of the files of one resource.

    Attributes
    ----------
    uid
        Uid of the resource.
    data_key
        Data key that the resource is for.
    mimetype
        Mimetype of the resource.
    published, registered
        The resource's URI as `RunNormalizer` emits it, and after the path map.
    rule
        Rule of the path map that was applied; None if there was none.
    files
        Registered URIs of the resource's files; empty if no node refers to the resource.
    found
        Number of these files on this host, or of the registered URI if there are none; None if they are not `file:`
        URIs.
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
    """Fold of a journal as in a worker, with the same options.

    Iterate to get the operations; the attributes are complete after the iteration.

    Parameters
    ----------
    journal
        The run.
    options
        The worker's writing options.

    Attributes
    ----------
    error
        Error of the document that cannot be folded, None if there is none; it and later documents have no operations.
    """

    def __init__(self, journal: RunReader, options: WritingOptions) -> None:
        self._journal = journal
        self._options = options
        self._begin_fold(FoldPlan.of(RunDecisions.of(journal.get), options.max_array_size))

    def _begin_fold(self, plan: FoldPlan) -> None:
        self._plan = plan
        self._fold = Fold.of(self._journal, self._options, plan, self._on_resource)
        self._resources: dict[str, tuple[Mapping[str, Any], MappedUri]] = {}
        self._uris_by_node: dict[str, tuple[str, ...]] = {}

    @property
    def max_array_size(self) -> int:
        """Maximum size of arrays in list columns: as the run's worker has recorded, else that of the options."""
        return self._plan.max_array_size

    @property
    def error(self) -> UnwritableDocument | None:
        return self._fold.error

    @property
    def complete(self) -> bool:
        """True if no further operations will come because the run was stopped or abandoned."""
        return self._fold.finished

    def __iter__(self) -> Iterator[Operation]:
        """Yield the operations, without audits, with the final column types."""
        self._begin_fold(fold_until_planned(self._plan, self._check_plan, lambda _error, _plan: None))
        yield from self._fold_journal()

    def _check_plan(self, plan: FoldPlan) -> FoldPlan:
        """Fold the journal and return the plan; raise `ColumnsTooNarrow` if a value needs a wider column."""
        self._begin_fold(plan)
        for _ in self._fold_journal():
            if self._fold.too_narrow:
                raise ColumnsTooNarrow(self._fold.too_narrow)
        return plan

    def _fold_journal(self) -> Iterator[Operation]:
        while self._fold.accepts_more:
            # Before reading, as further documents may come at any time.
            has_ended = self._journal.ended
            records = self._journal.read(self._fold.cursor, BATCH_DOCUMENTS, BATCH_BYTES)
            if records:
                yield from self._track_operations(self._fold.feed(records))
            elif has_ended:
                yield from self._track_operations(self._fold.abandon())
            else:
                break

    def paths(self) -> list[ResourcePaths]:
        """Return the locations of the files of every resource; call it after the iteration."""
        return [self._resource_paths(resource, mapped) for resource, mapped in self._resources.values()]

    def _track_operations(self, operations: list[Operation]) -> Iterator[Operation]:
        for operation in operations:
            # An audit changes nothing in Tiled.
            if isinstance(operation, Audit):
                continue
            if isinstance(operation, RegisterExternal | ExtendExternal):
                source = operation.data_source
                self._uris_by_node[operation.path] = tuple(asset["data_uri"] for asset in source["assets"])
            yield operation

    def _on_resource(self, resource: Mapping[str, Any], mapped: MappedUri) -> None:
        self._resources[resource["uid"]] = (resource, mapped)

    def _resource_paths(self, resource: Mapping[str, Any], mapped: MappedUri) -> ResourcePaths:
        key = str(resource["data_key"])
        known = [uri for path, uris in self._uris_by_node.items() if path.rpartition("/")[2] == key for uri in uris]
        # The resource of a file sequence names the directory, or the common beginning of the file names.
        files = [uri for uri in known if uri == mapped.uri] or [uri for uri in known if uri.startswith(mapped.uri)]
        published = (str(resource["uid"]), key, str(resource["mimetype"]), str(resource["uri"]))
        return ResourcePaths(*published, *mapped, tuple(files), _count_existing(files or [mapped.uri]))


def summary_of(operation: Operation) -> dict[str, Any]:
    """Return an operation without its data, in JSON types."""
    result: dict[str, Any] = {"operation": type(operation).__name__, "path": operation.path}
    for field in fields(operation):
        if field.name not in _NOT_SHOWN:
            name = _SHAPES.get((type(operation), field.name), field.name)
            result |= _summary_of_field(name, getattr(operation, field.name))
    if (stop := getattr(operation, "stop", None)) is not None:
        result["stop"] = stop
    if isinstance(operation, DescribeExternal):
        # The operation leaves the node's files as they are.
        del result["assets"]
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
    return {name: _json_value(value)}


def _summary_of_source(source: Mapping[str, Any]) -> dict[str, Any]:
    structure = source["structure"]
    result = {"structure_family": source["structure_family"], "mimetype": source["mimetype"]}
    if "data_type" in structure:
        result["dtype"] = _describe_dtype(structure["data_type"])
    result |= {name: structure[name] for name in ("shape", "chunks", "dims") if structure.get(name) is not None}
    if source.get("parameters"):
        result["parameters"] = source["parameters"]
    return {**result, "assets": [asset["data_uri"] for asset in source["assets"]]}


def _describe_dtype(described: Mapping[str, Any]) -> Any:
    kind = StructDtype if "fields" in described else BuiltinDtype
    dtype: numpy.dtype[Any] = kind.from_json(described).to_numpy_dtype()
    return dtype.str if dtype.fields is None else _json_value(dtype.descr)


def _json_value(value: Any) -> Any:
    if isinstance(value, Column):
        return {"name": value.name, "type": value.type}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    return value


def _count_existing(uris: list[str]) -> int | None:
    """Return the number of files that exist on this host, with paths taken from the URIs as Tiled does.

    Return None if a URI is not a `file:` URI.
    """
    places = [urlparse(uri) for uri in uris]
    if any(place.scheme != "file" for place in places):
        return None
    return sum(Path(place.path).exists() for place in places)
