"""A run's tail has every document that was appended to it, however its process ended; and it is part of the run."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import pytest
from disks import fill

from tiledbroker import Journal, Record, run_files
from tiledbroker._tail import Tail, read_tail, tail_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def record(idx: int, body: bytes = b"body", name: str = "event") -> Record:
    return Record(idx, name, 1e9 + idx, zlib.crc32(body), body)


def tail_with(file: Path, *records: Record) -> Tail:
    tail = Tail(file)
    for each in records:
        tail.append(each)
    return tail


def journal_with(file: Path, count: int) -> None:
    with Journal(file, "create", run_uid="run") as journal:
        journal.extend([record(idx) for idx in range(count)])


class TestATail:
    def test_has_what_was_appended(self, file: Path) -> None:
        records = [record(7, b"", "start"), record(8, bytes(range(256)) * 10), record(9, b"TWT1" * 5, "stop")]
        tail = tail_with(file, *records)
        assert read_tail(file) == (records, "")
        tail.close()
        assert read_tail(file) == (records, "")

    def test_that_is_not_there_has_nothing(self, file: Path) -> None:
        assert read_tail(file) == ([], "")

    def test_grows(self, file: Path) -> None:
        records = [record(idx, b"x" * 100_000) for idx in range(10)] + [record(10, b"y" * 2_000_000), record(11)]
        tail = tail_with(file, *records)
        assert read_tail(file) == (records, "")
        tail.clear()
        assert read_tail(file) == ([], "")
        assert tail_of(file).stat().st_size < 10**6
        tail.append(record(12))
        assert read_tail(file) == ([record(12)], "")

    def test_goes_on_when_it_cannot_be_made_small_again(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> int:
            raise OSError(errno.EMFILE, "Too many open files")

        tail = tail_with(file, record(0, b"x" * 2_000_000))
        with monkeypatch.context() as failing:
            failing.setattr(os, "open", fail)
            with pytest.raises(OSError, match="Too many"):
                tail.clear()
        tail.append(record(1))
        assert read_tail(file) == ([record(1)], "")

    @pytest.mark.parametrize("size", [3, 4, 5, 400])
    def test_has_nothing_left_of_what_was_cleared(self, file: Path, size: int) -> None:
        tail = tail_with(file, *(record(idx) for idx in range(20)))
        tail.clear()
        assert tail.empty
        tail.append(record(20, b"z" * size))
        assert read_tail(file) == ([record(20, b"z" * size)], "")

    def test_is_deleted_with_the_last_document(self, file: Path) -> None:
        tail = tail_with(file, record(0))
        tail.clear()
        tail.close()
        assert not tail_of(file).exists()

    def test_is_readable_by_its_owner_only(self, file: Path) -> None:
        tail_with(file, record(0))
        assert stat.S_IMODE(tail_of(file).stat().st_mode) == 0o600

    def test_fills_itself_up_so_that_a_full_disk_is_an_error_and_no_signal(self, small_disk: Path) -> None:
        tail = Tail(small_disk / "run.sqlite")
        fill(small_disk)
        appended = []

        def append_many() -> None:
            for idx in range(1000):
                tail.append(record(idx, b"x" * 1000))
                appended.append(idx)

        with pytest.raises(OSError, match="No space"):
            append_many()
        assert len(appended) > 100
        contents = read_tail(small_disk / "run.sqlite")
        assert ([each.idx for each in contents.records], contents.damage) == (appended, "")

    def test_survives_a_kill_at_any_time(self, file: Path) -> None:
        code = """
            import sys, zlib
            from pathlib import Path
            from tiledbroker import Record
            from tiledbroker._tail import Tail
            tail, idx = Tail(Path(sys.argv[1])), 0
            while True:
                body = b"document %d " % idx * (idx % 50)
                tail.append(Record(idx, "event", 1.0, zlib.crc32(body), body))
                idx += 1
                print(idx, flush=True)
        """
        command = [sys.executable, "-c", textwrap.dedent(code), str(file)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            while int(process.stdout.readline()) < 2000:
                pass
            process.send_signal(signal.SIGKILL)
            said = [int(line) for line in process.stdout.read().split()]
        contents = read_tail(file)
        assert contents.damage == ""
        assert [each.idx for each in contents.records] == list(range(len(contents.records)))
        assert max(said, default=2000) <= len(contents.records) <= max(said, default=2000) + 1


class TestDamage:
    def test_is_found_wherever_it_is(self, file: Path) -> None:
        records = [record(idx, b"body of %d" % idx) for idx in range(4)]
        tail_with(file, *records).close()
        path = tail_of(file)
        sound = path.read_bytes()
        end = sound.rindex(b"body of 3") + len(b"body of 3")
        for position in range(end):
            path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
            contents = read_tail(file)
            assert contents.records == records[: position // (end // 4)]
            assert "no document" in contents.damage

    def test_is_what_is_cut_off(self, file: Path) -> None:
        tail_with(file, *(record(idx, b"body") for idx in range(3))).close()
        path = tail_of(file)
        os.truncate(path, path.read_bytes().rindex(b"body") + 2)
        contents = read_tail(file)
        assert [each.idx for each in contents.records] == [0, 1]
        assert "no document" in contents.damage


class TestAJournal:
    def test_takes_a_tail_in_before_it_deletes_it_whatever_it_is_told(self, file: Path) -> None:
        journal_with(file, 3)
        tail_with(file, record(3)).close()
        with Journal(file, "write", with_tail=False) as journal:
            assert journal.length == 4
        assert not tail_of(file).exists()

    """Of which the file has the first documents, and the tail the last ones."""

    @pytest.fixture
    def half(self, file: Path) -> Path:
        journal_with(file, 3)
        tail_with(file, record(3), record(4, name="stop")).close()
        return file

    @pytest.mark.parametrize("mode", ["read", "inspect"])
    def test_shows_all_of_them_to_readers_and_changes_nothing(self, half: Path, mode: str) -> None:
        tail = tail_of(half).read_bytes()
        with Journal(half, mode) as journal:  # type: ignore[arg-type]
            assert journal.length == 5
            assert [each.idx for each in journal.records()] == [0, 1, 2, 3, 4]
            assert [each.idx for each in journal.read(2, 2)] == [2, 3]
            assert journal.names() == {"event": 4, "stop": 1}
            assert journal.stopped
            assert journal.has(2, [record(2).crc] * 3)
            assert journal.damage() == []
        assert tail_of(half).read_bytes() == tail

    def test_takes_them_in_when_it_is_written(self, half: Path) -> None:
        with Journal(half, "write") as journal:
            assert [each.idx for each in journal.records()] == [0, 1, 2, 3, 4]
        assert not tail_of(half).exists()
        with Journal(half) as journal:
            assert list(journal.records())[3:] == [record(3), record(4, name="stop")]

    def test_does_not_take_them_in_twice(self, half: Path) -> None:
        with Journal(half, "write") as journal:
            journal.rest()
        tail_with(half, *(record(idx) for idx in range(2, 7))).close()
        with Journal(half) as journal:
            assert [each.idx for each in journal.records()] == list(range(7))
        with Journal(half, "write") as journal:
            assert [each.idx for each in journal.records()] == list(range(7))
            assert journal.names() == {"event": 6, "stop": 1}

    def test_shows_readers_each_of_them_once_while_they_move(self, file: Path) -> None:
        with Journal(file, "create", run_uid="run") as writer:
            writer.extend([record(0)])
            tail = tail_with(file, record(1), record(2))
            with Journal(file) as reader:
                assert [each.idx for each in reader.records()] == [0, 1, 2]
                writer.extend([record(1)])
                assert [each.idx for each in reader.records()] == [0, 1, 2]
                writer.extend([record(2)])
                tail.clear()
                tail.append(record(3))
                assert reader.refresh() == 4
                assert [each.idx for each in reader.records()] == [0, 1, 2, 3]
                tail.clear()
                assert reader.refresh() == 3

    def test_goes_with_its_tail(self, half: Path) -> None:
        with Journal(half, "write") as journal:
            tail_with(half, record(5)).close()
            journal.remove()
        assert list(half.parent.iterdir()) == []

    def test_keeps_a_damaged_tail_and_says_so(self, half: Path, caplog: pytest.LogCaptureFixture) -> None:
        contents = tail_of(half).read_bytes()
        tail_of(half).write_bytes(contents.replace(b"stopbody", b"stopbad!"))
        with Journal(half) as journal:
            assert journal.length == 4
        assert "not all of its documents are shown" in caplog.text
        with Journal(half, "write") as journal:
            assert journal.length == 4
        (kept,) = half.parent.glob("*.damaged")
        assert kept.stat().st_size == len(contents)
        assert str(kept) in caplog.text
        assert run_files(half.parent) == [half]

    def test_keeps_a_tail_that_does_not_continue_it(self, file: Path, caplog: pytest.LogCaptureFixture) -> None:
        journal_with(file, 3)
        tail_with(file, record(4)).close()
        with Journal(file) as journal:
            assert [each.idx for each in journal.records()] == [0, 1, 2]
        with Journal(file, "write") as journal:
            assert [each.idx for each in journal.records()] == [0, 1, 2]
        assert "was given document 4" in caplog.text
        assert len(list(file.parent.glob("*.damaged"))) == 1
