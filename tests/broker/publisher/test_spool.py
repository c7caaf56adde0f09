"""What the spool has taken is kept, in order, until nobody needs it here any more, whatever the disk does."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from disks import fill
from spools import event, on_disk, seq_nums, start, stop

from tiledbroker import PublisherClosed, decode, open_run, run_files
from tiledbroker.log._run_log import RunLog
from tiledbroker.log._segment import Segment
from tiledbroker.publisher import _spool as spool_module
from tiledbroker.publisher._spool import Spool


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(directory: Path) -> Iterator[Spool]:
    spool = Spool(directory)
    yield spool
    spool.close()


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "FIRST_SEGMENT_BYTES", 1000)
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 2000)


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

    @pytest.mark.usefixtures("small_segments")
    @pytest.mark.parametrize("maintained", [1, 3, 1000])
    def test_goes_into_one_segment_after_the_other(self, spool: Spool, directory: Path, maintained: int) -> None:
        start(spool, "run")
        for number in range(200):
            event(spool, "run", number)
            if number % maintained == 0:
                spool.maintain()
        (run,) = spool.runs()
        assert seq_nums(run) == list(range(200))
        spool.maintain()
        assert len(run.files) > 8
        assert seq_nums(run) == list(range(200))
        assert len(on_disk(directory, "run")) == 202
        assert {segment.sealed for segment in run._segments[:-1]} == {True}

    @pytest.mark.usefixtures("small_segments")
    def test_may_be_larger_than_a_segment(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        for number, size in enumerate((10, 5_000, 100, 100_000, 1)):
            event(spool, "run", number, data=b"x" * size)
        spool.maintain()
        assert seq_nums(spool.runs()[0]) == list(range(5))
        assert [len(document["data"]) for document in on_disk(directory, "run")[2:]] == [10, 5_000, 100, 100_000, 1]

    def test_survives_a_kill(self, directory: Path) -> None:
        code = """
            import os, signal, sys
            from pathlib import Path
            from tiledbroker.publisher import _spool
            _spool.FIRST_SEGMENT_BYTES, _spool.SEGMENT_BYTES = 1000, 2000
            spool = _spool.Spool(Path(sys.argv[1]))
            spool.append("start", {"uid": "run"})
            for number in range(100):
                spool.append("descriptor", {"uid": str(number), "run_start": "run"})
                if number % 10 == 9:
                    spool.maintain()
            os.kill(os.getpid(), signal.SIGKILL)
        """
        command = [sys.executable, "-c", textwrap.dedent(code), str(directory)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert len(on_disk(directory, "run")) == 101

    def test_is_readable_by_its_owner_only(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        spool.maintain()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}

    def test_is_said_to_be_changed_when_it_had_to_be(self, spool: Spool, caplog: pytest.LogCaptureFixture) -> None:
        spool.append("start", {"uid": "run", "sample": object()})
        assert "A start document has values that cannot be stored (object)" in caplog.text

    def test_stays_for_the_next_publisher_after_close(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        spool.close()
        assert len(on_disk(directory, "run")) == 2
        assert [path.name.startswith("run.") for path in directory.iterdir()] == [True]

    def test_is_gone_with_its_files_after_remove(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        start(spool, "other")
        spool.remove(spool.runs()[0])
        spool.maintain()
        assert [run.run_uid for run in spool.runs()] == ["other"]
        (left,) = run_files(directory)
        assert left.name.startswith("other.")

    def test_never_makes_a_path_of_a_uid(self, spool: Spool, directory: Path) -> None:
        start(spool, "../../outside")
        spool.maintain()
        assert [path.parent for path in run_files(directory)] == [directory]
        assert spool.runs()[0].length == 2

    @pytest.mark.usefixtures("small_segments")
    def test_stays_in_order_when_threads_append_while_it_is_maintained_and_read(self, spool: Spool) -> None:
        for run in "abcd":
            start(spool, run)
        threads = [
            threading.Thread(target=lambda run=run: [event(spool, run, number) for number in range(300)])
            for run in "abcd"
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            spool.maintain()
            for run in spool.runs():
                numbers = seq_nums(run, growing=True)
                assert numbers == list(range(len(numbers)))
        assert [seq_nums(run) for run in spool.runs()] == [list(range(300))] * 4

    def test_is_refused_once_the_spool_is_closed(self, spool: Spool) -> None:
        spool.close()
        with pytest.raises(PublisherClosed):
            start(spool, "run")


class TestAClose:
    @pytest.mark.usefixtures("small_segments")
    def test_while_a_thread_appends_keeps_all_that_was_taken(self, spool: Spool, directory: Path) -> None:
        taken: list[int] = []
        begun = threading.Event()

        def append() -> None:
            start(spool, "run")
            for number in range(1_000_000):
                try:
                    event(spool, "run", number)
                except PublisherClosed:
                    return
                taken.append(number)
                if number == 500:
                    begun.set()

        thread = threading.Thread(target=append)
        thread.start()
        assert begun.wait(60)
        spool.close()
        thread.join()
        assert [document["seq_num"] for document in on_disk(directory, "run")[2:]] == taken

    @pytest.mark.usefixtures("small_segments")
    def test_leaves_nothing_that_a_power_cut_could_take(
        self, spool: Spool, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A disk that keeps what was synced, and nothing else."""
        synced: dict[int, bytes] = {}
        named: set[str] = set()
        fdatasync, fsync = os.fdatasync, os.fsync

        def keep_contents(descriptor: int) -> None:
            fdatasync(descriptor)
            synced[os.fstat(descriptor).st_ino] = os.pread(descriptor, 10**6, 0)

        def keep_names(descriptor: int) -> None:
            fsync(descriptor)
            assert os.path.samestat(os.fstat(descriptor), directory.stat())
            named.update(path.name for path in directory.iterdir())

        monkeypatch.setattr(os, "fdatasync", keep_contents)
        monkeypatch.setattr(os, "fsync", keep_names)
        for run in "ab":
            start(spool, run)
            for number in range(60):
                event(spool, run, number)
                if number == 20:
                    spool.maintain()
        stop(spool, "a")
        spool.close()
        files = [path for path in directory.iterdir() if path.suffix == ".segment"]
        assert {path.name for path in files} <= named
        for path in files:
            kept = synced[path.stat().st_ino]
            assert kept[: path.stat().st_size] == path.read_bytes()
        assert [len(on_disk(directory, run)) for run in "ab"] == [63, 62]

    def test_says_what_is_lost_if_the_disk_fails_to_the_end(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        spool = Spool(tmp_path / "file" / "spool")
        start(spool, "run")
        spool.close()
        assert "2 documents of run run are lost" in caplog.text

    def test_does_not_call_lost_what_is_durable_elsewhere(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        spool = Spool(tmp_path / "file" / "spool")
        start(spool, "run")
        event(spool, "run", 1)
        spool.runs()[0].acknowledged = 2
        spool.close()
        assert "1 documents of run run are lost" in caplog.text


class TestTheCallback:
    """Makes no system call that can wait for a disk."""

    def test_leaves_the_disk_to_others(self, directory: Path) -> None:
        code = """
            import os, sys, threading
            from pathlib import Path
            from tiledbroker.publisher import _spool
            _spool.FIRST_SEGMENT_BYTES, _spool.SEGMENT_BYTES = 2000, 4000
            spool = _spool.Spool(Path(sys.argv[1]))
            go_on, maintained = threading.Event(), threading.Event()
            def maintain():
                while not go_on.wait(0.001):
                    spool.maintain()
                    maintained.set()
            thread = threading.Thread(target=maintain)
            thread.start()
            os.write(2, b"begins\\n")
            spool.append("start", {"uid": "run"})
            spool.append("descriptor", {"uid": "d", "run_start": "run"})
            for number in range(2000):
                spool.append("event", {"descriptor": "d", "seq_num": number})
                if number % 200 == 199:
                    maintained.clear()
                    maintained.wait()
            spool.append("stop", {"run_start": "run"})
            os.write(2, b"ends\\n")
            go_on.set()
            thread.join()
            spool.close()
        """
        trace = directory.parent / "trace"
        if shutil.which("strace") is None:
            pytest.skip("strace is not installed.")
        traced = ["strace", "-f", "-o", str(trace), "-e", "trace=file,desc,sync,ftruncate,fallocate"]
        command = [sys.executable, "-c", textwrap.dedent(code), str(directory)]
        ended = subprocess.run([*traced, *command], capture_output=True, text=True, check=False, timeout=120)
        assert ended.returncode == 0, ended.stderr
        lines = trace.read_text().splitlines()
        (begins,) = [number for number, line in enumerate(lines) if 'write(2, "begins' in line]
        (ends,) = [number for number, line in enumerate(lines) if 'write(2, "ends' in line]
        pid = lines[begins].split()[0]
        calls = [line for line in lines[begins + 1 : ends] if line.split()[0] == pid]
        # What it maps is memory of its own; no file is behind it.
        own = re.compile(r"mmap\(.*MAP_ANONYMOUS|<\.\.\. (mmap|write) resumed>")
        assert [line for line in calls if not own.search(line)] == []
        others = [line for line in lines[begins + 1 : ends] if line.split()[0] != pid]
        assert any("fdatasync" in line for line in others)

    @pytest.mark.parametrize(
        "step", ["_create_spares", "_store_documents", "_flush_runs", "_reclaim_space", "_adopt_runs"]
    )
    def test_does_not_wait_for_what_maintains_the_spool(
        self, spool: Spool, monkeypatch: pytest.MonkeyPatch, step: str
    ) -> None:
        stuck, go_on = threading.Event(), threading.Event()

        def wait(*_: object, **__: object) -> None:
            stuck.set()
            go_on.wait(60)
            raise OSError(5, "Input/output error")

        start(spool, "gone")
        spool.remove(spool.runs()[0])
        target, name = {
            "_create_spares": (Segment, "create"),
            "_store_documents": (RunLog, "store"),
            "_flush_runs": (RunLog, "flush"),
            "_reclaim_space": (RunLog, "delete"),
            "_adopt_runs": (spool._left, "adopt"),
        }[step]
        start(spool, "run")
        with monkeypatch.context() as waiting:
            waiting.setattr(target, name, wait)
            waiting.setattr(RunLog, "degraded", property(lambda _: True))
            thread = threading.Thread(target=getattr(spool, step))
            thread.start()
            assert stuck.wait(60)
            for number in range(100):
                event(spool, "run", number)
            assert seq_nums(spool.runs()[0]) == list(range(100))
            with pytest.MonkeyPatch.context() as quiet:
                quiet.setattr(threading, "excepthook", lambda _: None)
                go_on.set()
                thread.join()


class TestDocumentsOfNoKnownRun:
    def test_are_kept_counted_and_reported(
        self, spool: Spool, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        start(spool, "run")
        event(spool, "never started", 7)
        event(spool, "never started", 8)
        assert spool.unrouted == 2
        spool.maintain()
        (run,) = spool._others
        assert seq_nums(run) == [7, 8]
        assert "belongs to no known run" in caplog.text
        named = re.findall(r"It is kept in (\S+) and", caplog.text)
        assert set(map(Path, named)) == set(run.files)

    def test_are_no_run(self, spool: Spool, directory: Path) -> None:
        event(spool, "never started", 7)
        assert spool.runs() == []
        spool.maintain()
        assert run_files(directory) == []
        spool.close()
        assert len(list(directory.iterdir())) == 1
        later = Spool(directory)
        later.maintain()
        assert (later.runs(), later.refused) == ([], {})
        later.close()
        assert len(list(directory.iterdir())) == 1

    def test_do_not_stop_the_others(self, spool: Spool) -> None:
        event(spool, "run", 0)
        start(spool, "run")
        event(spool, "run", 1)
        spool.append("surprise", {})
        event(spool, "run", 2)
        assert seq_nums(spool.runs()[0]) == [1, 2]
        assert spool.unrouted == 2

    @pytest.mark.parametrize("name", ["x" * 1000, "\ud800" * 100, "é" * 300, "", None])
    def test_may_have_any_name(self, spool: Spool, name: Any) -> None:
        spool.append(name, {"a": 1})
        assert spool.unrouted == 1
        (run,) = spool._others
        assert [decode(record.body) for record in run.read(0, 10, 1000)] == [{"a": 1}]

    def test_are_not_documents_of_a_start_that_came_twice(self, spool: Spool) -> None:
        start(spool, "run")
        spool.append("start", {"uid": "run"})
        event(spool, "run", 1)
        assert spool.unrouted == 1
        assert spool.runs()[0].length == 3


class TestASecondRunOfOneUid:
    def test_is_kept_apart_and_named(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        event(spool, "run", 1)
        stop(spool, "run")
        start(spool, "run")
        event(spool, "run", 2)
        (run,) = spool.runs()
        assert seq_nums(run) == [1]
        assert "same uid" in spool.refused["run"]
        assert not spool.is_durable
        spool.maintain()
        assert len(run_files(directory)) == 2

    def test_is_taken_over_by_a_later_session_when_the_first_is_gone(self, spool: Spool, directory: Path) -> None:
        for number in (1, 2):
            start(spool, "run")
            event(spool, "run", number)
            stop(spool, "run")
        spool.close()
        later = Spool(directory)
        later.maintain()
        (run,) = later.runs()
        first = seq_nums(run)
        assert "same uid" in later.refused["run"]
        later.remove(run)
        later.maintain()
        later._adopt_at = 0.0
        later.maintain()
        (run,) = later.runs()
        assert sorted([*first, *seq_nums(run)]) == [1, 2]
        assert later.refused == {}
        later.close()


class TestADirectoryThatFails:
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
        blocked.maintain()
        (run,) = blocked.runs()
        assert run.degraded
        assert blocked.degraded
        assert seq_nums(run) == [1]
        errors = [record.getMessage() for record in caplog.get_records("setup") if record.levelno >= logging.ERROR]
        assert any("cannot be written" in error and "kept in memory" in error for error in errors)
        assert directory.read_text() == "in the way"

    @pytest.mark.usefixtures("small_segments")
    def test_loses_nothing_when_it_can_be_used_again(
        self, blocked: Spool, directory: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        start(blocked, "run")
        for number in range(50):
            event(blocked, "run", number)
        directory.unlink()
        blocked.maintain()
        event(blocked, "run", 50)
        (run,) = blocked.runs()
        assert not run.degraded
        assert (blocked.problem, blocked.degraded) == ("", False)
        assert seq_nums(run) == list(range(51))
        assert [document.get("seq_num") for document in on_disk(directory, "run")[2:]] == list(range(51))
        assert "can be written again" in caplog.text

    def test_gives_no_more_bytes_from_memory_than_asked_for(self, blocked: Spool) -> None:
        start(blocked, "run")
        for number in range(10):
            event(blocked, "run", number, data=b"x" * 1000)
        (run,) = blocked.runs()
        assert [record.idx for record in run.read(2, 2000, 3500)] == [2, 3, 4]
        assert [record.idx for record in run.read(2, 2000, 1)] == [2]

    def test_can_be_removed_from(self, blocked: Spool) -> None:
        start(blocked, "run")
        blocked.remove(blocked.runs()[0])
        blocked.maintain()
        assert blocked.runs() == []
        assert not blocked.degraded

    @pytest.mark.usefixtures("small_segments")
    @pytest.mark.parametrize("names", ["kept", "deleted before", "deleted in between"])
    def test_since_it_was_deleted_in_mid_session_loses_nothing(
        self, spool: Spool, directory: Path, names: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        start(spool, "run")
        for number in range(30):
            event(spool, "run", number)
        if names != "deleted before":
            spool.maintain()
            for number in range(30, 40):
                event(spool, "run", number)
        first = sum(1 for _ in seq_nums(spool.runs()[0]))
        shutil.rmtree(directory)
        for number in range(first, first + 30):
            event(spool, "run", number)
        for _ in range(2):
            spool.maintain()
        event(spool, "run", first + 30)
        assert seq_nums(spool.runs()[0]) == list(range(first + 31))
        assert [document.get("seq_num") for document in on_disk(directory, "run")[2:]] == list(range(first + 31))
        assert spool.problem == ""
        # Another publisher sees that the session lives.
        other = Spool(directory)
        other.maintain()
        assert other.runs() == []
        other.close()

    @pytest.mark.usefixtures("small_segments")
    def test_with_an_error_of_each_kind_in_turn_loses_and_reorders_nothing(
        self, spool: Spool, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> Any:
            raise OSError(5, "Input/output error")

        start(spool, "run")
        number = 0
        for where in ("fdatasync", "rename", "posix_fallocate", "pwrite", "ftruncate", "open", "fsync", "scandir"):
            with monkeypatch.context() as failing:
                failing.setattr(os, where, fail)
                for _ in range(2):
                    for _ in range(40):
                        event(spool, "run", number)
                        number += 1
                    spool._adopt_at = 0.0
                    spool.maintain()
                assert spool.problem, where
                assert seq_nums(spool.runs()[0]) == list(range(number)), where
            spool._adopt_at = 0.0
            spool.maintain()
            assert spool.problem == "", where
            assert not spool.runs()[0].degraded
            assert len(on_disk(directory, "run")) == number + 2


class TestADisk:
    @pytest.fixture
    def small(self, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
        monkeypatch.setattr(spool_module, "FIRST_SEGMENT_BYTES", 20_000)
        monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 40_000)
        spool = Spool(small_disk / "spool")
        yield spool
        subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
        spool.close()

    def test_that_is_full_in_a_run_costs_no_document(self, small: Spool, small_disk: Path) -> None:
        start(small, "run")
        (run,) = small.runs()
        number = 0
        filling = fill(small_disk, leaving=100_000)
        while not run.degraded:
            event(small, "run", number, data=b"x" * 5000)
            number += 1
            small.maintain()
            assert number < 1000
        assert "No space" in small.problem
        assert seq_nums(run) == list(range(number))
        filling.unlink()
        event(small, "run", number)
        small.maintain()
        assert not run.degraded
        assert small.problem == ""
        assert seq_nums(run) == list(range(number + 1))
        assert len(on_disk(small.directory, "run")) == number + 3

    @pytest.mark.parametrize("left", [0, 4096, 20480, 32768])
    def test_that_is_full_at_the_start_of_a_run_costs_no_document(
        self, small: Spool, small_disk: Path, left: int
    ) -> None:
        start(small, "earlier")
        filling = fill(small_disk, leaving=left)
        start(small, "run")
        for number in range(40):
            event(small, "run", number, data=b"x" * 5000)
            small.maintain()
        _, run = small.runs()
        assert run.degraded
        filling.unlink()
        small.maintain()
        assert seq_nums(run) == list(range(40))
        assert not run.degraded
        assert len(on_disk(small.directory, "run")) == 42

    def test_that_is_full_costs_no_other_run_what_there_is_room_for(self, small: Spool, small_disk: Path) -> None:
        small.maintain()
        filling = fill(small_disk, leaving=0)
        for _ in range(5):
            start(small, f"used up {_}")
        start(small, "large")
        event(small, "large", 0, data=b"x" * 400_000)
        start(small, "small")
        filling.unlink()
        fill(small_disk, leaving=200_000)
        small.maintain()
        runs = {run.run_uid: run.degraded for run in small.runs()}
        assert runs["large"]
        assert not runs["small"]
        assert "No space" in small.problem
        (small_disk / "filling").unlink()

    def test_that_turns_read_only_costs_no_document(self, small: Spool, small_disk: Path) -> None:
        start(small, "run")
        for number in range(10):
            event(small, "run", number, data=b"x" * 5000)
        small.maintain()
        with pytest.MonkeyPatch.context() as failing:

            def refuse(*_: object) -> Any:
                raise OSError(30, "Read-only file system")

            # A disk with files that are mapped cannot be made that in a test.
            for name in ("rename", "posix_fallocate", "pwrite", "fdatasync", "ftruncate", "unlink"):
                failing.setattr(os, name, refuse)
            for number in range(10, 60):
                event(small, "run", number, data=b"x" * 5000)
            small.maintain()
            assert "Read-only" in small.problem
            assert seq_nums(small.runs()[0]) == list(range(60))
        small.maintain()
        assert not small.runs()[0].degraded
        assert small.problem == ""
        assert len(on_disk(small.directory, "run")) == 62


class TestHowLongFilesStay:
    @pytest.fixture
    def made(self, directory: Path, small_segments: None) -> Iterator[Callable[[int], Spool]]:
        spools: list[Spool] = []

        def make(limit: int) -> Spool:
            spools.append(Spool(directory, limit_bytes=limit))
            for run in ("open", "first", "second"):
                start(spools[0], run)
                for number in range(40):
                    event(spools[0], run, number)
                    spools[0].maintain()
                if run != "open":
                    stop(spools[0], run)
            spools[0].maintain()
            return spools[0]

        yield make
        for spool in spools:
            spool.close()

    @staticmethod
    def acknowledge(spool: Spool, *durable: str) -> None:
        for run in spool.runs():
            run.acknowledged = run.length
            run.is_durable = run.run_uid in durable

    def test_is_until_they_are_removed_below_the_limit(self, made: Callable[[int], Spool]) -> None:
        spool = made(10**9)
        self.acknowledge(spool, "first", "second")
        spool.maintain()
        assert [run.first for run in spool.runs()] == [0, 0, 0]

    def test_is_until_they_are_durable_without_a_limit(self, made: Callable[[int], Spool]) -> None:
        spool = made(0)
        assert [run.run_uid for run in spool.runs()] == ["open", "first", "second"]
        self.acknowledge(spool, "first", "second")
        spool.maintain()
        (run,) = spool.runs()
        assert run.run_uid == "open"
        assert run.first > 20
        assert [record.idx for record in run.read(run.first, 100, 2**20)][-1] == 41 or len(run._segments) == 1

    def test_beyond_the_limit_is_less_for_the_oldest_durable_run_first(self, made: Callable[[int], Spool]) -> None:
        spool = made(10**9)
        self.acknowledge(spool, "first", "second")
        spool._limit_bytes = sum(run.size for run in spool.runs()) - 1
        spool.maintain()
        assert [(run.run_uid, run.first) for run in spool.runs()] == [("open", 0), ("second", 0)]
        assert not list(spool.directory.glob("first.*"))

    def test_beyond_it_all_the_same_is_less_for_what_is_acknowledged_of_open_runs(
        self, made: Callable[[int], Spool]
    ) -> None:
        spool = made(10**9)
        self.acknowledge(spool, "first")
        spool._limit_bytes = 1
        spool.maintain()
        runs = {run.run_uid: run for run in spool.runs()}
        assert sorted(runs) == ["open", "second"]
        assert runs["open"].first > 20
        event(spool, "open", 40)
        assert [record.idx for record in runs["open"].read(42, 10, 1000)] == [42]

    def test_is_not_less_for_a_run_whose_file_is_not_yet_cut_to_its_length(
        self, made: Callable[[int], Spool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spool = made(10**9)
        start(spool, "third")
        stop(spool, "third")
        self.acknowledge(spool, "first", "second", "third")
        third = next(run for run in spool.runs() if run.run_uid == "third")
        spool._limit_bytes = sum(run.size for run in spool.runs() if run is not third) + third._segments[-1].end
        assert third._segments[-1].end < third._segments[-1].capacity
        monkeypatch.setattr(RunLog, "flush", lambda *_, **__: False)
        spool.maintain()
        assert [run.run_uid for run in spool.runs()] == ["open", "first", "second", "third"]

    def test_is_for_ever_for_what_is_not_acknowledged(self, made: Callable[[int], Spool]) -> None:
        spool = made(1)
        spool.maintain()
        assert [(run.run_uid, run.first) for run in spool.runs()] == [("open", 0), ("first", 0), ("second", 0)]

    def test_is_less_for_the_others_when_one_cannot_be_deleted(
        self, made: Callable[[int], Spool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spool = made(10**9)
        self.acknowledge(spool, "first", "second")
        unlink = Path.unlink

        def refuse_one(path: Path, missing_ok: bool = False) -> None:
            if path.name.startswith("first."):
                raise PermissionError(13, "Permission denied", str(path))
            unlink(path, missing_ok=missing_ok)

        for run in spool.runs()[1:]:
            spool.remove(run)
        with monkeypatch.context() as failing:
            failing.setattr(Path, "unlink", refuse_one)
            spool.maintain()
            assert "Permission denied" in spool.problem
            assert not list(spool.directory.glob("second.*"))
        spool.maintain()
        assert not list(spool.directory.glob("first.*"))
        assert spool.problem == ""


@pytest.mark.usefixtures("small_segments")
def test_a_run_that_stops_while_it_is_flushed_is_not_said_to_have_stopped_too_early(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stop may come into a further segment while the flusher looks at the one before."""
    start(spool, "run")
    event(spool, "run", 0)
    name_file = RunLog.name_file

    def go_on_meanwhile(run: RunLog, segment: Segment) -> bool:
        renamed = name_file(run, segment)
        if run.length < 10:
            for number in range(1, 100):
                event(spool, "run", number)
            stop(spool, "run")
        return renamed

    monkeypatch.setattr(RunLog, "name_file", go_on_meanwhile)
    spool.maintain()
    (run,) = spool.runs()
    assert len(run._segments) > 1
    assert not run._segments[0].stopped
    spool.maintain()
    assert [segment.stopped for segment in run._segments] == [False] * (len(run._segments) - 1) + [True]


def test_finished_runs_that_wait_keep_no_files_open(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(spool_module, "MAX_OPEN_SEGMENTS", 5)
    spool.maintain()
    before = psutil.Process().num_fds()
    for number in range(50):
        spool.append("start", {"uid": f"run-{number}"})
        spool.append("stop", {"run_start": f"run-{number}"})
        spool.maintain()
    assert psutil.Process().num_fds() - before <= 10
    assert [[record.name for record in run.read(0, 10, 1000)] for run in spool.runs()] == [["start", "stop"]] * 50
    assert psutil.Process().num_fds() - before <= 10


def test_a_file_whose_sync_failed_is_not_trusted_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(directory)
    start(spool, "run")
    spool.maintain()
    (run,) = spool.runs()
    (before,) = (path.stat().st_ino for path in run.files)
    event(spool, "run", 1)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as failing:
        failing.setattr(os, "fdatasync", fail)
        spool.maintain()
        assert "Input/output error" in spool.problem
    spool.maintain()
    (after,) = (path.stat().st_ino for path in run.files)
    assert after != before
    assert spool.problem == ""
    assert seq_nums(run) == [1]
    spool.close()
    (file,) = run_files(directory)
    with open_run(file) as left:
        assert (left.length, left.damage()) == (3, [])
