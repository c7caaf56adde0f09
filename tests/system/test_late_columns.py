"""Columns that have no value in their first rows: what SQLite's driver takes them for, and how they are read."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any

import numpy
import pytest
from event_model import compose_run
from stored_runs import COUNT, FLAG, NUMBER, TEXT, Documents, journaled, uid_of
from stored_runs import write as write_journal

from tiledwriter import TiledWriter
from tiledwriter.catalog import Connection
from tiledwriter.mapping import _fold as fold_module
from tiledwriter.mapping._late_columns import FIRST_ROWS
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import TiledServer
from tiledwriter.verify import verify

AFTER = 30
MISSING = {"level": math.nan, "word": None, "count": None, "flag": None, "list": None, "always": 0.5}
VALUES = {"level": 1.5, "word": "beam", "count": 7, "flag": True, "list": [1, 2], "always": 0.5}
KEYS = {
    "level": NUMBER,
    "word": TEXT,
    "count": COUNT,
    "flag": FLAG,
    "list": {"source": "test", "dtype": "array", "shape": [None]},
    "always": NUMBER,
}


def late(missing: int, keys: list[str]) -> Documents:
    """A run whose keys have no value in so many events, and then one each."""
    run = compose_run()
    keys = [*keys, "always"]
    stream = run.compose_descriptor(name="primary", data_keys={key: KEYS[key] for key in keys})
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for number in range(missing + AFTER):
        data = {key: (VALUES if number >= missing else MISSING)[key] for key in keys}
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, float(number)), validate=False)
        documents.append(("event", event))
    return [*documents, ("stop", run.compose_stop())]


def declared_late(missing: int) -> Documents:
    """A run with a further descriptor after so many events, which has more keys."""
    run = compose_run()
    one = run.compose_descriptor(name="primary", data_keys={"always": NUMBER})
    both = {"always": NUMBER, "level": NUMBER, "word": TEXT, "count": COUNT}
    other = run.compose_descriptor(name="primary", data_keys=both, object_keys={"detector": list(both)}, validate=False)
    documents: Documents = [("start", run.start_doc), ("descriptor", one.descriptor_doc)]
    for number in range(missing + AFTER):
        stream, keys = (one, ["always"]) if number < missing else (other, list(both))
        if number == missing:
            documents.append(("descriptor", other.descriptor_doc))
        data = {key: VALUES[key] for key in keys}
        stamps = dict.fromkeys(data, float(number))
        event = stream.compose_event(data=data, timestamps=stamps, seq_num=number + 1, validate=False)
        documents.append(("event", event))
    return [*documents, ("stop", run.compose_stop())]


def write(documents: Documents, directory: Path, server: TiledServer) -> Any:
    assert write_journal(journaled(documents, directory), server) == "written"
    return server.client()[uid_of(documents)]


def same(found: Any, expected: list[Any]) -> bool:
    return numpy.array_equal(numpy.asarray(found, float), numpy.asarray(expected, float), equal_nan=True)


@pytest.fixture
def pace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "while it is acquired":
        monkeypatch.setattr(fold_module, "MAX_PENDING_EVENT_BYTES", 10_000)


on_each_storage = pytest.mark.parametrize(
    ("storage_server", "pace"),
    [
        ("sqlite", "while it is acquired"),
        ("sqlite", "in one go"),
        ("postgresql", "while it is acquired"),
        ("duckdb", "in one go"),
    ],
    indirect=True,
)


@on_each_storage
@pytest.mark.usefixtures("pace")
def test_what_begins_late_is_read_as_it_was(storage_server: TiledServer, tmp_path: Path) -> None:
    run = write(late(FIRST_ROWS, ["level", "word", "count", "flag"]), tmp_path, storage_server)
    data = run.primary.read()
    assert same(data["level"], [math.nan] * FIRST_ROWS + [1.5] * AFTER)
    assert same(data["always"], [0.5] * (FIRST_ROWS + AFTER))
    assert list(data["word"].values[-AFTER:]) == ["beam"] * AFTER
    assert list(run.primary["count"].read()[-AFTER:]) == [7] * AFTER
    assert [str(flag) in ("True", "1", "1.0") for flag in run.primary["flag"].read()[-AFTER:]] == [True] * AFTER
    assert {str(text) for text in data["word"].values[:FIRST_ROWS]} <= {"", "None", "<NA>"}
    assert run.validate()


def test_json_that_begins_late_is_read_as_it_was(tiled_server: TiledServer, tmp_path: Path) -> None:
    run = write(late(FIRST_ROWS, ["list"]), tmp_path, tiled_server)
    texts = list(map(str, run.primary.read()["list"].values))
    assert texts[0] == "null"
    assert texts[-AFTER:] == ["[1, 2]"] * AFTER


@on_each_storage
@pytest.mark.usefixtures("pace")
def test_what_is_declared_late_is_read_as_it_was(storage_server: TiledServer, tmp_path: Path) -> None:
    run = write(declared_late(FIRST_ROWS + 6), tmp_path, storage_server)
    data = run.primary.read()
    rows = FIRST_ROWS + 6
    assert same(data["level"], [math.nan] * rows + [1.5] * AFTER)
    assert list(data["word"].values[-AFTER:]) == ["beam"] * AFTER
    assert list(run.primary["count"].read()[-AFTER:]) == [7] * AFTER
    stamps = run.primary.base["internal"].read()
    for key in ("level", "word", "count"):
        assert list(stamps[f"ts_{key}"][-AFTER:]) == [float(number) for number in range(rows, rows + AFTER)]
        assert all(numpy.isnan(stamps[f"ts_{key}"][1:rows]))


@pytest.mark.parametrize(
    ("key", "storage_server", "pace"),
    [(key, "sqlite", "while it is acquired") for key in ("word", "level")] + [("level", "postgresql", "in one go")],
    indirect=["storage_server", "pace"],
)
@pytest.mark.usefixtures("pace")
def test_a_single_late_key_is_read_as_it_was(storage_server: TiledServer, tmp_path: Path, key: str) -> None:
    run = write(late(FIRST_ROWS + 100, [key]), tmp_path, storage_server)
    assert list(run.primary.read()[key].values[-AFTER:]) == [VALUES[key]] * AFTER
    notes = " ".join(run.metadata.get("notes", []))
    assert ("could not be read from SQLite" in notes) == (storage_server.storage == "sqlite")


def test_a_column_that_begins_in_time_stays_a_column(tiled_server: TiledServer, tmp_path: Path) -> None:
    run = write(late(FIRST_ROWS - 1, ["level", "word"]), tmp_path, tiled_server)
    assert {"level", "word"} <= set(run.primary.base["internal"].columns)
    assert same(run.primary.read()["level"], [math.nan] * (FIRST_ROWS - 1) + [1.5] * AFTER)
    assert "SQLite" not in str(run.metadata.get("notes"))


def test_a_column_without_any_value_stays_a_column(tiled_server: TiledServer, tmp_path: Path) -> None:
    documents = late(FIRST_ROWS + 100, ["level", "word"])
    run = write([*documents[: -AFTER - 1], documents[-1]], tmp_path, tiled_server)
    assert {"level", "word"} <= set(run.primary.base["internal"].columns)
    assert same(run.primary.read()["level"], [math.nan] * (FIRST_ROWS + 100))


def test_a_run_that_an_earlier_version_wrote_is_readable_after_a_replay(
    tiled_server: TiledServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = late(FIRST_ROWS, ["level", "word"])
    with monkeypatch.context() as before:
        before.setattr("tiledwriter.mapping._late_columns.FIRST_ROWS", 10**9)
        run = write(documents, tmp_path / "before", tiled_server)
    with pytest.raises(Exception, match="500"):
        run.primary.read()
    path = journaled(documents, tmp_path / "after")
    assert write_journal(path, tiled_server) == "written"
    data = tiled_server.client()[uid_of(documents)].primary.read()
    assert same(data["level"], [math.nan] * FIRST_ROWS + [1.5] * AFTER)
    assert list(data["word"].values[-AFTER:]) == ["beam"] * AFTER


def test_the_callback_writes_it_as_the_service_does(tiled_server: TiledServer) -> None:
    documents = late(FIRST_ROWS, ["level", "word"])
    writer = TiledWriter(tiled_server.client(), batch_size=500)
    for name, document in documents:
        writer(name, document)
    data = tiled_server.client()[uid_of(documents)].primary.read()
    assert same(data["level"], [math.nan] * FIRST_ROWS + [1.5] * AFTER)
    assert list(data["word"].values[-AFTER:]) == ["beam"] * AFTER


def test_nothing_is_found_in_what_begins_late(tiled_server: TiledServer, tmp_path: Path) -> None:
    documents = late(FIRST_ROWS, ["level", "word", "count"])
    path = journaled(documents, tmp_path)
    assert write_journal(path, tiled_server) == "written"
    connection = Connection(tiled_server.client, threading.Event(), lambda _event, **_detail: None, patience=30.0)
    assert verify(path, WritingOptions(), connection).findings == ()
