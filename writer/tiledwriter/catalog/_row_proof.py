"""Proves that a journal knows the rows that Tiled has of a table, before anything is done to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import pyarrow

from ..mapping import AppendRows, Array, Column

_MISSING = -numpy.inf  # stands for a value that is no number, which would not equal itself


class RowProof:
    """Compares the rows found in a table with a journal's, which are given in order by `add`.

    Parameters
    ----------
    found
        The keys of the rows in the table, as `row_keys` makes them.
    """

    def __init__(self, found: Array) -> None:
        self.found = len(found)
        self.journaled = 0
        self._found = found
        self._unexplained = numpy.unique(found)
        self._beginning: list[Array] = []  # as many of the journal's keys as there are rows in the table

    def add(self, keys: Array) -> None:
        """Take in the keys of the journal's next rows."""
        room = self.found - self.journaled
        if room > 0:
            self._beginning.append(keys[:room])
        self.journaled += len(keys)
        self._unexplained = self._unexplained[~numpy.isin(self._unexplained, keys)]

    @property
    def explained(self) -> bool:
        """Whether the journal has each of the table's rows, once at least."""
        return not len(self._unexplained)

    @property
    def is_beginning(self) -> bool:
        """Whether the table's rows are the first ones of the journal, each as often as there."""
        if self.journaled < self.found:
            return False
        beginning = numpy.concatenate([self._found[:0], *self._beginning])
        return bool(numpy.array_equal(numpy.sort(self._found), numpy.sort(beginning)))


def key_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """The columns that tell a table's rows apart: sequence number and time, or the row's number in further tables."""
    names = [column.name for column in columns[:2]]
    return tuple(columns[:2] if names == ["seq_num", "time"] else columns[:1])


def row_keys(columns: Sequence[Any]) -> Array:
    """The keys of rows, one number for each row, made of the values of one or two columns."""
    keys = numpy.zeros(len(columns[0]), numpy.complex128)
    keys.real = _as_numbers(columns[0])
    if len(columns) > 1:
        keys.imag = _as_numbers(columns[1])
    return keys


def keys_of_append(operation: AppendRows) -> Array:
    """The keys of the rows that an operation appends."""
    return row_keys(operation.values[: len(key_columns(operation.columns))])


def _as_numbers(values: Any) -> Array:
    if isinstance(values, pyarrow.Array | pyarrow.ChunkedArray):
        values = values.to_numpy(zero_copy_only=False)
    numbers = numpy.asarray(values, numpy.float64)
    return numpy.where(numpy.isnan(numbers), _MISSING, numbers)
