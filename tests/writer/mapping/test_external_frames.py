"""Whatever runs name of whatever files: Tiled's own adapters read back, for each event, the frame that was named.

Or a note says that the key is left out, from some event on. In batches of any size, and replayed after any prefix.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import event_model
import h5py
import numpy
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiled.mimetypes import DEFAULT_ADAPTERS_BY_MIMETYPE
from tiled.structures.array import ArrayStructure
from tiled.structures.data_source import Asset, DataSource, Management
from tiled_model import Documents, batch_sizes, effect, fold

from tiledwriter.mapping import RunWriter

HDF5 = "application/x-hdf5"
TIFF = "multipart/related;type=image/tiff"
NPY = "multipart/related;type=application/x-npy"
CSV = "text/csv;header=absent"
LEGACY = "AD_HDF5"

FRAME = {HDF5: (2, 3), TIFF: (2, 3), NPY: (2, 3), CSV: (1, 3), LEGACY: (2, 3)}
KEYS = {HDF5: "hdf", TIFF: "tif", NPY: "npy", CSV: "csv", LEGACY: "old"}
MOST_FRAMES = 9  # of a file
FURTHER_FILE = "is taken to be the first of further files"

every_run = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def frame(kind: str, file: int, number: int) -> numpy.ndarray[Any, Any]:
    """What is in a file: each frame is unlike all others."""
    dtype = "<f8" if kind == CSV else "<u2"
    first = 10_000 * file + 100 * number
    return (numpy.arange(first, first + numpy.prod(FRAME[kind])).reshape(FRAME[kind])).astype(dtype)


@dataclass
class Acquisition:
    """Runs that detectors write the same files for. The frames that a key has are by the order of the documents."""

    directory: Path
    runs: list[Documents] = field(default_factory=list)
    named: dict[tuple[int, str, str], list[tuple[int, int, int]]] = field(default_factory=dict)
    frames: dict[tuple[str, int], int] = field(default_factory=dict)  # in each file, by kind and number

    def name(self, run: int, stream: str, kind: str, place: tuple[int, range], seq_num: int) -> None:
        """Take note of what a document names: frames of a file, for events from this one on."""
        file, numbers = place
        self.frames[kind, file] = max(self.frames.get((kind, file), 0), numbers.stop)
        frames = [(seq_num + n, file, number) for n, number in enumerate(numbers)]
        self.named.setdefault((run, stream, kind), []).extend(frames)

    def announced(self, run: int, kind: str, file: int) -> int:
        """How many frames of a file the documents of a run lead one to expect."""
        named = [known for (of, _, what), known in self.named.items() if (of, what) == (run, kind)]
        return max((number + 1 for known in named for _, where, number in known if where == file), default=0)

    def misleads(self, run: int, stream: str, kind: str, named: list[tuple[int, int, int]]) -> bool:
        """Whether a file has more frames than a run's documents tell: one that others follow, or is read as a whole."""
        files = list(dict.fromkeys(file for _, file, _ in named))
        if kind not in {HDF5, CSV, LEGACY}:
            return False
        files = files if kind == CSV else sorted(files, key=lambda file: self.joined_at(run, stream, kind, file))[:-1]
        return any(self.announced(run, kind, file) < self.frames[kind, file] for file in files)

    def joins_late(self, run: int, stream: str, kind: str, named: list[tuple[int, int, int]]) -> bool:
        """Whether a file of earlier events is joined to the node after one of later events: its resource came late."""
        files = list(dict.fromkeys(file for _, file, _ in named))
        return files != sorted(files, key=lambda file: self.joined_at(run, stream, kind, file))

    def joined_at(self, run: int, stream: str, kind: str, file: int) -> int:
        """The number of the document with which a file is joined to a node: its resource and a datum must be there."""
        uid, descriptor = f"{run}-{KEYS[kind]}-{file}", f"{run}-{stream}"
        seen: dict[str, int] = {}
        for number, (name, doc) in enumerate(self.runs[run]):
            is_resource = name == "stream_resource" and doc["uid"] == uid
            is_datum = name == "stream_datum" and (doc["stream_resource"], doc["descriptor"]) == (uid, descriptor)
            if is_resource or is_datum:
                seen.setdefault(name, number)
        return max(seen.values(), default=0)

    def write_files(self) -> None:
        for (kind, file), count in self.frames.items():
            made = [frame(kind, file, number) for number in range(count)]
            stem = f"{KEYS[kind]}{file}"
            if kind in {HDF5, LEGACY}:
                with h5py.File(self.directory / f"{stem}.h5", "w") as open_run_file:
                    open_run_file["/entry/data/data"] = numpy.stack(made)
            elif kind == CSV:
                numpy.savetxt(self.directory / f"{stem}.csv", numpy.concatenate(made), delimiter=",")
            for number, values in enumerate(made):
                if kind == TIFF:
                    tifffile.imwrite(self.directory / f"{stem}_{number}.tiff", values)
                elif kind == NPY:
                    numpy.save(self.directory / f"{stem}_{number}.npy", values)


def resource_of(kind: str, file: int, directory: Path) -> dict[str, Any]:
    """A StreamResource for one file, or for the numbered files of one device."""
    stem, folder = f"{KEYS[kind]}{file}", f"file://localhost{directory}/"
    if kind == HDF5:
        where = {"uri": f"{folder}{stem}.h5", "parameters": {"dataset": "/entry/data/data", "chunk_shape": [1, 2, 3]}}
    elif kind == CSV:
        where = {"uri": f"{folder}{stem}.csv", "parameters": {}}
    elif kind == NPY:
        where = {"uri": folder, "parameters": {"filename": stem}}
    else:
        where = {"uri": folder, "parameters": {"template": f"{stem}_%d.tiff", "chunk_shape": [1, 2, 3]}}
    return {"data_key": KEYS[kind], "mimetype": kind, **where}


def key_of(kind: str) -> dict[str, Any]:
    """What a descriptor says of a key."""
    external = "FILESTORE:" if kind == LEGACY else "STREAM:"
    dtype = "<f8" if kind == CSV else "<u2"
    return {"source": "test", "dtype": "array", "dtype_numpy": dtype, "shape": [*FRAME[kind]], "external": external}


class RunMaker:
    """Makes the documents of one run."""

    def __init__(self, draw: st.DrawFn, acquisition: Acquisition, number: int) -> None:
        self._draw = draw
        self._acquisition = acquisition
        self._number = number
        self.documents: Documents = [("start", {"uid": f"run{number}", "time": 0.0})]
        self._late: Documents = []
        self._next_seq_num: dict[str, int] = {}
        self._resources: set[tuple[str, str, int]] = set()
        self._first_number: dict[tuple[str, str, int], int] = {}  # as its documents count, of a file in a stream
        acquisition.runs.append(self.documents)

    def describe(self, stream: str, kinds: list[str]) -> None:
        self._next_seq_num[stream] = 1
        keys = {KEYS[kind]: key_of(kind) for kind in kinds}
        descriptor = {"uid": f"{self._number}-{stream}", "run_start": f"run{self._number}", "name": stream}
        self.documents.append(
            ("descriptor", {**descriptor, "time": 0.0, "data_keys": keys, "configuration": {}, "object_keys": {}})
        )

    def expose(self, stream: str, kind: str) -> None:
        """One or more frames: the next ones of a file, after a gap, again, or earlier ones; or of another file."""
        known = self._acquisition.named.get((self._number, stream, kind), [])
        files = [file for what, file in self._acquisition.frames if what == kind]
        file = self._draw(st.sampled_from([*files, *files, *files, len(files)])) if files else 0
        if kind in {CSV, LEGACY}:
            file = files[0] if files else 0
        latest = max((number for _, where, number in known if where == file), default=-1)
        if latest < 0 and known:
            start = 0  # a further file of a key counts from its beginning
        else:
            in_file = self._acquisition.frames.get((kind, file), 0)
            start = max(0, self._draw(st.sampled_from([latest + 1] * 4 + [in_file, latest + 2, latest, 0])))
        count = 1 if kind == LEGACY else self._draw(st.integers(1, 3))
        if start + count > MOST_FRAMES:
            return
        seq_num = self._next_seq_num[stream]
        if kind != LEGACY:
            seq_num = max(1, seq_num + self._draw(st.sampled_from([0, 0, 0, 0, 2, -1])))
        self._next_seq_num[stream] = seq_num + count
        self._acquisition.name(self._number, stream, kind, (file, range(start, start + count)), seq_num)
        if kind == LEGACY:
            self._read_datum(stream, start, seq_num)
            return
        uid = f"{self._number}-{KEYS[kind]}-{file}"
        if (kind, "", file) not in self._resources:
            self._resources.add((kind, "", file))
            resource = {"uid": uid, "run_start": f"run{self._number}", **self._resource(kind, file)}
            later = self._draw(st.integers(0, 5)) == 0
            (self._late if later else self.documents).append(("stream_resource", resource))
        ids = {"uid": f"{uid}/{len(self.documents)}", "stream_resource": uid, "descriptor": f"{self._number}-{stream}"}
        limits = {
            "indices": {"start": start, "stop": start + count},
            "seq_nums": {"start": seq_num, "stop": seq_num + count},
        }
        self.documents.append(("stream_datum", {**ids, **limits}))

    def _resource(self, kind: str, file: int) -> dict[str, Any]:
        return resource_of(kind, file, self._acquisition.directory)

    def _read_datum(self, stream: str, number: int, seq_num: int) -> None:
        uid = f"{self._number}-old"
        if (LEGACY, stream, 0) not in self._resources:
            self._resources.add((LEGACY, stream, 0))
            place = {"root": str(self._acquisition.directory), "resource_path": "old0.h5"}
            kwargs = {"resource_kwargs": {"frame_per_point": 1}, "path_semantics": "posix"}
            resource = {"uid": uid, "spec": "AD_HDF5", "run_start": f"run{self._number}", **place, **kwargs}
            self.documents.append(("resource", resource))
        datum = {"datum_id": f"{uid}/{number}", "resource": uid, "datum_kwargs": {"point_number": number}}
        late = self._draw(st.integers(0, 3)) == 0
        (self._late if late else self.documents).append(("datum", datum))
        event = {"uid": f"{self._number}-{stream}-{seq_num}-{len(self.documents)}", "seq_num": seq_num}
        data = {"data": {"old": f"{uid}/{number}"}, "timestamps": {"old": 0.0}, "filled": {"old": False}}
        about = {"descriptor": f"{self._number}-{stream}", "time": float(len(self.documents))}
        self.documents.append(("event", {**event, **data, **about}))

    def stop(self) -> None:
        self.documents += self._late
        stop = {"uid": f"stop{self._number}", "run_start": f"run{self._number}", "time": 9.0}
        self.documents.append(("stop", {**stop, "exit_status": "success", "reason": "", "num_events": {}}))


@st.composite
def acquisitions(draw: st.DrawFn) -> Acquisition:
    # The test makes the directory: not all that begins to be drawn gets there.
    acquisition = Acquisition(Path(tempfile.gettempdir(), f"frames-{uuid.uuid4().hex}"))
    for number in range(draw(st.integers(1, 2))):
        maker = RunMaker(draw, acquisition, number)
        streams = draw(st.sampled_from([["primary"], ["dark", "primary"]]))
        kinds = draw(st.lists(st.sampled_from(list(KEYS)), min_size=1, max_size=2, unique=True))
        for stream in streams:
            maker.describe(stream, kinds)
        steps = st.tuples(st.sampled_from(streams), st.sampled_from(kinds))
        for stream, kind in draw(st.lists(steps, min_size=1, max_size=10)):
            maker.expose(stream, kind)
        maker.stop()
    return acquisition


def by_events(named: list[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """Files and numbers of frames in the order of the events; from where these repeat, as after a rewind, anew."""
    begin, frames = 0, []
    for item in named:
        if item[0] in {seq_num for seq_num, _, _ in frames[begin:]}:
            begin = len(frames)
        frames[begin:] = sorted([*frames[begin:], item])
    return [(file, number) for _, file, number in frames]


def read(source: dict[str, Any]) -> numpy.ndarray[Any, Any]:
    """What Tiled's adapter reads by a data source."""
    structure = ArrayStructure.from_json(source["structure"])
    rest = {name: source[name] for name in ("mimetype", "structure_family", "parameters", "properties")}
    assets = [Asset(**asset) for asset in source["assets"]]
    wrapped = DataSource(structure=structure, management=Management.external, assets=assets, **rest)
    adapter = DEFAULT_ADAPTERS_BY_MIMETYPE[source["mimetype"]].from_catalog(
        wrapped, SimpleNamespace(metadata_={}, specs=[]), **source["parameters"]
    )
    return numpy.asarray(adapter.read())


def check(acquisition: Acquisition, batches: list[int], prefix: int, others: list[int]) -> None:
    for number, documents in enumerate(acquisition.runs):
        operations, _ = fold(documents, batches)
        started, _ = fold(documents, others)
        tiled = effect(started[: prefix % len(started)], operations)
        assert tiled.state == effect(operations).state
        notes = tiled.nodes[f"run{number}"].metadata.get("notes", [])
        for (run, stream, kind), named in acquisition.named.items():
            if run == number:
                node = tiled.nodes.get(f"run{number}/{stream}/{KEYS[kind]}")
                about = [note for note in notes if repr(KEYS[kind]) in note]
                left_out = [note for note in about if f"{stream!r}: the frames" in note and "left out" in note]
                if node is None:
                    assert left_out
                elif any(FURTHER_FILE in note for note in about) and acquisition.joins_late(run, stream, kind, named):
                    # Whether its numbers count from its beginning cannot be known, and the note says what is assumed.
                    continue
                elif not acquisition.misleads(run, stream, kind, named):
                    found = read(node.source).reshape(-1, *FRAME[kind])
                    in_order = not any(f"Stream {stream!r}" in note and "in another order" in note for note in about)
                    assert in_order or node.source["structure"]["dims"][0] == f"{KEYS[kind]}_frame"
                    check_frames(kind, named, found.tolist(), whole=not left_out, in_order=in_order)
                else:
                    assert any("several files" in note or "as a whole" in note for note in about)


def check_frames(
    kind: str, named: list[tuple[int, int, int]], found: list[Any], *, whole: bool, in_order: bool
) -> None:
    """The frames of all documents are there, or of the first ones where a note says that the rest is left out."""
    expected = by_events(named) if whole else by_events(named[: len(found)])
    made = [frame(kind, file, number).tolist() for file, number in expected]
    if not in_order:
        made, found = sorted(made), sorted(found)
    assert found == made


def test_a_file_that_is_joined_after_a_later_one_and_begins_later_has_a_note(tmp_path: Path) -> None:
    acquisition = Acquisition(tmp_path)
    maker = RunMaker(lambda strategy: pytest.fail("nothing is drawn"), acquisition, 0)
    maker.describe("primary", [HDF5])
    for file, first, seq_num in ((0, 1, 1), (0, 2, 2), (1, 0, 3)):
        acquisition.name(0, "primary", HDF5, (file, range(first, first + 1)), seq_num)
        resource = {"uid": f"0-hdf-{file}", "run_start": "run0", **resource_of(HDF5, file, tmp_path)}
        if file:
            maker.documents.append(("stream_resource", resource))
        ids = {"uid": f"0-hdf-{file}/{first}", "stream_resource": f"0-hdf-{file}", "descriptor": "0-primary"}
        limits = {
            "indices": {"start": first, "stop": first + 1},
            "seq_nums": {"start": seq_num, "stop": seq_num + 1},
        }
        maker.documents.append(("stream_datum", {**ids, **limits}))
    maker.documents.append(
        ("stream_resource", {"uid": "0-hdf-0", "run_start": "run0", **resource_of(HDF5, 0, tmp_path)})
    )
    maker.stop()
    acquisition.write_files()
    check(acquisition, [], 0, [])
    operations, _ = fold(maker.documents, [])
    notes = effect(operations).nodes["run0"].metadata["notes"]
    assert any(f"frame 1 {FURTHER_FILE}" in note for note in notes)


@every_run
@given(acquisitions(), batch_sizes, st.integers(0, 100), batch_sizes)
def test_each_event_has_the_frame_that_was_named_for_it_or_a_note(acquisition, batches, prefix, others):
    acquisition.directory.mkdir()
    try:
        acquisition.write_files()
        check(acquisition, batches, prefix, others)
    finally:
        shutil.rmtree(acquisition.directory)


@pytest.mark.parametrize("where", [(0, 0, 1), (3, 3, 4), (0, 0, 4)])
def test_a_stream_datum_of_no_frames_and_no_events_contradicts_nothing(where: tuple[int, int, int]) -> None:
    start, stop, seq_num = where
    run = event_model.compose_run()
    key = {"source": "", "dtype": "array", "shape": [4, 6], "dtype_numpy": "<u2", "external": "STREAM:"}
    x = {"source": "", "dtype": "number", "shape": []}
    stream = run.compose_descriptor(name="primary", data_keys={"cam": key, "x": x})
    file = run.compose_stream_resource(
        mimetype="application/x-hdf5",
        uri="file://localhost/a.h5",
        data_key="cam",
        parameters={"dataset": "/d", "chunk_shape": [1, 4, 6]},
    )
    descriptor = stream.descriptor_doc["uid"]
    whole = {"uid": "s/0", "stream_resource": file.stream_resource_doc["uid"], "descriptor": descriptor}
    full = {**whole, "indices": {"start": 0, "stop": 3}, "seq_nums": {"start": 1, "stop": 4}}
    seq_nums = {"start": seq_num, "stop": seq_num}
    none = {**whole, "uid": "s/1", "indices": {"start": start, "stop": stop}, "seq_nums": seq_nums}
    documents: list[tuple[str, Any]] = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    documents += [("stream_resource", file.stream_resource_doc), ("stream_datum", full), ("stream_datum", none)]
    documents += [("event", stream.compose_event(data={"x": n}, timestamps={"x": n})) for n in range(3)]
    documents += [("stop", run.compose_stop())]
    writer = RunWriter()
    for name, document in documents:
        writer(name, document)
    writer.flush()
    assert not [note for note in writer.notes if "cam" in note], writer.notes
