"""Version of the installed distribution. Imported on first use, because reading metadata takes some milliseconds."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

UNKNOWN_VERSION = "unknown"

try:
    __version__ = version("tiledwriter")
except PackageNotFoundError:
    # The sources are used without being installed.
    __version__ = UNKNOWN_VERSION
