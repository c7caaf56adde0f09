"""Paths as people give them: in settings, in variables and on the command line."""

from __future__ import annotations

from pathlib import Path


def path_of(given: object) -> Path:
    """Return a path with the home directory in place of `~`.

    Raises
    ------
    ValueError
        It is no path. An empty one is none, because it would name whatever directory a command happens to run in.
    """
    if not isinstance(given, str | Path) or given == "":
        raise ValueError(f"{given!r} is not a path")
    try:
        return Path(given).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{given} has no home directory on this host") from error
