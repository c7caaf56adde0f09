"""File systems that are reached over a network are told from local ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tiledbroker import _filesystem
from tiledbroker._filesystem import filesystem_type, network_filesystem


@pytest.mark.parametrize(
    ("number", "name"),
    [(0x6969, "NFS"), (0x0BD00BD0, "Lustre"), (0x47504653, "GPFS"), (0xFF534D42, "CIFS"), (0xEF53, None), (None, None)],
)
def test_a_network_file_system_has_a_name(
    number: int | None, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_filesystem, "filesystem_type", lambda _path: number)
    assert network_filesystem(tmp_path) == name


def test_the_number_is_the_kernels(tmp_path: Path) -> None:
    told = subprocess.run(["stat", "--file-system", "--format", "%t", tmp_path], capture_output=True, check=True)
    assert filesystem_type(tmp_path) == int(told.stdout, 16)


def test_a_directory_that_is_not_there_yet_is_where_its_parent_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(_filesystem, "filesystem_type", asked.append)
    assert network_filesystem(tmp_path / "a" / "b") is None
    assert asked == [tmp_path]


def test_what_cannot_be_asked_is_taken_for_local(tmp_path: Path) -> None:
    assert filesystem_type(tmp_path / "nowhere") is None
