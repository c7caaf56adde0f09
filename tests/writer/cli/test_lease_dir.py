"""`lease-dir` prepares a directory once, and `status --serves` tells a service address where to lead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tiledbroker.ownership import DirectoryStore
from tiledwriter.cli import supervisor
from tiledwriter.cli._exit import ExitCode


def test_a_directory_is_prepared_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "shared"
    assert supervisor.main(["lease-dir", str(directory)]) == ExitCode.OK
    assert f"{directory} is prepared" in capsys.readouterr().out
    assert DirectoryStore(directory).read().lease is None
    assert supervisor.main(["lease-dir", str(directory)]) == ExitCode.FAILED
    assert "has been prepared already" in capsys.readouterr().err


def test_what_was_prepared_is_told_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert supervisor.main(["lease-dir", str(tmp_path / "shared"), "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == {"made": str(tmp_path / "shared"), "error": None}
    assert supervisor.main(["lease-dir", str(tmp_path / "file"), "--json"]) == ExitCode.FAILED
    told = json.loads(capsys.readouterr().out)
    assert told["made"] is None
    assert str(tmp_path / "file") in told["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--standby"], "standby needs lease_dir"),
        (["--lease-dir", "/shared"], ""),
    ],
)
def test_to_stand_by_needs_a_directory(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = ["--tiled", "http://localhost:8000", "--journal-dir", str(tmp_path), "--print-config", *arguments]
    assert supervisor.main(given) == (ExitCode.USAGE if message else ExitCode.OK)
    assert message in capsys.readouterr().err


def test_a_host_without_a_supervisor_does_not_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert supervisor.main(["status", "--serves", "--journal-dir", str(tmp_path)]) == 3
    assert "No supervisor uses" in capsys.readouterr().out
