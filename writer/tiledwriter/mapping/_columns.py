"""Types of table columns, from what descriptors declare, and values made to fit them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Final

import numpy
import pyarrow

from .._exact_numbers import EXACT_NUMBERS, ExactNumber, nearest_float
from .._plain_text import text_of
from ._alike import Values
from ._dtypes import declared_dtype

ARROW_TYPES: Final[dict[str, pyarrow.DataType]] = {
    "bool": pyarrow.bool_(),
    "int64": pyarrow.int64(),
    "float64": pyarrow.float64(),
    "string": pyarrow.string(),
}

_EXACT: Final[dict[str, frozenset[type]]] = {
    "bool": frozenset({bool, numpy.bool_, NoneType}),
    "int64": frozenset({int, numpy.int64, numpy.int32, numpy.int16, numpy.int8, NoneType}),
    "float64": frozenset({float, numpy.float64, numpy.float32, NoneType}),
    "string": frozenset({str, NoneType}),
}

# Of these, those of which every value is taken.
_ALWAYS: Final[dict[str, frozenset[type]]] = {
    "bool": frozenset({bool, NoneType}),
    "float64": frozenset({float, NoneType}),
}

_KINDS: Final = {"bool": "b", "int64": "i", "float64": "f"}  # of the NumPy arrays that `AlikeDocuments` has

# The widest type of each kind: exact for whatever a device declared, and the same on every table storage.
_BY_KIND: Final = {"b": "bool", "i": "int64", "u": "int64", "f": "float64", "U": "string", "S": "string"}

_BY_JSON: Final = {"number": "float64", "integer": "int64", "boolean": "bool", "string": "string"}

MAX_EXACT: Final = 2**53
"""Up to here float64 holds every integer."""

# Each takes all values of those before it, integers up to 2**53.
_NUMBERS: Final = ("bool", "int64", "float64")


def scalar_type(data_key: Mapping[str, Any], first: Any = None, *, guessed: bool = False) -> str:
    """Column type for a data key that holds one value per event; "string" for whatever has no better one.

    What is declared counts, unless the `first` value (None if there is none) shows that it is wrong. `guessed`: the
    key's NumPy type was not declared, but derived from its JSON type, which many devices say of booleans is "integer".
    """
    kind = dtype_kind(data_key)
    if guessed and isinstance(first, bool | numpy.bool_):
        return "bool"
    json_type = _BY_JSON.get(str(data_key.get("dtype")), "string")
    declared = json_type if kind is None else _BY_KIND.get(kind, "string")
    if first is None or declared == "string":
        return declared
    return wider(declared, first) or "string"


def wider(type_name: str, value: Any) -> str | None:
    """The narrowest type that takes `value` and all that `type_name` takes; None if there is none."""
    head, item, tail = ("list<", type_name[5:-1], ">") if type_name.startswith("list<") else ("", type_name, "")
    if item not in _NUMBERS:
        return None
    candidates = [f"{head}{name}{tail}" for name in _NUMBERS[_NUMBERS.index(item) :]]
    return next((name for name in candidates if not fit([value], name)[1]), None)


def exceeds_float(values: Values) -> bool:
    """Whether there are integers among the values (which are of a column of integers) that float64 may not hold."""
    if isinstance(values, numpy.ndarray):
        return len(values) > 0 and not -MAX_EXACT <= values.min() <= values.max() <= MAX_EXACT
    integers = [value for value in values if value is not None]
    return bool(integers) and not -MAX_EXACT <= min(integers) <= max(integers) <= MAX_EXACT


def list_type(data_key: Mapping[str, Any], first: Any = None) -> str:
    """Column type for a data key that holds a few numbers per event, of which `first` are the first (or None)."""
    declared = f"list<{_BY_KIND.get(dtype_kind(data_key) or 'f', 'float64')}>"
    return wider(declared, first) or declared


def arrow_size(type_name: str) -> int:
    """Bytes that a value takes at most in a row of a database, the rest being kept elsewhere."""
    return {"bool": 1, "int64": 8, "float64": 8}.get(type_name, 20)


def dtype_kind(data_key: Mapping[str, Any]) -> str | None:
    """NumPy's letter for the kind of a data key's type, None if it has none that NumPy knows."""
    declared = data_key.get("dtype_numpy")
    if not declared:
        return None
    try:
        return declared_dtype(declared).kind
    except (TypeError, ValueError):
        return None


def arrow_type(name: str) -> pyarrow.DataType:
    """The Arrow type a column type names."""
    if name.startswith("list<"):
        return pyarrow.list_(ARROW_TYPES[name[5:-1]])
    return ARROW_TYPES[name]


def arrow_column(parts: Sequence[Values], type_name: str) -> pyarrow.Array:
    """Values that fit a column type, which are in several parts, as one Arrow array."""
    arrays = [pyarrow.array(part, arrow_type(type_name)) for part in parts]
    return arrays[0] if len(arrays) == 1 else pyarrow.concat_arrays(arrays)


def fit(values: Values, type_name: str) -> tuple[Values, list[int]]:
    """Values as Arrow takes them for a column type, and the positions of those that had to be left out (None).

    A value that converts without loss is converted; any other counts as left out.
    """
    if isinstance(values, numpy.ndarray):
        if _KINDS.get(type_name) == values.dtype.kind:
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
    """Whether all values are of the column's own type: what Arrow makes of others, it may round."""
    types = set(map(type, values))
    if not types <= _EXACT[type_name]:
        return False
    if types <= _ALWAYS.get(type_name, frozenset()):
        return True
    if type_name == "string" and any("\0" in value for value in values if value):
        return False  # PostgreSQL refuses it
    try:
        pyarrow.array(values, ARROW_TYPES[type_name])
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        return False
    return True


def _fit_scalar(value: Any, type_name: str) -> Any:
    """`value` as the column's type, or None if that would lose something."""
    if isinstance(value, numpy.generic | numpy.ndarray) and value.ndim == 0 and value.dtype.kind not in "mM":
        value = value.item()  # of times, some would be integers
    if isinstance(value, list | tuple | numpy.ndarray) and numpy.ndim(value) and len(value) == 1:
        return _fit_scalar(value[0], type_name)
    if type_name == "string":
        return _fit_text(value)
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
    """The nearest float; among integers and booleans a number that is one, else None."""
    number = nearest_float(value)
    if type_name == "float64":
        return number
    # What is beyond 64 bits may be so large that Python would never end to make an integer of it.
    if not abs(number) <= 2.0**63 or (integer := int(value)) != value:
        return None
    return _fit_scalar(integer, type_name)


def _fit_text(value: Any) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else text_of(value)
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _exact_float(value: Any) -> float | None:
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if isinstance(value, float) or int(converted) == value else None


def _fit_list(value: Any, type_name: str) -> list[Any] | None:
    """One row of a list column; multi-dimensional ones are flattened, and missing numbers are NaN."""
    if isinstance(value, numpy.ndarray):
        value = value.ravel().tolist()
    if not isinstance(value, list | tuple):
        value = [value]
    if value and isinstance(value[0], list | tuple | numpy.ndarray):
        rows = [_fit_list(item, type_name) for item in value]
        first = rows[0]
        if first is None or any(row is None or len(row) != len(first) for row in rows):
            return None
        return [item for row in rows if row is not None for item in row]
    missing = math.nan if type_name == "float64" else None
    items = [missing if item is None else _fit_scalar(item, type_name) for item in value]
    return None if None in items else items
