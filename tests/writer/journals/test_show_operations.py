from __future__ import annotations

import json
import os
import sys

import numpy
import pytest
import tifffile
from event_model import compose_run
from warm import run_process

from tiledbroker import Encoder, Journal
from tiledwriter.catalog._catalog import TiledCatalog
from tiledwriter.journals._dry_run import DryRun
from tiledwriter.mapping._writing_options import WritingOptions

NUMBER = {"dtype": "number", "dtype_numpy": "<f8", "shape": [], "source": "test"}
WAVE = {"dtype": "array", "dtype_numpy": "<f8", "shape": [40], "source": "test"}
FRAMES = {"dtype": "array", "dtype_numpy": "<u2", "shape": [1, 2, 3], "source": "test", "external": "STREAM:"}


@pytest.fixture
def directory(tmp_path):
    """Two frames of three, as the server sees them."""
    frames = tmp_path / "server"
    frames.mkdir()
    for i in range(2):
        tifffile.imwrite(frames / f"img_{i:03d}.tif", numpy.zeros((2, 3), "<u2"))
    return frames


@pytest.fixture
def documents():
    """A run with a number, a wave form and a camera, and two files that nothing refers to."""
    run = compose_run(metadata={"plan_name": "count"})
    stream = run.compose_descriptor(name="primary", data_keys={"x": NUMBER, "wave": WAVE, "camera": FRAMES})
    parameters = {"template": "img_{:03d}.tif", "chunk_shape": [1, 2, 3], "join_method": "concat"}
    files, compose_datum = run.compose_stream_resource(
        mimetype="multipart/related;type=image/tiff",
        uri="file://localhost/nsls2/data/",
        data_key="camera",
        parameters=parameters,
    )
    unused = run.compose_stream_resource(
        mimetype="application/x-hdf5", uri="s3://bucket/x.h5", data_key="other", parameters={}
    ).stream_resource_doc
    emitted = [
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        ("stream_resource", files),
        ("stream_resource", unused),
        ("stream_datum", compose_datum(indices={"start": 0, "stop": 3}, descriptor=stream.descriptor_doc)),
    ]
    for i in range(3):
        data = {"x": i / 2, "wave": numpy.full(40, i)}
        emitted.append(("event", stream.compose_event(data=data, timestamps={"x": i, "wave": i})))
    return [*emitted, ("stop", run.compose_stop())]


@pytest.fixture
def write(tmp_path):
    def write(documents):
        encoder = Encoder()
        (tmp_path / "journals").mkdir(exist_ok=True)
        path = tmp_path / "journals" / "run.sqlite"
        with Journal(path, "create", run_uid=documents[0][1]["uid"]) as journal:
            for name, document in documents:
                journal.append_one(name, encoder.encode(document))
        return path

    return write


def show(path, *options, **environment):
    """Run the command, without anything in the environment that would lead to a server."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TILED")}
    return run_process(
        [sys.executable, "-m", "tiledwriter.cli.journal", "show", str(path), *map(str, options)],
        env={**clean, **environment},
        timeout=60,
    )


def shown(path, *options, **environment):
    """What the command says to programs."""
    result = show(path, "--json", *options, **environment)
    assert (result.returncode, result.stderr) == (0, "")
    return json.loads(result.stdout)


def test_operations_are_those_that_a_worker_would_apply(write, documents):
    path, uid = write(documents), documents[0][1]["uid"]
    report = shown(path, "--operations")
    assert (report["uid"], report["complete"], report["error"]) == (uid, True, None)
    assert [(item["operation"], item["path"].removeprefix(uid)) for item in report["operations"]] == [
        ("CreateContainer", ""),
        ("CreateContainer", "/primary"),
        ("RegisterExternal", "/primary/camera"),
        ("CreateArray", "/primary/wave"),
        ("WriteArray", "/primary/wave"),
        ("CreateTable", "/primary/internal"),
        ("AppendRows", "/primary/internal"),
        ("ExtendExternal", "/primary/camera"),
        ("DescribeExternal", "/primary/camera"),
        ("UpdateMetadata", ""),
        ("CloseStream", "/primary/wave"),
        ("CloseStream", "/primary/internal"),
        ("CloseStream", "/primary/camera"),
        ("CloseStream", "/primary"),
        ("CloseStream", ""),
    ]
    by_kind = {item["operation"]: item for item in reversed(report["operations"])}
    columns = [("seq_num", "int64"), ("time", "float64"), ("x", "float64"), ("ts_x", "float64"), ("ts_wave", "float64")]
    run, table, append = by_kind["CreateContainer"], by_kind["CreateTable"], by_kind["AppendRows"]
    assert (run["metadata"], run["specs"]) == (["start"], [["BlueskyRun", "3.0"]])
    assert [(column["name"], column["type"]) for column in table["columns"]] == columns
    assert table["order"] == ["seq_num", "time"]
    assert (append["first"], append["stop"], append["columns"]) == (0, 3, table["columns"])
    array, written = by_kind["CreateArray"], by_kind["WriteArray"]
    assert (array["dtype"], array["row_shape"], array["dims"][0]) == ("<f8", [40], "time")
    assert (written["first"], written["stop"], written["shape"], written["dtype"]) == (0, 3, [3, 40], "<f8")
    external = by_kind["ExtendExternal"]
    assert (external["first"], external["stop"]) == (0, 3)
    assert (external["shape"], external["chunks"]) == ([3, 2, 3], [[1, 1, 1], [2], [3]])
    assert (external["new_offset"], external["new_shape"]) == ([0, 0, 0], [3, 2, 3])
    assert (external["dtype"], external["mimetype"]) == ("<u2", "multipart/related;type=image/tiff")
    assert external["assets"] == [f"file://localhost/nsls2/data/img_{i:03d}.tif" for i in range(3)]
    assert by_kind["DescribeExternal"]["shape"] == [3, 2, 3]
    assert "assets" not in by_kind["DescribeExternal"]
    assert by_kind["UpdateMetadata"]["metadata"] == ["stop", "notes"]


def test_operations_are_shown_to_people(write, documents):
    result = show(write(documents), "--operations")
    uid = documents[0][1]["uid"]
    assert (result.returncode, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[:3] == [f"1 CreateContainer {uid}", "metadata start", "specs BlueskyRun 3.0"]
    assert "columns seq_num int64, time float64, x float64, ts_x float64, ts_wave float64" in lines
    assert "rows 0 to 3" in lines
    assert "chunks 3 x 1 | 2 | 3" in lines
    assert "dtype <u2" in lines
    assert lines[-1] == f"15 CloseStream {uid}"


def test_the_journal_is_only_looked_at(write, documents):
    path = write(documents)
    before = path.read_bytes()
    shown(path, "--operations", "--paths")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir() if file.name.endswith("-wal")] == []


# The same options as the service


def test_the_service_s_configuration_applies_and_needs_no_server(write, documents, tmp_path, directory):
    config = tmp_path / "config.yaml"
    config.write_text(f"path_map:\n  /nsls2/data: {directory}\nmax_array_size: 40\n")
    report = shown(write(documents), "--operations", "--config", config)
    assert report["max_array_size"] == 40
    tables = [item for item in report["operations"] if item["operation"] == "CreateTable"]
    assert {"name": "wave", "type": "list<float64>"} in tables[0]["columns"]
    (external,) = [item for item in report["operations"] if item["operation"] == "ExtendExternal"]
    assert external["assets"][0] == f"file://localhost{directory}/img_000.tif"


def test_the_environment_applies(write, documents):
    report = shown(write(documents), "--operations", TILEDWRITER_STREAMS='{"exclude": ["primary"]}')
    uid = documents[0][1]["uid"]
    assert {item["path"] for item in report["operations"]} == {uid}


def test_what_the_run_s_worker_has_settled_on_goes_before_the_configuration(write, documents, tmp_path):
    path = write(documents)
    with Journal(path, "write") as journal:
        journal.set("max_array_size", 7)
    report = shown(path, "--operations", TILEDWRITER_MAX_ARRAY_SIZE="40")
    assert report["max_array_size"] == 7
    assert "CreateArray" in {item["operation"] for item in report["operations"]}


def test_columns_are_as_wide_as_the_widest_value_needs(write):
    run = compose_run()
    integer = {"dtype": "integer", "shape": [], "source": "test"}
    stream = run.compose_descriptor(name="primary", data_keys={"n": integer})
    events = [("event", stream.compose_event(data={"n": n}, timestamps={"n": 0})) for n in (1, 2, 0.5)]
    documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc), *events, ("stop", run.compose_stop())]
    operations = shown(write(documents), "--operations")["operations"]
    (table,) = [item for item in operations if item["operation"] == "CreateTable"]
    assert {"name": "n", "type": "float64"} in table["columns"]


@pytest.mark.filterwarnings("default")  # the reading client warns about itself
def test_the_operations_of_a_dry_run_are_applied_by_a_server(write, documents, tmp_path, tiled_server, directory):
    import threading

    from tiledwriter.catalog._connection import Connection
    from tiledwriter.mapping._path_map import PathMap

    path, uid = write(documents), documents[0][1]["uid"]
    with Journal(path, "write") as journal:
        dry_run = DryRun(journal, WritingOptions(path_map=PathMap.of({"/nsls2/data": str(directory)})))
        connection = Connection(tiled_server.client, threading.Event(), journal.note)
        assert TiledCatalog(connection, journal, quiet_period=0.2).apply(list(dry_run)) == []
    run = tiled_server.client()[uid]
    assert run["primary"]["wave"].shape == (3, 40)
    assert list(run["primary"]["x"].read()) == [0.0, 0.5, 1.0]


# Runs that are not complete


def test_a_run_that_cannot_be_folded_is_shown_up_to_the_document_that_is_wrong(write, documents):
    name, wrong = documents[6]
    documents[6] = (name, {**wrong, "descriptor": "unknown"})
    path = write(documents)

    result = show(path, "--operations")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("tiledwriter-journal: Document 6 (event): DocumentError: ")
    assert "rows          0 to 1" in result.stdout
    assert "CloseStream" not in result.stdout

    result = show(path, "--operations", "--json")
    assert result.returncode == 1
    report = json.loads(result.stdout)
    assert (report["error"]["index"], report["error"]["name"], report["complete"]) == (6, "event", False)
    assert "AppendRows" in {item["operation"] for item in report["operations"]}


def test_a_run_that_ends_while_it_is_read_is_not_taken_for_one_without_a_stop_document(write, documents, monkeypatch):
    with Journal(write(documents[:-1]), "write") as journal:
        read = journal.read
        ends = 0

        def read_before_the_rest_comes(start, *limits):
            nonlocal ends
            records = read(start, *limits)
            ends += not records
            # It is read twice; the first time for the types of its columns.
            if not records and ends == 2:
                journal.append_one("stop", Encoder().encode(documents[-1][1]))
            return records

        monkeypatch.setattr(journal, "read", read_before_the_rest_comes)
        dry_run = DryRun(journal, WritingOptions())
        list(dry_run)
        assert dry_run._fold.stopped == dry_run.complete


def test_a_run_that_is_open_is_shown_as_far_as_it_is(write, documents):
    path = write(documents[:-1])
    report = shown(path, "--operations")
    assert not report["complete"]
    assert report["operations"][-1]["operation"] == "ExtendExternal"
    assert (
        show(path, "--operations").stdout.splitlines()[-1]
        == "the run is not known to have ended: more documents may follow"
    )


def test_a_run_whose_publisher_is_gone_is_closed(write, documents):
    path = write(documents[:-1])
    with Journal(path, "write") as journal:
        journal.set("abandoned", True)
    report = shown(path, "--operations")
    assert report["complete"]
    assert report["operations"][-1] == {"operation": "CloseStream", "path": documents[0][1]["uid"]}


# Paths


def test_paths_are_shown_before_and_after_the_path_map(write, documents, tmp_path, directory):
    config = tmp_path / "config.yaml"
    config.write_text(f"path_map:\n  /nsls2/data: {directory}\n")
    camera, other = shown(write(documents), "--paths", "--config", config)["paths"]
    assert (camera["data_key"], camera["rule"], camera["found"]) == ("camera", "/nsls2/data", 2)
    assert camera["published"] == "file://localhost/nsls2/data/"
    assert camera["registered"] == f"file://localhost{directory}/"
    assert camera["files"] == [f"file://localhost{directory}/img_{i:03d}.tif" for i in range(3)]
    assert (other["registered"], other["rule"], other["files"]) == ("s3://bucket/x.h5", None, [])
    assert other["found"] is None


def test_paths_are_shown_to_people(write, documents, tmp_path, directory):
    environment = {"TILEDWRITER_PATH_MAP": json.dumps({"/nsls2/data": str(directory)})}
    result = show(write(documents), "--paths", **environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "camera multipart/related;type=image/tiff",
        "published file://localhost/nsls2/data/",
        f"registered file://localhost{directory}/ (by the rule for /nsls2/data)",
        "here 2 of 3 files",
        "other application/x-hdf5",
        "published s3://bucket/x.h5",
        "registered s3://bucket/x.h5 (no rule applies)",
        "here not a path in a file system; no node refers to it",
    ]


# Refusals


def test_a_configuration_that_cannot_be_used_is_refused_in_one_line(write, documents, tmp_path):
    path = write(documents)
    config = tmp_path / "config.yaml"
    config.write_text("path_map: {data: /mnt}\n")
    for options in (("--config", config), ("--config", tmp_path / "none.yaml")):
        result = show(path, "--operations", *options)
        assert (result.returncode, result.stdout) == (2, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("tiledwriter-journal: ")


def test_a_configuration_without_anything_to_apply_it_to_is_refused(write, documents, tmp_path):
    result = show(write(documents), "--config", tmp_path / "config.yaml")
    assert result.returncode == 2
    assert "--operations" in result.stderr


def test_an_unknown_run_is_not_found(tmp_path):
    assert show("unknown", tmp_path, "--operations").returncode == 4
