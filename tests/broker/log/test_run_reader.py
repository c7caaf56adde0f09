"""Tools read a run wherever it is, beside whoever writes it, and say what is wrong with it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from segments import record, segment_with
from spools import event, start, stop

from tiledbroker import Journal, JournalInvalid, SpoolDamaged, SpooledRun, open_run, run_files
from tiledbroker.log import unrouted_files
from tiledbroker.publisher import _spool as spool_module
from tiledbroker.publisher._spool import Spool


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spool]:
    monkeypatch.setattr(spool_module, "FIRST_SEGMENT_BYTES", 1000)
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 2000)
    spool = Spool(tmp_path / "spool", destination="tcp://here:5579")
    yield spool
    spool.close()


@pytest.fixture
def directory(spool: Spool) -> Path:
    return spool.directory


def indexes(run: SpooledRun) -> list[int]:
    return [each.idx for each in run.records()]


class TestASpooledRun:
    def test_grows_while_it_is_read(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        spool.maintain()
        (path,) = run_files(directory)
        with SpooledRun(path) as run:
            assert (run.run_uid, run.destination, run.holder.pid) == ("run", "tcp://here:5579", os.getpid())
            assert (run.length, run.being_written, run.ended) == (2, True, False)
            for number in range(60):
                event(spool, "run", number)
                spool.maintain()
            assert indexes(run) == [0, 1]
            assert run.refresh() == 62
            assert indexes(run) == list(range(62))
            assert [each.idx for each in run.read(5, 3)] == [5, 6, 7]
            stop(spool, "run")
            assert run.refresh() == 63
            assert (run.stopped, run.ended, run.abandoned) == (True, True, False)
            assert run.names() == {"start": 1, "descriptor": 1, "event": 60, "stop": 1}
            assert run.damage() == []
            assert (run.get("outcome", ""), run.progress(), run.history()) == ("", {}, [])

    def test_is_there_before_its_file_has_its_name(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        (path,) = run_files(directory)
        assert not path.exists()
        assert list(directory.glob(".spare-*"))
        with open_run(path) as run:
            assert (run.run_uid, run.length) == ("run", 2)

    def test_without_a_stop_is_abandoned_once_its_session_is_gone(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        spool.close()
        with open_run(run_files(directory)[0]) as run:
            assert (run.abandoned, run.ended, run.stopped) == (True, True, False)

    def test_gives_what_is_sound_and_then_says_what_is_not(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        for number in range(60):
            event(spool, "run", number)
            spool.maintain()
        spool.close()
        third = sorted(directory.glob("run.*"))[2]
        contents = bytearray(third.read_bytes())
        contents[contents.rindex(b"TWR1") + 40] ^= 1
        third.write_bytes(contents)
        with SpooledRun(run_files(directory)[0]) as run:
            read = []
            with pytest.raises(SpoolDamaged, match=third.name):
                read += [read.append(each.idx) for each in run.records()]  # type: ignore[func-returns-value]
            assert read == list(range(len(read)))
            assert len(read) > 20
            assert third.name in run.damage()[0]
            assert sum(run.names().values()) == len(read)

    def test_that_goes_on_in_a_segment_that_is_missing_says_so(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        for number in range(60):
            event(spool, "run", number)
            spool.maintain()
        spool.close()
        second = sorted(directory.glob("run.*"))[1]
        second.unlink()
        with SpooledRun(run_files(directory)[0]) as run:
            assert len(run.damage()) == 1
            assert not run.stopped

    def test_whose_first_documents_were_given_up_begins_later(self, spool: Spool, directory: Path) -> None:
        start(spool, "run")
        for number in range(60):
            event(spool, "run", number)
            spool.maintain()
        spool.runs()[0].forget_before(30)
        with SpooledRun(run_files(directory)[0]) as run:
            assert run.length == 62
            assert indexes(run) == list(range(spool.runs()[0].first, 62))
            assert indexes(run)[0] > 0


class TestADirectory:
    def test_has_one_file_for_each_run_of_any_kind(self, spool: Spool, directory: Path) -> None:
        for uid in ("a", "b"):
            start(spool, uid)
            for number in range(60):
                event(spool, uid, number)
                spool.maintain()
        event(spool, "of no known run", 1)
        spool.maintain()
        Journal(directory / "c.sqlite", "create", run_uid="c").close()
        os.mkfifo(directory / "pipe.0123abcd.000000000000.segment")
        (directory / "d.0123abcd.000000000000.segment.copy").touch()
        uids = []
        for path in run_files(directory):
            with open_run(path) as run:
                uids.append(run.run_uid)
        assert uids == ["a", "b", "c"]

    def test_that_is_not_there_is_an_error(self, directory: Path) -> None:
        with pytest.raises(FileNotFoundError):
            run_files(directory / "missing")


@pytest.mark.parametrize("contents", [b"", b"garbage " * 100, bytes(5000)])
def test_a_file_that_is_no_segment_is_invalid(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "run.0123abcd.000000000000.segment"
    path.write_bytes(contents)
    with pytest.raises(JournalInvalid, match=path.name):
        open_run(path)


@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_the_end_of_a_session_of_another_host_is_not_known(tmp_path: Path, host: str) -> None:
    path = tmp_path / "run.0123abcd.000000000000.segment"
    segment_with(path, record(0), host=host, session="deadbeef01234567").detach()
    with open_run(path) as run:
        if host == "elsewhere":
            with pytest.raises(OSError, match="elsewhere may be alive"):
                run.being_written  # noqa: B018
            assert (run.abandoned, run.ended) == (False, False)
        else:
            assert (run.being_written, run.abandoned, run.ended) == (False, True, True)


@pytest.mark.parametrize("contents", [b"garbage " * 100, bytes(5000)])
def test_a_run_whose_first_segment_has_no_header_is_invalid(tmp_path: Path, contents: bytes) -> None:
    first, second = (tmp_path / f"run.0123abcd.{idx:012d}.segment" for idx in (0, 4))
    segment_with(second, record(4)).detach()
    first.write_bytes(contents)
    with pytest.raises(JournalInvalid, match=first.name):
        open_run(second)


def test_a_segment_under_any_name_can_be_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "copy.segment"
    segment_with(path, record(0), record(1)).detach()
    with open_run(path) as run:
        assert (run.run_uid, run.length) == ("run", 2)


def test_a_run_whose_segment_has_another_name_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "renamed.segment"
    segment_with(path, record(0), record(1)).detach()
    (file,) = run_files(tmp_path)
    with open_run(file) as run:
        assert isinstance(run, SpooledRun)
        assert (run.run_uid, run.length, run.path) == ("run", 2, path)
        assert run.misnamed == f"{path}: it should be called {file.name}"


def test_a_copy_of_a_segment_is_listed_beside_its_run(tmp_path: Path) -> None:
    path, copy = tmp_path / "run.0123abcd.000000000000.segment", tmp_path / "copy.segment"
    segment_with(path, record(0), record(1)).detach()
    copy.write_bytes(path.read_bytes())
    assert set(run_files(tmp_path)) == {path, copy}
    for file, misnamed in ((path, ""), (copy, f"{copy}: it is a copy of {path.name}, which is there as well")):
        with open_run(file) as run:
            assert isinstance(run, SpooledRun)
            assert run.misnamed == misnamed


@pytest.mark.parametrize("name", [".spare-0123456789abcdef-0.segment", "renamed.segment"])
@pytest.mark.parametrize("contents", [b"garbage " * 100, b"garbage"])
def test_a_segment_that_cannot_be_assigned_to_a_run_is_listed(tmp_path: Path, name: str, contents: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(contents)
    assert run_files(tmp_path) == [path]
    with pytest.raises(JournalInvalid, match=name):
        open_run(path)


def test_a_spare_that_no_run_uses_is_not_listed(tmp_path: Path) -> None:
    for number, size in enumerate((0, 10, 60, 5000)):
        (tmp_path / f".spare-0123456789abcdef-{number}.segment").write_bytes(bytes(size))
    assert run_files(tmp_path) == []


def test_documents_of_no_known_run_are_found_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / ".spare-0123456789abcdef-0.segment"
    segment_with(path, record(0), shipped=False).detach()
    assert (run_files(tmp_path), unrouted_files(tmp_path)) == ([], [path])


def test_a_run_is_found_whose_file_is_named_after_it_was_listed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append("start", {"uid": "run", "time": 1.0})
    (file,) = run_files(tmp_path)
    assert not file.exists()
    with open_run(file) as run:
        assert (run.run_uid, run.length) == ("run", 1)
        spool.append("stop", {"uid": "stop", "run_start": "run"})
        spool.maintain()
        assert file.exists()
        assert run_files(tmp_path) == [file]
        assert run.refresh() == 2
    spool.close()
