"""Detection of network file systems and of full disks.

Locks and memory maps on a network file system do not give the guarantees that SQLite and the spool rely on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
from pathlib import Path
from typing import Final

# Values of `f_type` in statfs(2), from linux/magic.h and from the sources of out-of-tree file systems.
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
# Larger than `struct statfs` on any architecture. `f_type` is its first field.
_STATFS_BYTES: Final = 512


def network_filesystem(path: Path) -> str | None:
    """Return the name of the network file system that holds `path`, or will hold it once it is created.

    Returns
    -------
    str or None
        Such as "NFS"; None for a local file system, or if the type cannot be determined.
    """
    number = filesystem_type(_nearest_existing(path))
    return None if number is None else _NETWORK_FILESYSTEMS.get(number)


def open_regular_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file as `os.open` does, with mode 0600 if it is created, and return its descriptor.

    Raises
    ------
    OSError
        The file cannot be opened, or is something else: opening or reading a named pipe could wait for ever.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "Not a regular file", str(path))


def filesystem_type(path: Path) -> int | None:
    """Return `f_type` from statfs(2) for an existing path; None if it cannot be determined."""
    # The layout of `struct statfs` and the magic numbers are specific to Linux.
    if not sys.platform.startswith("linux"):
        return None
    status = ctypes.create_string_buffer(_STATFS_BYTES)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), status) != 0:
        return None
    # `f_type` is a machine word, but magic numbers have 32 bits: mask out the sign extension.
    return ctypes.c_long.from_buffer(status).value & 0xFFFFFFFF


def measure_space(path: Path) -> tuple[int, int] | None:
    """Return the bytes that this user may still write on the disk of `path`, and the size of the disk.

    None if they cannot be determined.
    """
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def explain_write_error(path: Path, error: Exception) -> str:
    """Return a message for users that says why a journal cannot be written, in particular if the disk is full."""
    number = error.errno if isinstance(error, OSError) else None
    if number in _FULL or "full" in str(error):
        return f"the journal's disk is full: {os.strerror(number or errno.ENOSPC)} ({path.parent})"
    return f"the journal cannot be written: {error} ({path})"


def _nearest_existing(path: Path) -> Path:
    absolute = path.absolute()
    return next((each for each in (absolute, *absolute.parents) if each.exists()), absolute)
