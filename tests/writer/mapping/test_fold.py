"""The fold as a whole: whatever a run's documents are, and however they come in batches, they have one effect."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
from event_model import compose_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiled_model import RUN, Documents, batch_sizes, effect, fold, fold_once, frozen

from tiledbroker import Encoder, Record
from tiledwriter.mapping._fold import Fold
from tiledwriter.mapping._operations import (
    CloseStream,
    UpdateMetadata,
    WriteArray,
)
from tiledwriter.mapping._run_writer import MAX_PENDING_ARRAY_BYTES_PER_STREAM
from tiledwriter.mapping._writing_options import WritingOptions

# Random runs

numbers = st.floats(allow_nan=True) | st.sampled_from([0.0, -0.0, 1.5, float("inf")])
integers = st.integers(-5, 5) | st.sampled_from([2**53 + 1, -(2**63), 2**63, 2**64])
words = st.sampled_from(["", "a", "ä", "1", "NaN", "\ud800"])
vectors = st.lists(numbers, max_size=4)
SCALARS: dict[str, st.SearchStrategy[Any]] = {
    "number": numbers,
    "integer": integers,
    "boolean": st.booleans(),
    "string": words,
}
anything = st.none() | numbers | integers | st.booleans() | words | vectors
grids = st.builds(
    lambda shape, start: numpy.arange(float(numpy.prod(shape))).reshape(shape) + start,
    *map(st.sampled_from, ([(5, 4), (5, 4), (5, 4), (4, 5), (20,), (0,)], [0.0, 1.0, 0.5])),
)
KEYS = ["x", "X", "y", "ts_x", "internal", "internal_1", "time", "seq_num", "a b", "a/b", "x_", "ä", ""]


FILES: list[Callable[[str], dict[str, Any]]] = [
    lambda file: {
        "mimetype": "application/x-hdf5",
        "uri": f"file://localhost/data/{file}.h5",
        "parameters": {"dataset": "/data", "chunk_shape": [1, 5, 4]},
    },
    lambda file: {
        "mimetype": "multipart/related;type=image/tiff",
        "uri": "file://localhost/data/",
        "parameters": {"template": f"{file.replace('{', '')}-%d.tiff"},
    },
]


@dataclass
class Source:
    """A data key: what its descriptor says, and what comes for it."""

    key: str
    described: dict[str, Any]
    values: st.SearchStrategy[Any]
    kind: str = "internal"  # or "datum", "stream"
    count: int = 0
    named: list[tuple[int, str, int]] = field(default_factory=list)  # sequence number, file, frame


@st.composite
def sources(draw: st.DrawFn, key: str) -> Source:
    kinds = ["number", "integer", "boolean", "string", "vector", "grid", "ragged", "datum"]
    kind = draw(st.sampled_from([*kinds, "stream"]))
    described: dict[str, Any] = {"source": "test", "shape": []}
    declared = draw(st.booleans())
    if kind in SCALARS:
        described["dtype"] = kind
        dtype = {"number": "<f8", "integer": "<i4", "boolean": "|b1", "string": "<U4"}[kind]
        described |= {"dtype_numpy": dtype} if declared else {}
        odd = draw(st.sampled_from([st.none(), st.nothing(), anything]))
        return Source(key, described, SCALARS[kind] | odd)
    described |= {"dtype": "array", "shape": [5, 4]} | ({"dtype_numpy": "<f8"} if declared else {})
    if kind == "vector":
        made = st.lists(numbers, min_size=3, max_size=3)
        return Source(key, {**described, "shape": [3]}, made | made.map(numpy.array) | st.lists(integers, max_size=4))
    if kind == "ragged":
        return Source(key, {**described, "shape": [None]}, vectors | vectors.map(numpy.array) | st.none())
    if kind == "grid":
        return Source(key, described, grids | grids.map(lambda grid: grid.tolist()) | st.none())
    return Source(key, {**described, "external": "FILESTORE:" if kind == "datum" else "STREAM:"}, st.nothing(), kind)


class Recording:
    """A run that grows document by document."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.documents: Documents = [("start", {"uid": RUN, "time": 0.0, "odd": draw(anything)})]
        self.events: dict[str, Documents] = {}
        self._draw = draw
        self._sources: dict[str, list[Source]] = {}
        self._descriptors: dict[str, str] = {}
        self._seq_nums: dict[str, int] = {}
        self._late: Documents = []

    def describe(self, stream: str) -> None:
        """A stream's descriptor; a further one says that its configuration has changed, or has another data key."""
        if stream not in self._sources:
            keys = self._draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True))
            self._sources[stream] = [self._draw(sources(key)) for key in keys]
            self.events[stream] = []
            self._seq_nums[stream] = 0
        elif self._draw(st.booleans()):
            used = {source.key for source in self._sources[stream]}
            self._sources[stream].append(
                self._draw(sources(self._draw(st.sampled_from([key for key in KEYS if key not in used]))))
            )
        uid = f"{stream}-{len(self.documents)}"
        self._descriptors[stream] = uid
        self._add(
            "descriptor",
            uid=uid,
            run_start=RUN,
            name=stream,
            data_keys={source.key: dict(source.described) for source in self._sources[stream]},
            configuration={"device": {"data": {"gain": self._draw(anything)}, "timestamps": {"gain": 0.0}}},
            object_keys={"device": [source.key for source in self._sources[stream]]},
            hints={},
        )

    def measure(self, stream: str) -> None:
        """One event, several in a page, or one that is repeated after a rewind."""
        kind = self._draw(st.sampled_from(["event", "page", "page", "rewind"]))
        if kind == "rewind":
            self._seq_nums[stream] = max(0, self._seq_nums[stream] - self._draw(st.integers(1, 3)))
        events = [self._event(stream) for _ in range(self._draw(st.integers(1, 3)) if kind == "page" else 1)]
        if kind == "page" and len({tuple(event["data"]) for event in events}) == 1:
            self.documents.append(("event_page", _page(events)))
        else:
            self.documents += [("event", event) for event in events]
        self._release()

    def stream_data(self, stream: str) -> None:
        """Files that a detector writes by itself: frames in order, dropped, repeated, or in another order."""
        for source in self._sources[stream]:
            if source.kind != "stream":
                continue
            file = f"{source.key}-{self._draw(st.sampled_from([0, 0, 0, 1]))}"
            resource = f"{stream}-{file}"
            if not any(document.get("uid") == resource for _, document in self.documents):
                announcement: dict[str, Any] = {
                    "uid": resource,
                    "run_start": RUN,
                    "data_key": source.key,
                    **self._draw(st.sampled_from(FILES))(file),
                }
                if self._draw(st.integers(0, 5)):
                    self._add("stream_resource", **announcement)
                else:
                    self._late.append(("stream_resource", announcement))
            count = self._draw(st.integers(1, 3))
            start = max(0, source.count + self._draw(st.sampled_from([0, 0, 0, 1, -1, -3])))
            source.count = start + count
            first = len(source.named) + 1 + self._draw(st.sampled_from([0, 0, 0, 0, 2, -1]))
            descriptor = self._descriptors[stream]
            ids = {"uid": f"{resource}/{source.count}", "stream_resource": resource, "descriptor": descriptor}
            self._add(
                "stream_datum",
                **ids,
                indices={"start": start, "stop": start + count},
                seq_nums={"start": first, "stop": first + count},
            )
            source.named += [(first + n, file, start + n) for n in range(count)]

    def _event(self, stream: str) -> dict[str, Any]:
        self._seq_nums[stream] += 1
        data = {source.key: self._value(stream, source) for source in self._sources[stream] if source.kind != "stream"}
        if data and self._draw(st.integers(0, 9)) == 0:
            data.popitem()
        event = {
            "uid": f"event-{len(self.documents)}-{self._seq_nums[stream]}",
            "descriptor": self._descriptors[stream],
            "seq_num": self._seq_nums[stream],
            "time": float(sum(map(len, self.events.values()))),
            "data": data,
            "timestamps": dict.fromkeys(data, 1.0),
            "filled": {
                source.key: False for source in self._sources[stream] if source.key in data and source.kind == "datum"
            },
        }
        self.events[stream].append(("event", event))
        return event

    def _value(self, stream: str, source: Source) -> Any:
        if source.kind == "internal":
            return self._draw(source.values)
        resource = f"{stream}-{source.key}"
        datum = f"{resource}/{source.count}"
        documents: Documents = []
        if source.count == 0:
            place = {"root": "/", "resource_path": "file.h5", "resource_kwargs": {}}
            documents.append(("resource", {"uid": resource, "spec": "AD_HDF5", **place}))
        documents.append(
            ("datum", {"datum_id": datum, "resource": resource, "datum_kwargs": {"point_number": source.count}})
        )
        source.count += 1
        if self._draw(st.booleans()):
            self._late += documents
        else:
            self.documents += documents
        return datum

    def _release(self) -> None:
        """Some of the datums that are late come, perhaps the last first."""
        for late in list(self._late):
            if self._draw(st.booleans()):
                self._late.remove(late)
                self.documents.append(late)

    def _add(self, kind: str, /, **document: Any) -> None:
        self.documents.append((kind, {**document, "time": float(len(self.documents))}))


def _page(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    page: dict[str, Any] = {"descriptor": events[0]["descriptor"]}
    page |= {name: [event[name] for event in events] for name in ("uid", "seq_num", "time")}
    for name in ("data", "timestamps", "filled"):
        page[name] = {key: [event[name][key] for event in events] for key in events[0][name]}
    return page


@st.composite
def recordings(draw: st.DrawFn) -> Recording:
    recording = Recording(draw)
    streams = draw(st.lists(st.sampled_from(["primary", "Primary", "baseline"]), min_size=1, max_size=3, unique=True))
    for stream in streams:
        recording.describe(stream)
    for stream, step in draw(
        st.lists(
            st.tuples(st.sampled_from(streams), st.sampled_from(["event", "event", "event", "files", "describe"])),
            min_size=2,
            max_size=12,
        )
    ):
        {"event": recording.measure, "files": recording.stream_data, "describe": recording.describe}[step](stream)
    if draw(st.booleans()):
        recording._add("stop", uid="stop", run_start=RUN, exit_status="success", reason="", num_events={})
    return recording


every_run = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


# Properties


@every_run
@given(recordings(), batch_sizes, batch_sizes)
def test_batches_of_any_size_have_the_same_effect(recording, batches, others):
    operations, types = fold(recording.documents, batches)
    other_operations, other_types = fold(recording.documents, others)
    assert types == other_types
    assert effect(operations).state == effect(other_operations).state


@every_run
@given(recordings(), st.data(), batch_sizes, batch_sizes)
def test_a_replay_after_any_prefix_changes_nothing(recording, data, batches, others):
    operations, types = fold(recording.documents)
    length = data.draw(st.integers(0, len(recording.documents)))
    started, _ = fold_once(recording.documents[:length], batches, types)
    started = [operation for operation in started if not isinstance(operation, CloseStream)]
    resumed, _ = fold_once(recording.documents, others, types)
    once = effect(operations).state
    assert effect(operations, operations).state == once
    assert effect(started, started, resumed).state == once


@every_run
@given(recordings(), batch_sizes)
def test_documents_are_not_changed(recording, batches):
    before = frozen(recording.documents)
    fold(recording.documents, batches)
    assert frozen(recording.documents) == before


@every_run
@given(recordings(), batch_sizes)
def test_every_event_has_its_row_in_every_node_of_its_stream(recording, batches):
    tiled = effect(fold(recording.documents, batches)[0])
    for stream, events in recording.events.items():
        inside = [
            node
            for path, node in tiled.nodes.items()
            if path.startswith(f"{RUN}/{stream}/") and node.kind in ("table", "array")
        ]
        assert bool(inside) is bool(events)
        assert {len(node.rows) for node in inside} <= {len(events)}
        if events:
            table = tiled.nodes[f"{RUN}/{stream}/internal"]
            assert [row[0] for row in table.rows] == [frozen(event["seq_num"]) for _, event in events]
    assert all(node.closed for node in tiled.nodes.values())


@every_run
@given(recordings(), batch_sizes)
def test_no_number_is_lost_without_a_note(recording, batches):
    recording._add("stop", uid="stop", run_start=RUN, exit_status="success", reason="", num_events={})
    tiled = effect(fold(recording.documents, batches)[0])
    notes = tiled.nodes[RUN].metadata.get("notes", [])
    for stream, events in recording.events.items():
        for table in tiled.tables(f"{RUN}/{stream}"):
            for i, column in enumerate(table.layout[0]):
                sent = [event["data"].get(column.name) for _, event in events]
                if column.type != "float64" or not any(isinstance(value, float | int) for value in sent):
                    continue
                kept = [row[i] for row in table.rows]
                same = [a == frozen(float(b)) for a, b in zip(kept, sent, strict=True) if isinstance(b, float | int)]
                assert all(same) or any(repr(column.name) in note for note in notes)


@every_run
@given(recordings(), batch_sizes)
def test_a_node_has_the_frames_that_its_documents_name_in_the_order_of_the_events_or_a_note(recording, batches):
    recording._add("stop", uid="stop", run_start=RUN, exit_status="success", reason="", num_events={})
    tiled = effect(fold(recording.documents, batches)[0])
    notes = tiled.nodes[RUN].metadata.get("notes", [])
    for stream, described in recording._sources.items():
        for source in described:
            if source.kind != "stream" or not source.named:
                continue
            if any(repr(source.key) in note or f"{stream}-{source.key}-" in note for note in notes):
                continue
            node = tiled.nodes[f"{RUN}/{stream}/{source.key}"]
            assert frames_of(node.source) == [(file, frame) for _, file, frame in in_order(source.named)]


def frames_of(source: dict[str, Any]) -> list[tuple[str, int]]:
    """The frames that a data source gives: of one HDF5 file, or a file each."""
    names = [asset["data_uri"].rpartition("/")[2] for asset in source["assets"]]
    count = source["structure"]["shape"][0]
    if source["mimetype"] != "application/x-hdf5":
        assert len(names) == count
        return [(file, int(number)) for file, _, number in (n.removesuffix(".tiff").rpartition("-") for n in names)]
    (name,) = names
    selected = source["parameters"].get("slice", f"0:{count}")
    rows = list(range(*map(int, selected.split(":")))) if isinstance(selected, str) else selected
    assert len(rows) == count
    return [(name.removesuffix(".h5"), row) for row in rows]


def in_order(named: Sequence[tuple[int, str, int]]) -> list[tuple[int, str, int]]:
    """Frames in the order of their events, unless events repeat: then as they came."""
    numbers = [number for number, _, _ in named]
    return sorted(named) if len(set(numbers)) == len(numbers) else list(named)


def test_a_batch_ends_before_its_arrays_take_much_memory_though_no_event_has_one() -> None:
    run = compose_run()
    data_keys = {"image": {"source": "s", "dtype": "array", "dtype_numpy": "<f8", "shape": [1024, 1024]}}
    stream = run.compose_descriptor(name="primary", data_keys=data_keys)
    emitted = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for number in range(30):
        event = stream.compose_event(data={"image": [[1.0]]}, timestamps={"image": 0.0})
        emitted.append(("event", {**event, "data": {"image": [[1.0]]} if number == 5 else {}}))
    encoder = Encoder()
    bodies = [(name, encoder.encode(document)) for name, document in emitted]
    records = [Record(i, name, 0.0, zlib.crc32(body), body) for i, (name, body) in enumerate(bodies)]
    fold = Fold(run.start_doc["uid"], WritingOptions(), 16)
    written = []
    while fold.cursor < len(records):
        batch = [operation for operation in fold.feed(records[fold.cursor :]) if isinstance(operation, WriteArray)]
        assert fold.error is None
        assert sum(operation.values.nbytes for operation in batch) <= MAX_PENDING_ARRAY_BYTES_PER_STREAM + 2**23
        written += [(operation.first, operation.stop) for operation in batch]
    assert written == [(0, 9), (9, 18), (18, 27), (27, 30)]


def test_an_interrupted_run_has_the_notes_of_all_who_took_some() -> None:
    run = compose_run(metadata={"odd": float("nan")})
    key = {"source": "s", "dtype": "number", "shape": []}
    stream = run.compose_descriptor(name="primary", data_keys={"time": key, "x": key})
    events = [
        ("event", stream.compose_event(data={"time": 1.0, "x": x}, timestamps={"time": 0.0, "x": 0.0}, validate=False))
        for x in (0.5, "broken")
    ]
    encoder = Encoder()
    emitted = [("start", run.start_doc), ("descriptor", stream.descriptor_doc), *events]
    bodies = [(name, encoder.encode(document)) for name, document in emitted]
    records = [Record(i, name, 0.0, zlib.crc32(body), body) for i, (name, body) in enumerate(bodies)]
    fold = Fold(run.start_doc["uid"], WritingOptions(), 16)
    fold.feed(records)
    (notes,) = [operation.metadata["notes"] for operation in fold.abandon() if isinstance(operation, UpdateMetadata)]
    assert fold.error is None
    for part in ("start.odd: JSON has no NaN", "data key 'time' is reserved", "1 values of 'x'"):
        assert any(part in note for note in notes), part
