"""Requests to stop, and to read the configuration again, as signals and other threads make them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType


class Requests:
    """Counts requests, which the supervisor's loop takes one after the other.

    They only count, because a signal handler may run between any two steps of the loop.

    Parameters
    ----------
    wake
        Called after each request.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._stops = self._taken_stops = 0
        self._reloads = self._taken_reloads = 0

    @property
    def are_pending(self) -> bool:
        """Whether there are requests that were not taken."""
        return self._taken_stops < self._stops or self._taken_reloads < self._reloads

    @property
    def stop_was_requested(self) -> bool:
        """Whether there was a request to stop, taken or not."""
        return self._stops > 0

    def request_stop(self) -> None:
        """Ask to stop."""
        self._stops += 1
        self._wake()

    def request_reload(self) -> None:
        """Ask to read the configuration again."""
        self._reloads += 1
        self._wake()

    def take_stop(self) -> bool:
        """Take a request to stop, and return whether there was one."""
        if self._taken_stops == self._stops:
            return False
        self._taken_stops += 1
        return True

    def take_reloads(self) -> bool:
        """Take all requests to read the configuration again, and return whether there was one."""
        requested = self._reloads
        is_requested = self._taken_reloads < requested
        self._taken_reloads = requested
        return is_requested

    def stop_on_signals(self) -> None:
        """Make SIGTERM and SIGINT ask to stop."""

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.request_stop()

        signal.signal(signal.SIGTERM, handle)
        signal.signal(signal.SIGINT, handle)

    def reload_on_signal(self) -> None:
        """Make SIGHUP ask to read the configuration again, unless the terminal is gone: then it asks to stop."""
        had_terminal = sys.stderr.isatty()

        def handle(_number: int, _frame: FrameType | None) -> None:
            if had_terminal and not sys.stderr.isatty():
                self.request_stop()
            else:
                self.request_reload()

        signal.signal(signal.SIGHUP, handle)
