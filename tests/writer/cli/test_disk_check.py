"""The check of the journals' disk: it fails where the service accepts nothing, and only there."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tiledwriter._config import Settings
from tiledwriter.cli._host_checks import _check_disk

GIB = 2**30
MIB = 2**20


@pytest.mark.parametrize(
    ("disk", "min_free", "state"),
    [
        ((100 * GIB, 50 * GIB), None, "ok"),
        ((100 * GIB, 5 * GIB), None, "warn"),
        ((100 * GIB, 500 * MIB), None, "warn"),
        ((100 * GIB, 99 * MIB), None, "fail"),
        # The default is at most 1 % of the disk.
        ((1 * GIB, 50 * MIB), None, "warn"),
        ((1 * GIB, 10 * MIB), None, "fail"),
        ((100 * GIB, 20 * GIB), "30GiB", "fail"),
        ((100 * GIB, 50 * GIB), "30GiB", "warn"),
        ((100 * GIB, 70 * GIB), "30GiB", "ok"),
        # Who sets the limit knows the disk.
        ((1 * GIB, 300 * MIB), "100MiB", "ok"),
    ],
)
def test_disk_is_judged_as_the_service_does(
    disk: tuple[int, int], min_free: str | None, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total, free = disk
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=total, free=free, used=total - free))
    settings = Settings(tiled="http://localhost:8000", journal_dir=tmp_path, min_free=min_free)  # type: ignore[arg-type]
    result = _check_disk(settings)
    assert result.state.value == state
    assert state != "fail" or "min_free" in result.found
