"""Logging of things that may happen a thousand times a second: the first at once, the rest counted."""

from __future__ import annotations

import logging
import time


class LimitedLog:
    """Logs one message per topic and interval; the next one says how many were left out."""

    def __init__(self, logger: logging.Logger, interval: float = 10.0) -> None:
        self._logger = logger
        self._interval = interval
        self._next: dict[str, float] = {}
        self._skipped: dict[str, int] = {}

    def log(self, level: int, topic: str, message: str, *args: object, exc_info: bool = False) -> None:
        """As `logging.Logger.log`, at most once per `topic` and interval."""
        now = time.monotonic()
        if now < self._next.get(topic, now):
            self._skipped[topic] = self._skipped.get(topic, 0) + 1
            return
        self._next[topic] = now + self._interval
        if skipped := self._skipped.pop(topic, 0):
            message += " (and %d more like this since the last report)"
            args = (*args, skipped)
        self._logger.log(level, message, *args, exc_info=exc_info)
