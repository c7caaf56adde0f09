"""What dead sessions left is taken over, whole and once; whatever is not ours stays, and is named."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from paths import SUPPORT
from segments import record, segment_with
from spools import event, on_disk, seq_nums, start, stop

from tiledbroker import SpoolDamaged, run_files
from tiledbroker.log._identity import new_session
from tiledbroker.log._segment import Segment
from tiledbroker.log._spool_files import lock_path, sort_segments, spare_path
from tiledbroker.publisher import _adoption
from tiledbroker.publisher import _spool as spool_module
from tiledbroker.publisher._spool import Adoption, Spool

HERE = "tcp://here:5579"
NOBODY = 65534


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool_for(directory: Path) -> Iterator[Callable[..., Spool]]:
    """Makes spools, as later publishers do, which have looked through the directory."""
    made: list[Spool] = []

    def make(destination: str = HERE, adopt: Adoption = "own") -> Spool:
        made.append(Spool(directory, destination=destination, adopt=adopt))
        look(made[-1])
        return made[-1]

    yield make
    for spool in made:
        spool.close()


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "FIRST_SEGMENT_BYTES", 1000)
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(spool_module, "MAX_OPEN_SEGMENTS", 0)


def look(spool: Spool) -> None:
    spool._adopt_at = 0.0
    spool.maintain()
    while spool._left.has_more:
        spool.maintain()


def leave(directory: Path, *runs: str, events: int = 3, stopped: bool = True, destination: str = HERE) -> None:
    """Leave runs by a session that ends in good order."""
    spool = Spool(directory, destination=destination)
    for run in runs:
        start(spool, run)
        for number in range(events):
            event(spool, run, number)
            spool.maintain()
        if stopped:
            stop(spool, run)
    spool.close()


SESSION = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from spools import *
from tiledbroker.publisher import _spool
_spool.FIRST_SEGMENT_BYTES, _spool.SEGMENT_BYTES = 1000, 2000
spool = Spool(Path(sys.argv[1]), destination="tcp://here:5579")
"""


def session(directory: Path, code: str, **environment: str) -> subprocess.Popen[str]:
    """A session in a process of its own."""
    text = SESSION + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", text, str(directory), str(SUPPORT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def killed_session(directory: Path, code: str, **environment: str) -> None:
    with session(directory, code, **environment) as process:
        assert process.wait(60) == -signal.SIGKILL


def files_of(directory: Path, run: str) -> list[Path]:
    return sorted(directory.glob(f"{run}.*.segment"))


class TestARunThatWasLeft:
    @pytest.mark.parametrize("stopped", [True, False])
    def test_is_taken_over(self, directory: Path, spool_for: Callable[..., Spool], stopped: bool) -> None:
        leave(directory, "a", "B is no file name", events=60, stopped=stopped)
        spool = spool_for()
        assert sorted(run.run_uid for run in spool.runs()) == ["B is no file name", "a"]
        assert {(run.stopped, run.abandoned, run.is_adopted, run.damage) for run in spool.runs()} == {
            (stopped, not stopped, True, "")
        }
        assert [seq_nums(run) for run in spool.runs()] == [list(range(60))] * 2
        assert spool.refused == {}

    def test_is_gone_with_its_session_once_it_is_removed(
        self, directory: Path, spool_for: Callable[..., Spool]
    ) -> None:
        killed_session(directory, 'start(spool, "run"); os.kill(os.getpid(), signal.SIGKILL)')
        spool = spool_for()
        spool.remove(spool.runs()[0])
        look(spool)
        spool.close()
        assert list(directory.iterdir()) == []

    def test_stays_if_nothing_comes_of_it(self, directory: Path, spool_for: Callable[..., Spool]) -> None:
        leave(directory, "run", events=60)
        spool_for().close()
        assert len(on_disk(directory, "run")) == 63
        assert seq_nums(spool_for().runs()[0]) == list(range(60))

    def test_is_taken_over_the_longest_unchanged_first(self, directory: Path, spool_for: Callable[..., Spool]) -> None:
        leave(directory, "first", "second", "third")
        for age, run in enumerate(("third", "second", "first")):
            os.utime(files_of(directory, run)[0], (1e9 - age, 1e9 - age))
        assert [run.run_uid for run in spool_for().runs()] == ["first", "second", "third"]

    @pytest.mark.parametrize("maintained", ["never", "once", "always"])
    def test_by_a_kill_is_taken_over_and_what_lives_is_left_alone(
        self, directory: Path, spool_for: Callable[..., Spool], maintained: str
    ) -> None:
        events = 100 if maintained == "always" else 20
        code = f"""
            start(spool, "theirs")
            for number in range({events}):
                event(spool, "theirs", number)
                if {maintained == "always"} or ({maintained == "once"} and number == 5):
                    spool.maintain()
            print("ready", flush=True)
            sys.stdin.read()
        """
        with session(directory, code) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                spool = spool_for()
                start(spool, "ours")
                look(spool)
                assert [run.run_uid for run in spool.runs()] == ["ours"]
                assert spool.refused == {}
                assert len(on_disk(directory, "theirs")) == events + 2
            finally:
                process.kill()
        look(spool)
        ours, theirs = spool.runs()
        assert (ours.run_uid, theirs.run_uid) == ("ours", "theirs")
        assert seq_nums(theirs) == list(range(events))
        # What it had not begun to use is gone.
        assert len(list(directory.glob(".spare-*"))) <= spool_module.SPARE_SEGMENTS + 1
        look(spool)
        assert len(spool.runs()) == 2

    def test_by_a_session_of_this_process_is_taken_over_when_it_is_closed(
        self, directory: Path, spool_for: Callable[..., Spool]
    ) -> None:
        other = Spool(directory, destination=HERE)
        start(other, "theirs")
        spool = spool_for()
        assert spool.runs() == []
        other.close()
        look(spool)
        assert len(spool.runs()) == 1

    def test_is_taken_over_without_the_lock_file_of_its_session(
        self, directory: Path, spool_for: Callable[..., Spool]
    ) -> None:
        killed_session(directory, 'start(spool, "run"); os.kill(os.getpid(), signal.SIGKILL)')
        for lock in directory.glob(".session-*"):
            lock.unlink()
        assert [run.run_uid for run in spool_for().runs()] == ["run"]

    def test_is_taken_over_by_one_of_several(self, directory: Path, spool_for: Callable[..., Spool]) -> None:
        leave(directory, "run")
        assert [len(spool_for().runs()) for _ in range(3)] == [1, 0, 0]

    def test_without_a_document_is_deleted(self, directory: Path, spool_for: Callable[..., Spool]) -> None:
        directory.mkdir()
        segment_with(directory / "run.0123abcd.000000000000.segment", destination=HERE, session="0").detach()
        spool = spool_for()
        assert (spool.runs(), spool.refused) == ([], {})
        assert run_files(directory) == []

    def test_is_not_taken_over_beside_one_of_its_uid(self, directory: Path, spool_for: Callable[..., Spool]) -> None:
        leave(directory, "run")
        leave(directory, "run", events=5)
        spool = spool_for()
        (run,) = spool.runs()
        assert "same uid" in spool.refused["run"]
        other = {3: 5, 5: 3}[len(seq_nums(run))]
        spool.remove(run)
        look(spool)
        look(spool)
        (run,) = spool.runs()
        assert len(seq_nums(run)) == other
        assert spool.refused == {}

    @pytest.mark.parametrize("segments_left", [1, 2, 3])
    def test_by_a_kill_in_the_middle_of_its_deletion_is_deleted(
        self, directory: Path, spool_for: Callable[..., Spool], segments_left: int
    ) -> None:
        code = f"""
            from tiledbroker.log import _run_log
            start(spool, "run")
            for number in range(40):
                event(spool, "run", number)
                spool.maintain()
            stop(spool, "run")
            spool.maintain()
            run, = spool.runs()
            def crash_point(name):
                if len(run._segments) == {segments_left}:
                    os.kill(os.getpid(), signal.SIGKILL)
            _run_log.crash_point = crash_point
            spool.remove(run)
            spool.maintain()
        """
        killed_session(directory, code)
        assert len(files_of(directory, "run")) == segments_left
        spool = spool_for()
        assert (spool.runs(), spool.refused) == ([], {})
        assert files_of(directory, "run") == []

    def test_is_only_part_of_many(
        self, directory: Path, spool_for: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_adoption, "ADOPTED_AT_ONCE", 3)
        leave(directory, *(f"run-{number}" for number in range(10)))
        spool = Spool(directory, destination=HERE)
        counts = []
        while not counts or spool._left.has_more:
            spool.maintain()
            counts.append(len(spool.runs()))
        assert counts == [3, 6, 9, 10]
        spool.close()

    def test_of_many_sessions_keeps_the_number_of_open_files_small(
        self, directory: Path, spool_for: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(40):
            leave(directory, f"run-{number}")
        before = psutil.Process().num_fds()
        spool = spool_for()
        assert len(spool.runs()) == 40
        assert spool.refused == {}
        # Of the spare segments, the session's lock, and that of the publisher that takes over.
        assert psutil.Process().num_fds() - before <= 2 * spool_module.SPARE_SEGMENTS + 2

    def test_is_left_to_the_publisher_that_ships_it_already(
        self, directory: Path, spool_for: Callable[..., Spool]
    ) -> None:
        leave(directory, "run")
        first = spool_for()
        second = Spool(directory, destination=HERE)
        second.maintain()
        assert [len(spool.runs()) for spool in (first, second)] == [1, 0]
        first.close()
        look(second)
        assert [run.run_uid for run in second.runs()] == ["run"]
        second.close()


class TestWhatIsNotOurs:
    def rewrite(self, directory: Path, **changed: str) -> None:
        """Have another host, say, have made what is there."""
        for path in directory.glob("*.segment"):
            loaded = Segment.load(path)
            assert loaded.header is not None
            records = loaded.read(loaded.first, 1000, 2**20)
            path.unlink()
            fields = msgspec.structs.asdict(loaded.header) | changed
            del fields["first"]
            again = segment_with(path, *records, **fields)
            again.seal(stopped=loaded.stopped)
            again.detach()

    def test_is_left_to_a_publisher_for_its_address(self, directory: Path, spool_for: Callable[..., Spool]) -> None:
        leave(directory, "run", destination="tcp://elsewhere:5579")
        spool = spool_for()
        assert spool.runs() == []
        assert "published for tcp://elsewhere:5579" in spool.refused["run"]
        assert [run.run_uid for run in spool_for(HERE, "any-destination").runs()] == ["run"]

    def test_is_left_to_its_host(self, directory: Path, spool_for: Callable[..., Spool]) -> None:
        leave(directory, "run")
        self.rewrite(directory, host="another-host")
        for adopt in ("own", "any-destination"):
            spool = spool_for(HERE, adopt)
            assert spool.runs() == []
            assert "another-host" in spool.refused["run"]
        assert [run.run_uid for run in spool_for(HERE, "any-host").runs()] == ["run"]

    @pytest.mark.skipif(os.getuid() != 0, reason="only root can make files of somebody else")
    def test_is_what_somebody_else_has_made(self, directory: Path, tmp_path: Path) -> None:
        leave(directory, "mine", "theirs")
        directory.chmod(0o777)
        for parent in (directory, *directory.parents[:5]):
            parent.chmod(parent.stat().st_mode | 0o055)
        for path in files_of(directory, "mine"):
            os.chown(path, NOBODY, NOBODY)
        theirs = {path: path.read_bytes() for path in files_of(directory, "theirs")}
        code = """
            import json
            spool.maintain()
            print(json.dumps([[run.run_uid for run in spool.runs()], spool.refused, spool.problem]), flush=True)
            spool.close()
        """
        become = f"os.setgid({NOBODY}); os.setuid({NOBODY})\nspool = Spool("
        text = SESSION.replace("spool = Spool(", become) + textwrap.dedent(code)
        command = [sys.executable, "-c", text, str(directory), str(SUPPORT)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        adopted, refused, problem = msgspec.json.decode(done.stdout)
        assert (adopted, problem) == (["mine"], "")
        assert "Permission denied" in refused["theirs"]
        assert {path: path.read_bytes() for path in files_of(directory, "theirs")} == theirs

    def test_is_named_whatever_it_is(self, directory: Path, spool_for: Callable[..., Spool]) -> None:
        directory.mkdir()
        leave(directory, "run")

        def name(uid: str) -> Path:
            return directory / f"{uid}.0123456{len(list(directory.iterdir())) % 10}.000000000000.segment"

        name("a-directory").mkdir()
        name("garbage").write_bytes(b"garbage " * 1000)
        name("empty").touch()
        name("zeros").write_bytes(bytes(5000))
        name("loop").symlink_to(name("loop").name)
        (directory / "no.segment").write_bytes(b"garbage")
        (directory / "x.0123abcd.5.segment").write_bytes(b"garbage")
        (directory / "something").mkdir()
        os.mkfifo(directory / "pipe.0123abcd.000000000000.segment")
        os.mkfifo(directory / ".spare-0123-1.segment")
        before = sorted(path.name for path in directory.iterdir() if not path.name.startswith(".session"))
        spool = spool_for()
        assert [run.run_uid for run in spool.runs()] == ["run"]
        strays = {"no.segment", "x.0123abcd.5.segment"}
        assert set(spool.refused) >= {"a-directory", "garbage", "empty", "zeros", "loop", *strays}
        assert all(str(directory) in reason for reason in spool.refused.values())
        assert spool.problem == ""
        spool.close()
        after = sorted(path.name for path in directory.iterdir())
        assert after == before

    def test_is_a_spare_whose_beginning_is_damaged(self, directory: Path, spool_for: Callable[..., Spool]) -> None:
        killed_session(directory, 'start(spool, "run"); os.kill(os.getpid(), signal.SIGKILL)')
        (used,) = [path for path in directory.glob(".spare-*") if sort_segments([path]).logs]
        used.write_bytes(b"X" + used.read_bytes()[1:])
        spool = spool_for()
        assert spool.runs() == []
        assert used.name in " ".join(spool.refused.values())
        assert used.exists()

    def test_is_not_what_a_kill_left_of_a_file_that_was_being_made(
        self, directory: Path, spool_for: Callable[..., Spool]
    ) -> None:
        directory.mkdir()
        session = new_session().session
        for number, size in enumerate((0, 10, 60, 5000)):
            spare_path(directory, session, number).write_bytes(bytes(size))
        lock_path(directory, session).touch()
        spool_for().close()
        assert list(directory.iterdir()) == []


class TestSegmentsOfOneRun:
    @pytest.fixture
    def left(self, directory: Path) -> list[Path]:
        leave(directory, "run", events=60)
        files = files_of(directory, "run")
        assert len(files) >= 4
        return files

    def shippable(self, spool: Spool) -> list[int]:
        """What is shipped of the run before it is refused; that it is refused."""
        (run,) = spool.runs()
        assert run.damage
        assert not run.stopped
        assert run.abandoned
        numbers = []
        try:
            numbers = seq_nums(run)
        except SpoolDamaged:
            return numbers
        return numbers

    @pytest.mark.parametrize("missing", [1, 2, -1])
    def test_that_are_missing_end_what_is_believed(
        self, directory: Path, left: list[Path], spool_for: Callable[..., Spool], missing: int
    ) -> None:
        first = Segment.load(left[missing]).first
        left[missing].unlink()
        spool = spool_for()
        (run,) = spool.runs()
        assert run.length == first
        assert seq_nums(run) == list(range(first - 2))
        assert not run.stopped
        if missing != -1:
            assert left[missing + 1].name in run.damage
            assert "does not continue" in run.damage

    def test_that_are_missing_at_the_beginning_are_told_by_the_first_index(
        self, directory: Path, left: list[Path], spool_for: Callable[..., Spool]
    ) -> None:
        left[0].unlink()
        (run,) = spool_for().runs()
        assert run.first > 0
        assert run.stopped
        assert seq_nums(run)[-1] == 59

    def test_of_another_run_under_their_name_are_not_believed(
        self, directory: Path, left: list[Path], spool_for: Callable[..., Spool]
    ) -> None:
        leave(directory, "other", events=60)
        others = files_of(directory, "other")
        mine, theirs = left[1].read_bytes(), others[1].read_bytes()
        left[1].write_bytes(theirs)
        others[1].write_bytes(mine)
        spool = spool_for()
        assert len(spool.runs()) == 2
        for run in spool.runs():
            assert run.damage
            assert run.length == Segment.load(left[1]).first or run.length == Segment.load(others[1]).first
        assert (left[1].read_bytes(), others[1].read_bytes()) == (theirs, mine)

    def test_of_another_run_under_the_first_name_are_not_believed(
        self, directory: Path, left: list[Path], spool_for: Callable[..., Spool]
    ) -> None:
        leave(directory, "other", events=60)
        others = files_of(directory, "other")
        contents = {path: path.read_bytes() for path in (*left, *others)}
        contents[left[0]] = contents[others[0]]
        left[0].write_bytes(contents[left[0]])
        spool = spool_for()
        assert [run.run_uid for run in spool.runs()] == ["other"]
        assert seq_nums(spool.runs()[0]) == list(range(60))
        assert "should be called" in spool.refused["run"]
        assert {path: path.read_bytes() for path in contents} == contents

    def test_as_they_were_some_time_ago_end_what_is_believed(
        self, directory: Path, spool_for: Callable[..., Spool]
    ) -> None:
        spool = Spool(directory, destination=HERE)
        start(spool, "run")
        spool.maintain()
        (path,) = files_of(directory, "run")
        shutil.copy(path, directory.parent / "copy")
        for number in range(60):
            event(spool, "run", number)
            spool.maintain()
        spool.close()
        shutil.copy(directory.parent / "copy", path)
        (run,) = spool_for().runs()
        assert run.length == 2
        assert "does not continue" in run.damage

    def test_in_a_copy_beside_them_do_not_count_twice(
        self, directory: Path, left: list[Path], spool_for: Callable[..., Spool]
    ) -> None:
        shutil.copy(left[1], directory / f"{left[1].name} (copy)")
        shutil.copy(left[1], left[1].with_name(left[1].name.replace(".segment", "-copy.segment")))
        spool = spool_for()
        (run,) = spool.runs()
        assert (run.damage, run.stopped) == ("", True)
        assert seq_nums(run) == list(range(60))
        (reason,) = spool.refused.values()
        assert "copy of" in reason

    @pytest.mark.parametrize("number", [0, 1, -1])
    def test_of_which_one_has_another_name_are_left_and_named(
        self, directory: Path, left: list[Path], spool_for: Callable[..., Spool], number: int
    ) -> None:
        proper = left[number].name
        left[number].rename(directory / "renamed.segment")
        contents = {path: path.read_bytes() for path in directory.iterdir()}
        spool = spool_for()
        assert spool.runs() == []
        assert "renamed.segment" in spool.refused["run"]
        assert f"should be called {proper}" in spool.refused["run"]
        assert {path: path.read_bytes() for path in contents} == contents
        (directory / "renamed.segment").rename(directory / proper)
        look(spool)
        assert seq_nums(spool.runs()[0]) == list(range(60))
        assert spool.refused == {}

    def test_in_a_spare_that_was_copied_replace_nothing(
        self, directory: Path, left: list[Path], spool_for: Callable[..., Spool]
    ) -> None:
        session = Segment.load(left[-1]).header.session  # type: ignore[union-attr]
        shutil.copy(left[-1], directory / f".spare-{session}-7.segment")
        with left[-1].open("r+b") as file:
            file.seek(-3, 2)
            file.write(b"XXX")
        contents = left[-1].read_bytes()
        spool_for().close()
        assert left[-1].read_bytes() == contents


def test_what_a_power_cut_tore_is_shipped_as_far_as_it_goes(directory: Path, spool_for: Callable[..., Spool]) -> None:
    directory.mkdir()
    path = directory / "run.0123abcd.000000000000.segment"
    segment_with(
        path, *(record(idx) for idx in range(5)), destination=HERE, session="0", boot="an earlier one"
    ).detach()
    contents = path.read_bytes()
    end = contents.rindex(b"body")
    path.write_bytes(contents[: end + 1] + bytes(len(contents) - end - 1))
    (run,) = spool_for().runs()
    assert (run.length, run.damage, run.abandoned) == (4, "", True)


def test_a_file_that_was_being_replaced_when_its_session_was_killed_counts_once(
    directory: Path, spool_for: Callable[..., Spool]
) -> None:
    directory.mkdir()
    records = [record(idx) for idx in range(5)]
    path = directory / "run.0123abcd.000000000000.segment"
    session = new_session().session
    segment_with(path, *records[:3], destination=HERE, session=session).detach()
    copy = spare_path(directory, session, 7)
    segment_with(copy, *records, destination=HERE, session=session).detach()
    (run,) = spool_for().runs()
    assert (run.length, run.damage, run.files) == (5, "", [path])
    assert not copy.exists()
