"""Runs of every kind that Bluesky has produced, made afresh each time: what is written to Tiled twice and compared."""

from __future__ import annotations

from typing import Final

from . import difficult, facilities, legacy, simulated, streaming
from ._entry import Documents, Entry

__all__ = ["CORPUS", "Documents", "Entry"]

CORPUS: Final[dict[str, Entry]] = {
    entry.name: entry
    for module in (simulated, streaming, legacy, facilities, difficult)
    for entry in module.entry.entries
}
