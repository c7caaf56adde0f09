"""A run's documents come out of its journal whole: as lines that can be replayed, and as tables."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
import pytest
from event_model import compose_run, pack_event_page
from stored_runs import NUMBER, Documents, a_run, journaled, uid_of

from tiledbroker import Journal
from tiledwriter.callback._backup import read_backup
from tiledwriter.catalog._connection import Connection
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main
from tiledwriter.journals._export import FURTHER, MAX_COLUMNS
from tiledwriter.journals._replay import replay
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import TiledServer
from tiledwriter.verify._verification import verify

pytestmark = [pytest.mark.filterwarnings("default:::tiled")]


def with_values(*events: dict[str, Any], keys: dict[str, Any] | None = None) -> Documents:
    """A run with one event for each of these values."""
    run = compose_run()
    declared = keys or {key: NUMBER for event in events for key in event}
    stream = run.compose_descriptor(name="primary", data_keys=declared)
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for i, data in enumerate(events):
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, float(i)), validate=False)
        documents.append(("event", event))
    return [*documents, ("stop", run.compose_stop())]


def exported(path: Path, kind: str, out: Path) -> Path:
    assert main(["export", str(path), str(out), "--format", kind]) == ExitCode.OK
    return out


def rows(database: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def test_lines_hold_exactly_the_documents_of_the_journal(tmp_path: Path) -> None:
    values = [
        {"x": 2**80, "y": b"\xff"},
        {"x": math.nan, "y": numpy.arange(3, dtype="<u2")},
        {"x": 1j, "y": {"a": [1]}},
    ]
    path = journaled(with_values(*values), tmp_path / "journals")
    entries = list(read_backup(exported(path, "jsonl", tmp_path / "run.jsonl")))
    with Journal(path) as journal:
        expected = [(record.name, record.body) for record in journal.records()]
    assert [(entry.name, entry.body) for entry in entries] == expected


def test_lines_that_are_replayed_are_the_run_of_the_journal(
    tmp_path: Path, readable: Path, tiled_server: TiledServer
) -> None:
    path = journaled(a_run(events=30, frames=readable / tmp_path.name), tmp_path / "journals")
    lines = exported(path, "jsonl", tmp_path / "run.jsonl")
    (result,) = replay([lines], tiled_server.client, WritingOptions(), tmp_path, threading.Event())
    assert result.outcome == "written"
    with Journal(path, "write") as journal:
        journal.set("outcome", "written")  # now everything has to be there
    connection = Connection(tiled_server.client, threading.Event(), lambda _event, **_detail: None, patience=30.0)
    verified = verify(path, WritingOptions(), connection)
    assert verified.nodes == 5
    assert {finding.where for finding in verified.findings} == {"progress"}


def test_lines_go_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = journaled(a_run(), tmp_path)
    assert main(["export", str(path), "-"]) == ExitCode.OK
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert names == ["start", "descriptor", *["event"] * 6, "stop"]


def test_tables_have_a_row_for_each_event_with_a_column_for_each_data_key(tmp_path: Path) -> None:
    documents = with_values({"x": 1.5, "name": "a"}, {"x": None, "name": "é"}, {"x": 2.5, "name": None})
    out = exported(journaled(documents, tmp_path / "journals"), "sqlite", tmp_path / "run.sqlite")
    expected = [(2, "primary", 1, 1.5, "a", 0.0), (3, "primary", 2, None, "é", 1.0), (4, "primary", 3, 2.5, None, 2.0)]
    assert rows(out, "SELECT idx, stream, seq_num, x, name, ts_x FROM events ORDER BY idx") == expected
    assert rows(out, "SELECT uid, idx FROM start") == [(uid_of(documents), 0)]
    assert rows(out, "SELECT exit_status, json_extract(num_events, '$.primary') FROM stop") == [("success", 3)]
    assert json.loads(rows(out, "SELECT data_keys FROM descriptors")[0][0]).keys() == {"x", "name"}


def test_events_in_pages_are_rows_like_others(tmp_path: Path) -> None:
    single = with_values({"x": 1.0}, {"x": 2.0})
    paged: Documents = [*single[:2], ("event_page", pack_event_page(*[doc for _, doc in single[2:4]])), single[-1]]
    tables = [
        exported(journaled(documents, tmp_path / f"{i}"), "sqlite", tmp_path / f"{i}.sqlite")
        for i, documents in enumerate([single, paged])
    ]
    query = "SELECT seq_num, x, ts_x, time, uid FROM events"
    assert rows(tables[0], query) == rows(tables[1], query)


def test_keys_that_sqlite_takes_for_the_same_have_columns_of_their_own(tmp_path: Path) -> None:
    documents = with_values({"x": 1, "X": 2, "time": 3, "ts_x": 4, "a]b": 5})
    out = exported(journaled(documents, tmp_path / "journals"), "sqlite", tmp_path / "run.sqlite")
    names = [name for _, name, *_ in rows(out, "PRAGMA table_info(events)")]
    values = dict(zip(names, rows(out, "SELECT * FROM events")[0], strict=True))
    assert [values[name] for name in ("x", "X_", "time_", "ts_x", "a_b")] == [1, 2, 3, 4, 5]
    assert values["time"] == documents[2][1]["time"]


def test_values_that_sqlite_has_no_type_for_are_text(tmp_path: Path) -> None:
    values = [
        2**80,
        [1, 2],
        {"a": None},
        numpy.arange(2.0),
        "\ud800",
        True,
        numpy.int64(3),
        b"\xff",
        numpy.float64(0.5),
    ]
    expected = [str(2**80), "[1, 2]", '{"a": null}', "[0.0, 1.0]", "\\ud800", 1, 3, b"\xff", 0.5]
    documents = with_values({f"k{i}": value for i, value in enumerate(values)})
    out = exported(journaled(documents, tmp_path / "journals"), "sqlite", tmp_path / "run.sqlite")
    columns = ", ".join(f"k{i}" for i in range(len(values)))
    assert list(rows(out, f"SELECT {columns} FROM events")[0]) == expected
    types = ", ".join(f"typeof(k{i})" for i in (0, 1, 5, 6, 7, 8))
    assert rows(out, f"SELECT {types} FROM events") == [("text", "text", "integer", "integer", "blob", "real")]


def test_no_value_is_converted_to_the_type_of_others(tmp_path: Path) -> None:
    values: list[Any] = [0.5, 2**53 + 1, *range(1100), 2**63 + 3, "007", "1e3", b"5", 1.0]
    documents = with_values(*({"x": value} for value in values))
    out = exported(journaled(documents, tmp_path / "journals"), "sqlite", tmp_path / "run.sqlite")
    found = [value for (value,) in rows(out, "SELECT x FROM events ORDER BY idx")]
    expected = [str(2**63 + 3) if value == 2**63 + 3 else value for value in values]
    assert [(type(value), value) for value in found] == [(type(value), value) for value in expected]


def test_the_history_is_a_table(tmp_path: Path) -> None:
    path = journaled(a_run(), tmp_path / "journals")
    with Journal(path, "write") as journal:
        journal.note("worker started", pid=7)
    out = exported(path, "sqlite", tmp_path / "run.sqlite")
    assert rows(out, "SELECT event, json_extract(detail, '$.pid') FROM history") == [("worker started", 7)]


def test_what_is_beyond_the_columns_of_a_table_is_in_a_last_one(tmp_path: Path) -> None:
    data = {f"k{i}": i for i in range(MAX_COLUMNS + 50)}
    out = exported(journaled(with_values(data), tmp_path / "journals"), "sqlite", tmp_path / "run.sqlite")
    (further,) = rows(out, f"SELECT {FURTHER} FROM events")[0]
    in_columns = {name for _, name, *_ in rows(out, "PRAGMA table_info(events)")}
    assert {key for key in data if key not in in_columns} == {key for key in json.loads(further) if key in data}
    assert json.loads(further)[f"k{MAX_COLUMNS + 49}"] == MAX_COLUMNS + 49


def test_a_column_whose_first_values_are_missing_is_made_later(tmp_path: Path) -> None:
    documents = with_values(*[{"x": None}] * 1500, {"x": 7}, keys={"x": NUMBER})
    out = exported(journaled(documents, tmp_path / "journals"), "sqlite", tmp_path / "run.sqlite")
    assert rows(out, "SELECT x FROM events WHERE x IS NOT NULL") == [(7,)]
    assert rows(out, "SELECT count(*) FROM events") == [(1501,)]


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.write_text("mine")
    assert main(["export", str(journaled(a_run(), tmp_path)), str(out)]) == ExitCode.FAILED
    assert out.read_text() == "mine"
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_of_a_damaged_journal_nothing_is_made(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = journaled(a_run()[:3], tmp_path)
    with Journal(path, "write") as journal:
        journal.append_one("event", b"\xc1")
    assert main(["export", str(path), str(tmp_path / "out"), "--format", kind]) == ExitCode.FAILED
    assert "verify" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*")) + list(tmp_path.glob(".*out*"))


def test_a_database_does_not_go_to_standard_output(tmp_path: Path) -> None:
    assert main(["export", str(journaled(a_run(), tmp_path)), "-", "--format", "sqlite"]) == ExitCode.USAGE


def test_a_written_run_without_a_stop_document_is_contradictory(tmp_path: Path, capsys) -> None:
    path = journaled(a_run()[:-1], tmp_path)
    with Journal(path, "write") as journal:
        journal.set("outcome", "written")
    assert main(["export", str(path), str(tmp_path / "out")]) == ExitCode.DIFFERS
    ended = capsys.readouterr()
    assert "Wrote " in ended.out
    assert "says that it is written, but its last document is no stop document" in ended.err


def test_a_run_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    assert main(["export", "nobody", str(tmp_path / "out"), str(tmp_path)]) == ExitCode.NOT_FOUND


def test_tables_of_an_old_run_have_its_datums(tmp_path: Path) -> None:
    run = compose_run()
    resource = run.compose_resource(spec="S", root="/", resource_path="a", resource_kwargs={})
    page = {"resource": resource.resource_doc["uid"], "datum_id": ["d/1"], "datum_kwargs": {"i": [1]}}
    bulk = {"resource": resource.resource_doc["uid"], "datum_ids": ["d/2"], "datum_kwarg_list": [{"i": 2}]}
    documents: Documents = [
        ("start", run.start_doc),
        ("resource", resource.resource_doc),
        ("datum", resource.compose_datum(datum_kwargs={"i": 0})),
        ("datum_page", page),
        ("bulk_datum", bulk),
    ]
    path = journaled(documents, tmp_path / "journals")
    out = exported(path, "sqlite", tmp_path / "run.sqlite")
    assert rows(out, "SELECT json_extract(datum_kwargs, '$.i') FROM datums") == [(0,), (1,), (2,)]
    assert rows(out, "SELECT spec FROM resources") == [("S",)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda event: event.pop("timestamps"),
        lambda event: event.update(timestamps=None),
        lambda event: event.update(data=[1, 2]),
    ],
)
def test_a_document_without_the_form_of_its_kind_is_in_a_table_of_its_own(spoil, tmp_path: Path) -> None:
    documents = with_values({"x": 1}, {"x": 2})
    spoil(documents[2][1])
    out = exported(journaled(documents, tmp_path / "journals"), "sqlite", tmp_path / "out.sqlite")
    assert rows(out, "SELECT idx, name FROM malformed") == [(2, "event")]
    assert rows(out, "SELECT x FROM events") == [(2,)]


def test_a_page_with_columns_of_different_length_is_not_filled_up(tmp_path: Path) -> None:
    documents = with_values({"x": 1}, {"x": 2})
    page = pack_event_page(*[documents[2][1], documents[3][1]])
    page["data"]["x"] = [1]
    documents[2:4] = [("event_page", page)]
    out = exported(journaled(documents, tmp_path / "journals"), "sqlite", tmp_path / "out.sqlite")
    assert rows(out, "SELECT idx, name FROM malformed") == [(2, "event_page")]


def test_keys_that_are_no_texts_have_their_columns(tmp_path: Path) -> None:
    documents = with_values({"x": 1})
    documents[2][1]["data"] |= {1: 2, None: 3}
    out = exported(journaled(documents, tmp_path / "journals"), "sqlite", tmp_path / "out.sqlite")
    assert rows(out, 'SELECT x, "1", "None" FROM events') == [(1, 2, 3)]


def test_a_page_of_datums_with_columns_of_different_length_is_not_filled_up(tmp_path: Path) -> None:
    documents = with_values({"x": 1})
    page = {"resource": "file", "datum_id": ["a", "b"], "datum_kwargs": {"point_number": [0]}}
    documents.insert(2, ("datum_page", page))
    out = exported(journaled(documents, tmp_path / "journals"), "sqlite", tmp_path / "out.sqlite")
    assert rows(out, "SELECT idx, name FROM malformed") == [(2, "datum_page")]
