"""Runs pytest, and what has failed once more, by itself. Arguments are those of pytest.

Most tests have real processes and share the machine with those of other tests, which may keep one of them waiting for
longer than anybody foresaw. What fails beside others and passes alone is listed at the end and does not fail the run;
look at it all the same. What fails alone, too, or is skipped then, fails the run. So do more than a few failures, which
are no coincidence.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import pytest

MAX_REPEATED: Final = 5


class Passed:
    """Plugin that notes which tests have passed."""

    def __init__(self) -> None:
        self.tests: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.tests.add(report.nodeid)


def run(arguments: list[str], cache: Path) -> int:
    """Return the exit code. The cache, a new directory, is where pytest keeps the list of what failed."""
    # By itself, pytest keeps it in other places within tox and outside.
    arguments = [*arguments, "-o", f"cache_dir={cache}"]
    code = subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode
    last_failed = cache / "v" / "cache" / "lastfailed"
    if code != pytest.ExitCode.TESTS_FAILED or not last_failed.exists():
        return code
    failed = sorted(json.loads(last_failed.read_text()))
    if len(failed) > MAX_REPEATED:
        return code
    print(f"\n{len(failed)} failed beside others. Once more, each by itself:", flush=True)
    passed = Passed()
    again = pytest.main([*arguments, "-n", "0", "--last-failed", "--last-failed-no-failures", "none"], [passed])
    if again != pytest.ExitCode.OK or not passed.tests.issuperset(failed):
        return code
    print("\nFailed beside others, passed alone:", *failed, sep="\n  ", flush=True)
    return 0


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        sys.exit(run(sys.argv[1:], Path(directory)))
