"""The worker process of one run: it journals the run's documents and writes them to Tiled."""

from __future__ import annotations

from ._key_page import KeyPage, KeyState
from ._processes import Processes, allow_open_files
from ._server_page import ServerPage
from ._worker import PARK_AFTER_SECONDS, TiledAddress, WorkerOptions, load_certificates, prepare_workers, run_worker
from ._writing import RunWriting

__all__ = [
    "PARK_AFTER_SECONDS",
    "KeyPage",
    "KeyState",
    "Processes",
    "RunWriting",
    "ServerPage",
    "TiledAddress",
    "WorkerOptions",
    "allow_open_files",
    "load_certificates",
    "prepare_workers",
    "run_worker",
]
