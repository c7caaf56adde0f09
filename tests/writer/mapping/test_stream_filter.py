from __future__ import annotations

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy
import pytest
from bluesky import RunEngine
from event_model import compose_run
from ophyd.sim import SynSignalWithRegistry, det, motor

from tiledbroker import Encoder, Journal, ZMQPublisher
from tiledwriter.mapping._fold import Fold
from tiledwriter.mapping._operations import CreateContainer, UpdateMetadata
from tiledwriter.mapping._stream_filter import RunStreamFilter, StreamFilter
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import SupervisorProcess, journal_of

NUMBER = {"dtype": "number", "dtype_numpy": "<f8", "shape": [], "source": "test"}
FRAMES = {"dtype": "array", "dtype_numpy": "<i8", "shape": [1, 2, 3], "source": "test", "external": "FILE:"}


@pytest.mark.parametrize(
    ("streams", "kept"),
    [
        (StreamFilter(), {"primary", "baseline", "motor_monitor"}),
        (StreamFilter(exclude=("baseline",)), {"primary", "motor_monitor"}),
        (StreamFilter(exclude=("*_monitor", "base*")), {"primary"}),
        (StreamFilter(include=("primary",)), {"primary"}),
        (StreamFilter(include=("p*", "baseline"), exclude=("b*",)), {"primary"}),
        (StreamFilter(include=("[pb]*",)), {"primary", "baseline"}),
        (StreamFilter(include=("Primary",)), set()),
        (StreamFilter(exclude=("prim",)), {"primary", "baseline", "motor_monitor"}),
    ],
)
def test_a_stream_is_kept_if_it_is_included_and_not_excluded(streams, kept):
    assert {name for name in ("primary", "baseline", "motor_monitor") if streams.keeps(name)} == kept


def test_the_documents_of_a_stream_are_left_out_and_no_others():
    sieve = RunStreamFilter(StreamFilter(exclude=("baseline",)))
    kept = [
        (name, document)
        for name, document in [
            ("start", {"uid": "r"}),
            ("descriptor", {"uid": "p", "name": "primary"}),
            ("descriptor", {"uid": "b", "name": "baseline"}),
            ("descriptor", {"uid": "b2", "name": "baseline"}),
            ("event", {"descriptor": "p"}),
            ("event", {"descriptor": "b"}),
            ("event", {"descriptor": "b2"}),
            ("stream_resource", {"uid": "s"}),
            ("stream_datum", {"descriptor": "b", "stream_resource": "s"}),
            ("stream_datum", {"descriptor": "p", "stream_resource": "s"}),
            ("event", {"descriptor": "unknown"}),
            ("stop", {"uid": "e"}),
        ]
        if sieve.keeps(name, document)
    ]
    assert kept == [
        ("start", {"uid": "r"}),
        ("descriptor", {"uid": "p", "name": "primary"}),
        ("event", {"descriptor": "p"}),
        ("stream_resource", {"uid": "s"}),
        ("stream_datum", {"descriptor": "p", "stream_resource": "s"}),
        ("event", {"descriptor": "unknown"}),
        ("stop", {"uid": "e"}),
    ]
    assert sieve.notes == ["Streams left out by configuration: 'baseline'."]


def test_nothing_is_noted_where_nothing_was_left_out():
    sieve = RunStreamFilter(StreamFilter(exclude=("baseline",)))
    assert sieve.keeps("descriptor", {"uid": "p", "name": "primary"})
    assert sieve.notes == []


def fold(tmp_path, documents, streams):
    """Operations for a whole run."""
    encoder = Encoder()
    with Journal(tmp_path / "run.sqlite", "create", run_uid=documents[0][1]["uid"]) as journal:
        for name, document in documents:
            journal.append_one(name, encoder.encode(document))
        writing = Fold(journal.run_uid, WritingOptions(streams=streams), 16)
        operations = writing.feed(journal.read(0))
        assert writing.error is None
        return operations


def test_a_stream_that_is_left_out_has_no_node_and_a_note_says_so(tmp_path):
    run = compose_run()
    primary = run.compose_descriptor(name="primary", data_keys={"x": NUMBER})
    camera = run.compose_descriptor(name="camera", data_keys={"frames": FRAMES})
    resource, compose_datum = run.compose_stream_resource(
        mimetype="application/x-hdf5", uri="file://localhost/frames.h5", data_key="frames", parameters={}
    )
    documents = [
        ("start", run.start_doc),
        ("descriptor", primary.descriptor_doc),
        ("descriptor", camera.descriptor_doc),
        ("stream_resource", resource),  # without the parameters that registering it would need
        ("stream_datum", compose_datum(indices={"start": 0, "stop": 1}, descriptor=camera.descriptor_doc)),
        ("event", primary.compose_event(data={"x": 1.0}, timestamps={"x": 1.0})),
        ("stop", {**run.compose_stop(), "num_events": {"primary": 1, "camera": 5, "camera_of_which_nothing_came": 5}}),
    ]
    operations = fold(tmp_path, documents, StreamFilter(exclude=("cam*",)))
    uid = run.start_doc["uid"]
    assert {operation.path for operation in operations} == {uid, f"{uid}/primary", f"{uid}/primary/internal"}
    (metadata,) = [operation.metadata for operation in operations if isinstance(operation, UpdateMetadata)]
    assert "Streams left out by configuration: 'camera'." in metadata["notes"]
    assert not any("in the count of the stop document" in note for note in metadata["notes"])


def test_a_run_of_which_nothing_is_kept_has_its_start_and_stop(tmp_path):
    run = compose_run()
    stream = run.compose_descriptor(name="primary", data_keys={"x": NUMBER})
    event = stream.compose_event(data={"x": 1.0}, timestamps={"x": 1.0})
    documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc), ("event", event)]
    operations = fold(tmp_path, [*documents, ("stop", run.compose_stop())], StreamFilter(include=("other",)))
    assert {operation.path for operation in operations} == {run.start_doc["uid"]}
    assert isinstance(operations[0], CreateContainer)
    assert operations[-2].metadata["stop"]["exit_status"] == "success"


@pytest.mark.filterwarnings("default")  # the reading client and the simulated devices warn about themselves
def test_the_service_leaves_streams_out_of_tiled_and_keeps_them_in_the_journal(tmp_path, tiled_server, readable):
    camera = SynSignalWithRegistry(func=lambda: numpy.ones((2, 3)), name="camera", save_path=str(readable))

    @bpp.stage_decorator([camera])
    @bpp.baseline_decorator([motor])
    @bpp.run_decorator()
    def plan():
        yield from bps.trigger_and_read([det])
        yield from bps.trigger_and_read([camera], name="look")

    environment = {"TILEDWRITER_STREAMS": '{"exclude": ["base*", "look"]}'}
    with SupervisorProcess(tmp_path / "journals", tiled_server, environment=environment) as process:
        publisher = ZMQPublisher(process.address, spool_dir=tmp_path / "spool", on_error="raise")
        engine = RunEngine({})
        engine.subscribe(publisher)
        left_out, *_ = engine(plan())
        kept, *_ = engine(bp.count([det], 2))
        assert publisher.wait_written(left_out, timeout=60)
        assert publisher.wait_written(kept, timeout=60)
        publisher.close()
        stop_loop(engine)

    run = tiled_server.client()[left_out]
    assert set(run) == {"primary"}
    assert run.primary["det"].read().shape == (1,)
    assert "Streams left out by configuration: 'baseline', 'look'." in run.metadata["notes"]
    assert "notes" not in tiled_server.client()[kept].metadata
    with journal_of(process.journal_dir, left_out) as journal:
        assert journal.names()["descriptor"] == 3
        assert journal.names()["event"] == 4


def stop_loop(engine):
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join()
    engine.loop.close()
