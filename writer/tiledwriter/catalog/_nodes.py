"""Requests on nodes, one method per request, in the terms of Tiled's API."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote_plus

import httpx
import msgspec
import numpy
import pyarrow
from tiled.structures.array import BuiltinDtype, StructDtype
from tiled.structures.table import TableStructure

from tiledbroker._crash_points import crash_point

from .._errors import Refused
from .._names import TRIAL_KEY
from ..mapping import (
    RUN_SPEC,
    AppendRows,
    Array,
    Column,
    CreateArray,
    CreateContainer,
    CreateTable,
    Creation,
    DescribeExternal,
    Growth,
    RegisterExternal,
    Specs,
    WriteArray,
    arrow_type,
)
from ._connection import Connection, storage_of
from ._probe import ARROW_FILE, SQL_TABLE, DatabaseProbe, without_rows
from ._quiet import QuietPeriods
from ._row_proof import row_keys

# All columns that are read back have 8-byte values.
_BYTES_PER_VALUE: Final = 8
# Tiled limits a response to 300 MB by default.
_MAX_SLICE_BYTES: Final = 32 * 2**20
_NODES_PER_PAGE: Final = 100
SQLITE: Final = "sqlite"
"""Kind of database that works within Tiled's process, and that does not tell which types columns have."""
_FIRST_CHUNK_ROWS_PROPERTY: Final = "rows"


class Nodes:
    """Nodes on the server, accessed by path; all methods that send a request raise the errors of `Connection.send`.

    With `quiet`, methods that read a node raise `NodeNotQuiet` while Tiled says that it is absent, until that has been
    so for the quiet period: reads may lag behind its creation.

    Parameters
    ----------
    connection
        Connection to the server.
    quiet
        Quiet periods of the run's nodes; None to believe Tiled at once that a node is absent.
    """

    def __init__(self, connection: Connection, quiet: QuietPeriods | None = None) -> None:
        self._connection = connection
        self._quiet = quiet
        self._data_sources: dict[str, dict[str, Any]] = {}
        # By path of a node for external files: a checksum of what Tiled was last told of how to read them.
        self._told_readings: dict[str, int] = {}
        self._rows_per_slice = _MAX_SLICE_BYTES // _BYTES_PER_VALUE

    @property
    def probe(self) -> DatabaseProbe:
        """Database probe of the connection."""
        return self._connection.probe

    def create(self, operation: Creation, *, tolerated_failures: int | None = None) -> None:
        """Create a node.

        Parameters
        ----------
        operation
            Describes the node.
        tolerated_failures
            See `Connection.send`.

        Raises
        ------
        Refused
            With status 409 if a node with this key exists.
        """
        parent, _, key = operation.path.rpartition("/")
        endpoint = "register" if isinstance(operation, RegisterExternal) else "metadata"
        may_be_made = True
        try:
            response = self._connection.send(
                "POST", endpoint, parent, json=node_body(operation, key), tolerated_failures=tolerated_failures
            )
        except Refused as error:
            may_be_made = error.may_be_ours
            raise
        finally:
            if may_be_made and self._quiet is not None:
                self._quiet.note_creation(operation.path)
        self._cache_data_source(operation.path, response.json().get("data_sources"))

    def read(self, path: str, *, may_be_absent: bool = False) -> dict[str, Any]:
        """Return a node's attributes, including its data sources; if it may be absent, believe that at once."""
        response = self._get("metadata", path, {"include_data_sources": True}, may_be_absent=may_be_absent)
        attributes: dict[str, Any] = response.json()["data"]["attributes"]
        self._cache_data_source(path, attributes.get("data_sources"))
        return attributes

    def _get(
        self, endpoint: str, path: str, params: Mapping[str, Any], *, may_be_absent: bool = False
    ) -> httpx.Response:
        quiet = None if may_be_absent else self._quiet
        if quiet is None:
            return self._connection.send("GET", endpoint, path, params=params)
        asked = quiet.read_clock()
        try:
            response = self._connection.send("GET", endpoint, path, params=params)
        except Refused as error:
            if error.status == 404:
                quiet.check_absence(path, asked)
            raise
        quiet.note_presence(path)
        return response

    def detach(self, path: str, *, may_be_absent: bool) -> None:
        """Detach a table's node from its rows so that deleting the node deletes no rows; ignore a missing node.

        Tiled finds the rows by `dataset_id`; without one it deletes none. See `Rewrite` for the reason, and `read`.
        """
        try:
            self.put_data_source(path, without_rows(self.data_source(path, may_be_absent=may_be_absent)), repeat=True)
        except Refused as error:
            if error.status != 404:
                raise

    def delete(self, path: str) -> None:
        """Delete a node and the data that Tiled stores for it; ignore a missing node."""
        try:
            self._connection.send("DELETE", "metadata", path, params={"external_only": False})
        except Refused as error:
            if error.status != 404:
                raise
        self._data_sources.pop(path, None)

    def forget(self, path: str) -> None:
        """Forget what was read of, or sent to, a node and those below it, because somebody else has changed them."""
        for cache in (self._data_sources, self._told_readings):
            for known in [known for known in cache if known == path or known.startswith(f"{path}/")]:
                del cache[known]

    def set_metadata(self, path: str, metadata: Mapping[str, Any], removed: Iterable[str] = ()) -> None:
        """Set these top-level keys of a node's metadata, and remove others, if it has them."""
        patch = [{"op": "add", "path": "/" + _escape_key(key), "value": value} for key, value in metadata.items()]
        for key in removed:
            # A key that is not there cannot be removed.
            place = {"path": "/" + _escape_key(key)}
            patch += [{"op": "add", **place, "value": None}, {"op": "remove", **place}]
        body = {"content-type": "application/json-patch+json", "metadata": patch, "specs": None}
        self._connection.send("PATCH", "metadata", path, json=body, params={"drop_revision": True})

    def close_stream(self, path: str) -> None:
        """Tell live subscribers of a node that it is complete."""
        try:
            self._connection.send("DELETE", "stream/close", path)
        except Refused as error:
            # Tiled answers 404 if the node has no subscribers or live streaming is not enabled.
            if error.status != 404:
                raise

    def data_source(self, path: str, *, may_be_absent: bool = False) -> Mapping[str, Any]:
        """Return the node's data source as last created, read or replaced here; read it if it is not known."""
        if path not in self._data_sources:
            self.read(path, may_be_absent=may_be_absent)
        return self._data_sources[path]

    def put_data_source(
        self, path: str, source: Mapping[str, Any], *, repeat: bool, params: Mapping[str, Any] | None = None
    ) -> None:
        """Replace the node's data source; `repeat` and `params` are those of `Connection.send`."""
        self._connection.send("PUT", "data_source", path, json={"data_source": source}, repeat=repeat, params=params)

    def show_rows_of(self, path: str, copy: str) -> None:
        """Make a table's node show the rows of another table."""
        shown = {name: self.data_source(copy)[name] for name in ("structure", "parameters")}
        source = {**self.data_source(path), **shown}
        self.put_data_source(path, source, repeat=True)
        # What was sent, because what is read back may be older.
        self._data_sources[path] = source

    def set_order(self, path: str, order: tuple[str, ...]) -> None:
        """Make Tiled return a table's rows ordered by these columns, ascending."""
        source = dict(self.data_source(path))
        source["parameters"] = {**source["parameters"], "order_by_args": _order_by(order)}
        self.put_data_source(path, source, repeat=True)
        self._data_sources[path] = source

    def columns(self, path: str) -> list[list[str]]:
        """Read the names and Arrow types of a table's columns from the server."""
        return columns_of(self.read(path)["data_sources"][0])

    def size(self, path: str, *, may_be_absent: bool = False) -> int:
        """Return the length of a node's first dimension; for a table's column, the number of rows. See `read`."""
        response = self._get("metadata", path, {"fields": "structure"}, may_be_absent=may_be_absent)
        structure = response.json()["data"]["attributes"]["structure"] or {}
        return int((structure.get("shape") or [0])[0])

    def column(self, path: str, name: str) -> Iterator[bytes]:
        """Yield the values of a table's column in row order, one slice at a time, as raw bytes of 8-byte numbers."""
        first = 0
        while True:
            rows = self._rows_per_slice
            params = {"slice": f"{first}:{first + rows}", "format": "application/octet-stream"}
            try:
                content = self._get("array/full", f"{path}/{name}", params).content
            except Refused as error:
                if error.status != 400 or rows == 1:
                    raise
                # The server is configured with a lower limit on the size of a response.
                self._rows_per_slice = rows // 2
                continue
            yield content
            count = len(content) // _BYTES_PER_VALUE
            if count < rows:
                return
            first += count

    def row_keys(self, path: str, names: Sequence[str]) -> Array:
        """Return the keys of a table's rows, made from these one or two columns; see `RowProof`."""
        types = dict(columns_of(self.data_source(path)))
        columns = []
        for name in names:
            dtype = numpy.dtype(pyarrow.type_for_alias(types[name]).to_pandas_dtype())
            columns.append(numpy.frombuffer(b"".join(self.column(path, name)), dtype))
        # Rows may be appended between the requests for two columns.
        shortest = min(map(len, columns))
        return row_keys([values[:shortest] for values in columns])

    def rows_of_array(self, path: str, first: int, stop: int) -> bytes:
        """Return rows `first` to `stop` of an array as raw bytes."""
        params = {"slice": f"{first}:{stop}", "format": "application/octet-stream"}
        return self._get("array/full", path, params).content

    def below(self, path: str) -> Iterator[str]:
        """Yield the paths of all nodes below a container, at any depth."""
        for node in self._list_children(path, "structure_family"):
            child = f"{path}/{node['id']}"
            yield child
            if node["attributes"]["structure_family"] == "container":
                yield from self.below(child)

    def runs(self) -> Iterator[str]:
        """Yield the keys of all runs in the container that runs are written to, including those of other writers."""
        for node in self._list_children("", "specs"):
            if any(spec["name"] == RUN_SPEC[0] for spec in node["attributes"]["specs"] or ()):
                yield str(node["id"])

    def _list_children(self, path: str, fields: str) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            params = {"fields": fields, "page[offset]": offset, "page[limit]": _NODES_PER_PAGE}
            nodes = self._get("search", path, params).json()["data"]
            yield from nodes
            if len(nodes) < _NODES_PER_PAGE:
                return
            offset += len(nodes)

    def grow(self, path: str, operation: Growth, before_reconnection: Callable[[], None] = lambda: None) -> None:
        """Send rows or new files to a node, without repeating a request whose outcome is unknown.

        Parameters
        ----------
        path
            The node's path.
        operation
            Has the rows or files.
        before_reconnection
            Called before rows of an array are sent again because there was no connection.

        Raises
        ------
        Ambiguous
            The outcome is unknown; the caller must determine it before it sends the rows again.
        """
        if isinstance(operation, AppendRows):
            self._connection.send(
                "PATCH",
                "table/partition",
                path,
                params={"partition": 0},
                content=arrow_file(operation),
                content_type=ARROW_FILE,
                repeat=False,
            )
        elif isinstance(operation, WriteArray):
            self._write_rows(path, operation, before_reconnection)
        else:
            source = {**operation.new_data_source, "id": self.data_source(path)["id"]}
            params = {"patch_offset": _join_numbers(operation.offset), "patch_shape": _join_numbers(operation.shape)}
            self.put_data_source(path, source, repeat=False, params=params)
            self._told_readings[path] = _checksum_of_reading(source)

    def describe_external(self, operation: DescribeExternal) -> None:
        """Set the structure and parameters of a node for external files, unless they were last set to the same."""
        path, source = operation.path, operation.data_source
        if self._told_readings.get(path) != _checksum_of_reading(source):
            self.put_data_source(path, {**source, "id": self.data_source(path)["id"]}, repeat=True)

    def _write_rows(self, path: str, operation: WriteArray, before_reconnection: Callable[[], None]) -> None:
        """Send rows of an array, and their total number as long as the array has only one chunk.

        Zarr allocates a whole chunk, and Tiled reports all of it as rows as soon as the first ones are written.
        """
        known = extent(self.data_source(path))
        values = numpy.ascontiguousarray(operation.values)
        response = self._connection.send(
            "PATCH",
            "array/full",
            path,
            params={"offset": str(operation.first), "shape": _join_numbers(values.shape), "extend": True},
            content=values.tobytes(),
            content_type="application/octet-stream",
            repeat=False,
            before_reconnection=before_reconnection,
        )
        structure = response.json()
        crash_point("catalog: rows of an array written")
        source = {**self.data_source(path), "structure": structure}
        if len(structure["chunks"][0]) == 1:
            source = with_rows(source, max(known, operation.stop))
            self.put_data_source(path, {**source, "assets": []}, repeat=False)
        self._data_sources[path] = source

    def trim_first_chunk(self, path: str, rows: int) -> bool:
        """Reduce the reported length of an array from its whole first chunk to the rows that were written.

        An array reports the whole chunk if its writer died between sending the rows and sending their number.

        Parameters
        ----------
        path
            The array's path.
        rows
            Number of rows that the array should have.

        Returns
        -------
        bool
            False if the array has further rows, by its recorded number or because they are not all zero.
        """
        source = self.read(path)["data_sources"][0]
        shown = (source["structure"].get("shape") or [0])[0]
        if extent(source) > rows or any(self.rows_of_array(path, rows, shown)):
            return False
        self.put_data_source(path, {**with_rows(source, rows), "assets": []}, repeat=True)
        return True

    def clear_array_key(self, operation: CreateArray) -> str:
        """Delete files that a server left when it died while creating an array, and return their directory.

        The files have no node, and while they exist every attempt to create a node with this key fails. Registering a
        node for them makes it possible to delete them with that node.
        """
        parent, _, key = operation.path.rpartition("/")
        trial = replace(operation, path=f"{parent}/{TRIAL_KEY}")
        place = self._make_and_delete(trial, "metadata", {})
        directory = place.rpartition("/")[0] + "/" + quote_plus(key)
        asset = {"data_uri": directory, "is_directory": True, "parameter": "data_uri", "num": None}
        try:
            self._make_and_delete(operation, "register", {"management": "external", "assets": [asset]})
        except Refused as error:
            # Status 409: the node exists after all.
            if error.status != 409:
                raise
        return directory

    def _make_and_delete(self, operation: CreateArray, endpoint: str, source: Mapping[str, Any]) -> str:
        """Create an array's node, delete it with its files, and return the URI of the deleted files."""
        parent, _, key = operation.path.rpartition("/")
        body = node_body(operation, key)
        body["data_sources"] = [{**body["data_sources"][0], **source}]
        try:
            response = self._connection.send("POST", endpoint, parent, json=body)
        except Refused as error:
            if error.status != 409 or endpoint == "register":
                raise
            # A process that was killed at this point has left the node.
            self.delete(operation.path)
            response = self._connection.send("POST", endpoint, parent, json=body)
        made = response.json()["data_sources"][0]
        if made["management"] == "external":
            self.put_data_source(operation.path, {**made, "management": "writable"}, repeat=True)
        self.delete(operation.path)
        return str(made["assets"][0]["data_uri"])

    def storage(self, path: str) -> str:
        """Return the kind of database that a table is stored in, such as "sqlite"; "" unless it is known already."""
        return storage_of(self._data_sources.get(path, {}))

    def find_storage(self, path: str) -> str:
        """Return the kind of database that a table is stored in; ask the server if it is not known."""
        return storage_of(self.data_source(path))

    def _cache_data_source(self, path: str, data_sources: Any) -> None:
        if data_sources:
            self._data_sources[path] = data_sources[0]
            self._connection.note_storage(data_sources[0])


def arrow_columns(columns: Iterable[Column]) -> list[list[str]]:
    """Return the names and Arrow types of columns in the form of `Nodes.columns`."""
    return [[field.name, str(field.type)] for field in _arrow_schema(columns)]


def node_body(operation: Creation, key: str) -> dict[str, Any]:
    """Return the JSON body of the request that creates a node with this key."""
    body: dict[str, Any] = {
        "id": key,
        "metadata": operation.metadata,
        "specs": [],
        "data_sources": [],
        "access_tags": None if operation.access_tags is None else list(operation.access_tags),
    }
    if isinstance(operation, CreateContainer):
        return {**body, "structure_family": "container", "specs": _encode_specs(operation.specs)}
    source = _data_source_of(operation)
    return {**body, "structure_family": source["structure_family"], "data_sources": [source]}


def _data_source_of(operation: CreateTable | CreateArray | RegisterExternal) -> dict[str, Any]:
    if isinstance(operation, RegisterExternal):
        return dict(operation.data_source)
    source: dict[str, Any] = {"assets": [], "management": "writable", "properties": {}}
    if isinstance(operation, CreateTable):
        structure = TableStructure.from_schema(_arrow_schema(operation.columns), 1)
        return source | {
            "structure_family": "table",
            "mimetype": SQL_TABLE,
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
        "properties": {_FIRST_CHUNK_ROWS_PROPERTY: 0},
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
            # Tiled stores each such chunk in one file.
            "chunks": [[size] for size in (operation.chunk_rows, *operation.shape)],
            "dims": operation.dims,
            "resizable": False,
        },
    }


def difference(operation: Creation, existing: Mapping[str, Any]) -> str:
    """Return how an existing node differs from the node that the operation creates; "" if they are compatible."""
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


def is_detached(attributes: Mapping[str, Any]) -> bool:
    """Return True if `Nodes.detach` has detached a table's node, with these attributes, from its rows."""
    return attributes["data_sources"][0]["parameters"].get("dataset_id", 0) is None


def _kind_of(structure: Mapping[str, Any]) -> str:
    """Return a description of an array's row type and shape, or of a table's columns."""
    if "shape" not in structure:
        return f"columns {', '.join(structure.get('columns') or ())}"
    data_type = structure["data_type"]
    kind = StructDtype if "fields" in data_type else BuiltinDtype
    dtype: numpy.dtype[Any] = kind.from_json(data_type).to_numpy_dtype()
    return f"rows of type {dtype.descr if dtype.fields else dtype.str} and shape {tuple(structure['shape'][1:])}"


def extent(source: Mapping[str, Any]) -> int:
    """Return the number of rows of an array's data source, or the number of files of one without a shape.

    An array that this package wrote and that has only one chunk has as many rows as its property
    `_FIRST_CHUNK_ROWS_PROPERTY` says, even if its shape is that of the whole chunk.
    """
    shape = source["structure"].get("shape")
    if not shape:
        return len(source["assets"])
    told = (source.get("properties") or {}).get(_FIRST_CHUNK_ROWS_PROPERTY)
    return int(shape[0] if told is None or len(source["structure"]["chunks"][0]) > 1 else told)


def _checksum_of_reading(source: Mapping[str, Any]) -> int:
    """Return a checksum of how a data source is read, whichever files it names."""
    return zlib.crc32(msgspec.json.encode({name: source[name] for name in ("structure", "parameters", "properties")}))


def with_rows(source: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """Return an array's data source with its length set to `rows`, all in the first chunk."""
    structure = source["structure"]
    shape, chunks = [rows, *structure["shape"][1:]], [[rows], *structure["chunks"][1:]]
    properties = {**source["properties"], _FIRST_CHUNK_ROWS_PROPERTY: rows}
    return {**source, "structure": {**structure, "shape": shape, "chunks": chunks}, "properties": properties}


def order_of(source: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the columns by which Tiled orders a table's rows."""
    return tuple(item["column"] for item in source["parameters"].get("order_by_args") or ())


def columns_of(source: Mapping[str, Any]) -> list[list[str]]:
    """Return the names and Arrow types of the columns of a table's data source."""
    structure = TableStructure.from_json(source["structure"])
    return [[field.name, str(field.type)] for field in structure.arrow_schema_decoded]


def _encode_specs(specs: Specs) -> list[dict[str, str | None]]:
    return [{"name": name, "version": version} for name, version in specs]


def _order_by(columns: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"column": column, "direction": "asc"} for column in columns]


def _arrow_schema(columns: Iterable[Column]) -> pyarrow.Schema:
    return pyarrow.schema([(column.name, arrow_type(column.type)) for column in columns])


def arrow_file(operation: AppendRows) -> bytes:
    """Return the rows as the bytes of an Arrow file."""
    schema = _arrow_schema(operation.columns)
    arrays = [pyarrow.array(values, field.type) for values, field in zip(operation.values, schema, strict=True)]
    gaps = [field.name for field, values in zip(schema, arrays, strict=True) if values.null_count]
    schema = _with_nullable_integers(schema, gaps)
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=schema))
    return bytes(sink.getvalue())


def _with_nullable_integers(schema: pyarrow.Schema, gaps: Iterable[str]) -> pyarrow.Schema:
    """Have pandas keep integer columns with missing values as integers.

    Tiled's server reads the rows with pandas, which makes floats of such columns: integers beyond 2**53 would lose
    digits, and those near 2**63 fail.
    """
    columns = [
        {"name": name, "field_name": name, "pandas_type": "int64", "numpy_type": "Int64", "metadata": None}
        for name in gaps
        if schema.field(name).type == pyarrow.int64()
    ]
    described = {"index_columns": [], "column_indexes": [], "columns": columns}
    return schema.with_metadata({"pandas": msgspec.json.encode(described)}) if columns else schema


def _escape_key(key: str) -> str:
    """Escape a metadata key as a segment of a JSON pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def _join_numbers(values: Iterable[int]) -> str:
    return ",".join(map(str, values))
