"""Applies operations to Tiled so that each has its effect once, whatever was killed or cut in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol
from urllib.parse import quote_plus

import numpy
import pyarrow
from tiled.structures.array import BuiltinDtype
from tiled.structures.table import TableStructure

from tiledbroker import NodeProgress

from ._columns import arrow_type
from ._connection import Connection, ServerFailed
from ._errors import Ambiguous, ColumnsRefused, NotOurs, OperationRefused, Refused, RowCountMismatch, WriterError
from ._operations import (
    AppendRows,
    CloseStream,
    CreateArray,
    CreateContainer,
    CreateTable,
    Creation,
    ExtendExternal,
    Growth,
    Operation,
    OrderTable,
    RegisterExternal,
    Specs,
    UpdateMetadata,
    WriteArray,
    describe_operation,
)

log = logging.getLogger(__name__)

QUIET_PERIOD: Final = 5.0
MAX_ROWS: Final = 20_000
MAX_BYTES: Final = 32 * 2**20
ARROW_FILE: Final = "application/vnd.apache.arrow.file"

_SLOWEST: Final = "slowest_append"  # keys of the ledger
_LISTS_TAKEN: Final = "list_columns_taken"


class Ledger(Protocol):
    """Where progress is kept: `tiledbroker.Journal`."""

    def progress(self) -> dict[str, NodeProgress]: ...
    def set_progress(self, node: str, rows: int, intent: int | None = None) -> None: ...
    def note(self, event: str, **detail: Any) -> None: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...


class Settling(WriterError):
    """Raised when an operation has to wait until it is clear what became of an earlier one on the same node."""


@dataclass
class Settlement:
    """Watches a node that a request may still be changing: quiet once its size has not moved for a while."""

    size: int | None = None
    since: float = 0.0

    def observe(self, size: int, asked: float, answered: float) -> float:
        """Seconds for which the node has had this size for certain, with when that was asked and answered."""
        if size != self.size:
            self.size, self.since = size, answered
        return max(0.0, asked - self.since)


class TiledCatalog:
    """One run's nodes in Tiled.

    Parameters
    ----------
    connection
        To the server.
    ledger
        Keeps how many rows of each node the server has confirmed, and which append is under way, on disk.
    quiet_period
        Seconds for which a node must not have moved before an append whose fate is unknown counts as not carried out.
    clock
        Monotonic time in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        ledger: Ledger,
        *,
        quiet_period: float = QUIET_PERIOD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._ledger = ledger
        self._quiet_period = quiet_period
        self._clock = clock
        self._progress = ledger.progress()
        self._settling: dict[str, Settlement] = {}
        self._slowest_append = float(ledger.get(_SLOWEST, 0.0))
        self._data_sources: dict[str, dict[str, Any]] = {}
        self._max_rows: dict[str, int] = {}

    def apply(self, operations: Iterable[Operation]) -> list[Operation]:
        """Carry out operations in order.

        Returns
        -------
        list
            Those that have to wait because their node is settling; give them again, before later ones.

        Raises
        ------
        OperationRefused
            Tiled will never do it.
        Stopped
            The process is told to end.
        """
        waiting: list[Operation] = []
        blocked: set[str] = set()
        for operation in operations:
            if not self._must_wait(operation, blocked):
                try:
                    self._apply(operation)
                    continue
                except Settling:
                    blocked.add(operation.path)
                except Refused as error:
                    raise OperationRefused(describe_operation(operation), str(error)) from error
            waiting.append(operation)
        return waiting

    @staticmethod
    def _must_wait(operation: Operation, blocked: set[str]) -> bool:
        if operation.path in blocked:
            return True
        # What ends a run or a stream comes after all that is in it.
        final = isinstance(operation, UpdateMetadata | CloseStream)
        return final and any(path.startswith(operation.path + "/") for path in blocked)

    def _apply(self, operation: Operation) -> None:
        if isinstance(operation, AppendRows | WriteArray | ExtendExternal):
            self._grow(operation)
        elif isinstance(operation, OrderTable):
            self._order(operation)
        elif isinstance(operation, UpdateMetadata):
            self._update_metadata(operation)
        elif isinstance(operation, CloseStream):
            self._close(operation)
        else:
            self._create(operation)

    # Nodes

    def _create(self, operation: Creation) -> None:
        if operation.path in self._progress:
            return
        # A 500 for list columns is SQLite's answer to them: no use to wait for another, unless it has taken some.
        lists = isinstance(operation, CreateTable) and any(c.type.startswith("list<") for c in operation.columns)
        unproven = lists and not self._ledger.get(_LISTS_TAKEN)
        try:
            self._post(operation, tolerated_failures=2 if unproven or isinstance(operation, CreateArray) else None)
        except ServerFailed as error:
            if not isinstance(operation, CreateArray):
                raise ColumnsRefused(describe_operation(operation), str(error)) from error
            self._clear_away(operation)
            self._post(operation)
        if unproven:
            self._ledger.set(_LISTS_TAKEN, True)

    def _post(self, operation: Creation, *, tolerated_failures: int | None = None) -> None:
        parent, _, key = operation.path.rpartition("/")
        endpoint = "register" if isinstance(operation, RegisterExternal) else "metadata"
        body = _node(operation, key)
        try:
            response = self._connection.send("POST", endpoint, parent, json=body, tolerated_failures=tolerated_failures)
        except Refused as error:
            if error.status != 409:
                raise
            self._adopt(operation)
        else:
            self._remember_data_source(operation.path, response.json().get("data_sources"))
            self._record(operation.path, 0)

    def _clear_away(self, operation: CreateArray) -> None:
        """Free an array's key from what a server left there that died while it made the array.

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
        self._ledger.note("cleared away", node=operation.path, directory=directory)

    def _make_and_delete(self, operation: CreateArray, endpoint: str, source: Mapping[str, Any]) -> str:
        """Make an array's node and delete it with its files; returns where they were."""
        parent, _, key = operation.path.rpartition("/")
        body = _node(operation, key)
        body["data_sources"] = [{**body["data_sources"][0], **source}]
        try:
            response = self._connection.send("POST", endpoint, parent, json=body)
        except Refused as error:
            if error.status != 409 or endpoint == "register":
                raise
            self._delete(operation.path)  # left by one that was killed here
            response = self._connection.send("POST", endpoint, parent, json=body)
        made = response.json()["data_sources"][0]
        if made["management"] == "external":
            self._put_data_source(operation.path, {**made, "management": "writable"}, repeat=True)
        self._delete(operation.path)
        return str(made["assets"][0]["data_uri"])

    def _delete(self, path: str) -> None:
        try:
            self._connection.send("DELETE", "metadata", path, params={"external_only": False})
        except Refused as error:
            if error.status != 404:
                raise

    def _adopt(self, operation: Creation) -> None:
        """The node exists: it is ours from before a crash, or somebody else's."""
        attributes = self._read_node(operation.path)
        if difference := _difference(operation, attributes):
            raise NotOurs(describe_operation(operation), f"the node exists and {difference}")
        self._ledger.note("adopted", node=operation.path)
        rows = self._count_rows(operation.path) if isinstance(operation, CreateTable) else 0
        self._record(operation.path, rows)

    def _update_metadata(self, operation: UpdateMetadata) -> None:
        patch = [
            {"op": "add", "path": "/" + _pointer(key), "value": value} for key, value in operation.metadata.items()
        ]
        body = {"content-type": "application/json-patch+json", "metadata": patch, "specs": None}
        self._connection.send("PATCH", "metadata", operation.path, json=body, params={"drop_revision": True})

    def _close(self, operation: CloseStream) -> None:
        try:
            self._connection.send("DELETE", "stream/close", operation.path)
        except Refused as error:
            if error.status != 404:  # nobody follows it, or the server has no live streams
                raise

    def _order(self, operation: OrderTable) -> None:
        source = dict(self._data_source(operation.path))
        source["parameters"] = {**source["parameters"], "order_by_args": _order_by(operation.order)}
        self._put_data_source(operation.path, source, repeat=True)
        self._data_sources[operation.path] = source

    # Rows

    def _grow(self, operation: Growth) -> None:
        progress = self._progress[operation.path]
        if progress.intent is not None:
            self._settle(operation.path, type(operation), progress.rows, progress.intent)
        done = self._progress[operation.path].rows
        if operation.stop <= done:
            return
        if operation.first > done:
            raise WriterError(f"{describe_operation(operation)} does not continue at row {done}; this is a defect.")
        if isinstance(operation, ExtendExternal):
            self._attempt(operation)
            return
        for piece in self._pieces(operation.rows(done, operation.stop)):
            self._attempt(piece)

    def _pieces(self, operation: AppendRows | WriteArray) -> Iterator[AppendRows | WriteArray]:
        """The operation in parts of a size that one request may have; the limit may shrink on the way."""
        first = operation.first
        while first < operation.stop:
            stop = min(operation.stop, first + self._row_limit(operation))
            piece = operation.rows(first, stop)
            yield piece
            first = self._progress[operation.path].rows

    def _row_limit(self, operation: AppendRows | WriteArray) -> int:
        limit = self._max_rows.get(operation.path)
        if limit is None:
            limit = MAX_ROWS
            if isinstance(operation, WriteArray):
                limit = max(1, MAX_BYTES // max(1, operation.values[:1].nbytes))
            self._max_rows[operation.path] = limit
        return limit

    def _attempt(self, operation: Growth) -> None:
        """Send one growth: its intent on disk before, its completion after."""
        rows = self._progress[operation.path].rows
        self._record(operation.path, rows, operation.stop)
        started = self._clock()
        try:
            self._send_growth(operation)
        except Ambiguous as error:
            self._took(self._clock() - started)
            self._ledger.note("ambiguous", operation=describe_operation(operation), reason=str(error))
            log.warning("%s may or may not have been done (%s); looking.", describe_operation(operation), error)
            raise Settling from error
        except Refused as error:
            self._record(operation.path, rows)
            if error.status != 413 or operation.stop - operation.first <= 1 or isinstance(operation, ExtendExternal):
                raise
            self._max_rows[operation.path] = (operation.stop - operation.first) // 2
        else:
            self._took(self._clock() - started)
            self._record(operation.path, operation.stop)

    def _took(self, seconds: float) -> None:
        """Remember the slowest growth; across restarts if it lengthens the quiet period."""
        if seconds > self._slowest_append:
            self._slowest_append = seconds
            if 3 * seconds > self._quiet_period:
                self._ledger.set(_SLOWEST, seconds)

    def _send_growth(self, operation: Growth) -> None:
        if isinstance(operation, AppendRows):
            self._connection.send(
                "PATCH",
                "table/partition",
                operation.path,
                params={"partition": 0},
                content=_arrow_file(operation),
                content_type=ARROW_FILE,
                repeat=False,
            )
        elif isinstance(operation, WriteArray):
            values = numpy.ascontiguousarray(operation.values)
            self._connection.send(
                "PATCH",
                "array/full",
                operation.path,
                params={"offset": str(operation.first), "shape": _numbers(values.shape), "extend": True},
                content=values.tobytes(),
                content_type="application/octet-stream",
                repeat=False,
            )
        else:
            source = {**operation.data_source, "id": self._data_source(operation.path)["id"]}
            params = {"patch_offset": _numbers(operation.offset), "patch_shape": _numbers(operation.shape)}
            self._put_data_source(operation.path, source, repeat=False, params=params)

    def _settle(self, path: str, kind: type[Growth], rows: int, intent: int) -> None:
        """Find out what became of a growth, or raise `Settling` until that is clear.

        An append that is there cannot come again. One that is not there may still be under way, as a request lives on
        in the server when its client is gone: only a row count that does not move for a while tells that it is not.
        """
        asked = self._clock()
        size = self._count_rows(path) if kind is AppendRows else self._first_dimension(path)
        quiet = self._settling.setdefault(path, Settlement()).observe(size, asked, self._clock())
        # An array has its shape before its content; of files it is the frames that have a shape, not the datums.
        arrived = kind is AppendRows and size == intent
        if not arrived and quiet < max(self._quiet_period, 3 * self._slowest_append):
            raise Settling
        if kind is AppendRows and size not in (rows, intent):
            raise RowCountMismatch(path, size, rows, intent)
        del self._settling[path]
        self._ledger.note("reconciled", node=path, found=size, confirmed=rows, intent=intent, quiet=round(quiet, 3))
        self._record(path, intent if arrived else rows)

    def _record(self, path: str, rows: int, intent: int | None = None) -> None:
        self._ledger.set_progress(path, rows, intent)
        self._progress[path] = NodeProgress(rows, intent)

    # Questions

    def _count_rows(self, path: str) -> int:
        return self._first_dimension(f"{path}/seq_num")

    def _first_dimension(self, path: str) -> int:
        response = self._connection.send("GET", "metadata", path, params={"fields": "structure"})
        structure = response.json()["data"]["attributes"]["structure"] or {}
        return int((structure.get("shape") or [0])[0])

    def _read_node(self, path: str) -> dict[str, Any]:
        response = self._connection.send("GET", "metadata", path, params={"include_data_sources": True})
        attributes: dict[str, Any] = response.json()["data"]["attributes"]
        self._remember_data_source(path, attributes.get("data_sources"))
        return attributes

    def _data_source(self, path: str) -> Mapping[str, Any]:
        if path not in self._data_sources:
            self._read_node(path)
        return self._data_sources[path]

    def _remember_data_source(self, path: str, data_sources: Any) -> None:
        if data_sources:
            self._data_sources[path] = data_sources[0]

    def _put_data_source(
        self, path: str, source: Mapping[str, Any], *, repeat: bool, params: Mapping[str, Any] | None = None
    ) -> None:
        self._connection.send("PUT", "data_source", path, json={"data_source": source}, repeat=repeat, params=params)


def _node(operation: Creation, key: str) -> dict[str, Any]:
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
    shape = (operation.chunk_rows, *operation.shape)
    return source | {
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
            "shape": shape,
            "chunks": [[size] for size in shape],
            "dims": operation.dims,
            "resizable": False,
        },
    }


def _difference(operation: Creation, existing: Mapping[str, Any]) -> str:
    """What makes an existing node another one than the operation would create; "" if it is the same."""
    family = _node(operation, "")["structure_family"]
    if existing["structure_family"] != family:
        return f"is a {existing['structure_family']}, not a {family}"
    if isinstance(operation, CreateContainer):
        wanted: Any = operation.metadata
        found: Any = existing["metadata"]
        for key in operation.identity:
            wanted, found = wanted.get(key), found.get(key) if isinstance(found, Mapping) else None
        if operation.identity and wanted != found:
            return f"has {'.'.join(operation.identity)} {found!r}, not {wanted!r}"
    return ""


def _specs(specs: Specs) -> list[dict[str, str | None]]:
    return [{"name": name, "version": version} for name, version in specs]


def _order_by(columns: tuple[str, ...]) -> list[dict[str, str]]:
    return [{"column": column, "direction": "asc"} for column in columns]


def _schema(columns: Iterable[Any]) -> pyarrow.Schema:
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
