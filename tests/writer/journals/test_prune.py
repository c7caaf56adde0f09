"""`prune` deletes journals that nobody needs any more, and no other."""

from __future__ import annotations

import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from stored_runs import a_run, journaled

from tiledbroker import Journal, run_files
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main

DAY = 24 * 60 * 60.0


def concluded(directory: Path, outcome: str | None, days: float, *, audit: bool = False) -> Path:
    """A journal that got its outcome so many days ago."""
    path = journaled(a_run(), directory)
    if outcome is None:
        return path
    with Journal(path, "write") as journal:
        journal.set("outcome", outcome)
        journal.set("audit_at", time.time() if audit else None)
        journal.note(outcome)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE history SET time = ?", (time.time() - days * DAY,))
    return path


def test_only_journals_of_runs_that_were_written_long_ago_are_deleted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = [concluded(tmp_path, "written", days) for days in (31, 400)]
    kept = [
        concluded(tmp_path, "written", 29),
        concluded(tmp_path, "written", 31, audit=True),
        concluded(tmp_path, "failed", 400),
        concluded(tmp_path, "interrupted", 400),
        concluded(tmp_path, None, 400),
    ]
    assert main(["prune", str(tmp_path), "--dry-run"]) == ExitCode.OK
    assert run_files(tmp_path) == sorted([*old, *kept])
    assert main(["prune", str(tmp_path)]) == ExitCode.OK
    assert run_files(tmp_path) == sorted(kept)
    assert not [file for path in old for file in tmp_path.glob(f"*{path.stem}*")]
    would, did = capsys.readouterr().out.split("Would delete 2 of ")
    assert all(path.stem in would and path.stem in did for path in old)
    assert "Deleted 2 of " in did


def test_how_old_they_have_to_be_can_be_said(tmp_path: Path) -> None:
    paths = [concluded(tmp_path, "written", days) for days in (0.1, 3)]
    assert main(["prune", str(tmp_path), "--older-than", "1"]) == ExitCode.OK
    assert run_files(tmp_path) == [paths[0]]
    assert main(["prune", str(tmp_path), "--older-than", "0"]) == ExitCode.OK
    assert run_files(tmp_path) == []


def test_an_age_that_is_no_number_deletes_nothing(tmp_path: Path) -> None:
    path = concluded(tmp_path, "written", 400)
    for days in ("nan", "-1"):
        with pytest.raises(SystemExit) as ended:
            main(["prune", str(tmp_path), f"--older-than={days}"])
        assert ended.value.code == ExitCode.USAGE
    assert run_files(tmp_path) == [path]


def test_a_journal_that_somebody_writes_is_left_and_the_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [concluded(tmp_path, "written", 31) for _ in range(2)]
    with Journal(paths[0], "write"):
        assert main(["prune", str(tmp_path)]) == ExitCode.LOCKED
        assert run_files(tmp_path) == [paths[0]]
    assert "kept: " in capsys.readouterr().err


def test_a_written_run_without_a_stop_document_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = journaled(a_run()[:-1], tmp_path)
    with Journal(path, "write") as journal:
        journal.set("outcome", "written")
        journal.note("written")
    assert main(["prune", str(tmp_path), "--older-than", "0"]) == ExitCode.OK
    assert run_files(tmp_path) == [path]
    assert main(["ls", str(tmp_path)]) == ExitCode.OK
    assert "its last document is no stop document" in capsys.readouterr().out


def test_a_file_with_the_name_of_another_run_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = concluded(tmp_path, "written", 400).rename(tmp_path / "3f2b.sqlite")
    assert main(["prune", str(tmp_path)]) == ExitCode.FAILED
    assert copy.exists()
    assert "has another name" in capsys.readouterr().err


def test_a_journal_of_a_run_that_has_another_file_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = concluded(tmp_path, "written", 400)
    finished = tmp_path / "finished" / path.name
    finished.parent.mkdir()
    shutil.copyfile(path, finished)
    with Journal(path, "write") as journal:
        journal.set("outcome", "failed")
    for options in ([], ["--dry-run"]):
        assert main(["prune", str(tmp_path), *options]) == ExitCode.FAILED
        ended = capsys.readouterr()
        assert f"kept: {finished}: {path} is another file of this run" in ended.err
        assert path.stem not in ended.out
    assert sorted(run_files(tmp_path)) == sorted([path, finished])


def test_a_link_and_what_it_leads_to_are_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = concluded(tmp_path / "elsewhere", "written", 400)
    link = tmp_path / "journals" / target.name
    link.parent.mkdir()
    link.symlink_to(target)
    for options in ([], ["--dry-run"]):
        assert main(["prune", str(link.parent), *options]) == ExitCode.FAILED
        assert f"kept: {link}: it is a link" in capsys.readouterr().err
    assert target.exists()
    assert link.is_symlink()


def test_what_is_no_journal_is_left_as_it_is(tmp_path: Path) -> None:
    stranger = tmp_path / "x.sqlite"
    stranger.write_bytes(b"mine" * 1000)
    assert main(["prune", str(tmp_path)]) == ExitCode.FAILED
    assert stranger.read_bytes() == b"mine" * 1000


def test_a_directory_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    assert main(["prune", str(tmp_path / "nowhere")]) == ExitCode.NOT_FOUND
