"""Journals of runs that were written long ago are deleted, and no others."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from stored_runs import a_run, journaled

from tiledbroker import Journal
from tiledbroker.log import FINISHED_SUBDIRECTORY
from tiledbroker.supervisor import _retention
from tiledbroker.supervisor._retention import ASKED_SECONDS, Retention, delete_journal

DAY = 24 * 60 * 60.0
KEEP = 14 * DAY


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / FINISHED_SUBDIRECTORY
    folder.mkdir()
    return folder


def finished(folder: Path, outcome: str | None = "written", days: float = 15.0, *, audit: bool = False) -> Path:
    """A journal that got its outcome so many days ago, and was not touched since."""
    path = journaled(a_run(), folder)
    when = time.time() - days * DAY
    if outcome is not None:
        with Journal(path, "write") as journal:
            journal.set("outcome", outcome)
            journal.set("audit_at", time.time() if audit else None)
            journal.note(outcome)
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE history SET time = ?", (when,))
    os.utime(path, (when, when))
    return path


def finish_pass(retention: Retention) -> None:
    """Let a pass go on, slice after slice, to its end."""
    while True:
        retention._next_at = 0.0
        retention.proceed(time.time())
        if retention._steps is None:
            return


def retention_of(folder: Path, needed: Callable[[Path], bool] = lambda _: False) -> Retention:
    return Retention(folder.parent, KEEP, needed)


def test_only_old_journals_of_written_runs_are_deleted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tiledbroker.supervisor")
    old = [finished(folder, days=days) for days in (14.1, 400.0)]
    kept = [
        finished(folder, days=13.9),
        finished(folder, audit=True),
        finished(folder, "interrupted"),
        finished(folder, "failed"),
        finished(folder, None),
    ]
    size = sum(path.stat().st_size for path in old)
    finish_pass(retention_of(folder))
    assert sorted(folder.glob("*.sqlite")) == sorted(kept)
    assert not [file for path in old for file in folder.glob(f"{path.stem}*")]
    line = f"Deleted 2 journals ({size / 1024:.1f} KiB) of runs that were written more than 14 d ago."
    assert [record.getMessage() for record in caplog.records] == [line]


def test_age_counts_from_writing_and_not_from_file(folder: Path) -> None:
    """A late audit changes the file, and a copy may have another time."""
    path = finished(folder, days=1.0)
    os.utime(path, (0.0, 0.0))
    finish_pass(retention_of(folder))
    assert path.exists()


def test_journal_in_use_is_deleted_later(folder: Path) -> None:
    path = finished(folder)
    retention = retention_of(folder)
    with Journal(path, "write"):
        os.utime(path, (0.0, 0.0))
        finish_pass(retention)
        assert path.exists()
    os.utime(path, (0.0, 0.0))
    finish_pass(retention)
    assert list(folder.iterdir()) == []


def test_journal_of_a_run_that_has_another_file_is_kept(folder: Path) -> None:
    path = finished(folder)
    other = folder.parent / path.name
    other.touch()
    retention = retention_of(folder)
    finish_pass(retention)
    assert path.exists()
    other.unlink()
    finish_pass(retention)
    assert not path.exists()


def test_journal_with_worker_is_kept(folder: Path) -> None:
    path = finished(folder)
    finish_pass(retention_of(folder, lambda asked: asked == path))
    assert path.exists()


def test_run_that_publisher_asks_for_is_kept_for_a_while(folder: Path) -> None:
    path = finished(folder)
    retention = retention_of(folder)
    with Journal(path, "inspect") as journal:
        uid = journal.run_uid
    retention.note_asked("another", time.time() - 2 * ASKED_SECONDS)
    retention.note_asked(uid, time.time())
    finish_pass(retention)
    assert path.exists()
    retention.note_asked(uid, time.time() - 2 * ASKED_SECONDS)
    finish_pass(retention)
    assert not path.exists()


def test_journal_that_changes_meanwhile_is_kept(folder: Path) -> None:
    path = finished(folder)
    assert delete_journal(path, time.time()) == -1
    assert path.exists()


def test_what_is_only_a_link_to_a_journal_is_kept(folder: Path, tmp_path: Path) -> None:
    path = finished(folder)
    target = path.rename(tmp_path / path.name)
    path.symlink_to(target)
    finish_pass(retention_of(folder))
    assert path.is_symlink()
    assert target.exists()


def test_write_ahead_log_is_never_left_behind(folder: Path) -> None:
    path = finished(folder)
    log_file = path.with_name(path.name + "-wal")
    log_file.write_bytes(b"")
    finish_pass(retention_of(folder))
    assert path.exists()
    log_file.unlink()
    finish_pass(retention_of(folder))
    assert not path.exists()


def test_what_is_no_journal_is_kept_and_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    stranger = folder / "x.sqlite"
    stranger.write_bytes(b"mine" * 1000)
    os.utime(stranger, (0.0, 0.0))
    retention = retention_of(folder)
    for _ in range(3):
        finish_pass(retention)
    assert stranger.read_bytes() == b"mine" * 1000
    assert len(caplog.records) == 1


def test_kept_journals_are_not_read_at_each_pass(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        finished(folder, "interrupted")
    retention = retention_of(folder)
    finish_pass(retention)

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(_retention, "Journal", refuse)
    finish_pass(retention)


def test_nothing_is_deleted_without_age(folder: Path) -> None:
    path = finished(folder, days=10_000.0)
    retention = Retention(folder.parent, None, lambda _: False)
    retention.proceed(time.time())
    assert path.exists()
    retention.change_age(KEEP)
    finish_pass(retention)
    assert not path.exists()


def test_missing_folder_is_no_trouble(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finish_pass(retention_of(tmp_path / FINISHED_SUBDIRECTORY))
    assert caplog.records == []


def test_unreadable_folder_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FINISHED_SUBDIRECTORY).write_text("a file")
    finish_pass(retention_of(tmp_path / FINISHED_SUBDIRECTORY))
    assert "cannot be looked for" in caplog.text


def test_journals_are_deleted_on_full_disk(small_disk: Path) -> None:
    from disks import fill

    folder = small_disk / FINISHED_SUBDIRECTORY
    folder.mkdir()
    path = finished(folder)
    fill(small_disk)
    finish_pass(retention_of(folder))
    assert not path.exists()
