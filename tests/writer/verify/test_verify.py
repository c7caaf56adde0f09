"""`verify` finds whatever is wrong with a journal or with a run in Tiled, and changes neither."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from event_model import compose_run
from faulty_proxy import PASS, Fault, FaultyProxy, answer
from hypothesis import given
from hypothesis import strategies as st
from stored_runs import FLAG, NUMBER, Documents, a_run, add, journaled, uid_of, write
from warm import run_process

from tiledbroker import Encoder, Journal, decode
from tiledwriter._errors import TiledUnavailable
from tiledwriter.catalog._alignment import Alignment
from tiledwriter.catalog._connection import Connection
from tiledwriter.catalog._nodes import Nodes
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main
from tiledwriter.mapping._operations import CreateContainer, WriteArray
from tiledwriter.mapping._plugins import Plugins
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import TiledServer
from tiledwriter.verify._verification import Verification, runs_without_journal, verify

pytestmark = [pytest.mark.filterwarnings("default:::tiled")]

OPTIONS = WritingOptions(quiet_period=0.3)


def run_command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TILED")}
    return run_process(
        [sys.executable, "-m", "tiledwriter.cli.journal", *map(str, arguments)],
        env={**clean, **environment},
        timeout=120,
    )


def found_in(path: Path) -> list[tuple[str, str]]:
    """Where and what is wrong with a journal alone."""
    return [(finding.where, finding.problem) for finding in verify(path, OPTIONS, None).findings]


# Journals


def test_an_outcome_that_does_not_exist_is_found(tmp_path: Path) -> None:
    path = journaled(a_run(), tmp_path)
    with Journal(path, "write") as journal:
        journal.set("outcome", "closing-typo")
    ((where, problem),) = found_in(path)
    assert (where, "there is no outcome 'closing-typo'" in problem) == ("file", True)
    assert main(["verify", str(path)]) == ExitCode.DIFFERS


def test_a_file_with_the_name_of_another_run_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = journaled(a_run(), tmp_path).rename(tmp_path / "3f2b.sqlite")
    assert main(["verify", str(tmp_path)]) == ExitCode.DIFFERS
    assert "and has another name" in capsys.readouterr().out
    assert found_in(copy) == []


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return journaled(a_run(), tmp_path / "journals")


@contextmanager
def open_run_file(path: Path) -> Iterator[sqlite3.Connection]:
    """A journal in the hands of somebody who knows how to get around its triggers."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        yield connection


def replaced(connection: sqlite3.Connection, idx: int, body: bytes) -> None:
    connection.execute("UPDATE documents SET body = ?, crc = ? WHERE idx = ?", (body, zlib.crc32(body), idx))


def flip_a_bit(path: Path) -> None:
    with open_run_file(path) as connection:
        (body,) = connection.execute("SELECT body FROM documents WHERE idx = 3").fetchone()
        changed = body[:10] + bytes([body[10] ^ 1]) + body[11:]
        connection.execute("UPDATE documents SET body = ? WHERE idx = 3", (changed,))


def lose_two_documents(path: Path) -> None:
    with open_run_file(path) as connection:
        connection.execute("DELETE FROM documents WHERE idx IN (3, 4)")


def lose_the_start(path: Path) -> None:
    with open_run_file(path) as connection:
        connection.execute("DELETE FROM documents WHERE idx = 0")


def garble(path: Path) -> None:
    with open_run_file(path) as connection:
        replaced(connection, 3, b"\xc1 this is no MessagePack")


def refer_to_nothing(path: Path) -> None:
    with open_run_file(path) as connection:
        event = {"descriptor": "nobody", "uid": "e", "seq_num": 2, "time": 0.0, "data": {}, "timestamps": {}}
        replaced(connection, 3, Encoder().encode(event))


def start_another_run(path: Path) -> None:
    with open_run_file(path) as connection:
        replaced(connection, 3, Encoder().encode({"uid": "another", "time": 0.0}))
        connection.execute("UPDATE documents SET name = 'start' WHERE idx = 3")


def double_an_event(path: Path) -> None:
    """As of a log that was damaged before its documents got their numbers."""
    with open_run_file(path) as connection:
        events = "SELECT idx, body FROM documents WHERE name = 'event' ORDER BY idx LIMIT 3"
        (_, body), _, (idx, _) = connection.execute(events).fetchall()
        replaced(connection, idx, body)


def skip_two_events(path: Path) -> None:
    with open_run_file(path) as connection:
        (body,) = connection.execute("SELECT body FROM documents WHERE idx = 4").fetchone()
        event = decode(body)
        replaced(connection, 4, Encoder().encode({**event, "seq_num": event["seq_num"] + 2}))


def go_on_after_the_stop(path: Path) -> None:
    with Journal(path, "write") as journal:
        add(journal, [("event", {"descriptor": "x"})])


def exaggerate(path: Path) -> None:
    with Journal(path, "write") as journal:
        journal.set_progress(f"{journal.run_uid}/primary/internal", 7)


def make_up_a_node(path: Path) -> None:
    with Journal(path, "write") as journal:
        journal.set_progress(f"{journal.run_uid}/primary/nonsense", 1)


def call_it_written(path: Path) -> None:
    with Journal(path, "write") as journal:
        journal.set("outcome", "written")


@pytest.mark.parametrize(
    ("damage", "where", "problem"),
    [
        (flip_a_bit, "documents", "1 with a wrong checksum"),
        (lose_two_documents, "documents", "2 missing, from these indexes on"),
        (lose_the_start, "documents", "1 missing, from these indexes on"),
        (garble, "documents", "1 not in the encoding of journals"),
        (refer_to_nothing, "documents", "1 in a wrong position"),
        (start_another_run, "documents", "1 in a wrong position"),
        (go_on_after_the_stop, "documents", "1 after the stop document, which are not written"),
        (double_an_event, "documents", "duplicate events: 1"),
        (skip_two_events, "documents", "missing events, by sequence numbers: 2"),
        (exaggerate, "progress", "nodes with more rows than the documents have: 1"),
        (make_up_a_node, "progress", "nodes that do not follow from the documents: 1"),
        (call_it_written, "progress", "the run is written, but nodes have unconfirmed rows: 2"),
    ],
)
def test_damage_to_a_journal_is_found(damage: Callable[[Path], None], where: str, problem: str, path: Path) -> None:
    assert found_in(path) == []
    damage(path)
    assert (where, problem) in found_in(path)


def test_a_written_journal_without_a_stop_is_found(tmp_path: Path) -> None:
    path = journaled(a_run()[:-1], tmp_path)
    call_it_written(path)
    assert ("state", "the run is written, but there is no stop document") in found_in(path)


def test_pages_that_are_overwritten_are_found_with_what_to_do(tmp_path: Path) -> None:
    path = journaled(a_run(events=300), tmp_path)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2 // 4096 * 4096)
        file.write(b"\xff" * 8192)
    result = verify(path, OPTIONS, None)
    assert any(finding.where in ("file", "documents") for finding in result.findings)
    assert all(".recover" in finding.advice for finding in result.findings)


@pytest.mark.parametrize("contents", [b"", b"SQLite format 3\0" + bytes(200), b"no journal at all" * 500])
def test_a_file_that_is_no_journal_is_named(contents: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_bytes(contents)
    (finding,) = verify(path, OPTIONS, None).findings
    assert finding.where == "file"


def test_a_journal_of_a_newer_version_is_unreadable_and_not_called_damaged(path: Path) -> None:
    with open_run_file(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    result = verify(path, OPTIONS, None)
    assert result.state == "unreadable"
    (finding,) = result.findings
    assert "format 99" in finding.problem
    assert not finding.advice


def test_nothing_is_wrong_with_an_open_run(tmp_path: Path) -> None:
    result = verify(journaled(a_run()[:5], tmp_path), OPTIONS, None)
    assert (result.ok, result.state, result.documents) == (True, "open", 5)


def fails(_document: Any) -> Any:
    raise RuntimeError("as the test wants it")


def test_a_document_that_cannot_be_written_is_found_unless_that_is_why_the_run_is_in_quarantine(path: Path) -> None:
    options = WritingOptions(plugins=Plugins(patches={"event": f"{__name__}:fails"}))
    (finding,) = verify(path, options, None).findings
    assert (finding.where, "as the test wants it" in finding.problem) == ("document 2", True)
    with Journal(path, "write") as journal:
        journal.set("outcome", "failed")
    assert verify(path, options, None).ok


def contents_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


@pytest.mark.parametrize("damage", [None, flip_a_bit, lose_two_documents])
def test_nothing_in_the_directory_is_changed(damage: Callable[[Path], None] | None, path: Path) -> None:
    if damage is not None:
        damage(path)
    before = contents_of(path.parent)
    verify(path, OPTIONS, None)
    assert contents_of(path.parent) == before


def test_what_a_killed_writer_left_is_read_and_not_tidied_up(path: Path) -> None:
    program = (
        "import os, sys\n"
        "from tiledbroker import Journal\n"
        "journal = Journal(sys.argv[1], 'write')\n"
        "journal.append_one('event', b'\\xc1')\n"
        "os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program, path], check=True)
    log = path.with_name(path.name + "-wal")
    before = log.read_bytes()
    assert before
    assert ("documents", "1 not in the encoding of journals") in found_in(path)
    assert log.read_bytes() == before


def test_a_journal_may_grow_meanwhile(tmp_path: Path) -> None:
    documents = a_run(events=400)
    path = journaled(documents[:2], tmp_path)
    ended = threading.Event()

    def grow() -> None:
        with Journal(path, "write") as journal:
            for document in documents[2:]:
                add(journal, [document])
        ended.set()

    thread = threading.Thread(target=grow)
    thread.start()
    while not ended.is_set():
        assert found_in(path) == []
    thread.join()
    assert verify(path, OPTIONS, None).documents == len(documents)


# Tiled


@pytest.fixture
def connection(tiled_server: TiledServer) -> Connection:
    return connection_to(tiled_server)


def connection_to(server: TiledServer) -> Connection:
    return Connection(server.client, threading.Event(), lambda _event, **_detail: None, patience=30.0)


@pytest.fixture
def compared(connection: Connection) -> Callable[[Path], Verification]:
    return lambda path: verify(path, OPTIONS, connection)


@pytest.fixture
def written(tmp_path: Path, readable: Path, tiled_server: TiledServer) -> tuple[Path, str]:
    """A journal, and the uid of its run, all of which is in Tiled."""
    documents = a_run(frames=readable / tmp_path.name)
    path = journaled(documents, tmp_path / "journals")
    assert write(path, tiled_server) == "written"
    return path, uid_of(documents)


def test_a_run_that_is_all_there_is_well_on_every_storage(
    storage_server: TiledServer, tmp_path: Path, readable: Path
) -> None:
    documents = a_run(events=25, frames=readable / tmp_path.name, pairs=True)
    path = journaled(documents, tmp_path)
    assert write(path, storage_server) == "written"
    result = verify(path, OPTIONS, connection_to(storage_server))
    assert result.findings == ()
    lists = storage_server.storage != "sqlite"  # elsewhere pairs have a node of their own
    assert (result.nodes, result.rows) == ((5, 75) if lists else (6, 100))


class Spoiler:
    """Changes what Tiled holds of a run: through its API, and behind its back."""

    def __init__(self, server: TiledServer, uid: str) -> None:
        self.server = server
        self.uid = uid
        self.table = f"{uid}/primary/internal"
        self.nodes = Nodes(connection_to(server))

    def sql(self, statement: str, **values: Any) -> None:
        parameters = self.nodes.data_source(self.table)["parameters"]
        with closing(sqlite3.connect(self.server._directory / "tables.db", timeout=30)) as database, database:
            where = f"_dataset_id = {parameters['dataset_id']}"
            database.execute(statement.format(table=f'"{parameters["table_name"]}"', ours=where), values)

    def double_a_row(self) -> None:
        columns = "_dataset_id, _partition_id, " + ", ".join(f'"{name}"' for name, _ in self.nodes.columns(self.table))
        self.sql(f"INSERT INTO {{table}} ({columns}) SELECT {columns} FROM {{table}} WHERE {{ours}} AND seq_num = 3")

    def lose_a_row(self) -> None:
        self.sql("DELETE FROM {table} WHERE {ours} AND seq_num = 3")

    def add_a_strange_row(self) -> None:
        self.double_a_row()
        self.sql("UPDATE {table} SET seq_num = 70 WHERE {ours} AND rowid = (SELECT max(rowid) FROM {table})")

    def forget_the_order(self) -> None:
        self.nodes.set_order(self.table, ())
        self.sql("UPDATE {table} SET rowid = rowid + 1000000 WHERE {ours} AND seq_num = 3")

    def change_a_value(self) -> None:
        self.sql("UPDATE {table} SET comment = 'not so' WHERE {ours} AND seq_num = 3")

    def lose_a_row_and_change_a_value(self) -> None:
        self.lose_a_row()
        self.sql("UPDATE {table} SET x = 99 WHERE {ours} AND seq_num = 5")

    def change_an_array(self) -> None:
        values = numpy.full((1, 30), -1.0)
        self.nodes.grow(f"{self.uid}/primary/wave", WriteArray(f"{self.uid}/primary/wave", 3, values))

    def lengthen_an_array(self) -> None:
        values = numpy.full((2, 30), -1.0)
        self.nodes.grow(f"{self.uid}/primary/wave", WriteArray(f"{self.uid}/primary/wave", 6, values))

    def shorten_a_file(self) -> None:
        path = f"{self.uid}/primary/camera"
        source = self.nodes.data_source(path)
        structure = {**source["structure"], "shape": [5, 2, 3], "chunks": [[1] * 5, [2], [3]]}
        self.nodes.put_data_source(path, {**source, "structure": structure}, repeat=True)

    def delete_an_array(self) -> None:
        self.nodes.delete(f"{self.uid}/primary/wave")

    def replace_an_array(self) -> None:
        self.delete_an_array()
        self.nodes.create(CreateContainer(f"{self.uid}/primary/wave", {}))

    def change_the_plan(self) -> None:
        start = {**self.nodes.read(self.uid)["metadata"]["start"], "plan_name": "scan"}
        self.nodes.set_metadata(self.uid, {"start": start})

    def forget_the_stop(self) -> None:
        self.nodes.set_metadata(self.uid, {"stop": None})

    def leave_a_copy(self) -> None:
        self.nodes.create(CreateContainer(f"{self.uid}/primary/internal_rewrite", {}))

    def add_notes(self) -> None:
        self.nodes.set_metadata(f"{self.uid}/primary", {"notes": ["the detector is broken"]})

    def change_the_descriptor(self) -> None:
        self.nodes.set_metadata(f"{self.uid}/primary", {"hints": {"det": 1}})


@pytest.mark.parametrize(
    ("spoil", "where", "column", "problem"),
    [
        (Spoiler.double_a_row, "primary/internal", None, "1 rows are there too often"),
        (Spoiler.lose_a_row, "primary/internal", None, "1 rows are missing"),
        (Spoiler.add_a_strange_row, "primary/internal", None, "1 rows are there that the journal does not have"),
        (Spoiler.forget_the_order, "primary/internal", None, "the rows are out of order, at 1 places"),
        (Spoiler.change_a_value, "primary/internal", "comment", "1 values differ"),
        (Spoiler.change_an_array, "primary/wave", None, "1 rows differ"),
        (Spoiler.lengthen_an_array, "primary/wave", None, "2 rows are there that the journal does not have"),
        (Spoiler.shorten_a_file, "primary/camera", None, "is registered with other shape"),
        (Spoiler.delete_an_array, "primary/wave", None, "is missing"),
        (Spoiler.replace_an_array, "primary/wave", None, "its kind is container, but should be array"),
        (Spoiler.change_the_plan, "run", None, "has a different 'start' in its metadata"),
        (Spoiler.forget_the_stop, "run", None, "has no 'stop' in its metadata"),
        (Spoiler.leave_a_copy, "primary/internal_rewrite", None, "is in Tiled, but does not follow from the journal"),
        (Spoiler.add_notes, "primary", None, "has notes that the journal does not yield"),
        (Spoiler.change_the_descriptor, "primary", None, "has a different 'hints' in its metadata"),
    ],
)
def test_what_is_wrong_in_tiled_is_found_and_nothing_else(  # noqa: PLR0917
    spoil: Callable[[Spoiler], None],
    where: str,
    column: str | None,
    problem: str,
    written: tuple[Path, str],
    tiled_server: TiledServer,
    compared: Callable[[Path], Verification],
) -> None:
    path, uid = written
    spoil(Spoiler(tiled_server, uid))
    findings = compared(path).findings
    assert (findings[0].where, findings[0].column, findings[0].problem) == (where, column, problem)
    assert {finding.where for finding in findings} == {where}


EMPTY_ARRAY = Fault("empty", status=200, headers={"Content-Type": "application/octet-stream"})
HALF_AN_ARRAY = replace(EMPTY_ARRAY, body=bytes(30 * 8))
CUT_ARRAY = replace(EMPTY_ARRAY, body=bytes(7))
CUT_TABLE = Fault("cut", status=200, headers={"Content-Type": "application/vnd.apache.arrow.file"}, body=b"ARROW1")
NO_LIST = Fault("null", status=200, headers={"Content-Type": "application/json"}, body=b'{"data": null}')


@pytest.mark.parametrize(
    ("path", "fault", "where", "problem"),
    [
        ("array/full", EMPTY_ARRAY, "primary/wave", "6 rows are missing from what Tiled gives"),
        ("array/full", HALF_AN_ARRAY, "primary/wave", "5 rows are missing from what Tiled gives"),
        ("array/full", CUT_ARRAY, "primary/wave", "cannot be read back: Tiled's answer cannot be used"),
        ("table/partition", CUT_TABLE, "primary/internal", "cannot be read back: Tiled's answer cannot be used"),
        ("search", NO_LIST, "run", "cannot be read back: Tiled's answer cannot be used: TypeError"),
        ("metadata", NO_LIST, "run", "cannot be read back: Tiled's answer cannot be used: TypeError"),
    ],
)
def test_an_answer_that_has_less_than_it_should_is_no_proof_and_not_the_journal_s_fault(  # noqa: PLR0917
    path: str, fault: Fault, where: str, problem: str, written: tuple[Path, str], tiled_server: TiledServer
) -> None:
    with FaultyProxy(tiled_server.uri) as proxy, proxy.client(tiled_server.api_key) as client:
        connection = Connection(lambda: client, threading.Event(), lambda _event, **_detail: None, patience=30.0)
        assert verify(written[0], OPTIONS, connection).ok
        proxy.script("GET", path, fault)
        findings = verify(written[0], OPTIONS, connection).findings
    assert findings[0].where == where
    assert findings[0].problem.startswith(problem)
    assert {finding.advice for finding in findings} == {""}


def test_a_list_of_runs_that_is_none_is_said(tiled_server: TiledServer) -> None:
    with FaultyProxy(tiled_server.uri) as proxy, proxy.client(tiled_server.api_key) as client:
        connection = Connection(lambda: client, threading.Event(), lambda _event, **_detail: None, patience=30.0)
        proxy.script("GET", "search", NO_LIST)
        with pytest.raises(TiledUnavailable, match="list of runs cannot be used"):
            runs_without_journal(connection, [])


def test_a_node_that_tiled_cannot_read_is_found_and_the_rest_compared(
    written: tuple[Path, str], tiled_server: TiledServer
) -> None:
    path, uid = written
    Spoiler(tiled_server, uid).sql("UPDATE {table} SET x = 'no number' WHERE {ours} AND seq_num = 3")
    connection = Connection(tiled_server.client, threading.Event(), lambda _event, **_detail: None, patience=0.5)
    (finding,) = verify(path, OPTIONS, connection).findings
    assert finding.where == "primary/internal"
    assert finding.problem.startswith("cannot be read back: 500: ")
    Spoiler(tiled_server, uid).change_an_array()
    assert {finding.where for finding in verify(path, OPTIONS, connection).findings} == {
        "primary/internal",
        "primary/wave",
    }


def test_a_server_that_reads_nothing_is_no_finding(written: tuple[Path, str], tiled_server: TiledServer) -> None:
    with FaultyProxy(tiled_server.uri) as proxy, proxy.client(tiled_server.api_key) as client:
        connection = Connection(lambda: client, threading.Event(), lambda _event, **_detail: None, patience=0.5)
        proxy.script("GET", "table", *[answer(500)] * 99)
        proxy.script("GET", "metadata", *[PASS] * 5, *[answer(500)] * 99)
        with pytest.raises(TiledUnavailable):
            verify(written[0], OPTIONS, connection)


def test_values_are_compared_also_where_rows_are_missing(
    written: tuple[Path, str], tiled_server: TiledServer, compared: Callable[[Path], Verification]
) -> None:
    path, uid = written
    Spoiler(tiled_server, uid).lose_a_row_and_change_a_value()
    missing, differing = compared(path).findings
    assert missing.problem == "1 rows are missing"
    assert (differing.column, differing.count) == ("x", 1)
    assert differing.examples[0][1:] == (4 / 3, 99.0)


def test_of_an_open_run_only_what_is_confirmed_has_to_be_there(
    tmp_path: Path, tiled_server: TiledServer, compared: Callable[[Path], Verification]
) -> None:
    documents = a_run()
    path = journaled(documents[:5], tmp_path)
    assert write(path, tiled_server) == ""
    with Journal(path, "write") as journal:
        add(journal, documents[5:7])
    assert compared(path).ok
    Spoiler(tiled_server, uid_of(documents)).lose_a_row()
    (finding,) = compared(path).findings
    assert finding.problem == "1 rows are missing"


def test_a_run_of_which_nothing_is_in_tiled_yet_is_well(path: Path, compared: Callable[[Path], Verification]) -> None:
    result = compared(path)
    assert (result.ok, result.nodes) == (True, 0)


def test_a_run_that_is_gone_from_tiled_is_found(
    written: tuple[Path, str], tiled_server: TiledServer, compared: Callable[[Path], Verification]
) -> None:
    path, uid = written
    tiled_server.client()[uid].delete(recursive=True, external_only=False)
    finding = compared(path).findings[0]
    assert (finding.where, finding.problem) == ("run", "is missing")


def test_rows_of_a_run_that_was_rewound_are_in_order(
    tmp_path: Path, tiled_server: TiledServer, compared: Callable[[Path], Verification]
) -> None:
    run = compose_run()
    stream = run.compose_descriptor(name="primary", data_keys={"x": NUMBER, "X": NUMBER, "flag": FLAG})
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for i, seq_num in enumerate([1, 2, 3, 2, 3, 4]):
        data = {"x": i / 2, "X": float(i), "flag": True}
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 0.0), seq_num=seq_num, time=float(i))
        documents.append(("event", event))
    path = journaled([*documents, ("stop", run.compose_stop())], tmp_path)
    assert write(path, tiled_server) == "written"
    assert compared(path).findings == ()


# The alignment of rows


@given(st.lists(st.integers(0, 5), max_size=12), st.lists(st.integers(0, 5), max_size=12), st.booleans())
def test_every_row_finds_one_of_its_key_or_none_is_left(wanted: list[int], have: list[int], complete: bool) -> None:
    def keys(values: list[int]) -> Any:
        return numpy.array(values, float).reshape(-1, 1)

    required = len(wanted) if complete else len(wanted) // 2
    alignment = Alignment(keys(wanted), keys(have), required)
    places = alignment.places.tolist()
    matched = [place for place in places if place >= 0]
    assert len(set(matched)) == len(matched)
    assert all(have[place] == value for value, place in zip(wanted, places, strict=True) if place >= 0)
    for key in range(6):
        assert sum(have[place] == key for place in matched) == min(wanted.count(key), have.count(key))
    counts = {finding.problem.split(" ", 1)[1]: finding.count for finding in alignment.findings("", "k", ordered=False)}
    surplus = [max(have.count(key) - wanted.count(key), 0) for key in range(6)]
    known = [key in wanted for key in range(6)]
    assert counts.get("rows are there too often", 0) == sum(
        n for n, is_known in zip(surplus, known, strict=True) if is_known
    )
    strange = counts.get("rows are there that the journal does not have", 0)
    assert strange == sum(n for n, is_known in zip(surplus, known, strict=True) if not is_known)
    assert counts.get("rows are missing", 0) == sum(place < 0 for place in places[:required])


# The command


def test_the_command_names_each_run_and_says_with_its_code_if_something_is_wrong(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = journaled(a_run(), tmp_path / "journals")
    assert main(["verify", str(path.parent)]) == ExitCode.INCOMPLETE
    assert capsys.readouterr().out.count("  no findings so far") == 2
    flip_a_bit(path)
    assert main(["verify", str(path.parent)]) == ExitCode.DIFFERS
    assert "1 with a wrong checksum" in capsys.readouterr().out
    assert main(["verify", str(other)]) == ExitCode.INCOMPLETE
    assert main(["verify", other.stem[:12], str(path.parent)]) == ExitCode.INCOMPLETE
    monkeypatch.setenv("TILEDWRITER_JOURNAL_DIR", str(path.parent))
    assert main(["verify"]) == ExitCode.DIFFERS


def test_the_command_tells_programs_what_differs(written: tuple[Path, str], tiled_server: TiledServer) -> None:
    path, uid = written
    command = ("verify", path, "--tiled", tiled_server.uri, "--json")
    Spoiler(tiled_server, uid).change_a_value()
    result = run_command(*command, TILED_API_KEY=tiled_server.api_key)
    assert result.returncode == ExitCode.DIFFERS
    (report,) = json.loads(result.stdout)
    assert (report["uid"], report["state"], report["ok"], report["nodes"]) == (uid, "written", False, 5)
    (finding,) = report["findings"]
    assert finding["examples"] == [{"row": 2, "expected": "é 2", "found": "not so"}]


def test_tiled_of_the_configuration_is_asked(
    tmp_path: Path, written: tuple[Path, str], tiled_server: TiledServer
) -> None:
    path, uid = written
    config = tmp_path / "config.yaml"
    config.write_text(f"tiled: {tiled_server.uri}\n")
    Spoiler(tiled_server, uid).change_a_value()
    result = run_command("verify", path, "--config", config, TILED_API_KEY=tiled_server.api_key)
    assert result.returncode == ExitCode.DIFFERS
    assert "compared with Tiled" in result.stdout
    config.write_text("tiled: http://127.0.0.1:9\n")
    assert run_command("verify", path, "--config", config).returncode == ExitCode.FAILED
    config.write_text("journal_dir: /nowhere\n")
    result = run_command("verify", path, "--config", config)
    assert (result.returncode, "Only journals were checked" in result.stdout) == (ExitCode.OK, True)


@pytest.mark.parametrize("named", ["nobody", "/nowhere/x.sqlite"])
def test_a_run_that_is_not_there_is_not_found(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEDWRITER_JOURNAL_DIR", str(tmp_path))
    assert main(["verify", named]) == ExitCode.NOT_FOUND


def test_credentials_that_tiled_does_not_accept_end_the_command(path: Path, tiled_server: TiledServer) -> None:
    result = run_command("verify", path, "--tiled", tiled_server.uri, TILED_API_KEY="wrong")
    assert (result.returncode, result.stdout) == (ExitCode.FAILED, "")


def test_what_was_found_before_tiled_was_asked_decides_the_exit_code(
    path: Path, tmp_path: Path, tiled_server: TiledServer
) -> None:
    damaged = journaled(a_run(), tmp_path)
    flip_a_bit(damaged)
    result = run_command("verify", damaged, path, "--tiled", tiled_server.uri, TILED_API_KEY="wrong")
    assert "1 run of 2" in result.stderr
    assert result.returncode == ExitCode.DIFFERS


def test_runs_in_tiled_that_no_journal_knows_are_named(
    tmp_path: Path, readable: Path, written: tuple[Path, str], tiled_server: TiledServer
) -> None:
    path, uid = written
    stranger = a_run(frames=readable / f"{tmp_path.name}-stranger")
    assert write(journaled(stranger, tmp_path / "elsewhere"), tiled_server) == "written"
    key = {"TILED_API_KEY": tiled_server.api_key}
    told = run_command("verify", path.parent, "--tiled", tiled_server.uri, **key)
    assert told.returncode == ExitCode.OK
    assert re.search(rf"in Tiled without a journal in {re.escape(str(path.parent))}: ", told.stdout)
    reports = json.loads(run_command("verify", path.parent, "--tiled", tiled_server.uri, "--json", **key).stdout)
    unknown = {report["uid"] for report in reports if report["state"] == "no journal"}
    assert uid_of(stranger) in unknown
    assert uid not in unknown
    # Of single runs, nothing is said about others.
    assert "without a journal" not in run_command("verify", path, "--tiled", tiled_server.uri, **key).stdout
