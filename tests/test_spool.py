"""What the spool has taken is kept, in order, until somebody else has it, whatever the disk does."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from disks import fill

from tiledbroker import Journal, decode, journal_filename, run_files
from tiledbroker import _spool as spool_module
from tiledbroker._spool import RunLog, Spool
from tiledbroker._tail import Tail, read_tail, tail_of
from tiledwriter.testing import wait_until


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(directory: Path) -> Iterator[Spool]:
    spool = Spool(directory)
    yield spool
    spool.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that failed is tried again at once."""
    monkeypatch.setattr(spool_module, "_STORE_INTERVAL", 0.0)


def start(spool: Spool, run: str) -> None:
    spool.append("start", {"uid": run})
    spool.append("descriptor", {"uid": f"descriptor of {run}", "run_start": run})


def event(spool: Spool, run: str, number: int) -> None:
    spool.append("event", {"descriptor": f"descriptor of {run}", "seq_num": number})


def stop(spool: Spool, run: str) -> None:
    spool.append("stop", {"run_start": run})


def on_disk(directory: Path, run: str) -> list[dict[str, Any]]:
    with Journal(directory / journal_filename(run)) as journal:
        return [decode(record.body) for record in journal.records()]


def seq_nums(run: RunLog) -> list[int]:
    """Numbers of the events of a run, as the shipper would read them."""
    numbers = []
    index = 0
    while records := run.read(index, 1000, 2**20):
        for record in records:
            assert record.idx == index
            index += 1
            if record.name == "event":
                numbers.append(decode(record.body)["seq_num"])
    assert index == run.length
    return numbers


class TestWhatIsAppended:
    def test_is_on_disk_at_once(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        event(spool, "run", 1)
        assert [document.get("seq_num") for document in on_disk(directory, "run")] == [None, None, 1]
        (run,) = spool.runs()
        assert (run.run_uid, run.length, run.degraded, run.abandoned) == ("run", 3, False, False)

    def test_goes_to_its_run(self, spool: Spool, directory: Path) -> None:
        start(spool, "a")
        start(spool, "b")
        for number in range(4):
            event(spool, "ab"[number % 2], number)
        stop(spool, "a")
        assert [run.run_uid for run in spool.runs()] == ["a", "b"]
        assert [seq_nums(run) for run in spool.runs()] == [[0, 2], [1, 3]]
        assert on_disk(directory, "a")[-1] == {"run_start": "a"}
        assert spool.unrouted == 0

    def test_goes_to_each_of_its_runs(self, spool: Spool, directory: Path) -> None:
        start(spool, "a")
        start(spool, "b")
        spool.append("resource", {"uid": "r"})
        assert on_disk(directory, "a")[-1] == on_disk(directory, "b")[-1] == {"uid": "r"}

    def test_survives_a_kill(self, directory: Path) -> None:
        code = """
            import os, signal, sys
            from pathlib import Path
            from tiledbroker._spool import Spool
            spool = Spool(Path(sys.argv[1]))
            spool.append("start", {"uid": "run"})
            for number in range(100):
                spool.append("descriptor", {"uid": str(number), "run_start": "run"})
            os.kill(os.getpid(), signal.SIGKILL)
        """
        command = [sys.executable, "-c", textwrap.dedent(code), str(directory)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert len(on_disk(directory, "run")) == 101

    def test_is_readable_by_its_owner_only(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir() if path.is_file()} == {0o600}

    def test_is_said_to_be_changed_when_it_had_to_be(self, spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
        spool.append("start", {"uid": "run", "sample": object()})
        assert "A start document has values that cannot be stored (object)" in caplog.text

    def test_stays_for_the_next_publisher_after_close(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        spool.close()
        assert len(on_disk(directory, "run")) == 2

    def test_is_gone_with_its_files_after_remove(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        start(spool, "other")
        spool.remove(spool.runs()[0])
        assert [run.run_uid for run in spool.runs()] == ["other"]
        assert run_files(directory) == [directory / "other.sqlite"]
        assert not [path for path in directory.iterdir() if path.name.startswith("run")]

    def test_never_makes_a_path_of_a_uid(self, spool: Spool, directory: Path) -> None:
        start(spool, "../../outside")
        assert [path.parent for path in run_files(directory)] == [directory]
        assert spool.runs()[0].length == 2

    def test_stays_in_order_when_threads_append(self, spool: Spool) -> None:
        for run in "abcd":
            start(spool, run)
        threads = [
            threading.Thread(target=lambda run=run: [event(spool, run, number) for number in range(50)])
            for run in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [seq_nums(run) for run in spool.runs()] == [list(range(50))] * 4

    def test_can_be_synced_at_any_time(self, spool: Spool) -> None:
        spool.sync()
        start(spool, "run")
        spool.sync()
        event(spool, "run", 1)
        spool.sync()
        assert seq_nums(spool.runs()[0]) == [1]


@pytest.mark.usefixtures("impatient")
class TestAFlood:
    """Of which more waits for the shipper than is brought into the file in between."""

    @pytest.fixture(autouse=True)
    def small(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(spool_module, "_FLOOD", 5)
        monkeypatch.setattr(spool_module, "_FEW", 0)
        monkeypatch.setattr(spool_module, "_SLICE", 3)

    @pytest.fixture
    def run(self, spool: Spool) -> RunLog:
        start(spool, "run")
        for number in range(18):
            event(spool, "run", number)
        (run,) = spool.runs()
        return run

    @staticmethod
    def in_file(directory: Path) -> int:
        """Documents without those in the tail."""
        connection = sqlite3.connect(directory / journal_filename("run"))
        try:
            return int(connection.execute("SELECT count(*) FROM documents").fetchone()[0])
        finally:
            connection.close()

    def test_stays_in_memory_while_it_is_shipped(self, spool: Spool, run: RunLog, directory: Path) -> None:
        for shipped in (8, 14):
            run.shipped = shipped
            spool.sync()
            assert self.in_file(directory) == 0
            assert len(on_disk(directory, "run")) == 20
        run.shipped = 16  # few are left
        spool.sync()
        assert self.in_file(directory) == 20
        assert seq_nums(run) == list(range(18))

    def test_is_brought_into_the_file_when_it_is_not_shipped(self, spool: Spool, run: RunLog, directory: Path) -> None:
        run.shipped = 8
        spool.sync()
        assert self.in_file(directory) == 0
        spool.sync()
        assert self.in_file(directory) == 20

    @pytest.mark.parametrize(("shipped", "stored"), [(2, 10), (14, 14)])
    def test_is_brought_into_the_file_in_part_when_it_takes_much_memory(
        self, spool: Spool, run: RunLog, monkeypatch: pytest.MonkeyPatch, shipped: int, stored: int
    ) -> None:
        directory = spool.directory
        monkeypatch.setattr(spool_module, "_MUCH_MEMORY", 100)
        run.shipped = shipped
        spool.sync()
        assert self.in_file(directory) == stored
        assert len(on_disk(directory, "run")) == 20
        assert seq_nums(run) == list(range(18))

    def test_is_read_without_going_through_its_tail(
        self, spool: Spool, run: RunLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool_module, "_MUCH_MEMORY", 100)
        run.shipped = 12
        spool.sync()
        monkeypatch.setattr("tiledbroker._journal.read_tail", lambda _: pytest.fail("The tail can be long."))
        assert [record.idx for record in run.read(0, 100, 2**20)] == list(range(12))
        assert [record.idx for record in run.read(12, 100, 2**20)] == list(range(12, 20))

    @pytest.fixture
    def released(self, spool: Spool, run: RunLog, monkeypatch: pytest.MonkeyPatch) -> RunLog:
        """Ten documents are durable elsewhere; there is no room for more than the others in memory."""
        monkeypatch.setattr(spool_module, "_MUCH_MEMORY", 500)
        run.shipped, run.acknowledged = 12, 10
        spool.sync()
        return run

    def test_takes_no_memory_at_all_if_the_ingest_host_has_more_of_it(
        self, spool: Spool, run: RunLog, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool_module, "_MUCH_MEMORY", 500)
        run.shipped, run.acknowledged = 12, 25
        spool.sync()
        event(spool, "run", 18)
        assert run.length == 21
        assert [record.idx for record in run.read(20, 100, 2**20)] == [20]
        assert seq_nums(run) == list(range(19))

    def test_is_not_brought_into_the_file_at_the_end_of_its_run(
        self, spool: Spool, run: RunLog, directory: Path
    ) -> None:
        stop(spool, "run")
        run.shipped = 20
        spool.sync()
        assert self.in_file(directory) == 0
        spool.sync()
        assert self.in_file(directory) == 21

    def test_takes_no_memory_for_what_is_durable_elsewhere(self, released: RunLog, directory: Path) -> None:
        assert [record.idx for record in released._fresh] == list(range(10, 20))
        assert self.in_file(directory) == 0
        assert len(on_disk(directory, "run")) == released.length == 20

    def test_gives_single_documents_that_are_in_the_tail_only(
        self, released: RunLog, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(spool_module, "_FEW", 2)
        assert [released.read(idx, 1, 1)[0].idx for idx in (0, 9, 10, 19)] == [0, 9, 10, 19]
        assert [record.idx for record in released.read(8, 2, 2**20)] == [8, 9]
        assert self.in_file(directory) == 0

    def test_is_there_from_the_beginning_if_the_ingest_host_has_lost_it(
        self, released: RunLog, directory: Path
    ) -> None:
        assert seq_nums(released) == list(range(18))
        assert self.in_file(directory) == 10
        assert len(on_disk(directory, "run")) == 20

    def test_is_brought_into_the_file_when_it_ends_in_the_tail_or_in_memory(
        self, released: RunLog, spool: Spool, directory: Path
    ) -> None:
        event(spool, "run", 18)
        spool.sync()
        spool.sync()
        assert self.in_file(directory) == 21
        assert not read_tail(directory / journal_filename("run")).records
        assert seq_nums(released) == list(range(19))

    def test_is_whole_for_the_next_session(self, released: RunLog, spool: Spool, directory: Path) -> None:
        spool.close()
        with Journal(directory / journal_filename("run"), "write") as journal:
            assert journal.length == 20

    def test_of_which_the_disk_has_lost_something_is_not_given_with_a_gap(
        self, released: RunLog, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tail = tail_of(directory / journal_filename("run"))
        with tail.open("r+b") as file:
            file.seek(tail.read_bytes().index(b"TWT1", 4))
            file.write(b"XXXX")
        with pytest.raises(OSError, match="no document"):
            released.read(0, 100, 2**20)
        monkeypatch.setattr(spool_module, "_FEW", 2)
        with pytest.raises(OSError, match="no document"):
            released.read(5, 1, 1)
        with tail.open("r+b") as file:
            file.write(bytes(4))
        with pytest.raises(OSError, match="document 0 is not there any more"):
            released.read(0, 100, 2**20)
        assert [record.idx for record in released.read(10, 100, 2**20)] == list(range(10, 20))

    def test_is_not_given_back_while_it_is_in_memory_only(
        self, spool: Spool, run: RunLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise OSError("the disk fails")

        monkeypatch.setattr(spool_module, "_MUCH_MEMORY", 500)
        with monkeypatch.context() as failing:
            failing.setattr(Tail, "append", fail)
            event(spool, "run", 18)
        assert run.degraded
        run.shipped, run.acknowledged = 12, 10
        spool.sync()
        assert seq_nums(run) == list(range(19))

    def test_that_is_removed_meanwhile_is_brought_nowhere(
        self, spool: Spool, run: RunLog, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        extend = Journal.extend
        removing = threading.Thread(target=spool.remove, args=(run,))
        slices = []

        def extend_while_it_is_removed(journal: Journal, records: Any) -> int:
            slices.append(len(records))
            if not removing.ident:
                removing.start()
                wait_until(lambda: run.removed, 10, "it is being removed")
            return extend(journal, records)

        monkeypatch.setattr(Journal, "extend", extend_while_it_is_removed)
        run.sync()
        removing.join()
        assert slices == [3]
        run.sync()
        assert not list(directory.iterdir())


class TestDocumentsOfNoKnownRun:
    def test_are_kept_counted_and_reported(
        self, spool: Spool, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        start(spool, "run")
        event(spool, "never started", 7)
        event(spool, "never started", 8)
        assert spool.unrouted == 2
        (kept,) = directory.glob("_unrouted*.sqlite")
        with Journal(kept) as journal:
            assert [decode(record.body)["seq_num"] for record in journal.records()] == [7, 8]
        assert "belongs to no known run" in caplog.text
        assert str(kept) in caplog.text

    def test_are_no_run(self, spool: Spool, directory: Path) -> None:
        event(spool, "never started", 7)
        assert spool.runs() == []
        assert run_files(directory) == []
        spool.close()
        later = Spool(directory)
        assert later.adopt() == []
        later.close()

    def test_do_not_stop_the_others(self, spool: Spool) -> None:
        event(spool, "run", 0)
        start(spool, "run")
        event(spool, "run", 1)
        spool.append("surprise", {})
        event(spool, "run", 2)
        assert seq_nums(spool.runs()[0]) == [1, 2]
        assert spool.unrouted == 2

    def test_are_not_documents_of_a_start_that_came_twice(self, spool: Spool) -> None:
        start(spool, "run")
        spool.append("start", {"uid": "run"})
        event(spool, "run", 1)
        assert spool.unrouted == 1
        assert spool.runs()[0].length == 3


class TestAdoption:
    def test_takes_what_a_closed_session_left(self, directory: Path, spool: Spool) -> None:
        earlier = Spool(directory)
        start(earlier, "a")
        start(earlier, "B is no file name")
        event(earlier, "a", 1)
        earlier.close()
        adopted = spool.adopt()
        assert sorted(run.run_uid for run in adopted) == ["B is no file name", "a"]
        assert all(run.abandoned for run in adopted)
        assert spool.runs() == adopted
        (run,) = [run for run in adopted if run.run_uid == "a"]
        assert seq_nums(run) == [1]

    def test_takes_the_oldest_first(self, directory: Path, spool: Spool) -> None:
        earlier = Spool(directory)
        for run in ("first", "second", "third"):
            start(earlier, run)
        earlier.close()
        for age, run in enumerate(("third", "second", "first")):
            os.utime(directory / journal_filename(run), (1e9 - age, 1e9 - age))
        assert [run.run_uid for run in spool.adopt()] == ["first", "second", "third"]

    def test_takes_what_a_killed_session_left_and_leaves_live_ones_alone(self, directory: Path, spool: Spool) -> None:
        code = """
            import sys
            from pathlib import Path
            from tiledbroker._spool import Spool
            spool = Spool(Path(sys.argv[1]))
            spool.append("start", {"uid": "theirs"})
            print("ready", flush=True)
            sys.stdin.read()
        """
        start(spool, "ours")
        command = [sys.executable, "-c", textwrap.dedent(code), str(directory)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                assert spool.adopt() == []
            finally:
                process.kill()
        assert [run.run_uid for run in spool.adopt()] == ["theirs"]
        assert [run.run_uid for run in spool.runs()] == ["ours", "theirs"]
        assert spool.adopt() == []

    def test_leaves_live_sessions_of_this_process_alone(self, directory: Path, spool: Spool) -> None:
        other = Spool(directory)
        start(other, "theirs")
        assert spool.adopt() == []
        other.close()
        assert len(spool.adopt()) == 1

    def test_removes_files_without_documents(self, directory: Path, spool: Spool) -> None:
        Journal(directory / "run.sqlite", "create", run_uid="run").close()
        assert spool.adopt() == []
        assert list(directory.iterdir()) == []

    def test_passes_by_what_is_no_spool_file(
        self, directory: Path, spool: Spool, caplog: pytest.LogCaptureFixture
    ) -> None:
        (directory / "garbage.sqlite").write_bytes(b"no database " * 1000)
        earlier = Spool(directory)
        start(earlier, "run")
        earlier.close()
        assert [run.run_uid for run in spool.adopt()] == ["run"]
        assert "garbage.sqlite" in caplog.text
        assert (directory / "garbage.sqlite").exists()

    def test_does_not_mind_a_run_that_starts_meanwhile(self, directory: Path, spool: Spool) -> None:
        class PathThatStartsARunWhenLookedAt:
            def __init__(self) -> None:
                self.threads: list[threading.Thread] = []

            def __hash__(self) -> int:
                if not self.threads:
                    self.threads.append(threading.Thread(target=start, args=(spool, "meanwhile")))
                    self.threads[0].start()
                    self.threads[0].join(0.1)  # it may have to wait for `adopt`
                return 0

        other = Spool(directory)
        start(other, "theirs")
        start(spool, "ours")
        meddling = PathThatStartsARunWhenLookedAt()
        spool.runs()[0]._path = meddling
        try:
            assert spool.adopt() == []
        finally:
            other.close()
            for thread in meddling.threads:
                thread.join()
        assert [run.run_uid for run in spool.runs()] == ["ours", "meanwhile"]


class TestADiskThatFails:
    @pytest.fixture
    def blocked(self, directory: Path) -> Iterator[Spool]:
        """A spool whose directory is a file."""
        directory.write_text("in the way")
        spool = Spool(directory)
        yield spool
        spool.close()

    def test_is_survived_in_memory_loudly(
        self, blocked: Spool, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        start(blocked, "run")
        event(blocked, "run", 1)
        (run,) = blocked.runs()
        assert run.degraded
        assert seq_nums(run) == [1]
        errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
        assert any("cannot be written" in error and "kept in memory" in error for error in errors)
        assert directory.read_text() == "in the way"

    def test_loses_nothing_when_it_can_be_written_again(
        self, blocked: Spool, directory: Path, caplog: pytest.LogCaptureFixture, impatient: None
    ) -> None:
        start(blocked, "run")
        for number in range(5):
            event(blocked, "run", number)
        directory.unlink()
        directory.mkdir()
        event(blocked, "run", 5)
        blocked.sync()
        (run,) = blocked.runs()
        assert not run.degraded
        assert seq_nums(run) == [0, 1, 2, 3, 4, 5]
        assert [document.get("seq_num") for document in on_disk(directory, "run")[2:]] == [0, 1, 2, 3, 4, 5]
        assert "takes documents again; nothing was lost" in caplog.text

    def test_is_tried_again_without_a_further_document(self, blocked: Spool, directory: Path, impatient: None) -> None:
        start(blocked, "run")
        directory.unlink()
        directory.mkdir()
        blocked.sync()
        assert not blocked.runs()[0].degraded
        assert len(on_disk(directory, "run")) == 2

    def test_is_not_tried_for_every_document(self, blocked: Spool, directory: Path) -> None:
        start(blocked, "run")
        directory.unlink()
        directory.mkdir()
        event(blocked, "run", 1)
        assert blocked.runs()[0].degraded

    def test_in_the_middle_of_a_run_loses_and_reorders_nothing(
        self, spool: Spool, directory: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
    ) -> None:
        def full(*_: object) -> int:
            raise sqlite3.OperationalError("database or disk is full")

        start(spool, "run")
        event(spool, "run", 0)
        with monkeypatch.context() as failing:
            failing.setattr(Tail, "append", full)
            failing.setattr(Journal, "extend", full)
            for number in range(1, 5):
                event(spool, "run", number)
            (run,) = spool.runs()
            assert run.degraded
            assert seq_nums(run) == [0, 1, 2, 3, 4]
            assert len(on_disk(directory, "run")) == 3
        event(spool, "run", 5)
        spool.sync()
        event(spool, "run", 6)
        assert not run.degraded
        assert seq_nums(run) == list(range(7))
        assert len(on_disk(directory, "run")) == 9

    def test_loses_only_what_is_said_to_be_lost_at_the_end(
        self, blocked: Spool, caplog: pytest.LogCaptureFixture
    ) -> None:
        start(blocked, "run")
        blocked.close()
        assert "2 documents of run run are lost" in caplog.text

    def test_keeps_documents_of_no_known_run_too(self, blocked: Spool) -> None:
        event(blocked, "never started", 1)
        assert blocked.unrouted == 1

    def test_does_not_give_more_bytes_from_memory_than_asked_for(self, blocked: Spool) -> None:
        start(blocked, "run")
        for _ in range(10):
            blocked.append("event", {"descriptor": "descriptor of run", "data": b"x" * 1000})
        (run,) = blocked.runs()
        records = run.read(2, 2000, 3500)
        assert [record.idx for record in records] == [2, 3, 4]
        assert [record.idx for record in run.read(2, 2000, 1)] == [2]

    def test_can_be_removed_from(self, blocked: Spool) -> None:
        start(blocked, "run")
        (run,) = blocked.runs()
        blocked.remove(run)
        assert run.length == 0
        assert blocked.runs() == []


class TestAFullDisk:
    @pytest.fixture
    def small(self, small_disk: Path) -> Iterator[Spool]:
        spool = Spool(small_disk / "spool")
        yield spool
        spool.close()

    def test_in_a_run_costs_no_document(self, small: Spool, small_disk: Path, impatient: None) -> None:
        start(small, "run")
        (run,) = small.runs()
        number = 0
        filling = fill(small_disk, leaving=100_000)
        while not run.degraded:
            small.append("event", {"descriptor": "descriptor of run", "seq_num": number, "data": b"x" * 5000})
            number += 1
        assert seq_nums(run) == list(range(number))
        filling.unlink()
        event(small, "run", number)
        small.sync()
        assert not run.degraded
        assert seq_nums(run) == list(range(number + 1))

    @pytest.mark.parametrize("left", [0, 4096, 8192, 16384, 32768])
    def test_at_the_start_of_a_run_costs_no_document(
        self, small: Spool, small_disk: Path, impatient: None, left: int
    ) -> None:
        start(small, "earlier")
        filling = fill(small_disk, leaving=left)
        start(small, "run")
        for number in range(10):
            small.append("event", {"descriptor": "descriptor of run", "seq_num": number, "data": b"x" * 5000})
        _, run = small.runs()
        assert run.degraded
        filling.unlink()
        event(small, "run", 10)
        small.sync()
        assert seq_nums(run) == list(range(11))
        assert not run.degraded
        assert len(on_disk(small.directory, "run")) == 13

    def test_leaves_no_drafts(self, small: Spool, small_disk: Path, impatient: None) -> None:
        filling = fill(small_disk)
        start(small, "run")
        filling.unlink()
        event(small, "run", 1)
        small.close()
        assert [path.name for path in small.directory.iterdir() if path.name.startswith(".")] == []
        shutil.rmtree(small.directory)


def test_finished_runs_that_wait_take_one_descriptor_each(tmp_path):
    spool = Spool(tmp_path)
    try:
        before = psutil.Process().num_fds()
        for number in range(50):
            uid = f"run-{number}"
            spool.append("start", {"uid": uid, "time": 1.0})
            spool.append("stop", {"uid": f"stop-{number}", "run_start": uid, "time": 2.0})
        spool.sync()
        assert psutil.Process().num_fds() - before <= 50
        assert [[record.name for record in run.read(0, 10, 1000)] for run in spool.runs()] == [["start", "stop"]] * 50
        assert psutil.Process().num_fds() - before <= 50
    finally:
        spool.close()


def test_a_document_after_the_stop_is_kept_with_its_run(tmp_path):
    spool = Spool(tmp_path)
    spool.append("start", {"uid": "r", "time": 1.0})
    spool.append("descriptor", {"uid": "d", "run_start": "r", "name": "primary", "time": 1.0, "data_keys": {}})
    spool.append("stop", {"uid": "s", "run_start": "r", "time": 2.0})
    spool.sync()
    spool.append("start", {"uid": "other", "time": 3.0})
    (run, _) = spool.runs()
    run.append("event", b"late")
    assert not run.degraded
    names = [record.name for start in (0, 3) for record in run.read(start, 10, 1000)]
    assert names == ["start", "descriptor", "stop", "event"]
    run.remove()
    spool.close()
    assert len(list(tmp_path.glob("*.sqlite"))) == 1


def test_what_earlier_sessions_left_is_taken_over_some_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("tiledbroker._spool._ADOPTED_AT_ONCE", 3)
    monkeypatch.setattr("tiledbroker._spool._MAX_ADOPTED", 7)
    left = Spool(tmp_path)
    for number in range(10):
        left.append("start", {"uid": f"run-{number}", "time": 1.0})
    left.close()
    spool = Spool(tmp_path)
    try:
        assert [len(spool.adopt()) for _ in range(3)] == [3, 3, 3]
        assert spool.more_to_adopt
        assert spool.adopt() == []
        for run in spool.runs()[:5]:
            spool.remove(run)
        assert len(spool.adopt()) == 1
        assert not spool.more_to_adopt
    finally:
        spool.close()
