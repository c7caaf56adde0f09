"""Ingest hosts that share a service by a lease."""

from __future__ import annotations

import contextlib
import signal

import psutil

from tiledbroker.supervisor import Snapshot, read_snapshot
from tiledwriter.testing import SupervisorProcess


class SharingHost(SupervisorProcess):
    """An ingest host that serves or stands by."""

    def snapshot(self) -> Snapshot | None:
        try:
            return read_snapshot(self.journal_dir, timeout=5)
        except Exception:
            return None

    def serves(self) -> bool:
        snapshot = self.snapshot()
        return snapshot is not None and snapshot.lease is not None and snapshot.lease.held

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor and all processes that it has started."""
        for process in [*psutil.Process(self.pid).children(recursive=True), psutil.Process(self.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
