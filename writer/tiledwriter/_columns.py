"""Types of table columns, from what descriptors declare, and values made to fit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Final

import numpy
import pyarrow

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

# The widest type of each kind: exact for whatever a device declared, and the same on every table storage.
_BY_KIND: Final = {"b": "bool", "i": "int64", "u": "int64", "f": "float64", "U": "string", "S": "string"}

# "integer" without a NumPy type is what a device says that looked at its value of the moment: a motor standing at 0
# will be at 0.5 next. float64 is exact for integers up to 2**53.
_BY_JSON: Final = {"number": "float64", "integer": "float64", "boolean": "bool", "string": "string"}


def scalar_type(data_key: Mapping[str, Any], *, guessed: bool = False) -> str:
    """Column type for a data key that holds one value per event; "string" for whatever has no better one.

    `guessed`: the key's NumPy type was not declared, but derived from its JSON type.
    """
    kind = None if guessed else dtype_kind(data_key)
    if kind is not None:
        return _BY_KIND.get(kind, "string")
    return _BY_JSON.get(str(data_key.get("dtype")), "string")


def list_type(data_key: Mapping[str, Any]) -> str:
    """Column type for a data key that holds a few values per event."""
    return f"list<{_BY_KIND.get(dtype_kind(data_key) or 'f', 'float64')}>"


def dtype_kind(data_key: Mapping[str, Any]) -> str | None:
    """NumPy's letter for the kind of a data key's type, None if it has none that NumPy knows."""
    declared = data_key.get("dtype_numpy")
    if not declared:
        return None
    try:
        return numpy.dtype([tuple(field) for field in declared] if isinstance(declared, list) else declared).kind
    except TypeError:
        return None


def arrow_type(name: str) -> pyarrow.DataType:
    """The Arrow type a column type names."""
    if name.startswith("list<"):
        return pyarrow.list_(ARROW_TYPES[name[5:-1]])
    return ARROW_TYPES[name]


def fit(values: Sequence[Any], type_name: str) -> tuple[Sequence[Any], list[int]]:
    """Values as Arrow takes them for a column type, and the positions of those that had to be left out (None).

    A value that converts without loss is converted; any other counts as left out.
    """
    fit_one = _fit_scalar
    if type_name.startswith("list<"):
        type_name, fit_one = type_name[5:-1], _fit_list
    elif _arrow_takes(values, type_name):
        return values, []
    fitted = [None if value is None else fit_one(value, type_name) for value in values]
    return fitted, [i for i, (value, item) in enumerate(zip(values, fitted, strict=True)) if item is None is not value]


def _arrow_takes(values: Sequence[Any], type_name: str) -> bool:
    """Whether all values are of the column's own type: what Arrow makes of others, it may round."""
    if not _EXACT[type_name].issuperset(map(type, values)):
        return False
    try:
        pyarrow.array(values, ARROW_TYPES[type_name])
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        return False
    return True


def _fit_scalar(value: Any, type_name: str) -> Any:
    """`value` as the column's type, or None if that would lose something."""
    if isinstance(value, numpy.generic | numpy.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, list | tuple | numpy.ndarray) and len(value) == 1:
        return _fit_scalar(value[0], type_name)
    if type_name == "string":
        return _fit_text(value)
    if not isinstance(value, bool | int | float):
        return None
    if type_name == "float64":
        return _exact_float(value)
    if type_name == "bool":
        return bool(value) if value in (0, 1) else None
    return int(value) if -(2**63) <= value < 2**63 and value == int(value) else None


def _fit_text(value: Any) -> str:
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _exact_float(value: Any) -> float | None:
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if isinstance(value, float) or int(converted) == value else None


def _fit_list(value: Any, type_name: str) -> list[Any] | None:
    """One row of a list column; multi-dimensional ones are flattened."""
    if isinstance(value, numpy.ndarray):
        value = value.ravel().tolist()
    if not isinstance(value, list | tuple):
        return None
    if value and isinstance(value[0], list | tuple | numpy.ndarray):
        rows = [_fit_list(item, type_name) for item in value]
        first = rows[0]
        if first is None or any(row is None or len(row) != len(first) for row in rows):
            return None
        return [item for row in rows if row is not None for item in row]
    items = [_fit_scalar(item, type_name) for item in value]
    return None if None in items else items
