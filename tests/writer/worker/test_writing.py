"""The writing thread by itself, on a real Tiled server: what a journal or a server that fails does to it."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from event_model import compose_run

from tiledbroker import Encoder, Journal, decode
from tiledbroker._errors import StoreUnavailable
from tiledbroker.ownership import RUNS_SUBDIRECTORY, DecisionFile, DecisionStore, DirectoryStore, RunDecisions
from tiledwriter.mapping import _fold as fold_module
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import TiledServer, wait_until
from tiledwriter.worker import _writing as writing_module
from tiledwriter.worker._writing import RunWriting

pytestmark = [pytest.mark.filterwarnings("default")]  # the reading client warns about itself


def documents_of(values: list[Any], dtype: str) -> list[tuple[str, Any]]:
    """A complete run of one data key, "x"."""
    run = compose_run()
    shape = [len(values[0])] if dtype == "array" else []
    stream = run.compose_descriptor(name="primary", data_keys={"x": {"source": "s", "dtype": dtype, "shape": shape}})
    emitted: list[tuple[str, Any]] = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    emitted += [("event", stream.compose_event(data={"x": x}, timestamps={"x": 0.0})) for x in values]
    return [*emitted, ("stop", run.compose_stop())]


@pytest.fixture
def values() -> list[Any]:
    """What the run's device gives."""
    return list(range(20))


@pytest.fixture
def journal(tmp_path: Path, values: list[Any]) -> Iterator[Journal]:
    """A complete run."""
    emitted = documents_of(values, "array" if isinstance(values[0], list) else "integer")
    encoder = Encoder()
    with Journal(tmp_path / "run.sqlite", "create", run_uid=emitted[0][1]["uid"]) as journal:
        for name, document in emitted:
            journal.append_one(name, encoder.encode(document))
        yield journal


@pytest.fixture
def write(journal: Journal, tiled_server: TiledServer) -> Callable[[], tuple[str, str]]:
    """Writes the run; gives back the outcome and its reason."""

    def write(
        written: Journal = journal,
        *,
        drain: bool = False,
        decision_store: DecisionStore | None = None,
        on_progress: Callable[[int], None] = lambda _: None,
        **options: Any,
    ) -> tuple[str, str]:
        ended = threading.Event()
        ends: list[tuple[str, str]] = []

        def on_end(outcome: str, reason: str) -> None:
            ends.append((outcome, reason))
            ended.set()

        writing = RunWriting(
            written,
            tiled_server.client,
            WritingOptions(**{"quiet_period": 0.2, **options}),
            drain=drain,
            on_progress=on_progress,
            on_end=on_end,
            decision_store=decision_store,
        )
        writing.start()
        wait_until(ended.is_set, 60, "the run has been written")
        writing.stop(5.0)
        (end,) = ends
        return end

    return write


def uid_of(emitted: list[tuple[str, bytes]]) -> str:
    uid: str = decode(emitted[0][1])["uid"]
    return uid


def seq_nums(server: TiledServer, run_uid: str) -> list[int]:
    return [int(n) for n in server.client()[run_uid]["primary"]["seq_num"].read()]


@pytest.mark.parametrize("failing", ["set_progress", "set", "note", "read", "atomic"])
def test_a_journal_disk_that_fails_for_a_while_costs_nothing(
    failing: str,
    journal: Journal,
    write: Callable[..., tuple[str, str]],
    tiled_server: TiledServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writing_module, "STORE_RETRY_PAUSE_SECONDS", 0.01)
    works = getattr(journal, failing)
    calls = 0

    def fails_now_and_then(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 3, 6):
            raise sqlite3.OperationalError("database or disk is full")
        return works(*arguments, **keywords)

    monkeypatch.setattr(journal, failing, fails_now_and_then)
    assert write() == ("written", "")
    assert calls > 0 or failing == "note"  # there may be nothing to note
    assert seq_nums(tiled_server, journal.run_uid) == list(range(1, 21))


class Shared(DecisionFile):
    """A store that is told to fail when it is to have column types."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.takes_types = False
        self.stored: list[RunDecisions] = []

    def store(self, decisions: RunDecisions) -> None:
        if decisions.column_types and not self.takes_types:
            raise StoreUnavailable(self.path, "it cannot be stored: Stale file handle")
        super().store(decisions)
        self.stored.append(decisions)


def test_a_run_without_a_surprise_is_stored_at_its_beginning_and_its_end(
    write: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    store = Shared(DirectoryStore.create(tmp_path / "leases").path / RUNS_SUBDIRECTORY / "run.json")
    # A slow append is a surprise if it makes the quiet period longer.
    assert write(max_array_size=5, quiet_period=300.0, decision_store=store) == ("written", "")
    assert store.stored == [RunDecisions(max_array_size=5), RunDecisions(max_array_size=5, outcome="written")]


@pytest.mark.parametrize("values", [[0, 1, 0.5]])
@pytest.mark.parametrize("failure", ["not mounted", "damaged", "at a decision"])
def test_nothing_is_written_while_other_hosts_would_not_find_what_is_decided(
    failure: str, journal: Journal, tiled_server: TiledServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing_module, "STORE_RETRY_PAUSE_SECONDS", 0.01)
    leases = tmp_path / "leases"
    path = leases / RUNS_SUBDIRECTORY / "run.json"
    store = Shared(path)
    if failure != "not mounted":
        DirectoryStore.create(leases)
    if failure == "damaged":
        store.store(RunDecisions(max_array_size=0))
        path.write_bytes(path.read_bytes()[:-10])
    ended: list[tuple[str, str]] = []
    writing = RunWriting(
        journal,
        tiled_server.client,
        WritingOptions(quiet_period=0.2),
        drain=False,
        on_progress=lambda _: None,
        on_end=lambda *end: ended.append(end),
        decision_store=store,
    )
    writing.start()
    try:
        wait_until(lambda: str(leases) in writing.waits_for, 30, "it waits")
        assert writing.waits_for.startswith(f"What is decided about run {journal.run_uid} cannot be kept")
        assert journal.run_uid not in tiled_server.client()
        assert not ended
        if failure == "not mounted":
            DirectoryStore.create(leases)
        elif failure == "damaged":
            path.unlink()
        store.takes_types = True
        wait_until(lambda: ended, 30, "the run has been written")
    finally:
        writing.stop(5.0)
    assert ended == [("written", "")]
    assert tiled_server.client()[journal.run_uid]["primary"]["x"].read().tolist() == [0.0, 1.0, 0.5]
    assert not path.exists()


@pytest.mark.parametrize("values", [[0, 1, 2, 3, 4, 0.5]])
@pytest.mark.parametrize("knows", [True, False])
def test_a_host_that_knows_what_was_decided_narrows_no_table(
    journal: Journal,
    write: Callable[..., tuple[str, str]],
    tiled_server: TiledServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    knows: bool,
) -> None:
    monkeypatch.setattr(fold_module, "MAX_PENDING_EVENT_BYTES", 0)  # each host writes before it sees the next document
    store = DecisionFile(DirectoryStore.create(tmp_path / "leases").path / RUNS_SUBDIRECTORY / "run.json")
    store.store(RunDecisions(max_array_size=16, column_types=[("primary", "x", "float64")]))
    with Journal(tmp_path / "killed.sqlite", "create", run_uid=journal.run_uid) as killed:
        # The host dies when it has widened the table for a value that it has not written yet.
        killed.append(0, [(record.name, record.crc, record.body) for record in journal.read(0, 5)])
        assert write(killed, drain=True, decision_store=store) == ("", "")
    if not knows:
        store.path.unlink()
    assert write(decision_store=DecisionFile(store.path)) == ("written", "")
    rewrites = [entry.event for entry in journal.history()].count("rewriting")
    assert rewrites == (0 if knows else 2)
    stored = tiled_server.client()[journal.run_uid]["primary"]["x"].read().tolist()
    assert stored == [0.0, 1.0, 2.0, 3.0, 4.0, 0.5]


@pytest.mark.parametrize("values", [[[0.5, 1.5]]])
def test_a_storage_without_lists_is_not_asked_again_by_another_host(
    journal: Journal, write: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    store = DecisionFile(DirectoryStore.create(tmp_path / "leases").path / RUNS_SUBDIRECTORY / "run.json")
    store.store(RunDecisions(max_array_size=0))
    assert write(decision_store=store) == ("written", "")
    assert [entry.event for entry in journal.history()] == ["decisions taken over", "written"]


def test_the_setting_for_arrays_holds_for_the_whole_run(
    journal: Journal, write: Callable[..., tuple[str, str]]
) -> None:
    assert write(max_array_size=5) == ("written", "")
    assert journal.get("max_array_size") == 5


def test_a_run_that_is_written_already_is_left_as_it_is(
    journal: Journal, write: Callable[..., tuple[str, str]], tiled_server: TiledServer
) -> None:
    assert write() == ("written", "")
    assert write() == ("written", "")
    assert seq_nums(tiled_server, journal.run_uid) == list(range(1, 21))


@pytest.mark.parametrize("batch", [0, 500, 10**6])  # bytes
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([0, 1, 0.5, 2, 2**60 + 1], [0.0, 1.0, 0.5, 2.0, None]),
        ([1.5, None, 2], [1.5, None, 2.0]),
        ([False, 2, 0.5], [0.0, 2.0, 0.5]),
    ],
)
def test_columns_are_as_wide_as_the_values_that_come(
    journal: Journal,
    write: Callable[..., tuple[str, str]],
    tiled_server: TiledServer,
    monkeypatch: pytest.MonkeyPatch,
    *,
    batch: int,
    expected: list[Any],
) -> None:
    monkeypatch.setattr(fold_module, "MAX_PENDING_EVENT_BYTES", batch)
    assert write() == ("written", "")
    stored = tiled_server.client()[journal.run_uid]["primary"]["x"].read().tolist()
    assert [None if isinstance(x, float) and math.isnan(x) else x for x in stored] == expected
    assert [type(x) for x in stored] == [type(x) if x is not None else float for x in expected]
    rewritten = "rewritten" in [entry.event for entry in journal.history()]
    assert rewritten == (batch < 10**6 and 0.5 in expected)


@pytest.mark.parametrize("batch", [0, 10**6])  # bytes
@pytest.mark.parametrize("values", [[[0.5] * 20, [1.5] * 24, [], [2.5]]])
def test_arrays_of_unequal_length_are_kept_whole(
    journal: Journal,
    values: list[list[float]],
    write: Callable[..., tuple[str, str]],
    tiled_server: TiledServer,
    monkeypatch: pytest.MonkeyPatch,
    *,
    batch: int,
) -> None:
    monkeypatch.setattr(fold_module, "MAX_PENDING_EVENT_BYTES", batch)
    assert write() == ("written", "")
    stream = tiled_server.client()[journal.run_uid]["primary"]
    assert list(stream) == ["seq_num", "time", "x", "ts_x"]
    stored = stream["x"].read()  # JSON, as the storage has no lists
    assert [json.loads(item) for item in stored] == values


def test_a_run_with_lost_answers_is_audited_late_and_its_doubled_rows_are_removed(
    journal: Journal, write: Callable[..., tuple[str, str]], tiled_server: TiledServer
) -> None:
    journal.set("late_audit", True)  # as the catalog does when an answer is lost
    before = time.time()
    assert write(late_audit=5.0) == ("written", "")
    assert before + 5 <= journal.get("audit_at") <= time.time() + 5
    table = tiled_server.client()[journal.run_uid]["primary"].base["internal"]
    table.append_partition(0, pyarrow.Table.from_pandas(table.read()[:3], preserve_index=False))
    assert write() == ("written", "")
    assert seq_nums(tiled_server, journal.run_uid) == list(range(1, 21))
    assert journal.get("audit_at") is None
    assert [entry.event for entry in journal.history()][-3:] == ["repairing", "rewritten", "written"]


def test_a_run_without_lost_answers_is_not_audited_late(
    journal: Journal, write: Callable[..., tuple[str, str]]
) -> None:
    assert write() == ("written", "")
    assert journal.get("audit_at") is None


def test_a_run_that_grows_after_its_end_is_not_recorded_as_interrupted(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_one("start", Encoder().encode({"uid": "run", "time": 1.0}))
        journal.set("abandoned", True)
        writing = RunWriting(
            journal,
            lambda: pytest.fail("no client is needed"),
            WritingOptions(),
            drain=False,
            on_progress=lambda _: None,
            on_end=lambda *_: None,
        )
        writing._reported_cursor = 1
        journal.append_one("descriptor", Encoder().encode({"uid": "d", "run_start": "run", "time": 1.0}))
        assert not writing._record_outcome(writing_module.INTERRUPTED, "")
        assert journal.get("outcome") is None
        writing._reported_cursor = 2
        assert writing._record_outcome(writing_module.INTERRUPTED, "")
        assert journal.get("outcome") == "interrupted"


def test_documents_that_come_when_the_end_of_an_abandoned_run_is_written_are_written_too(
    tmp_path: Path, write: Callable[..., tuple[str, str]], values: list[Any], tiled_server: TiledServer
) -> None:
    encoder = Encoder()
    emitted = [(name, encoder.encode(document)) for name, document in documents_of(values, "integer")]
    written: list[int] = []

    with Journal(tmp_path / "abandoned.sqlite", "create", run_uid=uid_of(emitted)) as journal:

        def bring_the_rest(index: int) -> None:
            # The end has been written by now, and its outcome is not recorded yet.
            if not written:
                for name, body in emitted[5:]:
                    journal.append_one(name, body)
            written.append(index)

        for name, body in emitted[:5]:
            journal.append_one(name, body)
        journal.set("abandoned", True)
        assert write(journal, on_progress=bring_the_rest) == ("written", "")
        assert (written[0], written[-1]) == (5, len(emitted))
        assert seq_nums(tiled_server, journal.run_uid) == list(range(1, 21))


def test_notes_of_a_run_that_was_given_up_go_when_it_ends_without_any(
    tmp_path: Path, write: Callable[..., tuple[str, str]], tiled_server: TiledServer
) -> None:
    encoder = Encoder()
    datum, *rest = reversed([(name, encoder.encode(document)) for name, document in run_with_files("image/tiff")][:-1])
    emitted = [*reversed(rest)]
    with Journal(tmp_path / "given-up.sqlite", "create", run_uid=uid_of(emitted)) as journal:
        for name, body in emitted[:-1]:
            journal.append_one(name, body)
        journal.set("abandoned", True)
        assert write(journal)[0] == "interrupted"
        assert "notes" in tiled_server.client()[journal.run_uid].metadata
        journal.set("outcome", None)
        journal.set("abandoned", None)
        for name, body in (emitted[-1], datum):
            journal.append_one(name, body)
        stop = {"uid": "stop", "time": 1.0, "run_start": journal.run_uid, "exit_status": "success"}
        journal.append_one("stop", encoder.encode(stop))
        assert write(journal) == ("written", "")
        assert "notes" not in tiled_server.client()[journal.run_uid].metadata


def test_documents_behind_the_stop_document_do_not_keep_a_run_from_being_written(
    journal: Journal, write: Callable[..., tuple[str, str]], tiled_server: TiledServer
) -> None:
    journal.append_one("event", Encoder().encode({"uid": "late"}))
    assert write() == ("written", "")
    assert seq_nums(tiled_server, journal.run_uid) == list(range(1, 21))
    assert "stop" in tiled_server.client()[journal.run_uid].metadata


def run_with_files(mimetype: str) -> list[tuple[str, Any]]:
    """A complete run of numbers, "x", and of files, "cam"."""
    run = compose_run()
    camera = {"source": "s", "dtype": "array", "shape": [1, 2, 2], "dtype_numpy": "<u2", "external": "STREAM:"}
    keys = {"x": {"source": "s", "dtype": "integer", "shape": []}, "cam": camera}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    files = run.compose_stream_resource(
        mimetype=mimetype, uri="file://localhost/tmp/a.nxs", data_key="cam", parameters={"chunk_shape": [1, 2, 2]}
    )
    documents: list[tuple[str, Any]] = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    documents += [("event", stream.compose_event(data={"x": x}, timestamps={"x": 0.0})) for x in range(3)]
    documents.append(("stream_resource", files.stream_resource_doc))
    indices = {"start": 0, "stop": 3}
    datum = files.compose_stream_datum(indices=indices, descriptor=stream.descriptor_doc)
    return [*documents, ("stream_datum", {**datum, "seq_nums": {"start": 1, "stop": 4}}), ("stop", run.compose_stop())]


def test_files_of_a_mimetype_that_tiled_does_not_know_cost_their_data_key_only(
    tmp_path: Path, write: Callable[..., tuple[str, str]], tiled_server: TiledServer
) -> None:
    emitted = run_with_files("application/x-nexus")
    uid, encoder = emitted[0][1]["uid"], Encoder()
    with Journal(tmp_path / "files.sqlite", "create", run_uid=uid) as journal:
        for name, document in emitted:
            journal.append_one(name, encoder.encode(document))
        assert write(journal) == ("written", "")
        assert journal.get("refused_mimetypes") == ["application/x-nexus"]
    run = tiled_server.client()[uid]
    assert run["primary"]["x"].read().tolist() == [0, 1, 2]
    assert "cam" not in run["primary"]
    (note,) = run.metadata["notes"]
    assert "the frames of 'cam' are left out" in note
    assert "application/x-nexus" in note


def test_metadata_that_is_nested_deep_is_written(
    tmp_path: Path, write: Callable[..., tuple[str, str]], tiled_server: TiledServer
) -> None:
    emitted, encoder = documents_of([1, 2], "integer"), Encoder()
    deep: Any = 1
    for _ in range(300):
        deep = {"a": [deep]}
    emitted[0] = ("start", {**emitted[0][1], "deep": deep})
    with Journal(tmp_path / "deep.sqlite", "create", run_uid=emitted[0][1]["uid"]) as journal:
        for name, document in emitted:
            journal.append_one(name, encoder.encode(document))
        assert write(journal) == ("written", "")
        run = tiled_server.client()[journal.run_uid]
    (note,) = run.metadata["notes"]
    assert "is nested more than 100 deep" in note
    assert run["primary"]["x"].read().tolist() == [1, 2]
