"""Exit codes of all commands."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command's end means."""

    OK = 0
    FAILED = 1
    """Something went wrong that the message explains."""
    USAGE = 2
    """The command line or the configuration is wrong."""
    LOCKED = 3
    """Another process uses the directory or file."""
    NOT_FOUND = 4
    """There is no such run or directory."""
    INCOMPLETE = 5
    """Something is left to do: runs not in Tiled, documents not shipped."""
    DIFFERS = 6
    """A journal is damaged, or Tiled holds something else than it should."""
