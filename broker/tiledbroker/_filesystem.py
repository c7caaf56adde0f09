"""What there is to know of file systems: whether one is reached over a network, and whether it is full.

Locks and memory maps of a network file system do not keep what SQLite and we rely on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sqlite3
import sys
from pathlib import Path
from typing import Final

# Of statfs(2): linux/magic.h, and the sources of those that are not part of the kernel.
_NETWORK_FILESYSTEMS: Final = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x19830326: "BeeGFS",
    0xAAD7AAEA: "PanFS",
}
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_STATFS_BYTES: Final = 512  # more than the structure has anywhere; the type is its first field


def network_filesystem(path: Path) -> str | None:
    """Name of the network file system that a path is on, or would be on once it is made.

    Returns
    -------
    str or None
        Such as "NFS"; None for a local file system, and wherever the system does not tell.
    """
    number = filesystem_type(_nearest_existing(path))
    return None if number is None else _NETWORK_FILESYSTEMS.get(number)


def filesystem_type(path: Path) -> int | None:
    """The `f_type` that statfs(2) has for an existing path; None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None  # the structure, and its numbers, are Linux's
    status = ctypes.create_string_buffer(_STATFS_BYTES)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), status) != 0:
        return None
    # A word of the machine's, of which the numbers take 32 bits; sign extension is cut off.
    return ctypes.c_long.from_buffer(status).value & 0xFFFFFFFF


def explain_write_error(path: Path, error: OSError | sqlite3.Error) -> str:
    """Why a file cannot be written, for people who wait for it: above all whether its disk is full."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or "full" in str(error):
        return f"the journal's disk is full: {os.strerror(number or errno.ENOSPC)} ({path.parent})"
    return f"the journal cannot be written: {error} ({path})"


def _nearest_existing(path: Path) -> Path:
    absolute = path.absolute()
    return next((each for each in (absolute, *absolute.parents) if each.exists()), absolute)
