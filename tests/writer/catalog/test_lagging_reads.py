"""Several Tiled processes, and reads that lag behind writes: what is read of a replica decides nothing by itself.

Reads are answered by a Tiled process on a replica of PostgreSQL that is held, so all of them are of one moment.
"""

from __future__ import annotations

import threading
import uuid

import numpy
import pyarrow
import pytest
from catalog_runs import COLUMNS, STOP, Run, finish, rows, stopped, write
from faulty_proxy import CUT_AFTER
from tiled_group import SpreadingProxy, TiledGroup

from tiledbroker import Journal
from tiledwriter._errors import NodeRewound, TiledHasMore
from tiledwriter.catalog import _connection, _rewrites
from tiledwriter.catalog._connection import Connection
from tiledwriter.catalog._preflight_probe import ProbeContainer
from tiledwriter.catalog._preflight_requests import PreflightRequests
from tiledwriter.mapping._operations import (
    Audit,
    CloseStream,
    CreateArray,
    OrderTable,
    RemoveNode,
    UpdateMetadata,
    WriteArray,
)

# Longer than a read lags in these tests, and much longer.
QUIET = {"quiet_period": 1.5}
PATIENT = {"quiet_period": 60.0}


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(_connection._Wait, "__call__", lambda self, state: 0.01)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    with TiledGroup(tmp_path_factory.mktemp("group"), servers=2) as group:
        yield group


@pytest.fixture
def proxy(group):
    with SpreadingProxy([server.uri for server in group.servers]) as proxy:
        yield proxy


@pytest.fixture
def tiled(group):
    """The root container for reading back, which never lags."""
    return group.first.client()


@pytest.fixture
def run(proxy, group, tmp_path):
    uid = str(uuid.uuid4())
    with Journal(tmp_path / "run.sqlite", "create", run_uid=uid) as journal:
        yield Run(proxy, group.api_key, journal)


@pytest.fixture
def other(run, proxy, group, tmp_path):
    """The same run at another ingest host, which has a journal of its own."""
    with Journal(tmp_path / "other.sqlite", "create", run_uid=run.uid) as journal:
        yield Run(proxy, group.api_key, journal)


def seq_nums(tiled, run):
    return tiled[run.table].read()["seq_num"].tolist()


def add_rows(tiled, run, first, stop):
    """Add rows to the run's table, as another writer does."""
    added = rows(run.table, first, stop)
    names = [column.name for column in COLUMNS]
    tiled[run.table].append_partition(0, pyarrow.table(dict(zip(names, added.values, strict=True))))


def kinds(operations):
    return [type(operation) for operation in operations]


@pytest.mark.parametrize("by_connection", [False, True])
def test_requests_reach_all_servers(run, group, tiled, by_connection):
    with SpreadingProxy([server.uri for server in group.servers], by_connection=by_connection) as proxy:
        run.proxy = proxy
        run.write(*run.with_table(), run.append(0, 3), run.audit(3))
        run.write(*run.with_table(), run.append(0, 6), run.audit(6), UpdateMetadata(run.uid, STOP))
    assert min(proxy.answered_by.values()) > 0
    assert seq_nums(tiled, run) == list(range(6))
    assert "ambiguous" not in run.events()


def test_rows_that_are_not_to_be_seen_yet_are_not_written_again(run, proxy, group, tiled):
    wave = f"{run.uid}/primary/wave"
    values = numpy.arange(6.0).reshape(3, 2)
    with run.catalog(**PATIENT) as catalog:
        finish(catalog, [*run.with_table(), run.append(0, 2), CreateArray(wave, "<f8", (2,), 2, ("time", "dim_1"))])
        with proxy.lagging(group) as standby:
            last = [run.append(2, 5), WriteArray(wave, 0, values), run.audit(5), Audit(wave, 3)]
            waiting = catalog.apply([*last, UpdateMetadata(run.uid, STOP), CloseStream(run.uid)])
            assert kinds(waiting) == [Audit, Audit, UpdateMetadata, CloseStream]
            standby.release()
            finish(catalog, waiting)
    assert {"repairing", "rewriting"}.isdisjoint(run.events())
    assert seq_nums(tiled, run) == list(range(5))
    numpy.testing.assert_array_equal(tiled[wave].read(), values)


def test_a_node_that_is_not_to_be_seen_yet_is_there(run, proxy, group, tiled):
    with proxy.lagging(group) as standby:
        run.apply(*run.with_table(), run.append(0, 2))
        # The next worker looks at what there is before it goes on.
        with run.catalog(**PATIENT) as catalog:
            waiting = catalog.apply([*run.with_table(), run.append(0, 4)])
            assert len(waiting) == 4
            standby.release()
            finish(catalog, waiting)
    assert seq_nums(tiled, run) == list(range(4))


@pytest.mark.parametrize("request_", ["POST metadata/", "PATCH table/partition"])
def test_what_became_of_a_request_is_found_out_although_reads_lag(run, proxy, group, tiled, request_):
    method, _, path = request_.partition(" ")
    proxy.script(method, path, CUT_AFTER)
    with proxy.lagging(group) as standby, run.catalog(**PATIENT) as catalog:
        waiting = catalog.apply([*run.with_table(), run.append(0, 3)])
        waiting = catalog.apply(waiting)
        assert waiting
        standby.release()
        finish(catalog, waiting)
    assert proxy.all_played
    assert seq_nums(tiled, run) == list(range(3))


def test_rows_of_others_that_are_not_to_be_seen_yet_are_not_removed(run, proxy, group, tiled):
    run.apply(*run.with_table(), run.append(0, 3))
    with proxy.lagging(group, lambda target: "/array/full/" in target) as standby, run.catalog() as catalog:
        add_rows(tiled, run, 90, 92)
        operations = [*run.with_table(), run.append(0, 3), run.audit(3)]
        with pytest.raises(NodeRewound, match="has 5 rows where 3 are expected"):
            finish(catalog, operations)
        waiting = catalog.apply(operations)
        standby.release()
        with pytest.raises(TiledHasMore, match="5 rows in primary, 3 here"):
            finish(catalog, waiting)
    assert sorted(seq_nums(tiled, run)) == [0, 1, 2, 90, 91]


@pytest.mark.parametrize("worker", ["this", "next"])
def test_a_table_that_was_rewritten_shows_what_was_written_last(run, proxy, group, tiled, worker):
    operations = [*run.with_table(), run.append(0, 3), run.audit(3)]
    later = [OrderTable(run.table, ("time", "seq_num")), run.append(3, 5), run.audit(5)]
    with run.catalog(**QUIET) as catalog:
        finish(catalog, operations)
        add_rows(tiled, run, 0, 3)
        # Of the table's data source only: it still shows the rows from before the rewrite.
        with proxy.lagging(group, lambda target: f"{run.table}?" in target) as standby:
            write(catalog, operations)
            if worker == "this":
                finish(catalog, later)
            else:
                with run.catalog(**QUIET) as following:
                    waiting = following.apply([*operations, *later])
                    standby.release()
                    finish(following, waiting)
    assert run.events().count("repairing") == 1
    assert seq_nums(tiled, run) == list(range(5))


def test_the_copy_of_a_table_is_deleted_without_its_rows(run, proxy, group, tiled, monkeypatch):
    class Killed(Exception):
        pass

    def die(point):
        if point == "catalog: rewrite recorded":
            raise Killed

    operations = [*run.with_table(), run.append(0, 3), run.audit(3)]
    run.apply(*operations[:-1])
    add_rows(tiled, run, 0, 3)
    with proxy.lagging(group, lambda target: f"{run.table}_rewrite?" in target) as standby:
        with monkeypatch.context() as patch:
            patch.setattr(_rewrites, "crash_point", die)
            with pytest.raises(Killed):
                run.write(*operations, **QUIET)
        with run.catalog(**PATIENT) as catalog:
            waiting = catalog.apply(operations)
            standby.release()
            finish(catalog, waiting)
    assert "internal_rewrite" not in tiled[f"{run.uid}/primary"]
    assert seq_nums(tiled, run) == list(range(3))


def test_a_complete_run_is_not_written_once_more_because_its_rows_are_not_to_be_seen_yet(
    run, other, proxy, group, tiled
):
    whole = [*run.with_table(), run.append(0, 5), run.audit(5), UpdateMetadata(run.uid, STOP)]
    stopped(other.journal)
    run.apply(*whole[:3])
    with proxy.lagging(
        group, lambda target: not target.endswith(f"metadata/{run.uid}?include_data_sources=true")
    ) as standby:
        run.apply(*whole[3:4], UpdateMetadata(run.uid, STOP))
        sent = proxy.count("PATCH", "table/partition")
        with other.catalog(**QUIET) as catalog:
            waiting = catalog.apply(whole)
            standby.release()
            with pytest.raises(NodeRewound, match="has 5 rows where 0 are expected"):
                finish(catalog, waiting)
            finish(catalog, whole)
    assert proxy.count("PATCH", "table/partition") == sent
    assert seq_nums(tiled, run) == list(range(5))


def test_a_node_that_is_still_to_be_seen_although_it_was_removed_is_not_of_others(run, proxy, group, tiled):
    wave = f"{run.uid}/primary/wave"
    run.apply(*run.with_table(), CreateArray(wave, "<f8", (2,), 2, ("time", "dim_1")))
    with proxy.lagging(group):
        run.apply(*run.with_table(), run.append(0, 2), RemoveNode(wave), CloseStream(run.uid))
    assert list(tiled[f"{run.uid}/primary"]) == ["internal"]


def test_check_says_how_far_reads_lag(run, proxy, group):
    with proxy.lagging(group, seconds=1.0), proxy.client(group.api_key) as client:
        probe = ProbeContainer(PreflightRequests(client))
        probe.create()
        assert probe.remove() == []
    assert 0.0 < probe.lag < 5.0
    assert probe.is_shared


def test_databases_count_as_writable_although_reads_lag(run, proxy, group):
    run.apply(*run.with_table(), run.append(0, 2))
    with proxy.lagging(group), proxy.client(group.api_key) as client:
        connection = Connection(lambda: client, threading.Event(), run.journal.note)
        connection.probe.run = run.uid
        assert connection.databases_can_write()
