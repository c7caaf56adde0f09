"""The journal keeps what it was given, in order, whole, and as it was, whatever happens around it."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from disks import fill
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledbroker import (
    CodecError,
    Encoder,
    Journal,
    JournalGap,
    JournalInvalid,
    JournalLocked,
    Record,
    journal_filename,
    run_files,
)
from tiledbroker.log import _journal, _journal_schema
from tiledbroker.log._journal_files import FINISHED_SUBDIRECTORY, follow_run_file

APPLICATION_ID = 0x54574A4C  # part of the stored format


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path, "create", run_uid="run") as journal:
        yield journal


def document(number: int, name: str = "event") -> tuple[str, int, bytes]:
    body = b"document %d" % number
    return name, zlib.crc32(body), body


def documents(first: int, end: int) -> list[tuple[str, int, bytes]]:
    return [document(number) for number in range(first, end)]


def bodies(journal: Journal) -> list[bytes]:
    return [record.body for record in journal.records()]


def files_beside(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own, to its end."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)


@contextmanager
def tampered(path: Path) -> Iterator[sqlite3.Connection]:
    """A journal in the hands of somebody who knows how to get around its triggers."""
    with closing(sqlite3.connect(path, isolation_level=None)) as plain:
        triggers = plain.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            plain.execute(f"DROP TRIGGER {name}")
        yield plain
        for _, sql in triggers:
            plain.execute(sql)


@contextmanager
def writing_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the journal open for writing, with three documents in it."""
    code = """
        import sys
        from tiledbroker import Journal
        journal = Journal(sys.argv[1], "create", run_uid="run")
        for number in range(3):
            journal.append_one("event", b"document %d" % number)
        print("ready", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


class TestDocuments:
    def test_an_empty_journal_has_nothing(self, journal: Journal) -> None:
        assert journal.length == 0
        assert journal.read(0) == []
        assert list(journal.records()) == []
        assert journal.names() == {}
        assert not journal.stopped
        assert not journal.ended

    def test_one_document_after_the_other(self, journal: Journal) -> None:
        assert [journal.append_one("event", body) for _, _, body in documents(0, 3)] == [0, 1, 2]
        first = journal.read(0)[0]
        assert first == Record(0, "event", first.received, zlib.crc32(b"document 0"), b"document 0")
        assert bodies(journal) == [b"document 0", b"document 1", b"document 2"]

    def test_batches_continue_where_the_last_ended(self, journal: Journal) -> None:
        assert journal.append(0, documents(0, 2)) == 2
        assert journal.append(2, documents(2, 5)) == 5
        assert [record.idx for record in journal.records()] == [0, 1, 2, 3, 4]

    def test_documents_that_are_present_are_skipped(self, journal: Journal) -> None:
        journal.append(0, documents(0, 3))
        assert journal.append(0, documents(0, 1)) == 3
        assert journal.append(1, documents(1, 5)) == 5
        assert bodies(journal) == [b"document %d" % number for number in range(5)]

    def test_another_document_in_the_place_of_one_that_is_here_is_refused(self, journal: Journal) -> None:
        journal.append(0, documents(0, 3))
        with pytest.raises(JournalInvalid, match="document 1 differs"):
            journal.append(1, [document(99), document(2), document(3)])
        assert bodies(journal) == [b"document %d" % number for number in range(3)]

    def test_an_empty_batch_changes_nothing(self, journal: Journal) -> None:
        assert journal.append(0, []) == 0
        with pytest.raises(JournalGap):
            journal.append(1, [])

    def test_a_gap_is_refused_and_says_where_to_go_on(self, journal: Journal) -> None:
        journal.append(0, documents(0, 2))
        with pytest.raises(JournalGap) as refusal:
            journal.append(3, documents(3, 4))
        assert (refusal.value.expected, refusal.value.received) == (2, 3)
        assert refusal.value.path == str(journal.path)
        assert journal.length == 2

    def test_a_damaged_document_is_refused_with_its_whole_batch(self, journal: Journal) -> None:
        journal.append(0, documents(0, 1))
        name, crc, body = document(2)
        with pytest.raises(JournalInvalid, match="document 2"):
            journal.append(1, [document(1), (name, crc ^ 1, body), document(3)])
        assert journal.length == 1
        assert bodies(journal) == [b"document 0"]
        assert journal.append(1, documents(1, 4)) == 4

    def test_reading_is_limited_by_number_and_by_bytes(self, journal: Journal) -> None:
        for _ in range(5):
            journal.append_one("event", b"x" * 100)
        assert [record.idx for record in journal.read(1, limit=2)] == [1, 2]
        assert [record.idx for record in journal.read(1, max_bytes=250)] == [1, 2]
        assert [record.idx for record in journal.read(3, max_bytes=1)] == [3]
        assert journal.read(5) == []

    @settings(max_examples=25, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=8))
    def test_any_resending_gives_each_document_once(self, sendings: list[tuple[int, int]]) -> None:
        with _in_memory_directory() as directory, Journal(directory / "run.sqlite", "create") as journal:
            for first, count in sendings:
                before = journal.length
                if first > before:
                    with pytest.raises(JournalGap):
                        journal.append(first, documents(first, first + count))
                else:
                    end = journal.append(first, documents(first, first + count))
                    assert end == journal.length == max(before, first + count)
            assert bodies(journal) == [body for _, _, body in documents(0, journal.length)]

    def test_names_are_counted(self, journal: Journal) -> None:
        for name in ("start", "descriptor", "event", "event"):
            journal.append_one(name, b"")
        assert journal.names() == {"start": 1, "descriptor": 1, "event": 2}
        assert not journal.stopped
        journal.append_one("stop", b"")
        assert journal.stopped
        assert journal.ended

    def test_an_abandoned_run_has_ended_without_a_stop(self, journal: Journal) -> None:
        journal.set("abandoned", True)
        assert journal.ended
        assert not journal.stopped

    def test_threads_may_share_one_journal(self, journal: Journal) -> None:
        threads = [
            threading.Thread(target=lambda: [journal.append_one("event", b"x") for _ in range(50)]) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [record.idx for record in journal.records()] == list(range(200))


_CHANGES = [
    "UPDATE documents SET name = 'x'",
    "UPDATE documents SET idx = idx + 100",
    "DELETE FROM documents",
    "DELETE FROM documents WHERE idx = 1",
    "REPLACE INTO documents VALUES(1, 'x', 0, 0, x'00')",
    "INSERT OR REPLACE INTO documents VALUES(1, 'x', 0, 0, x'00')",
    "UPDATE OR REPLACE documents SET idx = 2 WHERE idx = 1",
    "INSERT INTO documents VALUES(1, 'x', 0, 0, x'00') ON CONFLICT(idx) DO UPDATE SET name = 'x'",
]


class TestAppendOnly:
    @pytest.mark.parametrize("sql", _CHANGES)
    def test_the_journals_own_connection_changes_no_document(self, journal: Journal, sql: str) -> None:
        journal.append(0, documents(0, 3))
        with pytest.raises(sqlite3.IntegrityError):
            journal._connection.execute(sql)
        assert bodies(journal) == [body for _, _, body in documents(0, 3)]

    @pytest.mark.parametrize("sql", _CHANGES)
    def test_a_plain_connection_changes_no_document(self, journal: Journal, sql: str) -> None:
        journal.append(0, documents(0, 3))
        with closing(sqlite3.connect(journal.path)) as plain, pytest.raises(sqlite3.IntegrityError), plain:
            plain.execute(sql)
        assert bodies(journal) == [body for _, _, body in documents(0, 3)]
        assert journal.names() == {"event": 3}

    def test_the_message_says_why(self, journal: Journal) -> None:
        journal.append(0, documents(0, 1))
        with (
            closing(sqlite3.connect(journal.path)) as plain,
            pytest.raises(sqlite3.IntegrityError, match="append-only"),
        ):
            plain.execute("UPDATE documents SET name = 'x'")


class TestTheFile:
    def test_only_its_owner_may_read_it(self, journal: Journal) -> None:
        journal.append(0, documents(0, 1))
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in journal.path.parent.iterdir()}
        assert set(modes) >= {"run.sqlite", "run.sqlite-wal", "run.sqlite.lock"}
        assert set(modes.values()) == {0o600}

    def test_a_lax_umask_makes_no_difference(self, path: Path) -> None:
        before = os.umask(0)
        try:
            with Journal(path, "create") as journal:
                journal.append(0, documents(0, 1))
                modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        finally:
            os.umask(before)
        assert modes == {0o600}

    def test_its_format_is_marked(self, journal: Journal) -> None:
        with closing(sqlite3.connect(journal.path)) as plain:
            assert plain.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
            assert plain.execute("PRAGMA user_version").fetchone() == (1,)
            assert plain.execute("PRAGMA journal_mode").fetchone() == ("wal",)

    def test_it_is_synced_at_every_commit(self, journal: Journal) -> None:
        assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)

    def test_closing_leaves_a_single_file(self, path: Path) -> None:
        with Journal(path, "create") as journal:
            journal.append(0, documents(0, 3))
            assert "run.sqlite-wal" in files_beside(path)
        assert set(files_beside(path)) <= {"run.sqlite", "run.sqlite.lock"}
        with Journal(path) as journal:
            assert journal.length == 3

    def test_a_reader_that_closes_last_leaves_a_single_file(self, path: Path) -> None:
        with Journal(path, "create") as writer:
            writer.append(0, documents(0, 3))
            reader = Journal(path)
        reader.close()
        assert set(files_beside(path)) <= {"run.sqlite", "run.sqlite.lock"}

    def test_reading_a_finished_journal_leaves_nothing_beside_it(self, path: Path) -> None:
        Journal(path, "create").close()
        with Journal(path) as reader:
            assert reader.length == 0
        assert set(files_beside(path)) <= {"run.sqlite", "run.sqlite.lock"}

    def test_closing_twice_is_harmless(self, path: Path) -> None:
        journal = Journal(path, "create")
        journal.close()
        journal.close()

    def test_removing_leaves_no_file(self, path: Path) -> None:
        journal = Journal(path, "create")
        journal.append(0, documents(0, 3))
        journal.remove()
        assert files_beside(path) == []

    def test_a_reader_cannot_remove_it(self, journal: Journal) -> None:
        with Journal(journal.path) as reader, pytest.raises(JournalInvalid, match="read-only"):
            reader.remove()
        assert journal.path.exists()

    @pytest.mark.parametrize("mode", ["read", "write"])
    def test_what_is_not_there_is_said_to_be_missing(self, path: Path, mode: Any) -> None:
        with pytest.raises(JournalInvalid, match="no such file"):
            Journal(path, mode)
        assert files_beside(path) == []

    def test_a_file_name_with_special_characters_is_no_uri(self, tmp_path: Path) -> None:
        path = tmp_path / "a?mode=memory#%41 b.sqlite"
        with Journal(path, "create") as journal:
            journal.append(0, documents(0, 1))
        with Journal(path) as journal:
            assert journal.length == 1
        assert path.exists()


class TestFilesThatAreNoJournals:
    @pytest.mark.parametrize("mode", ["read", "write", "create"])
    def test_another_programs_database_is_refused_and_left_alone(self, path: Path, mode: Any) -> None:
        with closing(sqlite3.connect(path)) as foreign, foreign:
            foreign.execute("CREATE TABLE things(a)")
        before = path.read_bytes()
        with pytest.raises(JournalInvalid, match="not a tiledwriter journal"):
            Journal(path, mode)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("mode", ["read", "write", "create"])
    def test_garbage_is_refused_and_left_alone(self, path: Path, mode: Any) -> None:
        path.write_bytes(b"no database at all " * 500)
        with pytest.raises(JournalInvalid):
            Journal(path, mode)
        assert path.read_bytes() == b"no database at all " * 500

    @pytest.mark.parametrize("mode", ["read", "write", "create"])
    def test_an_empty_file_is_refused_and_left_alone(self, path: Path, mode: Any) -> None:
        path.touch()
        with pytest.raises(JournalInvalid):
            Journal(path, mode)
        assert path.read_bytes() == b""

    @pytest.mark.parametrize("mode", ["read", "write", "create"])
    def test_a_newer_format_is_refused_with_advice(self, path: Path, mode: Any) -> None:
        Journal(path, "create").close()
        with closing(sqlite3.connect(path)) as plain:
            plain.execute("PRAGMA user_version = 2")
        with pytest.raises(JournalInvalid, match="Upgrade"):
            Journal(path, mode)

    @pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.95])
    @pytest.mark.parametrize("mode", ["read", "write"])
    def test_a_truncated_file_is_refused(self, path: Path, mode: Any, part: float) -> None:
        with Journal(path, "create") as journal:
            for _ in range(50):
                journal.append_one("event", b"x" * 10_000)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(JournalInvalid):
            Journal(path, mode)

    @pytest.mark.parametrize(
        "change",
        [
            "name = CAST(x'ff' AS TEXT)",
            "name = x'61'",
            "body = 'text'",
            "body = 5",
            "crc = 'text'",
            "received = 'text'",
        ],
    )
    def test_documents_of_another_kind_are_refused_by_name(self, path: Path, change: str) -> None:
        with Journal(path, "create") as journal:
            journal.append(0, documents(0, 3))
        with tampered(path) as plain:
            plain.execute(f"UPDATE documents SET {change} WHERE idx = 1")
        with Journal(path, "write") as journal:
            assert [record.idx for record in journal.read(0)] == [0]
            with pytest.raises(JournalInvalid):
                journal.read(1)
            if change.startswith("name"):
                with pytest.raises(JournalInvalid):
                    journal.names()

    def test_a_body_that_has_changed_is_no_document(self, path: Path) -> None:
        with Journal(path, "create") as journal:
            journal.append_one("event", Encoder().encode({"a": 1}))
        with tampered(path) as plain:
            plain.execute("UPDATE documents SET body = ?", (Encoder().encode({"a": 2}),))
        with Journal(path) as journal:
            (record,) = journal.read(0)
            with pytest.raises(CodecError, match="document 0 do not match"):
                record.document()

    def test_a_last_number_that_the_file_has_no_room_for_is_refused(self, path: Path) -> None:
        with Journal(path, "create") as journal:
            journal.append(0, documents(0, 3))
        with tampered(path) as plain:
            plain.execute("UPDATE documents SET idx = 9223372036854775807 WHERE idx = 2")
        with pytest.raises(JournalInvalid, match="9223372036854775807"):
            Journal(path)

    @pytest.mark.parametrize("foreign", ["CREATE VIEW other AS SELECT 1", "CREATE TABLE other(a)", "DROP TABLE state"])
    def test_other_tables_than_a_journals_are_refused(self, path: Path, foreign: str) -> None:
        Journal(path, "create").close()
        with tampered(path) as plain:
            plain.execute(foreign)
        with pytest.raises(JournalInvalid, match="tables are not those"):
            Journal(path)

    @pytest.mark.parametrize(
        ("sql", "read"),
        [
            ("UPDATE state SET value = '{'", lambda journal: journal.get("key")),
            ("UPDATE state SET value = x'ff'", lambda journal: journal.get("key")),
            ("UPDATE history SET detail = '{'", Journal.history),
            ("UPDATE history SET detail = '[]'", Journal.history),
            ("UPDATE history SET event = x'00'", Journal.history),
            ("UPDATE progress SET rows = 'many'", Journal.progress),
            ("UPDATE progress SET intent = x'00'", Journal.progress),
        ],
    )
    def test_state_of_another_kind_is_refused(self, path: Path, sql: str, read: Callable[[Journal], Any]) -> None:
        with Journal(path, "create") as journal:
            journal.set("key", 1)
            journal.note("event")
            journal.set_progress("node", 1)
        with Journal(path) as journal:
            read(journal)
            with tampered(path) as plain:
                plain.execute(sql)
            with pytest.raises(JournalInvalid):
                read(journal)

    def test_a_header_that_forbids_writing_is_damage(self, path: Path) -> None:
        Journal(path, "create").close()
        contents = bytearray(path.read_bytes())
        contents[18] = 5  # the version that a program needs to write
        path.write_bytes(contents)
        with pytest.raises(JournalInvalid, match="header"), Journal(path, "write") as journal:
            journal.set("key", 1)

    def test_a_refused_file_is_not_locked(self, path: Path) -> None:
        path.write_bytes(b"no database at all " * 500)
        with pytest.raises(JournalInvalid):
            Journal(path, "write")
        path.unlink()
        Journal(path, "create").close()

    def test_the_journal_of_another_run_is_refused(self, path: Path) -> None:
        Journal(path, "create", run_uid="one").close()
        with pytest.raises(JournalInvalid, match="'one'"):
            Journal(path, "write", run_uid="another")
        with Journal(path, "write", run_uid="one") as journal:
            assert journal.run_uid == "one"

    def test_a_journal_without_a_uid_goes_by_its_name(self, path: Path) -> None:
        with Journal(path, "create") as journal:
            assert journal.run_uid == "run"


class TestSeveralProcesses:
    def test_a_second_writer_is_refused(self, journal: Journal) -> None:
        for mode in ("write", "create"):
            with pytest.raises(JournalLocked):
                Journal(journal.path, mode)
        assert journal.being_written

    def test_a_writer_in_another_process_is_seen(self, path: Path) -> None:
        with writing_process(path):
            with pytest.raises(JournalLocked, match="another process"):
                Journal(path, "write", lock_timeout=0.05)
            with Journal(path) as reader:
                assert reader.being_written
                assert reader.length == 3

    def test_a_writer_may_wait_for_the_one_before(self, path: Path) -> None:
        first = Journal(path, "create")
        timer = threading.Timer(0.05, first.close)
        timer.start()
        with Journal(path, "write", lock_timeout=60) as second:
            assert second.length == 0
        timer.join()

    def test_a_file_that_is_moved_just_after_it_was_found_is_followed(
        self, journal: Journal, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        journal.append_one("start", b"")
        journal.close()
        finished = journal.path.parent / FINISHED_SUBDIRECTORY / journal.path.name

        def find_and_move(path: Path) -> Path:
            found = follow_run_file(path)
            if found == journal.path:
                finished.parent.mkdir()
                found.rename(finished)
            return found

        monkeypatch.setattr(_journal, "follow_run_file", find_and_move)
        with Journal(journal.path) as moved:
            assert (moved.path, moved.length) == (finished, 1)

    def test_a_reader_follows_a_writer(self, journal: Journal) -> None:
        with Journal(journal.path) as reader:
            journal.append(0, documents(0, 2))
            assert reader.length == 0
            assert reader.refresh() == 2
            assert reader.length == 2
            assert len(reader.read(0)) == 2

    def test_a_reader_cannot_write(self, journal: Journal) -> None:
        with Journal(journal.path) as reader:
            with pytest.raises(sqlite3.OperationalError):
                reader.append_one("event", b"")
            with pytest.raises(sqlite3.OperationalError):
                reader.set("key", 1)
            assert reader.length == 0

    def test_a_reader_that_stays_open_does_not_hold_up_the_writer(self, journal: Journal) -> None:
        journal.append(0, documents(0, 100))
        with Journal(journal.path) as reader:
            records = reader.records()
            next(records)
            assert journal.append(100, documents(100, 200)) == 200
            records.close()

    def test_a_kill_frees_the_journal_and_loses_nothing(self, path: Path) -> None:
        with writing_process(path) as process:
            process.send_signal(signal.SIGKILL)
            process.wait()
            with Journal(path, "write", run_uid="run") as journal:
                assert bodies(journal) == [body for _, _, body in documents(0, 3)]
                assert journal.append(3, documents(3, 4)) == 4

    def test_what_append_one_returned_from_survives_a_kill(self, path: Path) -> None:
        code = """
            import os, signal, sys
            from tiledbroker import Journal
            journal = Journal(sys.argv[1], "create")
            for number in range(500):
                index = journal.append_one("event", b"document %d" % number)
            os.write(1, b"%d" % index)
            os.kill(os.getpid(), signal.SIGKILL)
        """
        ended = python(code, path)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert ended.stdout == "499"
        with Journal(path, "write") as journal:
            assert bodies(journal) == [body for _, _, body in documents(0, 500)]

    def test_a_kill_inside_a_transaction_leaves_none_of_it(self, path: Path) -> None:
        code = """
            import os, signal, sys
            from tiledbroker import Journal
            journal = Journal(sys.argv[1], "create")
            journal.append_one("event", b"document 0")
            with journal.atomic():
                journal.append_one("event", b"lost")
                journal.set("outcome", "written")
                os.kill(os.getpid(), signal.SIGKILL)
        """
        assert python(code, path).returncode == -signal.SIGKILL
        with Journal(path, "write") as journal:
            assert bodies(journal) == [b"document 0"]
            assert journal.get("outcome") is None


class TestTransactions:
    def test_everything_inside_is_stored_together(self, journal: Journal) -> None:
        with Journal(journal.path) as reader:
            with journal.atomic():
                journal.append(0, documents(0, 2))
                journal.set("key", 1)
                assert reader.refresh() == 0
            assert reader.refresh() == 2
            assert reader.get("key") == 1

    def test_an_error_takes_everything_back(self, journal: Journal) -> None:
        journal.append(0, documents(0, 1))
        with pytest.raises(KeyError), journal.atomic():  # noqa: PT012  the block is the transaction
            journal.append(1, documents(1, 3))
            journal.append_one("event", b"")
            journal.set("key", 1)
            journal.set_progress("node", 3)
            journal.note("event")
            raise KeyError
        assert journal.length == 1
        assert journal.get("key") is None
        assert journal.progress() == {}
        assert journal.history() == []
        assert journal.append(1, documents(1, 2)) == 2

    def test_an_inner_transaction_is_part_of_the_outer_one(self, journal: Journal) -> None:
        with pytest.raises(KeyError), journal.atomic():  # noqa: PT012  the block is the transaction
            with journal.atomic():
                journal.append(0, documents(0, 2))
            raise KeyError
        assert journal.length == 0
        assert bodies(journal) == []

    def test_a_full_disk_costs_the_batch_and_nothing_else(self, journal: Journal) -> None:
        journal.append(0, documents(0, 2))
        (pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
        journal._connection.execute(f"PRAGMA max_page_count = {pages + 4}")
        large = b"x" * 100_000
        with pytest.raises(sqlite3.OperationalError, match="full"):
            journal.append(2, [document(2), ("event", zlib.crc32(large), large)])
        with pytest.raises(sqlite3.OperationalError, match="full"):
            journal.append_one("event", large)
        assert journal.length == 2
        assert bodies(journal) == [body for _, _, body in documents(0, 2)]
        journal._connection.execute("PRAGMA max_page_count = 1000000")
        assert journal.append(2, [document(2), ("event", zlib.crc32(large), large)]) == 4
        assert [record.idx for record in journal.records()] == [0, 1, 2, 3]

    def test_a_disk_too_full_for_a_new_journal_leaves_nothing_in_its_way(self, small_disk: Path) -> None:
        path = small_disk / "run.sqlite"
        _journal_schema._empty_file(small_disk)  # as after the first run of a process
        filling = fill(small_disk, leaving=8192)
        with pytest.raises((OSError, sqlite3.Error)):
            Journal(path, "create")
        filling.unlink()
        with Journal(path, "create") as journal:
            assert journal.append(0, documents(0, 1)) == 1

    @pytest.mark.parametrize("left_kib", [0, 64, 128, 192, 256, 288, 304, 320])
    def test_a_disk_too_full_for_the_first_journal_of_a_process_leaves_nothing_for_the_next(
        self, left_kib: int, small_disk: Path
    ) -> None:
        path = small_disk / "run.sqlite"
        _journal_schema._empty_file.cache_clear()
        filling = fill(small_disk, leaving=left_kib * 1024)
        with suppress(OSError, sqlite3.Error), Journal(path, "create") as journal:
            journal.append(0, documents(0, 1))
        filling.unlink()
        with Journal(path, "create") as journal:
            assert journal.append(journal.length, documents(journal.length, 2)) == 2

    def test_a_disk_that_is_really_full_is_survived(self, small_disk: Path) -> None:
        chunk = os.urandom(50_000)
        crc = zlib.crc32(chunk)
        with Journal(small_disk / "run.sqlite", "create") as journal:
            stored = 0
            with pytest.raises(sqlite3.OperationalError):  # noqa: PT012  the loop is what fills the disk
                while True:
                    stored = journal.append(stored, [("event", crc, chunk)])
            assert stored > 0
            assert journal.length == stored
            assert len(list(journal.records())) == stored
        with Journal(small_disk / "run.sqlite", "write") as journal:
            assert bodies(journal) == [chunk] * stored

    def test_a_journal_that_could_not_be_opened_for_writing_can_still_be_read(self, small_disk: Path) -> None:
        path = small_disk / "run.sqlite"
        with Journal(path, "create", run_uid="run") as journal:
            journal.append(0, documents(0, 3))
        fill(small_disk)
        with pytest.raises(sqlite3.OperationalError):
            Journal(path, "write")
        assert path.with_name("run.sqlite-wal").stat().st_size == 0
        with Journal(path) as journal:
            assert bodies(journal) == [b"document 0", b"document 1", b"document 2"]

    def test_a_finished_journal_can_be_read_on_a_full_disk(self, small_disk: Path) -> None:
        with Journal(small_disk / "run.sqlite", "create", run_uid="run") as journal:
            journal.append(0, documents(0, 3))
        fill(small_disk)
        with Journal(small_disk / "run.sqlite") as journal:
            assert bodies(journal) == [b"document 0", b"document 1", b"document 2"]


@contextmanager
def _in_memory_directory() -> Iterator[Path]:
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


class TestWhatBecameOfTheRun:
    @pytest.mark.parametrize("value", [1, "text", [1, {"a": None}], False, 0, "", 1.5])
    def test_state_is_kept(self, path: Path, value: Any) -> None:
        with Journal(path, "create") as journal:
            assert journal.get("key", "default") == "default"
            journal.set("key", value)
        with Journal(path) as journal:
            assert journal.get("key", "default") == value

    def test_state_is_replaced_and_removed(self, journal: Journal) -> None:
        journal.set("key", 1)
        journal.set("key", 2)
        assert journal.get("key") == 2
        journal.set("key", None)
        assert journal.get("key") is None

    def test_progress_is_kept_per_node(self, journal: Journal) -> None:
        journal.set_progress("primary/internal", 10)
        journal.set_progress("baseline/internal", 0, intent=5)
        journal.set_progress("primary/internal", 10, intent=20)
        assert journal.progress() == {"baseline/internal": (0, 5), "primary/internal": (10, 20)}
        journal.set_progress("primary/internal", 20)
        assert journal.progress()["primary/internal"].intent is None

    def test_history_is_kept_in_order(self, journal: Journal) -> None:
        journal.note("first", number=1, path=journal.path)
        journal.note("second")
        first, second = journal.history()
        assert (first.event, first.detail) == ("first", {"number": 1, "path": str(journal.path)})
        assert (second.event, second.detail) == ("second", {})
        assert first.time <= second.time


class TestFileNames:
    def test_a_plain_uid_is_the_name(self) -> None:
        uid = "2d4fd1b8-7a7c-4c1d-9f4e-5a1a3a0e6c11"
        assert journal_filename(uid) == f"{uid}.sqlite"

    @pytest.mark.parametrize(
        "uid",
        [
            "",
            ".",
            "..",
            "../../etc/passwd",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "a\x00b",
            "a\n",
            "x" * 10_000,
            "UPPER",
            "µm",
            "\ud800",
            "٣",
            "-option",
            "_unrouted-1",
            ".supervisor",
            "sha256-" + "0" * 64,
            "sha256-",
            " a",
            "a ",
            "a:b",
            "~",
            "$HOME",
        ],
        ids=lambda uid: ascii(uid)[:24],
    )
    def test_any_other_uid_is_digested(self, uid: str, tmp_path: Path) -> None:
        name = journal_filename(uid)
        assert name.startswith("sha256-")
        assert len(name) == len("sha256-") + 64 + len(".sqlite")
        assert (tmp_path / name).parent == tmp_path
        with Journal(tmp_path / name, "create", run_uid=uid) as journal:
            journal.append(0, documents(0, 1))
        assert run_files(tmp_path) == [tmp_path / name]
        with Journal(tmp_path / name) as journal:
            assert journal.run_uid == uid

    @settings(max_examples=200, deadline=None)
    @given(st.text(st.characters(exclude_categories=())))
    def test_no_uid_becomes_a_path(self, uid: str) -> None:
        name = journal_filename(uid)
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
        assert name[0] not in "._-"
        assert len(name) <= 110
        assert name.endswith(".sqlite")

    def test_names_differ_also_where_case_does_not_count(self) -> None:
        uids = ["run", "RUN", "Run", "sha256-run", "run.sqlite", "", "run "]
        assert len({journal_filename(uid).lower() for uid in uids}) == len(uids)

    def test_only_run_files_are_listed(self, tmp_path: Path) -> None:
        for name in ("b.sqlite", "a.sqlite", "a.sqlite-wal", "a.sqlite.lock", "_unrouted-1.sqlite", ".hidden.sqlite"):
            (tmp_path / name).touch()
        assert run_files(tmp_path) == [tmp_path / "a.sqlite", tmp_path / "b.sqlite"]

    def test_a_log_without_its_journal_is_listed_unless_it_is_empty(self, tmp_path: Path) -> None:
        for name in ("a.sqlite-wal", "finished/b.sqlite-wal", "_unrouted-1.sqlite-wal", "other-wal", "c.sqlite-wal"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(b"something" * (not name.startswith("c")))
        assert run_files(tmp_path) == [tmp_path / "a.sqlite-wal", tmp_path / "finished" / "b.sqlite-wal"]
        with pytest.raises(JournalInvalid, match=r"its main file is missing: a\.sqlite"):
            Journal(tmp_path / "a.sqlite-wal")
        (tmp_path / "a.sqlite").touch()
        assert run_files(tmp_path) == [tmp_path / "a.sqlite", tmp_path / "finished" / "b.sqlite-wal"]


def test_results_of_a_normalizer_are_kept_by_index(tmp_path):
    path = tmp_path / "run.sqlite"
    with Journal(path, "create", run_uid="run") as journal:
        assert journal.read_normalized(0, 10) == {}
        journal.request_revision()
        assert journal.revise_below == 0
        journal.append_one("start", b"a")
        journal.append_one("stop", b"b")
        journal.store_normalized([(0, b"old"), (1, b"one")])
        journal.store_normalized([(0, b"new")])
        journal.request_revision()
    with Journal(path) as journal:
        assert journal.read_normalized(0, 10) == {0: b"new", 1: b"one"}
        assert journal.read_normalized(1, 10) == {1: b"one"}
        assert journal.read_normalized(0, 1) == {0: b"new"}
        assert journal.revise_below == 2


def test_a_revision_ends_with_the_last_result_to_be_revised(tmp_path):
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        for name in ("start", "stop"):
            journal.append_one(name, b"")
        journal.store_normalized([(0, b"0"), (1, b"1")])
        journal.request_revision()
        journal.store_normalized([(0, b"2")])
        assert journal.revise_below == 2
        journal.store_normalized([(1, b"3")])
        assert journal.revise_below == 0


def test_a_damaged_result_of_a_normalizer_is_no_result(tmp_path):
    path = tmp_path / "run.sqlite"
    with Journal(path, "create", run_uid="run") as journal:
        journal.store_normalized([(0, b"0")])
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE normalized SET body = x'ff'")
    connection.close()
    with Journal(path) as journal, pytest.raises(JournalInvalid, match="document 0 was normalized to"):
        journal.read_normalized(0, 1)


def another_says(path: Path, read: Callable[[Journal], Any]) -> Any:
    with Journal(path) as journal:
        return read(journal)


def test_a_transaction_that_is_undone_leaves_no_trace_in_memory(journal: Journal) -> None:
    journal.append(0, documents(0, 2))
    journal.set("abandoned", None)
    assert (journal.get("outcome"), journal.stopped) == (None, False)

    def write_and_fail() -> None:
        with journal.atomic():
            journal.append(2, [document(2, "stop")])
            journal.set("outcome", "written")
            assert (journal.get("outcome"), journal.ended) == ("written", True)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    assert (journal.get("outcome"), journal.stopped, journal.ended) == (None, False, False)


def test_who_only_reads_sees_what_another_process_has_changed(journal: Journal, path: Path) -> None:
    with Journal(path) as reader:
        assert (reader.get("outcome"), reader.ended) == (None, False)
        journal.append(0, [document(0, "stop")])
        journal.set("outcome", "written")
        assert (reader.get("outcome"), reader.ended) == ("written", True)


def test_a_value_of_the_state_is_one_s_own(journal: Journal) -> None:
    journal.set("columns", {"table": ["a"]})
    journal.get("columns")["table"].append("b")
    assert journal.get("columns") == {"table": ["a"]}


def test_progress_that_is_not_synced_is_seen_by_others_and_does_not_change_how_others_are(
    journal: Journal, path: Path
) -> None:
    journal.set_progress("table", 3, 5)
    journal.set_progress("table", 5, synced=False)
    assert another_says(path, Journal.progress) == {"table": (5, None)}
    assert journal._connection.execute("PRAGMA synchronous").fetchone() == (2,)


def test_progress_in_a_transaction_is_synced_with_it(journal: Journal, path: Path) -> None:
    with journal.atomic():
        journal.set_progress("table", 5, synced=False)
    assert another_says(path, Journal.progress) == {"table": (5, None)}


def test_a_link_to_a_journal_has_the_lock_of_the_journal(tmp_path: Path) -> None:
    path, link = tmp_path / "r.sqlite", tmp_path / "links" / "other.sqlite"
    link.parent.mkdir()
    link.symlink_to(path)
    with Journal(path, "create", run_uid="r") as writing:
        writing.append_one("start", b"{}")
        with Journal(link) as reading:
            assert reading.length == 1
            assert reading.being_written
        with pytest.raises(JournalLocked):
            Journal(link, "write")
    assert [each.name for each in link.parent.iterdir()] == ["other.sqlite"]


# Files that somebody removes or replaces while they are open


def remove_files(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        if not file.name.endswith(".lock"):
            file.unlink()


def put_an_old_copy_there(path: Path) -> None:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source:
        copy = path.with_name("copy")
        with closing(sqlite3.connect(copy)) as target:
            source.backup(target)
    copy.replace(path)


@pytest.mark.parametrize("happens", [remove_files, put_an_old_copy_there])
def test_a_journal_that_was_removed_or_replaced_is_put_back(
    journal: Journal, path: Path, happens: Callable[[Path], None]
) -> None:
    journal.append(0, documents(0, 3))
    journal.note("before")
    happens(path)
    assert not journal.is_in_place
    journal.append(3, documents(3, 5))
    moved = journal.put_back()
    assert journal.is_in_place
    journal.append(5, documents(5, 6))
    assert (moved is None) == (happens is remove_files)
    for reader in (journal, Journal(path)):
        assert [record.body for record in reader.records()] == [body for _, _, body in documents(0, 6)]
        assert [entry.event for entry in reader.history()] == ["before"]
        reader.close()
    assert Journal(path, "write").damage() == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.glob(".*.draft")] == []
    if moved is not None:
        assert moved not in run_files(path.parent)
        with Journal(moved) as found:
            assert found.length >= 3  # with what the write-ahead log beside it has


def test_a_journal_that_cannot_be_put_back_is_tried_again(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.append(0, documents(0, 3))
    remove_files(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            journal.put_back()
    assert journal.length == 3
    assert not journal.is_in_place
    assert journal.put_back() is None
    assert journal.is_in_place
    assert len(list(journal.records())) == 3


@pytest.mark.parametrize("mode", ["read", "inspect"])
def test_a_write_ahead_log_may_go_while_its_journal_is_opened(
    mode: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it does when the last one to use the journal closes it."""
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", b"")
    whether_it_exists = Path.exists

    def existed(path: Path) -> bool:
        return path.name.endswith("-wal") or whether_it_exists(path)

    monkeypatch.setattr(Path, "exists", existed)
    with Journal(tmp_path / "run.sqlite", mode) as journal:
        assert journal.length == 1
