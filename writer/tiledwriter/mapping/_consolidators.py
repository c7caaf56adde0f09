"""The consolidators of this package by mimetype, and the choice of one for a data key.

A new class goes to `_INCLUDED`; see `docs/contributing/add-a-consolidator.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ._consolidator import Consolidator, Document
from ._hdf5_consolidators import HDF5Consolidator
from ._one_file_consolidators import OneFileConsolidator, WholeFileConsolidator, ZarrConsolidator
from ._sequence_consolidators import JPEGConsolidator, NPYConsolidator, TIFFConsolidator
from ._whole_file_consolidators import BytesConsolidator, CSVConsolidator

_INCLUDED: Final = (
    *(BytesConsolidator, CSVConsolidator, HDF5Consolidator),
    *(JPEGConsolidator, NPYConsolidator, TIFFConsolidator),
    *(WholeFileConsolidator, ZarrConsolidator),
)
REGISTRY: Final[Mapping[str, type[Consolidator]]] = {
    mimetype: consolidator for consolidator in _INCLUDED for mimetype in sorted(consolidator.mimetypes)
}


def consolidator_for(
    stream_resource: Document, descriptor: Document, registry: Mapping[str, type[Consolidator]] | None = None
) -> Consolidator:
    """Return the consolidator for a data key.

    A mimetype without a class gets a `OneFileConsolidator`. The adapters configured on the Tiled server decide whether
    such a file can be read.

    Parameters
    ----------
    stream_resource
        The first StreamResource of the data key, whose mimetype selects the class.
    descriptor
        The descriptor of the stream.
    registry
        Classes by mimetype, which take precedence over `REGISTRY`.

    Raises
    ------
    DocumentError
        The documents do not describe data that Tiled can serve.
    """
    mimetype = stream_resource["mimetype"]
    consolidator = {**REGISTRY, **(registry or {})}.get(mimetype, OneFileConsolidator)
    return consolidator.variant(stream_resource)(stream_resource, descriptor)
