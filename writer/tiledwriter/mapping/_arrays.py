"""Convert arrays in events, and collect those of one data key for its array node."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy
import numpy.typing

from .._exact_numbers import EXACT_NUMBERS, loses_digits, nearest_float
from .._plain_text import text_of
from ._columns import MAX_EXACT_INTEGER, dtype_kind, fit_text, list_type, only_item
from ._dtypes import declared_dtype

Array = numpy.typing.NDArray[Any]

CHUNK_BYTES: Final = 2**20
"""The largest chunk of an array node, in bytes; a chunk has at least one row."""

MAX_CHUNK_ROWS: Final = 10_000
"""The largest number of rows in a chunk of an array node.

Each batch takes two requests until the first chunk is full. This is the number of rows in a full batch, so that at high
event rates only the first batch takes two.
"""

MAX_DECLARED_ITEMS: Final = 2**22
"""The largest declared size of an array, in items; larger declarations are ignored.

The limit guards against wrong descriptors, because missing arrays take up memory, too.
"""

ABSENT: Final = object()
"""Stands for the value of a data key that an event does not have."""

ARRAY: Final = "array"
"""Prefix of type names that denote the type of an array node, not of a column."""

_KINDS: Final = "biufcmMUS"
_NUMBERS: Final = "biufc"
_MIN_CHARACTERS: Final = 32


def takes_lists(dtype: numpy.dtype[Any]) -> bool:
    """Return whether list columns can hold arrays of this type.

    They cannot hold unsigned 64-bit integers, because databases have no such type.
    """
    return dtype.kind in "bif" or (dtype.kind == "u" and dtype.itemsize < 8)


def as_array(value: Any, declared: numpy.dtype[Any] | None = None) -> Array | None:
    """Convert a value to an array of numbers, times or text.

    Returns
    -------
    Array or None
        An array with at least one dimension; None if the value is not an array of such items.
    """
    if isinstance(value, str | bytes):
        return None
    try:
        array = _to_numpy(value, declared)
    except ValueError:
        # Rows of unequal length.
        return None
    if array.ndim == 0 or array.dtype.kind not in _KINDS:
        return None
    return array if array.dtype.kind != "U" or _is_text(value) else None


def _is_text(value: Any) -> bool:
    """Return whether a value that NumPy takes for text has nothing but text: NumPy converts numbers beside text."""
    return all(isinstance(item, str | bytes) for item in _flat_items(value))


def _to_numpy(
    value: Any,
    wanted: numpy.dtype[Any] | None,
    on_rounded: Callable[[], None] = lambda: None,
    on_escaped: Callable[[int], None] = lambda _: None,
) -> Array:
    """Convert a value to an array, with NaN for missing numbers and the nearest float for each exact number.

    Parameters
    ----------
    value
        The value.
    wanted
        The expected type. If it is an unsigned integer type, integers stay integers: without a type, NumPy converts a
        list with small integers and integers of more than 63 bits to floats.
    on_rounded
        Called if the conversion loses digits.
    on_escaped
        Called with the number of texts that were escaped.
    """
    array = numpy.asarray(value)
    if array.dtype.kind in "US":
        return _text_array(_flat_items(value), array, on_escaped)
    if array.dtype.kind == "O":
        if any(map(loses_digits, array.flat)):
            on_rounded()
        array = _with_nan(array)
    if is_extended(array.dtype):
        stored = array.astype(stored_type(array.dtype))
        if not _arrays_equal(stored, array):
            on_rounded()
        return stored
    if wanted is not None and wanted.kind == "u" and array.dtype.kind == "f":
        try:
            integers = numpy.asarray(value, wanted)
        except (OverflowError, TypeError, ValueError):
            return array
        return integers if numpy.array_equal(integers.astype(array.dtype), array) else array
    return array


def _text_array(items: list[Any], array: Array, on_escaped: Callable[[int], None]) -> Array:
    """Convert the items of an array of text or bytes as a text column does; NumPy would cut off final zero bytes."""
    texts = [fit_text(item) for item in items]
    given = [item if isinstance(item, bytes) else text_of(item).encode("utf-8", "surrogatepass") for item in items]
    on_escaped(sum(text.encode() != before for text, before in zip(texts, given, strict=True)))
    characters = max(array.dtype.itemsize // (4 if array.dtype.kind == "U" else 1), 1, *map(len, texts))
    return numpy.array(texts, f"<U{characters}").reshape(array.shape)


def _with_nan(array: Array) -> Array:
    """Convert an array of numbers and None to floats, with NaN for None.

    The array is returned unchanged if it contains other objects, or integers that a float cannot represent.
    """
    items = array.ravel().tolist()
    if not all(item is None or isinstance(item, (bool, int, float, numpy.number, *EXACT_NUMBERS)) for item in items):
        return array
    try:
        numbers = [math.nan if item is None else _to_float(item) for item in items]
    except (OverflowError, TypeError):
        return array
    if any(isinstance(item, int) and number != item for item, number in zip(items, numbers, strict=True)):
        return array
    return numpy.array(numbers).reshape(array.shape)


def _to_float(item: Any) -> float:
    return nearest_float(item) if isinstance(item, EXACT_NUMBERS) else float(item)


def is_extended(dtype: numpy.dtype[Any]) -> bool:
    """Return whether a type has a precision that Tiled cannot store."""
    return dtype != stored_type(dtype)


def stored_type(dtype: numpy.dtype[Any]) -> numpy.dtype[Any]:
    """Return the type itself, or the most precise type of the same kind that Tiled can store."""
    if dtype.kind == "f" and dtype.itemsize > 8:
        return numpy.dtype("<f8")
    return numpy.dtype("<c16") if dtype.kind == "c" and dtype.itemsize > 16 else dtype


def _flat_items(value: Any) -> list[Any]:
    if isinstance(value, numpy.ndarray):
        return list(value.flat)
    return [item for part in value for item in _flat_items(part)] if isinstance(value, list | tuple) else [value]


def declared_shape(data_key: Mapping[str, Any]) -> tuple[int, ...] | None:
    """Return the declared shape of one event's array.

    None if the shape is undeclared or variable, or if it has more than `MAX_DECLARED_ITEMS` items.
    """
    sizes = tuple(data_key.get("shape") or ())
    if not sizes or not all(isinstance(size, int | numpy.integer) and size > 0 for size in sizes):
        return None
    shape = tuple(int(size) for size in sizes)
    return shape if math.prod(shape) <= MAX_DECLARED_ITEMS else None


def declared_type(data_key: Mapping[str, Any]) -> numpy.dtype[Any] | None:
    """Return the declared type as stored; None if the data key declares no type, or none that array nodes support."""
    kind = dtype_kind(data_key)
    return stored_type(declared_dtype(data_key["dtype_numpy"])) if kind is not None and kind in _KINDS else None


def element_type(data_key: Mapping[str, Any], first: Array | None, *, guessed: bool) -> numpy.dtype[Any]:
    """Return the type of the elements of an array node.

    Text has a fixed width: at least the declared width, and at least twice the width of the first array, so that longer
    text fits later.

    Parameters
    ----------
    data_key
        The descriptor's entry for the data key.
    first
        The first array, or None if the first event has none.
    guessed
        Whether `dtype_numpy` was derived from the JSON type instead of declared.
    """
    declared = declared_type(data_key)
    kind = None if declared is None else declared.kind
    if (first.dtype.kind if first is not None else kind) in ("U", "S"):
        width = declared.itemsize // 4 if declared is not None and declared.kind == "U" else 0
        longest = 0 if first is None else first.dtype.itemsize // 4
        return numpy.dtype(f"<U{max(_MIN_CHARACTERS, width, 1 << max(2 * longest - 1, 0).bit_length())}")
    if declared is None or declared.kind in "US":
        return first.dtype if first is not None else numpy.dtype("<f8")
    if first is None or (not guessed and _holds_array(declared, first)):
        return declared
    if declared.kind in "mM" or first.dtype.kind in "mM":
        return first.dtype
    common: numpy.dtype[Any] = numpy.result_type(declared, first.dtype)
    return common


@dataclass
class InternalArray:
    """The array node of one data key, with one row per event.

    Attributes
    ----------
    key
        The data key.
    path
        The path of the node.
    shape
        The shape of one row; empty for a number.
    dtype
        The type of the elements.
    dims
        The names of the dimensions, that of the rows included.
    lists
        Whether list columns are available for values that do not fit the node.
    pending
        Values of the rows not yet flushed.
    written
        Number of rows flushed.
    created
        Whether the operation that creates the node was emitted.
    rounded
        Number of arrays that lost digits.
    escaped
        Number of texts that were escaped.
    """

    key: str
    path: str
    shape: tuple[int, ...]
    dtype: numpy.dtype[Any]
    dims: tuple[str, ...]
    lists: bool = True
    pending: list[Any] = field(default_factory=list)
    written: int = 0
    created: bool = False
    rounded: int = 0
    escaped: int = 0
    _exceeds_float: bool = False

    @cached_property
    def row_bytes(self) -> int:
        """The size of one row, in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def chunk_rows(self) -> int:
        """Rows per chunk of the node."""
        return min(max(1, CHUNK_BYTES // self.row_bytes), MAX_CHUNK_ROWS)

    def column_for(self, value: Any, *, lists: bool) -> str | None:
        """Return a type that could hold a value that does not fit the node.

        Parameters
        ----------
        value
            The value.
        lists
            Whether list columns are available.

        Returns
        -------
        str or None
            A wider type for the node (such as "array<f8"), the type of a list column, or "text" for JSON. None if no
            type is suitable, and for images, because their JSON would be huge.
        """
        array = as_array(value, self.dtype) if value is not None and value is not ABSENT else None
        if array is not None and array.shape == self.shape and (wider := self._wider_dtype(array)) is not None:
            return f"{ARRAY}{wider.str}"
        if array is None or array.ndim != 1 or len(self.shape) != 1:
            return None
        if array.shape == self.shape and array.dtype.kind in "fc" and self._exceeds_float:
            # As floats, or in JSON, the integers so far would lose digits.
            return None
        dtype = self.dtype if _holds_array(self.dtype, array) else array.dtype
        if lists and takes_lists(dtype) and takes_lists(array.dtype):
            return list_type({"dtype_numpy": dtype.str}, value)
        return "text"

    def _wider_dtype(self, array: Array) -> numpy.dtype[Any] | None:
        """Return a wider numeric type that holds both an array and all rows so far; None if there is none."""
        if self.dtype.kind not in _NUMBERS or array.dtype.kind not in _NUMBERS:
            return None
        common: numpy.dtype[Any] = numpy.result_type(self.dtype, array.dtype)
        if common == self.dtype or not _holds_array(common, array) or (self._exceeds_float and common.kind in "fc"):
            return None
        return common

    @property
    def filler(self) -> str:
        """What a row has in place of values that are missing or do not fit, as text for notes."""
        missing = {"f": "NaN", "c": "NaN", "m": "NaT", "M": "NaT", "b": "False", "U": "empty text"}
        return missing.get(self.dtype.kind, "0")

    def take_rows(self) -> tuple[Array, list[int], str | None]:
        """Remove the pending rows and return them.

        Returns
        -------
        rows
            The rows as one array.
        misfits
            The positions of the rows whose values are missing or do not fit the shape or the type of the node. Missing
            values count only if nothing in the row tells them from others.
        needed
            A type that holds the first misfit for which `column_for` finds one; None if there is none.
        """
        rows = numpy.zeros((len(self.pending), *self.shape), self.dtype)
        misfits: list[int] = []
        needed: str | None = None
        # NumPy warns about NaN in integer rows, which is reported as a misfit instead.
        with numpy.errstate(invalid="ignore"):
            for position, value in enumerate(self.pending):
                # A view, also where a row is a single number.
                row = rows[position, ...]
                if not self._fill_row(row, value):
                    misfits.append(position)
                    needed = needed or self.column_for(value, lists=self.lists)
                elif self.dtype.kind in "iu" and self.dtype.itemsize == 8 and not self._exceeds_float:
                    self._exceeds_float = bool((row > MAX_EXACT_INTEGER).any() or (row < -MAX_EXACT_INTEGER).any())
        self.pending = []
        return rows, misfits, needed

    def _fill_row(self, row: Array, value: Any) -> bool:
        """Copy into its row the part of a value that fits; return whether the whole value fits exactly."""
        row[...] = self._missing_value
        if value is ABSENT:
            return self.dtype.kind in "fcmM"
        try:
            value = value if self.shape else only_item(value)
            array = _to_numpy(value, self.dtype, self._count_rounded, self._count_escaped)
            # A waveform of one number may come as a scalar.
            if array.ndim == 0 and value is not None and len(self.shape) == 1:
                array = array.reshape(1)
            if array.ndim != len(self.shape) or (array.dtype.kind in "US") != (self.dtype.kind == "U"):
                return False
            if array.dtype.kind == "c" != self.dtype.kind:
                return False
            common = [slice(0, min(a, b)) for a, b in zip(array.shape, self.shape, strict=True)]
            # The ellipsis makes it a view, also of a single number.
            part: tuple[Any, ...] = (*common, ...)
            row[part] = array[part]
        except (ValueError, TypeError):
            return False
        same = _arrays_equal(row[part], array[part])
        if not same and self.shape and self.dtype.str[1:] == "f8" and array.dtype.kind in "iu":
            self._count_rounded()
            same = True
        # A missing value is better than a wrong number. Truncated text is kept.
        if not same and self.dtype.kind != "U":
            row[...] = self._missing_value
        return same and array.shape == self.shape and (self.dtype.kind != "U" or _is_text(value))

    def _count_rounded(self) -> None:
        self.rounded += 1

    def _count_escaped(self, count: int) -> None:
        self.escaped += count

    @property
    def _missing_value(self) -> Any:
        if self.dtype.kind in "mM":
            return "NaT"
        return numpy.nan if self.dtype.kind in "fc" else self.dtype.type()


def _holds_array(dtype: numpy.dtype[Any], array: Array) -> bool:
    if (dtype.kind in "US") != (array.dtype.kind in "US") or (array.dtype.kind == "c" != dtype.kind):
        return False
    with numpy.errstate(invalid="ignore", over="ignore"):
        return dtype == array.dtype or _arrays_equal(array.astype(dtype), array)


def _arrays_equal(stored: Array, given: Array) -> bool:
    if stored.dtype.kind == "f" and given.dtype.kind in "iu":
        # NumPy would compare the integers as floats, which cannot tell large ones apart.
        with numpy.errstate(invalid="ignore", over="ignore"):
            return bool(numpy.array_equal(stored, given) and numpy.array_equal(stored.astype(given.dtype), given))
    may_be_nan = stored.dtype.kind in "fcmM" and given.dtype.kind in "fcmM"
    return bool(numpy.array_equal(stored, given, equal_nan=may_be_nan))
