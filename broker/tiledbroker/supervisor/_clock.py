"""Times on both clocks of a host."""

from __future__ import annotations

from typing import NamedTuple


class Instant(NamedTuple):
    """A time on both clocks, in seconds: `time.monotonic` for pauses, Unix time for what journals record."""

    monotonic: float
    unix: float
