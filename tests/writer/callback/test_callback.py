"""TiledWriter within the acquisition process: RunEngine, a real Tiled server, and the client people read with."""

from __future__ import annotations

import copy
import inspect
import json
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import numpy
import pytest
from bluesky import RunEngine
from bluesky.callbacks import tiled_writer as older
from bluesky.callbacks.buffer import BufferingWrapper
from bluesky_tiled_plugins.clients.bluesky_run import BlueskyRunV3
from bluesky_tiled_plugins.writing import tiled_writer as peer
from event_model import compose_run, pack_event_page
from faulty_proxy import CUT_AFTER, CUT_BEFORE, Fault, FaultyProxy, answer
from ophyd.sim import SynSignalWithRegistry, det, motor
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from ophyd_async.sim import PatternGenerator, SimBlobDetector
from tiled.client import from_uri

from tiledbroker import RoutingError
from tiledwriter import DocumentError, OperationRefused, RunNormalizer, TiledUnavailable, TiledWriter
from tiledwriter.callback import _callback_run
from tiledwriter.testing import TiledServer

# The reading client and the simulated devices warn about themselves.
pytestmark = [pytest.mark.filterwarnings("default")]

Documents = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def tiled(tiled_server: TiledServer) -> Any:
    return tiled_server.client()


@pytest.fixture
def proxy(tiled_server: TiledServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(tiled_server.uri) as proxy:
        yield proxy


@pytest.fixture
def client_of_proxy(proxy: FaultyProxy, tiled_server: TiledServer) -> Iterator[Any]:
    client = from_uri(proxy.uri, api_key=tiled_server.api_key)
    yield client
    client.context.http_client.close()


@pytest.fixture
def short_quiet_period(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_callback_run, "QUIET_PERIOD_SECONDS", 0.3)


def a_run(events: int = 3, value: Callable[[int], Any] = float, **data_key: Any) -> Documents:
    """A run of one stream with data key `x`."""
    run = compose_run()
    data_key = {"source": "test", "dtype": "number", "shape": [], **data_key}
    stream = run.compose_descriptor(name="primary", data_keys={"x": data_key})
    documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    documents += [("event", stream.compose_event(data={"x": value(i)}, timestamps={"x": i})) for i in range(events)]
    return [*documents, ("stop", run.compose_stop())]


def uid_of(documents: Documents) -> str:
    return str(documents[0][1]["uid"])


def send(writer: Callable[[str, Any], None], documents: Documents) -> None:
    for name, document in documents:
        writer(name, document)


def seq_nums(tiled: Any, run_uid: str) -> list[int]:
    return [int(n) for n in tiled[run_uid]["primary"]["seq_num"].read()]


def without_stop(tiled: Any, run_uid: str) -> bool:
    return "stop" not in tiled[run_uid].metadata


# What ends up in Tiled


@pytest.mark.parametrize("batch_size", [10_000, 4, 1, 0])
def test_a_scan_is_read_back_as_a_bluesky_run_for_any_batch_size(
    engine: RunEngine, tiled: Any, batch_size: int
) -> None:
    engine.subscribe(TiledWriter(tiled, batch_size=batch_size))
    (uid,) = engine(bp.scan([det], motor, -2, 2, 9, md={"sample": "Cu"}))
    run = tiled[uid]
    assert isinstance(run, BlueskyRunV3)
    assert run.metadata["start"]["sample"] == "Cu"
    assert run.metadata["stop"]["exit_status"] == "success"
    numpy.testing.assert_allclose(run.primary.read()["motor"], numpy.linspace(-2, 2, 9))
    assert run.validate()


def test_files_of_detectors_are_read_back(engine: RunEngine, tiled: Any, readable: Path) -> None:
    engine.subscribe(TiledWriter(tiled))
    with init_devices():
        blob = SimBlobDetector(StaticPathProvider(UUIDFilenameProvider(), readable), PatternGenerator())
    (uid,) = engine(bp.scan([blob, det], motor, -1, 1, 5))
    data = tiled[uid].primary.read()
    assert data["blob"].shape == (5, 1, 240, 320)
    numpy.testing.assert_array_equal(data["blob"].sum(axis=(1, 2, 3)), data["blob-sum"])


def test_files_of_old_resources_are_read_back(engine: RunEngine, tiled: Any, readable: Path) -> None:
    engine.subscribe(TiledWriter(tiled, spec_to_mimetype={"ANOTHER": "application/x-hdf5"}))
    frames = iter(numpy.arange(5 * 12, dtype=float).reshape(5, 3, 4))
    camera = SynSignalWithRegistry(func=lambda: next(frames), name="camera", save_path=str(readable))
    (uid,) = engine(bp.scan([camera], motor, -1, 1, 3))
    numpy.testing.assert_array_equal(
        tiled[uid].primary.read()["camera"], numpy.arange(12, 48, dtype=float).reshape(3, 3, 4)
    )


def test_interleaved_runs_do_not_mix(engine: RunEngine, tiled: Any) -> None:
    @bpp.set_run_key_decorator("outer")
    @bpp.run_decorator(md={"which": "outer"})
    def outer() -> Any:
        yield from bps.mv(motor, 1)
        yield from bps.trigger_and_read([motor])
        yield from inner()
        yield from bps.mv(motor, 3)
        yield from bps.trigger_and_read([motor])

    @bpp.set_run_key_decorator("inner")
    @bpp.run_decorator(md={"which": "inner"})
    def inner() -> Any:
        yield from bps.mv(motor, 2)
        yield from bps.trigger_and_read([motor])

    engine.subscribe(TiledWriter(tiled, batch_size=1))
    runs = {tiled[uid].metadata["start"]["which"]: tiled[uid] for uid in engine(outer())}
    assert runs["outer"].primary.read()["motor"].values.tolist() == [1, 3]
    assert runs["inner"].primary.read()["motor"].values.tolist() == [2]


def test_runs_go_into_the_container_that_the_client_is(tiled: Any, tiled_server: TiledServer) -> None:
    documents = a_run()
    container = tiled.create_container(f"raw-{uuid.uuid4()}")
    send(TiledWriter(container), documents)
    assert uid_of(documents) in container
    assert uid_of(documents) not in tiled
    assert seq_nums(container, uid_of(documents)) == [1, 2, 3]


def test_a_writer_is_made_from_a_uri(tiled: Any, tiled_server: TiledServer) -> None:
    backups: dict[str, Any] = {}
    writer = TiledWriter.from_uri(
        tiled_server.uri, api_key=tiled_server.api_key, batch_size=1, backup_dictionary=backups, ignore_errors=["x"]
    )
    documents = a_run()
    send(writer, documents)
    writer.client.context.http_client.close()
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3]
    assert backups == {}


def test_a_writer_is_made_from_a_profile(
    tiled: Any, tiled_server: TiledServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profiles.yml").write_text(json.dumps({"beamline": {"uri": tiled_server.uri}}))
    monkeypatch.setattr("tiled.profiles.paths", [tmp_path])
    documents = a_run()
    writer = TiledWriter.from_profile("beamline", api_key=tiled_server.api_key)
    send(writer, documents)
    writer.client.context.http_client.close()
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3]


@pytest.mark.parametrize("batch_size", [1, 100])
def test_small_arrays_get_nodes_where_tables_have_no_list_columns(tiled: Any, batch_size: int) -> None:
    documents = a_run(value=lambda i: [i, i + 1], dtype="array", shape=[2], dtype_numpy="<i8")
    send(TiledWriter(tiled, batch_size=batch_size), documents)
    run = tiled[uid_of(documents)]
    assert run["primary"]["x"].read().tolist() == [[0, 1], [1, 2], [2, 3]]
    assert run.metadata["stop"] == documents[-1][1]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_a_column_that_turns_out_too_narrow_is_widened(tiled: Any, batch_size: int) -> None:
    documents = a_run(4, value=[1, 2, 2.5, 3].__getitem__, dtype="integer", dtype_numpy="<i8")
    send(TiledWriter(tiled, batch_size=batch_size), documents)
    assert tiled[uid_of(documents)]["primary"]["x"].read().tolist() == [1, 2, 2.5, 3]
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3, 4]


@pytest.mark.parametrize(("size", "place"), [(0, "node"), (-1, "table"), (16, "table")])
def test_max_array_size_decides_where_arrays_go(storage_server: TiledServer, size: int, place: str) -> None:
    if storage_server.storage == "sqlite":
        place = "node"
    tiled = storage_server.client()
    documents = a_run(value=lambda i: [i, i + 1], dtype="array", shape=[2], dtype_numpy="<i8")
    send(TiledWriter(tiled, max_array_size=size), documents)
    stream = tiled[uid_of(documents)]["primary"].base
    assert ("x" in stream) == (place == "node")


def test_the_documents_are_neither_changed_nor_kept(tiled: Any) -> None:
    class Careless(RunNormalizer):
        def event(self, doc: Any) -> None:
            doc["data"]["x"] += 100
            super().event(doc)

    frame = numpy.zeros(20)
    documents = a_run(0)
    run = compose_run()
    data_keys = {
        "x": {"source": "test", "dtype": "number", "shape": []},
        "frame": {"source": "test", "dtype": "array", "shape": [20], "dtype_numpy": "<f8"},
    }
    stream = run.compose_descriptor(name="primary", data_keys=data_keys)
    writer = TiledWriter(tiled, normalizer=Careless)
    documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for i in range(3):
        event = stream.compose_event(data={"x": i, "frame": frame}, timestamps={"x": i, "frame": i})
        documents.append(("event", event))
    before = copy.deepcopy(documents)
    send(writer, documents)
    frame[:] = 7  # as a device does that uses one buffer for all its readings
    assert documents[0] == before[0]
    assert [document["data"]["x"] for name, document in documents if name == "event"] == [0, 1, 2]
    writer("stop", run.compose_stop())
    written = tiled[run.start_doc["uid"]]["primary"]
    assert written["x"].read().tolist() == [100, 101, 102]
    assert not written["frame"].read().any()


# What Tiled is asked


def the_gets(proxy: FaultyProxy) -> list[str]:
    return [request.path for request in proxy.requests if request.method == "GET"]


def a_run_of_all_kinds(readable: Path) -> Documents:
    """A run with a table, an array node and a file, with frames after which further events follow."""
    path = readable / f"{uuid.uuid4()}.h5"
    with h5py.File(path, "w") as file:
        file["data"] = numpy.arange(18.0).reshape(6, 3)
    run = compose_run()
    data_keys = {
        "x": {"source": "test", "dtype": "number", "shape": []},
        "wave": {"source": "test", "dtype": "array", "shape": [20], "dtype_numpy": "<f8"},
        "camera": {"source": "test", "dtype": "array", "shape": [3], "dtype_numpy": "<f8", "external": "STREAM:"},
    }
    stream = run.compose_descriptor(name="primary", data_keys=data_keys)
    resource = run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost{path}",
        data_key="camera",
        parameters={"dataset": "/data", "chunk_shape": [1, 3]},
    )
    documents: Documents = [
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        ("stream_resource", resource.stream_resource_doc),
    ]
    for i in range(6):
        numbers = {"indices": {"start": i, "stop": i + 1}, "seq_nums": {"start": i + 1, "stop": i + 2}}
        datum = resource.compose_stream_datum(**numbers, descriptor=stream.descriptor_doc)
        values = {"x": float(i), "wave": [float(i)] * 20}
        event = stream.compose_event(data=values, timestamps={"x": i, "wave": i})
        documents += [("stream_datum", datum), ("event", event)]
    return [*documents, ("stop", run.compose_stop())]


@pytest.mark.parametrize("batch_size", [1, 4, 10_000])
def test_an_undisturbed_run_reads_nothing_from_tiled(
    client_of_proxy: Any, proxy: FaultyProxy, tiled: Any, readable: Path, batch_size: int
) -> None:
    documents = a_run_of_all_kinds(readable)
    writer = TiledWriter(client_of_proxy, batch_size=batch_size)
    proxy.requests.clear()
    send(writer, documents)
    assert the_gets(proxy) == []
    stream = tiled[uid_of(documents)]["primary"]
    assert stream["camera"].read().sum() == numpy.arange(18).sum()
    assert stream["wave"].read()[:, 0].tolist() == stream["x"].read().tolist() == [0, 1, 2, 3, 4, 5]


def test_an_undisturbed_run_is_compared_if_that_is_asked_for(client_of_proxy: Any, proxy: FaultyProxy) -> None:
    documents = a_run()
    writer = TiledWriter(client_of_proxy, audit=True)
    proxy.requests.clear()
    send(writer, documents)
    assert any(path.endswith("/internal/seq_num") for path in the_gets(proxy))


@pytest.mark.usefixtures("short_quiet_period")
@pytest.mark.parametrize("fault", [CUT_BEFORE, CUT_AFTER, answer(503), answer(429, headers={"Retry-After": "0"})])
def test_a_run_is_compared_if_any_of_its_requests_was_disturbed(
    client_of_proxy: Any, proxy: FaultyProxy, fault: Any
) -> None:
    documents = a_run(4)
    writer = TiledWriter(client_of_proxy, batch_size=2)
    proxy.script("POST", "metadata", fault)
    proxy.requests.clear()
    send(writer, documents)
    assert proxy.all_played
    assert any(path.endswith("/internal/seq_num") for path in the_gets(proxy))


def test_rows_that_another_writer_has_doubled_are_found_when_a_run_is_sent_again(
    client_of_proxy: Any, proxy: FaultyProxy, tiled: Any
) -> None:
    documents = a_run(4)
    send(TiledWriter(tiled), documents[:-1])
    writer = TiledWriter(client_of_proxy)
    proxy.requests.clear()
    send(writer, documents)
    assert any(path.endswith("/internal/seq_num") for path in the_gets(proxy))
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3, 4]


@pytest.mark.parametrize(("batch_size", "rows"), [(1, [1] * 6), (2, [2] * 3), (4, [4, 2]), (10_000, [6])])
def test_a_batch_is_one_of_events_of_a_stream_or_of_frames_of_a_data_key(
    client_of_proxy: Any, proxy: FaultyProxy, readable: Path, batch_size: int, rows: list[int]
) -> None:
    documents = a_run_of_all_kinds(readable)
    send(TiledWriter(client_of_proxy, batch_size=batch_size), documents)
    puts = [request for request in proxy.requests if request.is_for("PUT", "data_source")]
    of_frames = [parse_qs(put.query)["patch_shape"][0] for put in puts if put.path.endswith("/camera")]
    assert of_frames == [f"{count},3" for count in rows]
    assert proxy.count("PATCH", "table/partition") == len(rows)


# Where it stands in for bluesky-tiled-plugins' class


def test_attributes_can_be_changed_between_runs(tiled: Any, tmp_path: Path) -> None:
    writer = TiledWriter(tiled, backup_directory=str(tmp_path), ignore_errors=["x"])
    assert (writer.patches, writer.spec_to_mimetype, writer.ignore_errors) == ({}, {}, ["x"])
    assert writer.backup_directory == str(tmp_path)
    first, second = a_run(), a_run()
    send(writer, first)
    writer.patches = {"start": lambda doc: {**doc, "sample": "patched"}}
    send(writer, second)
    assert "sample" not in tiled[uid_of(first)].metadata["start"]
    assert tiled[uid_of(second)].metadata["start"]["sample"] == "patched"


def test_its_client_has_the_data_sources_of_nodes(tiled: Any) -> None:
    client = TiledWriter(tiled.new_variation(include_data_sources=False)).client
    documents = a_run()
    send(TiledWriter(client), documents)
    assert client[uid_of(documents)]["primary"].base["internal"].data_sources()


def test_what_it_may_see_in_the_middle_of_a_run_is_ignored(tiled: Any) -> None:
    writer = TiledWriter(tiled)
    run, old = compose_run(), compose_run()
    resource = run.compose_resource(spec="X", root="/", resource_path="x", resource_kwargs={})
    del resource.resource_doc["run_start"]
    writer("stop", old.compose_stop())
    writer("resource", resource.resource_doc)
    writer("datum", resource.compose_datum(datum_kwargs={}))
    documents = a_run()
    send(writer, documents)
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3]
    writer(*documents[-1])  # its stop once more


def test_it_works_inside_a_buffering_wrapper(engine: RunEngine, tiled: Any) -> None:
    buffered = BufferingWrapper(TiledWriter(tiled, batch_size=1))
    engine.subscribe(buffered)
    uids = [engine(bp.scan([det], motor, -1, 1, 3))[0] for _ in range(2)]
    buffered.shutdown()
    for uid in uids:
        assert tiled[uid].metadata["stop"]["exit_status"] == "success"
        assert tiled[uid].primary.read()["motor"].values.tolist() == [-1, 0, 1]


@pytest.mark.parametrize("theirs", [peer.TiledWriter, older.TiledWriter])
@pytest.mark.parametrize("make", ["__init__", "from_uri", "from_profile"])
def test_it_takes_every_argument_of_the_class_that_it_replaces(theirs: Any, make: str) -> None:
    ours = inspect.signature(TiledWriter).parameters
    for name, parameter in inspect.signature(getattr(theirs, make)).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert ours[name].kind is parameter.KEYWORD_ONLY
            assert name == "normalizer" or ours[name].default == parameter.default


# Normalizers


class Renaming(peer.RunNormalizer):
    """A normalizer as people have made them for bluesky-tiled-plugins."""

    def start(self, doc: Any) -> None:
        self.notes.append("renamed")
        super().start({**doc, "sample": "renamed"})


class RenamingOurs(RunNormalizer):
    def start(self, doc: Any) -> None:
        super().start({**doc, "sample": "renamed"})
        self.notes.append("renamed")


@pytest.mark.parametrize("normalizer", [Renaming, RenamingOurs])
def test_normalizers_are_extended_by_subclassing(tiled: Any, normalizer: Any) -> None:
    documents = a_run()
    send(TiledWriter(tiled, normalizer=normalizer), documents)
    run = tiled[uid_of(documents)]
    assert run.metadata["start"]["sample"] == "renamed"
    assert "renamed" in run.metadata["notes"]
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3]


@pytest.mark.parametrize("normalizer", [peer.RunNormalizer, RunNormalizer])
def test_normalizers_get_patches_and_mimetypes(tiled: Any, normalizer: Any, engine: RunEngine, readable: Path) -> None:
    writer = TiledWriter(
        tiled,
        normalizer=normalizer,
        patches={"start": lambda doc: {**doc, "sample": "patched"}},
        spec_to_mimetype={"NPY_SEQ": "application/x-unheard-of"},
        backup_dictionary=(backups := {}),
    )
    engine.subscribe(writer)
    camera = SynSignalWithRegistry(func=lambda: numpy.ones((3, 4)), name="camera", save_path=str(readable))
    (uid,) = engine(bp.count([camera]))
    assert tiled[uid].metadata["start"]["sample"] == "patched"
    assert not backups
    (note,) = [note for note in tiled[uid].metadata["notes"] if "'camera' are left out" in note]
    assert "application/x-unheard-of" in note


@pytest.mark.parametrize("paged", [False, True])
def test_without_a_normalizer_documents_are_written_as_they_are(tiled: Any, paged: bool) -> None:
    documents = a_run()
    if paged:
        events = [document for name, document in documents if name == "event"]
        documents = [*documents[:2], ("event_page", pack_event_page(*events)), documents[-1]]
    patches = {"start": lambda doc: {**doc, "sample": "patched"}}
    send(TiledWriter(tiled, normalizer=None, patches=patches), documents)
    assert "sample" not in tiled[uid_of(documents)].metadata["start"]
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3]


# Validation


def test_a_run_is_validated_if_that_is_asked_for(tiled: Any, engine: RunEngine, readable: Path) -> None:
    with pytest.warns(DeprecationWarning, match="validate"):
        writer = TiledWriter(tiled, validate=True)
    engine.subscribe(writer)
    camera = SynSignalWithRegistry(func=lambda: numpy.ones((3, 4)), name="camera", save_path=str(readable))
    (uid,) = engine(bp.count([camera]))
    assert tiled[uid].metadata["stop"]["exit_status"] == "success"
    for file in readable.glob("*.npy"):
        file.unlink()


def without_files() -> Documents:
    """A run whose files do not exist."""
    run = compose_run()
    data_key = {"source": "test", "dtype": "array", "shape": [1, 3], "dtype_numpy": "<f8", "external": "STREAM:"}
    stream = run.compose_descriptor(name="primary", data_keys={"camera": data_key})
    resource = run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri=f"file://localhost/tmp/{uuid.uuid4()}.h5",
        data_key="camera",
        parameters={"dataset": "/data", "chunk_shape": [1, 3]},
    )
    datum = resource.compose_stream_datum(
        indices={"start": 0, "stop": 2}, seq_nums={"start": 1, "stop": 3}, descriptor=stream.descriptor_doc
    )
    return [
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        ("stream_resource", resource.stream_resource_doc),
        ("stream_datum", datum),
        ("stop", run.compose_stop()),
    ]


def test_a_run_that_is_not_valid_is_a_failure(tiled: Any) -> None:
    with pytest.warns(DeprecationWarning, match="validate"):
        writer = TiledWriter(tiled, validate=True, backup_dictionary=(backups := {}))
    send(writer, without_files())
    ((_, entries),) = backups.items()
    assert [entry["name"] for entry in entries] == ["start", "descriptor", "stream_resource", "stream_datum", "stop"]


def test_validation_errors_that_do_not_matter_are_ignored(tiled: Any) -> None:
    with pytest.warns(DeprecationWarning, match="validate"):
        writer = TiledWriter(tiled, validate=True, ignore_errors=[".*"])
    send(writer, without_files())


def test_validation_needs_a_client_that_can(tiled: Any) -> None:
    plain = tiled.new_variation(structure_clients={"container": type(tiled)})
    with pytest.warns(DeprecationWarning, match="validate"), pytest.raises(ValueError, match="bluesky-tiled-plugins"):
        TiledWriter(plain, validate=True)


def test_no_warning_is_given_without_validation(tiled: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TiledWriter(tiled, validate=False)


# Failures


def spoilt(documents: Documents) -> Documents:
    """The same with an event that nobody can understand, the second one."""
    name, event = documents[3]
    return [*documents[:3], (name, {key: value for key, value in event.items() if key != "time"}), *documents[4:]]


def test_a_failure_without_backups_is_raised_once_and_the_run_gets_no_stop(tiled: Any) -> None:
    documents = spoilt(a_run())
    writer = TiledWriter(tiled, batch_size=1)
    send(writer, documents[:3])
    with pytest.raises(DocumentError, match="time"):
        writer(*documents[3])
    send(writer, documents[4:])
    assert without_stop(tiled, uid_of(documents))
    assert seq_nums(tiled, uid_of(documents)) == [1]


def test_a_failure_with_backups_goes_to_the_log_and_the_whole_run_to_each_backup(
    tiled: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    documents = spoilt(a_run())
    backups: dict[str, Any] = {}
    send(TiledWriter(tiled, batch_size=1, backup_directory=tmp_path / "new", backup_dictionary=backups), documents)
    first_part = uid_of(documents).partition("-")[0]
    (file,) = (tmp_path / "new").iterdir()
    assert file.name == f"{first_part}.jsonl"
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(entry["name"], entry["doc"]) for entry in entries] == documents
    assert backups == {first_part: entries}
    assert without_stop(tiled, uid_of(documents))
    assert "failed at its event document" in caplog.text


def test_other_runs_go_on_when_one_fails(tiled: Any) -> None:
    bad, good = spoilt(a_run()), a_run()
    writer = TiledWriter(tiled, batch_size=1, backup_dictionary=(backups := {}))
    for pair in zip(bad, good, strict=True):
        send(writer, list(pair))
    assert list(backups) == [uid_of(bad).partition("-")[0]]
    assert seq_nums(tiled, uid_of(good)) == [1, 2, 3]
    assert tiled[uid_of(good)].metadata["stop"] == good[-1][1]


def test_the_run_engine_goes_on_when_a_run_is_backed_up(engine: RunEngine, tiled: Any) -> None:
    def fails(doc: Any) -> Any:
        raise RuntimeError("as the test wants it")

    engine.subscribe(TiledWriter(tiled, patches={"stop": fails}, backup_dictionary=(backups := {})))
    (uid,) = engine(bp.scan([det], motor, -1, 1, 3))
    names = [entry["name"] for entry in backups[uid.partition("-")[0]]]
    assert names == ["start", "descriptor", "event", "event", "event", "stop"]


def test_a_failure_in_the_normalizer_is_one_of_the_run(tiled: Any) -> None:
    class Failing(peer.RunNormalizer):
        def event(self, doc: Any) -> None:
            raise RuntimeError("as the test wants it")

    documents = a_run()
    writer = TiledWriter(tiled, normalizer=Failing)
    send(writer, documents[:2])
    with pytest.raises(RuntimeError, match="as the test wants it"):
        writer(*documents[2])


def test_a_run_whose_normalizer_cannot_be_made_is_backed_up(tiled: Any) -> None:
    def fail(**_: Any) -> Any:
        raise OSError("no such table of calibrations")

    documents = a_run()
    backup: dict[str, Any] = {}
    send(TiledWriter(tiled, normalizer=fail, backup_dictionary=backup), documents)
    assert [item["name"] for item in backup[uid_of(documents)[:8]]] == [name for name, _ in documents]
    writer = TiledWriter(tiled, normalizer=fail)
    with pytest.raises(OSError, match="no such table"):
        writer(*documents[0])
    send(writer, documents[1:])


def test_arguments_that_are_empty_count_as_none(tiled: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As startup files have them: `backup_directory=os.environ.get("BACKUPS", "")`."""
    monkeypatch.chdir(tmp_path)
    documents, none = a_run(), cast("None", False)
    send(TiledWriter(tiled, normalizer=none, backup_directory=""), documents)
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3]
    with pytest.raises(DocumentError):
        send(TiledWriter(tiled, backup_directory=""), spoilt(a_run()))
    assert not list(tmp_path.iterdir())


def test_what_a_server_refuses_is_a_failure(client_of_proxy: Any, proxy: FaultyProxy, tiled: Any) -> None:
    documents = a_run()
    proxy.script("PATCH", "table/partition", answer(422))
    send(TiledWriter(client_of_proxy, batch_size=1, backup_dictionary=(backups := {})), documents)
    assert len(backups) == 1
    assert without_stop(tiled, uid_of(documents))
    later = proxy.requests[[request.fate for request in proxy.requests].index("422") + 1 :]
    assert later == []


def test_a_backup_that_fails_does_not_stop_another(tiled: Any, tmp_path: Path, caplog: Any) -> None:
    documents = spoilt(a_run())
    writer = TiledWriter(tiled, backup_directory=tmp_path / "gone", backup_dictionary=(backups := {}))
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone").touch()
    send(writer, documents)
    assert [len(entries) for entries in backups.values()] == [len(documents)]
    assert "cannot be backed up by JSONLinesBackup" in caplog.text


def test_the_failure_is_raised_if_no_backup_takes_the_run(tiled: Any, tmp_path: Path) -> None:
    documents = spoilt(a_run())
    writer = TiledWriter(tiled, backup_directory=tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    (tmp_path / "gone").touch()
    send(writer, documents[:3])
    with pytest.raises(DocumentError):
        writer(*documents[3])
    send(writer, documents[4:])


def test_an_interruption_is_a_failure_and_passes_through(tiled: Any) -> None:
    def interrupted(doc: Any) -> Any:
        raise KeyboardInterrupt

    documents = a_run()
    writer = TiledWriter(tiled, patches={"event": interrupted}, backup_dictionary=(backups := {}))
    send(writer, documents[:2])
    with pytest.raises(KeyboardInterrupt):
        writer(*documents[2])
    send(writer, documents[3:])
    assert [len(entries) for entries in backups.values()] == [len(documents)]


def test_a_document_of_no_open_run_is_raised(tiled: Any) -> None:
    documents = a_run()
    with pytest.raises(RoutingError):
        TiledWriter(tiled)(*documents[2])


def test_a_callback_that_is_subscribed_twice_is_told_so(tiled: Any) -> None:
    writer = TiledWriter(tiled)
    documents = a_run()
    writer(*documents[0])
    with pytest.raises(RoutingError, match="twice"):
        writer(*documents[0])


# Servers that come and go


@pytest.mark.usefixtures("short_quiet_period")
@pytest.mark.parametrize("fault", [CUT_BEFORE, CUT_AFTER, answer(502), answer(429, headers={"Retry-After": "0"})])
def test_a_disturbance_costs_no_row_and_doubles_none(
    client_of_proxy: Any, proxy: FaultyProxy, tiled: Any, fault: Any
) -> None:
    documents = a_run(6)
    proxy.script("POST", "metadata", fault)
    proxy.script("PATCH", "table/partition", fault)
    proxy.script("PATCH", "metadata", fault)
    send(TiledWriter(client_of_proxy, batch_size=2), documents)
    assert proxy.all_played
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3, 4, 5, 6]
    assert tiled[uid_of(documents)].metadata["stop"] == documents[-1][1]


def test_a_server_that_does_not_come_back_is_not_waited_for_for_ever(own_tiled_server: TiledServer) -> None:
    documents = a_run(20)
    writer = TiledWriter(own_tiled_server.client(), batch_size=1, patience=0.5)
    send(writer, documents[:8])
    client = own_tiled_server._client
    own_tiled_server._client = None  # so that it is not closed with the server
    own_tiled_server.kill()
    with pytest.raises(TiledUnavailable, match=r"[01] s"):
        writer(*documents[8])
    client.context.http_client.close()
    send(writer, documents[9:])  # no further attempt: the client is closed
    own_tiled_server.start()
    tiled = own_tiled_server.client()
    assert without_stop(tiled, uid_of(documents))
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3, 4, 5, 6]


def test_a_server_that_never_tells_what_it_did_is_not_waited_for_for_ever(
    client_of_proxy: Any, proxy: FaultyProxy, short_quiet_period: None
) -> None:
    writer = TiledWriter(client_of_proxy, batch_size=1, patience=1.0)
    proxy.script("PATCH", "table/partition", Fault("no answer", hold=2.0))
    with pytest.raises(TiledUnavailable, match="After 1 s it is unknown"):
        send(writer, a_run())


def test_a_server_that_names_a_time_beyond_our_patience_is_not_waited_for(
    client_of_proxy: Any, proxy: FaultyProxy
) -> None:
    proxy.script("POST", "metadata", *[answer(429, headers={"Retry-After": "600"})] * 9)
    with pytest.raises(TiledUnavailable, match="429"):
        send(TiledWriter(client_of_proxy, patience=0.3), a_run())
    assert proxy.count("POST", "metadata") == 2


def test_a_server_that_fails_for_ever_is_a_failure(client_of_proxy: Any, proxy: FaultyProxy, tiled: Any) -> None:
    documents = a_run()
    proxy.script("PATCH", "metadata", *[answer(500)] * 99)
    with pytest.raises(TiledUnavailable, match="500"):
        send(TiledWriter(client_of_proxy, patience=2.0), documents)
    assert without_stop(tiled, uid_of(documents))
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3]


def test_credentials_that_are_not_accepted_are_a_failure_at_once(client_of_proxy: Any, proxy: FaultyProxy) -> None:
    proxy.script("POST", "metadata", answer(403))
    with pytest.raises(TiledUnavailable, match="403"):
        send(TiledWriter(client_of_proxy), a_run())
    assert proxy.count("POST", "metadata") == 1


def test_a_run_that_is_sent_again_is_not_doubled(tiled: Any) -> None:
    documents = a_run()
    send(TiledWriter(tiled, batch_size=1), documents[:4])
    send(TiledWriter(tiled), documents)
    assert seq_nums(tiled, uid_of(documents)) == [1, 2, 3]


def test_a_node_that_is_in_the_way_is_a_failure(tiled: Any) -> None:
    documents = a_run()
    tiled.create_container(uid_of(documents), metadata={"start": {"uid": "another"}})
    with pytest.raises(OperationRefused):
        TiledWriter(tiled)(*documents[0])
