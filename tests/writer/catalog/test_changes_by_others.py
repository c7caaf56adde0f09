"""What a journal counts on in Tiled, and somebody else has removed, replaced, put back or finished meanwhile.

Somebody else is another host that took the run over, an operator with Tiled's client, or a backup of Tiled's databases
that was put back.
"""

from __future__ import annotations

import itertools
import shutil
import uuid
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import httpx
import numpy
import pyarrow
import pytest
from catalog_runs import BY_SEQ_NUM, COLUMNS, STOP, Run, finish, npy_files, rows, stopped, write
from faulty_proxy import CUT_BEFORE, FaultyProxy, answer, page
from pairs import every_pair

from tiledbroker import Journal
from tiledwriter._errors import AuditFailed, NodeRewound, OperationRefused, TiledHasMore
from tiledwriter.catalog import Nodes, _connection, _creation, _growth, _rewrites
from tiledwriter.catalog._connection import Connection
from tiledwriter.mapping._operations import (
    AppendRows,
    Audit,
    CloseStream,
    Column,
    CreateArray,
    CreateTable,
    DescribeExternal,
    ExtendExternal,
    RegisterExternal,
    UpdateMetadata,
    WriteArray,
)

WIDER = (*COLUMNS[:2], Column("x", "string"))
VALUES = numpy.arange(1.0, 201.0).reshape(100, 2)
HAS_ALL = ["files", "internal", "wave"]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(_connection._Wait, "__call__", lambda self, state: 0.01)


@pytest.fixture
def proxy(tiled_server):
    with FaultyProxy(tiled_server.uri) as proxy:
        yield proxy


@pytest.fixture
def tiled(tiled_server):
    """The root container, for reading back and for what others do, not through the proxy."""
    return tiled_server.client()


@pytest.fixture
def run(proxy, tiled_server, tmp_path):
    with Journal(tmp_path / "run.sqlite", "create", run_uid=str(uuid.uuid4())) as journal:
        yield Run(proxy, tiled_server.api_key, journal)


@pytest.fixture
def other(run, proxy, tiled_server, tmp_path):
    """The same run at another ingest host, which has a journal of its own."""
    with Journal(tmp_path / "other.sqlite", "create", run_uid=run.uid) as journal:
        yield Run(proxy, tiled_server.api_key, journal)


def see_an_outage(proxy):
    """Have the writer see that Tiled was away meanwhile."""
    for method in ("PATCH", "PUT", "GET"):
        proxy.script(method, "", page(503))


class Whole:
    """A run with a table, an array and a sequence of files, which all have as many rows."""

    def __init__(self, run, directory):
        self.run = run
        self.paths = {
            "run": run.uid,
            "stream": f"{run.uid}/primary",
            "table": run.table,
            "array": f"{run.uid}/primary/wave",
            "files": f"{run.uid}/primary/files",
        }
        self._directory = directory
        directory.mkdir()
        for i in range(10):
            numpy.save(directory / f"{i:05}.npy", VALUES[i : i + 1])

    def begin(self):
        return [
            *self.run.with_table(),
            CreateArray(self.paths["array"], "<f8", (2,), 2, ("time", "x")),
            RegisterExternal(self.paths["files"], self._source(0)),
        ]

    def grow(self, first, stop):
        return [
            self.run.append(first, stop),
            WriteArray(self.paths["array"], first, VALUES[first:stop]),
            ExtendExternal(
                self.paths["files"],
                first,
                stop,
                self._source(stop),
                (first, 0),
                (stop - first, 2),
                known_assets=first,
            ),
        ]

    def end(self, stop):
        return [
            DescribeExternal(self.paths["files"], {**self._source(stop), "assets": []}),
            self.run.audit(stop),
            Audit(self.paths["array"], stop),
            Audit(self.paths["files"], stop),
            UpdateMetadata(self.run.uid, STOP),
        ]

    def check(self, tiled, stop):
        tiled = tiled.new_variation()
        assert tiled[self.run.table].read()["seq_num"].tolist() == list(range(stop))
        numpy.testing.assert_array_equal(tiled[self.paths["array"]].read(), VALUES[:stop])
        numpy.testing.assert_array_equal(tiled[self.paths["files"]].read(), VALUES[:stop])
        assert sorted(tiled[self.paths["stream"]]) == HAS_ALL
        assert tiled[self.run.uid].metadata["stop"] == STOP["stop"]

    def _source(self, count):
        return npy_files(self._directory, count, row_length=2)


@pytest.fixture
def whole(run, readable):
    return Whole(run, readable / run.uid)


def delete(tiled, path):
    context = tiled.context
    params = {"recursive": True, "external_only": False}
    context.http_client.delete(f"{context.api_uri}metadata/{path}", params=params).raise_for_status()


def continue_in(worker, run, before, meanwhile, after):
    """Write operations; have something happen; write more, in this process or the next one."""
    with run.catalog() as catalog:
        write(catalog, before)
        meanwhile()
        if worker == "this":
            try:
                finish(catalog, after)
            except NodeRewound:
                write(catalog, [*before, *after])
            return
    run.write(*before, *after)


# Gone


WORKERS = ("this", "next")
MOMENTS = ("as it grows", "at its end")


@pytest.mark.parametrize(
    ("gone", "moment", "worker"), every_pair(["run", "stream", "table", "array", "files"], MOMENTS, WORKERS)
)
def test_what_is_gone_is_written_again(*, run, whole, tiled, gone, moment, worker):
    stop = 5 if moment == "as it grows" else 3
    before = [*whole.begin(), *whole.grow(0, 3)]
    after = [*(whole.grow(3, 5) if stop == 5 else []), *whole.end(stop)]
    stopped(run.journal)
    continue_in(worker, run, before, lambda: delete(tiled, whole.paths[gone]), after)
    whole.check(tiled, stop)
    notes = [entry.detail for entry in run.journal.history() if entry.event == "missing"]
    assert [note["node"] for note in notes] == [whole.paths[gone]]


def test_a_complete_run_that_is_gone_is_written_again_by_its_late_audit(run, whole, tiled):
    operations = [*whole.begin(), *whole.grow(0, 3), *whole.end(3)]
    stopped(run.journal)
    run.write(*operations)
    delete(tiled, run.uid)
    run.write(*operations)
    whole.check(tiled, 3)
    assert "missing" in run.events()


def test_a_run_without_rows_that_is_gone_is_written_again(run, tiled):
    stopped(run.journal)
    run.write(*run.containers())
    delete(tiled, run.uid)
    run.write(*run.containers(), UpdateMetadata(run.uid, STOP))
    assert tiled[run.uid].metadata["stop"] == STOP["stop"]
    assert list(tiled[run.uid]) == ["primary"]


def test_a_table_that_is_gone_with_an_append_of_unknown_outcome_is_written_again(run, tiled, proxy):
    proxy.script("PATCH", "table/partition", CUT_BEFORE)
    with run.catalog() as catalog:
        assert catalog.apply([*run.with_table(), run.append(0, 3)])
    delete(tiled, run.table)
    run.write(*run.with_table(), run.append(0, 3), run.audit(3))
    assert tiled[run.table].read()["seq_num"].tolist() == [0, 1, 2]


def test_what_is_gone_again_and_again_is_said(run, tiled, monkeypatch):
    create = Nodes.create

    def create_in_vain(nodes, operation, **options):
        create(nodes, operation, **options)
        if operation.path == run.table:
            delete(tiled, run.table)

    monkeypatch.setattr(Nodes, "create", create_in_vain)
    with pytest.raises(AuditFailed, match="primary/internal is missing in Tiled, although it was rewritten several"):
        run.write(*run.with_table(), run.append(0, 5), quiet_period=0.01)
    assert run.events().count("missing") == 5


def test_a_node_that_the_key_may_not_see_any_more_is_said(run, proxy, tiled):
    run.write(*run.with_table(), run.append(0, 3))
    for method, path in (("PATCH", "table/partition"), ("GET", f"metadata/{run.table}")):
        proxy.script(method, path, *[answer(404, "No such entry")] * 1000)
    with pytest.raises(OperationRefused, match=f"CreateTable {run.table}.*404: No such entry"):
        run.write(*run.with_table(), run.append(0, 5), quiet_period=0.01)
    assert tiled[run.table].read()["seq_num"].tolist() == [0, 1, 2]


def test_what_a_gateway_does_not_find_is_not_gone(run, proxy, tiled):
    """It answers as FastAPI does for paths that it does not know."""
    run.write(*run.with_table(), run.append(0, 3))
    for method in ("PATCH", "GET"):
        proxy.script(method, "", *[answer(404, "Not Found")] * 3)
    run.write(*run.with_table(), run.append(0, 5), quiet_period=0.01)
    assert tiled[run.table].read()["seq_num"].tolist() == [0, 1, 2, 3, 4]
    assert "missing" not in run.events()


def test_a_container_for_runs_that_is_gone_is_said(run, proxy):
    proxy.script("POST", "metadata/", answer(404, "No such entry: ['beamline']"))
    with pytest.raises(OperationRefused, match=r"404: No such entry: \['beamline'\]"):
        run.write(*run.with_table())


# Replaced, or put back


@pytest.mark.parametrize(
    ("replaced", "moment", "worker"), every_pair(["run", "table", "array", "files"], MOMENTS, WORKERS)
)
def test_what_was_made_anew_with_less_gets_the_rest(*, run, other, whole, tiled, replaced, moment, worker):
    stop = 5 if moment == "as it grows" else 3
    before = [*whole.begin(), *whole.grow(0, 3)]
    after = [*(whole.grow(3, 5) if stop == 5 else []), *whole.end(stop)]
    stopped(run.journal)

    def make_anew():
        delete(tiled, whole.paths[replaced])
        other.write(*whole.begin(), *whole.grow(0, 1))
        see_an_outage(run.proxy)

    continue_in(worker, run, before, make_anew, after)
    whole.check(tiled, stop)


@pytest.mark.parametrize(("backed_up", "moment", "worker"), every_pair([0, 2], MOMENTS, WORKERS))
def test_a_backup_of_tiled_that_is_put_back_gets_the_rest(
    *, own_tiled_server, tmp_path, readable, backed_up, moment, worker
):
    server = own_tiled_server
    stop = 5 if moment == "as it grows" else 3
    directory, copy = server._directory, tmp_path / "backup"
    with (
        FaultyProxy(server.uri) as proxy,
        Journal(tmp_path / "run.sqlite", "create", run_uid=str(uuid.uuid4())) as journal,
    ):
        run = Run(proxy, server.api_key, journal)
        whole = Whole(run, readable / run.uid)
        stopped(journal)

        def put_back():
            server.stop()
            shutil.rmtree(directory)
            shutil.copytree(copy, directory, symlinks=True)
            server.start()
            see_an_outage(proxy)

        before = [*whole.begin(), *whole.grow(0, 2)] if backed_up else []
        run.write(*before)
        server.stop()
        shutil.copytree(directory, copy, symlinks=True)
        server.start()
        before = [*whole.begin(), *whole.grow(0, 2), *whole.grow(2, 3)]
        after = [*(whole.grow(3, 5) if stop == 5 else []), *whole.end(stop)]
        continue_in(worker, run, before, put_back, after)
        whole.check(server.client(), stop)


def test_rows_of_an_array_are_not_sent_behind_a_gap_when_tiled_is_back_with_less(run, other, whole, tiled, monkeypatch):
    array = whole.paths["array"]
    before = [*whole.begin()[:-1], WriteArray(array, 0, VALUES[:3])]
    send, is_away = httpx.Client.send, True

    def send_or_restart(client, request, **options):
        nonlocal is_away
        if is_away and request.method == "PATCH":
            is_away = False
            delete(tiled, array)
            other.write(*whole.begin()[:-1], WriteArray(array, 0, VALUES[:1]))
            raise httpx.ConnectError("refused")
        return send(client, request, **options)

    run.write(*before)
    monkeypatch.setattr(httpx.Client, "send", send_or_restart)
    run.write(*before, WriteArray(array, 3, VALUES[3:5]), Audit(array, 5))
    assert not is_away
    numpy.testing.assert_array_equal(tiled.new_variation()[array].read(), VALUES[:5])


# Rewrites that others have gone on with


class Killed(BaseException):
    """The end of a process, which notices nothing of it."""


@pytest.fixture
def die_at(monkeypatch):
    """Makes processes die at the next crash point of a name."""

    @contextmanager
    def die_at(name, *, times=1):
        left = times

        def die(point):
            nonlocal left
            left -= point == name
            if not left:
                raise Killed

        with monkeypatch.context() as patch:
            for module in (_creation, _growth, _rewrites):
                patch.setattr(module, "crash_point", die)
            with pytest.raises(Killed):
                yield

    return die_at


@pytest.fixture
def never_fewer(monkeypatch, tiled, run):
    """Checks after each request that the table shows no fewer rows than it did."""

    @contextmanager
    def never_fewer():
        count, send = count_rows(tiled, run), Connection.send

        def send_and_look(connection, method, *arguments, **options):
            response = send(connection, method, *arguments, **options)
            assert method == "GET" or count_rows(tiled, run) >= count
            return response

        with monkeypatch.context() as patch:
            patch.setattr(Connection, "send", send_and_look)
            yield

    return never_fewer


def as_text(run, first, stop):
    numbers = list(range(first, stop))
    return AppendRows(run.table, first, WIDER, (numbers, [float(n) for n in numbers], [f"<{n}>" for n in numbers]))


def widened(run, stop):
    return [*run.containers(), CreateTable(run.table, WIDER, BY_SEQ_NUM), as_text(run, 0, stop)]


def shown(tiled, run):
    frame = tiled[run.table].read()
    return frame["seq_num"].tolist(), frame["x"].tolist()


def count_rows(tiled, run):
    """The rows that the table shows, in one request, where Tiled's client needs two."""
    context = tiled.context
    params = {"format": "application/vnd.apache.arrow.file"}
    response = context.http_client.get(f"{context.api_uri}table/full/{run.table}", params=params)
    return pyarrow.ipc.open_file(response.raise_for_status().content).read_all().num_rows


def finish_and_go_on(other, _):
    other.write(*widened(other, 5))


def go_on_without(other, _):
    other.write(*other.with_table(), other.append(0, 5), other.audit(5))


def delete_copy(other, tiled):
    if "internal_rewrite" in tiled[f"{other.uid}/primary"]:
        detach_copy(other, tiled)
        delete(tiled, f"{other.table}_rewrite")


def detach_copy(other, tiled):
    if "internal_rewrite" in tiled[f"{other.uid}/primary"]:
        with other.catalog() as catalog:
            catalog._nodes.detach(f"{other.table}_rewrite", may_be_absent=False)


def replace_copy(other, tiled):
    """Another host has dropped the copy, and has died as it wrote one of its own."""
    delete_copy(other, tiled)
    other.write(*other.containers(), CreateTable(f"{other.table}_rewrite", WIDER, BY_SEQ_NUM))
    other.apply(*other.containers(), replace(as_text(other, 0, 1), path=f"{other.table}_rewrite"))


POINTS = {
    "begun": ("catalog: rewrite begun", 1),
    "copy made": ("catalog: node created", 1),
    "one row": ("catalog: growth done", 1),
    "all rows": ("catalog: growth done", 3),
    "shown": ("catalog: rewrite shown", 1),
    "recorded": ("catalog: rewrite recorded", 1),
    "detached": ("catalog: copy detached", 1),
    "deleted": ("catalog: node deleted", 1),
}
POINTS_WITH_COPY = ("copy made", "one row", "all rows", "shown", "recorded")


def rest_of(host):
    return [host.audit(8), UpdateMetadata(host.uid, STOP)]


@pytest.mark.parametrize(
    ("do", "point"),
    [
        *itertools.product([finish_and_go_on, go_on_without], POINTS),
        *itertools.product([delete_copy, detach_copy, replace_copy], POINTS_WITH_COPY),
    ],
)
def test_a_host_that_returns_to_a_rewrite_makes_the_table_right(*, run, other, tiled, die_at, never_fewer, do, point):
    run.write(*run.with_table(), run.append(0, 3))
    name, times = POINTS[point]
    one_by_one = [*widened(run, 0)[:-1], *(as_text(run, n, n + 1) for n in range(3))]
    with die_at(name, times=times):
        run.write(*one_by_one)
    do(other, tiled)
    has_more = len(shown(tiled, run)[0]) > 3
    with never_fewer():
        with pytest.raises(TiledHasMore, match="5 rows in primary, 3 here") if has_more else nullcontext():
            run.write(*widened(run, 3), run.audit(3), CloseStream(run.uid))
        stopped(run.journal)
        run.write(*widened(run, 8), *rest_of(run))
    assert shown(tiled, run) == (list(range(8)), [f"<{n}>" for n in range(8)])
    assert list(tiled[f"{run.uid}/primary"]) == ["internal"]


@pytest.mark.parametrize("point", POINTS_WITH_COPY)
@pytest.mark.parametrize("do", [go_on_without, delete_copy, detach_copy, replace_copy])
def test_a_host_that_returns_to_a_repair_makes_the_table_right(*, run, other, tiled, die_at, never_fewer, do, point):
    run.write(*run.with_table(), run.append(0, 3))
    append_behind_our_back(tiled, run, 1, 3)
    name, times = POINTS[point]
    one_by_one = [*run.with_table(), *(run.append(n, n + 1) for n in range(3)), run.audit(3)]
    with die_at(name, times=times):
        run.write(*one_by_one)
    do(other, tiled)
    has_more = 4 in shown(tiled, run)[0]
    with pytest.raises(TiledHasMore, match="rows in primary, 3 here") if has_more else nullcontext():
        run.write(*run.with_table(), run.append(0, 3), run.audit(3), CloseStream(run.uid))
    stopped(run.journal)
    run.write(*run.with_table(), run.append(0, 8), *rest_of(run))
    assert shown(tiled, run)[0] == list(range(8))
    assert list(tiled[f"{run.uid}/primary"]) == ["internal"]


def append_behind_our_back(tiled, run, first, stop):
    append = rows(run.table, first, stop)
    table = pyarrow.table(dict(zip([column.name for column in COLUMNS], append.values, strict=True)))
    tiled[run.table].append_partition(0, table)


def test_a_host_that_returns_to_a_table_with_other_columns_writes_it_with_its_own(run, other, tiled):
    run.write(*run.with_table(), run.append(0, 3))
    other.write(*widened(other, 3))
    run.write(*run.with_table(), run.append(0, 5), run.audit(5))
    assert shown(tiled, run) == (list(range(5)), [n / 2 for n in range(5)])
    run.write(*widened(run, 8), run.audit(8))
    assert shown(tiled, run) == (list(range(8)), [f"<{n}>" for n in range(8)])
