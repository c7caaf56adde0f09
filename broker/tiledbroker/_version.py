"""Version of the installed distribution. Imported on first use, because reading metadata takes some milliseconds."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

UNKNOWN_VERSION = "unknown"


def find_version() -> str | None:
    """Return the version; None if the sources are used without being installed."""
    try:
        return version("tiledwriter")
    except PackageNotFoundError:
        return None


__version__ = find_version() or UNKNOWN_VERSION
