"""Where the tests' own files are, and where processes that they start find modules."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

SUPPORT: Final = Path(__file__).resolve().parent
TESTS: Final = SUPPORT.parent
ROOT: Final = TESTS.parent


def search_path(*directories: Path) -> str:
    """Return a PYTHONPATH with these directories before those of this process."""
    return os.pathsep.join([*map(str, directories), *filter(None, [os.environ.get("PYTHONPATH")])])
