"""Writes the corpus with bluesky-tiled-plugins' TiledWriter and with ours to one Tiled server, and compares the nodes.

Prints a line for each run, then the differences met with their reasons. Exits with 1 if there is a difference without
one, if our writer fails on a run, or if a run cannot be read back.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/support")]
warnings.filterwarnings("ignore")  # of the packages around us, meant for their developers

from comparison import WRITTEN, Comparison, Report, unmet  # noqa: E402
from corpus import CORPUS  # noqa: E402
from differences import LIMITS, RULES  # noqa: E402

from tiledwriter.testing import TiledServer  # noqa: E402

OUTCOME_WIDTH = 9


def list_corpus() -> None:
    for entry in CORPUS.values():
        print(f"{entry.name:<30} {entry.kind:<12} {entry.description}")


def print_report(report: Report) -> None:
    outcomes = ["written" if outcome == WRITTEN else "FAILS" for outcome in (report.bluesky, report.ours)]
    counts = [f"{rule} x{count}" if count > 1 else rule for rule, count in report.rules.items()]
    counts += [f"[{check.name}: {check.limit.id}]" for check in report.checks if check.limit]
    row = "".join(f"{outcome:<{OUTCOME_WIDTH}}" for outcome in outcomes)
    print(f"{report.entry.name:<30} {row} {', '.join(counts)}", flush=True)
    if report.bluesky != WRITTEN:
        print(f"{'':<30} bluesky-tiled-plugins {report.bluesky[:200]}")
    for rule, difference in report.values:
        reason = "UNEXPLAINED" if rule is None else rule.id
        print(f"{'':<30} values of {difference.path} [{reason}]")
        print(f"{'':<32} bluesky-tiled-plugins' {difference.bluesky}")
        print(f"{'':<32} ours {difference.ours}")
    if report.frames_of_bluesky:
        print(f"{'':<30} frames of bluesky-tiled-plugins' are not those named: {report.frames_of_bluesky}")
    for problem in report.problems:
        print(f"{'':<30} UNEXPLAINED: {problem}")


def print_reasons(reports: Iterable[Report]) -> None:
    reports = list(reports)
    rules = sum((report.rules for report in reports), Counter[str]())
    runs = Counter(rule for report in reports for rule in report.rules)
    print("\nDifferences and their reasons (see docs/reference/differences.md):")
    for rule in RULES:
        if rule.id in rules:
            print(f"  {rule.id} ({rules[rule.id]} in {runs[rule.id]} runs)\n      {rule.reason}")
    limits = Counter(check.limit.id for report in reports for check in report.checks if check.limit)
    print("\nReadings that do not give back what was emitted:")
    for limit in LIMITS:
        if limit.id in limits:
            print(f"  {limit.id} ({limits[limit.id]})\n      {limit.reason}")


def compare(names: Iterable[str], storage: str, directory: Path) -> list[Report]:
    files = directory / "files"
    files.mkdir()
    reports: list[Report] = []
    with TiledServer(directory / "tiled", readable=[files], storage=storage) as server:
        comparison = Comparison(server.client(), files, storage)
        print(f"{'run':<30} {'bluesky':<{OUTCOME_WIDTH}}{'ours':<{OUTCOME_WIDTH}} differences explained")
        for name in names:
            reports.append(comparison.run(CORPUS[name]))
            print_report(reports[-1])
    return reports


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=["duckdb", "postgresql", "sqlite"], default="duckdb")
    parser.add_argument(
        "--run", action="append", choices=list(CORPUS), metavar="NAME", help="only this run; repeatable"
    )
    parser.add_argument("--list", action="store_true", help="list the runs of the corpus")
    arguments = parser.parse_args()
    if arguments.list:
        list_corpus()
        return 0
    logging.disable(logging.CRITICAL)  # failures of either writer are results here
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tiledwriter-compare-") as directory:
        os.environ["TILED_CACHE_DIR"] = f"{directory}/cache"
        reports = compare(arguments.run or CORPUS, arguments.storage, Path(directory))
    print_reasons(reports)
    failed = [report for report in reports if report.problems]
    idle = [] if arguments.run else sorted(unmet(reports, arguments.storage))
    if idle:
        print(f"\nReasons that nothing needs: {', '.join(idle)}")
    ours = sum(report.ours == WRITTEN for report in reports)
    theirs = sum(report.bluesky == WRITTEN for report in reports)
    print(
        f"\n{len(reports)} runs: ours wrote {ours}, bluesky-tiled-plugins' {theirs}; "
        f"{sum(len(report.explained) for report in reports)} differences explained, "
        f"{sum(len(report.unexplained) for report in reports)} unexplained; "
        f"{len(failed)} runs with problems; {time.monotonic() - began:.0f} s."
    )
    return 1 if failed or idle else 0


if __name__ == "__main__":
    sys.exit(main())
