"""Where spools and journals lie unless somebody says otherwise."""

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
    """Return `tiledwriter/spool` in the user's state directory; for a supervisor's URL, this host's part of it."""
    base = _state_dir() / "spool"
    return base if url is None else base / _part(url)


def local_spool_dir(url: str) -> Path:
    """Return a directory for this host's spool that is not in the user's home, which is on a network file system.

    Raises
    ------
    OSError
        It cannot be made, or somebody else can write there.
    """
    base = Path("/var/tmp") / f"tiledwriter-{os.getuid()}"  # noqa: S108  checked below
    base.mkdir(mode=0o700, exist_ok=True)
    found = base.lstat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) != 0o700 or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(errno.EPERM, "others may write there", str(base))
    return base / "spool" / _part(url)


def default_journal_dir() -> Path:
    """Return `tiledwriter/journals` in the user's state directory."""
    return _state_dir() / "journals"


def _part(url: str) -> Path:
    """Name a spool by host and destination: what was published for one supervisor never goes to another by itself."""
    return Path(*(_UNSAFE.sub("_", name).strip(".") or "_" for name in (socket.gethostname(), url)))


def _state_dir() -> Path:
    import platformdirs  # 40 ms that only those pay who need it

    return Path(platformdirs.user_state_dir("tiledwriter"))
