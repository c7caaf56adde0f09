from __future__ import annotations

import event_model
import numpy
import pytest
from bluesky import RunEngine
from bluesky import plan_stubs as bps
from bluesky import plans as bp
from bluesky import preprocessors as bpp
from bluesky_tiled_plugins.exporters import build_descriptor_docs

from tiledwriter import DocumentError, RunNormalizer
from tiledwriter.mapping._operations import (
    AppendRows,
    Audit,
    CloseStream,
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
    describe_operation,
)
from tiledwriter.mapping._run_writer import RunWriter

NUMBER = {"dtype": "number", "dtype_numpy": "<f8", "shape": [], "source": "test"}


def fold(documents, *, flush_every=0, abandon=False):
    """Operations for a run's documents, through normalizer and writer."""
    normalizer = RunNormalizer()
    writer = RunWriter(guessed_types=normalizer.guessed_types)
    operations = []
    for i, (name, document) in enumerate(documents):
        for modern_name, modern in normalizer(name, document):
            operations += writer(modern_name, modern)
        if flush_every and i % flush_every == 0:
            operations += writer.flush()
    return operations + (writer.abandon() if abandon else writer.flush())


def fold_with(documents, column_types):
    """The writer that has folded a run's documents with these column types, and the operations."""
    normalizer = RunNormalizer()
    writer = RunWriter(guessed_types=normalizer.guessed_types, column_types=column_types)
    modern = [pair for name, document in documents for pair in normalizer(name, document)]
    return writer, [operation for name, document in modern for operation in writer(name, document)]


def kinds(operations):
    return [type(operation).__name__ for operation in operations]


def at(operations, path, kind):
    return [operation for operation in operations if operation.path == path and isinstance(operation, kind)]


def rows(operations, path):
    """The rows of a table by column."""
    columns = {}
    for operation in at(operations, path, AppendRows):
        for column, values in zip(operation.columns, operation.values, strict=True):
            columns.setdefault(column.name, []).extend(values.to_pylist())
    return columns


@pytest.fixture
def run_engine():
    engine = RunEngine({}, call_returns_result=False)
    yield engine
    engine.loop.call_soon_threadsafe(engine.loop.stop)
    engine._th.join(5.0)
    engine.loop.close()


@pytest.fixture
def collected(run_engine):
    documents = []
    run_engine.subscribe(lambda name, document: documents.append((name, document)))
    return documents


@pytest.fixture(scope="module")
def sim():
    from ophyd import sim

    return sim


@pytest.fixture
def run():
    return event_model.compose_run(metadata={"plan_name": "test"})


def small_run(run, points=2):
    """A run with one stream `primary` of one number."""
    documents = [("start", run.start_doc)]
    stream = run.compose_descriptor(name="primary", data_keys={"x": dict(NUMBER)})
    documents.append(("descriptor", stream.descriptor_doc))
    documents += [("event", stream.compose_event(data={"x": n}, timestamps={"x": n})) for n in range(points)]
    return [*documents, ("stop", run.compose_stop())]


# Whole runs


def test_a_small_run_becomes_these_operations(run):
    operations = fold(small_run(run))

    uid = run.start_doc["uid"]
    assert [(type(operation), operation.path) for operation in operations] == [
        (CreateContainer, uid),
        (CreateContainer, f"{uid}/primary"),
        (CreateTable, f"{uid}/primary/internal"),
        (AppendRows, f"{uid}/primary/internal"),
        (Audit, f"{uid}/primary/internal"),
        (UpdateMetadata, uid),
        (CloseStream, f"{uid}/primary/internal"),
        (CloseStream, f"{uid}/primary"),
        (CloseStream, uid),
    ]
    run_node, stream_node = operations[:2]
    assert run_node.metadata == {"start": run.start_doc}
    assert run_node.specs == (("BlueskyRun", "3.0"),)
    assert run_node.access_tags is None
    assert run_node.identity == ("start", "uid")
    assert stream_node.specs == (("BlueskyEventStream", "3.0"), ("composite", None))
    assert stream_node.metadata["data_keys"] == {"x": NUMBER}
    assert not {"name", "run_start", "object_keys"} & stream_node.metadata.keys()
    assert rows(operations, f"{uid}/primary/internal")["x"] == [0, 1]
    assert operations[5].metadata["stop"]["exit_status"] == "success"
    assert "notes" not in operations[5].metadata


def test_operations_are_described_in_one_line(run):
    operations = fold(small_run(run))
    uid = run.start_doc["uid"]
    assert describe_operation(operations[0]) == f"CreateContainer {uid}"
    assert describe_operation(operations[3]) == f"AppendRows {uid}/primary/internal rows 0 to 2"


def test_a_scan_by_a_run_engine_has_its_points_in_a_table(run_engine, collected, sim):
    run_engine(bp.scan([sim.det], sim.motor, -1, 1, 3))

    operations = fold(collected)

    uid = collected[0][1]["uid"]
    columns = rows(operations, f"{uid}/primary/internal")
    assert columns["seq_num"] == [1, 2, 3]
    assert columns["motor"] == [-1.0, 0.0, 1.0]
    assert {"det", "motor_setpoint", "ts_det", "ts_motor"} <= columns.keys()
    (table,) = at(operations, f"{uid}/primary/internal", CreateTable)
    types = {column.name: column.type for column in table.columns}
    assert types["seq_num"] == "int64"
    assert types["motor"] == types["det"] == types["time"] == "float64"
    (stop,) = at(operations, uid, UpdateMetadata)
    assert stop.metadata["stop"] == collected[-1][1]


def test_images_in_events_become_an_array_of_their_own(run_engine, collected, sim):
    run_engine(bp.count([sim.det, sim.direct_img], 2))

    operations = fold(collected)

    uid = collected[0][1]["uid"]
    images = [document["data"]["img"] for name, document in collected if name == "event"]
    (create,) = at(operations, f"{uid}/primary/img", CreateArray)
    (write,) = at(operations, f"{uid}/primary/img", WriteArray)
    assert create.shape == numpy.asarray(images[0]).shape
    numpy.testing.assert_array_equal(write.values, images)
    (stop,) = at(operations, uid, UpdateMetadata)
    assert any("'img' is stored as an array of its own" in note for note in stop.metadata["notes"])


def test_images_in_files_become_external_data(run_engine, collected, sim, tmp_path):
    detector = sim.SynSignalWithRegistry(name="img", func=lambda: numpy.ones((4, 4)), save_path=str(tmp_path))
    run_engine(bpp.stage_wrapper(bp.count([detector], 3), [detector]))

    operations = fold(collected)

    uid = collected[0][1]["uid"]
    (register,) = at(operations, f"{uid}/primary/img", RegisterExternal)
    assert register.data_source["mimetype"] == "multipart/related;type=application/x-npy"
    extensions = at(operations, f"{uid}/primary/img", ExtendExternal)
    assert [(extension.first, extension.stop) for extension in extensions] == [(0, 3)]
    assert extensions[0].data_source["structure"]["shape"][0] == 3
    assert CloseStream(f"{uid}/primary/img") in operations


def test_interleaved_streams_keep_their_rows_apart(run_engine, collected, sim):
    def plan():
        yield from bps.open_run()
        for point in range(3):
            yield from bps.mv(sim.motor, point)
            yield from bps.trigger_and_read([sim.motor], name="one")
            yield from bps.trigger_and_read([sim.det], name="two")
        yield from bps.close_run()

    run_engine(plan())
    operations = fold(collected, flush_every=2)

    uid = collected[0][1]["uid"]
    assert rows(operations, f"{uid}/one/internal")["motor"] == [0.0, 1.0, 2.0]
    assert rows(operations, f"{uid}/two/internal")["seq_num"] == [1, 2, 3]
    assert "motor" not in rows(operations, f"{uid}/two/internal")


def test_a_repeated_point_after_a_rewind_is_kept_and_the_table_ordered_by_time(run):
    stream = run.compose_descriptor(name="primary", data_keys={"x": dict(NUMBER)})
    documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for seq_num, time in [(1, 10.0), (2, 11.0), (3, 12.0), (2, 13.0), (3, 14.0)]:
        point = stream.compose_event(data={"x": time}, timestamps={"x": time}, seq_num=seq_num, time=time)
        documents.append(("event", point))
    operations = fold([*documents, ("stop", run.compose_stop())])

    path = f"{run.start_doc['uid']}/primary/internal"
    assert rows(operations, path)["seq_num"] == [1, 2, 3, 2, 3]
    assert at(operations, path, OrderTable) == [OrderTable(path, ("time", "seq_num"))]


def test_a_change_of_configuration_is_added_to_the_stream_and_rows_go_on(run):
    keys = {"x": dict(NUMBER)}
    gain = {"gain": {"dtype": "number", "shape": [], "source": "test"}}

    def configuration(value):
        return {"det": {"data": {"gain": value}, "timestamps": {"gain": 0.0}, "data_keys": gain}}

    documents = [("start", run.start_doc)]
    for i, value in enumerate((1, 2, 3)):
        stream = run.compose_descriptor(
            name="primary", data_keys=keys, object_keys={"det": ["x"]}, configuration=configuration(value)
        )
        documents.append(("descriptor", stream.descriptor_doc))
        point = stream.compose_event(data={"x": value}, timestamps={"x": 0.0}, seq_num=i + 1)
        documents.append(("event", point))
    operations = fold([*documents, ("stop", run.compose_stop())], flush_every=2)

    path = f"{run.start_doc['uid']}/primary"
    (stream_node,) = at(operations, path, CreateContainer)
    assert stream_node.metadata["configuration"]["det"]["data"] == {"gain": 1}
    updates = [operation.metadata["_config_updates"] for operation in at(operations, path, UpdateMetadata)]
    gains = [[update["configuration"]["det"]["data"]["gain"] for update in state] for state in updates]
    assert gains == [[2], [2, 3]]
    assert updates[-1][0]["uid"] == documents[3][1]["uid"]
    assert rows(operations, f"{path}/internal")["x"] == [1, 2, 3]


def test_specs_and_access_tags_of_the_start_document_are_taken_out_and_followed():
    run = event_model.compose_run(
        metadata={"tiled_specs": ["Mine", {"name": "Other", "version": "2"}], "tiled_access_tags": ["group", "public"]}
    )
    operations = fold(small_run(run))

    start = operations[0]
    assert start.specs == (("Mine", None), ("Other", "2"), ("BlueskyRun", "3.0"))
    assert not {"tiled_specs", "tiled_access_tags"} & start.metadata["start"].keys()
    created = [operation for operation in operations if isinstance(operation, CreateContainer | CreateTable)]
    assert len(created) == 3
    assert all(operation.access_tags == ("group", "public") for operation in created)


def test_metadata_that_json_cannot_carry_is_noted():
    run = event_model.compose_run(metadata={"offset": float("nan"), "huge": 2**60})
    operations = fold(small_run(run))
    uid = run.start_doc["uid"]
    assert operations[0].metadata["start"]["offset"] is None
    (stop,) = at(operations, uid, UpdateMetadata)
    assert [note.partition(":")[0] for note in stop.metadata["notes"]] == ["start.offset", "start.huge"]


def test_an_abandoned_run_has_its_rows_and_no_stop_document(run):
    operations = fold(small_run(run)[:-1], abandon=True)

    uid = run.start_doc["uid"]
    assert rows(operations, f"{uid}/primary/internal")["x"] == [0, 1]
    assert at(operations, uid, UpdateMetadata) == []
    assert kinds(operations)[-3:] == ["CloseStream"] * 3
    assert operations[-1].path == uid


def test_a_run_whose_start_was_kept_back_touches_nothing(run):
    writer = RunWriter()
    writer.note("a note of the normalizer")
    for name, document in small_run(run)[1:]:
        with pytest.raises(DocumentError, match="no start before it"):
            writer(name, document)
    assert writer.abandon() == []


def test_a_run_without_events_is_a_run(run):
    assert kinds(fold([("start", run.start_doc), ("stop", run.compose_stop())])) == [
        "CreateContainer",
        "UpdateMetadata",
        "CloseStream",
    ]


def test_a_replay_gives_equal_operations(run_engine, collected, sim):
    run_engine(bp.scan([sim.det, sim.direct_img], sim.motor, -1, 1, 5))

    def comparable(operations):
        return [
            (*vars(operation).items(),) if not isinstance(operation, WriteArray) else operation.values.tobytes()
            for operation in operations
        ]

    first, second = fold(collected, flush_every=3), fold(collected, flush_every=3)
    assert kinds(first) == kinds(second)
    assert comparable(first) == comparable(second)


# Errors


def test_a_document_error_says_which_document(run):
    writer = RunWriter()
    writer("start", run.start_doc)
    with pytest.raises(DocumentError, match=r"event document 'the-event'.*'nobody'"):
        writer(
            "event",
            {"uid": "the-event", "descriptor": "nobody", "seq_num": 1, "time": 0.0, "data": {}, "timestamps": {}},
        )


def test_documents_that_the_normalizer_has_to_see_first_are_refused():
    with pytest.raises(DocumentError, match=r"'event_page'.*RunNormalizer"):
        RunWriter()("event_page", {})


# What a data key can cost

CAM = {"dtype": "array", "dtype_numpy": "<u2", "shape": [4, 6], "external": "STREAM:", "source": "test"}


def start():
    return "start", {"uid": "r", "time": 0.0}


def descriptor(keys, uid="d", stream="primary"):
    document = {"uid": uid, "run_start": "r", "time": 0.0, "name": stream, "data_keys": keys}
    return "descriptor", {**document, "configuration": {}, "hints": {}, "object_keys": {}}


def event(seq_num, data, uid="d"):
    about = {"uid": f"e{seq_num}", "descriptor": uid, "seq_num": seq_num, "time": float(seq_num)}
    return "event", {**about, "data": data, "timestamps": dict.fromkeys(data, 0.0)}


def stream_resource(key="cam", uid="res", mimetype="application/x-hdf5", **parameters):
    parameters = {"dataset": "/x", "chunk_shape": [1, 4, 6], **parameters}
    where = {"mimetype": mimetype, "uri": f"file://localhost/{uid}.h5", "parameters": parameters}
    return "stream_resource", {"uid": uid, "run_start": "r", "data_key": key, **where}


def stream_datum(first, stop, *, uid="res", of="d", seq_num=None):
    seq_num = first + 1 if seq_num is None else seq_num
    about = {
        "uid": f"{uid}/{first}",
        "stream_resource": uid,
        "descriptor": of,
        "indices": {"start": first, "stop": stop},
    }
    return "stream_datum", {**about, "seq_nums": {"start": seq_num, "stop": seq_num + stop - first}}


STOP = ("stop", {"uid": "s", "run_start": "r", "time": 9.0, "exit_status": "success"})


def frames(operations, path="r/primary/cam"):
    """How many frames Tiled was told of in the end, and the selection of rows that its adapter gets."""
    told = at(operations, path, ExtendExternal)
    source = told[-1].data_source
    return source["structure"]["shape"][0], source["parameters"].get("slice")


def notes(operations):
    return at(operations, "r", UpdateMetadata)[-1].metadata.get("notes", [])


def test_a_stream_datum_waits_for_its_resource_and_for_its_descriptor():
    late = [start(), stream_datum(0, 1), descriptor({"cam": CAM}), stream_datum(1, 2), stream_resource()]
    operations = fold([*late, stream_datum(2, 3), STOP])
    assert frames(operations) == (3, None)
    assert notes(operations) == []


NOTHING_CAME = "Stream 'primary': external data key 'cam' has no node, because no frames of it came."


@pytest.mark.parametrize("end", [[STOP], []])
def test_an_external_key_of_which_no_frames_came_is_noted(end):
    documents = [start(), descriptor({"cam": CAM, "x": NUMBER}), stream_resource(), event(1, {"x": 1.0}), *end]
    assert notes(fold(documents, abandon=not end)) == [NOTHING_CAME]


def test_an_external_key_with_values_in_the_events_has_its_node():
    filled = event(1, {"x": 1.0, "cam": numpy.zeros([4, 6], "<u2")})
    filled[1]["filled"] = {"cam": True}
    operations = fold([start(), descriptor({"cam": CAM, "x": NUMBER}), filled, STOP])
    assert notes(operations) == ["Stream 'primary': 'cam' is stored as an array of its own."]


def test_an_external_key_of_a_stream_without_anything_needs_no_frames():
    assert notes(fold([start(), descriptor({"cam": CAM, "x": NUMBER}), stream_resource(), STOP])) == []


@pytest.mark.parametrize(
    "uri", ["FILE://localhost/res.h5", "file:///res.h5", "file:/res.h5", "file://LOCALHOST/res.h5", "/res.h5"]
)
def test_one_file_by_other_spellings_of_its_uri_is_one_file(uri):
    name, document = stream_resource(uid="b")
    documents = [start(), descriptor({"cam": CAM}), stream_resource(), stream_datum(0, 2)]
    documents += [(name, {**document, "uri": uri}), stream_datum(2, 3, uid="b"), STOP]
    operations = fold(documents)
    assert notes(operations) == []
    assert frames(operations) == (3, None)
    (asset,) = at(operations, "r/primary/cam", ExtendExternal)[-1].data_source["assets"]
    assert asset["data_uri"] == "file://localhost/res.h5"


@pytest.mark.parametrize(
    "again",
    [
        {"dtype_numpy": "uint16"},
        {"dtype_numpy": "=u2"},
        {"shape": (4, 6)},
        {"dtype_numpy": None, "dtype_str": "<u2"},
    ],
)
def test_a_further_descriptor_may_spell_shape_and_type_otherwise(again):
    documents = [start(), descriptor({"cam": CAM}), stream_resource(), stream_datum(0, 2)]
    documents += [descriptor({"cam": {**CAM, **again}}, "d2"), stream_datum(2, 4, of="d2"), STOP]
    assert frames(fold(documents)) == (4, None)


@pytest.mark.parametrize("again", [{"dtype_numpy": "<i2"}, {"dtype_numpy": "nonsense"}, {"shape": [4, 7]}])
def test_a_further_descriptor_with_another_shape_or_type_ends_the_data_of_its_key(again):
    documents = [start(), descriptor({"cam": CAM}), stream_resource(), stream_datum(0, 2)]
    documents += [descriptor({"cam": {**CAM, **again}}, "d2"), stream_datum(2, 4, of="d2"), STOP]
    operations = fold(documents)
    assert frames(operations) == (2, None)
    assert any("another shape or type" in note for note in notes(operations))


@pytest.mark.parametrize("parameters", [{"template": 5}, {"multiplier": "two"}, {"multiplier": -1}, {"dataset": 5}])
def test_parameters_that_are_none_cost_their_data_key_only(parameters):
    documents = [start(), descriptor({"cam": CAM, "x": NUMBER}), stream_resource(**parameters), stream_datum(0, 1)]
    operations = fold([*documents, event(1, {"x": 1.0}), STOP])
    assert rows(operations, "r/primary/internal")["x"] == [1.0]
    (note,) = notes(operations)
    (name,) = parameters
    assert f"the frames of 'cam' are left out. External data of 'cam' cannot be registered: {name} is" in note


@pytest.mark.parametrize("end", [[STOP], []])
def test_a_resource_that_never_comes_is_noted(end):
    documents = [start(), descriptor({"cam": CAM, "x": NUMBER}), event(1, {"x": 1.0}), stream_datum(0, 1), *end]
    operations = fold(documents, abandon=not end)
    assert rows(operations, "r/primary/internal")["x"] == [1.0]
    assert notes(operations) == ["'res' never came; what 1 stream datum named of it is left out.", NOTHING_CAME]


@pytest.mark.parametrize(
    ("spoilt", "rest", "why"),
    [
        ([stream_resource(uid="b", dataset="/y"), stream_datum(2, 3, uid="b")], 2, "datasets"),
        ([stream_resource(uid="b", mimetype="image/odd"), stream_datum(2, 3, uid="b")], 2, "image/odd"),
        ([stream_datum(2, 1)], 2, "indices"),
        ([descriptor({"cam": {**CAM, "shape": [8, 6]}}, "d2"), stream_datum(2, 3, of="d2")], 2, "another shape"),
    ],
)
def test_what_cannot_be_followed_ends_the_data_of_its_key(spoilt, rest, why):
    documents = [start(), descriptor({"cam": CAM, "two": CAM, "x": NUMBER}), stream_resource(), stream_datum(0, 2)]
    documents += [*spoilt, stream_datum(2, 4), stream_resource("two", "other"), stream_datum(0, 4, uid="other")]
    documents += [event(n, {"x": 0.5}) for n in (1, 2, 3, 4)]
    operations = fold([*documents, STOP])
    assert frames(operations) == (rest, None)
    assert frames(operations, "r/primary/two") == (4, None)
    first, second = notes(operations)
    assert "the frames of 'cam' are left out from sequence number 3 on" in first
    assert why in first
    assert second == (
        "Stream 'primary': 'cam' has 2 frames for 4 events, and a dimension 'cam_frame' of its own. "
        "They belong to sequence numbers 1 to 2."
    )
    (described,) = at(operations, "r/primary/cam", DescribeExternal)
    assert described.data_source["structure"]["dims"] == ["cam_frame", "cam_dim1", "cam_dim2"]


def test_files_that_are_announced_in_another_order_than_the_events_are_set_apart_and_noted():
    resource = stream_resource(mimetype="multipart/related;type=image/tiff", template="%d.tiff")
    operations = fold([start(), descriptor({"cam": CAM}), resource, stream_datum(1, 2), stream_datum(0, 1), STOP])
    (described,) = at(operations, "r/primary/cam", DescribeExternal)
    assert described.data_source["structure"]["dims"] == ["cam_frame", "cam_dim1", "cam_dim2"]
    assert notes(operations)[0] == (
        "Stream 'primary': 'cam' has 2 frames for 2 events, in another order, and a dimension 'cam_frame' of its own. "
        "They belong to sequence numbers 2, 1."
    )


@pytest.mark.parametrize(
    ("seq_nums", "frames_of", "named"),
    [
        ([1, 2, 3], [2, 3, 4], "2 to 4"),
        ([1, 2, 3], [1, 3, 4], "1, 3 to 4"),
        ([1, 3, 2], [1, 3, 2], "1 to 3"),
    ],
    ids=["later events", "one lost and one more", "events out of order"],
)
def test_frames_as_many_as_the_events_but_of_others_are_set_apart_and_noted(seq_nums, frames_of, named):
    events = [event(number, {"x": 0.5}) for number in seq_nums]
    for time, (_, document) in enumerate(events):
        document["time"] = float(time)
    datums = [stream_datum(index, index + 1, seq_num=number) for index, number in enumerate(frames_of)]
    documents = [start(), descriptor({"cam": CAM, "x": NUMBER}), stream_resource(), *events, *datums, STOP]
    operations = fold(documents)
    (described,) = at(operations, "r/primary/cam", DescribeExternal)
    assert described.data_source["structure"]["dims"] == ["cam_frame", "cam_dim1", "cam_dim2"]
    assert notes(operations) == [
        (
            "Stream 'primary': 'cam' has 3 frames for 3 events, but not one for each in their order, and a dimension "
            f"'cam_frame' of its own. They belong to sequence numbers {named}."
        )
    ]


@pytest.mark.parametrize("number", [numpy.int64, numpy.uint16, float, numpy.float32])
def test_numbers_of_stream_datums_may_be_of_any_type(number):
    datums = [stream_datum(2, 4), stream_datum(0, 2)]
    for _, document in datums:
        for field in ("indices", "seq_nums"):
            document[field] = {name: number(value) for name, value in document[field].items()}
    events = [event(seq_num, {"x": 0.5}) for seq_num in (1, 2, 3, 4)]
    operations = fold([start(), descriptor({"cam": CAM, "x": NUMBER}), stream_resource(), *events, *datums, STOP])
    assert frames(operations) == (4, None)
    assert notes(operations) == []


@pytest.mark.parametrize(
    "seq_nums", [{"start": 4, "stop": 5}, {"start": 3}, {"start": 3.5, "stop": 5.5}, {"start": 5, "stop": 3}, None]
)
def test_frames_with_other_sequence_numbers_than_one_each_are_set_apart_and_noted(seq_nums):
    name, document = stream_datum(2, 4)
    datums = [stream_datum(0, 2), (name, {**document, "seq_nums": seq_nums})]
    events = [event(seq_num, {"x": 0.5}) for seq_num in (1, 2, 3, 4)]
    operations = fold([start(), descriptor({"cam": CAM, "x": NUMBER}), stream_resource(), *events, *datums, STOP])
    (described,) = at(operations, "r/primary/cam", DescribeExternal)
    assert described.data_source["structure"]["dims"] == ["cam_frame", "cam_dim1", "cam_dim2"]
    (note,) = notes(operations)
    assert note == (
        "Stream 'primary': 'cam' has 4 frames for 4 events, but not one for each in their order, and a dimension "
        "'cam_frame' of its own. 2 frames belong to sequence numbers 1 to 2. The events of 2 frames are not known."
    )


def test_files_with_other_sequence_numbers_than_one_each_are_set_apart_and_noted():
    (name, document), resource = stream_datum(0, 2), stream_resource(mimetype="multipart/related;type=image/tiff")
    resource[1]["parameters"]["template"] = "%d.tiff"
    datum = name, {**document, "seq_nums": {"start": 1, "stop": 2}}
    events = [event(seq_num, {"x": 0.5}) for seq_num in (1, 2)]
    (note,) = notes(fold([start(), descriptor({"cam": CAM, "x": NUMBER}), resource, *events, datum, STOP]))
    assert note.endswith("'cam_frame' of its own. The events of 2 frames are not known.")


@pytest.mark.parametrize("absent", [None, {"start": 0, "stop": 0}])
def test_frames_without_any_sequence_numbers_are_counted(absent):
    datums = [(name, {**document, "seq_nums": absent}) for name, document in (stream_datum(0, 2), stream_datum(2, 4))]
    events = [event(seq_num, {"x": 0.5}) for seq_num in (1, 2, 3, 4)]
    operations = fold([start(), descriptor({"cam": CAM, "x": NUMBER}), stream_resource(), *events, *datums, STOP])
    assert frames(operations) == (4, None)
    assert notes(operations) == []


def test_of_detectors_without_events_that_of_other_sequence_numbers_is_set_apart():
    keys = dict.fromkeys(("one", "two", "three"), CAM)
    documents = [start(), descriptor(keys)]
    for key in keys:
        first = 3 if key == "two" else 1
        documents += [stream_resource(key, key), stream_datum(0, 3, uid=key, seq_num=first)]
    (note,) = notes(fold([*documents, STOP]))
    assert "'two' has 3 frames for 3 events, but not one for each" in note


def test_frames_of_rewound_events_are_those_of_the_rows():
    documents = [start(), descriptor({"cam": CAM, "x": NUMBER}), stream_resource()]
    for row, number in enumerate([1, 2, 3, 2, 3, 4]):
        documents += [event(number, {"x": 0.5}), stream_datum(row, row + 1, seq_num=number)]
        documents[-2][1]["time"] = float(row)
    assert notes(fold([*documents, STOP])) == []


@pytest.mark.parametrize(
    ("counted", "note"),
    [
        ({"primary": 3}, ["Stream 'primary': 3 events in the count of the stop document, of which 2 came."]),
        (
            {"primary": numpy.int32(3)},
            ["Stream 'primary': 3 events in the count of the stop document, of which 2 came."],
        ),
        (
            {"primary": 2, "baseline": 1, "dark": 0},
            ["Stream 'baseline': 1 event in the count of the stop document, of which 0 came."],
        ),
        ({"primary": "3", "baseline": None}, []),
        ({"primary": True}, []),
        ({"primary": 1}, []),
        ({}, []),
        (None, []),
    ],
)
def test_events_that_the_stop_document_counts_and_that_never_came_are_noted(counted, note):
    documents = [start(), descriptor({"x": NUMBER}), event(1, {"x": 0.5}), event(3, {"x": 0.5})]
    assert notes(fold([*documents, ("stop", {**STOP[1], "num_events": counted})])) == note


def test_a_stream_resource_whose_uid_comes_again_for_another_file_is_another_file():
    again = stream_resource()
    again[1]["uri"] = "file://localhost/other.h5"
    documents = [start(), descriptor({"cam": CAM}), stream_resource(), stream_datum(0, 2), stream_resource()]
    operations = fold([*documents, stream_datum(2, 3), again, stream_datum(0, 1, seq_num=4), STOP])
    assert frames(operations) == (4, None)
    assets = at(operations, "r/primary/cam", ExtendExternal)[-1].data_source["assets"]
    assert [asset["data_uri"] for asset in assets] == ["file://localhost/res.h5", "file://localhost/other.h5"]


def test_what_a_further_descriptor_declares_otherwise_is_in_the_metadata_and_noted():
    first, second = {**NUMBER, "units": "keV"}, {**NUMBER, "units": "eV", "precision": 3}
    documents = [start(), descriptor({"x": first, "y": NUMBER}), event(1, {"x": 1.0, "y": 0.5})]
    changed = descriptor({"x": second, "y": NUMBER}, "d2")
    changed[1]["hints"] = {"device": {"fields": ["x"]}}
    documents += [changed, event(2, {"x": 1000.0, "y": 0.5}, "d2"), descriptor({"x": second}, "d3"), STOP]
    documents[-2][1]["hints"] = changed[1]["hints"]
    operations = fold(documents)
    (update, same) = at(operations, "r/primary", UpdateMetadata)[-1].metadata["_config_updates"]
    assert {key: update["data_keys"]["x"][key] for key in ("units", "precision")} == {"units": "eV", "precision": 3}
    assert list(update["data_keys"]) == ["x"]
    assert update["hints"] == {"device": {"fields": ["x"]}}
    assert same == {"uid": "d3"}
    assert notes(operations) == [
        (
            "Stream 'primary': a further descriptor has another precision and another units of 'x', which is in "
            "'_config_updates'."
        ),
        "Stream 'primary': a further descriptor has other hints, which are in '_config_updates'.",
    ]


@pytest.mark.parametrize("declared", [[4, 6, 0], [0, 4, 6], [4, 0, 6], (0, 4, 6, 0)])
def test_zeros_in_the_shape_of_frames_are_dropped_and_noted(declared):
    documents = [start(), descriptor({"cam": {**CAM, "shape": declared}}), stream_resource(), stream_datum(0, 2)]
    operations = fold([*documents, descriptor({"cam": CAM}, "d2"), stream_datum(2, 3, of="d2"), STOP])
    assert at(operations, "r/primary/cam", ExtendExternal)[-1].data_source["structure"]["shape"] == [3, 4, 6]
    assert at(operations, "r/primary", CreateContainer)[0].metadata["data_keys"]["cam"]["shape"] == [4, 6]
    (note,) = notes(operations)
    assert f"the shape {list(declared)} of external data key 'cam' is taken for [4, 6]" in note


@pytest.mark.parametrize(
    ("declared", "mimetype", "noted"),
    [
        ({}, "application/x-hdf5", True),
        ({}, "application/octet-stream", False),
        ({"dtype_numpy": "<u2"}, "application/x-hdf5", False),
        ({"dtype_str": "<u2"}, "application/x-hdf5", False),
        ({"dtype_descr": [["x", "<f8"]]}, "application/x-hdf5", False),
    ],
)
def test_a_type_of_frames_that_had_to_be_guessed_is_noted_once(declared, mimetype, noted):
    cam = {key: value for key, value in CAM.items() if key != "dtype_numpy"} | declared
    documents = [start(), descriptor({"cam": cam}), stream_resource(mimetype=mimetype), stream_datum(0, 2)]
    operations = fold([*documents, descriptor({"cam": cam}, "d2"), stream_datum(2, 3, of="d2"), STOP])
    told = [note for note in notes(operations) if "no NumPy type is declared for the frames of 'cam'" in note]
    assert len(told) == noted
    assert not noted or "taken to have '<f8'" in told[0]


@pytest.mark.parametrize("ends", [True, False])
def test_nodes_that_an_earlier_version_made_under_names_of_timestamps_are_removed(ends):
    wave = {"dtype": "array", "dtype_numpy": "<f8", "shape": [30], "source": "test"}
    documents = [start(), descriptor({"ts_cam": CAM, "ts_wave": wave, "ts_x": NUMBER}), stream_resource("ts_cam")]
    documents += [stream_datum(0, 1), event(1, {"ts_wave": [0.5] * 30, "ts_x": 1.0})]
    operations = fold([*documents, STOP] if ends else documents, abandon=not ends)
    removed = [operation.path for operation in operations if isinstance(operation, RemoveNode)]
    assert removed == ["r/primary/ts_wave", "r/primary/ts_cam"]
    assert at(operations, "r/primary/xts_wave", CreateArray)
    assert at(operations, "r/primary/xts_cam", RegisterExternal)


@pytest.mark.parametrize("declared", [[0], [0, 0, 0]])
def test_frames_of_which_all_sizes_are_zero_are_left_out_with_a_note(declared):
    documents = [start(), descriptor({"cam": {**CAM, "shape": declared}}), stream_resource(), stream_datum(0, 2), STOP]
    operations = fold(documents)
    assert not at(operations, "r/primary/cam", RegisterExternal)
    (note,) = notes(operations)
    assert "'cam' are left out" in note
    assert "has a 0" in note


@pytest.mark.parametrize(
    ("datums", "note"),
    [
        ([(0, 1), (1, 2), (2, 3)], None),
        ([(0, 1), (2, 3)], "'raw' has 2 frames for 3 events. They belong to sequence numbers 1, 3."),
        ([(2, 3), (0, 1), (1, 2)], "'raw' has 3 frames for 3 events, in another order. They belong to"),
        ([], "external data key 'raw' has no node"),
    ],
)
@pytest.mark.parametrize("template", ["raw_%d.bin", ""])
def test_files_of_any_kind_that_events_lack_or_that_are_not_in_their_order_are_noted(datums, note, template):
    documents = [start(), descriptor({"raw": {**CAM, "shape": []}, "x": NUMBER})]
    documents += [stream_resource("raw", mimetype="application/octet-stream", template=template)]
    documents += [stream_datum(*datum) for datum in datums]
    documents += [event(number, {"x": 0.5}) for number in (1, 2, 3)]
    operations = fold([*documents, STOP])
    assert not at(operations, "r/primary/raw", DescribeExternal)
    told = [text for text in notes(operations) if "order in which they were announced" not in text]
    assert len(told) == (note is not None)
    assert note is None or note in told[0]


def configuration(**values):
    keys = {key: {"dtype": "number", "shape": [], "source": "test"} for key in values}
    return {"data": values, "timestamps": dict.fromkeys(values, 0.5), "data_keys": keys}


def read_descriptors(documents):
    """The descriptors that the client makes of a stream's metadata, and the notes of the run."""
    operations = fold([start(), *(("descriptor", document) for document in documents), STOP])
    metadata = dict(at(operations, "r/primary", CreateContainer)[0].metadata)
    for operation in at(operations, "r/primary", UpdateMetadata):
        metadata.update(operation.metadata)
    return build_descriptor_docs(metadata, "primary", "r"), notes(operations)


@pytest.mark.parametrize(
    ("first", "second", "read"),
    [
        ({"a": configuration(x=1)}, {"a": configuration(x=2), "b": configuration(y=3)}, [{"a": {"x": 1}, "b": {}}]),
        ({"a": configuration(x=1)}, {"a": configuration(x=2, y=3)}, [{"a": {"x": 1}}]),
        (None, {"a": configuration(x=2)}, [{"a": {}}]),
        ({"a": {}}, {"a": configuration(x=2)}, [{"a": {}}]),
        ({"a": configuration(x=1)}, {"a": {"data": {"x": 2}}}, [{"a": {"x": 1}}]),
    ],
)
def test_configuration_that_only_a_further_descriptor_has_is_read_as_that_of_this_one(first, second, read):
    documents = [
        descriptor({"x": NUMBER}, uid)[1] | {"configuration": given} for uid, given in (("d", first), ("e", second))
    ]
    if first is None:
        del documents[0]["configuration"]
    descriptors, told = read_descriptors(documents)
    values = [{device: part["data"] for device, part in one["configuration"].items()} for one in descriptors]
    assert values == [*read, {device: part["data"] for device, part in second.items()}]
    keys = {device: part["data_keys"].keys() for device, part in descriptors[1]["configuration"].items()}
    assert keys == {device: part["data"].keys() for device, part in second.items()}
    assert told == []


def test_configuration_that_a_further_descriptor_lacks_is_noted():
    given = [{"a": configuration(x=1), "b": configuration(y=3)}, {"a": configuration(x=2)}]
    documents = [descriptor({"x": NUMBER}, f"d{n}")[1] | {"configuration": one} for n, one in enumerate(given)]
    assert read_descriptors(documents)[1] == [
        "Stream 'primary': a further descriptor lacks configuration of 'b'; clients give what the one before had."
    ]


def test_a_key_of_which_nothing_can_be_served_has_no_node():
    documents = [start(), descriptor({"cam": {**CAM, "shape": [None, 6]}, "x": NUMBER}), stream_resource()]
    operations = fold([*documents, stream_datum(0, 1), event(1, {"x": 1.0}), STOP])
    assert not at(operations, "r/primary/cam", RegisterExternal)
    (note,) = notes(operations)
    assert "'cam' are left out" in note
    assert "varies" in note


def test_a_file_that_tiled_reads_as_a_whole_is_left_out_if_something_of_it_is():
    table = {**CAM, "dtype_numpy": "<f8", "shape": [1, 3]}
    documents = [start(), descriptor({"rows": table}), stream_resource("rows", mimetype="text/csv;header=absent")]
    documents += [stream_datum(0, 1), stream_datum(0, 1, seq_num=2), stream_datum(1, 2, seq_num=3), STOP]
    operations = fold(documents)
    assert at(operations, "r/primary/rows", RemoveNode)
    assert any("has 2 datums, of which 1 is named" in note for note in notes(operations))


def test_a_few_frames_of_a_key_with_many_are_held_back_until_everything_is_wanted():
    writer = RunWriter()
    resource = stream_resource(mimetype="multipart/related;type=image/tiff", template="%d.tiff")
    for name, document in [start(), descriptor({"cam": CAM}), resource, stream_datum(0, 999)]:
        writer(name, document)

    def told(*, everything=False):
        return [(operation.first, operation.stop) for operation in writer.flush(everything=everything)]

    assert told() == [(0, 999)]
    writer(*stream_datum(999, 1000))
    assert told() == [(999, 1000)]
    writer(*stream_datum(1000, 1124))
    assert (told(), writer.has_held_frames) == ([], True)
    writer(*stream_datum(1124, 1125))
    assert (told(), writer.has_held_frames) == ([(1000, 1125)], False)
    writer(*stream_datum(1125, 1126))
    assert told() == []
    assert (told(everything=True), writer.has_held_frames) == ([(1125, 1126)], False)
    writer(*stream_datum(1126, 1127))
    operations = writer(*STOP)
    assert frames(operations)[0] == 1127


def test_further_descriptors_are_told_once_for_all_that_come_together():
    documents = [descriptor({"x": NUMBER}, f"d{n}") for n in range(1, 4)]
    documents[2][1]["data_keys"]["cam"] = CAM
    operations = fold([start(), descriptor({"x": NUMBER}), event(1, {"x": 1.0}), *documents, STOP])
    (told,) = [operation.metadata for operation in at(operations, "r/primary", UpdateMetadata)]
    assert [update["uid"] for update in told["_config_updates"]] == ["d1", "d2", "d3"]
    assert list(told["data_keys"]) == ["x", "cam"]


def test_what_further_descriptors_say_again_is_kept_once():
    writer = RunWriter()
    for name, document in [start(), *(descriptor({"x": dict(NUMBER)}, f"d{n}") for n in range(3))]:
        writer(name, document)
    assert len({id(keys) for keys in writer._descriptors.values()}) == 1


def test_a_file_that_tiled_reads_as_a_whole_is_left_out_of_the_streams_that_share_it():
    table = {**CAM, "dtype_numpy": "<f8", "shape": [1, 3]}
    keys = {"rows": table, "x": NUMBER}
    documents = [start(), descriptor(keys, "d1", "dark"), descriptor(keys, "d2"), event(1, {"x": 0.5}, "d2")]
    documents += [stream_resource("rows", mimetype="text/csv;header=absent")]
    documents += [stream_datum(0, 1, of="d1"), stream_datum(1, 3, of="d2", seq_num=1), STOP]
    operations = fold(documents)
    assert at(operations, "r/dark/rows", RemoveNode)
    assert not at(operations, "r/primary/rows", RegisterExternal)
    first, second = notes(operations)
    assert "Stream 'primary': the frames of 'rows' are left out" in first
    assert "Stream 'dark': the frames of 'rows' are left out. file://localhost/res.h5 has 3 datums" in second
    removed = operations.index(RemoveNode("r/dark/rows"))
    assert not [operation for operation in operations[removed + 1 :] if operation.path == "r/dark/rows"]


@pytest.mark.parametrize(
    "dark",
    [
        [stream_datum(1, 2, of="dark"), stream_datum(2, 4, of="dark", seq_num=2)],
        [stream_datum(2, 4, of="never described")],
        [stream_datum(0, 1, uid="images", of="dark"), stream_datum(2, 4, of="dark")],
        [stream_datum(1, 2, of="dark"), stream_datum(3, 4, uid="again", of="dark", seq_num=2)],
    ],
    ids=["whose first rows are", "that never came", "of another mimetype", "of another resource"],
)
@pytest.mark.parametrize("order", [1, -1])
def test_rows_that_are_left_out_of_a_stream_count_for_the_file_that_others_have(dark, order):
    table = {**CAM, "dtype_numpy": "<f8", "shape": [1, 3]}
    documents = [start(), *(descriptor({"rows": table}, uid, uid) for uid in ("d", "dark"))]
    _, resource = stream_resource("rows", mimetype="text/csv;header=absent")
    documents += [("stream_resource", {**resource, "uid": uid}) for uid in ("res", "again")]
    documents += [stream_resource("rows", "images", mimetype="multipart/related;type=image/tiff", template="%d.tif")]
    parts = [[stream_datum(0, 2)], dark][::order]
    operations = fold([*documents, *parts[0], *parts[1], STOP])
    assert at(operations, "r/d/rows", RemoveNode)
    assert any("has 4 datums, of which 2 are named" in note for note in notes(operations))


def test_a_key_that_a_further_descriptor_declares_has_its_files_and_is_in_the_metadata():
    documents = [start(), descriptor({"x": NUMBER}), event(1, {"x": 1.0}), descriptor({"x": NUMBER, "cam": CAM}, "d2")]
    documents += [stream_resource(), event(2, {"x": 2.0}, "d2"), stream_datum(0, 1, of="d2", seq_num=2), STOP]
    operations = fold(documents)
    assert frames(operations) == (1, None)
    (changed,) = [op.metadata for op in at(operations, "r/primary", UpdateMetadata)]
    assert list(changed["data_keys"]) == ["x", "cam"]
    assert "'cam' has 1 frame for 2 events" in notes(operations)[0]


@pytest.mark.parametrize(("one", "two"), [("cam?1", "cam#1"), ("a/b", "a_b"), ("internal", "internal_")])
def test_no_two_keys_have_one_node(one, two):
    documents = [start(), descriptor({one: CAM, two: CAM}), stream_resource(one, "1"), stream_resource(two, "2")]
    operations = fold([*documents, stream_datum(0, 1, uid="1"), stream_datum(0, 1, uid="2"), STOP])
    paths = [operation.path for operation in operations if isinstance(operation, RegisterExternal)]
    assert len(set(paths)) == 2
    assert "r/primary/internal" not in paths
    for key, path in zip((one, two), paths, strict=True):
        name = path.rpartition("/")[2]
        assert name == key or any(repr(key) in note and repr(name) in note for note in notes(operations))


def test_dimensions_of_a_stream_have_one_size_and_a_node_has_each_once():
    keys = {
        "trace": {**CAM, "shape": [6], "dims": ["time"]},
        "image": {**CAM, "dims": ["y", "y"]},
        "small": {**CAM, "shape": [2, 3], "dims": ["y", "small"]},
    }
    documents = [start(), descriptor(keys)]
    for key in keys:
        documents += [stream_resource(key, key, chunk_shape=[1]), stream_datum(0, 1, uid=key)]
    operations = fold([*documents, STOP])
    dims = {
        operation.path.rpartition("/")[2]: operation.data_source["structure"]["dims"]
        for operation in operations
        if isinstance(operation, RegisterExternal)
    }
    assert dims == {"trace": ["time", "time_"], "image": ["time", "y", "y_"], "small": ["time", "y__", "small_"]}
    assert "Stream 'primary': dimension 'time' of 'trace' is called 'time_', because its own name is in use." in notes(
        operations
    )


def test_no_two_streams_have_one_node():
    documents = [descriptor({"x": NUMBER}, uid, name) for uid, name in (("1", "a/b"), ("2", "a_b"))]
    operations = fold([start(), *documents, STOP])
    containers = [operation.path for operation in operations if isinstance(operation, CreateContainer)]
    assert containers == ["r", "r/a_b", "r/a_b_"]
    assert notes(operations) == [
        "Stream 'a/b' is stored as 'a_b', because Tiled does not accept its own name here.",
        "Stream 'a_b' is stored as 'a_b_', because Tiled does not accept its own name here.",
    ]


def test_one_access_tag_may_be_a_text():
    (container,) = RunWriter()("start", {"uid": "r", "time": 0.0, "tiled_access_tags": "public"})
    assert container.access_tags == ("public",)


def test_images_that_come_in_events_after_files_get_a_node_beside_that_of_the_files(run):
    key = {"dtype": "array", "dtype_numpy": "<f8", "shape": [2], "source": "test", "external": "FILESTORE:"}
    stream = run.compose_descriptor(name="primary", data_keys={"cam": key})
    resource = run.compose_resource(spec="AD_HDF5", root="/", resource_path="a.h5", resource_kwargs={})
    datum = resource.compose_datum({"point_number": 0})
    data = [datum["datum_id"], [1.0, 2.0]]
    first, second = [
        stream.compose_event(data={"cam": value}, timestamps={"cam": 1.0}, filled={"cam": not isinstance(value, str)})
        for value in data
    ]
    documents = [
        *(("start", run.start_doc), ("descriptor", stream.descriptor_doc), ("resource", resource.resource_doc)),
        *(("datum", datum), ("event", first), ("event", second), ("stop", run.compose_stop())),
    ]
    path = f"{run.start_doc['uid']}/primary"

    writer, operations = fold_with(documents, {})
    assert [operation.path for operation in operations if isinstance(operation, RegisterExternal)] == [f"{path}/cam"]
    needed = {}
    while writer.too_narrow:
        needed |= writer.too_narrow
        writer, operations = fold_with(documents, needed)
    assert [operation.path for operation in operations if isinstance(operation, RegisterExternal)] == [f"{path}/cam"]
    (written,) = [operation for operation in operations if isinstance(operation, WriteArray)]
    assert written.path == f"{path}/cam_"
    numpy.testing.assert_array_equal(written.values, [[numpy.nan, numpy.nan], [1.0, 2.0]])
    assert not any("neither declared" in note for note in writer.notes)


@pytest.mark.parametrize("limit", [float("nan"), numpy.array([1.0, 2.0])])
def test_a_further_descriptor_with_equal_limits_changes_nothing_even_if_they_are_not_equal_to_themselves(run, limit):
    documents = [("start", run.start_doc)]
    for _ in range(2):
        key = {**NUMBER, "limits": {"control": {"low": limit * 1, "high": 1.0}}}
        stream = run.compose_descriptor(name="primary", data_keys={"x": key}, validate=False)
        documents.append(("descriptor", stream.descriptor_doc))
    documents.append(("stop", run.compose_stop()))
    writer, _ = fold_with(documents, {})
    assert not any("further descriptor" in note for note in writer.notes)
