"""Turns Bluesky runs into Tiled nodes, from journals, exactly once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._callback import TiledWriter
    from ._consolidators import (
        ArrayConsolidator,
        BytesConsolidator,
        Consolidator,
        CSVConsolidator,
        HDF5Consolidator,
        JPEGConsolidator,
        NPYConsolidator,
        Patch,
        SequenceConsolidator,
        TIFFConsolidator,
    )
    from ._errors import DocumentError, OperationRefused, TiledUnavailable, WriterError
    from ._normalizer import RunNormalizer

__all__ = [
    "ArrayConsolidator",
    "BytesConsolidator",
    "CSVConsolidator",
    "Consolidator",
    "DocumentError",
    "HDF5Consolidator",
    "JPEGConsolidator",
    "NPYConsolidator",
    "OperationRefused",
    "Patch",
    "RunNormalizer",
    "SequenceConsolidator",
    "TIFFConsolidator",
    "TiledUnavailable",
    "TiledWriter",
    "WriterError",
]

_MODULES = {
    "ArrayConsolidator": "_consolidators",
    "BytesConsolidator": "_consolidators",
    "CSVConsolidator": "_consolidators",
    "Consolidator": "_consolidators",
    "DocumentError": "_errors",
    "HDF5Consolidator": "_consolidators",
    "JPEGConsolidator": "_consolidators",
    "NPYConsolidator": "_consolidators",
    "OperationRefused": "_errors",
    "Patch": "_consolidators",
    "RunNormalizer": "_normalizer",
    "SequenceConsolidator": "_consolidators",
    "TIFFConsolidator": "_consolidators",
    "TiledUnavailable": "_errors",
    "TiledWriter": "_callback",
    "WriterError": "_errors",
}


def __getattr__(name: str) -> Any:
    # On an acquisition host only `tiledwriter-journal ship` is used, and nothing heavy is installed.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
