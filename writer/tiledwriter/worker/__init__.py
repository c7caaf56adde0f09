"""The worker process of one run: it journals the run's documents and writes them to Tiled."""

from __future__ import annotations

from ._processes import Processes, allow_open_files
from ._worker import PARK_AFTER_SECONDS, TiledAddress, WorkerOptions, prepare_workers, run_worker
from ._writing import RunWriting

__all__ = [
    "PARK_AFTER_SECONDS",
    "Processes",
    "RunWriting",
    "TiledAddress",
    "WorkerOptions",
    "allow_open_files",
    "prepare_workers",
    "run_worker",
]
