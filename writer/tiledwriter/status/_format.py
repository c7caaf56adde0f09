"""How numbers are shown to people. "Not known" is always said in words."""

from __future__ import annotations

from datetime import datetime
from typing import Final

NOT_KNOWN: Final = "not known"

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
# A time of day is not ambiguous for so long.
_RECENT_SECONDS: Final = 20 * 3600
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def format_count(number: float | None) -> str:
    """Return a number with separators between thousands."""
    if number is None:
        return NOT_KNOWN
    return f"{number:,.0f}" if abs(number) >= 10 or number == int(number) else f"{number:.1f}"


def format_bytes(size: float | None) -> str:
    """Return a size in bytes with a binary unit."""
    if size is None:
        return NOT_KNOWN
    for unit in _UNITS:
        if abs(size) < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" or abs(size) >= 100 else f"{size:.1f} {unit}"


def format_duration(seconds: float | None) -> str:
    """Return a duration with its two largest units."""
    if seconds is None:
        return NOT_KNOWN
    if seconds < 0:
        return "0 s"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    whole = int(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def format_time(timestamp: float | None) -> str:
    """Return a Unix time in seconds in the time zone of this host, with the zone."""
    moment = _local(timestamp)
    return NOT_KNOWN if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} {moment:%Z}"


def format_clock(timestamp: float | None) -> str:
    """Return the time of day of a Unix time in seconds, with the zone."""
    moment = _local(timestamp)
    return NOT_KNOWN if moment is None else f"{moment:%H:%M:%S} {moment:%Z}"


def format_since(timestamp: float | None, now: float) -> str:
    """Return the time of day of a Unix time of the last hours, and with the date that of an older one."""
    if timestamp is not None and 0 <= now - timestamp < _RECENT_SECONDS:
        return format_clock(timestamp)
    return format_time(timestamp)


def utc_offset(timestamp: float) -> int:
    """Return how far this host's time zone is ahead of UTC at a Unix time, in seconds."""
    moment = _local(timestamp)
    offset = None if moment is None else moment.utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


def _local(timestamp: float | None) -> datetime | None:
    try:
        return None if timestamp is None else datetime.fromtimestamp(timestamp).astimezone()
    except (ValueError, OverflowError, OSError):
        # The number is not a date in the range of `datetime`.
        return None


def count_of(count: int, noun: str) -> str:
    """Return a number with its noun, such as "1 run" or "2 runs"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
