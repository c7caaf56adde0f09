"""The thread that does a spool's disk operations, so that the callback never waits for a disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final

from .._rate_limited_log import RateLimitedLog
from ._spool import Spool

log = logging.getLogger(__name__)

FLUSH_INTERVAL_SECONDS: Final = 0.25


class Flusher:
    """Thread that calls `Spool.maintain` four times a second, and whenever the callback needs segments.

    `stop` joins the thread. The owner of the spool closes it afterwards.

    Parameters
    ----------
    spool
        The spool.
    on_adopted
        Called after runs of dead sessions were adopted.
    """

    def __init__(self, spool: Spool, on_adopted: Callable[[], None]) -> None:
        self._spool = spool
        self._on_adopted = on_adopted
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="tiledbroker-flusher", daemon=True)
        self._limited_log = RateLimitedLog(log)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop and join the thread."""
        self._stopping = True
        self._spool.wake_flusher()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            self._spool.wait_for_work(FLUSH_INTERVAL_SECONDS)
            try:
                if self._spool.maintain():
                    self._on_adopted()
            except Exception:
                # Keep running after any error: documents are still in memory and are shipped from there.
                self._limited_log.log(
                    logging.ERROR,
                    "maintain",
                    "Maintaining the spool failed; documents stay in memory or in its files, and it is tried again.",
                    exc_info=True,
                )
