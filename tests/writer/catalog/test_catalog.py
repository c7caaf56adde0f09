"""Operations against a real Tiled server, undisturbed and through a proxy that disturbs."""

from __future__ import annotations

import io
import json
import shutil
import threading
import time
import uuid
from contextlib import ExitStack
from dataclasses import asdict, replace
from urllib.parse import quote

import httpx
import numpy
import pandas
import pyarrow
import pytest
import zarr
from catalog_runs import BY_SEQ_NUM, COLUMNS, QUIET_PERIOD_SECONDS, STOP, Run, finish, npy_files, rows, stopped, write
from faulty_proxy import CUT_AFTER, CUT_BEFORE, PASS, FaultyProxy, answer, late_answer, page, zombie
from tiled.utils import safe_json_dump

from tiledbroker import Journal
from tiledbroker.ownership import RUNS_SUBDIRECTORY, DecisionFile, DirectoryStore
from tiledwriter._errors import (
    AuditFailed,
    ColumnsRefused,
    NodeRewound,
    NotOurs,
    OperationRefused,
    PoisonedOperation,
    Stopped,
    TiledHasMore,
)
from tiledwriter._names import TRIAL_KEY
from tiledwriter.catalog import Nodes, _connection
from tiledwriter.catalog._catalog import TiledCatalog
from tiledwriter.catalog._connection import Connection
from tiledwriter.mapping._operations import (
    AppendRows,
    Audit,
    CloseStream,
    Column,
    CreateArray,
    CreateContainer,
    CreateTable,
    DescribeExternal,
    ExtendExternal,
    OrderTable,
    RegisterExternal,
    RemoveNode,
    UpdateMetadata,
    WriteArray,
)
from tiledwriter.mapping._run_writer import STREAM_SPECS
from tiledwriter.testing import wait_until


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(_connection._Wait, "__call__", lambda self, state: 0.01)


@pytest.fixture
def proxy(tiled_server):
    """In front of the server for all tests."""
    with FaultyProxy(tiled_server.uri) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def tiled(tiled_server):
    """The root container for reading back, not through the proxy."""
    return tiled_server.client()


@pytest.fixture
def run(proxy, tiled_server, tmp_path):
    uid = str(uuid.uuid4())
    with Journal(tmp_path / "run.sqlite", "create", run_uid=uid) as journal:
        yield Run(proxy, tiled_server.api_key, journal)


def sent_rows(request):
    """The sequence numbers in the body of an append."""
    return pyarrow.ipc.open_file(io.BytesIO(request.body)).read_all()["seq_num"].to_pylist()


def appends(proxy):
    return [sent_rows(request) for request in proxy.requests if request.is_for("PATCH", "table/partition")]


def read_column(tiled, path, name="seq_num"):
    return tiled[path].read()[name].tolist()


# Undisturbed


def test_a_run_is_written_and_read_back(run, proxy, tiled):
    wave = f"{run.uid}/primary/wave"
    values = numpy.arange(15.0).reshape(5, 3)
    operations = [
        *run.with_table(),
        run.append(0, 3),
        CreateArray(wave, "<f8", (3,), 2, ("time", "dim_1"), {"units": "V"}),
        WriteArray(wave, 0, values[:2]),
        WriteArray(wave, 2, values[2:]),
        run.append(3, 5),
        UpdateMetadata(run.uid, {"stop": {"exit_status": "success"}, "notes": ["a note"]}),
        *(CloseStream(path) for path in (wave, run.table, f"{run.uid}/primary", run.uid)),
    ]
    run.apply(*operations)

    node = tiled[run.uid]
    assert [(spec.name, spec.version) for spec in node.specs] == [("BlueskyRun", "3.0")]
    assert node.metadata["start"] == {"uid": run.uid, "time": 0.0}
    assert node.metadata["stop"] == {"exit_status": "success"}
    assert node.metadata["notes"] == ["a note"]
    assert read_column(tiled, run.table) == [0, 1, 2, 3, 4]
    assert read_column(tiled, run.table, "x") == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert tiled[wave].shape == (5, 3)
    assert tiled[wave].dims == ("time", "dim_1")
    assert tiled[wave].metadata["units"] == "V"
    numpy.testing.assert_array_equal(tiled[wave].read(), values)
    assert {path: progress.rows for path, progress in run.progress.items()} == {
        run.uid: 0,
        f"{run.uid}/primary": 0,
        run.table: 5,
        wave: 5,
    }
    # The first chunk of an array takes a request more for each of its batches.
    assert len(proxy.requests) == len(operations) + 1


def test_an_undisturbed_run_reads_nothing(run, proxy, external):
    run.apply(
        *run.with_table(),
        run.append(0, 3),
        OrderTable(run.table, ("time", "seq_num")),
        run.append(3, 5),
        *external.operations(2),
        UpdateMetadata(run.uid, {"stop": {}}),
        CloseStream(run.uid),
    )
    assert proxy.count("GET") == 0


def test_every_operation_applied_twice_has_its_effect_once(run, tiled, external):
    wave = f"{run.uid}/primary/wave"
    values = numpy.arange(6.0).reshape(2, 3)
    operations = [
        *run.with_table(),
        run.append(0, 3),
        OrderTable(run.table, ("time", "seq_num")),
        CreateArray(wave, "<f8", (3,), 2, ("time", "dim_1")),
        WriteArray(wave, 0, values),
        *external.operations(2),
        UpdateMetadata(run.uid, {"stop": {"exit_status": "success"}}),
        CloseStream(run.uid),
    ]
    run.apply(*(operation for operation in operations for _ in range(2)))

    assert read_column(tiled, run.table) == [0, 1, 2]
    numpy.testing.assert_array_equal(tiled[wave].read(), values)
    assert tiled[external.path].shape == (2, 4)
    assert tiled[run.uid].metadata["stop"] == {"exit_status": "success"}
    assert len(tiled[run.uid].metadata_revisions[:]) == 0


def test_a_replay_from_the_start_changes_nothing(run, proxy, tiled, external):
    wave = f"{run.uid}/primary/wave"
    operations = [
        *run.with_table(),
        run.append(0, 3),
        CreateArray(wave, "<f8", (3,), 2, ("time", "dim_1")),
        WriteArray(wave, 0, numpy.ones((2, 3))),
        *external.operations(2),
        UpdateMetadata(run.uid, {"stop": {"exit_status": "success"}}),
        CloseStream(run.uid),
    ]
    stopped(run.journal)
    run.apply(*operations)
    before = len(proxy.requests)
    run.apply(*operations)

    assert [(request.method, request.path) for request in proxy.requests[before:]] == [
        ("GET", f"metadata/{run.uid}"),  # whether others have gone on with it
        ("GET", f"metadata/{run.uid}"),
        ("DELETE", f"stream/close/{run.uid}"),
    ]
    assert read_column(tiled, run.table) == [0, 1, 2]
    assert tiled[external.path].shape == (2, 4)


def test_only_the_rows_that_are_not_confirmed_are_sent(run, proxy, tiled):
    run.apply(*run.with_table(), run.append(0, 4))
    run.apply(*run.with_table(), run.append(0, 10))
    assert appends(proxy) == [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]]
    assert read_column(tiled, run.table) == list(range(10))


def test_only_the_rows_of_an_array_that_are_not_confirmed_are_sent(run, proxy, tiled):
    path = f"{run.uid}/primary/wave"
    values = numpy.arange(10.0).reshape(10, 1)
    create = [*run.containers(), CreateArray(path, "<f8", (1,), 4, ("time", "dim_1"))]
    run.apply(*create, WriteArray(path, 0, values[:4]))
    run.apply(*create, WriteArray(path, 0, values))
    assert [len(request.body) for request in proxy.requests if request.is_for("PATCH", "array")] == [32, 48]
    numpy.testing.assert_array_equal(tiled[path].read(), values)


def long_chunks(host, key="wave"):
    """An array whose first chunk has room for a hundred rows."""
    return CreateArray(f"{host.uid}/primary/{key}", "<f8", (2,), 100, ("time", "dim_1"))


def test_an_array_shows_the_rows_that_were_written_however_long_its_chunks_are(run, proxy, tiled, data_directory):
    create = long_chunks(run)
    values = numpy.arange(500.0).reshape(250, 2)
    with run.catalog() as catalog:
        catalog.apply([*run.containers(), create])
        assert tiled[create.path].shape == (0, 2)
        assert tiled[create.path][:].shape == (0, 2)
        for first, stop in ((0, 1), (1, 2), (2, 100), (100, 101), (101, 250)):
            assert catalog.apply([WriteArray(create.path, first, values[first:stop])]) == []
            found = tiled.new_variation()[create.path]
            assert found.shape == (stop, 2)
            assert sum(found.chunks[0]) == stop
            numpy.testing.assert_array_equal(found.read(), values[:stop])
    assert found.chunks == ((100, 100, 50), (2,))
    stored = zarr.open(data_directory / run.uid / "primary" / "wave")
    assert (stored.shape, stored.chunks) == ((250, 2), (100, 2))
    # Behind the first chunk rows take one request.
    assert (proxy.count("PATCH", "array/full"), proxy.count("PUT", "data_source")) == (5, 3)


def test_a_batch_that_is_longer_than_a_chunk_is_one_request(run, proxy, tiled):
    create = long_chunks(run)
    run.apply(*run.containers(), create, WriteArray(create.path, 0, numpy.ones((101, 2))))
    assert [request.method for request in proxy.requests] == ["POST", "POST", "POST", "PATCH"]
    assert tiled[create.path].shape == (101, 2)


@pytest.mark.parametrize("fault", [CUT_AFTER, CUT_BEFORE, zombie(0.1), answer(500)], ids=lambda fault: fault.name)
def test_rows_whose_number_may_not_have_arrived_are_shown_in_the_end(run, proxy, tiled, fault):
    create = long_chunks(run)
    values = numpy.arange(12.0).reshape(6, 2)
    proxy.script("PUT", "data_source", PASS, fault, PASS, fault)
    writes = [WriteArray(create.path, n, values[n : n + 2]) for n in (0, 2, 4)]
    run.write(*run.containers(), create, *writes, Audit(create.path, 6))
    proxy.wait_for_late_requests()
    assert proxy.all_played
    numpy.testing.assert_array_equal(tiled[create.path].read(), values)


def test_rows_that_would_leave_a_gap_are_a_defect_and_not_sent(run, proxy):
    run.apply(*run.with_table())
    with run.catalog() as catalog, pytest.raises(Exception, match="does not continue at row 0"):
        catalog.apply([run.append(3, 5)])
    assert appends(proxy) == []


@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "|u1", "<i2", ">u2", "|b1", "<c16"])
def test_arrays_of_every_numeric_type_come_back_as_they_were(run, tiled, dtype):
    path = f"{run.uid}/primary/image"
    values = numpy.arange(24).reshape(4, 2, 3).astype(dtype)
    run.apply(
        *run.containers(),
        CreateArray(path, dtype, (2, 3), 3, ("time", "y", "x")),
        WriteArray(path, 0, values[:3]),
        WriteArray(path, 3, values[3:]),
    )
    assert tiled[path].dtype == numpy.dtype(dtype)
    numpy.testing.assert_array_equal(tiled[path].read(), values)


def test_columns_of_every_type_come_back_as_they_were(run, tiled):
    columns = (*COLUMNS[:2], Column("flag", "bool"), Column("text", "string"), Column("number", "float64"))
    values = ([1, 2], [1.0, 2.0], [True, None], ["ä", None], [float("inf"), None])
    run.apply(*run.containers(), CreateTable(run.table, columns, BY_SEQ_NUM), AppendRows(run.table, 0, columns, values))
    table = tiled[run.table].read()
    assert table["text"][0] == "ä"
    assert pandas.isna(table["text"][1])
    assert bool(table["flag"][0]) is True
    assert table["number"][0] == float("inf")
    assert numpy.isnan(table["number"][1])


def test_lists_are_refused_by_sqlite(run, tiled):
    columns = (*COLUMNS, Column("roi", "list<int64>"))
    with run.catalog() as catalog:
        catalog.apply(run.containers())
        with pytest.raises(ColumnsRefused):
            catalog.apply([CreateTable(run.table, columns, BY_SEQ_NUM)])
        catalog.apply([CreateTable(run.table, COLUMNS, BY_SEQ_NUM), run.append(0, 2)])
    assert read_column(tiled, run.table) == [0, 1]


def test_a_probe_that_is_killed_at_any_request_leaves_nothing_in_the_way(run, tiled, monkeypatch):
    """One killed after it had detached its table from its rows made all later ones say that nothing can be written."""
    columns = (*COLUMNS, Column("roi", "list<int64>"))
    requests_left, ask = 0, Connection._send_probe_request

    def ask_or_die(connection, *arguments, **options):
        nonlocal requests_left
        response = ask(connection, *arguments, **options)
        if requests_left == 0:
            raise Killed
        requests_left -= 1
        return response

    monkeypatch.setattr(Connection, "_send_probe_request", ask_or_die)
    deaths = 0
    while True:
        requests_left = deaths
        try:
            with run.catalog() as catalog, pytest.raises(ColumnsRefused):
                catalog.apply([*run.containers(), CreateTable(run.table, columns, BY_SEQ_NUM)])
            break
        except Killed:
            deaths += 1
    assert deaths > 4


@pytest.mark.parametrize("left", ["shown", "detached"])
def test_what_a_probe_has_left_is_removed_before_the_run_ends(run, proxy, tiled, left):
    with run.catalog() as catalog:
        catalog.apply(run.with_table())
        proxy.script("DELETE" if left == "detached" else "PUT", "", *[answer(503)] * 2)
        assert not catalog._nodes._connection.databases_can_write()
    assert "tiledwriter_probe" in list(tiled.new_variation()[run.uid])
    run.apply(*run.with_table(), run.append(0, 2), UpdateMetadata(run.uid, STOP))
    assert list(tiled.new_variation()[run.uid]) == ["primary"]
    assert run.journal.get("probe_table") is None


@pytest.mark.parametrize(
    "fault", [answer(401), answer(429), answer(503), answer(502), CUT_BEFORE], ids=lambda fault: fault.name
)
def test_an_outage_is_not_taken_for_a_refusal_of_lists(run, proxy, fault):
    columns = (*COLUMNS, Column("roi", "list<int64>"))
    proxy.script("POST", f"metadata/{run.uid}/primary", *[fault] * 5, answer(422, "reached"))
    with run.catalog() as catalog:
        catalog.apply(run.containers())
        with pytest.raises(OperationRefused, match="422: reached"):
            catalog.apply([CreateTable(run.table, columns, BY_SEQ_NUM)])


def test_none_in_metadata_survives(run, tiled):
    stop = {"exit_status": "success", "reason": None, "num_events": {"primary": None}}
    run.apply(*run.containers(), UpdateMetadata(run.uid, {"stop": stop}))
    assert tiled[run.uid].metadata["stop"] == stop


def test_metadata_keys_may_have_any_characters(run, tiled):
    metadata = {"a/b": 1, "c~d": 2, "~1/~0": 3, "": 4, "ü ?#%": 5}
    run.apply(*run.containers(), UpdateMetadata(run.uid, metadata))
    found = tiled[run.uid].metadata
    assert {key: found[key] for key in metadata} == metadata


def test_an_update_of_metadata_leaves_other_keys_alone_and_makes_no_revision(run, tiled):
    run.apply(*run.containers(), UpdateMetadata(run.uid, {"a": 1}), UpdateMetadata(run.uid, {"b": 2}))
    assert {"start", "a", "b"} <= tiled[run.uid].metadata.keys()
    assert len(tiled[run.uid].metadata_revisions[:]) == 0


@pytest.mark.parametrize("noted", [True, False])
@pytest.mark.parametrize("adopted", [True, False])
def test_metadata_that_applies_no_more_is_removed(noted, adopted, run, other, tiled):
    run.apply(*run.containers(), *([UpdateMetadata(run.uid, {"notes": ["old"]})] if noted else []))
    (other if adopted else run).apply(*run.containers(), UpdateMetadata(run.uid, STOP, removed=("notes",)))
    assert set(tiled[run.uid].metadata) == {"start", "stop"}


def test_access_tags_are_passed(run, proxy):
    proxy.script("POST", "metadata", answer(422), answer(422))
    for operation in (
        CreateContainer(run.uid, {}, (), ("group", "public")),
        CreateTable(f"{run.uid}/table", COLUMNS, BY_SEQ_NUM, {}, ("group",)),
    ):
        with pytest.raises(OperationRefused):
            run.apply(operation)
    bodies = [httpx.Response(200, content=request.body).json() for request in proxy.requests]
    assert [body["access_tags"] for body in bodies] == [["group", "public"], ["group"]]


def test_after_a_rewind_rows_come_back_in_the_order_they_were_appended(run, tiled):
    seq_nums, times = [1, 2, 3, 2, 3], [1.0, 2.0, 3.0, 4.0, 5.0]
    append = AppendRows(run.table, 0, COLUMNS, (seq_nums, times, times))
    run.apply(*run.with_table(), append.rows(0, 4))
    assert read_column(tiled, run.table) == [1, 2, 2, 3]

    run.apply(append, OrderTable(run.table, ("time", "seq_num")))
    assert read_column(tiled, run.table) == seq_nums
    assert read_column(tiled, run.table, "time") == times

    run.apply(OrderTable(run.table, ()))
    assert sorted(read_column(tiled, run.table, "time")) == times
    parameters = tiled[run.table].include_data_sources().data_sources()[0].parameters
    assert parameters["order_by_args"] == []


@pytest.mark.parametrize("odd", ["a b", "50%", "q?x=1", "h#1", "ü€", "a+b&c", "%2F", "..."])
def test_keys_with_odd_characters_are_quoted(run, tiled, odd):
    uid = f"{odd} {run.uid}"
    table = f"{uid}/{odd}/internal"
    run.apply(
        CreateContainer(uid, {"start": {"uid": uid}}),
        CreateContainer(f"{uid}/{odd}", {}),
        CreateTable(table, COLUMNS, BY_SEQ_NUM),
        rows(table, 0, 2),
        UpdateMetadata(uid, {"stop": {}}),
        CloseStream(table),
    )
    context = tiled.context  # Tiled's own client does not quote keys

    def attributes(path):
        url = f"{context.api_uri}metadata/" + "/".join(quote(key, safe="") for key in path.split("/"))
        return context.http_client.get(url).raise_for_status().json()["data"]["attributes"]

    assert attributes(f"{table}/seq_num")["structure"]["shape"] == [2]
    assert "stop" in attributes(uid)["metadata"]


# External data


class External:
    """Files of four numbers each, that somebody else wrote."""

    def __init__(self, directory, run):
        self.path = f"{run.uid}/primary/files"
        self._directory = directory
        self._run = run
        for i in range(4):
            numpy.save(directory / f"{i:05}.npy", numpy.arange(4.0) + i)

    def data_source(self, count):
        return npy_files(self._directory, count, row_length=4)

    def register(self):
        return [*self._run.containers(), RegisterExternal(self.path, self.data_source(0))]

    def extend(self, first, stop):
        return ExtendExternal(self.path, first, stop, self.data_source(stop), (first, 0), (stop - first, 4))

    def operations(self, count):
        return [*self.register(), *(self.extend(i, i + 1) for i in range(count))]

    def all_at_once(self, count):
        """Tell of all files by one datum, and describe them at the end."""
        return [*self.register(), replace(self.extend(0, count), stop=1), self.describe(count)]

    def describe(self, count):
        return DescribeExternal(self.path, {**self.data_source(count), "assets": []})


@pytest.fixture
def external(readable, run):
    directory = readable / run.uid
    directory.mkdir()
    return External(directory, run)


def test_external_files_grow_and_are_read_back(run, tiled, external):
    run.apply(*external.operations(3))
    assert tiled[external.path].shape == (3, 4)
    numpy.testing.assert_array_equal(tiled[external.path].read(), [numpy.arange(4.0) + i for i in range(3)])


def test_of_a_sequence_of_files_the_new_ones_are_sent(run, proxy, tiled, external):
    run.apply(*external.register())
    for known in range(4):
        run.apply(replace(external.extend(known, known + 1), known_assets=known))
    bodies = [json.loads(request.body) for request in proxy.requests if request.is_for("PUT", "data_source")]
    assert [[asset["num"] for asset in body["data_source"]["assets"]] for body in bodies] == [[0], [1], [2], [3]]
    numpy.testing.assert_array_equal(tiled[external.path].read(), [numpy.arange(4.0) + i for i in range(4)])


def test_external_files_never_shrink(run, tiled, external):
    run.apply(*external.operations(3))
    run.apply(external.extend(0, 1))
    assert tiled[external.path].shape == (3, 4)


# Nodes that exist


@pytest.mark.parametrize("kind", ["container", "table", "array", "external"])
def test_a_node_whose_creation_was_answered_with_nothing_is_adopted(run, proxy, tiled, external, kind):
    wave = f"{run.uid}/primary/wave"
    creations = {
        "container": (f"metadata/{run.uid}", run.containers()[:2]),
        "table": (f"metadata/{run.uid}/primary", [*run.with_table(), run.append(0, 2)]),
        "array": (
            f"metadata/{run.uid}/primary",
            [
                *run.containers(),
                CreateArray(wave, "<f8", (1,), 2, ("time", "dim_1")),
                WriteArray(wave, 0, numpy.ones((2, 1))),
            ],
        ),
        "external": ("register", external.operations(2)),
    }
    path, operations = creations[kind]
    proxy.script("POST", path, CUT_AFTER)
    run.apply(*operations)
    assert proxy.all_played
    assert "adopted" in run.events()
    node = tiled[operations[-1].path]
    assert kind == "container" or node.read() is not None
    if kind == "table":
        assert read_column(tiled, run.table) == [0, 1]


def test_a_node_that_exists_is_adopted_if_the_journal_does_not_know_of_it(run, proxy, tiled, tmp_path, tiled_server):
    run.apply(*run.with_table(), run.append(0, 4))
    with Journal(tmp_path / "other.sqlite", "create", run_uid=run.uid) as journal:
        Run(proxy, tiled_server.api_key, journal).apply(*run.with_table(), run.append(0, 6))
    assert read_column(tiled, run.table) == list(range(6))


@pytest.mark.parametrize(
    "metadata", [{"start": {"uid": "somebody else"}}, {}, {"start": {}}, {"start": "text"}], ids=repr
)
def test_a_foreign_run_of_the_same_name_is_left_alone(run, tiled, metadata):
    tiled.create_container(run.uid, metadata=metadata)
    with pytest.raises(NotOurs):
        run.apply(*run.containers())
    assert tiled[run.uid].metadata == metadata


def test_a_foreign_node_of_another_kind_is_left_alone(run, tiled):
    run.apply(*run.containers())
    tiled[run.uid, "primary"].create_container("internal")
    with pytest.raises(NotOurs, match="is a container, not a table"):
        run.apply(*run.with_table())


def test_a_missing_parent_is_refused(run):
    with pytest.raises(OperationRefused, match=r"CreateTable .*404"):
        run.apply(CreateTable(run.table, COLUMNS, BY_SEQ_NUM))


# Sizes


def test_what_is_too_large_is_sent_in_halves(run, proxy, tiled):
    proxy.script("PATCH", "table/partition", answer(413), answer(413))
    run.apply(*run.with_table(), run.append(0, 10))
    assert appends(proxy) == [
        list(range(10)),
        list(range(5)),
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
        [8, 9],
    ]
    assert read_column(tiled, run.table) == list(range(10))
    assert proxy.count("GET") == 0


def test_one_row_that_is_too_large_is_refused(run, proxy):
    proxy.script("PATCH", "table/partition", *[answer(413)] * 10)
    with pytest.raises(OperationRefused, match="413"):
        run.apply(*run.with_table(), run.append(0, 4))
    assert [len(sent) for sent in appends(proxy)] == [4, 2, 1]


# Poison


def test_rows_that_the_server_chokes_on_are_poison(run, tiled):
    columns = (*COLUMNS, Column("not there", "float64"))
    with run.catalog(poison_after=0.5, quiet_period=0.05) as catalog:
        catalog.apply(run.with_table())
        with pytest.raises(PoisonedOperation):
            finish(catalog, [AppendRows(run.table, 0, columns, ([1], [1.0], [1.0], [1.0]))])
    assert read_column(tiled, run.table) == []


# Faults: exactly once


def test_an_append_whose_answer_was_lost_is_found_at_once(run, proxy, tiled):
    proxy.script("PATCH", "table/partition", CUT_AFTER)
    with run.catalog(quiet_period=600) as catalog:
        waiting = catalog.apply([*run.with_table(), run.append(0, 3)])
        assert waiting == [run.append(0, 3)]
        assert run.progress[run.table] == (0, 3)
        assert catalog.apply(waiting) == []
    assert run.progress[run.table] == (3, None)
    assert read_column(tiled, run.table) == [0, 1, 2]
    assert len(appends(proxy)) == 1
    assert [event for event in run.events() if event in {"ambiguous", "reconciled"}] == ["ambiguous", "reconciled"]


def test_an_append_that_never_arrived_is_sent_again_after_the_quiet_period(run, proxy, tiled):
    proxy.script("PATCH", "table/partition", CUT_BEFORE)
    with run.catalog() as catalog:
        waiting = catalog.apply([*run.with_table(), run.append(0, 3)])
        started = time.monotonic()
        finish(catalog, waiting)
        assert time.monotonic() - started >= QUIET_PERIOD_SECONDS
    assert appends(proxy) == [[0, 1, 2]] * 2
    assert read_column(tiled, run.table) == [0, 1, 2]


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_append_that_the_server_failed_to_do_is_sent_again_once(run, proxy, tiled, status):
    proxy.script("PATCH", "table/partition", answer(status))
    run.apply(*run.with_table(), run.append(0, 3), run.append(3, 5))
    assert appends(proxy) == [[0, 1, 2], [0, 1, 2], [3, 4]]
    assert read_column(tiled, run.table) == [0, 1, 2, 3, 4]


def test_an_append_that_tiled_itself_failed_to_do_needs_no_quiet_period(run, proxy, tiled):
    proxy.script("PATCH", "table/partition", answer(500))
    with run.catalog(quiet_period=600) as catalog:
        waiting = catalog.apply([*run.with_table(), run.append(0, 3)])
        assert waiting == [run.append(0, 3)]
        assert catalog.apply(waiting) == []
        # What an earlier answer said holds for that request only.
        proxy.script("PATCH", "table/partition", CUT_BEFORE)
        waiting = catalog.apply([run.append(3, 5)])
        assert catalog.apply(waiting) == waiting
    assert appends(proxy) == [[0, 1, 2], [0, 1, 2], [3, 4]]
    assert read_column(tiled, run.table) == [0, 1, 2]


def test_an_append_to_a_database_of_its_own_host_waits_for_the_quiet_period(run, proxy, tiled, monkeypatch):
    # Its transaction may go on when the connection between Tiled and the database is lost.
    monkeypatch.setattr(Nodes, "storage", lambda *_: "postgresql")
    proxy.script("PATCH", "table/partition", answer(500))
    with run.catalog(quiet_period=600) as catalog:
        waiting = catalog.apply([*run.with_table(), run.append(0, 3)])
        assert catalog.apply(waiting) == waiting


def test_an_append_that_another_server_failed_to_do_waits_for_the_quiet_period(run, proxy, tiled):
    proxy.script("PATCH", "table/partition", page(500))
    with run.catalog(quiet_period=600) as catalog:
        waiting = catalog.apply([*run.with_table(), run.append(0, 3)])
        assert catalog.apply(waiting) == waiting


def test_an_append_that_was_not_processed_is_sent_again_without_looking(run, proxy, tiled):
    proxy.script("PATCH", "table/partition", answer(429), answer(401))
    run.apply(*run.with_table(), run.append(0, 3))
    assert proxy.count("GET") == 0
    assert read_column(tiled, run.table) == [0, 1, 2]


def test_a_worker_that_is_stopped_while_tiled_takes_no_append_leaves_nothing_to_be_found_out(run, proxy, tiled):
    stopping = threading.Event()
    proxy.script("PATCH", "table/partition", answer(429), answer(429), answer(429))
    with run.catalog(stopping=stopping) as catalog:
        catalog.apply(run.with_table())
        stopper = threading.Thread(target=lambda: (wait_until(lambda: appends(proxy), 20, "sent"), stopping.set()))
        stopper.start()
        with pytest.raises(Stopped):
            catalog.apply([run.append(0, 3)])
        stopper.join()
    assert run.progress[run.table] == (0, None)
    run.apply(*run.with_table(), run.append(0, 3), quiet_period=600)
    assert read_column(tiled, run.table) == [0, 1, 2]


def test_an_append_that_is_done_after_it_was_answered_with_504_is_not_sent_again(run, proxy, tiled):
    proxy.script("PATCH", "table/partition", zombie(0.3))
    with run.catalog(quiet_period=600) as catalog:
        waiting = catalog.apply([*run.with_table(), run.append(0, 3), run.append(3, 5)])
        assert catalog.apply(waiting) == waiting
        proxy.wait_for_late_requests()
        assert catalog.apply(waiting) == []
    assert appends(proxy) == [[0, 1, 2], [3, 4]]
    assert read_column(tiled, run.table) == [0, 1, 2, 3, 4]


def test_the_quiet_period_ends_before_the_last_look_and_not_with_its_answer(run, proxy, tiled):
    proxy.script("PATCH", "table/partition", zombie(0.7))
    proxy.script("GET", f"metadata/{run.table}", PASS, late_answer(1.1))
    run.apply(*run.with_table(), run.append(0, 3), quiet_period=1.0)
    proxy.wait_for_late_requests()
    assert [status for status, *_ in proxy.late_answers] == [200]
    assert read_column(tiled, run.table) == [0, 1, 2]
    assert appends(proxy) == [[0, 1, 2]]


def test_the_quiet_period_follows_the_slowest_append(run, proxy):
    now = [0.0]
    with proxy.client(run._api_key) as client:
        connection = Connection(lambda: client, threading.Event(), run.journal.note)

        def clock():
            now[0] += 1.0  # each look at the clock is a second, so an append takes one
            return now[0]

        catalog = TiledCatalog(connection, run.journal, quiet_period=0.5, clock=clock)
        catalog.apply([*run.with_table(), run.append(0, 1)])
        proxy.script("PATCH", "table/partition", CUT_BEFORE)
        waiting = [run.append(1, 2)]
        rounds = 0
        while waiting := catalog.apply(waiting):
            rounds += 1
    assert rounds == 3  # the append itself, and 0 and 1 seconds of quiet; 3 are enough


@pytest.mark.parametrize("fault", [CUT_AFTER, CUT_BEFORE, zombie(0.1)], ids=lambda fault: fault.name)
def test_an_append_of_unknown_fate_is_settled_by_the_next_worker(run, proxy, tiled, fault):
    proxy.script("PATCH", "table/partition", fault)
    with run.catalog() as catalog:
        assert catalog.apply([*run.with_table(), run.append(0, 3)])
    assert run.progress[run.table].intent == 3

    run.apply(*run.with_table(), run.append(0, 5))
    proxy.wait_for_late_requests()
    assert appends(proxy)[-1] == ([0, 1, 2, 3, 4] if fault is CUT_BEFORE else [3, 4])
    assert read_column(tiled, run.table) == [0, 1, 2, 3, 4]
    assert run.progress[run.table] == (5, None)


def test_a_settled_append_may_be_replayed_in_other_pieces(run, proxy, tiled):
    proxy.script("PATCH", "table/partition", PASS, CUT_AFTER)
    with run.catalog() as catalog:
        assert catalog.apply([*run.with_table(), run.append(0, 3), run.append(3, 6)])
    run.apply(*run.with_table(), *(run.append(n, n + 2) for n in range(0, 10, 2)))
    assert read_column(tiled, run.table) == list(range(10))


def test_other_nodes_go_on_while_one_settles_and_the_end_waits(run, proxy, tiled):
    other = f"{run.uid}/other/internal"
    creations = [
        *run.with_table(),
        CreateContainer(f"{run.uid}/other", {}),
        CreateTable(other, COLUMNS, BY_SEQ_NUM),
    ]
    stop = UpdateMetadata(run.uid, {"stop": {}})
    proxy.script("PATCH", f"table/partition/{run.table}", CUT_BEFORE)
    with run.catalog() as catalog:
        waiting = catalog.apply(
            [
                *creations,
                run.append(0, 2),
                rows(other, 0, 2),
                run.append(2, 4),
                rows(other, 2, 4),
                OrderTable(run.table, ("time", "seq_num")),
                UpdateMetadata(f"{run.uid}/primary", {"late": 1}),
                stop,
                CloseStream(run.table),
                CloseStream(other),
                CloseStream(f"{run.uid}/primary"),
                CloseStream(f"{run.uid}/other"),
                CloseStream(run.uid),
            ]
        )
        assert waiting == [
            run.append(0, 2),
            run.append(2, 4),
            OrderTable(run.table, ("time", "seq_num")),
            UpdateMetadata(f"{run.uid}/primary", {"late": 1}),
            stop,
            CloseStream(run.table),
            CloseStream(f"{run.uid}/primary"),
            CloseStream(run.uid),
        ]
        assert read_column(tiled, other) == [0, 1, 2, 3]
        assert "stop" not in tiled[run.uid].metadata
        finish(catalog, waiting)
    assert read_column(tiled, run.table) == [0, 1, 2, 3]
    assert "stop" in tiled[run.uid].metadata
    assert proxy.requests[-1].path == f"stream/close/{run.uid}"


def append_behind_our_back(tiled, run, first, stop):
    append = rows(run.table, first, stop)
    table = pyarrow.table(dict(zip([column.name for column in COLUMNS], append.values, strict=True)))
    tiled[run.table].append_partition(0, table)


@pytest.mark.parametrize("first", [0, 90], ids=["repeated", "unknown"])
def test_rows_that_no_append_of_ours_explains_are_removed_if_the_journal_has_them(run, proxy, tiled, first):
    proxy.script("PATCH", "table/partition", PASS, CUT_BEFORE)
    operations = [*run.with_table(), run.append(0, 3), run.append(3, 5)]
    with run.catalog() as catalog:
        waiting = catalog.apply(operations)
        append_behind_our_back(tiled, run, first, first + 3)
        with pytest.raises(NodeRewound, match="has 6 rows where 3 or 5 are expected"):
            finish(catalog, waiting)
    if first:
        with pytest.raises(TiledHasMore, match="6 rows in primary, 5 here"):
            run.write(*operations, run.audit(5))
        assert read_column(tiled, run.table) == [0, 1, 2, 90, 91, 92]
    else:
        run.write(*operations, run.audit(5))
        assert read_column(tiled, run.table) == [0, 1, 2, 3, 4]
    assert list(tiled[run.uid]["primary"]) == ["internal"]


# Audit


def test_a_run_that_is_as_it_should_be_passes(run, proxy, tiled):
    run.apply(*run.with_table(), run.append(0, 3), run.audit(3), UpdateMetadata(run.uid, {"stop": {}}))
    assert "repairing" not in run.events()
    assert [request.path for request in proxy.requests if request.method == "GET"] == [
        f"array/full/{run.table}/seq_num",
        f"metadata/{run.table}/time",
    ]


def test_rows_that_are_there_twice_are_found_before_the_stop_and_removed(run, tiled):
    operations = [*run.with_table(), run.append(0, 5), run.audit(5), UpdateMetadata(run.uid, {"stop": {}})]
    run.apply(*operations[:-2])
    append_behind_our_back(tiled, run, 2, 5)
    with pytest.raises(NodeRewound, match="has 8 rows where 5"):
        run.apply(*operations)
    assert "stop" not in tiled[run.uid].metadata
    run.write(*operations)
    assert read_column(tiled, run.table) == [0, 1, 2, 3, 4]
    assert list(tiled[run.uid]["primary"]) == ["internal"]
    assert "stop" in tiled[run.uid].metadata
    assert run.events()[-2:] == ["repairing", "rewritten"]


@pytest.mark.parametrize("confirmed", [5, 7], ids=["beyond what was confirmed", "as many as were confirmed"])
def test_rows_that_the_journal_does_not_know_are_never_removed(run, tiled, proxy, confirmed):
    operations = [*run.with_table(), run.append(0, 5), run.audit(5), UpdateMetadata(run.uid, {"stop": {}})]
    run.apply(*operations[:-2])
    append_behind_our_back(tiled, run, 5, 7)
    run.journal.set_progress(run.table, confirmed)
    before = len(proxy.requests)
    with pytest.raises(TiledHasMore, match="Tiled has more of this run than this journal: 7 rows in primary, 5 here"):
        run.write(*operations)
    assert {request.method for request in proxy.requests[before:]} == {"GET"}
    assert read_column(tiled, run.table) == list(range(7))


def test_rows_that_are_missing_at_the_end_are_sent_again(run, tiled):
    operations = [*run.with_table(), run.append(0, 3), run.audit(3)]
    run.apply(*operations[:-1])
    run.journal.set_progress(run.table, 5)
    more = [*run.with_table(), run.append(0, 5), run.audit(5)]
    with pytest.raises(NodeRewound, match="has 3 rows where 5 are expected"):
        run.apply(*more)
    run.write(*more)
    assert read_column(tiled, run.table) == [0, 1, 2, 3, 4]


def test_rows_in_another_order_are_written_anew(run, tiled):
    by_nothing = [*run.containers(), CreateTable(run.table, COLUMNS, ())]
    run.apply(*by_nothing)
    append_behind_our_back(tiled, run, 2, 3)
    append_behind_our_back(tiled, run, 0, 2)
    run.journal.set_progress(run.table, 3)
    operations = [*by_nothing, run.append(0, 3), run.audit(3)]
    with pytest.raises(NodeRewound, match="has other values of 'seq_num', or in another order"):
        run.apply(*operations)
    run.write(*operations)
    assert read_column(tiled, run.table) == [0, 1, 2]


def test_a_copy_that_is_wrong_itself_is_not_shown(run, tiled, proxy):
    operations = [*run.with_table(), run.append(0, 3), run.audit(3)]
    run.apply(*operations[:-1])
    append_behind_our_back(tiled, run, 0, 3)
    with pytest.raises(NodeRewound):
        run.apply(*operations)
    with pytest.raises(NodeRewound, match="folded again"):  # now that the journal is known to have all of its rows
        run.apply(*operations[:-1])
    run.apply(*operations[:-1])
    copy = replace(rows(run.table, 7, 8), path=f"{run.table}_rewrite")
    table = pyarrow.table(dict(zip([column.name for column in COLUMNS], copy.values, strict=True)))
    tiled[copy.path].append_partition(0, table)
    with pytest.raises(NodeRewound, match="has a copy with 4 rows where 3"):
        run.apply(*operations)
    assert len(read_column(tiled, run.table)) == 6
    run.write(*operations)
    assert read_column(tiled, run.table) == [0, 1, 2]


def test_a_table_that_is_never_right_ends_the_attempts(run):
    wrong = Audit(run.table, 3, (("seq_num", "another digest"),))
    with pytest.raises(AuditFailed, match="although it was rewritten several times"):
        run.write(*run.with_table(), run.append(0, 3), wrong)


def test_an_array_that_a_late_request_has_shrunk_is_written_again(run, tiled):
    wave = f"{run.uid}/primary/wave"
    values = numpy.arange(12.0).reshape(4, 3)
    create = CreateArray(wave, "<f8", (3,), 2, ("time", "dim_int_1"))
    operations = [*run.containers(), create, WriteArray(wave, 0, values[:2]), WriteArray(wave, 2, values[2:])]
    run.apply(*operations)
    run.write(*operations, Audit(wave, 4))
    assert "repairing" not in run.events()
    source = asdict(tiled[wave].data_sources()[0])
    source["structure"] = {**source["structure"], "shape": (2, 3), "chunks": ((2,), (3,))}
    tiled.context.http_client.put(
        tiled[wave].uri.replace("/metadata/", "/data_source/", 1), content=safe_json_dump({"data_source": source})
    ).raise_for_status()
    run.write(*operations, Audit(wave, 4))
    assert run.events()[-1] == "repairing"
    numpy.testing.assert_array_equal(tiled.new_variation()[wave].read(), values)


def test_an_array_with_a_lost_answer_is_written_once_more_before_the_end(run, proxy, tiled):
    wave = f"{run.uid}/primary/wave"
    values = numpy.arange(12.0).reshape(4, 3)
    create = CreateArray(wave, "<f8", (3,), 2, ("time", "dim_int_1"))
    proxy.script("PATCH", "array/full", CUT_AFTER)
    run.write(*run.containers(), create, WriteArray(wave, 0, values), Audit(wave, 4))
    patches = [request for request in proxy.requests if request.is_for("PATCH", "array/full")]
    assert len(patches) == 3  # lost, sent again when all was quiet, and for the audit
    numpy.testing.assert_array_equal(tiled[wave].read(), values)


@pytest.mark.parametrize("fault", [zombie(1.5), late_answer(0.1)], ids=lambda fault: fault.name)
def test_a_request_that_outlives_the_quiet_period_is_found_and_its_rows_are_removed(run, proxy, tiled, fault):
    proxy.script("PATCH", "table/partition", PASS, fault)
    operations = [*run.with_table(), run.append(0, 3), run.append(3, 5)]
    run.write(*operations, quiet_period=0.1)
    proxy.wait_for_late_requests()
    expected = [0, 1, 2, 3, 4, 3, 4] if fault.name == "zombie" else [0, 1, 2, 3, 4]
    assert sorted(read_column(tiled, run.table)) == sorted(expected)
    run.write(*operations, run.audit(5), quiet_period=0.1)
    assert read_column(tiled, run.table) == [0, 1, 2, 3, 4]
    assert bool(run.journal.get("late_audit")) == (fault.name == "zombie")


@pytest.mark.parametrize("fault", [CUT_AFTER, CUT_BEFORE, zombie(0.1), answer(500)], ids=lambda fault: fault.name)
def test_an_array_patch_of_unknown_fate_is_sent_again(run, proxy, tiled, fault):
    path = f"{run.uid}/primary/wave"
    values = numpy.arange(22.0).reshape(11, 2)
    proxy.script("PATCH", "array/full", PASS, fault, PASS, fault)
    run.apply(
        *run.containers(),
        CreateArray(path, "<f8", (2,), 4, ("time", "dim_1")),
        WriteArray(path, 0, values[:4]),
        WriteArray(path, 4, values[4:5]),
        WriteArray(path, 5, values[5:]),
    )
    proxy.wait_for_late_requests()
    assert proxy.count("PATCH", "array/full") == 5
    assert tiled[path].shape == (11, 2)
    numpy.testing.assert_array_equal(tiled[path].read(), values)


@pytest.mark.parametrize("fault", [CUT_AFTER, CUT_BEFORE, zombie(0.1), answer(500)], ids=lambda fault: fault.name)
def test_an_extension_of_external_files_of_unknown_fate_is_right_at_the_end(run, proxy, tiled, external, fault):
    proxy.script("PUT", "data_source", PASS, fault, PASS, fault)
    run.apply(*external.operations(4))
    proxy.wait_for_late_requests()
    assert proxy.all_played
    assert tiled[external.path].shape == (4, 4)
    numpy.testing.assert_array_equal(tiled[external.path].read(), [numpy.arange(4.0) + i for i in range(4)])


@pytest.mark.parametrize("fault", [CUT_AFTER, CUT_BEFORE, answer(503)], ids=lambda fault: fault.name)
def test_metadata_order_and_close_are_repeated_until_they_are_done(run, proxy, tiled, fault):
    for method, path in (("PATCH", "metadata"), ("PUT", "data_source"), ("DELETE", "stream/close")):
        proxy.script(method, path, fault, fault)
    run.apply(
        *run.with_table(),
        run.append(0, 2),
        OrderTable(run.table, ("time", "seq_num")),
        UpdateMetadata(run.uid, {"stop": {"a": None}}),
        CloseStream(run.uid),
    )
    assert proxy.all_played
    assert tiled[run.uid].metadata["stop"] == {"a": None}
    assert len(tiled[run.uid].metadata_revisions[:]) == 0
    assert read_column(tiled, run.table) == [0, 1]


def test_thirty_lost_answers_leave_every_row_once_and_in_order(run, proxy, tiled):
    proxy.script("PATCH", "table/partition", *[CUT_AFTER] * 30)
    with run.catalog() as catalog:
        catalog.apply(run.with_table())
        for n in range(30):
            finish(catalog, [run.append(2 * n, 2 * n + 2)])
    assert proxy.all_played
    assert len(appends(proxy)) == 30
    assert read_column(tiled, run.table) == list(range(60))


@pytest.fixture
def data_directory(tiled_server):
    return tiled_server.log.parent / "data"


@pytest.mark.parametrize("probe_left", [False, True])
def test_an_array_s_key_that_a_dying_server_has_poisoned_is_cleared_and_used(run, tiled, data_directory, probe_left):
    image = CreateArray(f"{run.uid}/primary/image", "<f8", (2,), 3, ("time", "x"))
    run.apply(*run.containers())
    if probe_left:
        run.apply(replace(image, path=f"{image.path.rpartition('/')[0]}/{TRIAL_KEY}"))
    # What the server leaves that is killed between making the files and the node.
    orphan = data_directory / run.uid / "primary" / "image"
    zarr.create_array(str(orphan), shape=(7,), chunks=(7,), dtype="<i2")
    values = numpy.arange(6.0).reshape(3, 2)
    run.apply(*run.containers(), image, WriteArray(image.path, 0, values))
    numpy.testing.assert_array_equal(tiled[image.path].read(), values)
    assert list(tiled[f"{run.uid}/primary"]) == ["image"]
    assert "cleared away" in run.events()


def test_an_operation_that_only_ever_gets_500_is_poison_on_a_server_that_is_well(tiled_server, tiled, tmp_path):
    with Journal(tmp_path / "run.sqlite", "create", run_uid="poisoned") as journal:
        journal.set("list_columns_taken", True)  # else a 500 for lists means that there are none
        connection = Connection(lambda: tiled, threading.Event(), journal.note, poison_after=1.0)
        catalog = TiledCatalog(connection, journal)
        catalog.apply([CreateContainer("poisoned", {})])
        with pytest.raises(PoisonedOperation, match="500"):
            catalog.apply([CreateTable("poisoned/table", (Column("x", "list<float64>"),), ())])


def test_the_slowest_append_is_remembered_by_the_next_worker_even_if_it_was_cut_off(run, proxy):
    now = [0.0]

    def clock():
        now[0] += 50.0  # each look at the clock
        return now[0]

    with proxy.client(run._api_key) as client:
        connection = Connection(lambda: client, threading.Event(), run.journal.note)
        catalog = TiledCatalog(connection, run.journal, quiet_period=1.0, clock=clock)
        catalog.apply(run.with_table())
        proxy.script("PATCH", "table/partition", CUT_BEFORE)
        assert catalog.apply([run.append(0, 3)])
        after = TiledCatalog(connection, run.journal, quiet_period=1.0, clock=clock)
        rounds = 0
        while after.apply([run.append(0, 3)]):
            rounds += 1
    assert rounds == 2  # 0 and 50 seconds of quiet; 150 are enough after an append of 50


def test_a_slow_append_is_forgotten_by_and_by(run, proxy):
    slow = [50.0]
    now = [0.0]

    def clock():
        now[0] += slow.pop() if slow else 0.1  # each look at the clock
        return now[0]

    with proxy.client(run._api_key) as client:
        connection = Connection(lambda: client, threading.Event(), run.journal.note)
        catalog = TiledCatalog(connection, run.journal, quiet_period=1.0, clock=clock)
        catalog.apply(run.with_table())
        slow.append(50.0)
        catalog.apply([run.append(0, 1)])
        remembered = [catalog._quiet.slowest_append]
        for row in range(1, 60):
            catalog.apply([run.append(row, row + 1)])
            remembered.append(catalog._quiet.slowest_append)
        after = TiledCatalog(connection, run.journal, quiet_period=1.0, clock=clock)
    assert remembered == sorted(remembered, reverse=True)
    assert 3 * remembered[0] > 100
    assert 3 * remembered[-1] < 1.0
    assert 3 * after._quiet.slowest_append <= 1.0


def test_files_with_several_frames_a_datum_are_never_taken_for_told(run, proxy, tiled):
    path = f"{run.uid}/primary/frames"

    def source(frames):
        data_type = {"endianness": "little", "kind": "f", "itemsize": 8, "dt_units": None}
        structure = {"data_type": data_type, "shape": [frames], "chunks": [[frames]], "dims": None, "resizable": False}
        return {
            "structure_family": "array",
            "mimetype": "application/x-hdf5",
            "structure": structure,
            "parameters": {"dataset": "data"},
            "properties": {},
            "assets": [
                {"data_uri": "file://localhost/f.h5", "is_directory": False, "parameter": "data_uris", "num": 0}
            ],
            "management": "external",
        }

    run.apply(*run.containers(), RegisterExternal(path, source(0)), ExtendExternal(path, 0, 1, source(2), (0,), (2,)))
    proxy.script("PUT", "data_source", CUT_BEFORE)
    run.apply(ExtendExternal(path, 1, 2, source(4), (2,), (2,)), quiet_period=0.2)
    assert tiled[path].shape == (4,)


# Tables whose columns have to change

WIDER = (*COLUMNS[:2], Column("x", "string"))


def as_text(run, first, stop):
    numbers = list(range(first, stop))
    return AppendRows(run.table, first, WIDER, (numbers, [float(n) for n in numbers], [f"<{n}>" for n in numbers]))


def widened(run, stop):
    return [*run.containers(), CreateTable(run.table, WIDER, BY_SEQ_NUM), as_text(run, 0, stop)]


def shown(tiled, run):
    frame = tiled[run.uid]["primary"]["internal"].read()
    return frame["seq_num"].tolist(), frame["x"].tolist()


def test_a_table_that_needs_other_columns_is_written_anew_and_shown_in_its_place(run, tiled):
    run.apply(*run.with_table(), run.append(0, 3))
    run.apply(*widened(run, 5))
    assert shown(tiled, run) == ([0, 1, 2, 3, 4], ["<0>", "<1>", "<2>", "<3>", "<4>"])
    assert list(tiled[run.uid]["primary"]) == ["internal"]
    assert set(run.progress) == {run.uid, f"{run.uid}/primary", run.table}
    assert run.progress[run.table].rows == 5
    assert run.events()[-2:] == ["rewriting", "rewritten"]


def test_a_table_shows_its_old_rows_until_the_new_ones_are_complete(run, tiled):
    run.apply(*run.with_table(), run.append(0, 3))
    *before, _ = widened(run, 0)
    run.apply(*before, as_text(run, 0, 2))
    assert len(shown(tiled, run)[0]) == 3
    run.apply(*before, as_text(run, 0, 2), as_text(run, 2, 3))
    assert shown(tiled, run) == ([0, 1, 2], ["<0>", "<1>", "<2>"])


@pytest.mark.parametrize("rows_after", [1, 2])
def test_metadata_of_a_stream_waits_for_rewrites_of_its_tables(run, tiled, rows_after):
    """Tiled refuses it while a table and its copy have columns of one name."""
    start, stream = run.containers()
    containers = [start, replace(stream, specs=STREAM_SPECS)]
    run.apply(*containers, CreateTable(run.table, COLUMNS, BY_SEQ_NUM), run.append(0, 3))
    run.apply(
        *containers,
        CreateTable(run.table, WIDER, BY_SEQ_NUM),
        as_text(run, 0, 1),
        UpdateMetadata(stream.path, {"one": 1, "two": 0}),
        UpdateMetadata(stream.path, {"two": 2}),
        as_text(run, 1, 1 + rows_after),
    )
    metadata = dict(tiled[stream.path].metadata)
    assert (metadata.get("one"), metadata.get("two")) == ((1, 2) if rows_after == 2 else (None, None))


def test_metadata_of_a_stream_is_there_before_the_stop_document(run, tiled):
    start, stream = run.containers()
    operations = [start, replace(stream, specs=STREAM_SPECS), CreateTable(run.table, COLUMNS, BY_SEQ_NUM)]
    run.apply(*operations, run.append(0, 3))
    with run.catalog() as catalog:
        # A table that is wrong is rewritten until the run is complete.
        catalog._known.mark_doubted(catalog._known[run.table], "is wrong", 3)
        write(catalog, [*operations, run.append(0, 3), UpdateMetadata(stream.path, {"one": 1})])
        assert run.events()[-1] == "repairing"
        assert "one" not in tiled[stream.path].metadata
        finish(catalog, [run.append(3, 5), UpdateMetadata(run.uid, STOP)])
    assert tiled[stream.path].metadata["one"] == 1
    assert read_column(tiled, run.table) == [0, 1, 2, 3, 4]
    assert tiled[run.uid].metadata["stop"] == STOP["stop"]


def test_a_table_with_more_rows_than_the_run_has_in_the_end_stays_as_it_is(run, tiled):
    run.apply(*run.with_table(), run.append(0, 3))
    with pytest.raises(TiledHasMore, match="3 rows in primary, 2 here"):
        run.apply(*widened(run, 2), UpdateMetadata(run.uid, {"stop": {}}))
    assert shown(tiled, run)[0] == [0, 1, 2]
    assert "stop" not in tiled[run.uid].metadata


def test_a_table_without_rows_gets_other_columns_at_once(run, tiled):
    run.apply(*run.with_table())
    run.apply(*widened(run, 0)[:-1])
    run.apply(*widened(run, 2))
    assert shown(tiled, run) == ([0, 1], ["<0>", "<1>"])
    assert run.events().count("rewriting") == 1


def test_columns_that_change_again_while_a_table_is_rewritten_begin_anew(run, tiled):
    run.apply(*run.with_table(), run.append(0, 3))
    integers = (*COLUMNS[:2], Column("x", "int64"))
    middle = AppendRows(run.table, 0, integers, ([0], [0.0], [7]))
    run.apply(*run.containers(), CreateTable(run.table, integers, BY_SEQ_NUM), middle)
    run.apply(*widened(run, 3))
    assert shown(tiled, run) == ([0, 1, 2], ["<0>", "<1>", "<2>"])
    assert list(tiled[run.uid]["primary"]) == ["internal"]


def test_a_rewrite_takes_no_rows_and_no_table_from_other_runs(run, proxy, tiled_server, tmp_path, tiled):
    with Journal(tmp_path / "other.sqlite", "create", run_uid=str(uuid.uuid4())) as journal:
        neighbour = Run(proxy, tiled_server.api_key, journal)
        own = (*COLUMNS[:2], Column(f"x{run.uid[:8]}", "int64"))  # nobody else has tables of this schema
        for each in (run, neighbour):
            each.apply(*each.containers(), CreateTable(each.table, own, BY_SEQ_NUM))
        run.apply(*widened(run, 2))
        append = AppendRows(neighbour.table, 0, own, ([1], [1.0], [1]))
        neighbour.apply(*neighbour.containers(), CreateTable(neighbour.table, own, BY_SEQ_NUM), append)
        assert len(tiled[neighbour.uid]["primary"]["internal"].read()) == 1
    assert shown(tiled, run) == ([0, 1], ["<0>", "<1>"])


def test_a_table_that_somebody_else_made_with_other_columns_is_written_anew(run, tiled, proxy, tiled_server):
    run.apply(*run.with_table(), run.append(0, 4))
    for node in list(run.progress):
        run.journal.drop_progress(node)
    run.journal.set("columns", {})
    run.write(*widened(run, 4))
    assert shown(tiled, run) == ([0, 1, 2, 3], ["<0>", "<1>", "<2>", "<3>"])


def test_a_copy_that_another_host_has_detached_is_made_anew(run, other, tiled):
    run.apply(*run.with_table(), run.append(0, 3))
    copy = run.table + "_rewrite"
    run.apply(*run.containers(), CreateTable(copy, WIDER, BY_SEQ_NUM))
    with run.catalog() as catalog:
        catalog._nodes.detach(copy, may_be_absent=False)
    other.write(*widened(other, 3))
    assert shown(tiled, run) == ([0, 1, 2], ["<0>", "<1>", "<2>"])
    assert list(tiled[run.uid]["primary"]) == ["internal"]


NEVER = 1_000_000  # requests


class Killed(BaseException):
    """What a process notices of its end: nothing, but a test needs something to raise."""


class Mortal:
    """Has a process die at its next request but so many: before it is sent, or after it was answered."""

    def __init__(self, *, after):
        self.requests_left = 0
        mortal, send = self, Connection.send

        def send_or_die(connection, *arguments, **options):
            if not after and mortal.requests_left == 0:
                raise Killed
            response = send(connection, *arguments, **options)
            if after and mortal.requests_left == 0:
                raise Killed
            mortal.requests_left -= 1
            return response

        self.send = send_or_die


@pytest.fixture(params=[False, True], ids=["before it is sent", "after it was answered"])
def mortal(request, monkeypatch):
    """Processes that die at a request."""
    mortal = Mortal(after=request.param)
    monkeypatch.setattr(Connection, "send", mortal.send)
    return mortal


def test_a_rewrite_that_is_killed_at_any_request_is_finished_by_the_next(run, tiled, mortal):
    mortal.requests_left = NEVER
    run.apply(*run.with_table(), run.append(0, 3))
    deaths = 0
    while True:
        mortal.requests_left = deaths
        try:
            run.apply(*widened(run, 3), UpdateMetadata(run.uid, {"stop": {}}))
            break
        except Killed:
            deaths += 1
            assert len(shown(tiled, run)[0]) == 3
    assert deaths > 3
    assert shown(tiled, run) == ([0, 1, 2], ["<0>", "<1>", "<2>"])
    assert list(tiled[run.uid]["primary"]) == ["internal"]
    assert set(run.progress) == {run.uid, f"{run.uid}/primary", run.table}


@pytest.mark.parametrize("mortal", [True], ids=["after it was answered"], indirect=True)
def test_a_rewrite_that_is_killed_at_many_requests_is_finished_by_other_hosts(run, another_host, tiled, mortal):
    mortal.requests_left = NEVER
    host = another_host()
    host.apply(*host.with_table(), host.append(0, 3))
    deaths = 0
    for mortal.requests_left in range(3, 100):  # those before concern the containers
        try:
            host.write(*widened(host, 3), UpdateMetadata(run.uid, {"stop": {}}), quiet_period=0.01)
            break
        except Killed:
            deaths += 1
            assert len(shown(tiled, run)[0]) == 3
            host = another_host()
    assert deaths > 3
    assert shown(tiled, run) == ([0, 1, 2], ["<0>", "<1>", "<2>"])
    assert list(tiled[run.uid]["primary"]) == ["internal"]
    assert appends(host.proxy) == 2 * [[0, 1, 2]]


@pytest.mark.parametrize("same_host", [True, False], ids=["the same host", "another host"])
def test_an_array_that_is_killed_at_any_request_is_finished_by_the_next(run, other, tiled, mortal, same_host):
    create = long_chunks(run)
    values = numpy.arange(1.0, 13.0).reshape(6, 2)
    writes = [WriteArray(create.path, n, values[n : n + 2]) for n in (0, 2, 4)]
    operations = [*run.containers(), create, *writes, Audit(create.path, 6)]
    hosts = [run] * 30 if same_host else [run, other] * 15
    for deaths, host in enumerate(hosts):
        mortal.requests_left = deaths
        try:
            host.write(*operations)
            break
        except Killed:
            pass
    assert 6 <= deaths < 29
    found = tiled[create.path]
    assert found.shape == (6, 2)
    numpy.testing.assert_array_equal(found.read(), values)


# What another host wrote


@pytest.fixture
def other(run, proxy, tiled_server, tmp_path):
    """The same run at another ingest host, which has a journal of its own."""
    with Journal(tmp_path / "other-host.sqlite", "create", run_uid=run.uid) as journal:
        yield Run(proxy, tiled_server.api_key, journal)


@pytest.fixture
def another_host(run, proxy, tiled_server, tmp_path):
    """Makes hosts with empty journals for the same run, each of which takes it over with what was decided about it."""
    path = DirectoryStore.create(tmp_path / "leases").path / RUNS_SUBDIRECTORY / f"{run.uid}.json"
    with ExitStack() as journals:

        def make():
            number = len(list(tmp_path.glob("host-*.sqlite")))
            journal = journals.enter_context(Journal(tmp_path / f"host-{number}.sqlite", "create", run_uid=run.uid))
            return Run(proxy, tiled_server.api_key, journal, DecisionFile(path))

        yield make


def changes(proxy, start):
    return [(request.method, request.path) for request in proxy.requests[start:] if request.method != "GET"]


def test_a_run_with_a_stop_that_the_journal_lacks_is_left_alone(run, other, proxy, tiled):
    run.apply(*run.with_table(), run.append(0, 10), UpdateMetadata(run.uid, STOP))
    before = len(proxy.requests)
    expected = "Tiled has more of this run than this journal: 10 rows in primary, 5 here, and a stop document"
    with pytest.raises(TiledHasMore, match=expected):
        other.apply(*other.with_table(), other.append(0, 5), other.audit(5), CloseStream(run.uid))
    assert set(changes(proxy, before)) == {("POST", "metadata/")}  # answered with 409
    assert read_column(tiled, run.table) == list(range(10))


def test_nothing_is_done_while_the_journal_may_come_to_its_stop_and_all_is_well_when_it_has(run, other, proxy, tiled):
    run.apply(*run.with_table(), run.append(0, 10), UpdateMetadata(run.uid, STOP))
    before = len(proxy.requests)
    whole = [*other.with_table(), other.append(0, 10), other.audit(10), UpdateMetadata(run.uid, STOP)]
    with other.catalog() as catalog:
        assert catalog.apply(whole[:3]) == []
        assert catalog.waits_for_stop
        stopped(other.journal)
        with pytest.raises(NodeRewound, match="has its stop document in the journal now"):
            catalog.apply([])
        assert not catalog.waits_for_stop
    other.apply(*whole, CloseStream(run.table), CloseStream(run.uid))
    assert [method for method, path in changes(proxy, before) if not path.startswith("metadata")] == []
    assert {method for method, _ in changes(proxy, before)} == {"POST"}
    assert read_column(tiled, run.table) == list(range(10))
    assert other.journal.get("late_audit")


def test_a_host_that_returns_with_less_leaves_the_rows_of_the_one_that_went_on(run, other, proxy, tiled):
    run.apply(*run.with_table(), run.append(0, 3))
    other.apply(*other.with_table(), other.append(0, 10))
    before = len(proxy.requests)
    with pytest.raises(TiledHasMore, match="10 rows in primary, 5 here"):
        run.write(*run.with_table(), run.append(0, 5), run.audit(5))
    assert changes(proxy, before) == []
    assert read_column(tiled, run.table) == list(range(10))


def test_a_host_that_returns_and_learns_the_rest_goes_on_behind_what_the_other_one_wrote(run, other, proxy, tiled):
    run.apply(*run.with_table(), run.append(0, 3))
    other.apply(*other.with_table(), other.append(0, 10))
    run.write(*run.with_table(), run.append(0, 5), run.append(5, 12), run.audit(12))
    assert appends(proxy)[-1] == [10, 11]
    assert read_column(tiled, run.table) == list(range(12))
    assert "repairing" not in run.events()


def test_an_adopted_table_is_waited_for_until_it_is_quiet(run, other, proxy, tiled):
    run.apply(*run.with_table(), run.append(0, 3))
    proxy.script("PATCH", "table/partition", zombie(0.5))
    with run.catalog() as catalog:
        catalog.apply([*run.with_table(), run.append(0, 6)])
    started = time.monotonic()
    other.write(*other.with_table(), other.append(0, 8), quiet_period=1.0)
    assert time.monotonic() - started > 1.0
    assert read_column(tiled, run.table) == list(range(8))
    assert appends(proxy)[-1] == [6, 7]


@pytest.fixture
def now():
    """What the clock of `taking_over` says, in a list."""
    return [0.0]


@pytest.fixture
def taking_over(other, now):
    """The catalog of the other host, with a quiet period of 5 s and a clock that a test sets."""
    with other.proxy.client(other._api_key) as client:
        connection = Connection(lambda: client, threading.Event(), other.journal.note)
        yield TiledCatalog(connection, other.journal, quiet_period=5.0, clock=lambda: now[0])


@pytest.mark.parametrize("tables", [1, 3])
def test_all_tables_of_a_run_that_is_taken_over_are_looked_at_twice_and_share_one_quiet_period(
    run, taking_over, now, tiled, tables
):
    proxy = run.proxy
    paths = [f"{run.table}{number}" for number in range(tables)]
    creations = [*run.containers(), *(CreateTable(path, COLUMNS, BY_SEQ_NUM) for path in paths)]
    run.apply(*creations, *(rows(path, 0, 3) for path in paths))
    before = len(proxy.requests)

    def requests():
        sent = [(request.method, request.path) for request in proxy.requests[before:]]
        return [sent.count(("GET", path)) for path in paths_read], len(sent)

    paths_read = [f"metadata/{path}{end}" for path in paths for end in ("", "/seq_num")]
    waiting = taking_over.apply([*creations, *(rows(path, 0, 4) for path in paths)])
    assert len(waiting) == 2 * tables
    # The run and its stream are asked for, too; each creation is refused, because the node exists.
    assert requests() == ([1, 1] * tables, 4 + 3 * tables)
    assert taking_over.choose_pause(0.25) == 5.0
    now[0] = 4.9
    assert taking_over.apply(waiting) == waiting
    assert requests() == ([1, 1] * tables, 4 + 3 * tables)
    now[0] = 5.0
    assert taking_over.apply(waiting) == []
    # After the second look, the two columns that prove which rows there are, and an append.
    assert requests() == ([2, 2] * tables, 4 + 8 * tables)
    assert [read_column(tiled, path) for path in paths] == [[0, 1, 2, 3]] * tables


def test_a_table_that_shows_the_rows_of_its_copy_only_now_is_not_quiet(run, other, taking_over, now, proxy):
    run.apply(*run.with_table(), run.append(0, 4))
    waiting = taking_over.apply(widened(other, 4))
    assert waiting
    run.write(*widened(run, 4))
    before = len(proxy.requests)
    now[0] = 5.0
    assert taking_over.apply(waiting) == waiting
    assert taking_over.choose_pause(0.25) == 5.0
    now[0] = 10.0
    assert taking_over.apply(waiting) == []
    assert {method for method, _ in changes(proxy, before)} == set()
    assert dict(other.journal.get("columns")[run.table])["x"] == "string"


def test_a_reading_that_may_come_at_any_time_is_asked_for_again_within_the_quiet_period(run, proxy):
    proxy.script("PATCH", "table/partition", CUT_BEFORE)
    with run.catalog(quiet_period=600) as catalog:
        waiting = catalog.apply([*run.with_table(), run.append(0, 3)])
        assert catalog.choose_pause(0.25) == 0.25
        catalog.apply(waiting)
        assert catalog.choose_pause(0.25) == 0.25


def test_a_node_that_this_process_made_is_not_waited_for(run, proxy):
    proxy.script("POST", f"metadata/{run.uid}/primary", CUT_AFTER)
    run.apply(*run.with_table(), quiet_period=600)
    assert "adopted" in run.events()
    assert not run.journal.get("late_audit")


def test_an_adopted_table_with_other_columns_is_rewritten_only_if_all_its_rows_are_known(run, other, tiled):
    run.apply(*run.with_table(), run.append(0, 4))
    with pytest.raises(TiledHasMore):
        other.write(*widened(other, 2), other.audit(2))
    assert len(shown(tiled, run)[0]) == 4
    assert list(tiled[run.uid]["primary"]) == ["internal"]
    other.write(*widened(other, 4), other.audit(4))
    assert shown(tiled, run) == ([0, 1, 2, 3], ["<0>", "<1>", "<2>", "<3>"])


@pytest.mark.parametrize("kind", ["array", "external"])
def test_an_adopted_array_is_compared_and_never_shortened(run, other, tiled, external, kind):
    wave = f"{run.uid}/primary/wave"
    values = numpy.arange(12.0).reshape(6, 2)

    def growth(host, stop):
        if kind == "external":
            return [*external.operations(min(stop, 4)), Audit(external.path, min(stop, 4))]
        create = CreateArray(wave, "<f8", (2,), 2, ("time", "x"))
        return [*host.containers(), create, WriteArray(wave, 0, values[:stop]), Audit(wave, stop)]

    path, size = (wave, 6) if kind == "array" else (external.path, 4)
    run.apply(*growth(run, 6))
    before = len(run.proxy.requests)
    with pytest.raises(TiledHasMore, match=f"{size} rows in primary/{path.rpartition('/')[2]}, 2 here"):
        other.write(*growth(other, 2))
    other.write(*growth(other, 6))
    assert {method for method, _ in changes(run.proxy, before)} <= {"POST"}
    assert tiled[path].shape[0] == size


@pytest.mark.parametrize("journal", ["of another host", "an older copy"])
def test_the_last_description_of_files_takes_away_none_that_the_journal_lacks(
    *, run, proxy, tiled_server, tmp_path, other, tiled, external, journal
):
    if journal == "an older copy":
        run.apply(*external.register())
        shutil.copy(run.journal.path, tmp_path / "older.sqlite")
    run.apply(*external.all_at_once(4))
    with ExitStack() as stack:
        if journal == "an older copy":
            older = stack.enter_context(Journal(tmp_path / "older.sqlite", "write", run_uid=run.uid))
            other = Run(proxy, tiled_server.api_key, older)
        with pytest.raises(TiledHasMore, match=r"than this journal: 4 rows in primary/files, 2 here\."):
            other.write(*external.all_at_once(2), Audit(external.path, 2))
        assert tiled.new_variation()[external.path].shape == (4, 4)
        other.write(*external.all_at_once(4), Audit(external.path, 4))
    numpy.testing.assert_array_equal(
        tiled.new_variation()[external.path].read(), [numpy.arange(4.0) + i for i in range(4)]
    )


def test_a_chunk_that_another_process_has_left_in_full_is_shown_as_far_as_it_was_written(run, tiled):
    create = long_chunks(run)
    values = numpy.arange(1.0, 7.0).reshape(3, 2)
    operations = [*run.containers(), create, WriteArray(create.path, 0, values)]
    run.write(*operations)
    tiled[create.path].patch(values[:1], (0,), extend=True)  # a row once more, and there that process died
    assert tiled.new_variation()[create.path].shape == (100, 2)
    run.write(*operations, Audit(create.path, 3))
    numpy.testing.assert_array_equal(tiled.new_variation()[create.path].read(), values)


def test_rows_of_another_host_that_had_not_come_to_say_how_many_there_are_are_never_taken_away(run, other, tiled):
    create = long_chunks(run)
    values = numpy.arange(1.0, 13.0).reshape(6, 2)

    def growth(host, stop):
        return [*host.containers(), create, WriteArray(create.path, 0, values[:stop]), Audit(create.path, stop)]

    run.apply(*run.containers(), create, WriteArray(create.path, 0, values[:3]))
    tiled[create.path].patch(values[3:6], (3,), extend=True)  # and there its process died
    assert tiled.new_variation()[create.path].shape == (100, 2)
    with pytest.raises(TiledHasMore, match="100 rows in primary/wave, 3 here"):
        other.write(*growth(other, 3))
    assert tiled.new_variation()[create.path].shape == (100, 2)
    other.write(*growth(other, 6))
    numpy.testing.assert_array_equal(tiled.new_variation()[create.path].read(), values)


@pytest.mark.parametrize(("dtype", "shape"), [("<i8", (2,)), (">f8", (2,)), ("<f8", (3,))])
def test_an_array_of_another_type_or_shape_is_made_anew_only_if_all_its_rows_are_known(run, other, tiled, dtype, shape):
    wave = f"{run.uid}/primary/wave"
    run.apply(
        *run.containers(), CreateArray(wave, "<f8", (2,), 2, ("time", "x")), WriteArray(wave, 0, numpy.ones((2, 2)))
    )
    create = CreateArray(wave, dtype, shape, 2, ("time", "x"))
    values = numpy.arange(3).repeat(shape[0]).reshape(3, *shape).astype(dtype)
    with pytest.raises(TiledHasMore, match="2 rows in primary/wave, 1 here"):
        other.write(*other.containers(), create, WriteArray(wave, 0, values[:1]), Audit(wave, 1))
    numpy.testing.assert_array_equal(tiled.new_variation()[wave].read(), numpy.ones((2, 2)))
    writes = [WriteArray(wave, 0, values[:1]), WriteArray(wave, 1, values[1:])]
    other.write(*other.containers(), create, *writes, Audit(wave, 3))
    found = tiled.new_variation()[wave]
    assert found.dtype == numpy.dtype(dtype)
    numpy.testing.assert_array_equal(found.read(), values)


def test_files_are_not_taken_for_an_array(run, other, external):
    run.apply(*external.operations(2))
    with pytest.raises(NotOurs, match="the node exists and has rows of type"):
        other.apply(*other.containers(), CreateArray(external.path, "<f4", (2,), 2, ("time", "x")))


def test_an_array_that_is_to_have_another_type_is_made_anew_by_the_journal_that_made_it(run, tiled):
    wave = f"{run.uid}/primary/wave"
    for dtype in ("<f8", "<i8"):
        values = numpy.arange(4).reshape(2, 2).astype(dtype)
        run.write(*run.containers(), CreateArray(wave, dtype, (2,), 2, ("time", "x")), WriteArray(wave, 0, values))
    found = tiled.new_variation()[wave]
    assert found.dtype == numpy.dtype("<i8")
    numpy.testing.assert_array_equal(found.read(), numpy.arange(4).reshape(2, 2))


@pytest.mark.parametrize("rows_before", [1, 2])
def test_an_array_of_another_host_is_made_anew_if_values_of_another_type_come(run, other, tiled, rows_before):
    integers = numpy.arange(4).reshape(2, 2)
    create = CreateArray(f"{run.uid}/primary/wave", "<i8", (2,), 2, ("time", "x"))
    run.write(*run.containers(), create, WriteArray(create.path, 0, integers))
    other.write(*other.containers(), create, WriteArray(create.path, 0, integers[:rows_before]))
    values = numpy.arange(6).reshape(3, 2) / 2
    create = replace(create, dtype="<f8")
    other.write(*other.containers(), create, WriteArray(create.path, 0, values), Audit(create.path, 3))
    numpy.testing.assert_array_equal(tiled.new_variation()[create.path].read(), values)


def test_an_array_whose_values_are_in_a_column_now_is_deleted_whoever_made_it(run, other, tiled):
    wave = f"{run.uid}/primary/wave"
    run.apply(
        *run.containers(), CreateArray(wave, "<f8", (2,), 2, ("time", "x")), WriteArray(wave, 0, numpy.ones((2, 2)))
    )
    other.write(*other.with_table(), other.append(0, 2), RemoveNode(wave))
    assert list(tiled[run.uid]["primary"]) == ["internal"]


def test_configuration_changes_and_the_order_of_rows_are_not_taken_back(run, other, proxy, tiled):
    stream = f"{run.uid}/primary"
    changed = UpdateMetadata(stream, {"_config_updates": [{"uid": "1"}, {"uid": "2"}]})
    run.apply(*run.with_table(), run.append(0, 3), OrderTable(run.table, ()), changed)
    before = len(proxy.requests)
    with pytest.raises(TiledHasMore, match="2 changes of configuration in primary, 1 here"):
        other.write(
            *other.with_table(),
            other.append(0, 3),
            OrderTable(run.table, ("time", "seq_num")),
            UpdateMetadata(stream, {"_config_updates": [{"uid": "1"}]}),
            CloseStream(run.uid),
        )
    assert {method for method, _ in changes(proxy, before)} == {"POST"}
    assert len(tiled[stream].metadata["_config_updates"]) == 2


def test_a_stream_that_the_journal_does_not_know_is_more(run, other, proxy):
    run.apply(*run.with_table())
    before = len(proxy.requests)
    with pytest.raises(TiledHasMore, match="2 nodes, such as primary"):
        other.write(other.containers()[0], CloseStream(run.uid))
    assert {method for method, _ in changes(proxy, before)} == {"POST"}


def test_another_stop_document_is_not_replaced(run, other, tiled):
    run.apply(*run.containers(), UpdateMetadata(run.uid, STOP))
    stopped(other.journal)
    with pytest.raises(NotOurs, match="the run has another stop document, 'the stop'"):
        other.apply(*other.containers(), UpdateMetadata(run.uid, {"stop": {"uid": "another"}}))
    assert tiled[run.uid].metadata["stop"] == STOP["stop"]
