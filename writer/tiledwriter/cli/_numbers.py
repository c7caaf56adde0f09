"""Numbers on command lines. What no clock and no server can take is wrong usage: NaN, infinity, and less than zero."""

from __future__ import annotations

import argparse
from typing import Final

# 31 years in seconds, and an exbibyte in GiB: more overflows the clocks and servers that get the number.
_MAX_NUMBER: Final = 1e9


def parse_number(text: str) -> float:
    """Return a number from 0 to `_MAX_NUMBER`; raise `argparse.ArgumentTypeError` if the text is not one."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    # NaN is in no range.
    if not 0 <= number <= _MAX_NUMBER:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {_MAX_NUMBER:.0f}")
    return number


def parse_count(text: str) -> int:
    """Return a whole number from 0 to `_MAX_NUMBER`; raise `argparse.ArgumentTypeError` if the text is not one."""
    number = parse_number(text)
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(number)
