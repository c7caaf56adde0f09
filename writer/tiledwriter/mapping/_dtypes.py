"""Parse NumPy types from descriptors, which are unchecked text or JSON."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import numpy

# In datetime units, NumPy divides by the number after the slash and by the number before the unit. If either is 0, the
# division kills the process.
_DEADLY: Final = re.compile(r"/|\[\s*0")


def declared_dtype(declared: Any) -> numpy.dtype[Any]:
    """Return the type that a descriptor's `dtype_numpy` declares.

    Parameters
    ----------
    declared
        A type string, or a list of fields for a structured type, with JSON lists in place of tuples.

    Raises
    ------
    TypeError, ValueError
        NumPy does not know the type.
    """
    return numpy.dtype(_checked_name(declared) if isinstance(declared, str) else _numpy_fields(declared))


def _checked_name(text: str) -> str:
    if _DEADLY.search(text):
        raise TypeError(f"data type {text!r} not understood")
    return text


def _numpy_fields(description: Iterable[Any]) -> list[tuple[Any, ...]]:
    """Return the fields of a structured type as NumPy expects them: with tuples in place of JSON lists."""
    return [
        (
            name,
            _checked_name(kind) if isinstance(kind, str) else _numpy_fields(kind),
            *(tuple(numpy.atleast_1d(n)) for n in shape),
        )
        for name, kind, *shape in description
    ]
