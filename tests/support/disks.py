"""Filling disks."""

from __future__ import annotations

import os
from pathlib import Path


def fill(disk: Path, *, leaving: int = 0) -> Path:
    """Fill a file system up, but for some bytes; returns the file that does it."""
    filling = disk / "filling"
    free = os.statvfs(disk)
    with filling.open("wb") as file:
        file.write(bytes(free.f_bavail * free.f_frsize - leaving))
    return filling
