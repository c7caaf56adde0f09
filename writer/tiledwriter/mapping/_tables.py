"""The internal data of one stream: tables for what fits columns, an array node for each key that does not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Final, Literal

import numpy

from .._exact_numbers import loses_digits
from .._json import REPLACED, to_json
from .._names import TABLE_KEY, TIME, TIMESTAMP, StreamNames
from ._alike import AlikeDocuments, Values
from ._arrays import (
    ABSENT,
    ARRAY,
    InternalArray,
    as_array,
    declared_shape,
    declared_type,
    element_type,
    is_extended,
    stored_type,
    takes_lists,
)
from ._columns import arrow_column, arrow_size, dtype_kind, exceeds_float, fit, list_type, scalar_type, wider
from ._dtypes import declared_dtype
from ._operations import (
    AppendRows,
    Audit,
    Column,
    ColumnDigest,
    CreateArray,
    CreateTable,
    Operation,
    OrderTable,
    RemoveNode,
    WriteArray,
)

MAX_COLUMNS: Final = 1024
MAX_ROW_BYTES: Final = 7_900
"""PostgreSQL keeps a row in one page of 8 KiB; text and lists can be kept outside, for 20 bytes in the row."""

_AT_ONCE: Final = 32  # events
_LATER: Final = "\0declared later"  # after the names of data keys
_TEXT: Final[frozenset[type]] = frozenset({str, numpy.str_, NoneType})
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

    def add_alike(self, events: AlikeDocuments) -> None:
        """Events that come one after the other."""
        seq_num, time = events.numbers("seq_num"), events.numbers("time")
        self.add(seq_num[0].item(), time[0].item())
        for columns, first, second in ((_BY_SEQ_NUM, seq_num, time), (_BY_TIME, time, seq_num)):
            back = (first[1:] < first[:-1]) | ((first[1:] == first[:-1]) & (second[1:] < second[:-1]))
            if back.any():
                self._fits[columns] = False
        self.add(seq_num[-1].item(), time[-1].item())

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
    """Where a column's values come from.

    `kind` says which part of an event: its sequence number or time, a data key's value, that value as JSON text, or
    the value's timestamp; "row" is the number of the event in its stream, from 0. `changed` has a word on the first
    value that is not in its JSON as it was given.
    """

    column: Column
    kind: Literal["seq_num", "time", "row", "value", "text", "timestamp"]
    key: str = ""
    changed: list[str] = field(default_factory=list, compare=False)

    def pick(self, events: Sequence[Mapping[str, Any]], first_row: int) -> list[Any]:
        """The column's values of these events, the first of which is that row."""
        kind, key = self.kind, self.key
        if kind == "value":
            return [event["data"].get(key) for event in events]
        if kind == "timestamp":
            return [event["timestamps"].get(key) for event in events]
        if kind == "text":
            return self._texts([event["data"].get(key) for event in events])
        if kind == "row":
            return list(range(first_row, first_row + len(events)))
        return [event[kind] for event in events]

    def pick_alike(self, events: AlikeDocuments, first_row: int) -> Values:
        """The same of events that look alike."""
        if self.kind == "row":
            return numpy.arange(first_row, first_row + events.count)
        field = "timestamps" if self.kind == "timestamp" else "data"
        values = events.columns.get((self.kind,) if self.kind in ("seq_num", "time") else (field, self.key))
        if values is None:
            return [None] * events.count
        return self._texts(values) if self.kind == "text" else values

    def _texts(self, values: Values) -> list[str | None]:
        """Values as JSON."""
        plain = values.tolist() if isinstance(values, numpy.ndarray) else values
        return [None if value is None else json.dumps(to_json(value, self._on_changed)) for value in plain]

    def _on_changed(self, what: str) -> None:
        if not self.changed:
            self.changed.append(what.partition(": ")[2])


@dataclass
class InternalTable:
    """One table of a stream: its columns, and the events whose rows are not flushed yet."""

    path: str
    order: tuple[str, ...]
    cells: list[Cell] = field(default_factory=list)
    rows: int = 0
    created: bool = False
    digests: dict[str, ColumnDigest] = field(default_factory=dict)
    _events: list[Mapping[str, Any]] = field(default_factory=list)
    _values: list[list[Any]] = field(default_factory=list)  # of events before those, by column
    _parts: list[Sequence[Values]] = field(default_factory=list)  # the same of events before those
    _pending: int = 0  # rows that are in columns
    _bytes: int = 0
    _names: set[str] = field(default_factory=set)

    def has_room(self, cells: Sequence[Cell]) -> bool:
        """Whether further columns go into the table: Tiled takes names for one that differ in case only."""
        return (
            len(self.cells) + len(cells) <= MAX_COLUMNS
            and self._bytes + _bytes(cells) <= MAX_ROW_BYTES
            and self._names.isdisjoint(cell.column.name.lower() for cell in cells)
        )

    def extend(self, cells: Sequence[Cell]) -> None:
        """Add columns, before there are rows."""
        self.cells += cells
        self._bytes += _bytes(cells)
        self._names |= {cell.column.name.lower() for cell in cells}
        self.digests |= {cell.column.name: ColumnDigest() for cell in cells if cell.kind in ("seq_num", "time", "row")}

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event document."""
        self._events.append(event)
        if len(self._events) >= _AT_ONCE:
            self._collect()

    def add_alike(self, events: AlikeDocuments) -> None:
        """Take in events that look alike."""
        self._end_part()
        first_row = self.rows + self._pending
        self._parts.append([cell.pick_alike(events, first_row) for cell in self.cells])
        self._pending += events.count

    @property
    def rows_taken_in(self) -> int:
        """How many rows there are, with those that are not taken yet."""
        return self.rows + self._pending + len(self._events)

    @property
    def pending(self) -> bool:
        """Whether there are rows to `take`."""
        return bool(self._events or self._pending)

    def take(self) -> list[list[Values]]:
        """The rows since the last time, column by column: each in as many parts."""
        self._end_part()
        parts, self._parts = self._parts, []
        self.rows += self._pending
        self._pending = 0
        return [list(column) for column in zip(*parts, strict=True)]

    def _end_part(self) -> None:
        if self._events:
            self._collect()
        if self._values:
            self._parts.append(self._values)
            self._values = []

    def _collect(self) -> None:
        """Sort the values of some events into columns, while all of these events are in the processor's cache."""
        self._values = self._values or [[] for _ in self.cells]
        first_row = self.rows + self._pending
        for column, cell in zip(self._values, self.cells, strict=True):
            column.extend(cell.pick(self._events, first_row))
        self._pending += len(self._events)
        self._events = []


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
        Arrays of up to this many numbers become list columns of the table; with 0 there are none, with -1 all do.
    column_types
        Types of columns that turned out to need another one than planned, by data key.
    names
        Gives out the stream's names.

    Attributes
    ----------
    too_narrow
        Types that columns would need for the values that were flushed so far, by data key.
    pending_bytes
        What the rows of arrays will take that are to be flushed, with those that have no value.
    """

    def __init__(
        self,
        path: str,
        data_keys: Mapping[str, Mapping[str, Any]],
        *,
        guessed: Collection[str] = (),
        max_array_size: int,
        column_types: Mapping[str, str] | None = None,
        names: StreamNames | None = None,
        access_tags: tuple[str, ...] | None = None,
        note: Callable[[str], None],
    ) -> None:
        self.arrays: dict[str, InternalArray] = {}
        self.tables: list[InternalTable] = []
        self.too_narrow: dict[str, str] = {}
        self.pending_bytes = 0
        self._path = path
        self._stream_name = f"Stream {path.rpartition('/')[2]!r}"
        self._data_keys: dict[str, Mapping[str, Any]] = {**data_keys, **_declared_later(column_types or {})}
        self._guessed = guessed
        self._max_array_size = max_array_size
        self._column_types = column_types or {}
        self._names = names or StreamNames(self._stream_name, note)
        self._names.declare(self._data_keys)
        self._access_tags = access_tags
        self._note = note
        self._keys: frozenset[str] = frozenset()
        self._replaced: list[str] = []  # array nodes of an earlier attempt, whose data is in columns now
        self._unknown: set[str] = set()
        self._misfits: dict[str, int] = {}
        self._rounded: dict[str, int] = {}
        self._escaped: dict[str, int] = {}
        self._not_text: dict[str, set[str]] = {}  # names of types that are stored as text, by key
        self._exact: set[str] = set()  # keys of columns with integers that no wider type holds
        self._order = RowOrder()
        self._dim_names: dict[tuple[int, int], str] = {}  # by size, and how often that was there before

    @property
    def paths(self) -> list[str]:
        """Of all nodes that there are."""
        return [array.path for array in self.arrays.values()] + [table.path for table in self.tables]

    @property
    def rows(self) -> int:
        """How many events there are so far."""
        return self.tables[0].rows_taken_in if self.tables else 0

    def declare(self, data_keys: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in the data keys of a further descriptor.

        Those that are new need columns that the stream's table does not have, if there are events already: then they
        are among what is `too_narrow`, with what the descriptor says of them as JSON.
        """
        self._names.declare(data_keys)
        for key in [key for key in data_keys if key not in self._data_keys]:
            self._data_keys[key] = data_keys[key]
            if self.tables and "external" not in data_keys[key]:
                self.too_narrow[key + _LATER] = json.dumps(to_json(data_keys[key], _ignore))

    def add(self, event: Mapping[str, Any]) -> None:
        """Take in one event document."""
        data = event["data"]
        if not self.tables:
            self._plan(data)
        for table in self.tables:
            table.add(event)
        for key, array in self.arrays.items():
            array.pending.append(data.get(key, ABSENT))
            self.pending_bytes += array.row_bytes
        self._order.add(event["seq_num"], event["time"])
        self._look_for_unknown(data)

    @property
    def takes_alike(self) -> bool:
        """Whether `add_alike` can be used: not before the first event, nor with arrays."""
        return bool(self.tables) and not self.arrays

    def add_alike(self, events: AlikeDocuments) -> None:
        """Take in events that look alike."""
        for table in self.tables:
            table.add_alike(events)
        self._order.add_alike(events)
        self._look_for_unknown(events.within("data"))

    def _look_for_unknown(self, data: Mapping[str, Any]) -> None:
        if not data.keys() <= self._keys:
            self._unknown.update(data.keys() - self._keys)

    def flush(self) -> list[Operation]:
        """Operations for the events since the last flush."""
        self.pending_bytes = 0
        operations = [operation for array in self.arrays.values() for operation in self._flush_array(array)]
        for table in self.tables:
            if table.pending:
                operations += self._flush_table(table)
        operations += [RemoveNode(path) for path in self._replaced]
        self._replaced = []
        if self.tables and self._order.columns != self.tables[0].order:
            self.tables[0].order = self._order.columns
            operations.append(OrderTable(self.tables[0].path, self._order.columns))
        return operations

    def audits(self) -> list[Operation]:
        """What everything flushed so far amounts to."""
        operations: list[Operation] = []
        for table in self.tables:
            columns = [(name, digest.value if table.order else None) for name, digest in table.digests.items()]
            operations.append(Audit(table.path, table.rows, tuple(columns)))
        return operations + [Audit(array.path, array.written) for array in self.arrays.values() if array.created]

    def report(self) -> None:
        """Note what could not be represented."""
        for key, count in sorted(self._misfits.items()):
            self._note(
                f"{self._stream_name}: {count} values of {key!r} do not fit its type and are not here as they were."
            )
        rounded = {**self._rounded, **{key: array.rounded for key, array in self.arrays.items() if array.rounded}}
        for key, count in sorted(rounded.items()):
            self._note(
                f"{self._stream_name}: {count} values of {key!r} have more digits than floats; they are rounded."
            )
        for key, count in sorted(self._escaped.items()):
            self._note(f"{self._stream_name}: {count} texts of {key!r} have what Tiled does not take; it is escaped.")
        for cell in (cell for table in self.tables for cell in table.cells if cell.changed):
            self._note(f"{self._stream_name}: the JSON of {cell.key!r} is not always what was given: {cell.changed[0]}")
        for key, names in sorted(self._not_text.items()):
            for name in sorted(names):
                what = "objects that no document can carry" if name == REPLACED else f"values of type {name}"
                self._note(f"{self._stream_name}: {key!r} has {what}; they are stored as text.")
        for key in sorted(self._unknown):
            self._note(
                f"{self._stream_name}: {key!r} is neither declared nor in the first event; its data is not here."
            )
        if not self._order.columns:
            self._note(f"{self._stream_name}: sequence numbers and times both run backwards; rows may be out of order.")

    # Where each data key goes, by the descriptor and the first event

    def _plan(self, data: Mapping[str, Any]) -> None:
        declared = [key for key, data_key in self._data_keys.items() if "external" not in data_key]
        keys = list(dict.fromkeys([*declared, *data]))
        self._keys = frozenset(keys)
        self._new_table(Cell(Column("seq_num", "int64"), "seq_num"), Cell(Column("time", "float64"), "time"))
        for key in sorted(keys, key=lambda key: key.startswith(TIMESTAMP)):
            self._place(key, data.get(key))
        for table in self.tables:
            table.cells.sort(key=lambda cell: cell.kind == "timestamp")

    def _new_table(self, *cells: Cell) -> None:
        number = len(self.tables)
        path = f"{self._path}/{TABLE_KEY}" + (f"_{number}" if number else "")
        table = InternalTable(path, _BY_SEQ_NUM if number == 0 else (cells[0].column.name,))
        table.extend(cells)
        self.tables.append(table)

    def _place(self, key: str, value: Any) -> None:
        """Find a place for one data key: columns for value and timestamp, or an array node and a column."""
        cell = self._value_cell(key, value)
        name, timestamps = self._names.of_values(key, as_column=cell is not None)
        cells = [Cell(Column(timestamps, "float64"), "timestamp", key)]
        if cell is not None:
            cells.insert(0, Cell(Column(name, cell[0]), cell[1], key))
        else:
            self.arrays[key].path = f"{self._path}/{name}"
        for table in self.tables:
            if table.has_room(cells):
                table.extend(cells)
                return
        self._new_table(Cell(Column(f"{TABLE_KEY}_{len(self.tables)}_row", "int64"), "row"), *cells)

    def _value_cell(self, key: str, value: Any) -> tuple[str, Literal["value", "text"]] | None:
        """Type and kind of the column for a key's values; None if they go to an array node."""
        data_key = self._data_keys.get(key, {})
        is_array = data_key.get("dtype") == "array"
        self._note_precision(key, data_key)
        if isinstance(value, Mapping | numpy.void) or hasattr(value, "model_dump"):
            self._note(f"{self._stream_name}: {key!r} has records, which have no column type; they are stored as JSON.")
            return "string", "text"
        if not is_array and key in self._data_keys and _is_sequence(value) and len(value) == 1:
            value = value[0]
        if is_array if value is None else _is_sequence(value):
            return self._plan_array(key, data_key, value)
        declared = {"dtype": "number"} if is_array else data_key
        return self._column_types.get(key) or scalar_type(declared, value, guessed=key in self._guessed), "value"

    def _plan_array(
        self, key: str, data_key: Mapping[str, Any], value: Any
    ) -> tuple[str, Literal["value", "text"]] | None:
        first = None if value is None else as_array(value, declared_type(data_key))
        shape = declared_shape(data_key) if first is None else first.shape
        if None in (data_key.get("shape") or ()) or (first is not None and first.size == 0):
            shape = None  # it varies
        # Numbered wherever the arrays go, so that names do not depend on that.
        names = (TIME, *self._dimensions(shape or ()))
        needed = self._column_types.get(key)
        if needed is not None and not needed.startswith(ARRAY):
            return self._planned_column(key)
        dtype = (
            element_type(data_key, first if first is not None and first.size else None, guessed=key in self._guessed)
            if needed is None
            else numpy.dtype(needed.removeprefix(ARRAY))
        )
        readable = value is None or first is not None
        if needed is None and readable and self._max_array_size and takes_lists(dtype):
            flat = len(data_key.get("shape") or (0,)) == 1 and (first is None or first.ndim == 1)
            if self._is_short(shape) or (shape is None and flat):
                return list_type({"dtype_numpy": dtype.str}, first), "value"
        if shape is None or not readable:
            self._note_text(key)
            return "string", "text"
        dims = tuple(self._names.of_dimensions(key, names, (0, *shape)))
        self.arrays[key] = InternalArray(key, "", shape, dtype, dims, lists=self._max_array_size != 0)
        self._note(f"{self._stream_name}: {key!r} is stored as an array of its own.")
        return None

    def _note_precision(self, key: str, data_key: Mapping[str, Any]) -> None:
        if dtype_kind(data_key) in ("f", "c") and is_extended(declared_dtype(data_key["dtype_numpy"])):
            declared, stored = data_key["dtype_numpy"], stored_type(declared_dtype(data_key["dtype_numpy"])).str
            self._note(
                f"{self._stream_name}: {key!r} is declared as {declared!r}; its values are rounded to {stored!r}."
            )

    def _planned_column(self, key: str) -> tuple[str, Literal["value", "text"]]:
        """The column that a key's arrays have turned out to need, perhaps instead of a node that is there."""
        self._replaced.append(f"{self._path}/{self._names.of_array(key)}")
        if self._column_types[key] != "text" and self._max_array_size:
            return self._column_types[key], "value"
        self._note_text(key)
        return "string", "text"

    def _note_text(self, key: str) -> None:
        self._note(f"{self._stream_name}: {key!r} has no arrays of one shape and type; they are stored as JSON.")

    def _is_short(self, shape: tuple[int, ...] | None) -> bool:
        """Whether an array of this shape is for a list column."""
        if shape is None or len(shape) != 1:
            return False
        return self._max_array_size < 0 or shape[0] <= self._max_array_size

    def _dimensions(self, shape: tuple[int, ...]) -> list[str]:
        """One name per size, so that dimensions of equal size align when the stream is read as a data set.

        Those of one array have different names in any case.
        """
        repeats = [shape[:i].count(size) for i, size in enumerate(shape)]
        return [
            self._dim_names.setdefault(dimension, f"dim_int_{len(self._dim_names) + 1}")
            for dimension in zip(shape, repeats, strict=True)
        ]

    # Operations

    def _flush_array(self, array: InternalArray) -> list[Operation]:
        if not array.pending:
            return []
        rows, misfits, needed = array.take()
        self._count_misfits(array.key, len(misfits))
        if needed is not None:
            self.too_narrow.setdefault(array.key, needed)
        operations: list[Operation] = []
        if not array.created:
            array.created = True
            metadata = {**self._metadata_of(array.key), "dtype_numpy": array.dtype.str}
            operations.append(
                CreateArray(
                    array.path, array.dtype.str, array.shape, array.chunk_rows, array.dims, metadata, self._access_tags
                )
            )
        operations.append(WriteArray(array.path, array.written, rows))
        array.written += len(rows)
        return operations

    def _flush_table(self, table: InternalTable) -> list[Operation]:
        columns = tuple(cell.column for cell in table.cells)
        operations: list[Operation] = []
        if not table.created:
            table.created = True
            keys = [cell.key for cell in table.cells if cell.kind in ("value", "text") and cell.key in self._data_keys]
            metadata = {key: self._metadata_of(key) for key in keys}
            operations.append(CreateTable(table.path, columns, table.order, metadata, self._access_tags))
        first = table.rows
        values = []
        for cell, parts in zip(table.cells, table.take(), strict=True):
            values.append(arrow_column([self._fitted(cell, part) for part in parts], cell.column.type))
            if cell.column.name in table.digests:
                table.digests[cell.column.name].add(values[-1])
        operations.append(AppendRows(table.path, first, columns, tuple(values)))
        return operations

    def _fitted(self, cell: Cell, values: Values) -> Values:
        fitted, misfits = fit(values, cell.column.type)
        if cell.kind == "value" and cell.column.type == "string":
            self._look_for_types(cell.key, values)
        if fitted is not values:
            self._look_for_changes(cell, values, fitted)
        if cell.kind == "value":
            for misfit in misfits:
                needed = wider(cell.column.type, values[misfit])
                if needed is not None:
                    if not self._exceeds_float(cell, fitted[:misfit]):
                        self.too_narrow.setdefault(cell.key, needed)
                    break
            if self._exceeds_float(cell, fitted):
                self._exact.add(cell.key)
        self._count_misfits(cell.key or cell.column.name, len(misfits))
        return fitted

    def _look_for_types(self, key: str, values: Values) -> None:
        """Take note of what is stored as text and is none."""
        types = {values.dtype.type} if isinstance(values, numpy.ndarray) else set(map(type, values))
        if not types <= _TEXT:
            self._not_text.setdefault(key, set()).update(map(_type_name, types - _TEXT))

    def _look_for_changes(self, cell: Cell, given: Values, fitted: Values) -> None:
        """Count what is stored as something else than it was."""
        pairs = list(zip(given, fitted, strict=True))
        if cell.column.type == "string":
            self._count(self._escaped, cell, sum(isinstance(one, str) and one != other for one, other in pairs))
        else:
            self._count(self._rounded, cell, sum(other is not None and _loses_digits(one) for one, other in pairs))

    def _count(self, counts: dict[str, int], cell: Cell, count: int) -> None:
        if count:
            counts[cell.key] = counts.get(cell.key, 0) + count

    def _exceeds_float(self, cell: Cell, values: Values) -> bool:
        return cell.column.type == "int64" and (cell.key in self._exact or exceeds_float(values))

    def _count_misfits(self, key: str, count: int) -> None:
        if count:
            self._misfits[key] = self._misfits.get(key, 0) + count

    def _metadata_of(self, key: str) -> dict[str, Any]:
        metadata = to_json(self._data_keys.get(key, {}), self._note, f"{self._stream_name}.data_keys.{key}")
        return dict(metadata)


def _type_name(kind: type) -> str:
    """Name a type as Python does: values that are read together are NumPy's, and the same ones alone are Python's."""
    if issubclass(kind, numpy.bool_ | numpy.number):
        return type(numpy.zeros(1, kind).item()).__name__
    return kind.__name__


def _declared_later(column_types: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Data keys that an earlier attempt has found in further descriptors."""
    later = {key: text for key, text in column_types.items() if key.endswith(_LATER)}
    return {key.removesuffix(_LATER): json.loads(text) for key, text in later.items()}


def _bytes(cells: Sequence[Cell]) -> int:
    return sum(arrow_size(cell.column.type) for cell in cells)


def _is_sequence(value: Any) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "__len__") and getattr(value, "ndim", 1) != 0


def _loses_digits(value: Any) -> bool:
    """Whether a value of a column of numbers, or one of its items, has more digits than a float."""
    if isinstance(value, list | tuple):
        return any(map(_loses_digits, value))
    if isinstance(value, numpy.ndarray):
        return value.dtype.char in "Og" and any(map(_loses_digits, value.tolist()))
    return loses_digits(value)


def _ignore(_: str) -> None:
    """What is said of a data key is noted where its node or column is made."""
