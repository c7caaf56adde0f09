"""Garbage at the port: runs are complete all the same, and memory is bounded.

TILEDWRITER_TEST_GARBAGE is how many garbage connections are made; `./scripts/flood` measures throughput besides.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from flood import flood

from tiledbroker.protocol._security import make_client_keys, make_server_keys

CONNECTIONS = int(os.environ.get("TILEDWRITER_TEST_GARBAGE", "500"))

pytestmark = pytest.mark.timeout(120 + CONNECTIONS // 10)


@pytest.mark.parametrize("secured", [False, True], ids=["without keys", "with keys"])
def test_runs_are_complete_and_memory_is_bounded_while_garbage_comes(tmp_path: Path, *, secured: bool) -> None:
    options, curve = [], None
    if secured:
        make_server_keys(tmp_path / "keys")
        curve = make_client_keys(tmp_path / "keys", "beamline")
        options = ["--curve", str(tmp_path / "keys")]
    figures = flood(tmp_path, *options, connections=CONNECTIONS, megabytes=CONNECTIONS // 10, events=1000, curve=curve)
    sys.stdout.write("\n".join(["", *figures.lines(1000), ""]))
    assert figures.connections >= CONNECTIONS
    assert figures.incomplete == []
    assert figures.memory_highest - figures.memory_before < 64 * 2**20
