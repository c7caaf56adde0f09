"""The state of a disk by its free bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.supervisor._disk_space import DiskSpace, judge_space

GIB = 2**30


@pytest.mark.parametrize(
    ("free", "total", "min_free", "state"),
    [
        (50 * GIB, 100 * GIB, 0, "well"),
        (GIB, 100 * GIB, 0, "low"),
        (2**20, 100 * GIB, 0, "full"),
        (30 * GIB, 10_000 * GIB, 0, "well"),
        (50 * GIB, 100 * GIB, 30 * GIB, "low"),
        (29 * GIB, 100 * GIB, 30 * GIB, "full"),
        (900_000, 2**20, 0, "well"),
        (5_000, 2**20, 0, "full"),
    ],
)
def test_a_disk_is_judged_by_its_size(free: int, total: int, min_free: int, state: str) -> None:
    assert judge_space(free, total, min_free) == state


def test_a_disk_is_measured_now_and_then(tmp_path: Path) -> None:
    space = DiskSpace(tmp_path, "journals")
    measured = space.measure(100.0)
    assert measured.path == str(tmp_path)
    assert measured.total is not None
    assert space.measure(101.0) is measured
    assert space.measure(103.0) is not measured


def test_a_disk_that_cannot_be_measured_is_in_no_state(tmp_path: Path) -> None:
    measured = DiskSpace(tmp_path / "missing", "journals").measure(100.0)
    assert (measured.free, measured.total, measured.state) == (None, None, None)
