"""Measures ours beside what it replaces, in one run on this machine, and says which budgets are kept.

Each sub-benchmark runs all sides in turn for several rounds; medians and spreads are printed. Exits with 1 if a budget
is not kept.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent / "tests")]

BENCHMARKS = ("core", "callback", "durable")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("benchmark", nargs="*", choices=[*BENCHMARKS, []], help="default: all")
    result.add_argument("--rounds", type=int, default=5, help="that count; one more warms up (default 5)")
    result.add_argument("--quick", action="store_true", help="fewer documents, to see that all of it works")
    result.add_argument("--json", type=Path, metavar="FILE", help="where to write all figures")
    return result


def main() -> int:
    given = parser().parse_args()
    logging.getLogger("tiledbroker").setLevel(logging.CRITICAL)
    figures = []
    for name in given.benchmark or BENCHMARKS:
        for figure in importlib.import_module(f"benchmarks.{name}").measure(rounds=given.rounds, quick=given.quick):
            print(*figure.lines(), sep="\n", flush=True)
            figures.append(figure)
    if given.json:
        given.json.write_text(json.dumps([figure.as_json() for figure in figures], indent=1))
    missed = [figure.what for figure in figures if figure.kept is False]
    print(f"{len(figures)} figures; budgets not kept: {len(missed)}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
