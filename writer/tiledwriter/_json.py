"""Conversion of metadata to JSON, with a note about each value that JSON cannot represent."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import date, time
from typing import Any, Final

import numpy

from ._exact_numbers import EXACT_NUMBERS, ExactNumber, loses_digits, nearest_float
from ._plain_text import text_of

MAX_INTEGER: Final = 2**53 - 1

MAX_DEPTH: Final = 100
"""Containers within each other; Tiled answers 500 to about 250."""

# PostgreSQL turns floats without a fraction into integers, and the server fails on integers of more than 64 bits.
_SMALLEST_REFUSED_FLOAT: Final = 2.0**63
_MAX_SHOWN_CHARACTERS: Final = 80
_MAX_SHOWN_INTEGER_BITS: Final = 1000
_MAX_NOTES_AT_ONCE: Final = 10

REPLACED: Final = "ReplacedByRepr"
"""Name of the type in tiledbroker. Importing the type itself would load the network library."""


def to_json(value: Any, note: Callable[[str], None], where: str = "", depth: int = 0) -> Any:
    """Return `value` with only dicts, lists, strings, finite numbers, booleans and None in it.

    - Paths, dates and times become text.
    - Decimals, fractions and numbers of extended precision become the nearest float.
    - NaN becomes None. Infinities, floats of 2**63 and more, and integers beyond 2**53 become the largest integer on
      which JSON readers agree, with their sign.
    - Containers that are nested deeper than `MAX_DEPTH` become text.
    - Keys become text. If several keys become the same text, a key that is this text itself keeps it, and the others
      get `_` appended.

    Parameters
    ----------
    value
        The value to convert. The journal keeps the exact one.
    note
        Called with a text for each change. In one list only the first `_MAX_NOTES_AT_ONCE` changes are reported singly.
    where
        Path of the value, for the notes.
    depth
        Number of containers that the value is in.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _convert_text(value, note, where)
    if isinstance(value, EXACT_NUMBERS):
        return _exact_number(value, note, where)
    if isinstance(value, numpy.generic | numpy.ndarray):
        return to_json(_convert_numpy(value, note, where), note, where, depth)
    if isinstance(value, int):
        return _convert_integer(value, note, where)
    if isinstance(value, float):
        return _convert_float(value, note, where)
    if depth >= MAX_DEPTH and isinstance(value, Mapping | list | tuple):
        note(f"{where}: is nested more than {MAX_DEPTH} deep; what is deeper is stored as text.")
        return _convert_text(text_of(value), note, where)
    if isinstance(value, Mapping):
        names = _convert_keys(value, note, where)
        return {
            name: to_json(item, note, f"{where}.{name}" if where else name, depth + 1)
            for name, item in zip(names, value.values(), strict=True)
        }
    if isinstance(value, list | tuple):
        return _convert_items(value, note, where, depth + 1)
    if isinstance(value, bytes):
        note(f"{where}: {len(value)} bytes are stored as text.")
        return _convert_text(value.decode("utf-8", "backslashreplace"), note, where)
    if isinstance(value, os.PathLike):
        return to_json(os.fspath(value), note, where, depth)
    if isinstance(value, date | time):
        return value.isoformat()
    if callable(dump := getattr(value, "model_dump", None)):
        return to_json(dump(), note, where, depth)
    note(f"{where}: a {type(value).__name__} is stored as text.")
    return _convert_text(text_of(value), note, where)


def _convert_numpy(value: Any, note: Callable[[str], None], where: str) -> Any:
    """Return a NumPy value as Python types; times become text, since Python turns some of them into integers."""
    if value.dtype.kind == "M":
        return numpy.datetime_as_string(value).tolist()
    if value.dtype.kind == "m":
        note(f"{where}: a timedelta64 is stored as text.")
        texts = numpy.array([str(item) for item in value.reshape(-1)], object)
        return texts.reshape(value.shape).tolist()
    if value.dtype.names is not None:
        note(f"{where}: a record is stored as a list of its values; its fields are {', '.join(value.dtype.names)}.")
        return _record_values(value)
    plain = value.tolist()
    return complex(plain) if isinstance(plain, numpy.complexfloating) else plain


def _record_values(value: Any) -> list[Any]:
    """Return a record as the list of its values, and an array of records as nested lists of these."""
    return [value[name] for name in value.dtype.names] if value.ndim == 0 else [_record_values(row) for row in value]


def _convert_items(value: Sequence[Any], note: Callable[[str], None], where: str, depth: int) -> list[Any]:
    """Convert the items of a list, limiting the number of notes about them."""
    if isinstance(note, _FewNotes):
        return [to_json(item, note, f"{where}[{i}]", depth) for i, item in enumerate(value)]
    few = _FewNotes(note)
    items = [to_json(item, few, f"{where}[{i}]", depth) for i, item in enumerate(value)]
    few.end(where)
    return items


class _FewNotes:
    """Passes on the first notes and then reports the number of the others."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._count = 0

    def __call__(self, text: str) -> None:
        self._count += 1
        if self._count <= _MAX_NOTES_AT_ONCE:
            self._note(text)

    def end(self, where: str) -> None:
        if self._count > _MAX_NOTES_AT_ONCE:
            self._note(f"{where}: {self._count - _MAX_NOTES_AT_ONCE} more values are stored in another form.")


def _exact_number(value: ExactNumber, note: Callable[[str], None], where: str) -> float | None:
    number = nearest_float(value)
    if abs(number) < _SMALLEST_REFUSED_FLOAT and loses_digits(value):
        note(f"{where}: {text_of(value)[:_MAX_SHOWN_CHARACTERS]} has more digits than a float; {number!r} is stored.")
    return _convert_float(number, note, where)


def _convert_keys(value: Mapping[Any, Any], note: Callable[[str], None], where: str) -> list[str]:
    """Return the keys of a mapping as distinct texts; keys that are text that Tiled takes stay unchanged."""
    texts = [_convert_text(key if isinstance(key, str) else text_of(key), note, where) for key in value]
    is_kept = [isinstance(key, str) and key == text for key, text in zip(value, texts, strict=True)]
    taken = {text for text, kept in zip(texts, is_kept, strict=True) if kept}
    names: list[str] = []
    changed: list[str] = []
    for key, text, kept in zip(value, texts, is_kept, strict=True):
        name = text
        while name in taken and not kept:
            name += "_"
        if not isinstance(key, str) or name != text:
            shown = f"{text[:_MAX_SHOWN_CHARACTERS]} ({type(key).__name__})"
            changed.append(f"{shown} as {name[:_MAX_SHOWN_CHARACTERS]!r}")
        taken.add(name)
        names.append(name)
    if changed:
        more = f" and {len(changed) - _MAX_NOTES_AT_ONCE} more" * (len(changed) > _MAX_NOTES_AT_ONCE)
        listed = ", ".join(changed[:_MAX_NOTES_AT_ONCE])
        note(f"{where}: keys that are not text or not distinct are changed: {listed}{more}.")
    return names


def _convert_text(value: str, note: Callable[[str], None], where: str) -> str:
    text = str.__str__(value)
    if type(value).__name__ == REPLACED:
        note(f"{where}: an object that a document cannot hold is stored as its repr, {text[:_MAX_SHOWN_CHARACTERS]!r}.")
    if "\0" in text:
        note(f"{where}: text with a zero byte, which PostgreSQL does not accept, is stored escaped.")
        text = text.replace("\0", "\\x00")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        note(f"{where}: text that is not valid Unicode is stored escaped.")
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _convert_integer(value: int, note: Callable[[str], None], where: str) -> int:
    if -MAX_INTEGER <= value <= MAX_INTEGER:
        return int(value)
    clipped = MAX_INTEGER if value > 0 else -MAX_INTEGER
    note(f"{where}: {_integer_text(value)} is beyond the range of JSON; {clipped} is stored.")
    return clipped


def _integer_text(value: int) -> str:
    """Return an integer for a note. Python refuses to convert very large integers to text because that takes long."""
    return str(value) if value.bit_length() < _MAX_SHOWN_INTEGER_BITS else f"an integer of {value.bit_length()} bits"


def _convert_float(value: float, note: Callable[[str], None], where: str) -> float | None:
    if math.isnan(value):
        note(f"{where}: JSON has no NaN; null is stored.")
        return None
    if abs(value) < _SMALLEST_REFUSED_FLOAT:
        return float(value)
    clipped = math.copysign(MAX_INTEGER, value)
    note(f"{where}: {value} is beyond the range of Tiled's metadata; {clipped:.0f} is stored.")
    return clipped
