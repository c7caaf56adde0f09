"""Map the events of one stream to tables, and to an array node for each data key whose values do not fit a column."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from types import NoneType
from typing import Any, Final, Literal

import numpy
import pyarrow

from .._exact_numbers import loses_digits
from .._json import REPLACED, to_json
from .._names import TABLE_KEY, TIME, StreamNames
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
from ._columnar import EventBatch, Values
from ._columns import (
    arrow_column,
    dtype_kind,
    exceeds_float,
    fit,
    is_nested,
    list_type,
    only_item,
    scalar_type,
    wider,
)
from ._dtypes import declared_dtype
from ._internal_table import BY_SEQ_NUM, ColumnSource, InternalTable, RowOrder
from ._late_columns import BEGINS_LATE_SUFFIX, FIRST_ROWS, LateColumns, with_first
from ._operations import (
    FIRST_FILLED,
    NEW_NODE,
    AppendRows,
    Audit,
    Column,
    CreateArray,
    CreateTable,
    Operation,
    OrderTable,
    RemoveNode,
    WriteArray,
)

_MAX_SEQ_NUMS: Final = 10
"""The largest number of sequence numbers in a note."""

_DECLARED_LATER_SUFFIX: Final = "\0declared later"

_TEXT: Final[frozenset[type]] = frozenset({str, numpy.str_, NoneType})


class InternalData:
    """Collector of the events of one stream, which turns them into operations.

    Parameters
    ----------
    path
        The path of the stream's node.
    stream
        The name of the stream.
    data_keys
        The data keys of the stream's descriptor.
    guessed
        The data keys whose NumPy type was derived from the JSON type.
    max_array_size
        The largest array, in numbers, that becomes a list column of the table. 0: no list columns; -1: no limit.
    column_types
        Column types by data key that an earlier fold of the run found necessary; see `too_narrow`.
    names
        The names of nodes, columns and dimensions in the stream.
    access_tags
        The access tags of the nodes; None for the server's default.
    note
        Called with each note for the run's metadata.

    Attributes
    ----------
    arrays
        The array nodes, by data key.
    tables
        The tables.
    too_narrow
        What the next fold must do otherwise, by data key, as a word that the journal keeps: a wider column type, such
        as "float64" or "list<float64>"; "text" for a column of JSON in place of an array; `ARRAY` and a NumPy type for
        an array of that type. Under a key with the suffix `_DECLARED_LATER_SUFFIX` it is the entry, as JSON, of a data
        key that a further descriptor declares, or that was declared external before values came in events. A data key
        with the suffix `BEGINS_LATE_SUFFIX` begins late, in SQLite; see `AppendRows.begin_late`.
    pending_bytes
        The size, in bytes, of the array rows not flushed yet, missing arrays included.
    """

    def __init__(
        self,
        path: str,
        stream: str,
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
        self._stream = stream
        self._stream_name = f"Stream {path.rpartition('/')[2]!r}"
        later = _declared_later(column_types or {})
        self._data_keys: dict[str, Mapping[str, Any]] = {**data_keys, **later}
        self._guessed = guessed
        self._max_array_size = max_array_size
        self._column_types = column_types or {}
        self._first_time = 0.0
        self._late_columns = LateColumns()
        self._late = {
            key.removesuffix(BEGINS_LATE_SUFFIX): kind
            for key, kind in self._column_types.items()
            if key.endswith(BEGINS_LATE_SUFFIX)
        }
        self._names = names or StreamNames(self._stream_name, note)
        self._names.declare(self._data_keys)
        for key in [key for key, data_key in later.items() if data_key.get("external")]:
            self._names.name_for_files(key)
        self._internal_later = frozenset(later)
        self._access_tags = access_tags
        self._note = note
        self._keys: frozenset[str] = frozenset()
        self._array_paths_now_columns: list[str] = []
        self._unknown: set[str] = set()
        self._pending_seq_nums: list[int] = []
        self._misfits: dict[str, int] = {}
        self._seq_nums_of_misfits_by_array: dict[str, list[int]] = {}
        self._rounded: dict[str, int] = {}
        self._escaped: dict[str, int] = {}
        self._types_stored_as_text: dict[str, set[str]] = {}
        self._keys_with_widest_integers: set[str] = set()
        self._types_of_equal_lists: dict[str, numpy.dtype[Any]] = {}
        self._missing_lists: dict[str, int] = {}
        self._keys_with_gaps_by_type: dict[str, set[str]] = {"int64": set(), "bool": set(), "string": set()}
        self._order = RowOrder()
        self._dim_names_by_size_and_repeat: dict[tuple[int, int], str] = {}

    @property
    def paths(self) -> list[str]:
        """The paths of all nodes."""
        return [array.path for array in self.arrays.values()] + [table.path for table in self.tables]

    @property
    def rows(self) -> int:
        """The number of events so far."""
        return self.tables[0].rows_taken_in if self.tables else 0

    @property
    def pending_rows(self) -> int:
        """The number of events since the last flush."""
        return self.rows - self.tables[0].rows if self.tables else 0

    @property
    def seq_nums_digest(self) -> str | None:
        """The digest of the sequence numbers of the events flushed so far; None without any, or if one is missing."""
        return self.tables[0].digests["seq_num"].value if self.tables else None

    def declare(self, data_keys: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the data keys of a further descriptor.

        If there are events already, the tables have no columns for new data keys, and none for those that were external
        before. Therefore, `too_narrow` gets an entry for each.
        """
        self._names.declare(data_keys)
        for key, data_key in data_keys.items():
            is_internal = not data_key.get("external")
            if key not in self._data_keys or (is_internal and self._data_keys[key].get("external")):
                self._data_keys[key] = data_key
            if self.tables and is_internal and key not in self._keys:
                self._plan_later(key)

    def _plan_later(self, key: str) -> None:
        """Have the next fold plan a column or an array node for the values of a declared data key.

        Its entry in `too_narrow` is `external` only if there is a node for the key's files, which keeps its name.
        """
        if (later := key + _DECLARED_LATER_SUFFIX) in self.too_narrow:
            return
        entry = {field: value for field, value in self._data_keys[key].items() if field != "external"}
        if self._names.has_files(key):
            entry["external"] = "STREAM:"
        self.too_narrow[later] = json.dumps(to_json(entry, _ignore_note))

    def add(self, event: Mapping[str, Any]) -> None:
        """Add one event document."""
        data = event["data"]
        if not self.tables:
            self._first_time = event["time"]
            self._plan_tables(data)
        for table in self.tables:
            table.add(event)
        if self.arrays:
            self._pending_seq_nums.append(event["seq_num"])
        for key, array in self.arrays.items():
            array.pending.append(data.get(key, ABSENT))
            self.pending_bytes += array.row_bytes
        self._order.add(event["seq_num"], event["time"])
        self._look_for_unknown(data)

    @property
    def accepts_batch(self) -> bool:
        """Whether `add_batch` accepts events: not before the first event, and not if there are array nodes."""
        return bool(self.tables) and not self.arrays

    def add_batch(self, events: EventBatch) -> None:
        """Add a batch of events."""
        for table in self.tables:
            table.add_batch(events)
        self._order.add_batch(events)
        self._look_for_unknown(events.columns_of("data"))

    def _look_for_unknown(self, data: Mapping[str, Any]) -> None:
        if not data.keys() <= self._keys:
            for key in data.keys() - self._keys:
                if key in self._data_keys:
                    self._plan_later(key)
                else:
                    self._unknown.add(key)

    def flush(self) -> list[Operation]:
        """Return the operations for the events since the last flush."""
        self.pending_bytes = 0
        operations = [operation for array in self.arrays.values() for operation in self._flush_array(array)]
        self._pending_seq_nums = []
        for table in self.tables:
            if table.pending:
                operations += self._flush_table(table)
        operations += [RemoveNode(path) for path in self._array_paths_now_columns]
        self._array_paths_now_columns = []
        return operations

    def audit_operations(self) -> list[Operation]:
        """Return the operations that verify all rows flushed so far."""
        operations: list[Operation] = []
        for table in self.tables:
            columns = [(name, digest.value if table.order else None) for name, digest in table.digests.items()]
            operations.append(Audit(table.path, table.rows, tuple(columns)))
        return operations + [Audit(array.path, array.written) for array in self.arrays.values() if array.created]

    def note_changes(self) -> None:
        """Add notes on all values that could not be stored unchanged."""
        for key, count in sorted(self._misfits.items()):
            what = f"{count} values of {key!r} do not fit its type"
            if key in self.arrays:
                what += f" or are missing{self._describe_rows(key, count)}"
            self._note(f"{self._stream_name}: {what} and are not here as they were.")
        for source in (source for table in self.tables for source in table.sources):
            if source.column.type.startswith("list<"):
                self._note(
                    f"{self._stream_name}: {source.key!r} is a column of lists; Tiled's client gives its numbers by "
                    "the data key, and texts of eight digits in `read()` of the stream and of the table."
                )
        for key, count in sorted(self._missing_lists.items()):
            self._note(
                f"{self._stream_name}: {count} arrays of {key!r} are missing, or do not fit; the lists there are empty."
            )
        rounded = self._rounded | {key: array.rounded for key, array in self.arrays.items() if array.rounded}
        for key, count in sorted(rounded.items()):
            self._note(
                f"{self._stream_name}: {count} values of {key!r} have more digits than floats; they are rounded."
            )
        for key in sorted(self._keys_with_gaps_by_type["bool"]):
            self._note(
                f"{self._stream_name}: {key!r} has booleans and missing values; Tiled's client returns such a column "
                "as the texts 'True', 'False' and '<NA>'."
            )
        for key in sorted(self._keys_with_gaps_by_type["string"]):
            self._note(
                f"{self._stream_name}: {key!r} has texts and missing values; Tiled's client returns the latter as the "
                "texts 'None' or '<NA>'."
            )
        for key in sorted(self._keys_with_widest_integers & self._keys_with_gaps_by_type["int64"]):
            self._note(
                f"{self._stream_name}: {key!r} has integers beyond 2**53 and missing values; readers that take such a "
                "column for floats get the nearest ones."
            )
        escaped = self._escaped | {key: array.escaped for key, array in self.arrays.items() if array.escaped}
        for key, count in sorted(escaped.items()):
            self._note(f"{self._stream_name}: {count} texts of {key!r} have what Tiled does not take; it is escaped.")
        for source in (source for table in self.tables for source in table.sources if source.changed):
            self._note(
                f"{self._stream_name}: the JSON of {source.key!r} is not always what was given: {source.changed[0]}"
            )
        for key, names in sorted(self._types_stored_as_text.items()):
            for name in sorted(names):
                what = "objects that no document can carry" if name == REPLACED else f"values of type {name}"
                self._note(f"{self._stream_name}: {key!r} has {what}; they are stored as text.")
        for key in sorted(self._unknown):
            self._note(
                f"{self._stream_name}: {key!r} is neither declared nor in the first event; its data is not here."
            )
        if not self._order.columns:
            self._note(
                f"{self._stream_name}: neither sequence numbers nor times always run forward; rows may be out of order."
            )

    def _describe_rows(self, key: str, count: int) -> str:
        """Return the part of a note that names the rows of an array node that lack something, and what they have."""
        seq_nums = ", ".join(map(str, self._seq_nums_of_misfits_by_array[key])) + ", ..." * (count > _MAX_SEQ_NUMS)
        return f" (seq_num {seq_nums}; the rows have {self.arrays[key].filler} where nothing fits),"

    def _plan_tables(self, data: Mapping[str, Any]) -> None:
        declared = [
            key
            for key, data_key in self._data_keys.items()
            if not data_key.get("external") or key in self._internal_later
        ]
        keys = list(dict.fromkeys([*declared, *data]))
        self._keys = frozenset(keys)
        self._new_table(
            ColumnSource(Column("seq_num", "int64"), "seq_num"), ColumnSource(Column("time", "float64"), "time")
        )
        for key in keys:
            self._assign_nodes(key, data.get(key))
        for table in self.tables:
            table.sources.sort(key=lambda source: source.kind == "timestamp")

    def _new_table(self, *sources: ColumnSource) -> None:
        number = len(self.tables)
        path = f"{self._path}/{TABLE_KEY}" + (f"_{number}" if number else "")
        table = InternalTable(path, BY_SEQ_NUM if number == 0 else (sources[0].column.name,))
        table.add_columns(sources)
        self.tables.append(table)

    def _assign_nodes(self, key: str, value: Any) -> None:
        """Assign nodes to one data key: columns for its value and timestamp, or an array node and one column."""
        source = self._assign_values(key, value)
        name, timestamps = self._names.name_for_values(key, as_column=source is not None)
        sources = [ColumnSource(Column(timestamps, "float64"), "timestamp", key)]
        if source is not None:
            sources.insert(0, ColumnSource(Column(name, source[0]), source[1], key))
        else:
            self.arrays[key].path = f"{self._path}/{name}"
        for table in self.tables:
            if table.has_room(sources):
                table.add_columns(sources)
                return
        self._new_table(ColumnSource(Column(f"{TABLE_KEY}_{len(self.tables)}_row", "int64"), "row"), *sources)

    def _assign_values(self, key: str, value: Any) -> tuple[str, Literal["value", "text"]] | None:
        """Assign a data key's values to a column, and return its type and kind; None if they go to an array node."""
        data_key = self._data_keys.get(key, {})
        is_array = data_key.get("dtype") == "array"
        self._note_precision(key, data_key)
        if isinstance(value, Mapping | numpy.void) or hasattr(value, "model_dump"):
            self._note(f"{self._stream_name}: {key!r} has records, which have no column type; they are stored as JSON.")
            return "string", "text"
        if not is_array and key in self._data_keys:
            value = only_item(value)
        holds_arrays = is_array if value is None else _is_sequence(value)
        if holds_arrays:
            return self._assign_arrays(key, data_key, value)
        declared = {"dtype": "number"} if is_array else data_key
        kind = self._column_types.get(key) or scalar_type(declared, value, guessed=key in self._guessed)
        if self._late.get(key) == NEW_NODE and kind == "float64":
            self._assign_late_numbers(key)
            return None
        return kind, "value"

    def _assign_late_numbers(self, key: str) -> None:
        """Assign the numbers of a data key that begins late to an array node, which has NaN for missing ones."""
        dims = tuple(self._names.of_dimensions(key, (TIME,), (0,)))
        self.arrays[key] = InternalArray(key, "", (), numpy.dtype("<f8"), dims)
        self._note(
            f"{self._stream_name}: {key!r} is stored as an array of its own, because it has no value in the first "
            f"{FIRST_ROWS:,} events, and such a column could not be read from SQLite."
        )

    def _assign_arrays(
        self, key: str, data_key: Mapping[str, Any], value: Any
    ) -> tuple[str, Literal["value", "text"]] | None:
        """Assign a data key's arrays as `_assign_values` does, by the shape and type of the first one."""
        first = None if value is None else as_array(value, declared_type(data_key))
        shape = declared_shape(data_key) if first is None else first.shape
        if None in (data_key.get("shape") or ()) or (first is not None and first.size == 0):
            # The shape varies.
            shape = None
        # Dimensions are numbered even if the array becomes a column, so that their names do not depend on that choice.
        names = (TIME, *self._dimension_names(shape or ()))
        needed = self._column_types.get(key)
        if needed is not None and not needed.startswith(ARRAY):
            return self._take_planned_column(key)
        dtype = (
            element_type(data_key, first if first is not None and first.size else None, guessed=key in self._guessed)
            if needed is None
            else numpy.dtype(needed.removeprefix(ARRAY))
        )
        readable = value is None or first is not None
        if needed is None and readable and self._max_array_size and takes_lists(dtype):
            flat = len(data_key.get("shape") or (0,)) == 1 and (first is None or first.ndim == 1)
            if self._is_short(shape):
                self._types_of_equal_lists[key] = dtype
                return list_type({"dtype_numpy": dtype.str}, first), "value"
            if shape is None and flat:
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

    def _take_planned_column(self, key: str) -> tuple[str, Literal["value", "text"]]:
        """Return the column that an earlier fold found necessary for a data key's arrays.

        The array node that the earlier fold may have created is removed.
        """
        self._array_paths_now_columns.append(f"{self._path}/{self._names.of_array(key)}")
        if self._column_types[key] != "text" and self._max_array_size:
            return self._column_types[key], "value"
        self._note_text(key)
        return "string", "text"

    def _note_text(self, key: str) -> None:
        self._note(f"{self._stream_name}: {key!r} has no arrays of one shape and type; they are stored as JSON.")

    def _is_short(self, shape: tuple[int, ...] | None) -> bool:
        """Return whether an array of this shape is short enough for a list column."""
        if shape is None or len(shape) != 1:
            return False
        return self._max_array_size < 0 or shape[0] <= self._max_array_size

    def _dimension_names(self, shape: tuple[int, ...]) -> list[str]:
        """Return the names of an array's dimensions.

        Dimensions of equal size in different arrays share a name, so that they align when the stream is read as a
        data set. The dimensions of one array always have different names.
        """
        repeats = [shape[:i].count(size) for i, size in enumerate(shape)]
        return [
            self._dim_names_by_size_and_repeat.setdefault(
                dimension, f"dim_int_{len(self._dim_names_by_size_and_repeat) + 1}"
            )
            for dimension in zip(shape, repeats, strict=True)
        ]

    def _flush_array(self, array: InternalArray) -> list[Operation]:
        if not array.pending:
            return []
        rows, misfits, needed = array.take_rows()
        self._count_misfits(array.key, len(misfits))
        named = self._seq_nums_of_misfits_by_array.setdefault(array.key, [])
        named += [self._pending_seq_nums[row] for row in misfits[: _MAX_SEQ_NUMS - len(named)]]
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
        columns = tuple(source.column for source in table.sources)
        operations: list[Operation] = []
        if not table.created:
            table.created = True
            keys = [
                source.key
                for source in table.sources
                if source.kind in ("value", "text") and source.key in self._data_keys
            ]
            metadata = {key: self._metadata_of(key) for key in keys}
            operations.append(CreateTable(table.path, columns, table.order, metadata, self._access_tags))
        if table is self.tables[0] and table.order != self._order.columns:
            # Before the rows: a run may stop growing here, and no row must ever be read in another place than its own.
            table.order = self._order.columns
            operations.append(OrderTable(table.path, table.order))
        first = table.rows
        values = []
        for source, parts in zip(table.sources, table.take_rows(), strict=True):
            values.append(arrow_column([self._fit_values(source, part) for part in parts], source.column.type))
            if first == 0 and source.key in self._late:
                values[-1] = self._fill_first(source, values[-1])
            if values[-1].null_count and source.column.type.startswith("list<"):
                values[-1] = self._fill_lists(source, values[-1])
            if source.column.type in self._keys_with_gaps_by_type and values[-1].null_count:
                self._keys_with_gaps_by_type[source.column.type].add(source.key)
            if source.column.name in table.digests:
                table.digests[source.column.name].add(values[-1])
        late = self._late_columns.find(table.sources, first, values)
        operations.append(AppendRows(table.path, first, columns, tuple(values), self._plan_late(late)))
        return operations

    def _plan_late(self, late: Sequence[ColumnSource]) -> tuple[tuple[str, str, str], ...]:
        """Return entries of the plan for columns that begin late.

        Those that have no value yet are among them, so that the table is not rewritten for one after the other.
        """
        kinds: dict[str, str] = {}
        for source in late:
            if source.kind == "value" and source.column.type == "float64":
                kinds[source.key] = NEW_NODE
            elif source.key and source.key not in self._late:
                kinds.setdefault(source.key, FIRST_FILLED)
        return tuple((self._stream, key + BEGINS_LATE_SUFFIX, kind) for key, kind in kinds.items())

    def _fill_first(self, source: ColumnSource, values: pyarrow.Array) -> pyarrow.Array:
        """Return the first values of a column of a data key that begins late, with something in the first row.

        That is enough for SQLite's driver. Numbers are not here, but in an array node; integers need nothing.
        """
        if source.kind == "timestamp":
            filler: Any = self._first_time
            what = "the event's time as timestamp"
        elif source.column.type == "string":
            filler, what = ("null", "JSON's null") if source.kind == "text" else ("", "an empty text")
        else:
            return values
        filled = with_first(values, filler)
        if filled is not values:
            self._note(
                f"{self._stream_name}: {source.key!r} has nothing in the first {FIRST_ROWS:,} events; as such a column "
                f"could not be read from SQLite, the first event has {what} there."
            )
        return filled

    def _fill_lists(self, source: ColumnSource, values: pyarrow.Array) -> pyarrow.Array:
        """Return a column of lists with an empty one in place of each that is missing.

        Tiled gives a column of lists as text, with eight digits of each number, if one of them is missing. Arrays of
        one shape get an array node instead.
        """
        if source.key in self._types_of_equal_lists:
            self.too_narrow.setdefault(source.key, f"{ARRAY}{self._types_of_equal_lists[source.key].str}")
            return values
        self._add_count(self._missing_lists, source, values.null_count)
        return pyarrow.array([[] if value is None else value for value in values.to_pylist()], values.type)

    def _fit_values(self, source: ColumnSource, values: Values) -> Values:
        """Return values as the column has them, and count what was changed or left out.

        A value that the column's type cannot hold makes the column `too_narrow`: the run is folded again with a wider
        type, and the table is rewritten.
        """
        fitted, misfits = fit(values, source.column.type)
        if source.kind == "value" and source.column.type == "string":
            self._look_for_types(source.key, values)
        if fitted is not values:
            self._look_for_changes(source, values, fitted)
        if source.kind == "value":
            self._note_if_too_narrow(source, values, fitted, misfits)
            if self._exceeds_float(source, fitted):
                self._keys_with_widest_integers.add(source.key)
        self._count_misfits(source.key if source.kind in ("value", "text") else source.column.name, len(misfits))
        return fitted

    def _note_if_too_narrow(self, source: ColumnSource, values: Values, fitted: Values, misfits: Sequence[int]) -> None:
        """Note the wider type that the first value needs that has one.

        A column of integers that floats cannot tell apart stays as it is: as floats they would lose digits.
        """
        for misfit in misfits:
            needed = wider(source.column.type, values[misfit])
            if source.column.type.startswith("list<") and is_nested(values[misfit]):
                needed = "text"
            if needed is not None:
                if not self._exceeds_float(source, fitted[:misfit]):
                    self.too_narrow.setdefault(source.key, needed)
                return

    def _look_for_types(self, key: str, values: Values) -> None:
        """Record the types of values that are stored as text but are not text."""
        types = {values.dtype.type} if isinstance(values, numpy.ndarray) else set(map(type, values))
        if not types <= _TEXT:
            self._types_stored_as_text.setdefault(key, set()).update(map(_type_name, types - _TEXT))

    def _look_for_changes(self, source: ColumnSource, given: Values, fitted: Values) -> None:
        """Count the values that were escaped or rounded."""
        pairs = list(zip(given, fitted, strict=True))
        if source.column.type == "string":
            self._add_count(self._escaped, source, sum(isinstance(one, str) and one != other for one, other in pairs))
        else:
            self._add_count(
                self._rounded, source, sum(other is not None and _loses_digits(one) for one, other in pairs)
            )

    def _add_count(self, counts: dict[str, int], source: ColumnSource, count: int) -> None:
        if count:
            counts[source.key] = counts.get(source.key, 0) + count

    def _exceeds_float(self, source: ColumnSource, values: Values) -> bool:
        return source.column.type == "int64" and (
            source.key in self._keys_with_widest_integers or exceeds_float(values)
        )

    def _count_misfits(self, key: str, count: int) -> None:
        if count:
            self._misfits[key] = self._misfits.get(key, 0) + count

    def _metadata_of(self, key: str) -> dict[str, Any]:
        metadata = to_json(self._data_keys.get(key, {}), self._note, f"{self._stream_name}.data_keys.{key}")
        return dict(metadata)


def _type_name(kind: type) -> str:
    """Return the Python name of a type.

    The same value is a NumPy scalar if it was decoded by column, and a Python object otherwise; notes must not differ.
    """
    if issubclass(kind, numpy.timedelta64):
        # NumPy counts durations among the integers.
        return kind.__name__
    if issubclass(kind, numpy.bool_ | numpy.number):
        return type(numpy.zeros(1, kind).item()).__name__
    return kind.__name__


def _declared_later(column_types: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the data keys whose values an earlier fold found when the tables had been planned without them."""
    later = {key: text for key, text in column_types.items() if key.endswith(_DECLARED_LATER_SUFFIX)}
    return {key.removesuffix(_DECLARED_LATER_SUFFIX): json.loads(text) for key, text in later.items()}


def _is_sequence(value: Any) -> bool:
    return not isinstance(value, str | bytes) and hasattr(value, "__len__") and getattr(value, "ndim", 1) != 0


def _loses_digits(value: Any) -> bool:
    """Return whether a value of a numeric column, or one of its items, has more digits than a float."""
    if isinstance(value, list | tuple):
        return any(map(_loses_digits, value))
    if isinstance(value, numpy.ndarray):
        return value.dtype.char in "Og" and any(map(_loses_digits, value.tolist()))
    return loses_digits(value)


def _ignore_note(_: str) -> None:
    """Discard a note: the conversion of a data key is noted when its node or column is created."""
