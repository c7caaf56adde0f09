"""Runs of a real RunEngine with devices of ophyd-async, which announce their files by StreamResource documents."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy
from ophyd_async.core import (
    Array1D,
    StandardReadable,
    StaticFilenameProvider,
    StaticPathProvider,
    StrictEnum,
    Table,
    TriggerInfo,
    init_devices,
    soft_signal_rw,
)
from ophyd_async.core import StandardReadableFormat as Format
from ophyd_async.sim import PatternGenerator, SimBlobDetector, SimMotor

from ._documents import RunDocuments, external, key, new_uid
from ._engine import acquire, engine
from ._entry import Collection, Documents
from ._files import FRAME, frames, uri, write_hdf5

entry = Collection()

DATASET = {"dataset": "/entry/data/data", "chunk_shape": [1, *FRAME]}


async def at_once(_: float) -> None:
    """In place of waiting for an exposure."""
    await asyncio.sleep(0)


def blob_detector(directory: Path, name: str = "blob", beam: PatternGenerator | None = None) -> SimBlobDetector:
    """A detector that writes an HDF5 file."""
    engine()  # devices connect in its event loop
    paths = StaticPathProvider(StaticFilenameProvider(f"{name}-file"), directory)
    with init_devices():
        detector = SimBlobDetector(paths, beam or PatternGenerator(sleep=at_once), name=name)
    return detector  # noqa: RET504 - init_devices looks for variables


@entry("detector with an HDF5 file, one frame per event")
def hdf5_detector(directory: Path) -> Documents:
    return acquire(bp.count([blob_detector(directory)], num=3))


@entry("detector with an HDF5 file and a motor", batch_size=1)
def hdf5_detector_event_by_event(directory: Path) -> Documents:
    detector = blob_detector(directory)
    with init_devices():
        motor = SimMotor(name="stage")
    return acquire(bp.scan([detector], motor, 0, 0.002, 3))


@entry("two detectors with HDF5 files")
def two_hdf5_detectors(directory: Path) -> Documents:
    return acquire(bp.count([blob_detector(directory, "left"), blob_detector(directory, "right")], num=2))


@entry("detector that is staged once for a dark image and for others: one file for two streams")
def hdf5_detector_with_dark_image(directory: Path) -> Documents:
    beam = PatternGenerator(sleep=at_once)
    detector = blob_detector(directory, beam=beam)

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def plan() -> Iterator[Any]:
        for x, stream in ((-9.0, "dark"), (0.0, "primary"), (1.0, "primary"), (2.0, "primary")):
            beam.set_x(x)
            yield from bps.trigger_and_read([detector], name=stream)

    return acquire(plan())


@entry("fly scan: a detector takes frames by itself, and they are collected now and then")
def fly_scan(directory: Path) -> Documents:
    detector = blob_detector(directory)

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def plan() -> Iterator[Any]:
        yield from bps.prepare(detector, TriggerInfo(number_of_events=5), wait=True)
        yield from bps.declare_stream(detector, name="primary")
        yield from bps.kickoff(detector, wait=True)
        yield from bps.complete(detector, wait=True)
        yield from bps.collect(detector, name="primary")

    return acquire(plan())


@entry("several frames per event, by ophyd-async's collections_per_event")
def several_frames_per_event(directory: Path) -> Documents:
    detector = blob_detector(directory)

    @bpp.stage_decorator([detector])
    @bpp.run_decorator()
    def plan() -> Iterator[Any]:
        info = TriggerInfo(number_of_events=2, collections_per_event=3)
        yield from bps.prepare(detector, info, wait=True)
        yield from bps.declare_stream(detector, name="primary")
        yield from bps.kickoff(detector, wait=True)
        yield from bps.complete(detector, wait=True)
        yield from bps.collect(detector, name="primary")

    return acquire(plan())


class Mode(StrictEnum):
    SLOW = "slow"
    FAST = "fast"


class Energies(Table):
    energy: Array1D[numpy.float64]
    counts: Array1D[numpy.int32]
    labels: Sequence[str]


class SoftSignals(StandardReadable):
    """A signal of each scalar type."""

    def __init__(self, name: str = "") -> None:
        with self.add_children_as_readables():
            self.flag = soft_signal_rw(bool, initial_value=True)
            self.number = soft_signal_rw(int, 7)
            self.ratio = soft_signal_rw(float, 0.25, units="mm", precision=3)
            self.label = soft_signal_rw(str, "ab")
            self.mode = soft_signal_rw(Mode, Mode.FAST)
        with self.add_children_as_readables(Format.CONFIG_SIGNAL):
            self.gain = soft_signal_rw(float, 1.5)
            self.names = soft_signal_rw(Sequence[str], ["x", "y"])
        super().__init__(name)


def read(device: StandardReadable) -> Documents:
    return acquire(bp.count([device], num=2))


@entry("soft signals: bool, int, float, string, enumeration, with units and limits")
def soft_scalars(_: Path) -> Documents:
    engine()
    with init_devices():
        device = SoftSignals(name="soft")
    return read(device)


def array_signals(sizes: Iterator[int]) -> StandardReadable:
    """A device with an array of each numeric type."""

    class SoftArrays(StandardReadable):
        def __init__(self, name: str = "") -> None:
            with self.add_children_as_readables():
                for dtype in ("bool", "int8", "uint8", "int16", "uint16", "int32", "int64", "float32", "float64"):
                    values = (numpy.arange(next(sizes)) % 2).astype(dtype)
                    setattr(self, f"as_{dtype}", soft_signal_rw(Array1D[numpy.dtype(dtype).type], values))
            super().__init__(name)

    engine()
    with init_devices():
        device = SoftArrays(name="arrays")
    return device  # noqa: RET504 - init_devices looks for variables


@entry("soft signals: short arrays of every numeric type, with their NumPy types declared")
def soft_short_arrays(_: Path) -> Documents:
    return read(array_signals(itertools.repeat(4)))


@entry("soft signals: arrays of every numeric type that are too long for the table, each of another length")
def soft_long_arrays(_: Path) -> Documents:
    return read(array_signals(itertools.count(40)))


@entry("soft signals: lists of strings and of enumeration members")
def soft_string_lists(_: Path) -> Documents:
    class Lists(StandardReadable):
        def __init__(self, name: str = "") -> None:
            with self.add_children_as_readables():
                self.labels = soft_signal_rw(Sequence[str], ["one", "three", "Å"])
                self.modes = soft_signal_rw(Sequence[Mode], [Mode.FAST, Mode.SLOW])
            super().__init__(name)

    engine()
    with init_devices():
        device = Lists(name="lists")
    return read(device)


@entry("soft signals: a table, whose type is structured")
def soft_table(_: Path) -> Documents:
    class Tables(StandardReadable):
        def __init__(self, name: str = "") -> None:
            with self.add_children_as_readables():
                values = Energies(energy=numpy.array([1.5, 2.5]), counts=numpy.array([3, 4], "i4"), labels=["a", "b"])
                self.energies = soft_signal_rw(Energies, values)
            super().__init__(name)

    engine()
    with init_devices():
        device = Tables(name="tables")
    return read(device)


# The same by hand, for what the simulated detector does not do.


@entry("several stream resources for one data key: files one after the other")
def several_files_for_a_key(directory: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"cam": external(FRAME)})
    for number in range(3):
        path = write_hdf5(directory / f"part-{number}.h5", frames(2, first=100 * number), chunks=(1, *FRAME))
        resource = run.stream_resource(
            "cam", "application/x-hdf5", uri(path), dataset="/entry/data/data", chunk_shape=[1, *FRAME]
        )
        run.stream_datum(resource, descriptor, 2 * number, 2 * number + 2)
    return run.stop()


@entry("frames joined along their first axis (concat)")
def joined_by_concat(directory: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"cam": external((3, *FRAME))})
    path = write_hdf5(directory / "concat.h5", frames(6), chunks=(1, *FRAME))
    parameters = {"dataset": "/entry/data/data", "chunk_shape": [1, *FRAME], "join_method": "concat"}
    resource = run.stream_resource("cam", "application/x-hdf5", uri(path), **parameters)
    run.stream_datum(resource, descriptor, 0, 1)
    run.stream_datum(resource, descriptor, 1, 2)
    return run.stop()


@entry("HDF5 dataset of which a slice is served, squeezed, opened without SWMR")
def hdf5_slice(directory: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"row": external((6,))})
    path = write_hdf5(directory / "slice.h5", frames(4))
    parameters = {"dataset": "/entry/data/data", "slice": ":,1:2,:", "squeeze": True, "swmr": False}
    resource = run.stream_resource("row", "application/x-hdf5", uri(path), **parameters)
    run.stream_datum(resource, descriptor, 0, 4)
    return run.stop()


@entry("names of dimensions declared for external data")
def external_dimension_names(directory: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"cam": external(FRAME, dims=["y", "x"]), "x": key()})
    path = write_hdf5(directory / "dims.h5", frames(3))
    resource = run.stream_resource("cam", "application/x-hdf5", uri(path), dataset="/entry/data/data")
    run.stream_datum(resource, descriptor, 0, 3)
    run.events(descriptor, [{"x": 0.5}, {"x": 1.5}, {"x": 2.5}])
    return run.stop()


@entry("stream datums that skip sequence numbers")
def skipped_rows(directory: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"cam": external(FRAME)})
    path = write_hdf5(directory / "skips.h5", frames(4))
    resource = run.stream_resource("cam", "application/x-hdf5", uri(path), dataset="/entry/data/data")
    for index, seq_num in ((0, 1), (1, 3), (2, 4), (3, 7)):
        seq_nums = {"start": seq_num, "stop": seq_num + 1}
        ids = {"uid": f"{resource}/{index}", "stream_resource": resource, "descriptor": descriptor}
        run.add("stream_datum", {**ids, "indices": {"start": index, "stop": index + 1}, "seq_nums": seq_nums})
    return run.stop()


@entry("a file of which one stream has the first frame, and another one the others")
def one_file_for_two_streams(directory: Path) -> Documents:
    run = RunDocuments()
    path = write_hdf5(directory / "shared.h5", frames(4), chunks=(1, *FRAME))
    resource = run.stream_resource(
        "cam", "application/x-hdf5", uri(path), dataset="/entry/data/data", chunk_shape=[1, *FRAME]
    )
    for stream, first, stop in (("dark", 0, 1), ("primary", 1, 4)):
        descriptor = run.descriptor({"cam": external(FRAME), "x": key()}, stream)
        run.events(descriptor, [{"x": float(n)} for n in range(first, stop)])
        named_frames(run, resource, descriptor, range(first, stop), first_event=1)
    return run.stop()


@entry("frames of a file that were dropped, and some that come again")
def dropped_and_repeated_frames(directory: Path) -> Documents:
    run = RunDocuments()
    path = write_hdf5(directory / "gaps.h5", frames(6), chunks=(1, *FRAME))
    descriptor = run.descriptor({"cam": external(FRAME), "x": key()})
    resource = run.stream_resource(
        "cam", "application/x-hdf5", uri(path), dataset="/entry/data/data", chunk_shape=[1, *FRAME]
    )
    run.events(descriptor, [{"x": float(n)} for n in range(5)])
    for numbers, first_event in ((range(2), 1), (range(3, 5), 3), (range(1, 2), 5)):
        named_frames(run, resource, descriptor, numbers, first_event=first_event)
    return run.stop()


@entry("two runs of one file: the second one has the frames after those of the first")
def one_file_for_two_runs(directory: Path) -> Documents:
    path = write_hdf5(directory / "runs.h5", frames(6), chunks=(1, *FRAME))
    documents: Documents = []
    for first in (0, 3):
        run = RunDocuments()
        descriptor = run.descriptor({"cam": external(FRAME), "x": key()})
        run.events(descriptor, [{"x": float(n)} for n in range(first, first + 3)])
        resource = run.stream_resource("cam", "application/x-hdf5", uri(path), **DATASET)
        named_frames(run, resource, descriptor, range(first, first + 3), first_event=1)
        documents += run.stop()
    return documents


@entry("stream datums that come before their stream resource, the last events' first")
def stream_datums_before_their_resource(directory: Path) -> Documents:
    run = RunDocuments()
    path = write_hdf5(directory / "late.h5", frames(5), chunks=(1, *FRAME))
    descriptor = run.descriptor({"cam": external(FRAME), "x": key()})
    run.events(descriptor, [{"x": float(n)} for n in range(5)])
    resource = run.stream_resource("cam", "application/x-hdf5", uri(path), **DATASET)
    late = run.documents.pop()
    named_frames(run, resource, descriptor, range(3, 5), first_event=4)
    run.documents.append(late)
    named_frames(run, resource, descriptor, range(3), first_event=1)
    return run.stop()


@entry("stream datum of a stream resource that never comes")
def missing_stream_resource(directory: Path) -> Documents:
    run = RunDocuments()
    path = write_hdf5(directory / "there.h5", frames(3), chunks=(1, *FRAME))
    descriptor = run.descriptor({"cam": external(FRAME), "lost": external(FRAME), "x": key()})
    run.events(descriptor, [{"x": float(n)} for n in range(3)])
    run.stream_datum(new_uid(), descriptor, 0, 3)
    resource = run.stream_resource("cam", "application/x-hdf5", uri(path), **DATASET)
    run.stream_datum(resource, descriptor, 0, 3)
    return run.stop()


@entry("chunk shapes of more dimensions than there are, and of none")
def chunk_shapes_that_do_not_fit(directory: Path) -> Documents:
    run = RunDocuments()
    images = write_hdf5(directory / "images.h5", frames(3), chunks=(1, *FRAME))
    sums = write_hdf5(directory / "sums.h5", frames(3, ()))
    descriptor = run.descriptor({"cam": external(FRAME), "sum": external(()), "x": key()})
    run.events(descriptor, [{"x": float(n)} for n in range(3)])
    for data_key, path, chunk_shape in (("cam", images, 1), ("sum", sums, [1, 1])):
        parameters = {**DATASET, "chunk_shape": chunk_shape}
        resource = run.stream_resource(data_key, "application/x-hdf5", uri(path), **parameters)
        run.stream_datum(resource, descriptor, 0, 3)
    return run.stop()


@entry("a second descriptor with further data keys, in events and in a file, and other types")
def further_data_keys(directory: Path) -> Documents:
    run = RunDocuments()
    path = write_hdf5(directory / "added.h5", frames(2), chunks=(1, *FRAME))
    counts = {"n": key("integer", dtype_numpy="<i8"), "trace": key("array", [20], dtype_numpy="<i4")}
    first = run.descriptor(counts)
    run.events(first, [{"n": n, "trace": numpy.arange(20, dtype="<i4") + n} for n in (1, 2)])
    wave = key("array", [20], dtype_numpy="<f8")
    second = run.descriptor({"n": key(), "trace": wave, "x": key(), "wave": wave, "cam": external(FRAME)})
    resource = run.stream_resource("cam", "application/x-hdf5", uri(path), **DATASET)
    for seq_num in (3, 4):
        means = {"n": seq_num + 0.5, "trace": numpy.arange(20.0) + seq_num / 4}
        run.event(second, seq_num, {**means, "x": seq_num / 4, "wave": numpy.arange(20.0) / seq_num})
    named_frames(run, resource, second, range(2), first_event=3)
    return run.stop()


@entry("dimensions called `time`, of other sizes than there are events")
def dimensions_called_time(directory: Path) -> Documents:
    run = RunDocuments()
    path = write_hdf5(directory / "traces.h5", frames(3, (10,)))
    waves = key("array", [20], dtype_numpy="<f8", dims=["time"])
    descriptor = run.descriptor({"trace": external((10,), dims=["time"]), "wave": waves})
    run.events(descriptor, [{"wave": numpy.arange(20.0) + n} for n in range(3)])
    resource = run.stream_resource("trace", "application/x-hdf5", uri(path), dataset="/entry/data/data")
    run.stream_datum(resource, descriptor, 0, 3)
    return run.stop()


def named_frames(run: RunDocuments, resource: str, descriptor: str, numbers: range, *, first_event: int) -> None:
    """A stream datum of frames that do not have the numbers of their events."""
    indices = {"start": numbers.start, "stop": numbers.stop}
    seq_nums = {"start": first_event, "stop": first_event + len(numbers)}
    ids = {"uid": f"{resource}/{descriptor}/{first_event}", "stream_resource": resource, "descriptor": descriptor}
    run.add("stream_datum", {**ids, "indices": indices, "seq_nums": seq_nums})
