"""The worker process of one run: it journals the run's documents and writes them to Tiled."""

from __future__ import annotations

from ._processes import Processes, allow_open_files
from ._worker import PARK_AFTER_SECONDS, TiledAddress, WorkerOptions, run_worker
from ._writing import FAILED, INTERRUPTED, WRITTEN, RunWriting

__all__ = [
    "FAILED",
    "INTERRUPTED",
    "PARK_AFTER_SECONDS",
    "WRITTEN",
    "Processes",
    "RunWriting",
    "TiledAddress",
    "WorkerOptions",
    "allow_open_files",
    "run_worker",
]
