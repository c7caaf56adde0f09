"""Runs bluesky-tiled-plugins' own tests of its writer and its consolidators with our classes in their place.

The tests are those of the installed version: they are in its source distribution, which pip downloads unless
`--source` names a directory or archive with it. The failures are compared with the list in `scripts/peer_failures.py`.
Exits with 1 if a test fails that is not on the list, or passes although it is, and with 2 if there are no tests to run.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from peer_failures import EXPECTED

ROOT = Path(__file__).resolve().parent.parent
PEER = "bluesky-tiled-plugins"
MODULES = ("test_tiled_writer.py", "test_consolidators.py")


def find_tests(source: Path | None, directory: Path) -> Path:
    """Return the directory of the tests; download them to `directory` if no source is given."""
    if source is None:
        version = metadata.version(PEER.replace("-", "_"))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", PEER]
        subprocess.run([*command, f"--dest={directory}", f"{PEER}=={version}"], check=True)
        (source,) = directory.glob("*.tar.gz")
    if source.is_file():
        with tarfile.open(source) as archive:
            archive.extractall(directory, filter="data")
        source = directory
    found = next(source.glob(f"**/tests/{MODULES[0]}"), None)
    if found is None:
        raise FileNotFoundError(f"there is no tests/{MODULES[0]} in {source}")
    return found.parent


def run_tests(tests: Path, directory: Path, selected: str | None) -> dict[str, bool]:
    """Run the tests, and return by id which have passed."""
    report = directory / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--tb=line", "-r", "N", "-p", "no:cacheprovider"]
    command += ["-p", "peer_substitution", "--override-ini=addopts=", f"--junit-xml={report}"]
    paths = os.pathsep.join([str(ROOT / "scripts"), *sys.path[1:]])
    environment = {**os.environ, "PYTHONPATH": paths, "TILED_CACHE_DIR": str(directory / "cache")}
    arguments = [*(["-k", selected] if selected else []), *(f"tests/{module}" for module in MODULES)]
    ended = subprocess.run([*command, *arguments], cwd=tests.parent, env=environment, check=False)
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"pytest could not run the tests (exit code {ended.returncode})")
    cases = ElementTree.parse(report).iter("testcase")
    return {
        f"{case.get('classname', '').rpartition('.')[2]}.py::{case.get('name')}": not any(
            case.find(outcome) is not None for outcome in ("failure", "error")
        )
        for case in cases
    }


def compare(passed: Mapping[str, bool]) -> int:
    """Print how the outcomes differ from those expected; return the number of differences."""
    met: defaultdict[str, int] = defaultdict(int)
    unexpected = []
    for test, has_passed in passed.items():
        pattern = next((pattern for pattern in EXPECTED if fnmatch.fnmatchcase(test, pattern)), None)
        if pattern is not None and not has_passed:
            met[pattern] += 1
        elif has_passed == (pattern is not None):
            unexpected.append(f"UNEXPECTED: {test} {'passes' if has_passed else 'fails'}")
    print("\nTests that fail on purpose:")
    for pattern, count in met.items():
        print(f"  {count:3} {pattern.replace('[[]', '[')}\n      {EXPECTED[pattern]}")
    print("\n".join(unexpected))
    failed = sum(not has_passed for has_passed in passed.values())
    print(f"{len(passed)} tests: {failed} fail, {sum(met.values())} of them on purpose; {len(unexpected)} unexpected.")
    return len(unexpected)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="directory or .tar.gz with the source of bluesky-tiled-plugins")
    parser.add_argument("-k", dest="selected", metavar="EXPRESSION", help="only these tests, as pytest's -k")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tiledwriter-peer-tests-") as name:
        directory = Path(name)
        try:
            passed = run_tests(find_tests(arguments.source, directory), directory, arguments.selected)
        except (FileNotFoundError, RuntimeError, subprocess.CalledProcessError, tarfile.TarError) as error:
            print(f"The tests of {PEER} cannot be run: {error}", file=sys.stderr)
            return 2
    return 1 if compare(passed) else 0


if __name__ == "__main__":
    sys.exit(main())
