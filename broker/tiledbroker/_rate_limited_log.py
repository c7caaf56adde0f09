"""Rate-limited logging of events that may occur a thousand times a second."""

from __future__ import annotations

import logging
import time


class RateLimitedLog:
    """Rate-limited logger: at most one message per topic and interval.

    Suppressed messages are counted; the next message of the topic includes their number.

    Parameters
    ----------
    logger
        Destination of the messages.
    interval
        Seconds between two messages of one topic.
    """

    def __init__(self, logger: logging.Logger, interval: float = 10.0) -> None:
        self._logger = logger
        self._interval = interval
        self._next: dict[str, float] = {}
        self._skipped: dict[str, int] = {}

    def log(self, level: int, topic: str, message: str, *args: object, exc_info: bool = False) -> None:
        """Log like `logging.Logger.log`, but at most once per `topic` and interval."""
        now = time.monotonic()
        if now < self._next.get(topic, now):
            self._skipped[topic] = self._skipped.get(topic, 0) + 1
            return
        self._next[topic] = now + self._interval
        if skipped := self._skipped.pop(topic, 0):
            message += " (and %d more like this since the last report)"
            args = (*args, skipped)
        self._logger.log(level, message, *args, exc_info=exc_info)
