"""Metadata as JSON carries it, with a word about whatever it cannot carry."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import numpy

MAX_INTEGER: Final = 2**53 - 1

# PostgreSQL makes integers of floats without a fraction, and the server fails on integers of more than 64 bits.
_TOO_LARGE: Final = 2.0**63
_SHOWN: Final = 80

REPLACED: Final = "ReplacedByRepr"
"""The name of tiledbroker's type, which is not imported: that would load the network's library."""


def to_json(value: Any, note: Callable[[str], None], where: str = "") -> Any:
    """`value` with only dicts, lists, strings, finite numbers, booleans and None in it.

    Paths become text, decimals and fractions the nearest float. NaN becomes None; infinities, floats from 2**63 on and
    integers beyond 2**53 become the largest integer that JSON readers agree on. Of keys that would be one text, those
    that are none get another. Whatever is changed is reported to `note` with its place. The exact values are in the
    journal.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, note, where)
    if isinstance(value, numpy.generic | numpy.ndarray):
        plain = value.tolist()
        return to_json(_narrowed(plain) if isinstance(plain, numpy.generic) else plain, note, where)
    if isinstance(value, int):
        return _integer(value, note, where)
    if isinstance(value, float | Decimal | Fraction):
        return _float(_nearest(value), note, where)
    if isinstance(value, Mapping):
        names = _names(value, note, where)
        return {
            _text(name, note, where): to_json(item, note, f"{where}.{name}" if where else name)
            for name, item in zip(names, value.values(), strict=True)
        }
    if isinstance(value, list | tuple):
        return [to_json(item, note, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, bytes):
        note(f"{where}: {len(value)} bytes are stored as text.")
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, os.PathLike):
        return to_json(os.fspath(value), note, where)
    if isinstance(value, date):
        return value.isoformat()
    if callable(dump := getattr(value, "model_dump", None)):
        return to_json(dump(), note, where)
    note(f"{where}: a {type(value).__name__} is stored as text.")
    return str(value)


def _narrowed(value: numpy.generic) -> Any:
    """A number of extended precision, which has no Python type and comes back as it was from `tolist`."""
    return float(value) if isinstance(value, numpy.floating) else complex(value)


def _nearest(value: float | Decimal | Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _names(value: Mapping[Any, Any], note: Callable[[str], None], where: str) -> list[str]:
    """The keys of a mapping as texts; of those that would be one text, texts keep it."""
    taken = {key for key in value if isinstance(key, str)}
    names: list[str] = []
    for key in value:
        name = str(key)
        while not isinstance(key, str) and name in taken:
            name += "_"
        if name != str(key):
            note(f"{where}: key {key!r} is stored as {name!r}, as there is a text that reads the same.")
        taken.add(name)
        names.append(name)
    return names


def _text(value: str, note: Callable[[str], None], where: str) -> str:
    text = str.__str__(value)
    if type(value).__name__ == REPLACED:
        note(f"{where}: an object that no document can carry is stored as Python prints it, {text[:_SHOWN]!r}.")
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
