"""How often a campaign looks at all its runs: the proxies that carry the requests to Tiled run in the same process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PAUSES_PER_LOOK: Final = 9.0


class Pace:
    """Pauses between looks, nine times as long as a look has taken of the processor, and at least so many seconds."""

    def __init__(self, least_seconds: float) -> None:
        self.pause_seconds = least_seconds
        self._least_seconds = least_seconds
        self._ended_at = float("-inf")

    @property
    def is_due(self) -> bool:
        """Whether the pause is over."""
        return time.monotonic() >= self._ended_at + self.pause_seconds

    @contextmanager
    def look(self) -> Iterator[None]:
        """Measure a look, in the thread that takes it."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.pause_seconds = max(self._least_seconds, _PAUSES_PER_LOOK * (time.thread_time() - began))
            self._ended_at = time.monotonic()
