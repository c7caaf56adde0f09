"""Measures ours beside what it replaces, in one run on this machine, and says which budgets are kept.

Each sub-benchmark runs all sides in turn for several rounds; medians and spreads are printed. Exits with 1 if a budget
is not kept.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests"), str(ROOT / "tests/support")]

from benchmarks.report import Report  # noqa: E402

BENCHMARKS = (
    *("core", "callback", "longest", "durable", "tiled", "latency", "start", "memory", "recovery", "growth", "history"),
    *("layout", "long_runs", "sequences", "trickle", "page", "site_log"),
)
PAGES = ROOT / "docs/explanations/performance"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser("bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("benchmark", nargs="*", choices=[*BENCHMARKS, []], help="default: all")
    result.add_argument("--rounds", type=int, default=5, help="that count; one more warms up (default 5)")
    result.add_argument("--quick", action="store_true", help="fewer documents, to see that all of it works")
    result.add_argument(
        "--json", type=Path, metavar="FILE", help="where to write all figures, beside those of other benchmarks there"
    )
    result.add_argument("--plots", type=Path, metavar="DIR", help="where to write tables and plots of all figures")
    result.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help=f"measure nothing: make tables and plots of a file of figures, in DIR or in {PAGES.relative_to(ROOT)}",
    )
    return result


def main() -> int:
    given = parser().parse_args()
    if given.report:
        report = Report.load(given.report)
        report.write_pages(given.plots or PAGES)
        print(report.verdict())
        return 1 if report.missed else 0
    logging.getLogger("tiledbroker").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")  # of the packages around us
    measured = Report()
    kept = Report.load(given.json) if given.json and given.json.exists() else Report()
    for name in given.benchmark or BENCHMARKS:
        began = time.monotonic()
        print(f"## {name}", flush=True)
        for figure in importlib.import_module(f"benchmarks.{name}").measure(rounds=given.rounds, quick=given.quick):
            print(*figure.lines(), sep="\n", flush=True)
            measured.add(name, figure)
        print(f"({time.monotonic() - began:.0f} s)\n", flush=True)
        kept.replace(name, measured)
        if given.json:
            kept.save(given.json)
    if given.plots:
        kept.write_pages(given.plots)
    print(measured.verdict())
    return 1 if measured.missed else 0


if __name__ == "__main__":
    sys.exit(main())
