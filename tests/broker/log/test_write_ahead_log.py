"""A write-ahead log that is damaged is not taken for one that ends early."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from tiledbroker import Journal, JournalInvalid
from tiledbroker.log import _write_ahead_log
from tiledbroker.log._journal import Mode

DOCUMENTS = 20
LOG_HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24


@pytest.fixture
def crashed(tmp_path: Path) -> Path:
    """A journal as its writer leaves it that is killed. All of its documents are in the write-ahead log."""
    path = tmp_path / "writing" / "r.sqlite"
    path.parent.mkdir()
    left = tmp_path / "r.sqlite"
    with Journal(path, "create", run_uid="r") as journal:
        for number in range(DOCUMENTS):
            journal.append_one("event", b"body %d" % number)
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{left}{suffix}")
    return left


def frame_bytes(journal: Path) -> int:
    return FRAME_HEADER_BYTES + int.from_bytes(journal.read_bytes()[16:18], "big")


def log_of(journal: Path) -> Path:
    return Path(f"{journal}-wal")


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def in_a_frame(from_the_end: int, offset: int) -> Callable[[Path], int]:
    return lambda journal: log_of(journal).stat().st_size - from_the_end * frame_bytes(journal) + offset


@pytest.mark.parametrize("mode", ["read", "inspect", "write"])
@pytest.mark.parametrize(
    "position",
    [
        pytest.param(lambda _: 2, id="the kind of file"),
        pytest.param(lambda _: 17, id="the salts"),
        pytest.param(lambda _: 30, id="the checksum of the header"),
        pytest.param(lambda _: LOG_HEADER_BYTES + 1000, id="the first page"),
        pytest.param(in_a_frame(10, 9), id="the salts of a frame"),
        pytest.param(in_a_frame(10, 500), id="a page in the middle"),
        pytest.param(in_a_frame(2, 500), id="the last page but one"),
    ],
)
def test_a_bit_that_has_flipped_costs_no_documents_without_a_word(
    crashed: Path, position: Callable[[Path], int], mode: Mode
) -> None:
    flip(log_of(crashed), position(crashed))
    before = log_of(crashed).read_bytes()
    with pytest.raises(JournalInvalid, match="damaged in front of"):
        Journal(crashed, mode)
    # Whoever repairs it has all that was there.
    assert log_of(crashed).read_bytes() == before


def test_a_sound_log_is_read(crashed: Path) -> None:
    with Journal(crashed) as journal:
        assert journal.length == DOCUMENTS


def test_what_a_process_that_was_killed_has_not_finished_is_no_damage(crashed: Path) -> None:
    # SQLite writes the header of a frame before its page, here over an earlier use of the file.
    content = bytearray(log_of(crashed).read_bytes())
    page_bytes = frame_bytes(crashed) - FRAME_HEADER_BYTES
    content[-page_bytes:] = bytes(page_bytes)
    log_of(crashed).write_bytes(content)
    with Journal(crashed) as journal:
        assert journal.length == DOCUMENTS - 1


def test_a_log_that_ends_in_a_frame_is_read(crashed: Path) -> None:
    content = log_of(crashed).read_bytes()
    log_of(crashed).write_bytes(content[:-100])
    with Journal(crashed) as journal:
        assert journal.length == DOCUMENTS - 1


def test_what_was_written_before_the_computer_was_started_may_be_torn_anywhere(crashed: Path) -> None:
    flip(log_of(crashed), in_a_frame(10, 500)(crashed))
    os.utime(log_of(crashed), (0, 0))
    with Journal(crashed) as journal:
        assert 0 < journal.length < DOCUMENTS


def test_a_log_that_another_reader_removes_meanwhile_is_no_damage(
    crashed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = _write_ahead_log._count_valid_frames

    def count(database: Path) -> int:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("SELECT count(*) FROM documents").fetchone()
        assert not log_of(database).exists()
        return original(database)

    monkeypatch.setattr(_write_ahead_log, "_count_valid_frames", count)
    with Journal(crashed) as journal:
        assert journal.length == DOCUMENTS


def test_a_log_that_was_used_before_is_read(tmp_path: Path) -> None:
    path, left = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    with Journal(path, "create", run_uid="r") as journal:
        # More than fits before SQLite begins with the file anew.
        for number in range(100):
            journal.append_one("event", b"%d" % number * 200_000)
        size = log_of(path).stat().st_size
        for _ in range(3):
            journal.append_one("event", b"small")
        assert log_of(path).stat().st_size == size
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{left}{suffix}")
    with Journal(left) as journal:
        assert journal.length == 103


def test_a_journal_that_is_being_written_is_read_all_the_time(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with Journal(path, "create", run_uid="r") as writing:
        for number in range(50):
            writing.append_one("event", b"body")
            with Journal(path) as reading:
                assert reading.length == number + 1
