"""The thread that makes what the callback has appended safe from power cuts, while the callback goes on."""

from __future__ import annotations

import logging
import threading
from typing import Final

from ._limited import LimitedLog
from ._spool import Spool

log = logging.getLogger(__name__)

INTERVAL: Final = 0.25


class Storing:
    """Brings a spool to its disk, four times a second.

    `start` begins, `stop` ends it and joins the thread; the spool is closed by whoever made it, afterwards.
    """

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tiledbroker-storing", daemon=True)
        self._limited = LimitedLog(log)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(INTERVAL):
            try:
                self._spool.sync()
            except Exception:  # whatever it is, documents are in memory, and are shipped from there
                self._limited.log(logging.ERROR, "sync", "The spool cannot be written.", exc_info=True)
