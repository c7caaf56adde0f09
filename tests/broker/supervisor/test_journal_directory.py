"""A supervisor takes only a directory that can hold journals, and names the one that cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from users import without_privileges

from tiledbroker import Journal, _filesystem
from tiledbroker._errors import DirectoryUnusable
from tiledbroker.log import FINISHED_SUBDIRECTORY
from tiledbroker.supervisor._supervisor import Supervisor
from tiledbroker.supervisor._tasks import WorkerCommand
from tiledbroker.supervisor.frontend import Frontend
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.supervisor import main
from tiledwriter.testing import free_port


def supervise(directory: Path, *, drain: bool = False) -> None:
    Supervisor(directory, WorkerCommand(print), Frontend, drain=drain).close()


def run_command(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--tiled", "http://127.0.0.1:9", "--drain"]
    return subprocess.run(
        [*without_privileges(), *command, "--journal-dir", str(directory), *options],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_draining_a_directory_that_is_not_there_fails_and_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "jurnals"
    assert main(["--tiled", "http://127.0.0.1:9", "--drain", "--journal-dir", str(wrong)]) == ExitCode.NOT_FOUND
    assert str(wrong) in capsys.readouterr().err
    assert not wrong.exists()


def test_draining_that_is_stopped_before_it_has_looked_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the signal came as soon as it is heard.
    monkeypatch.setattr(Supervisor, "stop_on_signals", Supervisor.stop)
    monkeypatch.setenv("TILED_API_KEY", "secret")
    command = ["--tiled", f"http://127.0.0.1:{free_port()}", "--drain", "--journal-dir", str(tmp_path)]
    assert main(command) == ExitCode.INCOMPLETE
    assert main([*command, "--lease-dir", str(tmp_path / "lease")]) == ExitCode.INCOMPLETE


def test_draining_does_not_take_a_folder_s_name_for_the_state_of_its_journals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILED_API_KEY", "secret")
    command = ["--tiled", f"http://127.0.0.1:{free_port()}", "--drain", "--journal-dir", str(tmp_path)]
    assert main(command) == ExitCode.OK
    folder = tmp_path / FINISHED_SUBDIRECTORY
    folder.symlink_to(tmp_path / "not mounted")
    assert main(command) == ExitCode.FAILED
    folder.unlink()
    folder.mkdir()
    with Journal(folder / "run.sqlite", "create", run_uid="run") as journal:
        journal.set("outcome", "failed")
    assert main(command) == ExitCode.INCOMPLETE


def test_draining_a_journal_without_documents_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a copy is that was made without what is in the write-ahead log."""
    monkeypatch.setenv("TILED_API_KEY", "secret")
    command = ["--tiled", f"http://127.0.0.1:{free_port()}", "--drain", "--journal-dir", str(tmp_path)]
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run"):
        pass
    assert main(command) == ExitCode.INCOMPLETE
    assert "Run run is not completely in Tiled: its journal has no documents." in capsys.readouterr().err
    (tmp_path / "run.sqlite").unlink()
    assert main(command) == ExitCode.OK


def test_a_directory_that_is_not_there_is_made_to_serve(tmp_path: Path) -> None:
    supervise(tmp_path / "a" / "journals")
    assert (tmp_path / "a" / "journals").stat().st_mode & 0o777 == 0o700


def test_a_network_file_system_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_filesystem, "filesystem_type", lambda _path: 0x6969)
    with pytest.raises(DirectoryUnusable, match=r"journals: it is on a network file system \(NFS\)"):
        supervise(tmp_path / "journals")
    assert not (tmp_path / "journals").exists()


def test_a_file_in_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "journals").touch()
    for drain in (False, True):
        with pytest.raises(DirectoryUnusable, match="journals"):
            supervise(tmp_path / "journals", drain=drain)


@pytest.mark.parametrize("mode", [0o000, 0o300, 0o500])
def test_a_directory_without_permission_is_named_with_the_reason(mode: int, tmp_path: Path) -> None:
    directory = tmp_path / "journals"
    directory.mkdir()
    directory.chmod(mode)
    try:
        done = run_command(directory)
    finally:
        directory.chmod(0o700)
    assert done.returncode == ExitCode.FAILED
    assert str(directory) in done.stderr
    assert "Permission denied" in done.stderr
    assert not any(directory.iterdir())
