"""Processes that permissions of files hold for, also where the campaign is root's; and permissions that are away."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

_PREFIX: Final = (
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
)


@cache
def subject_to_permissions() -> tuple[tuple[str, ...], str]:
    """What to put before a command so that permissions hold for its process; and why that is impossible, if it is.

    Root's process stays root's, and the owner of its files; it loses the capabilities to read and write all others.
    """
    if os.geteuid() != 0:
        return (), ""
    if shutil.which(_PREFIX[0]) is None:
        return (), "root is not subject to permissions, and there is no setpriv"
    with tempfile.TemporaryDirectory() as place:
        with permissions_away(Path(place)):
            seen = subprocess.run([*_PREFIX, "ls", place], capture_output=True, text=True, check=False)
        works = subprocess.run([*_PREFIX, "ls", place], capture_output=True, text=True, check=False)
    if seen.returncode == 0 or works.returncode != 0:
        return (), f"root is subject to permissions nowhere: {works.stderr.strip() or 'ls is not denied'}"
    return _PREFIX, ""


@contextmanager
def permissions_away(directory: Path) -> Iterator[None]:
    """Nobody may enter the directory, or list it, meanwhile."""
    mode = directory.stat().st_mode & 0o7777
    directory.chmod(0)
    try:
        yield
    finally:
        directory.chmod(mode)
