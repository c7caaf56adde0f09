"""`python -m tiledwriter`: explain the commands, or run one of them."""

from __future__ import annotations

import sys

from .cli.package import main

if __name__ == "__main__":
    sys.exit(main())
