"""Runs as former versions of Bluesky, ophyd and event-model have left them: documents that none of today's emits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy

from ._documents import RunDocuments, external, key
from ._entry import Collection, Documents
from ._files import FRAME, frames, uri, write_csv, write_hdf5, write_jpegs, write_npys, write_tiffs

entry = Collection()

CHUNKS = (1, *FRAME)
COUNT = 3


def shoot(run: RunDocuments, descriptor: str, resource: str, data_key: str = "image", **point: Any) -> None:
    """Three events with a datum each; `point` has the datum's arguments as functions of the number."""
    for number in range(COUNT):
        datum = run.datum(resource, number, **{name: make(number) for name, make in point.items()})
        run.event(descriptor, number + 1, {data_key: datum, "x": number / 2}, filled={data_key: False})


def itself(number: int) -> int:
    return number


@entry("AD_HDF5: one frame per point, counted by point_number")
def ad_hdf5(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(COUNT), chunks=CHUNKS)
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("AD_HDF5", str(directory), "a.h5", frame_per_point=1)
    shoot(run, descriptor, resource, point_number=itself)
    return run.stop()


@entry("AD_HDF5: points that are not in the order of the file's frames")
def points_out_of_order(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(COUNT), chunks=CHUNKS)
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("AD_HDF5", str(directory), "a.h5", frame_per_point=1)
    shoot(run, descriptor, resource, point_number=lambda number: (number + 2) % COUNT)
    return run.stop()


@entry("AD_HDF5: resource_path has the root in it already")
def root_in_resource_path(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(COUNT), chunks=CHUNKS)
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("AD_HDF5", str(directory), str(directory / "a.h5"), frame_per_point=1)
    shoot(run, descriptor, resource, point_number=itself)
    return run.stop()


@entry("AD_HDF5: several frames per point")
def ad_hdf5_frames_per_point(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(2 * COUNT), chunks=CHUNKS)
    descriptor = run.descriptor({"image": external((2, *FRAME)), "x": key()})
    resource = run.resource("AD_HDF5", str(directory), "a.h5", frame_per_point=2)
    shoot(run, descriptor, resource, point_number=itself)
    return run.stop()


@entry("several frames per point, which the declared shape does not know of")
def multiplier_beyond_shape(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(2 * COUNT), chunks=CHUNKS)
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("AD_HDF5", str(directory), "a.h5", multiplier=2)
    shoot(run, descriptor, resource, point_number=itself)
    return run.stop()


@entry("AD_HDF5_SWMR with a dataset and a chunk shape named")
def ad_hdf5_swmr(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(COUNT), "/entry/other", chunks=CHUNKS)
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("AD_HDF5_SWMR", str(directory), "a.h5", dataset="/entry/other", chunk_shape=list(CHUNKS))
    shoot(run, descriptor, resource, point_number=itself)
    return run.stop()


@entry("AD_HDF5_SWMR_STREAM, a spec with no dataset of its own, and `path` for it")
def hdf5_path(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(COUNT), "/entry/instrument/data")
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("AD_HDF5_SWMR_STREAM", str(directory), "a.h5", path="/entry/instrument/data")
    shoot(run, descriptor, resource, point_number=itself)
    return run.stop()


@entry("XSP3: fluorescence spectra, counted by frame")
def xsp3(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "x.h5", frames(COUNT, (2, 16)), "/entry/instrument/detector/data")
    descriptor = run.descriptor({"fluor": external((2, 16)), "x": key()})
    resource = run.resource("XSP3", str(directory), "x.h5")
    shoot(run, descriptor, resource, "fluor", frame=itself)
    return run.stop()


@entry("spec in lower case, given by the name of its file alone")
def spec_in_lower_case(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(COUNT))
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("ad_hdf5", "", str(directory / "a.h5"))
    shoot(run, descriptor, resource, point_number=itself)
    return run.stop()


def run_of_tiffs(directory: Path, resource_path: str) -> Documents:
    """A run with a TIFF file for each point."""
    run = RunDocuments()
    write_tiffs(directory, "shot", list(frames(COUNT)))
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource(
        "AD_TIFF", "/", resource_path, template="%s%s_%6.6d.tiff", filename="shot", frame_per_point=1
    )
    shoot(run, descriptor, resource, point_number=itself)
    return run.stop()


@entry("AD_TIFF with a template, one file per point")
def ad_tiff(directory: Path) -> Documents:
    return run_of_tiffs(directory, str(directory)[1:] + "/")


@entry("AD_TIFF: the directory has no slash at its end, as ophyd gives it")
def directory_without_slash(directory: Path) -> Documents:
    return run_of_tiffs(directory, str(directory)[1:])


@entry("AD_TIFF with several files per point")
def ad_tiff_files_per_point(directory: Path) -> Documents:
    run = RunDocuments()
    write_tiffs(directory, "shot", list(frames(2 * COUNT)))
    descriptor = run.descriptor({"image": external((2, *FRAME)), "x": key()})
    resource = run.resource(
        "AD_TIFF", "/", str(directory)[1:] + "/", template="%s%s_%6.6d.tiff", filename="shot", frame_per_point=2
    )
    shoot(run, descriptor, resource, point_number=itself)
    return run.stop()


@entry("images in JPEG, by a StreamResource with a template")
def jpeg_files(directory: Path) -> Documents:
    run = RunDocuments()
    write_jpegs(directory, "photo", COUNT)
    descriptor = run.descriptor({"image": external((8, 8), "|u1"), "x": key()})
    resource = run.stream_resource(
        "image",
        "multipart/related;type=image/jpeg",
        uri(directory, directory=True),
        template="photo_{:04d}.jpeg",
        chunk_shape=[1],
    )
    for number in range(COUNT):
        run.event(descriptor, number + 1, {"x": number / 2})
        run.stream_datum(resource, descriptor, number, number + 1)
    return run.stop()


@entry("NPY_SEQ, as the simulated detectors of ophyd write it")
def npy_seq(directory: Path) -> Documents:
    run = RunDocuments()
    write_npys(directory, "shot", list(frames(COUNT, dtype="<f8")))
    descriptor = run.descriptor({"image": external(FRAME, "<f8"), "x": key()})
    resource = run.resource("NPY_SEQ", str(directory), "shot")
    shoot(run, descriptor, resource, index=itself)
    return run.stop()


@entry("NPY_SEQ: files of which one stream has the first, and another one the others")
def npy_seq_for_two_streams(directory: Path) -> Documents:
    run = RunDocuments()
    write_npys(directory, "shot", list(frames(COUNT, dtype="<f8")))
    dark, primary = (
        run.descriptor({"image": external(FRAME, "<f8"), "x": key()}, name) for name in ("dark", "primary")
    )
    resource = run.resource("NPY_SEQ", str(directory), "shot")
    for number in range(COUNT):
        data = {"image": run.datum(resource, number, index=number), "x": number / 2}
        run.event(primary if number else dark, max(number, 1), data, filled={"image": False})
    return run.stop()


@entry("table of numbers in a CSV file")
def csv_file(directory: Path) -> Documents:
    run = RunDocuments()
    path = write_csv(directory / "t.csv", [[i / 2, i / 4, i / 8] for i in range(6)])
    descriptor = run.descriptor({"rows": external((6, 3), "<f8")})
    resource = run.stream_resource("rows", "text/csv;header=absent", uri(path), chunk_shape=[6])
    run.stream_datum(resource, descriptor, 0, 1)
    return run.stop()


@entry("table of numbers in a CSV file, announced by several datums")
def csv_file_of_several_datums(directory: Path) -> Documents:
    run = RunDocuments()
    path = write_csv(directory / "t.csv", [[i / 2, i / 4, i / 8] for i in range(6)])
    descriptor = run.descriptor({"rows": external((2, 3), "<f8")})
    resource = run.stream_resource("rows", "text/csv;header=absent", uri(path), chunk_shape=[2])
    run.stream_datum(resource, descriptor, 0, 1)
    run.stream_datum(resource, descriptor, 1, 3)
    return run.stop()


@entry("files of any kind, to be downloaded as they are")
def octet_stream(directory: Path) -> Documents:
    run = RunDocuments()
    for number in range(COUNT):
        (directory / f"raw_{number}.bin").write_bytes(bytes(range(number + 4)))
    descriptor = run.descriptor({"raw": external((1,), "|u1"), "x": key()})
    parameters = {"template": "raw_{:d}.bin"}
    resource = run.stream_resource("raw", "application/octet-stream", uri(directory, directory=True), **parameters)
    for number in range(COUNT):
        run.event(descriptor, number + 1, {"x": number / 2})
        run.stream_datum(resource, descriptor, number, number + 1)
    return run.stop()


@entry("spec that nobody knows: files of any kind")
def unknown_spec(directory: Path) -> Documents:
    run = RunDocuments()
    (directory / "raw.bin").write_bytes(b"\x00\x01\x02")
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("HOME_MADE", str(directory), "raw.bin", gain=3)
    shoot(run, descriptor, resource)
    return run.stop()


@entry("StreamResource as it was before event-model 1.20")
def old_stream_resource(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(COUNT), "/data", chunks=CHUNKS)
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = "old-" + run.uid
    kwargs = {"path": "/data", "chunk_shape": list(CHUNKS)}
    where = {"spec": "AD_HDF5_SWMR_STREAM", "root": str(directory), "resource_path": "a.h5", "resource_kwargs": kwargs}
    run.add("stream_resource", {"uid": resource, "run_start": run.uid, "data_key": "image", **where})
    run.stream_datum(resource, descriptor, 0, COUNT)
    run.events(descriptor, [{"x": number / 2} for number in range(COUNT)])
    return run.stop()


@entry("frame numbers that begin anew with each of several files")
def frames_over_several_files(directory: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    for file in range(2):
        write_hdf5(directory / f"{file}.h5", frames(COUNT, first=1000 * file), chunks=CHUNKS)
        resource = run.resource("AD_HDF5", str(directory), f"{file}.h5")
        for frame in range(COUNT):
            datum = run.datum(resource, frame, frame=frame)
            run.event(descriptor, COUNT * file + frame + 1, {"image": datum, "x": 0.5})
    return run.stop()


@entry("datums that come in pages")
def datum_pages(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(COUNT))
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("AD_HDF5", str(directory), "a.h5")
    ids = [f"{resource}/{number}" for number in range(COUNT)]
    kwargs = {"point_number": list(range(COUNT))}
    run.add("datum_page", {"resource": resource, "datum_id": ids, "datum_kwargs": kwargs})
    run.events(descriptor, [{"image": datum, "x": 0.5} for datum in ids])
    return run.stop()


@entry("bulk_datum and bulk_events, the pages of old", modern=False)
def bulk_documents(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(COUNT))
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("AD_HDF5", str(directory), "a.h5")
    ids = [f"{resource}/{number}" for number in range(COUNT)]
    kwargs = [{"point_number": number} for number in range(COUNT)]
    run.add("bulk_datum", {"resource": resource, "datum_ids": ids, "datum_kwarg_list": kwargs})
    events = [run.make_event(descriptor, n, {"image": datum, "x": n / 2}) for n, datum in enumerate(ids, 1)]
    run.add("bulk_events", {descriptor: events})
    return run.stop(num_events={"primary": COUNT})


@entry("event pages with internal and external data, filled flags and all")
def event_pages(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(4))
    descriptor = run.descriptor({"image": external(FRAME), "x": key(), "label": key("string")})
    resource = run.resource("AD_HDF5", str(directory), "a.h5")
    for page in range(2):
        numbers = [2 * page, 2 * page + 1]
        events = []
        for number in numbers:
            data = {"image": run.datum(resource, number, point_number=number), "x": number / 2, "label": f"n{number}"}
            events.append(run.make_event(descriptor, number + 1, data, filled={"image": False}))
        columns = {name: [event[name] for event in events] for name in ("uid", "seq_num", "time")}
        tables = {
            name: {data_key: [event[name][data_key] for event in events] for data_key in events[0][name]}
            for name in ("data", "timestamps", "filled")
        }
        run.add("event_page", {"descriptor": descriptor, **columns, **tables})
    return run.stop(num_events={"primary": 4})


@entry("datums that come after their events, some not before the end")
def late_datums(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(COUNT))
    descriptor = run.descriptor({"image": external(FRAME), "x": key()})
    resource = run.resource("AD_HDF5", str(directory), "a.h5")
    run.events(descriptor, [{"image": f"{resource}/{number}", "x": 0.5} for number in range(COUNT)])
    for number in range(COUNT):
        run.datum(resource, number, point_number=number)
    return run.stop()


@entry("external data that a callback has filled in already")
def filled_events(_: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"image": external(FRAME, "<f8"), "x": key()})
    for number, frame in enumerate(frames(COUNT, dtype="<f8"), 1):
        run.event(descriptor, number, {"image": frame, "x": number / 2}, filled={"image": True})
    return run.stop()


@entry("one resource for two data keys, and one data key in two streams")
def shared_resource(directory: Path) -> Documents:
    run = RunDocuments()
    write_hdf5(directory / "a.h5", frames(4))
    keys = {"left": external(FRAME), "right": external(FRAME)}
    primary, other = run.descriptor(keys), run.descriptor({"left": external(FRAME)}, "other")
    resource = run.resource("AD_HDF5", str(directory), "a.h5")
    for number in range(2):
        data = {name: run.datum(resource, 10 * number + i, point_number=number) for i, name in enumerate(keys)}
        run.event(primary, number + 1, data, filled=dict.fromkeys(keys, False))
    run.event(other, 1, {"left": run.datum(resource, 99, point_number=0)}, filled={"left": False})
    return run.stop()


@entry("data keys that some of the events lack", modern=False)
def missing_data_keys(_: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"x": key(), "label": key("string"), "n": key("integer", dtype_numpy="<i8")})
    run.event(descriptor, 1, {"x": 0.5, "label": "a", "n": 1})
    run.event(descriptor, 2, {"x": 1.5})
    run.event(descriptor, 3, {"x": 2.5, "label": "c", "n": 3})
    return run.stop()


@entry("data keys called `time` and `seq_num`")
def reserved_names(_: Path) -> Documents:
    run = RunDocuments()
    names = {"time": key(), "seq_num": key("integer", dtype_numpy="<i8"), "x": key()}
    descriptor = run.descriptor(names, hints={"device": {"fields": ["time", "x"]}})
    run.events(descriptor, [{"time": 10.5 + n, "seq_num": 100 + n, "x": n / 2} for n in range(COUNT)])
    return run.stop()


@entry("data keys called `time` and `time_`")
def reserved_name_and_its_substitute(_: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"time": key(), "time_": key()})
    run.events(descriptor, [{"time": 10.5 + n, "time_": n / 2} for n in range(COUNT)])
    return run.stop()


@entry("types of data keys in the old fields dtype_str")
def dtype_str(_: Path) -> Documents:
    run = RunDocuments()
    keys = {
        "x": key(dtype_str="<f4"),
        "n": key("integer", dtype_str="<i4"),
        "wave": key("array", [20], dtype_str="<i2"),
    }
    descriptor = run.descriptor(keys)
    run.events(descriptor, [{"x": 0.5 + n, "n": n, "wave": numpy.full(20, n, "<i2")} for n in range(COUNT)])
    return run.stop()


@entry("structured type in dtype_descr: a table in an HDF5 file")
def dtype_descr(directory: Path) -> Documents:
    run = RunDocuments()
    fields = [("energy", "<f8"), ("counts", "<i4")]
    table = numpy.array([(i / 2, i) for i in range(COUNT)], fields)
    write_hdf5(directory / "t.h5", table, "/table")
    row = external((1,), None, dtype_descr=[list(field) for field in fields])
    descriptor = run.descriptor({"row": row})
    resource = run.stream_resource("row", "application/x-hdf5", uri(directory / "t.h5"), dataset="/table")
    run.stream_datum(resource, descriptor, 0, COUNT)
    return run.stop()


@entry("shapes that are None or have None in them", modern=False)
def none_shapes(_: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"x": key(shape=None), "list": key("array", [None])})
    run.events(descriptor, [{"x": 0.5 * n, "list": [1.5, 2.5, 3.5]} for n in range(COUNT)])
    return run.stop()


@entry("several devices, with hints, object_keys and configuration of all types")
def device_configuration(_: Path) -> Documents:
    run = RunDocuments()
    data = {"exposure": 0.25, "mode": "fast", "roi": [0, 10], "on": True, "table": [[1, 2], [3, 4]], "nothing": None}
    types = {
        "exposure": "number",
        "mode": "string",
        "roi": "array",
        "on": "boolean",
        "table": "array",
        "nothing": "number",
    }
    keys = {f"det_{name}": key(dtype) for name, dtype in types.items()}
    values = {f"det_{name}": value for name, value in data.items()}
    configuration = {"det": {"data": values, "timestamps": dict.fromkeys(values, 1.5), "data_keys": keys}}
    descriptor = run.descriptor(
        {"det_counts": key("integer"), "motor": key(units="mm", precision=3, lower_ctrl_limit=-1.0)},
        configuration=configuration,
        hints={"det": {"fields": ["det_counts"]}, "motor": {"fields": ["motor"]}},
        object_keys={"det": ["det_counts"], "motor": ["motor"]},
    )
    run.events(descriptor, [{"det_counts": n, "motor": n / 2} for n in range(COUNT)])
    return run.stop()


@entry("run that was never stopped", batch_size=1, modern=False)
def run_without_stop(_: Path) -> Documents:
    run = RunDocuments()
    descriptor = run.descriptor({"x": key()})
    run.events(descriptor, [{"x": 0.5}])
    return run.documents


@entry("specs of its own in `tiled_specs`")
def own_specs(_: Path) -> Documents:
    run = RunDocuments(tiled_specs=["MySpec", {"name": "Other", "version": "1.1"}])
    descriptor = run.descriptor({"x": key()})
    run.events(descriptor, [{"x": 0.5}])
    return run.stop()
