"""A writer inside the acquisition process, with backups for runs that cannot be written."""

from __future__ import annotations

from ._backup import Backup, DictionaryBackup, JSONLinesBackup, PlainText, read_backup, to_entry
from ._callback import TiledWriter

__all__ = [
    "Backup",
    "DictionaryBackup",
    "JSONLinesBackup",
    "PlainText",
    "TiledWriter",
    "read_backup",
    "to_entry",
]
