"""Requests about nodes, one method each: what the catalog asks of Tiled, in Tiled's own terms."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote_plus

import numpy
import pyarrow
from tiled.structures.array import BuiltinDtype, StructDtype
from tiled.structures.table import TableStructure

from tiledbroker._crash_points import crash_point

from .._errors import Refused
from ..mapping import (
    RUN_SPEC,
    AppendRows,
    Array,
    Column,
    CreateArray,
    CreateContainer,
    CreateTable,
    Creation,
    Growth,
    RegisterExternal,
    Specs,
    WriteArray,
    arrow_type,
)
from ._connection import Connection
from ._probe import ARROW_FILE, DatabaseProbe
from ._row_proof import row_keys

_BYTES_PER_VALUE: Final = 8  # in the columns that are read back
_BYTES_PER_SLICE: Final = 32 * 2**20  # Tiled's own limit for an answer is 300 MB, unless it is configured
_NODES_PER_PAGE: Final = 100
_ROWS: Final = "rows"  # among the properties of an array's data source: how many there are in its first chunk


class Nodes:
    """The nodes of one run on the server. Errors are those of `Connection.send`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._data_sources: dict[str, dict[str, Any]] = {}
        self._rows_per_slice = _BYTES_PER_SLICE // _BYTES_PER_VALUE

    @property
    def probe(self) -> DatabaseProbe:
        """Of the connection; see there."""
        return self._connection.probe

    def create(self, operation: Creation, *, tolerated_failures: int | None = None) -> None:
        """Make a node; a `Refused` with status 409 says that its key is taken."""
        parent, _, key = operation.path.rpartition("/")
        endpoint = "register" if isinstance(operation, RegisterExternal) else "metadata"
        response = self._connection.send(
            "POST", endpoint, parent, json=node_body(operation, key), tolerated_failures=tolerated_failures
        )
        self._remember(operation.path, response.json().get("data_sources"))

    def read(self, path: str) -> dict[str, Any]:
        """A node's attributes, with its data sources."""
        response = self._connection.send("GET", "metadata", path, params={"include_data_sources": True})
        attributes: dict[str, Any] = response.json()["data"]["attributes"]
        self._remember(path, attributes.get("data_sources"))
        return attributes

    def detach(self, path: str) -> None:
        """Have a table's node show no rows, so that none are deleted with it; it may be gone already.

        Without a data set's number Tiled looks for none. See `Rewrite`.
        """
        try:
            source = self.data_source(path)
            detached = {**source, "parameters": {**source["parameters"], "dataset_id": None}}
            self.put_data_source(path, detached, repeat=True)
        except Refused as error:
            if error.status != 404:
                raise

    def delete(self, path: str) -> None:
        """Delete a node, with what Tiled stores for it; it may be gone already."""
        try:
            self._connection.send("DELETE", "metadata", path, params={"external_only": False})
        except Refused as error:
            if error.status != 404:
                raise
        self._data_sources.pop(path, None)

    def set_metadata(self, path: str, metadata: Mapping[str, Any]) -> None:
        """Set these top-level keys of a node's metadata."""
        patch = [{"op": "add", "path": "/" + _pointer(key), "value": value} for key, value in metadata.items()]
        body = {"content-type": "application/json-patch+json", "metadata": patch, "specs": None}
        self._connection.send("PATCH", "metadata", path, json=body, params={"drop_revision": True})

    def close_stream(self, path: str) -> None:
        """Tell those who follow a node live that nothing more comes."""
        try:
            self._connection.send("DELETE", "stream/close", path)
        except Refused as error:
            if error.status != 404:  # nobody follows it, or the server has no live streams
                raise

    def data_source(self, path: str) -> Mapping[str, Any]:
        """The node's data source as it was made, or read or put last."""
        if path not in self._data_sources:
            self.read(path)
        return self._data_sources[path]

    def put_data_source(
        self, path: str, source: Mapping[str, Any], *, repeat: bool, params: Mapping[str, Any] | None = None
    ) -> None:
        """Replace the node's data source."""
        self._connection.send("PUT", "data_source", path, json={"data_source": source}, repeat=repeat, params=params)

    def set_order(self, path: str, order: tuple[str, ...]) -> None:
        """Have a table's rows come back ordered by these columns."""
        source = dict(self.data_source(path))
        source["parameters"] = {**source["parameters"], "order_by_args": _order_by(order)}
        self.put_data_source(path, source, repeat=True)
        self._data_sources[path] = source

    def columns(self, path: str) -> list[list[str]]:
        """Names and Arrow types of a table's columns."""
        self._data_sources.pop(path, None)
        structure = TableStructure.from_json(self.data_source(path)["structure"])
        return [[field.name, str(field.type)] for field in structure.arrow_schema_decoded]

    def size(self, path: str) -> int:
        """Length of a node's first dimension; of a table's column, its number of rows."""
        response = self._connection.send("GET", "metadata", path, params={"fields": "structure"})
        structure = response.json()["data"]["attributes"]["structure"] or {}
        return int((structure.get("shape") or [0])[0])

    def column(self, path: str, name: str) -> Iterator[bytes]:
        """The values of a table's column, in the order of its rows, as they are in memory: a slice at a time."""
        first = 0
        while True:
            rows = self._rows_per_slice
            params = {"slice": f"{first}:{first + rows}", "format": "application/octet-stream"}
            try:
                content = self._connection.send("GET", "array/full", f"{path}/{name}", params=params).content
            except Refused as error:
                if error.status != 400 or rows == 1:
                    raise
                self._rows_per_slice = rows // 2  # the server has a lower limit for the size of an answer
                continue
            yield content
            count = len(content) // _BYTES_PER_VALUE
            if count < rows:
                return
            first += count

    def row_keys(self, path: str, names: Sequence[str]) -> Array:
        """The keys of a table's rows, made of the values in these columns; see `RowProof`."""
        types = {column[0]: column[1] for column in self.columns(path)}
        columns = []
        for name in names:
            dtype = numpy.dtype(pyarrow.type_for_alias(types[name]).to_pandas_dtype())
            columns.append(numpy.frombuffer(b"".join(self.column(path, name)), dtype))
        shortest = min(map(len, columns))  # rows may come between two requests
        return row_keys([values[:shortest] for values in columns])

    def rows_of_array(self, path: str, first: int, stop: int) -> bytes:
        """Rows of an array, as they are in memory."""
        params = {"slice": f"{first}:{stop}", "format": "application/octet-stream"}
        return self._connection.send("GET", "array/full", path, params=params).content

    def below(self, path: str) -> Iterator[str]:
        """Paths of all nodes below a container."""
        for node in self._children(path, "structure_family"):
            child = f"{path}/{node['id']}"
            yield child
            if node["attributes"]["structure_family"] == "container":
                yield from self.below(child)

    def runs(self) -> Iterator[str]:
        """Keys of all runs in the container that runs are written to, whoever wrote them."""
        for node in self._children("", "specs"):
            if any(spec["name"] == RUN_SPEC[0] for spec in node["attributes"]["specs"] or ()):
                yield str(node["id"])

    def _children(self, path: str, fields: str) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            params = {"fields": fields, "page[offset]": offset, "page[limit]": _NODES_PER_PAGE}
            nodes = self._connection.send("GET", "search", path, params=params).json()["data"]
            yield from nodes
            if len(nodes) < _NODES_PER_PAGE:
                return
            offset += len(nodes)

    def grow(self, path: str, operation: Growth) -> None:
        """Send rows to a node, once: whether an ambiguous answer may be repeated is for the caller to find out."""
        if isinstance(operation, AppendRows):
            self._connection.send(
                "PATCH",
                "table/partition",
                path,
                params={"partition": 0},
                content=_arrow_file(operation),
                content_type=ARROW_FILE,
                repeat=False,
            )
        elif isinstance(operation, WriteArray):
            self._write_rows(path, operation)
        else:
            source = {**operation.new_data_source, "id": self.data_source(path)["id"]}
            params = {"patch_offset": _numbers(operation.offset), "patch_shape": _numbers(operation.shape)}
            self.put_data_source(path, source, repeat=False, params=params)

    def _write_rows(self, path: str, operation: WriteArray) -> None:
        """Send rows of an array; and how many there are, as long as they are in its first chunk.

        Zarr begins with a whole chunk, and Tiled takes all of it for rows as soon as some are written.
        """
        known = extent(self.data_source(path))
        values = numpy.ascontiguousarray(operation.values)
        response = self._connection.send(
            "PATCH",
            "array/full",
            path,
            params={"offset": str(operation.first), "shape": _numbers(values.shape), "extend": True},
            content=values.tobytes(),
            content_type="application/octet-stream",
            repeat=False,
        )
        structure = response.json()
        crash_point("catalog: rows of an array written")
        source = {**self.data_source(path), "structure": structure}
        if len(structure["chunks"][0]) == 1:
            source = with_rows(source, max(known, operation.stop))
            self.put_data_source(path, {**source, "assets": []}, repeat=False)
        self._data_sources[path] = source

    def trim_first_chunk(self, path: str, rows: int) -> bool:
        """Have an array show so many rows where it shows a whole chunk, the rest of which nobody has written.

        So it does if another process died before it told the number of rows.
        """
        source = self.read(path)["data_sources"][0]
        shown = (source["structure"].get("shape") or [0])[0]
        if extent(source) > rows or any(self.rows_of_array(path, rows, shown)):
            return False
        self.put_data_source(path, {**with_rows(source, rows), "assets": []}, repeat=True)
        return True

    def clear_array_key(self, operation: CreateArray) -> str:
        """Free an array's key from what a server left there that died while it made the array; returns its directory.

        The files have no node, and stand in the way of one for ever. As the files of a node they can be deleted.
        """
        parent, _, key = operation.path.rpartition("/")
        probe = f"{parent}/{key}-probe"
        place = self._make_and_delete(replace(operation, path=probe), "metadata", {})
        directory = place.rpartition("/")[0] + "/" + quote_plus(key)
        asset = {"data_uri": directory, "is_directory": True, "parameter": "data_uri", "num": None}
        try:
            self._make_and_delete(operation, "register", {"management": "external", "assets": [asset]})
        except Refused as error:
            if error.status != 409:  # it exists after all
                raise
        return directory

    def _make_and_delete(self, operation: CreateArray, endpoint: str, source: Mapping[str, Any]) -> str:
        """Make an array's node and delete it with its files; returns where they were."""
        parent, _, key = operation.path.rpartition("/")
        body = node_body(operation, key)
        body["data_sources"] = [{**body["data_sources"][0], **source}]
        try:
            response = self._connection.send("POST", endpoint, parent, json=body)
        except Refused as error:
            if error.status != 409 or endpoint == "register":
                raise
            self.delete(operation.path)  # left by one that was killed here
            response = self._connection.send("POST", endpoint, parent, json=body)
        made = response.json()["data_sources"][0]
        if made["management"] == "external":
            self.put_data_source(operation.path, {**made, "management": "writable"}, repeat=True)
        self.delete(operation.path)
        return str(made["assets"][0]["data_uri"])

    def _remember(self, path: str, data_sources: Any) -> None:
        if data_sources:
            self._data_sources[path] = data_sources[0]


def arrow_columns(columns: Iterable[Column]) -> list[list[str]]:
    """Names and Arrow types of columns, as `Nodes.columns` gives them."""
    return [[field.name, str(field.type)] for field in _schema(columns)]


def node_body(operation: Creation, key: str) -> dict[str, Any]:
    """The request that creates a node."""
    body: dict[str, Any] = {
        "id": key,
        "metadata": operation.metadata,
        "specs": [],
        "data_sources": [],
        "access_tags": None if operation.access_tags is None else list(operation.access_tags),
    }
    if isinstance(operation, CreateContainer):
        return {**body, "structure_family": "container", "specs": _specs(operation.specs)}
    source = _data_source_of(operation)
    return {**body, "structure_family": source["structure_family"], "data_sources": [source]}


def _data_source_of(operation: CreateTable | CreateArray | RegisterExternal) -> dict[str, Any]:
    if isinstance(operation, RegisterExternal):
        return dict(operation.data_source)
    source: dict[str, Any] = {"assets": [], "management": "writable", "properties": {}}
    if isinstance(operation, CreateTable):
        structure = TableStructure.from_schema(_schema(operation.columns), 1)
        return source | {
            "structure_family": "table",
            "mimetype": "application/x-tiled-sql-table",
            "parameters": {"order_by_args": _order_by(operation.order)},
            "structure": {
                "arrow_schema": structure.arrow_schema,
                "npartitions": 1,
                "columns": structure.columns,
                "resizable": False,
            },
        }
    data_type = BuiltinDtype.from_numpy_dtype(numpy.dtype(operation.dtype))
    return source | {
        "properties": {_ROWS: 0},
        "structure_family": "array",
        "mimetype": "application/x-zarr",
        "parameters": {},
        "structure": {
            "data_type": {
                "endianness": data_type.endianness,
                "kind": data_type.kind,
                "itemsize": data_type.itemsize,
                "dt_units": data_type.dt_units,
            },
            "shape": (0, *operation.shape),
            # Tiled makes a file of one such chunk.
            "chunks": [[size] for size in (operation.chunk_rows, *operation.shape)],
            "dims": operation.dims,
            "resizable": False,
        },
    }


def difference(operation: Creation, existing: Mapping[str, Any]) -> str:
    """What makes an existing node another one than the operation would create; "" if it is the same."""
    family = node_body(operation, "")["structure_family"]
    if existing["structure_family"] != family:
        return f"is a {existing['structure_family']}, not a {family}"
    if isinstance(operation, CreateContainer):
        wanted: Any = operation.metadata
        found: Any = existing["metadata"]
        for key in operation.identity:
            wanted, found = wanted.get(key), found.get(key) if isinstance(found, Mapping) else None
        if operation.identity and wanted != found:
            return f"has {'.'.join(operation.identity)} {found!r}, not {wanted!r}"
    if isinstance(operation, CreateArray | RegisterExternal):
        wanted = _kind_of(_data_source_of(operation)["structure"])
        found = _kind_of(existing["structure"])
        if wanted != found:
            return f"has {found}, not {wanted}"
    if isinstance(operation, RegisterExternal):
        wanted = operation.data_source["mimetype"]
        found = existing["data_sources"][0]["mimetype"]
        if wanted != found:
            return f"has files of type {found}, not {wanted}"
    return ""


def _kind_of(structure: Mapping[str, Any]) -> str:
    """What all rows of an array have in common; the columns of a table."""
    if "shape" not in structure:
        return f"columns {', '.join(structure.get('columns') or ())}"
    data_type = structure["data_type"]
    kind = StructDtype if "fields" in data_type else BuiltinDtype
    dtype: numpy.dtype[Any] = kind.from_json(data_type).to_numpy_dtype()
    return f"rows of type {dtype.descr if dtype.fields else dtype.str} and shape {tuple(structure['shape'][1:])}"


def extent(source: Mapping[str, Any]) -> int:
    """How much of its files a data source shows: rows of an array, else how many files.

    An array of ours whose rows are in its first chunk has as many as were told last, even if all of the chunk is shown.
    """
    shape = source["structure"].get("shape")
    if not shape:
        return len(source["assets"])
    told = (source.get("properties") or {}).get(_ROWS)
    return int(shape[0] if told is None or len(source["structure"]["chunks"][0]) > 1 else told)


def with_rows(source: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """An array's data source with so many rows, all of which are in the first chunk."""
    structure = source["structure"]
    shape, chunks = [rows, *structure["shape"][1:]], [[rows], *structure["chunks"][1:]]
    properties = {**source["properties"], _ROWS: rows}
    return {**source, "structure": {**structure, "shape": shape, "chunks": chunks}, "properties": properties}


def order_of(source: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns by which a table's rows come back in order."""
    return tuple(item["column"] for item in source["parameters"].get("order_by_args") or ())


def _specs(specs: Specs) -> list[dict[str, str | None]]:
    return [{"name": name, "version": version} for name, version in specs]


def _order_by(columns: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"column": column, "direction": "asc"} for column in columns]


def _schema(columns: Iterable[Column]) -> pyarrow.Schema:
    return pyarrow.schema([(column.name, arrow_type(column.type)) for column in columns])


def _arrow_file(operation: AppendRows) -> bytes:
    schema = _schema(operation.columns)
    arrays = [pyarrow.array(values, field.type) for values, field in zip(operation.values, schema, strict=True)]
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, schema) as writer:
        writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))
    return bytes(sink.getvalue())


def _pointer(key: str) -> str:
    """A metadata key as a segment of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def _numbers(values: Iterable[int]) -> str:
    return ",".join(map(str, values))
