"""NumPy types as descriptors declare them: text or JSON that nobody has checked."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import numpy

# NumPy divides by the number after the slash, and by the one before the unit, and the process ends if it is 0.
_DEADLY: Final = re.compile(r"/|\[\s*0")


def declared_dtype(declared: Any) -> numpy.dtype[Any]:
    """The type that `dtype_numpy` stands for: text, or a list of fields as JSON has it.

    Raises
    ------
    TypeError, ValueError
        NumPy does not know such a type.
    """
    return numpy.dtype(_name(declared) if isinstance(declared, str) else _fields(declared))


def _name(text: str) -> str:
    if _DEADLY.search(text):
        raise TypeError(f"data type {text!r} not understood")
    return text


def _fields(description: Iterable[Any]) -> list[tuple[Any, ...]]:
    """The fields of a structured dtype as numpy wants them: tuples, where JSON has lists."""
    return [
        (name, _name(kind) if isinstance(kind, str) else _fields(kind), *(tuple(numpy.atleast_1d(n)) for n in shape))
        for name, kind, *shape in description
    ]
