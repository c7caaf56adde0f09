"""Sends garbage to a supervisor's port while runs are shipped to it, and prints what that costs.

Exits with 1 if a run is not complete.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [
    str(ROOT / "tests"),
    str(ROOT / "tests/support"),
]  # before this file's own directory: it has the name of the module

from flood import flood  # noqa: E402

from tiledbroker.protocol._security import make_client_keys, make_server_keys  # noqa: E402


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser("flood", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--connections", type=int, default=10_000, help="garbage connections (default 10000)")
    result.add_argument("--megabytes", type=int, default=1024, help="garbage in all (default 1024)")
    result.add_argument("--events", type=int, default=5000, help="events of a run (default 5000)")
    result.add_argument("--curve", action="store_true", help="with keys")
    return result


def main() -> int:
    given = parser().parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        options, curve = [], None
        if given.curve:
            make_server_keys(directory / "keys")
            curve = make_client_keys(directory / "keys", "beamline")
            options = ["--curve", str(directory / "keys")]
        figures = flood(
            directory,
            *options,
            connections=given.connections,
            megabytes=given.megabytes,
            events=given.events,
            curve=curve,
        )
    print(*figures.lines(given.events), sep="\n")
    return 1 if figures.incomplete else 0


if __name__ == "__main__":
    sys.exit(main())
