"""A segment has every record that was appended to it, however its process ended, and says so when it has not."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from disks import fill
from paths import SUPPORT
from segments import contents_of, header, record, segment_with

from tiledbroker import SpoolDamaged
from tiledbroker.log._segment import Segment, read_header, record_size, segment_size


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.segment"


class TestASegment:
    def test_has_what_was_appended(self, path: Path) -> None:
        records = [record(7, b"", "start"), record(8, bytes(range(256)) * 4), record(9, b"TWR1" * 5, "stop")]
        segment = segment_with(path, *records)
        assert contents_of(path) == (records, "")
        assert (segment.first, segment.next, segment.count) == (7, 10, 3)
        assert segment.read(7, 10, 2**20) == records
        segment.detach()
        assert segment.read(8, 10, 2**20) == records[1:]
        assert contents_of(path) == (records, "")

    def test_takes_exactly_as_much_as_there_is_room_for(self, path: Path) -> None:
        size = segment_size(2 * record_size("event", b"body"), header())
        segment = segment_with(path, record(0), record(1), capacity=size)
        assert not segment.append(2, "event", 0.0, 0, b"")
        assert contents_of(path) == ([record(0), record(1)], "")
        segment.detach()

    def test_gives_no_more_than_asked_for(self, path: Path) -> None:
        segment = segment_with(path, *(record(idx, b"x" * 100) for idx in range(10)))
        segment.detach()
        assert [each.idx for each in segment.read(2, 3, 10**6)] == [2, 3, 4]
        assert [each.idx for each in segment.read(2, 10, 350)] == [2, 3, 4]
        assert [each.idx for each in segment.read(2, 10, 1)] == [2]
        assert [each.idx for each in segment.read(0, 1, 1)] == [0]
        assert [each.idx for each in segment.read(9, 10, 10**6)] == [9]
        assert segment.read(10, 10, 10**6) == []

    def test_is_really_there_and_readable_by_its_owner_only(self, path: Path) -> None:
        segment_with(path, capacity=300_000).detach()
        status = path.stat()
        assert (status.st_size, stat.S_IMODE(status.st_mode)) == (300_000, 0o600)
        assert status.st_blocks * 512 >= 300_000

    def test_is_mapped_where_a_run_begins(self, tmp_path: Path) -> None:
        def faults_of_beginning(number: int) -> int:
            segment = Segment.create(tmp_path / f"{number}.segment", 2**20)
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            segment.begin(header())
            segment.append(0, "start", 1.7e9, 0, b"x" * 4096)
            return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

        # Python itself maps memory now and then.
        assert min(faults_of_beginning(number) for number in range(5)) == 0

    def test_never_replaces_a_file(self, path: Path) -> None:
        path.write_bytes(b"somebody's")
        with pytest.raises(FileExistsError):
            Segment.create(path, 1000)
        assert path.read_bytes() == b"somebody's"

    def test_is_an_error_and_no_signal_on_a_full_disk(self, small_disk: Path) -> None:
        fill(small_disk, leaving=20_000)
        with pytest.raises(OSError, match="No space"):
            Segment.create(small_disk / "run.segment", 100_000)
        assert not (small_disk / "run.segment").exists()

    def test_can_be_made_where_space_cannot_be_reserved(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: int) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "posix_fallocate", refuse)
        segment_with(path, record(0), capacity=3 * 2**20 + 5).detach()
        assert path.stat().st_size == 3 * 2**20 + 5
        assert contents_of(path) == ([record(0)], "")

    def test_that_no_run_has_begun_to_use_has_no_header_and_no_damage(self, path: Path) -> None:
        Segment.create(path, 1000).detach()
        assert read_header(path) == (None, "")
        loaded = Segment.load(path)
        assert (loaded.header, loaded.damage) == (None, "")

    def test_of_a_newer_version_is_said_to_be_that(self, path: Path) -> None:
        segment_with(path, record(0)).detach()
        path.write_bytes(path.read_bytes().replace(b"TWSEG001", b"TWSEG002"))
        assert read_header(path) == (None, "it was written by a newer version; upgrade tiledwriter")

    def test_moves_from_memory_into_a_file(self, path: Path) -> None:
        segment = Segment.in_memory(1000)
        segment.begin(header())
        segment.append(0, "event", 1e9, record(0).crc, b"body")
        target = Segment.create(path, 1000)
        position = segment.copy_to(target, 0)
        segment.append(1, "event", 1e9 + 1, record(1).crc, b"body")
        segment.copy_to(target, position)
        segment.exchange(target)
        target.delete()
        segment.append(2, "event", 1e9 + 2, record(2).crc, b"body")
        assert segment.path == path
        assert contents_of(path) == ([record(idx) for idx in range(3)], "")
        segment.detach()


class TestASealedSegment:
    @pytest.mark.parametrize("stopped", [False, True])
    def test_says_how_much_it_holds_and_gives_the_rest_back(self, path: Path, stopped: bool) -> None:
        segment = segment_with(path, record(0), record(1), capacity=100_000)
        segment.seal(stopped=stopped)
        assert path.stat().st_size == segment.end < 1000
        loaded = Segment.load(path)
        assert (loaded.sealed, loaded.stopped, loaded.count, loaded.damage) == (True, stopped, 2, "")
        assert contents_of(path) == ([record(0), record(1)], "")
        assert segment.read(0, 10, 1000) == [record(0), record(1)]
        segment.detach()

    def test_that_ends_at_the_end_of_a_page_can_be_read_through_its_mapping(self, path: Path) -> None:
        """What lies behind is beyond the end of the file: touching it would end the process."""
        room = 4096 - segment_size(0, header())
        body = b"x" * (room - record_size("event", b""))
        segment = segment_with(path, record(0, body), capacity=100_000)
        segment.seal(stopped=False)
        assert path.stat().st_size == 4096
        assert segment.read(0, 10, 2**20) == [record(0, body)]
        assert segment.read(1, 10, 2**20) == []
        segment.detach()

    def test_that_is_marked_as_removed_says_so(self, path: Path) -> None:
        segment = segment_with(path, record(0), record(1, name="stop"))
        segment.seal(stopped=True)
        segment.detach()
        assert not Segment.load(path).removed
        segment.mark_as_removed()
        loaded = Segment.load(path)
        assert (loaded.removed, loaded.stopped, loaded.count) == (True, True, 2)

    def test_that_lost_its_end_is_damaged(self, path: Path) -> None:
        segment = segment_with(path, record(0), record(1))
        segment.seal(stopped=True)
        segment.detach()
        os.truncate(path, segment.end - 1)
        records, damage = contents_of(path)
        assert records == [record(0)]
        assert "when it was finished" in damage
        assert not Segment.load(path).stopped


class TestAKill:
    CODE = """
        import sys, zlib
        from pathlib import Path
        sys.path.insert(0, sys.argv[2])
        from segments import segment_with
        segment, idx = segment_with(Path(sys.argv[1]), capacity=2**23), 0
        while True:
            body = (b"document %d " % idx) * (idx * 7 % 500)
            assert segment.append(idx, "event", 1.0, zlib.crc32(body), body)
            idx += 1
            if idx % 7 == 0:
                print(idx, flush=True)
    """

    @pytest.mark.parametrize("number", range(6))
    def test_at_any_time_leaves_all_of_it_readable(self, path: Path, number: int) -> None:
        command = [sys.executable, "-c", textwrap.dedent(self.CODE), str(path), str(SUPPORT)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            last = random.Random(number).randrange(50, 1500)
            while int(process.stdout.readline()) < last:
                pass
            process.send_signal(signal.SIGKILL)
            said = max([last, *map(int, process.stdout.read().split())])
        records, damage = contents_of(path)
        assert damage == ""
        assert [each.idx for each in records] == list(range(len(records)))
        assert all(each.body == (b"document %d " % each.idx) * (each.idx * 7 % 500) for each in records)
        assert len(records) >= said

    def test_leaves_whole_records_wherever_the_copying_was(self, path: Path) -> None:
        """The magic number is copied last."""
        segment_with(path, record(0), record(1), record(2, b"TWR1" * 20)).detach()
        whole = path.read_bytes()
        start = whole.index(b"TWR1", whole.rindex(b"body")) + 4
        for reached in range(start, len(whole.rstrip(b"\0")) + 1):
            path.write_bytes(whole[: start - 4] + bytes(4) + whole[start:reached] + bytes(len(whole) - reached))
            assert contents_of(path) == ([record(0), record(1)], "")


class TestDamage:
    RECORDS = (record(5, b"first", "start"), record(6, b""), record(7, bytes(40)), record(8, b"last", "stop"))

    @pytest.fixture(params=["open", "sealed"])
    def sound(self, request: pytest.FixtureRequest, path: Path) -> bytes:
        segment = segment_with(path, *self.RECORDS, capacity=600)
        if request.param == "sealed":
            segment.seal(stopped=True)
        segment.detach()
        return path.read_bytes()

    def test_of_any_single_bit_changes_nothing_or_is_found(self, path: Path, sound: bytes) -> None:
        records = list(self.RECORDS)
        unharmed = 0
        for position in range(len(sound)):
            for bit in range(8):
                with path.open("r+b", buffering=0) as file:
                    os.pwrite(file.fileno(), bytes([sound[position] ^ 1 << bit]), position)
                    found, damage = contents_of(path)
                    os.pwrite(file.fileno(), sound[position : position + 1], position)
                assert found == records[: len(found)], (position, bit)
                assert damage or found == records, (position, bit)
                unharmed += not damage
        assert unharmed < len(sound) * 8 / 2

    def test_of_any_length_is_found(self, path: Path, sound: bytes) -> None:
        records = list(self.RECORDS)
        for size in range(len(sound)):
            path.write_bytes(sound[:size])
            found, damage = contents_of(path)
            assert found == records[: len(found)]
            assert damage, size

    @pytest.mark.parametrize("zeros", [1, 4, 45])
    def test_of_zeros_is_found_wherever_they_are(self, path: Path, sound: bytes, zeros: int) -> None:
        """Such as a disk gives that has lost a block."""
        records = list(self.RECORDS)
        end = sound.rindex(b"last") + 4
        # The beginning of the last record is what a kill can leave out.
        last = sound.rindex(b"TWR1") if len(sound) > end else end
        for position in range(last - zeros + 1):
            path.write_bytes(sound[:position] + bytes(zeros) + sound[position + zeros :])
            found, damage = contents_of(path)
            assert found == records[: len(found)]
            assert damage or found == records, position

    def test_is_a_record_of_another_log_or_another_index(self, path: Path, tmp_path: Path) -> None:
        segment_with(path, record(0), record(1)).detach()
        other = tmp_path / "other.segment"
        segment_with(other, record(0, b"BODY"), record(1, b"BODY"), log="99999999").detach()
        mine, theirs = path.read_bytes(), other.read_bytes()
        second = slice(mine.rindex(b"TWR1"), mine.rindex(b"body") + 4)
        path.write_bytes(mine[: second.start] + theirs[second] + mine[second.stop :])
        found, damage = contents_of(path)
        assert (found, bool(damage)) == ([record(0)], True)
        first = slice(mine.index(b"TWR1"), mine.index(b"body") + 4)
        path.write_bytes(mine[: second.start] + mine[first] + mine[second.stop :])
        found, damage = contents_of(path)
        assert found == [record(0)]
        assert "document 0 is at byte" in damage

    def test_is_found_by_a_reader_that_has_the_file_open(self, path: Path) -> None:
        segment = segment_with(path, record(0), record(1), record(2))
        sound = path.read_bytes()
        with path.open("r+b") as file:
            file.seek(sound.rindex(b"body"))
            file.write(b"BODY")
        assert segment.read(0, 10, 1000) == [record(0), record(1)]
        with pytest.raises(SpoolDamaged, match="document 2, at byte"):
            segment.read(2, 10, 1000)
        segment.detach()

    @pytest.mark.parametrize("size", [0, 10, 100, 250])
    def test_that_shortens_a_file_in_use_is_an_error_of_that_file(self, path: Path, size: int) -> None:
        segment = segment_with(path, record(0), record(1), record(2, b"x" * 200))
        segment.detach()
        os.truncate(path, size)
        with pytest.raises(SpoolDamaged):
            segment.read(2, 10, 1000)

    def test_that_makes_a_file_unreadable_is_no_signal(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A bad block of a file that is mapped would end the process: what others left is read, and not mapped."""
        import mmap

        segment = segment_with(path, record(0), record(1))
        segment.seal(stopped=False)
        segment.detach()
        monkeypatch.setattr(mmap, "mmap", lambda *_, **__: pytest.fail("It is mapped."))
        assert contents_of(path) == ([record(0), record(1)], "")


def test_a_record_that_is_appended_while_the_file_is_read_is_no_damage(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = segment_with(path, *(record(idx) for idx in range(4)))
    whole = path.read_bytes()
    positions = [idx for idx in range(len(whole)) if whole.startswith(b"TWR1", idx)]
    seen = [whole[:position] + bytes(4) + whole[position + 4 :] for position in positions[1:3]]
    load_once = Segment._load_once

    def load_what_was_seen(path: Path) -> Segment:
        path.write_bytes(seen.pop(0) if seen else whole)
        return load_once(path)

    monkeypatch.setattr(Segment, "_load_once", load_what_was_seen)
    segment.detach()
    assert contents_of(path) == ([record(idx) for idx in range(4)], "")


class TestAPowerCut:
    """After which the machine has another boot id, and what had not been synced is there in part."""

    @pytest.fixture
    def cut(self, path: Path) -> bytes:
        segment_with(path, record(0), record(1), record(2, b"x" * 50), boot="an earlier one").detach()
        return path.read_bytes()

    def test_costs_the_torn_end_only(self, path: Path, cut: bytes) -> None:
        start = cut.rindex(b"TWR1")
        for reached in range(start + 1, start + record_size("event", b"x" * 50)):
            path.write_bytes(cut[:reached] + bytes(len(cut) - reached))
            assert contents_of(path) == ([record(0), record(1)], "")

    def test_does_not_excuse_damage_before_other_records(self, path: Path, cut: bytes) -> None:
        path.write_bytes(cut.replace(b"body", b"BODY", 1))
        found, damage = contents_of(path)
        assert found == []
        assert "document 0" in damage

    def test_is_no_excuse_without_one(self, path: Path) -> None:
        segment_with(path, record(0), record(1)).detach()
        sound = path.read_bytes()
        path.write_bytes(sound[: sound.rindex(b"body")] + b"bo\0\0" + sound[sound.rindex(b"body") + 4 :])
        found, damage = contents_of(path)
        assert found == [record(0)]
        assert "document 1" in damage


@pytest.mark.parametrize(
    "contents",
    [b"", b"x", b"no segment " * 1000, b"TWSEG001", b"TWSEG001" + bytes(50), b"TWSEG001" + b"\xff" * 100, b"\xff" * 60],
)
def test_a_file_that_is_none_is_told_from_a_segment(path: Path, contents: Any) -> None:
    path.write_bytes(contents)
    assert read_header(path)[0] is None
    loaded = Segment.load(path)
    assert loaded.header is None
    assert loaded.damage
