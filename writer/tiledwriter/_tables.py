"""The internal data of one stream: a table for what fits columns, an array node for each key that does not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy

from ._columns import dtype_kind, fit, list_type, scalar_type
from ._json import to_json
from ._operations import AppendRows, Column, CreateArray, CreateTable, Operation, OrderTable, WriteArray

TABLE_KEY: Final = "internal"
_BY_SEQ_NUM: Final = ("seq_num", "time")
_BY_TIME: Final = ("time", "seq_num")


class RowOrder:
    """Finds columns whose order is the order in which rows come.

    Sequence numbers do, unless a scan was rewound; then time does, unless the clock was set back.
    """

    def __init__(self) -> None:
        self.columns: tuple[str, ...] = _BY_SEQ_NUM
        self._fits = {_BY_SEQ_NUM: True, _BY_TIME: True}
        self._last = (-math.inf, -math.inf)

    def add(self, seq_num: float, time: float) -> None:
        last_seq_num, last_time = self._last
        if (seq_num, time) < (last_seq_num, last_time):
            self._fits[_BY_SEQ_NUM] = False
        if (time, seq_num) < (last_time, last_seq_num):
            self._fits[_BY_TIME] = False
        self._last = (seq_num, time)
        if not self._fits[_BY_SEQ_NUM]:
            self.columns = _BY_TIME if self._fits[_BY_TIME] else ()


@dataclass(frozen=True)
class Cell:
    """Where a column's values come from: a data key's value, that value as JSON text, or its timestamp."""

    key: str
    type: str
    kind: Literal["value", "text", "timestamp"] = "value"

    @property
    def name(self) -> str:
        return f"ts_{self.key}" if self.kind == "timestamp" else self.key

    def pick(self, data: Mapping[str, Any], timestamps: Mapping[str, Any]) -> Any:
        if self.kind == "timestamp":
            return timestamps.get(self.key)
        value = data.get(self.key)
        return value if self.kind == "value" else json.dumps(to_json(value, _ignore))


@dataclass
class InternalArray:
    """One data key's values, an array each, as rows of one array node."""

    key: str
    path: str
    shape: tuple[int, ...]
    dtype: numpy.dtype[Any]
    dims: tuple[str, ...]
    pending: list[Any] = field(default_factory=list)
    written: int = 0
    created: bool = False

    def take(self) -> tuple[numpy.ndarray[Any, Any], int]:
        """The pending rows as one array, and how many of them had another shape or type than the first row."""
        rows = numpy.zeros((len(self.pending), *self.shape), self.dtype)
        misfits = 0
        for row, value in zip(rows, self.pending, strict=True):
            misfits += not self._place(row, value)
        self.pending = []
        return rows, misfits

    def _place(self, row: numpy.ndarray[Any, Any], value: Any) -> bool:
        try:
            array = numpy.asarray(value)
            if array.shape == self.shape:
                row[...] = array
                return bool(
                    numpy.array_equal(row, array, equal_nan=self.dtype.kind in "fc" and array.dtype.kind in "fc")
                )
            if self.dtype.kind in "fc":
                row[...] = numpy.nan
            if array.ndim == len(self.shape):
                overlap = tuple(slice(0, min(a, b)) for a, b in zip(array.shape, self.shape, strict=True))
                row[overlap] = array[overlap]
        except (ValueError, TypeError):
            pass
        return False


class InternalData:
    """Collects the events of one stream and turns them into operations.

    Parameters
    ----------
    path
        Of the stream's node.
    data_keys
        Of the stream's descriptor.
    guessed
        Data keys whose NumPy type was derived from their JSON type.
    max_array_size
        Arrays of up to this many numbers become list columns of the table.
    """

    def __init__(
        self,
        path: str,
        data_keys: Mapping[str, Mapping[str, Any]],
        *,
        guessed: Collection[str],
        max_array_size: int,
        access_tags: tuple[str, ...] | None,
        note: Callable[[str], None],
    ) -> None:
        self.path = f"{path}/{TABLE_KEY}"
        self.arrays: dict[str, InternalArray] = {}
        self._parent = path
        self._data_keys = data_keys
        self._guessed = guessed
        self._max_array_size = max_array_size
        self._access_tags = access_tags
        self._note = note
        self._columns: tuple[Column, ...] = ()
        self._values: list[list[Any]] = []
        self._cells: list[Cell] = []
        self._keys: frozenset[str] = frozenset()
        self._unknown: set[str] = set()
        self._misfits: dict[str, int] = {}
        self._order = RowOrder()
        self._order_now = self._order.columns
        self._rows = 0
        self._created = False
        self._dim_names: dict[int, str] = {}

    @property
    def started(self) -> bool:
        """Whether there was an event."""
        return bool(self._columns)

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event document."""
        data, timestamps = event["data"], event["timestamps"]
        if not self._columns:
            self._plan(data)
        row = [event["seq_num"], event["time"], *(cell.pick(data, timestamps) for cell in self._cells)]
        for values, value in zip(self._values, row, strict=True):
            values.append(value)
        for key, array in self.arrays.items():
            array.pending.append(data.get(key))
        self._order.add(event["seq_num"], event["time"])
        if data.keys() != self._keys:
            self._unknown.update(data.keys() - self._keys)

    def flush(self) -> list[Operation]:
        """Operations for the events since the last flush."""
        operations = [operation for array in self.arrays.values() for operation in self._flush_array(array)]
        if self._values and self._values[0]:
            operations += self._flush_table()
        return operations

    def report(self) -> None:
        """Note what could not be represented."""
        for key, count in sorted(self._misfits.items()):
            self._note(f"{self._parent_name}: {count} values of {key!r} do not fit its declared type; see the journal.")
        for key in sorted(self._unknown):
            self._note(f"{self._parent_name}: {key!r} is not in the first event and was left out; see the journal.")
        if not self._order_now:
            self._note(f"{self._parent_name}: sequence numbers and times both run backwards; rows may be out of order.")

    @property
    def _parent_name(self) -> str:
        return f"Stream {self._parent.rpartition('/')[2]!r}"

    def _plan(self, data: Mapping[str, Any]) -> None:
        """Decide by the descriptor and the first event where each data key goes."""
        self._keys = frozenset(data)
        for key, value in data.items():
            data_key = self._data_keys.get(key, {})
            if data_key.get("dtype") != "array" and "external" not in data_key:
                self._cells.append(Cell(key, scalar_type(data_key, guessed=key in self._guessed)))
            else:
                self._cells += self._plan_array(key, data_key, value)
        self._cells += [Cell(key, "float64", "timestamp") for key in data]
        taken = {"seq_num", "time"}
        named = [Column(self._free_name(cell.name, taken), cell.type) for cell in self._cells]
        self._columns = (Column("seq_num", "int64"), Column("time", "float64"), *named)
        self._values = [[] for _ in self._columns]

    def _free_name(self, name: str, taken: set[str]) -> str:
        """Tiled takes names for one that differ in case only; the later one is changed."""
        free = name
        while free.lower() in taken:
            free += "_"
        taken.add(free.lower())
        if free != name:
            self._note(f"{self._parent_name}: {name!r} is stored as {free!r}, because there is another of that name.")
        return free

    def _plan_array(self, key: str, data_key: Mapping[str, Any], value: Any) -> list[Cell]:
        array = _numeric(value)
        if array is None or array.size == 0 or None in (data_key.get("shape") or ()):
            self._note(f"{self._parent_name}: {key!r} is no array of numbers of one shape; it is stored as JSON text.")
            return [Cell(key, "string", "text")]
        if 0 <= array.size <= self._max_array_size and array.ndim == 1:
            return [Cell(key, list_type(data_key if dtype_kind(data_key) else {"dtype_numpy": array.dtype.str}))]
        dtype = (
            numpy.dtype(data_key["dtype_numpy"]) if dtype_kind(data_key) in ("b", "i", "u", "f", "c") else array.dtype
        )
        dtype = numpy.result_type(dtype, array.dtype) if key in self._guessed else dtype
        dims = ("time", *(self._dim_name(size) for size in array.shape))
        node = self._free_name(key, {TABLE_KEY})
        self.arrays[key] = InternalArray(key, f"{self._parent}/{node}", array.shape, dtype, dims)
        return []

    def _dim_name(self, size: int) -> str:
        """One name per size, so that dimensions of equal size align when the stream is read as a data set."""
        return self._dim_names.setdefault(size, f"dim_int_{len(self._dim_names) + 1}")

    def _flush_array(self, array: InternalArray) -> list[Operation]:
        if not array.pending:
            return []
        rows, misfits = array.take()
        self._count_misfits(array.key, misfits)
        operations: list[Operation] = []
        if not array.created:
            array.created = True
            metadata = {**self._metadata_of(array.key), "dtype_numpy": array.dtype.str}
            operations.append(
                CreateArray(
                    array.path, array.dtype.str, array.shape, len(rows), array.dims, metadata, self._access_tags
                )
            )
            self._note(f"{self._parent_name}: {array.key!r} is stored as an array of its own.")
        operations.append(WriteArray(array.path, array.written, rows))
        array.written += len(rows)
        return operations

    def _flush_table(self) -> list[Operation]:
        operations: list[Operation] = []
        if not self._created:
            self._created = True
            keys = [cell.key for cell in self._cells if cell.kind != "timestamp" and cell.key in self._data_keys]
            metadata = {key: self._metadata_of(key) for key in keys}
            operations.append(CreateTable(self.path, self._columns, self._order_now, metadata, self._access_tags))
        fitted = [self._fitted(column, values) for column, values in zip(self._columns, self._values, strict=True)]
        operations.append(AppendRows(self.path, self._rows, self._columns, tuple(fitted)))
        self._rows += len(self._values[0])
        self._values = [[] for _ in self._columns]
        if self._order.columns != self._order_now:
            self._order_now = self._order.columns
            operations.append(OrderTable(self.path, self._order_now))
        return operations

    def _fitted(self, column: Column, values: Sequence[Any]) -> Sequence[Any]:
        fitted, misfits = fit(values, column.type)
        self._count_misfits(column.name, len(misfits))
        return fitted

    def _count_misfits(self, key: str, count: int) -> None:
        if count:
            self._misfits[key] = self._misfits.get(key, 0) + count

    def _metadata_of(self, key: str) -> dict[str, Any]:
        metadata = to_json(self._data_keys.get(key, {}), self._note, f"{self._parent_name}.data_keys.{key}")
        return dict(metadata)


def _numeric(value: Any) -> numpy.ndarray[Any, Any] | None:
    """`value` as an array of numbers, None if it is none."""
    try:
        array = numpy.asarray(value)
    except ValueError:
        return None
    return array if array.dtype.kind in "biufc" and array.ndim > 0 else None


def _ignore(_: str) -> None:
    """Text columns carry NaN and the like as JSON does; the journal has the exact values."""
