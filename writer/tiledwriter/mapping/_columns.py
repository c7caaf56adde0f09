"""Derive the types of table columns from descriptors, and convert values to them."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Final

import numpy
import pyarrow

from .._exact_numbers import EXACT_NUMBERS, ExactNumber, nearest_float
from .._plain_text import text_of
from ._columnar import Values
from ._dtypes import declared_dtype

ARROW_TYPES: Final[dict[str, pyarrow.DataType]] = {
    "bool": pyarrow.bool_(),
    "int64": pyarrow.int64(),
    "float64": pyarrow.float64(),
    "string": pyarrow.string(),
}

_TYPES_STORED_EXACTLY: Final[dict[str, frozenset[type]]] = {
    "bool": frozenset({bool, numpy.bool_, NoneType}),
    "int64": frozenset({int, numpy.int64, numpy.int32, numpy.int16, numpy.int8, NoneType}),
    "float64": frozenset({float, numpy.float64, numpy.float32, NoneType}),
    "string": frozenset({str, NoneType}),
}

_TYPES_ALWAYS_ACCEPTED: Final[dict[str, frozenset[type]]] = {
    "bool": frozenset({bool, NoneType}),
    "float64": frozenset({float, NoneType}),
}

# Python's type, and the type code of `array` for the layout of Arrow's arrays without missing values.
_PLAIN_NUMBERS: Final[dict[str, tuple[type, str]]] = {"int64": (int, "q"), "float64": (float, "d")}

_NUMPY_KINDS: Final = {"bool": "b", "int64": "i", "float64": "f"}

# Only the widest types, because not every table storage has narrower ones. Each holds any declared width exactly.
_WIDEST_BY_KIND: Final = {"b": "bool", "i": "int64", "u": "int64", "f": "float64", "U": "string", "S": "string"}

_BY_JSON: Final = {"number": "float64", "integer": "int64", "boolean": "bool", "string": "string"}

MAX_EXACT_INTEGER: Final = 2**53
"""The largest integer up to which float64 represents every integer."""

# Each type holds all values of the types before it; float64 holds integers up to `MAX_EXACT_INTEGER`.
_NUMBERS_BY_WIDTH: Final = ("bool", "int64", "float64")


def scalar_type(data_key: Mapping[str, Any], first: Any = None, *, guessed: bool = False) -> str:
    """Return the column type for a data key with one value per event; "string" if no other type fits.

    The declared type applies, unless the first value does not fit it.

    Parameters
    ----------
    data_key
        The descriptor's entry for the data key.
    first
        The first value, or None if there is none.
    guessed
        Whether `dtype_numpy` was derived from the JSON type. If so, a boolean first value makes a column of numbers
        boolean, because many devices declare booleans as "integer".
    """
    kind = dtype_kind(data_key)
    json_type = _BY_JSON.get(str(data_key.get("dtype")), "string")
    declared = json_type if kind is None else _WIDEST_BY_KIND.get(kind, "string")
    if first is None or declared == "string":
        return declared
    if guessed and isinstance(first, bool | numpy.bool_):
        return "bool"
    return wider(declared, first) or "string"


def wider(type_name: str, value: Any) -> str | None:
    """Return the narrowest type that holds `value` and all values of `type_name`; None if there is none."""
    head, item, tail = ("list<", type_name[5:-1], ">") if type_name.startswith("list<") else ("", type_name, "")
    if item not in _NUMBERS_BY_WIDTH:
        return None
    candidates = [f"{head}{name}{tail}" for name in _NUMBERS_BY_WIDTH[_NUMBERS_BY_WIDTH.index(item) :]]
    return next((name for name in candidates if not fit([value], name)[1]), None)


def exceeds_float(values: Values) -> bool:
    """Return whether a float64 column might not represent some of these values of an integer column exactly."""
    if isinstance(values, numpy.ndarray):
        return len(values) > 0 and not -MAX_EXACT_INTEGER <= values.min() <= values.max() <= MAX_EXACT_INTEGER
    integers = [value for value in values if value is not None]
    return bool(integers) and not -MAX_EXACT_INTEGER <= min(integers) <= max(integers) <= MAX_EXACT_INTEGER


def list_type(data_key: Mapping[str, Any], first: Any = None) -> str:
    """Return the type of the list column for a data key with a short array per event.

    Parameters
    ----------
    data_key
        The descriptor's entry for the data key.
    first
        The first array, or None if there is none.
    """
    declared = f"list<{_WIDEST_BY_KIND.get(dtype_kind(data_key) or 'f', 'float64')}>"
    return wider(declared, first) or declared


def arrow_size(type_name: str) -> int:
    """Return how many bytes a value takes at most within a database row.

    PostgreSQL moves only values of more than 24 bytes elsewhere, and begins each number behind a multiple of 8 bytes.
    """
    return {"bool": 8, "int64": 8, "float64": 8}.get(type_name, 24)


def dtype_kind(data_key: Mapping[str, Any]) -> str | None:
    """Return NumPy's kind letter of a data key's declared type; None if it declares no type that NumPy knows."""
    declared = data_key.get("dtype_numpy")
    if not declared:
        return None
    try:
        return declared_dtype(declared).kind
    except (TypeError, ValueError):
        return None


def arrow_type(name: str) -> pyarrow.DataType:
    """Return the Arrow type for the name of a column type, such as "float64" or "list<int64>"."""
    if name.startswith("list<"):
        return pyarrow.list_(ARROW_TYPES[name[5:-1]])
    return ARROW_TYPES[name]


def arrow_column(parts: Sequence[Values], type_name: str) -> pyarrow.Array:
    """Join parts of a column, whose values fit the column type, into one Arrow array."""
    arrays = [_arrow_array(part, type_name) for part in parts]
    return arrays[0] if len(arrays) == 1 else pyarrow.concat_arrays(arrays)


def _arrow_array(values: Values, type_name: str) -> pyarrow.Array:
    """Convert values that fit the column type to an Arrow array.

    Raises
    ------
    OverflowError
        An integer does not fit.
    pyarrow.ArrowException, UnicodeEncodeError
        Another value does not fit.
    """
    python_type, code = _PLAIN_NUMBERS.get(type_name, (None, ""))
    if python_type is not None and isinstance(values, list) and set(map(type, values)) == {python_type}:
        # Arrow's own conversion takes five times as long for a lone value.
        numbers = pyarrow.py_buffer(array(code, values))
        return pyarrow.Array.from_buffers(ARROW_TYPES[type_name], len(values), [None, numbers])
    return pyarrow.array(values, arrow_type(type_name))


def fit(values: Values, type_name: str) -> tuple[Values, list[int]]:
    """Convert values to a column type.

    Returns
    -------
    fitted
        The values, with None in place of each value that cannot be converted without loss. Exact numbers are rounded
        to the nearest float.
    misfits
        The positions of the values that were replaced by None.
    """
    if isinstance(values, numpy.ndarray):
        if _NUMPY_KINDS.get(type_name) == values.dtype.kind:
            return values, []
        if type_name == "float64" and values.dtype.kind == "i" and not exceeds_float(values):
            return values.astype(numpy.float64), []
        return fit(values.tolist(), type_name)
    fit_one = _fit_scalar
    if type_name.startswith("list<"):
        type_name, fit_one = type_name[5:-1], _fit_list
    elif _arrow_takes(values, type_name):
        return values, []
    fitted = [None if value is None else fit_one(value, type_name) for value in values]
    return fitted, [i for i, (value, item) in enumerate(zip(values, fitted, strict=True)) if item is None is not value]


def _arrow_takes(values: Sequence[Any], type_name: str) -> bool:
    """Return whether Arrow converts all values exactly; Arrow may round values of other types than the column's."""
    types = set(map(type, values))
    if not types <= _TYPES_STORED_EXACTLY[type_name]:
        return False
    if types <= _TYPES_ALWAYS_ACCEPTED.get(type_name, frozenset()):
        return True
    # PostgreSQL refuses text with null characters.
    if type_name == "string" and any("\0" in value for value in values if value):
        return False
    try:
        _arrow_array(values, type_name)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        return False
    return True


def only_item(value: Any) -> Any:
    """Return the only item of an array of one, however deep it is nested; return any other value unchanged."""
    while isinstance(value, list | tuple) or (isinstance(value, numpy.ndarray) and value.ndim > 0):
        if len(value) != 1:
            break
        value = value[0]
    return value


def is_nested(value: Any) -> bool:
    """Return whether a value is an array of more than one dimension, or a list that has lists in it."""
    if isinstance(value, numpy.ndarray):
        return value.ndim > 1
    return isinstance(value, list | tuple) and not {list, tuple, numpy.ndarray}.isdisjoint(map(type, value))


def _fit_scalar(value: Any, type_name: str) -> Any:
    """Convert a value to the column type; return None if the conversion would lose information."""
    value = only_item(value)
    # `item` converts NumPy times of some units to integers.
    if isinstance(value, numpy.generic | numpy.ndarray) and value.ndim == 0 and value.dtype.kind not in "mM":
        value = value.item()
    if type_name == "string":
        return fit_text(value)
    if isinstance(value, EXACT_NUMBERS):
        return _fit_exact_number(value, type_name)
    if not isinstance(value, bool | int | float):
        return None
    if type_name == "float64":
        return _exact_float(value)
    if type_name == "bool":
        return bool(value) if value in (0, 1) else None
    return int(value) if -(2**63) <= value < 2**63 and value == int(value) else None


def _fit_exact_number(value: ExactNumber, type_name: str) -> Any:
    """Convert an exact number to the nearest float, or to an integer or boolean if it equals one, else to None."""
    number = nearest_float(value)
    if type_name == "float64":
        return number
    # A number beyond 64 bits may be so large that Python would take forever to convert it to an integer.
    if not abs(number) <= 2.0**63 or (integer := int(value)) != value:
        return None
    return _fit_scalar(integer, type_name)


def fit_text(value: Any) -> str:
    """Return any value as text that Tiled takes: what is not Unicode, and zero bytes, are escaped."""
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else text_of(value)
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _exact_float(value: Any) -> float | None:
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if isinstance(value, float) or int(converted) == value else None


def _fit_list(value: Any, type_name: str) -> list[Any] | None:
    """Convert a value to one row of a list column; return None if the conversion would lose information.

    In float columns, missing numbers become NaN.
    """
    if is_nested(value):
        return None
    if isinstance(value, numpy.ndarray):
        value = value.ravel().tolist()
    if not isinstance(value, list | tuple):
        value = [value]
    missing = math.nan if type_name == "float64" else None
    items = [missing if item is None else _fit_scalar(item, type_name) for item in value]
    return None if None in items else items
