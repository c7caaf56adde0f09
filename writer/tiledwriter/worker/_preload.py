"""Imported once, by the process that workers are forked from: so a worker is ready in milliseconds."""

import encodings.idna  # noqa: F401  what follows would be imported by each worker, at its first request
import gc

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

pyarrow.array([0.0])  # looks for pandas
_document_checks.load_schemas()
# Searches all installed packages, which the first client of a process would do.
tiled.client.container.Container.discover_clients_from_entrypoints()
gc.freeze()  # what workers never collect they share
