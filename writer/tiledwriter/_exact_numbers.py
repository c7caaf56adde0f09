"""Numbers that may have more digits than a float has: the nearest float, and whether that loses some."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy

ExactNumber: TypeAlias = "Decimal | Fraction | numpy.longdouble"

EXACT_NUMBERS: Final = (Decimal, Fraction, numpy.longdouble)


def nearest_float(value: ExactNumber) -> float:
    """The float that is nearest to a number: infinity where it is too large, NaN where it is none."""
    if isinstance(value, Decimal) and value.is_snan():
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def loses_digits(value: Any) -> bool:
    """Whether the nearest float is another number; a decimal is the same if the float is written like it."""
    if not isinstance(value, EXACT_NUMBERS):
        return False
    number = nearest_float(value)
    if math.isnan(number):
        return False
    if isinstance(value, Decimal):
        return Decimal(repr(number)) != value
    return bool(number != value)
