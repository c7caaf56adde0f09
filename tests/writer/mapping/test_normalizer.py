"""Facts about RunNormalizer: documents of every age in, modern ones out."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import event_model
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiledwriter._errors import DocumentError
from tiledwriter.mapping import _normalizer
from tiledwriter.mapping._normalizer import RunNormalizer, file_uri

Documents = list[tuple[str, dict[str, Any]]]

NUMBER = {"source": "sim", "dtype": "number", "shape": []}
IMAGE = {"source": "sim", "dtype": "array", "shape": [4, 5], "external": "FILESTORE:"}
START = ("start", {"uid": "run", "time": 0.0})
STOP = ("stop", {"uid": "end", "run_start": "run", "time": 9.0, "exit_status": "success"})


def descriptor(keys: Mapping[str, Any], uid: str = "desc", name: str = "primary", **more: Any) -> tuple[str, dict]:
    return "descriptor", {"uid": uid, "name": name, "run_start": "run", "time": 1.0, "data_keys": dict(keys), **more}


def event(seq_num: int, data: Mapping[str, Any], uid: str = "desc", **more: Any) -> tuple[str, dict]:
    stamps = dict.fromkeys(data, 5.0)
    doc = {"uid": f"event-{seq_num}", "descriptor": uid, "seq_num": seq_num, "time": 2.0}
    return "event", {**doc, "data": dict(data), "timestamps": stamps, **more}


def resource(uid: str = "res", spec: str = "AD_TIFF", **kwargs: Any) -> tuple[str, dict]:
    doc = {"uid": uid, "spec": spec, "root": "/data", "resource_path": "a/", "resource_kwargs": kwargs}
    return "resource", doc


def datum(datum_id: str, resource: str = "res", **kwargs: Any) -> tuple[str, dict]:
    return "datum", {"datum_id": datum_id, "resource": resource, "datum_kwargs": kwargs}


def normalize(documents: Documents, normalizer: RunNormalizer | None = None) -> Documents:
    normalizer = normalizer or RunNormalizer()
    return [pair for name, doc in documents for pair in normalizer(name, doc)]


def of(name: str, documents: Documents) -> list[dict[str, Any]]:
    return [doc for kind, doc in documents if kind == name]


def one(name: str, doc: dict[str, Any], **options: Any) -> dict[str, Any]:
    [(kind, modern)] = RunNormalizer(**options)(name, doc)
    assert kind == name
    return modern


def rows(documents: Documents) -> list[tuple[int, int]]:
    return [(doc["indices"]["start"], doc["indices"]["stop"]) for doc in of("stream_datum", documents)]


def data_key(**key: Any) -> dict[str, Any]:
    _, doc = descriptor({"x": {**NUMBER, **key}})
    return one("descriptor", doc)["data_keys"]["x"]


def external_run(arguments: list[tuple[str, dict[str, Any]]]) -> Documents:
    """A run of one image per event, from (resource uid, datum_kwargs) of each."""
    documents: Documents = [START, descriptor({"img": IMAGE})]
    documents += [resource(uid) for uid in dict.fromkeys(uid for uid, _ in arguments)]
    for number, (uid, kwargs) in enumerate(arguments, start=1):
        documents += [datum(f"datum-{number}", uid, **kwargs), event(number, {"img": f"datum-{number}"})]
    return [*documents, STOP]


def test_a_modern_run_without_external_data_passes_unchanged() -> None:
    key = {**NUMBER, "dtype_numpy": "<f8"}
    hints = {"dimensions": [[["time"], "primary"]]}
    start = ("start", {**START[1], "hints": hints})
    documents: Documents = [start, descriptor({"x": key}), event(1, {"x": 3.5}), STOP]
    assert normalize(documents) == documents


def test_the_stop_document_gets_no_private_keys() -> None:
    assert one(*STOP) == STOP[1]


def test_nothing_that_is_given_is_changed() -> None:
    keys = {"time": {**NUMBER, "dtype_str": "<u2", "shape": None}, "img": {**IMAGE, "external": None}}
    configuration = {"dev": {"data": {}, "timestamps": {}, "data_keys": {"gain": dict(NUMBER)}}}
    hints = {"dev": {"fields": ["time"]}}
    documents: Documents = [
        START,
        descriptor(keys, object_keys={"dev": ["time", "img"]}, hints=hints, configuration=configuration),
        resource(spec="hdf5", path="/entry", frame_per_point=2),
        datum("d", point_number=4, nested={"a": [1]}),
        event(1, {"time": 1, "img": "d"}, filled={"img": False}),
        ("stream_resource", {"uid": "s", "data_key": "k", "mimetype": "m", "uri": "u", "parameters": {"x": 1}}),
        STOP,
    ]
    before = copy.deepcopy(documents)
    normalize(documents)
    assert documents == before


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        *(({"dtype": "number"}, "<f8"), ({"dtype": "array"}, "<f8"), ({"dtype": "integer"}, "<i8")),
        *(({"dtype": "boolean"}, "|b1"), ({"dtype": "string"}, "<U0"), ({"dtype": "object"}, None)),
        ({"dtype": "number", "dtype_str": "<u2"}, "<u2"),
        ({"dtype": "number", "dtype_str": "<u2", "dtype_numpy": "<f4"}, "<f4"),
        ({"dtype": "array", "dtype_numpy": "<f4", "dtype_descr": [("x", "<i4")]}, [["x", "<i4"]]),
    ],
)
def test_the_most_exact_dtype_wins(key: dict[str, Any], expected: Any) -> None:
    modern = data_key(**key)
    assert modern.get("dtype_numpy") == expected
    assert not {"dtype_str", "dtype_descr"} & modern.keys()


def test_types_derived_from_the_json_type_are_listed_as_guesses() -> None:
    normalizer = RunNormalizer()
    normalizer(*descriptor({"x": NUMBER, "time": NUMBER, "y": {**NUMBER, "dtype_str": "<u2"}}))
    assert normalizer.guessed_types == {("primary", "x"), ("primary", "time_")}


@pytest.mark.parametrize("shape", [[], [4, 5]])
def test_a_shape_that_is_an_array_is_a_list(shape: list[int]) -> None:
    assert data_key(shape=numpy.array(shape, int))["shape"] == shape


@pytest.mark.parametrize("field", ["dtype_numpy", "dtype_str", "dtype_descr"])
@pytest.mark.parametrize("value", [5, [], ["<f4"], numpy.zeros(2), None])
def test_what_is_no_numpy_type_fails_no_descriptor(field: str, value: Any) -> None:
    assert data_key(**{field: value})["dtype_numpy"] == (
        value if field != "dtype_descr" and isinstance(value, list) and value else "<f8"
    )


def test_a_shape_of_none_is_that_of_a_scalar() -> None:
    assert data_key(dtype="number", shape=None)["shape"] == ()


@pytest.mark.parametrize("nothing", [None, ""])
def test_a_key_whose_external_is_empty_has_its_data_in_the_events(nothing: str | None) -> None:
    normalizer = RunNormalizer()
    keys = {"s": {**NUMBER, "dtype": "string", "external": nothing}}
    modern = normalize([START, descriptor(keys), event(1, {"s": "a"}), STOP], normalizer)
    assert "external" not in of("descriptor", modern)[0]["data_keys"]["s"]
    assert of("event", modern)[0]["data"] == {"s": "a"}
    assert normalizer.notes == []


@pytest.mark.parametrize("untyped", [{}, {"dtype": None}])
def test_a_data_key_without_a_json_type_is_kept_as_it_is(untyped: dict[str, Any]) -> None:
    key = {"source": "sim", "shape": [], **untyped}
    _, doc = descriptor({"x": key}, configuration={"dev": {"data_keys": {"gain": key}}})
    modern = one("descriptor", doc)
    assert modern["data_keys"]["x"] == modern["configuration"]["dev"]["data_keys"]["gain"] == key


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("object_keys", {"dev": None}), ("object_keys", {"dev": "time"}), ("object_keys", {"dev": [["time"], None]})),
        *(("hints", {"dev": None}), ("hints", {"dev": {"fields": None}}), ("hints", {"dev": {"fields": [["time"]]}})),
        *(("hints", ["time"]), ("configuration", {"dev": {"data_keys": None}})),
        *(("configuration", {"dev": {"data_keys": {"gain": None}}}), ("configuration", {"dev": {"data_keys": ["a"]}})),
        ("configuration", {"dev": {"data_keys": {"gain": {"dtype": ["number"]}}}}),
        *(("configuration", {"dev": {"data_keys": {"gain": {"dtype_descr": 5}}}}), ("configuration", {"dev": None})),
    ],
)
def test_a_part_of_a_descriptor_of_the_wrong_type_costs_only_that_part(field: str, value: Any) -> None:
    normalizer = RunNormalizer()
    documents = [descriptor({"time": NUMBER}, **{field: value}), event(1, {"time": 1.0})]
    modern, taken = normalize(documents, normalizer)
    assert list(modern[1]["data_keys"]) == ["time_"]
    assert taken[1]["data"] == {"time_": 1.0}
    unusable = field == "object_keys" and not isinstance(value["dev"], list)
    assert any("the object keys of 'dev' are not a list of names" in note for note in normalizer.notes) == unusable


def test_what_further_descriptors_say_again_is_kept_once() -> None:
    normalizer = RunNormalizer()
    for uid, keys in (("one", {"x": NUMBER}), ("same", {"x": NUMBER}), ("other", {"x": IMAGE})):
        normalizer(*descriptor(keys, uid=uid))
    streams = normalizer._streams_by_descriptor
    assert streams["one"] is streams["same"]
    assert streams["other"].external == {"x"}


def test_configuration_data_keys_are_brought_up_to_date_too() -> None:
    part = {"data": {"gain": 1}, "timestamps": {"gain": 0.0}, "data_keys": {"gain": {**NUMBER, "dtype_str": "<i2"}}}
    _, doc = descriptor({"x": NUMBER}, configuration={"dev": part, "bare": {"data": {}, "timestamps": {}}})
    modern = one("descriptor", doc)["configuration"]
    assert modern["dev"] == {**part, "data_keys": {"gain": {**NUMBER, "dtype_numpy": "<i2"}}}
    assert modern["bare"] == {"data": {}, "timestamps": {}}


def test_data_keys_learn_the_name_of_their_object() -> None:
    _, doc = descriptor({"x": NUMBER}, object_keys={"motor": ["x", "undescribed"]})
    assert one("descriptor", doc)["data_keys"]["x"]["object_name"] == "motor"


def test_reserved_data_keys_are_renamed_wherever_they_are_mentioned() -> None:
    normalizer = RunNormalizer()
    keys = {"time": NUMBER, "x": NUMBER, "seq_num": NUMBER}
    hints = {"clock": {"fields": ["time", "x"]}, "other": {}}
    described = descriptor(keys, object_keys={"clock": ["time", "x"], "n": ["seq_num"]}, hints=hints)
    [(_, modern)] = normalizer(*described)
    assert list(modern["data_keys"]) == ["x", "time_", "seq_num_"]
    assert modern["object_keys"] == {"clock": ["time_", "x"], "n": ["seq_num_"]}
    assert modern["hints"] == {"clock": {"fields": ["time_", "x"]}, "other": {}}
    [(_, taken)] = normalizer(*event(7, {"time": 1, "x": 2, "seq_num": 3}, filled={"time": True}))
    assert taken["data"] == {"x": 2, "time_": 1, "seq_num_": 3}
    assert taken["timestamps"] == {"x": 5.0, "time_": 5.0, "seq_num_": 5.0}
    assert (taken["time"], taken["seq_num"]) == (2.0, 7)
    normalizer(*descriptor({"time": NUMBER}, uid="again"))
    assert len(normalizer.notes) == 2
    assert "'primary': data key 'time'" in normalizer.notes[0]


def test_a_reserved_name_whose_substitute_is_taken_gets_another_one() -> None:
    normalizer = RunNormalizer()
    [(_, modern)] = normalizer(*descriptor({"time": NUMBER, "time_": NUMBER}))
    assert list(modern["data_keys"]) == ["time_", "time__"]
    [(_, taken)] = normalizer(*event(1, {"time": 1, "time_": 2}))
    assert taken["data"] == {"time_": 2, "time__": 1}
    assert normalizer.notes == ["Stream 'primary': data key 'time' is reserved and was renamed to 'time__'."]


def test_the_new_name_of_a_reserved_data_key_stays_its_own_in_further_descriptors() -> None:
    normalizer = RunNormalizer()
    documents: Documents = [
        descriptor({"time": NUMBER}, uid="first"),
        event(1, {"time": 1}, uid="first"),
        descriptor({"time_": NUMBER, "time": NUMBER}, uid="second"),
        event(2, {"time_": 20, "time": 2}, uid="second"),
        descriptor({"time_": NUMBER}, uid="third"),
        event(3, {"time_": 30}, uid="third"),
    ]
    modern = normalize(documents, normalizer)
    assert [doc["data"] for doc in of("event", modern)] == [{"time_": 1}, {"time_": 2, "time__": 20}, {"time__": 30}]
    assert normalizer.notes == [
        "Stream 'primary': data key 'time' is reserved and was renamed to 'time_'.",
        "Stream 'primary': data key 'time_' has the new name of another one and was renamed to 'time__'.",
    ]


def test_a_reserved_data_key_of_a_further_descriptor_gets_no_name_of_an_earlier_one() -> None:
    documents: Documents = [descriptor({"time_": NUMBER}), descriptor({"time": NUMBER}, uid="second")]
    assert [list(doc["data_keys"]) for doc in of("descriptor", normalize(documents))] == [["time_"], ["time__"]]


def test_files_of_a_reserved_data_key_go_to_the_name_that_it_has_in_the_stream() -> None:
    def announced(uid: str, data_key: str) -> tuple[str, dict]:
        where = {"mimetype": "image/odd", "uri": f"file://localhost/{uid}", "parameters": {}}
        return "stream_resource", {"uid": uid, "data_key": data_key, **where}

    def of_frames(uid: str, of: str, first: int) -> tuple[str, dict]:
        indices = {"start": first, "stop": first + 1}
        about = {"uid": f"{uid}/{first}", "stream_resource": uid, "descriptor": of}
        return "stream_datum", {**about, "indices": indices, "seq_nums": indices}

    documents: Documents = [
        descriptor({"time": IMAGE, "time_": IMAGE}, uid="both"),
        descriptor({"time": IMAGE}, uid="one", name="other"),
        announced("a", "time"),
        announced("b", "time_"),
        *(of_frames(uid, "both", first) for uid in "ab" for first in range(2)),
        of_frames("a", "one", 2),
    ]
    modern = normalize(documents)
    data_keys = {doc["uid"]: (doc["data_key"], doc["uri"][-1]) for doc in of("stream_resource", modern)}
    assert [data_keys[doc["stream_resource"]] for doc in of("stream_datum", modern)] == [
        *[("time__", "a")] * 2,
        *[("time_", "b")] * 2,
        ("time_", "a"),
    ]
    assert len(data_keys) == 3


def test_a_datum_in_another_dataset_or_file_of_its_resource_has_a_stream_resource_of_its_own() -> None:
    documents: Documents = [descriptor({"img": IMAGE}), resource(spec="AD_HDF5")]
    for number, path in enumerate(["/a", "/a", "/b", "/a"]):
        documents += [datum(f"d{number}", point_number=number, path=path), event(number + 1, {"img": f"d{number}"})]
    documents += [resource(spec="AD_HDF5", swmr=True), datum("d4", point_number=4, path="/a"), event(5, {"img": "d4"})]
    moved = resource(spec="AD_HDF5")
    moved[1]["root"] = "/elsewhere"
    documents += [moved, datum("d5", point_number=0, path="/a"), event(6, {"img": "d5"})]
    modern = normalize(documents)
    places = {doc["uid"]: (doc["uri"], doc["parameters"]["dataset"]) for doc in of("stream_resource", modern)}
    here, there = "file://localhost/data/a/", "file://localhost/elsewhere/a/"
    assert [places[doc["stream_resource"]] for doc in of("stream_datum", modern)] == [
        *[(here, "/a")] * 2,
        (here, "/b"),
        *[(here, "/a")] * 2,
        (there, "/a"),
    ]
    assert len(places) == 3


def test_datums_of_several_data_keys_that_do_not_name_their_frames_are_noted() -> None:
    normalizer = RunNormalizer()
    keys = {"img": IMAGE, "second": IMAGE}
    documents: Documents = [descriptor(keys), resource(), datum("res/0"), datum("res/1")]
    normalize([*documents, event(1, {"img": "res/0", "second": "res/1"})], normalizer)
    (note,) = normalizer.notes
    assert "the datums of 'img', 'second' are of one resource and do not say which of its frames they are" in note


def test_events_keep_internal_data_only() -> None:
    keys = {"x": NUMBER, "img": IMAGE}
    documents: Documents = [descriptor(keys), event(1, {"x": 1, "img": "later"}, filled={"img": False})]
    [taken] = of("event", normalize(documents))
    assert taken["data"] == {"x": 1}
    assert taken["timestamps"] == {"x": 5.0}
    assert "filled" not in taken


def test_a_filled_external_key_is_internal_data_of_that_event() -> None:
    documents: Documents = [START, descriptor({"img": IMAGE}), event(1, {"img": [[1]]}, filled={"img": True}), STOP]
    normalizer = RunNormalizer()
    modern = normalize(documents, normalizer)
    assert of("event", modern)[0]["data"] == {"img": [[1]]}
    assert not of("stream_datum", modern)
    assert not normalizer.notes


def test_an_internal_key_that_is_not_filled_is_noted_and_its_data_kept_unless_it_may_be_the_id_of_a_datum() -> None:
    normalizer = RunNormalizer()
    data = {"x": 1, "y": 2, "img": "datum", "nothing": None}
    events = [event(1, data, filled={"x": False, "img": False, "nothing": False})]
    modern = normalize([descriptor(dict.fromkeys(data, NUMBER)), *events], normalizer)
    assert of("event", modern)[0]["data"] == {"x": 1, "y": 2}
    said = "is said not to be filled, but is not external"
    assert normalizer.notes == [
        f"Stream 'primary': data key 'x' {said}; its data is kept.",
        f"Stream 'primary': data key 'img' {said}; the text that it has is left out.",
    ]


def test_data_in_place_of_a_datum_id_is_kept_as_internal_data() -> None:
    normalizer = RunNormalizer()
    modern = normalize([descriptor({"img": IMAGE}), event(1, {"img": [[1, 2]]}), STOP], normalizer)
    assert of("event", modern)[0]["data"] == {"img": [[1, 2]]}
    assert normalizer.notes == ["Stream 'primary': external data key 'img' has data in events; it is kept as such."]


def test_none_in_place_of_a_datum_id_is_no_data_and_holds_nothing_up() -> None:
    normalizer = RunNormalizer()
    documents = [descriptor({"img": IMAGE}), resource(), event(1, {"img": None}), datum("d"), event(2, {"img": "d"})]
    modern = normalize([START, *documents], normalizer)
    assert [doc["data"] for doc in of("event", modern)] == [{}, {}]
    assert rows(modern) == [(0, 1)]
    assert normalizer.notes == []


def test_a_key_that_no_descriptor_mentions_costs_a_note() -> None:
    normalizer = RunNormalizer()
    modern = normalize([descriptor({"x": NUMBER}), event(1, {"x": 1, "stray": 2})], normalizer)
    assert of("event", modern)[0]["data"] == {"x": 1}
    assert normalizer.notes == ["Stream 'primary': data key 'stray' is not in the descriptor; its data is left out."]


def test_one_key_may_be_internal_in_one_stream_and_external_in_another() -> None:
    documents: Documents = [
        descriptor({"img": {**NUMBER}}, uid="inside", name="baseline"),
        descriptor({"img": IMAGE}, uid="outside"),
        resource(),
        datum("d"),
        event(1, {"img": 4}, uid="inside"),
        event(1, {"img": "d"}, uid="outside"),
    ]
    modern = normalize(documents)
    assert [doc["data"] for doc in of("event", modern)] == [{"img": 4}, {}]
    assert len(of("stream_datum", modern)) == 1


def test_a_datum_becomes_a_stream_datum_after_its_stream_resource() -> None:
    documents: Documents = [
        descriptor({"img": IMAGE}),
        resource(template="%s%s_%6.6d.tiff", filename="f", frame_per_point=2),
        datum("d1", exposure=3),
        event(1, {"img": "d1"}),
        datum("d2", exposure=4),
        event(2, {"img": "d2"}),
    ]
    modern = normalize(documents)
    assert [name for name, _ in modern[1:]] == ["event", "stream_resource", "stream_datum", "event", "stream_datum"]
    assert of("stream_resource", modern) == [
        {
            "uid": "res-desc-img",
            "data_key": "img",
            "mimetype": "multipart/related;type=image/tiff",
            "uri": "file://localhost/data/a/",
            "parameters": {
                "spec": "AD_TIFF",
                "template": "%s%s_%6.6d.tiff",
                "filename": "f",
                "multiplier": 2,
                "exposure": 3,
                "_resource_spec": "AD_TIFF",
            },
        }
    ]
    assert of("stream_datum", modern)[1] == {
        "uid": "d2",
        "stream_resource": "res-desc-img",
        "descriptor": "desc",
        "indices": {"start": 1, "stop": 2},
        "seq_nums": {"start": 2, "stop": 3},
    }


def test_descriptors_and_data_keys_that_share_a_resource_get_a_stream_resource_each() -> None:
    documents: Documents = [
        *(descriptor({"a": IMAGE, "b": IMAGE}, uid=uid) for uid in ("one", "two")),
        *(resource(), datum("d"), datum("e")),
        *(event(1, {"a": "d", "b": "e"}, uid="one"), event(2, {"a": "d", "b": "e"}, uid="two")),
    ]
    uids = [doc["uid"] for doc in of("stream_resource", normalize(documents))]
    assert uids == ["res-one-a", "res-one-b", "res-two-a", "res-two-b"]


def test_a_datum_may_be_referred_to_more_than_once() -> None:
    documents: Documents = [descriptor({"img": IMAGE}), resource(), datum("d", point_number=0, gain=1)]
    modern = normalize([*documents, event(1, {"img": "d"}), event(2, {"img": "d"}), STOP])
    assert rows(modern) == [(0, 1), (0, 1)]
    assert of("stream_resource", modern)[0]["parameters"]["gain"] == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([{}, {}], [(0, 1), (1, 2)]),
        ([{"point_number": 0}, {"point_number": 7}], [(0, 1), (7, 8)]),
        ([{"index": 3}, {"index": numpy.int64(1)}], [(3, 4), (1, 2)]),
        ([{"indices": {"start": 3, "stop": 9}}], [(3, 9)]),
        ([{"indices": {"start": 3, "stop": 9}, "point_number": 0, "frame": 1}], [(3, 9)]),
        ([{"frame": 4}, {"frame": 9}, {"frame": 6}, {"frame": 12}], [(0, 5), (5, 10), (6, 7), (10, 13)]),
        ([{"point_number": 2.0}, {"index": numpy.float32(0)}], [(2, 3), (0, 1)]),
        ([{"frame": 1.0}, {"frame": numpy.float64(2)}], [(0, 2), (2, 3)]),
        ([{"indices": {"start": numpy.int64(3), "stop": 9.0}}, {"point_number": None, "frame": 0}], [(3, 9), (0, 1)]),
    ],
)
def test_a_datum_says_which_frames_of_its_resource_it_stands_for(
    arguments: list[dict], expected: list[tuple[int, int]]
) -> None:
    modern = normalize(external_run([("res", kwargs) for kwargs in arguments]))
    assert rows(modern) == expected
    seq_nums = [doc["seq_nums"] for doc in of("stream_datum", modern)]
    assert seq_nums == [{"start": n, "stop": n + 1} for n in range(1, len(expected) + 1)]


@pytest.mark.parametrize("name", ["point_number", "index", "frame"])
@pytest.mark.parametrize("value", ["2", 1.5, float("nan"), float("inf"), True, -1, [2]], ids=repr)
def test_a_position_that_is_no_number_of_a_frame_is_not_replaced_by_a_count(name: str, value: Any) -> None:
    normalizer = RunNormalizer()
    arguments = [{name: 0}, {name: value}, {name: value}, {name: 3}]
    modern = normalize(external_run([("res", kwargs) for kwargs in arguments]), normalizer)
    assert [doc["seq_nums"]["start"] for doc in of("stream_datum", modern)] == [1, 4]
    assert modern[-1] == STOP
    assert normalizer.notes == [
        f"Stream 'primary': external data of 'img' is incomplete; '{name}' of its datums is not the number of a frame."
    ]


@pytest.mark.parametrize("indices", [[0, 1], {}, {"start": 0}, {"start": "0", "stop": "1"}, {"start": 1, "stop": 0}])
def test_indices_that_are_none_cost_the_frames_of_their_datum_only(indices: Any) -> None:
    normalizer = RunNormalizer()
    modern = normalize(external_run([("res", {"indices": indices}), ("res", {"point_number": 2})]), normalizer)
    assert rows(modern) == [(2, 3)]
    [note] = normalizer.notes
    assert note.endswith("external data of 'img' is incomplete; 'indices' of its datums are not a start and a stop.")


def test_numbers_of_frames_may_be_a_numpy_column_of_a_page() -> None:
    page = {"datum_id": ["a", "b"], "resource": "res", "datum_kwargs": {"point_number": numpy.array([5.0, 2.0])}}
    documents: Documents = [START, descriptor({"img": IMAGE}), resource(), ("datum_page", page)]
    documents += [event(1, {"img": "a"}), event(2, {"img": "b"}), STOP]
    assert rows(normalize(documents)) == [(5, 6), (2, 3)]


@pytest.mark.parametrize("argument", [None, "frame", "point_number"])
def test_frames_are_counted_in_each_resource_over_all_streams(argument: str | None) -> None:
    documents: Documents = [descriptor({"img": IMAGE}, uid=uid, name=uid) for uid in ("dark", "light")]
    order = [("one", "dark", 0), ("one", "light", 1), ("one", "light", 2), ("two", "dark", 0), ("two", "light", 1)]
    documents += [resource("one"), resource("two")]
    for n, (uid, stream, number) in enumerate(order):
        kwargs = {} if argument is None else {argument: number}
        documents += [datum(f"datum-{n}", uid, **kwargs), event(n, {"img": f"datum-{n}"}, uid=stream)]
    assert rows(normalize([*documents, STOP])) == [(number, number + 1) for _, _, number in order]


def test_datums_are_numbered_by_their_ids_where_one_is_lost_and_nothing_else_says_which_they_are() -> None:
    documents: Documents = [descriptor({"img": IMAGE}), resource(), *(datum(f"res/{n}") for n in (4, 6))]
    documents += [event(n, {"img": f"res/{n + 3}"}) for n in (1, 2, 3)]
    normalizer = RunNormalizer()
    assert rows(normalize([*documents, STOP], normalizer)) == [(4, 5), (6, 7)]
    [lost, note] = normalizer.notes
    assert "never came" in lost
    assert note == (
        "Data key 'img': the numbers in the ids of its datums are taken for those of frames, though they begin with 4 "
        "and not with 0 for resource 'res'."
    )


@given(st.permutations(range(5)))
def test_frames_are_those_of_the_numbers_in_the_ids_in_whatever_order_the_datums_come(order: list[int]) -> None:
    documents: Documents = [START, descriptor({"img": IMAGE}), resource()]
    for seq_num, number in enumerate(order, 1):
        documents += [datum(f"res/{number}"), event(seq_num, {"img": f"res/{number}"})]
    normalizer = RunNormalizer()
    assert rows(normalize([*documents, STOP], normalizer)) == [(number, number + 1) for number in order]
    assert normalizer.notes == []


def test_many_resources_whose_ids_do_not_begin_with_0_are_one_note() -> None:
    documents: Documents = [START, descriptor({"img": IMAGE})]
    for number in range(100):
        ids = f"res{number}", f"res{number}/{number}"
        documents += [resource(ids[0]), datum(ids[1], ids[0]), event(number + 1, {"img": ids[1]})]
    normalizer = RunNormalizer()
    normalize([*documents, STOP], normalizer)
    [note] = normalizer.notes
    assert note.endswith("begin with 1 and not with 0 for resource 'res1' and of 98 other(s).")


COUNTED = (
    "Stream 'primary': datums of 'img' do not say which frames they are; they are taken to be those of their "
    "resource in the order in which they came."
)


@pytest.mark.parametrize(
    ("ids", "arguments", "told"),
    [
        (["res/0", "res/1"], {"image_number": 1}, "'image_number', {} by the numbers in the ids of the datums alone."),
        (["a", "b"], {"b": 1, "a": 2}, "'a', 'b', {} by the order in which the datums came alone."),
        (["a", "b"], {"point_number": 0, "channel": 1}, "'channel', {} by 'point_number' alone."),
        (["a", "b"], {"frame": 0, "channel": 1}, "'channel', {} by 'frame' alone."),
        (["res/0", "res/1"], {"path": "/a", "frame_per_point": 1, "swmr": True, "chunk_shape": [1]}, None),
        (["res/0", "res/1"], {}, None),
    ],
)
def test_arguments_of_datums_that_are_not_understood_are_noted_once(
    ids: list[str], arguments: dict[str, Any], told: str | None
) -> None:
    normalizer = RunNormalizer()
    documents: Documents = [START, descriptor({"img": IMAGE}), resource()]
    for number, datum_id in enumerate(ids, start=1):
        documents += [datum(datum_id, **arguments), event(number, {"img": datum_id})]
    normalize(documents, normalizer)
    what = "of which nothing is known; their frames are told"
    expected = [] if told is None else [f"Stream 'primary': datums of 'img' have {told.format(what)}"]
    assert [note for note in normalizer.notes if "nothing is known" in note] == expected


@pytest.mark.parametrize(("ids", "arrived"), [(["a", "b"], ["a", "b"]), (["a", "b"], ["b"]), (["x/1", "y/1"],) * 2])
def test_frames_that_are_counted_are_noted(ids: list[str], arrived: list[str]) -> None:
    documents: Documents = [START, descriptor({"img": IMAGE}), resource(), *map(datum, arrived)]
    documents += [event(seq_num, {"img": datum_id}) for seq_num, datum_id in enumerate(ids, 1)]
    normalizer = RunNormalizer()
    assert rows(normalize([*documents, STOP], normalizer)) == [(n, n + 1) for n in range(len(arrived))]
    assert COUNTED in normalizer.notes


def test_the_only_datum_of_a_resource_needs_no_note() -> None:
    normalizer = RunNormalizer()
    normalize(external_run([("one", {}), ("two", {})]), normalizer)
    assert normalizer.notes == []


def test_datums_of_which_only_some_have_numbers_in_their_ids_are_left_out() -> None:
    documents: Documents = [START, descriptor({"img": IMAGE}), resource()]
    for seq_num, datum_id in enumerate(["res/0", "res/dark", "res/1"], 1):
        documents += [datum(datum_id), event(seq_num, {"img": datum_id})]
    normalizer = RunNormalizer()
    assert rows(normalize([*documents, STOP], normalizer)) == [(0, 1)]
    [note] = normalizer.notes
    assert note.endswith("is incomplete; its datums do not say which frames they are, and only some ids have numbers.")


@given(st.integers(1, 4), st.integers(1, 3))
def test_frames_of_resources_that_are_all_alike_leave_no_gap(per_resource: int, frames: int) -> None:
    arguments = [(f"r{r}", {"frame": (n + 1) * frames - 1}) for r in range(3) for n in range(per_resource)]
    expected = [(n * frames, (n + 1) * frames) for n in range(per_resource)] * 3
    assert rows(normalize(external_run(arguments))) == expected


def test_a_late_datum_is_served_as_soon_as_it_comes() -> None:
    normalizer = RunNormalizer()
    normalize([descriptor({"img": IMAGE}), resource(), event(1, {"img": "d"})], normalizer)
    assert [name for name, _ in normalizer(*datum("d"))] == ["stream_resource", "stream_datum"]


def test_a_late_resource_is_waited_for_too() -> None:
    normalizer = RunNormalizer()
    early = normalize([descriptor({"img": IMAGE}), datum("d"), event(1, {"img": "d"})], normalizer)
    assert [name for name, _ in early] == ["descriptor", "event"]
    assert [name for name, _ in normalizer(*resource())] == ["stream_resource", "stream_datum"]


@given(st.permutations(range(5)))
def test_late_datums_are_served_in_the_order_of_their_events(order: list[int]) -> None:
    documents: Documents = [descriptor({"img": IMAGE}), resource()]
    documents += [event(n + 1, {"img": f"d{n}"}) for n in range(5)]
    documents += [datum(f"d{n}", frame=n) for n in order]
    modern = normalize([*documents, STOP])
    assert rows(modern) == [(n, n + 1) for n in range(5)]
    assert [doc["uid"] for doc in of("stream_datum", modern)] == [f"d{n}" for n in range(5)]


def test_datums_that_were_used_are_kept_for_others_and_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_normalizer, "MAX_USED_DATUMS", 3)
    normalizer = RunNormalizer()
    documents: Documents = [START, descriptor({"img": IMAGE}), resource(), datum("res/0")]
    documents.append(datum("res/dark", point_number=0))
    used = ["res/0", "res/dark"]
    for number in range(1, 50):
        documents.append(datum(f"res/{number}"))
        used += [f"res/{number}", "res/dark"]
    documents += [event(seq_num, {"img": datum_id}) for seq_num, datum_id in enumerate(used, 1)]
    emitted = normalize(documents, normalizer)
    assert [doc["uid"] for doc in of("stream_datum", emitted)] == used
    assert len(normalizer._used_datums) == 3
    assert not normalizer._unused_datums
    assert normalizer.notes == []
    normalize([event(len(used) + 1, {"img": "res/0"}), STOP], normalizer)
    (note,) = normalizer.notes
    assert note.endswith("of 1 event(s) never came, or more than 3 datums before (seq_num 101).")


def test_a_datum_that_never_comes_costs_only_its_reference() -> None:
    documents: Documents = [descriptor({"img": IMAGE}), resource()]
    documents += [datum("d1", point_number=0), datum("d3", point_number=2)]
    documents += [event(n, {"img": f"d{n}"}) for n in (1, 2, 3)]
    normalizer = RunNormalizer()
    modern = normalize([*documents, STOP], normalizer)
    assert rows(modern) == [(0, 1), (2, 3)]
    assert modern[-1] == STOP
    [note] = normalizer.notes
    assert "'img'" in note
    assert "seq_num 2" in note


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({"point_number": 4}, [(4, 5)]), ({"indices": {"start": 2, "stop": 4}}, [(2, 4)]), ({"frame": 4}, []), ({}, [])],
)
def test_frames_of_a_resource_that_began_in_another_run_have_to_be_named(
    arguments: dict[str, Any], expected: list[tuple[int, int]]
) -> None:
    _, begun = resource()
    documents: Documents = [START, descriptor({"img": IMAGE}), ("resource", {**begun, "run_start": "another"})]
    normalizer = RunNormalizer()
    made = normalize([*documents, datum("res/4", **arguments), event(1, {"img": "res/4"}), STOP], normalizer)
    assert rows(made) == expected
    assert [event["seq_num"] for event in of("event", made)] == [1]
    assert any("'res' began in another run" in note for note in normalizer.notes) is not bool(expected)


def test_many_lost_datums_are_one_short_note() -> None:
    normalizer = RunNormalizer()
    documents: Documents = [descriptor({"img": IMAGE}), *(event(n, {"img": f"d{n}"}) for n in range(1, 1001)), STOP]
    normalize(documents, normalizer)
    [note] = normalizer.notes
    assert "1000" in note
    assert len(note) < 250


@pytest.mark.parametrize(
    ("spec", "mimetype", "dataset"),
    [
        ("AD_HDF5", "application/x-hdf5", "/entry/data/data"),
        ("hdf5", "application/x-hdf5", "/entry/data/data"),
        ("xsp3", "application/x-hdf5", "/entry/instrument/detector/data"),
        ("PIL100k_HDF5", "application/x-hdf5", ""),
        ("AD_TIFF", "multipart/related;type=image/tiff", None),
        ("npy_seq", "multipart/related;type=application/x-npy", None),
        ("never heard of", "application/octet-stream", None),
    ],
)
def test_the_spec_of_a_resource_says_its_mimetype(spec: str, mimetype: str, dataset: str | None) -> None:
    documents: Documents = [descriptor({"img": IMAGE}), resource(spec=spec), datum("d"), event(1, {"img": "d"})]
    [modern] = of("stream_resource", normalize(documents))
    assert modern["mimetype"] == mimetype
    assert modern["parameters"]["spec"] == spec.upper()
    assert modern["parameters"].get("dataset") == dataset


def test_users_add_specs_of_their_own() -> None:
    doc = {"uid": "s", "data_key": "k", "spec": "MINE", "root": "", "resource_path": "/x", "resource_kwargs": {}}
    assert one("stream_resource", doc, spec_to_mimetype={"mine": "image/mine"})["mimetype"] == "image/mine"


def test_an_old_stream_resource_becomes_a_modern_one() -> None:
    kwargs = {"path": "/entry/x", "dataset": "/ignored", "frame_per_point": 5, "swmr": True}
    old = {"uid": "s", "data_key": "k", "spec": "AD_HDF5_SWMR_STREAM", "root": "/r", "resource_path": "f.h5"}
    modern = one("stream_resource", {**old, "resource_kwargs": kwargs, "run_start": "run"})
    parameters = {"spec": "AD_HDF5_SWMR_STREAM", "dataset": "/entry/x", "multiplier": 5, "swmr": True}
    expected = {"uid": "s", "data_key": "k", "mimetype": "application/x-hdf5", "uri": "file://localhost/r/f.h5"}
    assert modern == {**expected, "parameters": parameters}


def test_a_modern_stream_resource_keeps_its_uri_and_loses_other_fields() -> None:
    modern = {"uid": "s", "data_key": "k", "mimetype": "x/y", "uri": "file://h/a", "parameters": {"a": 1}}
    assert one("stream_resource", {**modern, "run_start": "run"}) == modern


@pytest.mark.parametrize(
    ("root", "path", "uri"),
    [
        ("/data", "a/b.h5", "file://localhost/data/a/b.h5"),
        ("/data/", "/a/b.h5", "file://localhost/data/a/b.h5"),
        ("", "/a//b/./c.h5", "file://localhost/a/b/c.h5"),
        (None, "/dir/", "file://localhost/dir/"),
        ("/data", "", "file://localhost/data/"),
        ("", "rel/x", "file://localhost/rel/x"),
        ("", "/a b/50%.h5", "file://localhost/a b/50%.h5"),
        ("", "file:///a/b/", "file://localhost/a/b/"),
        ("", "s3://bucket/key", "s3://bucket/key"),
        ("C:\\data", "x.h5", "file://localhost/C:/data/x.h5"),
        ("/data/", "/data/a/b.h5", "file://localhost/data/a/b.h5"),
        ("/data", "/data/a/", "file://localhost/data/a/"),
        ("/data", "/database/b.h5", "file://localhost/data/database/b.h5"),
        ("data", "data/b.h5", "file://localhost/data/data/b.h5"),
        ("C:\\data", "C:\\data\\x.h5", "file://localhost/C:/data/x.h5"),
    ],
)
def test_root_and_path_become_a_uri(root: str | None, path: str, uri: str) -> None:
    assert file_uri(root, path) == uri


def test_pages_give_the_same_as_single_documents() -> None:
    singles = [event(n, {"x": n, "img": f"d{n}"}, filled={"img": False}) for n in (1, 2)]
    head: Documents = [descriptor({"x": NUMBER, "img": IMAGE}), resource()]
    stamps = {"x": [5.0, 5.0], "img": [5.0, 5.0]}
    page = {"uid": ["event-1", "event-2"], "descriptor": "desc", "seq_num": [1, 2], "time": [2.0, 2.0]}
    columns = {"x": [1, 2], "img": ["d1", "d2"]}
    event_page = {**page, "data": columns, "timestamps": stamps, "filled": {"img": [False, False]}}
    datum_page = {"datum_id": ["d1", "d2"], "resource": "res", "datum_kwargs": {"point_number": [0, 1]}}
    bulk_datum = {"datum_ids": ["d1", "d2"], "resource": "res"}
    arguments = [{"point_number": 0}, {"point_number": 1}]
    expected = normalize([*head, *(datum(f"d{n + 1}", point_number=n) for n in (0, 1)), *singles])
    assert normalize([*head, ("datum_page", datum_page), ("event_page", event_page)]) == expected
    bulk_events = {"desc": [doc for _, doc in singles]}
    documents: Documents = [("bulk_datum", {**bulk_datum, "datum_kwarg_list": arguments}), ("bulk_events", bulk_events)]
    assert normalize([*head, *documents]) == expected
    assert len(of("stream_datum", expected)) == 2


def test_a_page_with_columns_of_different_length_is_refused() -> None:
    page = {"uid": ["a"], "descriptor": "desc", "seq_num": [1], "time": [2.0], "data": {"x": []}, "timestamps": {}}
    with pytest.raises(DocumentError, match=r"event_page.*'x'"):
        normalize([descriptor({"x": NUMBER}), ("event_page", page)])


def test_a_patch_gets_a_copy_that_it_may_change() -> None:
    def patch(doc: dict[str, Any]) -> dict[str, Any]:
        doc["data"]["x"] *= 10
        return doc

    original = event(1, {"x": 4})
    modern = normalize([descriptor({"x": NUMBER}), original], RunNormalizer(patches={"event": patch}))
    assert of("event", modern)[0]["data"] == {"x": 40}
    assert original[1]["data"] == {"x": 4}


def test_a_datum_patch_sees_the_spec_of_the_resource() -> None:
    def patch(doc: dict[str, Any]) -> dict[str, Any]:
        seen.append(doc["datum_kwargs"]["_resource_spec"])
        doc["datum_kwargs"]["point_number"] = 8
        return doc

    seen: list[str] = []
    documents: Documents = [descriptor({"img": IMAGE}), resource(), datum("d"), event(1, {"img": "d"})]
    assert rows(normalize(documents, RunNormalizer(patches={"datum": patch}))) == [(8, 9)]
    assert seen == ["AD_TIFF"]


def test_page_patches_come_before_those_of_the_events_inside() -> None:
    order: list[str] = []
    page = {"uid": ["a"], "descriptor": "desc", "seq_num": [1], "time": [2.0], "data": {"x": [1]}, "timestamps": {}}
    patches = {name: lambda doc, name=name: order.append(name) or doc for name in ("event", "event_page")}
    normalize([descriptor({"x": NUMBER}), ("event_page", page)], RunNormalizer(patches=patches))
    assert order == ["event_page", "event"]


def test_a_patch_that_returns_nothing_is_named() -> None:
    with pytest.raises(DocumentError, match="patch for 'start'"):
        RunNormalizer(patches={"start": lambda doc: None})(*START)


def test_subclasses_change_what_comes_in_and_what_goes_out() -> None:
    class Loud(RunNormalizer):
        def start(self, doc: Mapping[str, Any]) -> None:
            super().start({**doc, "sample": "gold"})

        def emit(self, name: Any, doc: dict[str, Any]) -> None:
            super().emit(name, {**doc, "seen": True})

    assert Loud()(*START) == [("start", {"uid": "run", "time": 0.0, "sample": "gold", "seen": True})]


@pytest.mark.parametrize(
    ("name", "field"),
    [
        *(("start", "time"), ("descriptor", "data_keys"), ("event", "timestamps")),
        *(("resource", "resource_path"), ("datum", "resource"), ("stop", "exit_status")),
    ],
)
def test_a_missing_field_is_named_with_its_document(name: str, field: str) -> None:
    complete = dict([START, STOP, descriptor({}), event(1, {}), resource(), datum("d")])[name]
    broken = {key: value for key, value in complete.items() if key != field}
    uid = complete.get("uid", complete.get("datum_id"))
    with pytest.raises(DocumentError, match=f"{name} document '{uid}'.*'{field}'.*patch"):
        RunNormalizer()(name, broken)


def test_an_event_without_its_descriptor_is_refused() -> None:
    with pytest.raises(DocumentError, match=r"event-1.*'desc'"):
        RunNormalizer()(*event(1, {}))


def test_an_unknown_kind_of_document_is_refused() -> None:
    with pytest.raises(DocumentError, match="'emit'"):
        RunNormalizer()("emit", {})


def test_a_stream_resource_follows_its_reserved_data_key():
    normalizer = RunNormalizer()
    resource = {
        "uid": "s",
        "data_key": "time",
        "mimetype": "application/x-hdf5",
        "uri": "file://localhost/a.h5",
        "parameters": {"dataset": "/d"},
    }
    ((name, modern),) = normalizer("stream_resource", resource)
    assert (name, modern["data_key"]) == ("stream_resource", "time_")


@pytest.mark.parametrize("path", ["2026/11/30", "2026/11/30/"])
def test_the_directory_of_an_area_detectors_files_needs_no_slash_at_its_end(path: str) -> None:
    emitted: list[tuple[str, Any]] = []
    normalizer = RunNormalizer()
    run = event_model.compose_run()
    image = {"source": "", "dtype": "array", "shape": [4, 6], "external": "FILESTORE:"}
    stream = run.compose_descriptor(name="primary", data_keys={"img": image})
    kwargs = {"template": "%s%s_%6.6d.tiff", "filename": "im", "frame_per_point": 1}
    file = run.compose_resource(spec="AD_TIFF", root="/data", resource_path=path, resource_kwargs=kwargs)
    datum = file.compose_datum(datum_kwargs={"point_number": 0})
    event = stream.compose_event(data={"img": datum["datum_id"]}, timestamps={"img": 1}, filled={"img": False})
    for name, document in [
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        ("resource", file.resource_doc),
        ("datum", datum),
        ("event", event),
    ]:
        emitted += normalizer(name, document)
    (uri,) = [document["uri"] for name, document in emitted if name == "stream_resource"]
    assert uri == "file://localhost/data/2026/11/30/"
