"""Writes Bluesky runs to Tiled from journals, exactly once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_attributes

if TYPE_CHECKING:
    from tiledbroker import __version__ as __version__

    from ._errors import DocumentError, OperationRefused, TiledUnavailable, WriterError
    from .callback import TiledWriter
    from .mapping import (
        ArrayConsolidator,
        BytesConsolidator,
        Consolidator,
        CSVConsolidator,
        HDF5Consolidator,
        JPEGConsolidator,
        NPYConsolidator,
        Patch,
        Region,
        RunNormalizer,
        SequenceConsolidator,
        TIFFConsolidator,
    )

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
    "Region",
    "RunNormalizer",
    "SequenceConsolidator",
    "TIFFConsolidator",
    "TiledUnavailable",
    "TiledWriter",
    "WriterError",
]

# Names are imported on first use: an acquisition host runs only `tiledwriter-journal ship` and lacks the heavy
# packages.
__getattr__ = lazy_attributes(
    __name__,
    {
        "ArrayConsolidator": "mapping",
        "BytesConsolidator": "mapping",
        "CSVConsolidator": "mapping",
        "Consolidator": "mapping",
        "DocumentError": "_errors",
        "HDF5Consolidator": "mapping",
        "JPEGConsolidator": "mapping",
        "NPYConsolidator": "mapping",
        "OperationRefused": "_errors",
        "Patch": "mapping",
        "Region": "mapping",
        "RunNormalizer": "mapping",
        "SequenceConsolidator": "mapping",
        "TIFFConsolidator": "mapping",
        "TiledUnavailable": "_errors",
        "TiledWriter": "callback",
        "WriterError": "_errors",
        "__version__": "_version",
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
