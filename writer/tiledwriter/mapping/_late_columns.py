"""Find table columns that begin late: without a value in the first rows.

SQLite does not tell what type a column has. Its driver derives the type from the values in the first rows of an
answer; without any, it takes the column for one of integers, and fails at the first float or text behind them. Then
Tiled cannot read the column, nor the table. Columns of integers and booleans are read as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy
import pyarrow

from ._internal_table import ColumnSource

FIRST_ROWS: Final = 1_024
"""The number of rows of an answer by which SQLite's driver judges the types of its columns."""

BEGINS_LATE_SUFFIX: Final = "\0begins late"
"""Suffix of data keys in the plan of a run; see `AppendRows.begin_late`."""

_AFFECTED_TYPES: Final = frozenset({"float64", "string"})


class LateColumns:
    """Finds the columns of a stream that begin late."""

    def __init__(self) -> None:
        self._begun: set[str] = set()

    def find(self, sources: Sequence[ColumnSource], first: int, values: Sequence[pyarrow.Array]) -> list[ColumnSource]:
        """Take in consecutive rows of a table, from row `first`, by column.

        Returns
        -------
        list
            The columns without a value in the first rows, if one of them has its first value here; else none.
        """
        late = []
        begins = False
        for source, column in zip(sources, values, strict=True):
            if source.column.type not in _AFFECTED_TYPES or source.column.name in self._begun:
                continue
            place = _find_value(column)
            if place is not None:
                self._begun.add(source.column.name)
            if place is None or first + place >= FIRST_ROWS:
                late.append(source)
                begins = begins or place is not None
        return late if begins else []


def with_first(values: pyarrow.Array, filler: Any) -> pyarrow.Array:
    """Return a column with `filler` in place of its first value, unless there is one."""
    if _find_value(values) == 0:
        return values
    return pyarrow.concat_arrays([pyarrow.array([filler], values.type), values[1:]])


def _find_value(values: pyarrow.Array) -> int | None:
    """Return the position of the first value that SQLite stores, which has no NaN; None if there is none."""
    stored = values.is_valid().to_numpy(zero_copy_only=False)
    if pyarrow.types.is_floating(values.type):
        stored = stored & ~numpy.isnan(values.to_numpy(zero_copy_only=False))
    places = numpy.flatnonzero(stored)
    return int(places[0]) if len(places) else None
