"""Proof that a journal has all rows that Tiled holds of a table, required before the table is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import pyarrow

from ..mapping import AppendRows, Array, Column

# Replaces NaN, which does not compare equal to itself.
_MISSING = -numpy.inf


class RowProof:
    """Comparison of the rows found in a table with the rows of a journal, which `add_keys` receives in order.

    Parameters
    ----------
    found
        Keys of the rows in the table, as `row_keys` returns them.

    Attributes
    ----------
    found
        Number of rows in the table.
    journaled
        Number of the journal's rows received so far.
    """

    def __init__(self, found: Array) -> None:
        self.found = len(found)
        self.journaled = 0
        self._found = found
        self._unexplained = numpy.unique(found)
        # The journal's first keys, at most as many as the table has rows.
        self._beginning: list[Array] = []

    def add_keys(self, keys: Array) -> None:
        """Add the keys of the journal's next rows."""
        room = self.found - self.journaled
        if room > 0:
            self._beginning.append(keys[:room])
        self.journaled += len(keys)
        self._unexplained = self._unexplained[~numpy.isin(self._unexplained, keys)]

    @property
    def explained(self) -> bool:
        """True if the journal has each of the table's rows at least once."""
        return not len(self._unexplained)

    @property
    def is_beginning(self) -> bool:
        """True if the table's rows are the journal's first rows, in any order and with the same multiplicity."""
        if self.journaled < self.found:
            return False
        beginning = numpy.concatenate([self._found[:0], *self._beginning])
        return bool(numpy.array_equal(numpy.sort(self._found), numpy.sort(beginning)))


def key_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Return the columns that identify a row: `seq_num` and `time`, or the first column in tables without these."""
    names = [column.name for column in columns[:2]]
    return tuple(columns[:2] if names == ["seq_num", "time"] else columns[:1])


def row_keys(columns: Sequence[Any]) -> Array:
    """Return one complex number per row as its key: the first column as real part, the second, if any, as imaginary."""
    keys = numpy.zeros(len(columns[0]), numpy.complex128)
    keys.real = _as_numbers(columns[0])
    if len(columns) > 1:
        keys.imag = _as_numbers(columns[1])
    return keys


def keys_of_append(operation: AppendRows) -> Array:
    """Return the keys of the rows that an operation appends."""
    return row_keys(operation.values[: len(key_columns(operation.columns))])


def _as_numbers(values: Any) -> Array:
    if isinstance(values, pyarrow.Array | pyarrow.ChunkedArray):
        values = values.to_numpy(zero_copy_only=False)
    numbers = numpy.asarray(values, numpy.float64)
    return numpy.where(numpy.isnan(numbers), _MISSING, numbers)
