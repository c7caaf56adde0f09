"""Events that look alike are decoded together, and come to the same rows as one by one."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiled_model import RUN, ColumnTypes, effect

from tiledbroker import Encoder, Record, decode
from tiledwriter import RunNormalizer
from tiledwriter.mapping._columnar import MIN_BATCH_DOCUMENTS, ColumnarDecoder
from tiledwriter.mapping._fold import Fold
from tiledwriter.mapping._operations import AppendRows, Audit
from tiledwriter.mapping._plugins import Plugins
from tiledwriter.mapping._writing_options import WritingOptions

# Values whose bytes look alike, by kind
ALIKE: dict[str, st.SearchStrategy[Any]] = {
    "float": st.floats(),
    "small": st.integers(0, 127),
    "small negative": st.integers(-32, -1),
    "one byte": st.integers(128, 255),
    "two bytes": st.integers(2**8, 2**16 - 1),
    "four bytes": st.integers(2**16, 2**32 - 1),
    "eight bytes": st.integers(2**32, 2**63 - 1),
    "negative byte": st.integers(-(2**7), -33),
    "two negative bytes": st.integers(-(2**15), -(2**7) - 1),
    "four negative bytes": st.integers(-(2**31), -(2**15) - 1),
    "eight negative bytes": st.integers(-(2**63), -(2**31) - 1),
    "boolean": st.booleans(),
    "nothing": st.none(),
    "text": st.text("abc012 \0\x7f", min_size=3, max_size=3),
    "no text": st.just(""),
    "long text": st.text("ab", min_size=40, max_size=40),
    **{
        f"NumPy's {dtype}": st.integers(0, 100).map(numpy.dtype(dtype).type)
        for dtype in ("f8", "f4", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", ">f8", ">i4")
    },
}
NOT_ALIKE: dict[str, Any] = {
    "a list": [1.0],
    "a mapping": {"a": 1},
    "an array": numpy.zeros(3),
    "text beyond ASCII": "µ",
    "bytes": b"abc",
    "a complex number": 1j,
    "more than 64 bits": 2**70,
    "a date of NumPy's": numpy.datetime64("2026-11-21"),
    "text of NumPy's": numpy.str_("abc"),
}


def event(seq_num: Any, data: dict[str, Any], **more: Any) -> dict[str, Any]:
    timestamps = dict.fromkeys(data, 0.5 + seq_num)
    ids = {"uid": f"{seq_num:036d}", "descriptor": "d"}
    return {**ids, "seq_num": seq_num, "time": 0.25 + seq_num, "data": data, "timestamps": timestamps, **more}


def encoded(events: Sequence[dict[str, Any]]) -> list[bytes]:
    return [Encoder().encode(event) for event in events]


def plain(value: Any) -> Any:
    """A value that equals itself."""
    value = value.item() if isinstance(value, numpy.generic) else value
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def listed(column: Any) -> list[Any]:
    return [plain(value) for value in (column.tolist() if isinstance(column, numpy.ndarray) else column)]


# Decoding


@pytest.mark.parametrize("kind", ALIKE)
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_columns_have_what_each_document_has(kind, data):
    values = data.draw(st.lists(ALIKE[kind], min_size=MIN_BATCH_DOCUMENTS + 1, max_size=MIN_BATCH_DOCUMENTS + 1))
    bodies = encoded([event(100 + i, {"x": value, "y": 1.5}) for i, value in enumerate(values)])
    model, *others = bodies
    alike = ColumnarDecoder().decode_batch("event", model, others)
    documents = [decode(body) for body in others]
    assert alike is not None
    assert alike.count == MIN_BATCH_DOCUMENTS
    assert alike.numbers("seq_num").tolist() == [document["seq_num"] for document in documents]
    assert alike.numbers("time").tolist() == [document["time"] for document in documents]
    for key in ("x", "y"):
        assert listed(alike.columns_of("data")[key]) == [plain(document["data"][key]) for document in documents]
        assert listed(alike.columns_of("timestamps")[key]) == [document["timestamps"][key] for document in documents]


@pytest.mark.parametrize("kind", NOT_ALIKE)
def test_other_values_are_left_to_who_decodes_one_by_one(kind):
    model, *others = encoded([event(200 + i, {"x": NOT_ALIKE[kind]}) for i in range(2 * MIN_BATCH_DOCUMENTS)])
    assert ColumnarDecoder().decode_batch("event", model, others) is None


def test_they_end_with_the_first_that_looks_different():
    events = [event(200 + i, {"x": 1.0}) for i in range(3 * MIN_BATCH_DOCUMENTS)]
    events[2 * MIN_BATCH_DOCUMENTS]["data"] = {"y": 1.0}
    model, *others = encoded(events)
    alike = ColumnarDecoder().decode_batch("event", model, others)
    assert alike is not None
    assert alike.count == 2 * MIN_BATCH_DOCUMENTS - 1


@pytest.mark.parametrize(
    ("different", "why"),
    [
        ({"seq_num": 117.0}, "no integer"),
        ({"filled": {"x": "id"}}, "filled with something"),
        ({"also": 1}, "a field that nobody knows"),
    ],
)
def test_events_of_which_more_has_to_be_seen_are_not_alike(different, why):
    model, *others = encoded([event(200 + i, {"x": 1.0}) | different for i in range(2 * MIN_BATCH_DOCUMENTS)])
    assert ColumnarDecoder().decode_batch("event", model, others) is None, why


def test_a_field_that_is_there_twice_is_left_to_who_knows_which_counts():
    again = Encoder().encode({"data": {"y": 1.0}})[1:]
    bodies = [
        bytes([body[0] + 1]) + body[1:] + again for body in encoded([event(200 + i, {"x": 1.0}) for i in range(20)])
    ]
    assert decode(bodies[0])["data"] == {"y": 1.0}
    assert ColumnarDecoder().decode_batch("event", bodies[0], bodies[1:]) is None


def test_integers_that_no_column_takes_are_left_to_others():
    model, *others = encoded([event(200 + i, {"x": 2**63 - 5 + i}) for i in range(2 * MIN_BATCH_DOCUMENTS)])
    assert ColumnarDecoder().decode_batch("event", model, others) is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_bytes_that_are_no_event_raise_nothing(data):
    body = bytearray(encoded([event(100, {"x": 1.0, "y": numpy.int32(4)}, filled={"z": False})])[0])
    for position in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
        body[position] = data.draw(st.integers(0, 255))
    size = data.draw(st.integers(1, len(body)))
    ColumnarDecoder().decode_batch("event", bytes(body[:size]), [bytes(body[:size])] * MIN_BATCH_DOCUMENTS)


# Folding


def records(events: Sequence[dict[str, Any]], data_keys: dict[str, Any]) -> list[Record]:
    return run_with([("event", event) for event in events], data_keys)


def run_with(given: Sequence[tuple[str, dict[str, Any]]], data_keys: dict[str, Any]) -> list[Record]:
    documents: list[tuple[str, dict[str, Any]]] = [
        ("start", {"uid": RUN, "time": 0.0}),
        ("descriptor", {"uid": "d", "run_start": RUN, "name": "primary", "time": 0.0, "data_keys": data_keys}),
        *given,
        ("stop", {"uid": "s", "run_start": RUN, "time": 1.0, "exit_status": "success"}),
    ]
    bodies = [(name, Encoder().encode(document)) for name, document in documents]
    return [Record(i, name, 0.0, zlib.crc32(body), body) for i, (name, body) in enumerate(bodies)]


def folded(given: list[Record], batches: Sequence[int] = (), types: ColumnTypes | None = None, **options: Any) -> Any:
    """The fold, and its operations, once all columns are wide enough."""
    types = types or {}
    fold = Fold(RUN, WritingOptions(**options), 4, column_types=types)
    operations: list[Any] = []
    left = iter(batches)
    while fold.cursor < len(given) and fold.error is None:
        operations += fold.feed(given[fold.cursor : fold.cursor + next(left, len(given))])
    if fold.too_narrow:
        return folded(given, batches, {**types, **fold.too_narrow}, **options)
    return fold, operations


@pytest.fixture
def eager(monkeypatch):
    """Two events that look alike are enough."""
    monkeypatch.setattr("tiledwriter.mapping._fold.MIN_BATCH_DOCUMENTS", 2)
    monkeypatch.setattr("tiledwriter.mapping._columnar.MIN_BATCH_DOCUMENTS", 2)
    monkeypatch.setattr("tiledwriter.mapping._fold._ROW_WISE_DOCUMENTS", 0)


@pytest.fixture
def one_by_one(monkeypatch):
    """A switch: from now on no events are taken for alike."""
    return lambda: monkeypatch.setattr(ColumnarDecoder, "decode_batch", lambda *_: None)


NUMBERS = st.floats(-10.0, 10.0) | st.sampled_from([0.0, math.nan, math.inf])
INTEGERS = st.integers(-5, 5) | st.sampled_from([200, 2**53 + 1, -(2**63), 2**63, 2**64 - 1])
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "number": NUMBERS | st.integers(-5, 5) | NUMBERS.map(numpy.float64) | NUMBERS.map(numpy.float32),
    "integer": INTEGERS | st.integers(-5, 5).map(numpy.int16) | st.sampled_from([1.0, 1.5, True]),
    "boolean": st.booleans() | st.booleans().map(numpy.bool_) | st.integers(0, 2),
    "string": st.sampled_from(["a", "b", "ab", "\0", "ä", ""]) | st.integers(0, 5) | st.floats(0.0, 3.0),
    "array": st.lists(NUMBERS, max_size=3) | st.none(),
}


@st.composite
def floods(draw: st.DrawFn) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Many events of a stream, of which some that follow each other look alike."""
    kinds = draw(st.lists(st.sampled_from([*KINDS, "number", "number"]), min_size=1, max_size=3))
    keys = {f"key_{i}": kind for i, kind in enumerate(kinds)}
    data_keys = {key: {"source": "test", "shape": [], "dtype": kind} for key, kind in keys.items()}
    events: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        data = {key: draw(KINDS[kind]) for key, kind in keys.items()}
        if draw(st.integers(0, 4)) == 0:
            data["time"] = 1.0
        for _ in range(draw(st.integers(1, 8))):
            number = len(events) + 1 - draw(st.sampled_from([0, 0, 0, 3]))
            changed = draw(st.sampled_from(list(keys)))
            data = {**data, changed: draw(KINDS[keys[changed]]) if draw(st.booleans()) else data[changed]}
            events.append(event(max(1, number), data))
            if draw(st.integers(0, 5)) == 0:
                events[-1]["time"] = draw(st.floats(allow_nan=False) | st.just(math.nan) | st.integers(0, 3))
    return events, data_keys


@pytest.mark.usefixtures("eager")
def test_whatever_the_events_are_they_have_the_effect_that_they_have_one_by_one(monkeypatch):
    decode_batch = ColumnarDecoder.decode_batch
    counts = []

    @settings(max_examples=400, deadline=None)
    @given(floods(), st.lists(st.integers(1, 9), max_size=9))
    def check(flood, batches):
        given_records = records(*flood)

        def counted(*arguments):
            alike = decode_batch(*arguments)
            counts.append(0 if alike is None else alike.count)
            return alike

        monkeypatch.setattr(ColumnarDecoder, "decode_batch", counted)
        fold, operations = folded(given_records, batches)
        monkeypatch.setattr(ColumnarDecoder, "decode_batch", lambda *_: None)
        expected_fold, expected = folded(given_records)
        assert (fold.cursor, fold.finished, fold.error) == (len(given_records), True, expected_fold.error)
        assert effect(operations).state == effect(expected).state

    check()
    assert sum(counts) > 100


def test_a_flood_is_decoded_together(monkeypatch):
    events = [event(i, {"x": float(i)}) for i in range(200, 1200)]
    decoded: list[str] = []
    document = Record.document
    monkeypatch.setattr(Record, "document", lambda record: decoded.append(record.name) or document(record))
    fold, operations = folded(records(events, {"x": {"source": "test", "dtype": "number", "shape": []}}))
    assert fold.error is None
    rows = [operation for operation in operations if isinstance(operation, AppendRows)]
    assert [value for operation in rows for value in operation.values[0].to_pylist()] == list(range(200, 1200))
    assert decoded.count("event") < 10


@pytest.mark.parametrize("place", [3, 40, 41, 79])
def test_damage_among_them_ends_the_fold_where_it_is(place):
    given_records = records([event(100 + i, {"x": float(i)}) for i in range(80)], {})
    damaged = given_records[place + 2]
    given_records[place + 2] = damaged._replace(body=damaged.body[:-1] + b"!")
    fold = Fold(RUN, WritingOptions(), 4)
    operations = fold.feed(given_records)
    assert fold.error is not None
    assert (fold.error.index, fold.cursor) == (place + 2, place + 2)
    assert sum(len(operation.values[0]) for operation in operations if isinstance(operation, AppendRows)) == place


def test_a_document_that_is_missing_among_them_is_noticed():
    given_records = records([event(100 + i, {"x": float(i)}) for i in range(80)], {})
    del given_records[50]
    fold = Fold(RUN, WritingOptions(), 4)
    fold.feed(given_records)
    assert fold.error is not None
    assert fold.cursor == 50


class CountingNormalizer(RunNormalizer):
    """The user's own, which sees each event."""

    seen = 0

    def event(self, doc):
        type(self).seen += 1
        super().event(doc)


def doubled(document):
    return {**document, "data": {"x": 2 * document["data"]["x"]}}


@pytest.mark.parametrize(
    ("plugins", "factor"),
    [
        (Plugins(normalizer=f"{__name__}:CountingNormalizer"), 1),
        (Plugins(patches={"event": f"{__name__}:doubled"}), 2),
    ],
)
def test_code_of_the_user_s_own_sees_each_event(plugins, factor):
    before = CountingNormalizer.seen
    events = [event(200 + i, {"x": float(i)}) for i in range(100)]
    _, operations = folded(records(events, {"x": {"source": "test", "dtype": "number", "shape": []}}), plugins=plugins)
    (append,) = [operation for operation in operations if isinstance(operation, AppendRows)]
    assert append.values[2].to_pylist() == [factor * float(i) for i in range(100)]
    assert CountingNormalizer.seen - before == (100 if plugins.normalizer else 0)


def test_sequence_numbers_that_run_backwards_among_them_are_seen(one_by_one):
    numbers = [*range(100, 140), *range(120, 180)]
    given_records = records([event(number, {"x": 1.0}) | {"time": 1.0 + i} for i, number in enumerate(numbers)], {})
    _, operations = folded(given_records)
    one_by_one()
    _, expected = folded(given_records)
    audits = [[operation for operation in some if isinstance(operation, Audit)] for some in (operations, expected)]
    assert audits[0] == audits[1]
    assert effect(operations).state == effect(expected).state


# Frames in files

CAMERA = {"source": "test", "dtype": "array", "shape": [1, 2, 3], "dtype_numpy": "<u2", "external": "STREAM:"}


def frames(ranges: Sequence[tuple[int, int]], mimetype: str = "application/x-hdf5", **parameters: Any) -> list[Record]:
    """A run with a stream datum for each of these ranges of frames."""
    resource = {"uid": "r", "run_start": RUN, "data_key": "camera", "mimetype": mimetype}
    resource |= {"uri": "file://localhost/data/r", "parameters": {"dataset": "/data", "chunk_shape": [1], **parameters}}
    datums = [
        {
            "uid": f"r/{i:04d}",
            "stream_resource": "r",
            "descriptor": "d",
            "indices": {"start": start, "stop": stop},
            "seq_nums": {"start": start + 1, "stop": stop + 1},
        }
        for i, (start, stop) in enumerate(ranges)
    ]
    return run_with([("stream_resource", resource), *(("stream_datum", datum) for datum in datums)], {"camera": CAMERA})


def test_a_flood_of_frames_is_decoded_together(monkeypatch):
    decoded: list[str] = []
    document = Record.document
    monkeypatch.setattr(Record, "document", lambda record: decoded.append(record.name) or document(record))
    fold, operations = folded(frames([(i, i + 1) for i in range(300, 1300)]))
    assert fold.error is None
    (external,) = [node for node in effect(operations).nodes.values() if node.kind == "external"]
    assert external.source["structure"]["shape"] == [1000, 1, 2, 3]
    assert decoded.count("stream_datum") < 10


@pytest.mark.parametrize("mimetype", ["application/x-hdf5", "multipart/related;type=image/tiff"])
@pytest.mark.parametrize(
    "oddity",
    [[], [(10, 11)], [(60, 60)], [(200, 199)], [(200, 230)], [(20, 10), (20, 21)], [(-1, 0)], [(70, 71), (70, 71)]],
)
def test_frames_have_the_effect_that_they_have_one_by_one(oddity, mimetype):
    parameters = {"template": "{:04d}.tif"} if "tiff" in mimetype else {}
    ranges = [(i, i + 1) for i in range(10, 70)]
    for place in (0, 1, 30, 60):
        given_records = frames([*ranges[:place], *oddity, *ranges[place:]], mimetype, **parameters)
        fold, operations = folded(given_records)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ColumnarDecoder, "decode_batch", lambda *_: None)
            expected_fold, expected = folded(given_records)
        assert (fold.cursor, repr(fold.error)) == (expected_fold.cursor, repr(expected_fold.error))
        assert effect(operations).state == effect(expected).state
