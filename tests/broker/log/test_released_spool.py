"""What version 0.1 left in a spool is read and shipped by this one, every document of it.

`data/released_spool_0.1.tar.gz` was made by version 0.1's own spool, whose process was then killed: a run in its file,
one whose file and tail each have a part, and one in its tail only.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import subprocess
import sys
import tarfile
import textwrap
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from paths import TESTS
from spools import seq_nums, start

from tiledbroker import Journal, Record, SpoolDamaged, decode, open_run, run_files
from tiledbroker.log import _released_spool
from tiledbroker.log._released_spool import tail_of
from tiledbroker.publisher import _adoption as left_runs
from tiledbroker.publisher._spool import Spool

LEFT = TESTS / "data" / "released_spool_0.1.tar.gz"
LENGTHS = {"tail-only": 4, "whole": 8, "with-tail": 8}
EVENTS = {"tail-only": 2, "whole": 5, "with-tail": 6}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What was left, with modes as they were."""
    directory = tmp_path / "spool"
    with tarfile.open(LEFT) as archive:
        archive.extractall(directory, filter="data")
    return directory


@pytest.fixture
def spool_in(tmp_path: Path) -> Iterator[Callable[..., Spool]]:
    made: list[Spool] = []

    def make(directory: Path, **options: Any) -> Spool:
        made.append(Spool(directory, **options))
        made[-1].maintain()
        return made[-1]

    yield make
    for spool in made:
        spool.close()


def framed(record: Record) -> bytes:
    """A record as a tail has it."""
    name = record.name.encode()
    fields = struct.pack("<IQdIB", len(record.body), record.idx, record.received, record.crc, len(name)) + name
    return b"TWT1" + struct.pack("<I", zlib.crc32(fields)) + fields + record.body


def append_to_tail(file: Path, *records: Record) -> None:
    with tail_of(file).open("r+b") as tail:
        while (frame := tail.read(33)).startswith(b"TWT1"):
            size, _, _, _, name_size = struct.unpack_from("<IQdIB", frame, 8)
            tail.seek(size + name_size, 1)
        tail.seek(-len(frame), 1)
        tail.truncate()
        for record in records:
            tail.write(framed(record))
        tail.write(bytes(100))


def contents(spool: Spool) -> dict[str, list[int]]:
    return {run.run_uid: seq_nums(run) for run in spool.runs()}


EXPECTED = {run: [number + 1 for number in range(events)] for run, events in EVENTS.items()}


class TestAPublisher:
    def test_takes_them_over(self, directory: Path, spool_in: Callable[..., Spool]) -> None:
        spool = spool_in(directory)
        assert contents(spool) == EXPECTED
        assert {run.run_uid: (run.stopped, run.abandoned, run.length, run.damage) for run in spool.runs()} == {
            "tail-only": (False, True, 4, ""),
            "whole": (True, False, 8, ""),
            "with-tail": (False, True, 8, ""),
        }
        assert (spool.refused, spool.problem) == ({}, "")
        spool.maintain()
        assert len(spool.runs()) == 3

    def test_takes_them_over_from_where_they_were_by_default(
        self, directory: Path, tmp_path: Path, spool_in: Callable[..., Spool]
    ) -> None:
        spool = spool_in(tmp_path / "new", released_directory=directory)
        assert contents(spool) == EXPECTED

    def test_goes_on_without_such_a_directory(self, tmp_path: Path, spool_in: Callable[..., Spool]) -> None:
        assert spool_in(tmp_path / "new", released_directory=tmp_path / "none").problem == ""

    def test_says_that_a_disk_with_some_of_them_is_not_mounted(
        self, directory: Path, spool_in: Callable[..., Spool], caplog: pytest.LogCaptureFixture
    ) -> None:
        (directory / "finished").symlink_to(directory / "not mounted")
        spool_in(directory)
        assert "A spool of version 0.1 cannot be read" in caplog.text
        assert str(directory / "finished") in caplog.text

    def test_leaves_what_it_does_not_ship(self, directory: Path, spool_in: Callable[..., Spool]) -> None:
        spool_in(directory).close()
        assert contents(spool_in(directory)) == EXPECTED
        with closing(sqlite3.connect(directory / "with-tail.sqlite")) as plain:
            assert plain.execute("SELECT count(*) FROM documents").fetchone() == (8,)

    def test_deletes_what_nobody_needs(self, directory: Path, spool_in: Callable[..., Spool]) -> None:
        spool = spool_in(directory)
        for run in spool.runs():
            spool.remove(run)
        spool.maintain()
        spool.close()
        assert list(directory.iterdir()) == []

    def test_leaves_one_alone_that_is_in_use(self, directory: Path, spool_in: Callable[..., Spool]) -> None:
        with Journal(directory / "whole.sqlite", "write"):
            assert sorted(contents(spool_in(directory))) == ["tail-only", "with-tail"]
        spool = spool_in(directory)
        assert sorted(contents(spool)) == ["whole"]  # the others belong to the first one

    def test_takes_over_what_has_no_twin_only(self, directory: Path, spool_in: Callable[..., Spool]) -> None:
        spool = Spool(directory)
        start(spool, "whole")
        spool.maintain()
        assert {run.run_uid: run.length for run in spool.runs()} == {"tail-only": 4, "with-tail": 8, "whole": 2}
        assert "same uid" in spool.refused["whole"]
        spool.close()

    def test_takes_over_some_at_a_time_and_no_more_than_it_may(
        self, directory: Path, spool_in: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(left_runs, "ADOPTED_AT_ONCE", 1)
        monkeypatch.setattr(left_runs, "MAX_RELEASED_RUNS", 2)
        spool = Spool(directory)
        counts = []
        for _ in range(4):
            spool._adopt_at = 0.0
            spool.maintain()
            counts.append(len(spool.runs()))
        assert counts == [1, 2, 2, 2]
        assert len(spool.refused) == 1
        spool.close()

    @pytest.mark.parametrize("error", [sqlite3.OperationalError("database or disk is full"), OSError(28, "No space")])
    def test_tries_again_what_there_was_no_space_for(
        self, directory: Path, spool_in: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*_: object) -> int:
            raise error

        with monkeypatch.context() as failing:
            failing.setattr(Journal, "extend", fail)
            spool = spool_in(directory)
            assert sorted(run.run_uid for run in spool.runs()) == ["whole"]
            assert sorted(spool.refused) == ["tail-only", "with-tail"]
        spool._adopt_at = 0.0
        spool.maintain()
        assert contents(spool) == EXPECTED
        assert spool.refused == {}

    def test_leaves_journals_of_an_ingest_host_alone(
        self, directory: Path, spool_in: Callable[..., Spool], caplog: pytest.LogCaptureFixture
    ) -> None:
        for uid in ("empty", "stored"):
            with Journal(directory / f"{uid}.sqlite", "create", run_uid=uid) as journal:
                journal.note("worker started", pid=1, documents=0)
                if uid == "stored":
                    journal.append_one("start", b"")
        spool = spool_in(directory)
        assert contents(spool) == EXPECTED
        assert sorted(spool.refused) == ["empty", "stored"]
        assert "it is the journal of an ingest host and not a spool" in spool.refused["stored"]
        assert {path.stem for path in run_files(directory)} == {*EXPECTED, "empty", "stored"}

    def test_names_what_is_no_spool_file(self, directory: Path, spool_in: Callable[..., Spool]) -> None:
        (directory / "garbage.sqlite").write_bytes(b"no database " * 1000)
        (directory / "empty.sqlite").touch()
        (directory / "directory.sqlite").mkdir()
        spool = spool_in(directory)
        assert contents(spool) == EXPECTED
        assert sorted(spool.refused) == ["directory", "empty", "garbage"]
        assert (directory / "garbage.sqlite").exists()


class TestATail:
    def test_that_is_damaged_is_kept_and_named(
        self, directory: Path, spool_in: Callable[..., Spool], caplog: pytest.LogCaptureFixture
    ) -> None:
        tail = tail_of(directory / "with-tail.sqlite")
        before = tail.read_bytes()
        # The names of documents, from the first of the tail on: its second document is damaged.
        position = before.index(b"event", before.index(b"event") + before[before.index(b"event") :].index(b"TWT1"))
        spoiled = before[:position] + b"EVENT" + before[position + 5 :]
        tail.write_bytes(spoiled)
        spool = spool_in(directory)
        (run,) = [run for run in spool.runs() if run.run_uid == "with-tail"]
        assert run.length == 6
        assert "no valid document" in run.damage
        (kept,) = directory.glob("*.damaged")
        assert kept.read_bytes() == spoiled
        assert str(kept) in caplog.text
        assert str(kept) in run.damage

    def test_that_does_not_continue_its_file_is_kept(self, directory: Path, spool_in: Callable[..., Spool]) -> None:
        tail = tail_of(directory / "whole.sqlite")
        tail.touch()
        append_to_tail(directory / "whole.sqlite", Record(9, "event", 1.0, zlib.crc32(b"x"), b"x"))
        (run,) = [run for run in spool_in(directory).runs() if run.run_uid == "whole"]
        assert run.length == 8
        assert "document 9" in run.damage
        assert len(list(directory.glob("*.damaged"))) == 1

    def test_that_repeats_its_file_adds_the_rest(self, directory: Path, spool_in: Callable[..., Spool]) -> None:
        with Journal(directory / "whole.sqlite") as journal:
            repeated = list(journal.records())[5:]
        tail_of(directory / "whole.sqlite").touch()
        append_to_tail(directory / "whole.sqlite", *repeated, Record(8, "event", 1.0, zlib.crc32(b"x"), b"x"))
        (run,) = [run for run in spool_in(directory).runs() if run.run_uid == "whole"]
        assert (run.length, run.damage) == (9, "")

    def test_of_any_length_gives_a_prefix_and_says_if_something_is_missing(self, directory: Path) -> None:
        file = directory / "tail-only.sqlite"
        whole = tail_of(file).read_bytes()
        end = len(whole.rstrip(b"\0"))
        for size in range(0, end, 7):
            tail_of(file).write_bytes(whole[:size])
            damage: list[str] = []
            records = list(_released_spool._sound_records(tail_of(file), damage))
            assert [record.idx for record in records] == list(range(len(records)))
            assert damage or whole[size : size + 4] in (b"TWT1", bytes(4)), size

    def test_is_read_and_not_mapped(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bad block of a mapped file would end the process."""
        import mmap

        monkeypatch.setattr(mmap, "mmap", lambda *_, **__: pytest.fail("It is mapped."))
        with open_run(directory / "tail-only.sqlite") as run:
            assert run.length == 4


class TestReaders:
    @pytest.mark.parametrize("mode", ["read", "inspect"])
    def test_show_the_tail_behind_the_file_and_change_nothing(self, directory: Path, mode: Any) -> None:
        before = {path: path.read_bytes() for path in directory.glob("*.tail")}
        for path in run_files(directory):
            with open_run(path, mode) as run:
                length = LENGTHS[run.run_uid]
                assert run.length == length
                assert [record.idx for record in run.records()] == list(range(length))
                assert sum(run.names().values()) == length
                assert [record.idx for record in run.read(2, 2)] == [2, 3]
                assert run.stopped == (run.run_uid == "whole")
                assert run.damage() == []
                assert decode(next(iter(run.records())).body)["uid"] == run.run_uid
        assert {path: path.read_bytes() for path in directory.glob("*.tail")} == before

    @pytest.mark.parametrize("mode", ["read", "inspect"])
    @pytest.mark.parametrize("adopted", [False, True])
    def test_say_that_a_tail_is_damaged(
        self, directory: Path, spool_in: Callable[..., Spool], mode: Any, adopted: bool
    ) -> None:
        tail = tail_of(directory / "with-tail.sqlite")
        tail.write_bytes(b"X" + tail.read_bytes()[1:])
        if adopted:
            spool_in(directory).close()
            (run,) = [run for run in spool_in(directory).runs() if run.run_uid == "with-tail"]
            assert "no valid document" in run.damage
        with open_run(directory / "with-tail.sqlite", mode) as run:
            assert run.length == 5
            assert [record.idx for record in run.read(0)] == list(range(5))
            with pytest.raises(SpoolDamaged, match="no valid document"):
                list(run.records())
            (damage,) = run.damage()
            assert "no valid document" in damage

    @pytest.mark.timeout(20)
    def test_do_not_wait_for_a_pipe_in_place_of_the_tail(self, directory: Path) -> None:
        os.mkfifo(tail_of(directory / "whole.sqlite"))
        with pytest.raises(OSError, match="Not a regular file"):
            open_run(directory / "whole.sqlite")

    def test_say_that_a_tail_does_not_continue_its_file(self, directory: Path) -> None:
        file = directory / "whole.sqlite"
        tail_of(file).touch()
        append_to_tail(file, Record(9, "event", 1.0, zlib.crc32(b"x"), b"x"))
        with open_run(file) as run:
            assert run.length == 8
            with pytest.raises(SpoolDamaged, match="documents 8 to 8 are neither in it nor in the file"):
                list(run.records())
            assert len(run.damage()) == 1


MEASURE = """
    import sys
    from pathlib import Path
    from tiledbroker.publisher._spool import Spool
    from tiledbroker import open_run
    if sys.argv[2] == "ship":
        spool = Spool(Path(sys.argv[1]))
        spool.maintain()
        run = next(run for run in spool.runs() if run.run_uid == "tail-only")
        index = 0
        while records := run.read(index, 2000, 2**19):
            index += len(records)
        print(index)
        spool.close()
    else:
        with open_run(Path(sys.argv[1]) / "tail-only.sqlite") as run:
            print(sum(1 for _ in run.records()))
    # The peak that getrusage tells is that of the process before exec, too.
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) // 1024)
"""


@pytest.mark.parametrize("how", ["ship", "read"])
def test_a_tail_of_200_mib_takes_little_memory(directory: Path, how: str) -> None:
    body = os.urandom(2**16)
    crc = zlib.crc32(body)
    append_to_tail(directory / "tail-only.sqlite", *(Record(4 + n, "event", 1.0, crc, body) for n in range(3200)))
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), str(directory), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    count, mib = map(int, done.stdout.split())
    assert count == 3204
    assert mib < {"ship": 150, "read": 400}[how], mib
