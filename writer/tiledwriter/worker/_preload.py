"""Imports of all workers, done once in the fork server, so that a forked worker is ready in milliseconds."""

import encodings.idna  # noqa: F401  what follows would be imported by each worker, at its first request

import httpcore  # noqa: F401
import pyarrow.ipc
import tiled.client
import tiled.client.container
import tiled.client.decoders
import tiled.structures.array
import tiled.structures.table

from ..mapping import _document_checks
from . import _worker

__all__ = ["_worker", "pyarrow", "tiled"]

# PyArrow looks for pandas at its first conversion.
pyarrow.array([0.0])
_document_checks.load_schemas()
_worker.load_certificates()
# The first client in a process searches all installed packages for entry points.
tiled.client.container.Container.discover_clients_from_entrypoints()
