"""Imported once, by the process that workers are forked from: so a worker is ready in milliseconds."""

import pyarrow.ipc
import tiled.client
import tiled.client.container
import tiled.structures.array
import tiled.structures.table

from . import _document_checks, _worker

__all__ = ["_worker", "pyarrow", "tiled"]

_document_checks.load_schemas()
pyarrow.array([0.0])  # the first conversion looks for pandas
