"""Runs of a real RunEngine on each kind of storage that Tiled keeps tables in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy
import pytest
from bluesky import RunEngine
from bluesky.utils import RunEngineInterrupted
from event_model import compose_run
from ophyd.sim import SynSignal, SynSignalWithRegistry, det, motor
from stored_runs import FLAG, NUMBER, TEXT, journaled
from stored_runs import write as write_journal

from tiledbroker import Encoder, Journal
from tiledwriter.mapping import _fold as fold_module
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import TiledServer, wait_until
from tiledwriter.worker._writing import RunWriting

Documents = list[tuple[str, dict[str, Any]]]


class Acquired:
    """A RunEngine and the documents of its last run."""

    def __init__(self) -> None:
        self.engine = RunEngine({})
        self.engine.subscribe(lambda name, document: self._documents.append((name, document)))
        self._documents: Documents = []

    def __call__(self, plan: Any) -> Documents:
        self._documents = []
        try:
            self.engine(plan)
        except RunEngineInterrupted:
            self.engine.resume()
        assert self._documents[-1][0] == "stop"
        return self._documents

    def close(self) -> None:
        self.engine.loop.call_soon_threadsafe(self.engine.loop.stop)
        self.engine._th.join()
        self.engine.loop.close()


class Writing:
    """A run that is being written, from a journal of its own."""

    def __init__(self, server: TiledServer, directory: Path, documents: Documents) -> None:
        self.run_uid = documents[0][1]["uid"]
        self.outcome: tuple[str, str] | None = None
        self._journal = Journal(directory / f"{self.run_uid}.sqlite", "create", run_uid=self.run_uid)
        encoder = Encoder()
        for name, document in documents:
            self._journal.append_one(name, encoder.encode(document))
        self._writing = RunWriting(
            self._journal,
            server.client,
            WritingOptions(quiet_period=0.2),
            drain=False,
            on_progress=lambda _: None,
            on_end=self._ended,
        )

    def __enter__(self) -> Writing:
        self._writing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._writing.stop(10.0)
        self._journal.close()

    def _ended(self, outcome: str, reason: str) -> None:
        self.outcome = (outcome, reason)


@pytest.fixture
def acquire() -> Iterator[Acquired]:
    acquired = Acquired()
    yield acquired
    acquired.close()


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is many appends, as one that is written while it is acquired."""
    monkeypatch.setattr(fold_module, "MAX_PENDING_EVENT_BYTES", 1000)


def write(server: TiledServer, directory: Path, *runs: Documents) -> list[Any]:
    """Write runs at the same time, and give them back as they are read."""
    server.client()  # made here, used by all threads
    with ExitStack() as stack:
        writings = [stack.enter_context(Writing(server, directory, documents)) for documents in runs]
        wait_until(lambda: all(writing.outcome for writing in writings), 240, "the runs have ended")
        assert {writing.outcome for writing in writings} == {("written", "")}
    return [server.client()[writing.run_uid] for writing in writings]


def nodes(run: Any) -> dict[str, Sequence[str]]:
    """The nodes of the stream `primary` that are not tables, and the columns of its table."""
    parts = run.primary.base
    return {
        "nodes": sorted(key for key in parts if parts[key].structure_family != "table"),
        "columns": list(parts["internal"].columns),
    }


def test_a_run_is_read_and_exported_as_it_was_acquired(
    acquire: Acquired, storage_server: TiledServer, tmp_path: Path
) -> None:
    documents = acquire(bp.scan([det], motor, -2, 2, 9, md={"sample": "Cu"}))
    (run,) = write(storage_server, tmp_path, documents)
    events = [document for name, document in documents if name == "event"]
    data = run.primary.read()
    for key in ("det", "motor", "motor_setpoint"):
        assert list(data[key]) == [event["data"][key] for event in events]
    assert run.validate()

    exported = list(run.documents())
    assert [name for name, _ in exported] == [name for name, _ in documents]
    for i in (0, -1):
        assert dict(exported[i][1]) == json.loads(json.dumps(documents[i][1]))
    for event, (_, found) in zip(events, exported[2:-1], strict=True):
        assert {key: found[key] for key in ("seq_num", "time", "data", "timestamps")} == {
            key: event[key] for key in ("seq_num", "time", "data", "timestamps")
        }


POINTS = 40


def test_rows_of_runs_written_at_the_same_time_come_in_order(
    acquire: Acquired, storage_server: TiledServer, tmp_path: Path
) -> None:
    # Wide rows take many pages of PostgreSQL, which fills them in any order.
    wide = [SynSignal(func=lambda: 1.0, name=f"wide_{i}") for i in range(40)]
    runs = [acquire(bp.scan(wide, motor, start, start + 1, POINTS)) for start in (0, 10)]
    if storage_server.storage == "duckdb":  # which takes one at a time
        read = [run for documents in runs for run in write(storage_server, tmp_path, documents)]
    else:
        read = write(storage_server, tmp_path, *runs)
    for start, run in zip((0, 10), read, strict=True):
        table = run.primary.base["internal"].read()
        assert list(table["seq_num"]) == list(range(1, POINTS + 1))
        numpy.testing.assert_allclose(table["motor_setpoint"], numpy.linspace(start, start + 1, POINTS))
        assert table["time"].is_monotonic_increasing


def test_after_a_rewind_rows_come_as_they_were_acquired(
    acquire: Acquired, storage_server: TiledServer, tmp_path: Path
) -> None:
    readings = iter(range(100))
    counter = SynSignal(func=lambda: next(readings), name="counter")

    @bpp.run_decorator()
    def paused_plan() -> Any:
        for i in range(4):
            if i < 2:
                yield from bps.checkpoint()
            yield from bps.trigger_and_read([counter])
            if i == 2:
                yield from bps.pause()

    documents = acquire(paused_plan())
    events = [document for name, document in documents if name == "event"]
    assert [event["seq_num"] for event in events] == [1, 2, 3, 2, 3, 4]
    (run,) = write(storage_server, tmp_path, documents)
    table = run.primary.base["internal"].read()
    assert list(table["seq_num"]) == [1, 2, 3, 2, 3, 4]
    assert list(table["counter"]) == [event["data"]["counter"] for event in events]
    assert run.validate()


def test_short_arrays_are_list_columns_where_storage_has_those(
    acquire: Acquired, storage_server: TiledServer, tmp_path: Path
) -> None:
    waves = itertools.count()
    wave = SynSignal(func=lambda: numpy.arange(5.0) + next(waves), name="wave")
    documents = acquire(bp.count([wave, det], 6))
    (run,) = write(storage_server, tmp_path, documents)
    lists = storage_server.storage != "sqlite"
    assert nodes(run)["nodes"] == ([] if lists else ["wave"])
    assert ("wave" in nodes(run)["columns"]) is lists

    expected = [document["data"]["wave"] for name, document in documents if name == "event"]
    numpy.testing.assert_array_equal(numpy.stack(list(run.primary["wave"].read())), expected)
    assert run.validate()
    exported = [document for name, document in run.documents() if name == "event"]
    assert [event["data"]["wave"] for event in exported] == [list(values) for values in expected]


def test_internal_and_external_arrays_are_aligned_with_scalars(
    acquire: Acquired, storage_server: TiledServer, tmp_path: Path, readable: Path
) -> None:
    frames = itertools.count()
    camera = SynSignalWithRegistry(
        func=lambda: numpy.full((3, 4), float(next(frames))), name="camera", save_path=str(readable)
    )
    image = SynSignal(func=lambda: numpy.full((5, 6), float(motor.position)), name="image")
    (run,) = write(storage_server, tmp_path, acquire(bp.scan([camera, image], motor, -1, 1, 5)))
    data = run.primary.read()
    assert data["camera"].shape == (5, 3, 4)
    assert data["image"].shape == (5, 5, 6)
    numpy.testing.assert_array_equal(data["image"][:, 0, 0], data["motor"])
    numpy.testing.assert_array_equal(numpy.diff(data["camera"][:, 0, 0]), 1.0)
    assert run.validate()
    names = {name for name, _ in run.documents()}
    assert names == {"start", "descriptor", "event", "stream_resource", "stream_datum", "stop"}


def test_arrays_that_come_a_few_at_a_time_are_in_one_chunk(
    acquire: Acquired, storage_server: TiledServer, tmp_path: Path
) -> None:
    waves = itertools.count()
    wave = SynSignal(func=lambda: numpy.arange(64.0) + next(waves), name="wave")
    documents = acquire(bp.count([wave], 60))
    (run,) = write(storage_server, tmp_path, documents)
    expected = [document["data"]["wave"] for name, document in documents if name == "event"]
    assert run.primary.base["wave"].chunks == ((60,), (64,))
    numpy.testing.assert_array_equal(run.primary["wave"].read(), expected)


def test_an_interrupted_run_has_its_notes(storage_server: TiledServer, tmp_path: Path) -> None:
    run = compose_run(metadata={"offset": float("nan")})
    stream = run.compose_descriptor(name="primary", data_keys={"x": NUMBER})
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for x in (0.5, "broken", 1.5):
        documents.append(("event", stream.compose_event(data={"x": x}, timestamps={"x": 0.0}, validate=False)))
    path = journaled(documents, tmp_path / "journals")
    with Journal(path, "write") as journal:
        journal.set("abandoned", True)
    assert write_journal(path, storage_server) == "interrupted"
    read = storage_server.client()[run.start_doc["uid"]]
    assert "stop" not in read.metadata
    assert list(read.metadata["notes"]) == [
        "start.offset: JSON has no NaN; null is stored.",
        "Stream 'primary': 1 values of 'x' do not fit its type and are not here as they were.",
    ]
    numpy.testing.assert_array_equal(read.primary["x"].read(), [0.5, numpy.nan, 1.5])


def test_text_booleans_integers_and_nan_come_back_as_they_were(
    acquire: Acquired, storage_server: TiledServer, tmp_path: Path
) -> None:
    values = {"text": ["ä", ""], "flag": [True, False], "count": [2**53 + 1, -1], "level": [float("nan"), 1.5]}
    signals = [SynSignal(func=itertools.cycle(items).__next__, name=name) for name, items in values.items()]
    documents = acquire(bp.count(signals, 2))
    acquired = {name: [document["data"][name] for kind, document in documents if kind == "event"] for name in values}
    (run,) = write(storage_server, tmp_path, documents)
    table = run.primary.base["internal"].read()
    assert list(table["text"]) == acquired["text"]
    assert list(table["flag"]) == acquired["flag"]
    assert list(table["count"]) == acquired["count"]
    numpy.testing.assert_array_equal(table["level"], acquired["level"])
    assert run.validate()


def test_a_server_started_again_on_its_directory_has_the_same_contents(acquire: Acquired, tmp_path: Path) -> None:
    with TiledServer(tmp_path / "own", storage="postgresql") as server:
        (run,) = write(server, tmp_path, acquire(bp.count([det], 3)))
        server.kill()
    with TiledServer(tmp_path / "own", storage="postgresql") as server:
        assert list(server.client()[run.metadata["start"]["uid"]].primary["seq_num"].read()) == [1, 2, 3]


@pytest.mark.parametrize(
    "kinds", [[(TEXT, "2025-06-01T12:00:00.123")], [(FLAG, True), (NUMBER, 1.5)]], ids=["texts", "flags and numbers"]
)
def test_a_row_of_many_values_that_a_database_cannot_keep_elsewhere_is_divided(
    kinds: list[tuple[dict[str, Any], Any]], storage_server: TiledServer, tmp_path: Path
) -> None:
    values = {f"pv{number}": kind for number, kind in zip(range(511), itertools.cycle(kinds), strict=False)}
    data = {name: value for name, (_, value) in values.items()}
    run = compose_run()
    stream = run.compose_descriptor(name="baseline", data_keys={name: key for name, (key, _) in values.items()})
    event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 1.0))
    documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc), ("event", event)]
    path = journaled([*documents, ("stop", run.compose_stop())], tmp_path)
    assert write_journal(path, storage_server) == "written"
    read = storage_server.client()[run.start_doc["uid"]]["baseline"].read()
    assert {name: read[name].values[0] for name in data} == data


ONE_SHAPE, ANY_LENGTH = (
    {"source": "test", "dtype": "array", "shape": [size], "dtype_numpy": "<f8"} for size in (2, None)
)
DIGITS = 0.123456789012345


@pytest.mark.parametrize("missing", [0, 2])
def test_short_arrays_of_which_one_is_missing_are_numbers_with_all_digits(
    missing: int, storage_server: TiledServer, tmp_path: Path
) -> None:
    run = compose_run()
    stream = run.compose_descriptor(name="primary", data_keys={"pair": ONE_SHAPE, "list": ANY_LENGTH})
    documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    given = {"pair": [[row + DIGITS, 1.0] for row in range(4)], "list": [[row + DIGITS] * row for row in range(4)]}
    for row in range(4):
        data = {key: None if row == missing else values[row] for key, values in given.items()}
        event = stream.compose_event(data=data, timestamps=dict.fromkeys(data, 1.0), validate=False)
        documents.append(("event", event))
    path = journaled([*documents, ("stop", run.compose_stop())], tmp_path)
    assert write_journal(path, storage_server) == "written"
    primary = storage_server.client()[run.start_doc["uid"]].primary
    pairs = [[numpy.nan, numpy.nan] if row == missing else pair for row, pair in enumerate(given["pair"])]
    numpy.testing.assert_array_equal(primary["pair"].read(), pairs)
    numpy.testing.assert_array_equal(primary.read()["pair"], pairs)
    lists = primary["list"].read()
    expected = [[] if row == missing else values for row, values in enumerate(given["list"])]
    if storage_server.storage == "sqlite":  # texts, which are noted
        assert [json.loads(text) if text not in ("None", "<NA>") else [] for text in map(str, lists)] == expected
    else:
        assert [numpy.asarray(row).tolist() for row in lists] == expected
    assert "'list'" in str(primary.parent.metadata["notes"])


SYSTEM_NAMES = ["xmin", "XMAX", "cmin", "cmax", "ctid", "tableoid", "oid", "rowid", "_rowid_"]
KEYWORDS = [
    "user",
    "select",
    "table",
    "order",
    "index",
    "group",
    "current_date",
    "row",
    "default",
    "null",
    "end",
    "limit",
]


def test_data_keys_may_have_names_that_databases_use(storage_server: TiledServer, tmp_path: Path) -> None:
    run = compose_run()
    keys = [*SYSTEM_NAMES, *KEYWORDS]
    stream = run.compose_descriptor(name="primary", data_keys=dict.fromkeys(keys, NUMBER))
    documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for row in range(3):
        # Downwards, as a table must not be ordered by any of them.
        data = {key: number - row / 4 for number, key in enumerate(keys)}
        documents.append(("event", stream.compose_event(data=data, timestamps=dict.fromkeys(data, 1.0))))
    path = journaled([*documents, ("stop", run.compose_stop())], tmp_path)
    assert write_journal(path, storage_server) == "written"
    stored = storage_server.client()[run.start_doc["uid"]]
    data = stored.primary.read()
    for number, key in enumerate(keys):
        name = next(name for name in (key, f"x{key}") if name in data)
        assert data[name].values.tolist() == [number, number - 0.25, number - 0.5]
        assert name == key or f"{key!r}" in str(stored.metadata["notes"])
