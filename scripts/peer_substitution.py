"""Puts this package's classes in the place of bluesky-tiled-plugins', before its tests import them: a plugin of pytest.

`scripts/peer_tests.py` loads it. Names without a counterpart here stay those of bluesky-tiled-plugins.
"""

from __future__ import annotations

import bluesky_tiled_plugins
from bluesky_tiled_plugins.writing import consolidators, tiled_writer

import tiledwriter
from tiledwriter import mapping

SUBSTITUTES = {
    bluesky_tiled_plugins: {"TiledWriter": tiledwriter.TiledWriter},
    tiled_writer: {"TiledWriter": tiledwriter.TiledWriter, "RunNormalizer": tiledwriter.RunNormalizer},
    consolidators: {
        "BytesConsolidator": mapping.BytesConsolidator,
        "HDF5Consolidator": mapping.HDF5Consolidator,
        "Patch": mapping.Patch,
        "consolidator_factory": mapping.consolidator_for,
    },
}

for module, names in SUBSTITUTES.items():
    for name, substitute in names.items():
        assert hasattr(module, name), f"{module.__name__} has no {name} any more"
        setattr(module, name, substitute)
