"""Version of the installed distribution, which both packages share."""

from __future__ import annotations

from tiledbroker import __version__

__all__ = ["__version__"]
