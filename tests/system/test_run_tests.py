"""What fails beside other tests is run once more by itself, and never passed over."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

TESTS = """
import pytest
from pathlib import Path

def is_first(name):
    try:
        Path(name).touch(exist_ok=False)
        return True
    except FileExistsError:
        return False

def test_that_passes():
    pass

def test_that_is_late_beside_others():
    assert not is_first("late")

{more}
"""
FAILS = "def test_that_fails(): assert False"
IS_SKIPPED_ALONE = "def test_that_is_skipped_alone(): assert not is_first('skipped'); pytest.skip('alone')"
MANY = "@pytest.mark.parametrize('number', range(6))\ndef test_of_many(number): assert not is_first(f'many-{number}')"


@pytest.mark.parametrize("is_within_tox", [False, True])
@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        ("", 0, "Failed beside others, passed alone:\n  test_some.py::test_that_is_late_beside_others\n"),
        (FAILS, 1, "2 failed beside others."),
        (IS_SKIPPED_ALONE, 1, "2 failed beside others."),
        (MANY, 1, "7 failed, 1 passed"),
    ],
    ids=["late", "fails", "skipped alone", "many"],
)
def test_only_what_passes_alone_is_forgiven(
    more: str, code: int, said: str, is_within_tox: bool, tmp_path: Path
) -> None:
    (tmp_path / "pytest.ini").touch()  # so that no other configuration above it is found
    (tmp_path / "test_some.py").write_text(TESTS.format(more=more))
    command = [sys.executable, str(ROOT / "scripts" / "run_tests.py"), "-p", "xdist.plugin", "-n", "1"]
    # It must not take itself for a part of the run that this test is in.
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_") and name != "TOX_ENV_DIR"
    }
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    if is_within_tox:
        environment["TOX_ENV_DIR"] = str(tmp_path / "tox")  # pytest has its cache there
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert said in done.stdout
