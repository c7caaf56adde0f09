"""Numbers with more digits than a float: conversion to the nearest float, and detection of lost digits."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy

ExactNumber: TypeAlias = "Decimal | Fraction | numpy.longdouble"

EXACT_NUMBERS: Final = (Decimal, Fraction, numpy.longdouble)


def nearest_float(value: ExactNumber) -> float:
    """Return the float nearest to a number: infinity if it is too large, NaN if it is NaN."""
    if isinstance(value, Decimal) and value.is_snan():
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def loses_digits(value: Any) -> bool:
    """Return whether the nearest float is a different number; False for types that have no more digits.

    A decimal equals a float if the float's `repr` has that value.
    """
    if not isinstance(value, EXACT_NUMBERS):
        return False
    number = nearest_float(value)
    if math.isnan(number):
        return False
    if isinstance(value, Decimal):
        return Decimal(repr(number)) != value
    return bool(number != value)
