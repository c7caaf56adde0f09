"""Default paths of spools and journals."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
from pathlib import Path
from typing import Final

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def default_spool_dir(url: str | None = None) -> Path:
    """Return `tiledwriter/spool` in the user's state directory, or its subdirectory for this host and `url`."""
    base = _state_dir() / "spool"
    return base if url is None else base / _destination_path(url)


def local_spool_dir(url: str) -> Path:
    """Return a spool directory in /var/tmp, for users whose home directory is on a network file system.

    Raises
    ------
    OSError
        The user's directory in /var/tmp cannot be created, or another user owns it or has access to it.
    """
    base = fallback_spool_dir().parent
    base.mkdir(mode=0o700, exist_ok=True)
    found = base.lstat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700 or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(
            errno.EPERM, "another user owns it or has access to it; give another `spool_dir`", str(base)
        )
    return base / "spool" / _destination_path(url)


def fallback_spool_dir() -> Path:
    """Return this user's spool directory in /var/tmp, of which `local_spool_dir` makes subdirectories."""
    return Path("/var/tmp") / f"tiledwriter-{os.getuid()}" / "spool"  # noqa: S108  `local_spool_dir` checks it


def default_journal_dir() -> Path:
    """Return `tiledwriter/journals` in the user's state directory."""
    return _state_dir() / "journals"


def _destination_path(url: str) -> Path:
    """Return a relative path named after this host and `url`.

    Each destination has its own spool, so documents for one supervisor are never shipped to another by accident.
    """
    return Path(*(_UNSAFE.sub("_", name).strip(".") or "_" for name in (socket.gethostname(), url)))


def _state_dir() -> Path:
    # Imported here because the import takes 40 ms and most processes do not need it.
    import platformdirs

    return Path(platformdirs.user_state_dir("tiledwriter"))
