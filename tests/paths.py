"""Where processes that tests start find modules."""

from __future__ import annotations

import os
from pathlib import Path


def search_path(directory: Path) -> str:
    """A PYTHONPATH with this directory before those of the tests' own."""
    return os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])
