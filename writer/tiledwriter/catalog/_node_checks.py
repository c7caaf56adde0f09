"""Compare one node of a run, as Tiled holds it, with the operations that create it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import pyarrow
from tiled.structures.array import BuiltinDtype
from tiled.structures.table import TableStructure

from .._findings import Example, Finding, Tally
from ..mapping import (
    AppendRows,
    Array,
    CreateArray,
    CreateTable,
    Creation,
    ExtendExternal,
    Growth,
    RegisterExternal,
    WriteArray,
    arrow_type,
)
from ._alignment import Alignment
from ._stored import MAX_BYTES, StoredNodes, StoredTable


class NodeCheck(ABC):
    """Comparison of one node.

    Parameters
    ----------
    operation
        Operation that creates the node.
    found
        The node's attributes on the server.
    stored
        Reader of the server's nodes.
    required
        Number of rows, or datums, that must be present; None: all of them, and no others.

    Attributes
    ----------
    path
        The node's path.
    rows
        Number of expected rows, or datums, compared so far.
    """

    def __init__(
        self, operation: Creation, found: Mapping[str, Any], stored: StoredNodes, required: int | None
    ) -> None:
        self.path = operation.path
        self.rows = 0
        self._found = found
        self._stored = stored
        self._required = required

    @property
    def where(self) -> str:
        """The node's path below the run; "" for the run itself."""
        return self.path.partition("/")[2]

    @abstractmethod
    def compare(self, operation: Growth) -> None:
        """Compare the next rows, as far as they are required."""

    def again(self) -> bool:
        """Return True if the caller must pass all rows to `compare` a second time."""
        return False

    @abstractmethod
    def findings(self) -> list[Finding]:
        """Return all differences, once all rows have been compared."""


class TableCheck(NodeCheck):
    """Comparison of a table, value by value; if the keys do not match row for row, a second pass aligns rows by key."""

    def __init__(
        self, operation: CreateTable, found: Mapping[str, Any], stored: StoredNodes, required: int | None
    ) -> None:
        super().__init__(operation, found, stored, required)
        self.order = operation.order
        structure = TableStructure.from_json(found["data_sources"][0]["structure"])
        types = {field.name: field.type for field in structure.arrow_schema_decoded}
        self._absent = [column.name for column in operation.columns if column.name not in types]
        wanted = {column.name: arrow_type(column.type) for column in operation.columns}
        self._others = {name: kind for name, kind in types.items() if wanted.get(name, kind) != kind}
        names = [column.name for column in operation.columns]
        self._keys = names[:2] if names[:2] == ["seq_num", "time"] else names[:1]
        self._values = [name for name in names if name in types and name not in (*self._keys, *self._others)]
        self._table: StoredTable | None = None
        self._expected_keys: list[Array] = []
        self._aligned = True
        self._places: Array | None = None
        self._row_findings: list[Finding] = []
        self._differing: dict[str, Tally] = {}

    def compare(self, operation: Growth) -> None:
        assert isinstance(operation, AppendRows)
        if self._absent and set(self._absent) & set(self._keys):
            return
        table = self._open_table()
        names = [column.name for column in operation.columns]
        columns = dict(zip(names, zip(operation.columns, operation.values, strict=True), strict=True))
        if self._places is None:
            keys = numpy.stack([_key_floats(columns[name][1]) for name in self._keys], axis=1)
            self._expected_keys.append(keys)
            self.rows = operation.stop
            found = self._found_keys(operation.first, operation.stop)
            self._aligned = self._aligned and numpy.array_equal(keys[: len(found)], found)
            if not self._aligned:
                return
            places = numpy.arange(operation.first, operation.first + len(found))
        else:
            places = self._places[operation.first : operation.stop]
        there = numpy.flatnonzero(places >= 0)
        for name in self._values:
            column, values = columns[name]
            expected = pyarrow.array(values, arrow_type(column.type)).take(there)
            self._compare_values(name, expected, table.column(name).take(places[there]), places[there])

    def again(self) -> bool:
        """Return True once, to start a second pass by key, if the rows are not the expected ones in order."""
        if self._places is not None or not self._expected_keys:
            return False
        found = self._open_table().rows
        required = self.rows if self._required is None else min(self._required, self.rows)
        if self._aligned and required <= found <= self.rows:
            return False
        keys = self._found_keys(0, found)
        alignment = Alignment(numpy.concatenate(self._expected_keys), keys, required)
        self._row_findings = alignment.findings(self.where, self._keys, ordered=bool(self.order))
        self._places = alignment.places
        self._differing = {}
        return True

    def findings(self) -> list[Finding]:
        problems = list(self._row_findings)
        if self._required is None:
            problems += [Finding(self.where, "is missing", name) for name in self._absent]
            for name, kind in self._others.items():
                problems.append(Finding(self.where, f"has type {kind}, which is not what its values need", name))
        for name, tally in self._differing.items():
            problems += tally.finding(self.where, "{} values differ", name)
        return problems

    def _open_table(self) -> StoredTable:
        if self._table is None:
            self._table = self._stored.table(self.path, [*self._keys, *self._values])
        return self._table

    def _found_keys(self, first: int, stop: int) -> Array:
        table = self._open_table()
        parts = [table.column(name).slice(first, max(stop - first, 0)).to_numpy() for name in self._keys]
        return numpy.stack([_key_floats(part) for part in parts], axis=1)

    def _compare_values(self, name: str, expected: pyarrow.Array, found: pyarrow.ChunkedArray, places: Array) -> None:
        if pyarrow.chunked_array([expected]).equals(found):
            return
        for i, (wanted, have) in enumerate(zip(expected.to_pylist(), found.to_pylist(), strict=True)):
            if not same(wanted, have):
                self._differing.setdefault(name, Tally()).add(int(places[i]), wanted, have)


class ArrayCheck(NodeCheck):
    """Comparison of an array that Tiled stores, row by row."""

    def __init__(
        self, operation: CreateArray, found: Mapping[str, Any], stored: StoredNodes, required: int | None
    ) -> None:
        super().__init__(operation, found, stored, required)
        structure = found["structure"]
        self._shape = operation.shape
        self._dtype = numpy.dtype(operation.dtype)
        self._size = int(structure["shape"][0])
        self._problems = []
        wanted = (str(self._dtype), [*operation.shape])
        kind = BuiltinDtype.from_json(structure["data_type"]).to_numpy_dtype()
        have = (str(kind), [*structure["shape"][1:]])
        if wanted != have:
            text = "has rows of another type or shape"
            self._problems.append(Finding(self.where, text, examples=(Example(None, wanted, have),)))
        self._differing = Tally()
        self._absent_rows = 0

    def compare(self, operation: Growth) -> None:
        assert isinstance(operation, WriteArray)
        self.rows = operation.stop
        stop = min(operation.stop, self._size)
        if self._required is not None:
            stop = min(stop, self._required)
        if self._problems:
            return
        step = max(1, MAX_BYTES // max(1, operation.values[:1].nbytes))
        for first in range(operation.first, stop, step):
            part = operation.rows(first, min(first + step, stop))
            found = self._stored.rows_of_array(self.path, self._dtype, self._shape, part.first, part.stop)
            if part.values.tobytes() != found.tobytes():
                self._compare_rows(part, found)

    def findings(self) -> list[Finding]:
        problems = list(self._problems)
        required = self.rows if self._required is None else min(self._required, self.rows)
        examples = (Example(None, self.rows, self._size),)
        if self._size < required:
            text = f"{required - self._size} rows are missing"
            problems.append(Finding(self.where, text, None, required - self._size, examples))
        elif self._required is None and self._size > self.rows:
            text = f"{self._size - self.rows} rows are there that the journal does not have"
            problems.append(Finding(self.where, text, None, self._size - self.rows, examples))
        if self._absent_rows:
            text = f"{self._absent_rows} rows are missing from what Tiled gives, although it says that they are there"
            problems.append(Finding(self.where, text, None, self._absent_rows))
        return problems + self._differing.finding(self.where, "{} rows differ")

    def _compare_rows(self, part: WriteArray, found: Array) -> None:
        self._absent_rows += max(0, len(part.values) - len(found))
        nan = part.values.dtype.kind in "fcmM"
        for row, (wanted, have) in enumerate(zip(part.values, found, strict=False), part.first):
            if not numpy.array_equal(wanted, have, equal_nan=nan):
                differs = wanted != have
                place = tuple(int(i) for i in numpy.argwhere(differs & ~((wanted != wanted) & (have != have)))[0])  # noqa: PLR0124
                at = "".join(f"[{i}]" for i in place)
                self._differing.add(row, f"{at} {wanted[place]}", f"{at} {have[place]}")


class ExternalCheck(NodeCheck):
    """Comparison of the registration of external files, not of their content."""

    def __init__(
        self, operation: RegisterExternal, found: Mapping[str, Any], stored: StoredNodes, required: int | None
    ) -> None:
        super().__init__(operation, found, stored, required)
        self._source = operation.data_source

    def compare(self, operation: Growth) -> None:
        assert isinstance(operation, ExtendExternal)
        self.rows = operation.stop
        if self._required is None or operation.stop <= self._required:
            self._source = operation.data_source

    def findings(self) -> list[Finding]:
        found = self._found["data_sources"][0]
        if self._required is not None:
            return self._check_length(found)
        wanted, have = _compared_parts(self._source), _compared_parts(found)
        differing = [name for name in wanted if wanted[name] != have.get(name)]
        return [
            Finding(self.where, f"is registered with other {name}", examples=(Example(None, wanted[name], have[name]),))
            for name in differing
        ]

    def _check_length(self, found: Mapping[str, Any]) -> list[Finding]:
        wanted, have = self._source["structure"].get("shape"), found["structure"].get("shape")
        if not wanted or not have or have[0] >= wanted[0]:
            return []
        return [Finding(self.where, "is shorter than was confirmed", examples=(Example(None, wanted, have),))]


def same(wanted: Any, have: Any) -> bool:
    """Return True if Tiled returned the value that was sent.

    Tiled returns NaN for missing values, and floats for integers in a column with missing values.
    """
    if _is_missing(wanted) or _is_missing(have):
        return _is_missing(wanted) and _is_missing(have)
    if isinstance(wanted, Mapping) and isinstance(have, Mapping):
        return wanted.keys() == have.keys() and all(same(value, have[key]) for key, value in wanted.items())
    if isinstance(wanted, list | tuple) and isinstance(have, list | tuple):
        return len(wanted) == len(have) and all(map(same, wanted, have))
    if isinstance(wanted, int) and isinstance(have, float):
        return float(wanted) == have
    return bool(wanted == have)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)  # noqa: PLR0124


def _key_floats(values: Sequence[Any]) -> Array:
    """Return key values as floats, with -inf for missing ones so that they compare equal."""
    numbers = numpy.asarray(values, numpy.float64)
    return numpy.nan_to_num(numbers, nan=-numpy.inf, posinf=numpy.inf, neginf=-numpy.inf)


def _compared_parts(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return the compared parts of a data source, in the form in which Tiled returns them."""
    structure = source["structure"]
    told = {"mimetype": source["mimetype"], "parameters": source["parameters"]}
    told |= {
        name: _tuples_to_lists(structure.get(name))
        for name in ("shape", "chunks", "data_type", "columns", "npartitions")
    }
    told["files"] = [asset["data_uri"] for asset in sorted(source["assets"], key=lambda asset: asset["num"] or 0)]
    return told


def _tuples_to_lists(value: Any) -> Any:
    return [_tuples_to_lists(item) for item in value] if isinstance(value, list | tuple) else value
