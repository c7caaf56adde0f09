"""Fixtures for all tests: real servers, and a watch over what tests leave behind."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tiledwriter.testing import SupervisorProcess, TiledServer


@pytest.fixture(scope="session")
def readable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that detectors may write to and that the Tiled server may read."""
    return tmp_path_factory.mktemp("detectors")


@pytest.fixture(scope="session")
def tiled_server(tmp_path_factory: pytest.TempPathFactory, readable: Path) -> Iterator[TiledServer]:
    """A Tiled server for all tests that do not harm it."""
    with TiledServer(tmp_path_factory.mktemp("tiled"), readable=[readable, Path("/tmp")]) as server:
        yield server


@pytest.fixture
def own_tiled_server(tmp_path: Path, readable: Path) -> Iterator[TiledServer]:
    """A Tiled server for one test, to be stopped and killed at will."""
    with TiledServer(tmp_path / "tiled", readable=[readable, Path("/tmp")]) as server:
        yield server


@pytest.fixture
def supervisor(tmp_path: Path, tiled_server: TiledServer) -> Iterator[SupervisorProcess]:
    """A supervisor that is running, with a short quiet period so that restarts do not take long."""
    environment = {"TILEDWRITER_QUIET_PERIOD": "1"}
    with SupervisorProcess(tmp_path / "journals", tiled_server, environment=environment) as process:
        yield process


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", mount]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"Only root can mount a small file system: {made.stderr.strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves processes or threads of ours."""
    before = set(psutil.Process().children(recursive=True))
    threads = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in threads and _is_ours(thread)]
    for thread in left:
        thread.join(5.0)
    assert not [thread for thread in left if thread.is_alive()]
    leaked = [
        process for process in psutil.Process().children(recursive=True) if process not in before and _lives(process)
    ]
    for process in leaked:
        process.kill()
    assert not leaked


def _is_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith(("tiledbroker", "tiledwriter"))


def _lives(process: psutil.Process) -> bool:
    if os.environ.get("TILEDWRITER_TEST_KEEP"):
        return False
    try:
        # Session fixtures start servers on behalf of the first test that wants them.
        return process.status() != psutil.STATUS_ZOMBIE and "tiled serve" not in " ".join(process.cmdline()).replace(
            "/", " "
        )
    except psutil.NoSuchProcess:
        return False
