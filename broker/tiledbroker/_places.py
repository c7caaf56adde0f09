"""Where spools and journals lie unless somebody says otherwise."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import Final

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def default_spool_dir(url: str | None = None) -> Path:
    """Return `tiledwriter/spool` in the user's state directory; for a supervisor's URL, this host's part of it."""
    base = _state_dir() / "spool"
    return base if url is None else base / _part(url)


def local_spool_dir(url: str) -> Path:
    """Return a directory for this host's spool that is no user's home, which may be on a network file system."""
    return Path("/var/tmp") / f"tiledwriter-{os.getuid()}" / "spool" / _part(url)  # noqa: S108  mode 0700, and checked


def default_journal_dir() -> Path:
    """Return `tiledwriter/journals` in the user's state directory."""
    return _state_dir() / "journals"


def _part(url: str) -> Path:
    """Name a spool by host and destination: what was published for one supervisor never goes to another by itself."""
    return Path(*(_UNSAFE.sub("_", name).strip(".") or "_" for name in (socket.gethostname(), url)))


def _state_dir() -> Path:
    import platformdirs  # 40 ms that only those pay who need it

    return Path(platformdirs.user_state_dir("tiledwriter"))
