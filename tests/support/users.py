"""Commands for which file permissions count, also where root runs the tests."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest


def without_privileges() -> list[str]:
    """What to put before a command so that it may do no more with files than their modes say."""
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    if (
        shutil.which("setpriv") is None
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("root cannot give up its privileges here")
    return prefix
