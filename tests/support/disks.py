"""Filling disks."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def fill(disk: Path, *, leaving: int = 0) -> Path:
    """Fill a file system up, but for some bytes; returns the file that does it.

    Others may write beside it: a disk that they fill first is full, too.
    """
    filling = disk / "filling"
    free = os.statvfs(disk)
    remaining = free.f_bavail * free.f_frsize - leaving
    with filling.open("wb", buffering=0) as file:
        try:
            while remaining > 0:
                remaining -= file.write(bytes(remaining))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return filling
