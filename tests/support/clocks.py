"""Clocks of their own for hosts that share one machine in a test."""

from __future__ import annotations

import functools
import subprocess
from typing import Final

_OPTIONS: Final = ("unshare", "--time", "--boottime")


def clock_ahead(seconds: int) -> list[str]:
    """Return the beginning of a command whose CLOCK_BOOTTIME is so many seconds ahead of this machine's.

    [] where only root may do that: then the command has the machine's clock.
    """
    return [*_OPTIONS, str(seconds)] if _is_permitted() else []


@functools.cache
def _is_permitted() -> bool:
    try:
        return subprocess.run([*_OPTIONS, "1", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False
