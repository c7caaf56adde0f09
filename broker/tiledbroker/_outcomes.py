"""The outcomes of a run, as journals record them and messages carry them."""

from __future__ import annotations

from typing import Final

WRITTEN: Final = "written"
"""All documents are in Tiled, the stop document last."""

INTERRUPTED: Final = "interrupted"
"""All documents that exist are in Tiled; there is no stop document."""

FAILED: Final = "failed"
"""The run is in quarantine."""

REFUSED: Final = "refused"
"""The run is not shipped; only publishers say so, and no journal has it."""

RECORDED: Final = (WRITTEN, INTERRUPTED, FAILED)
"""All outcomes that a journal can have."""

COMPLETE: Final = (WRITTEN, INTERRUPTED)
"""Outcomes of runs of which all existing documents are in Tiled."""
