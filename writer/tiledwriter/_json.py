"""Metadata as JSON carries it, with a word about whatever it cannot carry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date
from typing import Any, Final

import numpy

MAX_INTEGER: Final = 2**53 - 1

# PostgreSQL makes integers of floats without a fraction, and the server fails on integers of more than 64 bits.
_TOO_LARGE: Final = 2.0**63


def to_json(value: Any, note: Callable[[str], None], where: str = "") -> Any:
    """`value` with only dicts, lists, strings, finite numbers, booleans and None in it.

    NaN becomes None; infinities, floats from 2**63 on and integers beyond 2**53 become the largest integer that JSON
    readers agree on. Each is reported to `note` with its place. The exact values are in the journal.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, note, where)
    if isinstance(value, numpy.generic | numpy.ndarray):
        plain = value.tolist()
        # Extended precision has no Python type, and comes back as it was.
        return to_json(str(plain) if isinstance(plain, numpy.generic) else plain, note, where)
    if isinstance(value, int):
        return _integer(value, note, where)
    if isinstance(value, float):
        return _float(value, note, where)
    if isinstance(value, Mapping):
        return {
            _text(str(key), note, where): to_json(item, note, f"{where}.{key}" if where else str(key))
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [to_json(item, note, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, bytes):
        note(f"{where}: {len(value)} bytes are stored as text.")
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, date):
        return value.isoformat()
    if callable(dump := getattr(value, "model_dump", None)):
        return to_json(dump(), note, where)
    note(f"{where}: a {type(value).__name__} is stored as text.")
    return str(value)


def _text(value: str, note: Callable[[str], None], where: str) -> str:
    text = str.__str__(value)
    if "\0" in text:
        note(f"{where}: text with a zero byte, which PostgreSQL does not take, is stored escaped.")
        text = text.replace("\0", "\\x00")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        note(f"{where}: text that is no Unicode is stored escaped.")
        return text.encode("utf-8", "backslashreplace").decode()
    return text


def _integer(value: int, note: Callable[[str], None], where: str) -> int:
    if -MAX_INTEGER <= value <= MAX_INTEGER:
        return int(value)
    clipped = MAX_INTEGER if value > 0 else -MAX_INTEGER
    note(f"{where}: {value} is beyond what JSON carries; {clipped} is stored.")
    return clipped


def _float(value: float, note: Callable[[str], None], where: str) -> float | None:
    if math.isnan(value):
        note(f"{where}: NaN cannot be carried by JSON; null is stored.")
        return None
    if abs(value) < _TOO_LARGE:
        return float(value)
    clipped = math.copysign(MAX_INTEGER, value)
    note(f"{where}: {value} is beyond what Tiled keeps in metadata; {clipped:.0f} is stored.")
    return clipped
