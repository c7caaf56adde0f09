"""Runs in the manner of beamlines at NSLS-II and APS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy

from ._documents import RunDocuments, external, key
from ._entry import Collection, Documents
from ._files import frames, write_hdf5, write_tiffs

entry = Collection()

NSLS2: dict[str, Any] = {
    "beamline_id": "SRX",
    "facility": "NSLS-II",
    "cycle": "2025-2",
    "data_session": "pass-315051",
    "proposal": {"proposal_id": "315051", "title": "Copper in leaves", "type": "GU", "pi_name": "A. Name"},
    "group": "srx",
    "start_datetime": "2025-06-01T12:00:00",
    "username": "operator",
    "versions": {"bluesky": "1.13", "ophyd": "1.10", "event_model": "1.22"},
    "scan": {"type": "XRF_FLY", "dwell": 0.05, "shape": [10, 20], "detectors": ["xs", "sclr1"], "energy": 12.0003},
}
APS: dict[str, Any] = {
    "beamline_id": "8-ID-I",
    "login_id": "bluesky@host.example",
    "EPICS_HOST_ARCH": "linux-x86_64",
    "pid": 4242,
    "instrument_name": "APS 8-ID",
    "title": "",
    "sample": {"name": "silica", "temperature_C": 25},
    "databroker_catalog": "8idi",
    "hints": {"dimensions": [[["m1"], "primary"]]},
}


@entry("NSLS-II: sum of regions of interest of an Xspress3, with its spectra in a file")
def nsls2_xspress3(directory: Path) -> Documents:
    run = RunDocuments(**NSLS2)
    write_hdf5(directory / "xs.h5", frames(3, (4, 64)), "/entry/instrument/detector/data")
    rois = {f"xs_channel{n}_mcaroi{m:02d}_total_rbv": key() for n in range(1, 5) for m in range(1, 5)}
    keys = {**rois, "xs_fluor": external((4, 64), None, dtype_str="<u2"), "nano_stage_x": key(units="um")}
    descriptor = run.descriptor(keys, hints={"xs": {"fields": list(rois)[:4]}})
    resource = run.resource("XSP3", "/", str(directory / "xs.h5")[1:])
    for number in range(3):
        data = {name: float(100 * number + i) for i, name in enumerate(rois)}
        data |= {"xs_fluor": run.datum(resource, number, frame=number), "nano_stage_x": number * 0.1}
        run.event(descriptor, number + 1, data, filled={"xs_fluor": False})
    return run.stop()


@entry("NSLS-II: Pilatus with TIFF files, several exposures per point, and its statistics")
def nsls2_pilatus(directory: Path) -> Documents:
    run = RunDocuments(**NSLS2)
    write_tiffs(directory, "pil", list(frames(3, dtype="<i4")))
    keys = {"pilatus300_image": external((1, 4, 6), "<i4"), "pilatus300_stats1_total": key()}
    descriptor = run.descriptor(keys)
    where = {"template": "%s%s_%6.6d.tiff", "filename": "pil", "frame_per_point": 1}
    resource = run.resource("AD_TIFF", "/", str(directory)[1:] + "/", **where)
    for number in range(3):
        datum = run.datum(resource, number, point_number=number)
        run.event(descriptor, number + 1, {"pilatus300_image": datum, "pilatus300_stats1_total": 1.5 * number})
    return run.stop()


@entry("NSLS-II: Eiger with several frames per point, by EIGER2_STREAM")
def nsls2_eiger(directory: Path) -> Documents:
    run = RunDocuments(**NSLS2)
    write_hdf5(directory / "eiger.h5", frames(6, dtype="<u4"), "/entry/data/data_000001", chunks=(1, 4, 6))
    descriptor = run.descriptor({"eiger_image": external((2, 4, 6), "<u4"), "theta": key()})
    kwargs = {"frame_per_point": 2, "dataset": "/entry/data/data_000001"}
    resource = run.resource("EIGER2_STREAM", str(directory), "eiger.h5", **kwargs)
    for number in range(3):
        datum = run.datum(resource, number, point_number=number)
        run.event(descriptor, number + 1, {"eiger_image": datum, "theta": 0.1 * number})
    return run.stop()


@entry("NSLS-II: fly scan with a PandA, two files that several keys share")
def nsls2_panda(directory: Path) -> Documents:
    run = RunDocuments(**NSLS2)
    names = {"panda1-x": "/inenc1", "panda1-y": "/inenc2", "panda1-time": "/pcap.ts"}
    for offset, dataset in enumerate(names.values()):
        write_hdf5(directory / "panda.h5", numpy.arange(5) / 2 + offset, dataset)
    descriptor = run.descriptor({name: external((), "<f8") for name in names})
    for name, dataset in names.items():
        where = f"file://localhost{directory}/panda.h5"
        resource = run.stream_resource(name, "application/x-hdf5", where, dataset=dataset, chunk_shape=[1024])
        run.stream_datum(resource, descriptor, 0, 5)
    return run.stop()


@entry("NSLS-II: baseline of 600 data keys, more columns than a table may have")
def nsls2_wide_baseline(_: Path) -> Documents:
    run = RunDocuments(**NSLS2)
    primary = run.descriptor({"x": key()})
    baseline = run.descriptor({f"motor_{n:03d}": key(units="mm") for n in range(600)}, "baseline")
    run.event(baseline, 1, {f"motor_{n:03d}": n / 2 for n in range(600)})
    run.event(primary, 1, {"x": 0.5})
    run.event(baseline, 2, {f"motor_{n:03d}": n / 2 + 0.25 for n in range(600)})
    return run.stop()


@entry("NSLS-II: baseline of 400 data keys of all types, in one table")
def nsls2_baseline(_: Path) -> Documents:
    run = RunDocuments(**NSLS2)
    kinds: list[tuple[str, Any]] = [("number", 0.5), ("string", "in"), ("integer", 7), ("boolean", True)]
    names = {f"pv_{n:03d}": kinds[n % 4] for n in range(400)}
    baseline = run.descriptor({name: key(kind) for name, (kind, _) in names.items()}, "baseline")
    run.events(baseline, [{name: value for name, (_, value) in names.items()}] * 2)
    return run.stop()


@entry("APS: scan in the manner of SPEC, with motors and scaler channels")
def aps_scaler(_: Path) -> Documents:
    run = RunDocuments(plan_name="ascan", plan_args={"m1": [-1, 1, 4]}, num_points=4, **APS)
    channels = ("I0", "diode", "scint", "Ion_Ch4", "timebase")
    keys = {name: key(dtype_numpy="<f8", precision=5, units="") for name in channels}
    keys |= {"m1": key(dtype_numpy="<f8", units="degrees"), "m1_user_setpoint": key(dtype_numpy="<f8")}
    keys["scaler_time"] = key(precision=3)
    descriptor = run.descriptor(keys, hints={"scaler": {"fields": list(channels)}, "m1": {"fields": ["m1"]}})
    rows = [{**{name: 1000.0 * n + i for i, name in enumerate(channels)}, "scaler_time": 1.1} for n in range(4)]
    run.events(descriptor, [{**row, "m1": n / 4, "m1_user_setpoint": n / 4} for n, row in enumerate(rows)])
    return run.stop()


@entry("APS: integer PVs without a NumPy type, enumerations as numbers and as texts")
def aps_integer_pvs(_: Path) -> Documents:
    run = RunDocuments(**APS)
    keys = {
        "shutter": key("integer", enum_strs=["close", "open"]),
        "shutter_text": key("string", enum_strs=["close", "open"]),
        "counts": key("integer", lower_ctrl_limit=0, upper_ctrl_limit=2**31 - 1),
    }
    descriptor = run.descriptor(keys)
    rows = [{"shutter": n % 2, "shutter_text": ["close", "open"][n % 2], "counts": 2**31 + n} for n in range(3)]
    run.events(descriptor, rows)
    return run.stop()


@entry("APS: area detector with its plugins, images in HDF5, statistics in events")
def aps_area_detector(directory: Path) -> Documents:
    run = RunDocuments(**APS)
    write_hdf5(directory / "adsim.h5", frames(3, dtype="|u1"), chunks=(1, 4, 6))
    keys = {
        "adsimdet_image": external((1, 4, 6), "|u1"),
        "adsimdet_stats1_mean_value": key(dtype_numpy="<f8"),
        "adsimdet_roi1_size_x": key("integer"),
        "adsimdet_hdf1_full_file_name": key("string"),
    }
    descriptor = run.descriptor(keys)
    resource = run.resource("AD_HDF5", "/", str(directory / "adsim.h5")[1:], frame_per_point=1)
    for number in range(3):
        data = {
            "adsimdet_stats1_mean_value": 1.5,
            "adsimdet_roi1_size_x": 6,
            "adsimdet_hdf1_full_file_name": "/tmp/a.h5",
        }
        data["adsimdet_image"] = run.datum(resource, number, point_number=number)
        run.event(descriptor, number + 1, data, filled={"adsimdet_image": False})
    return run.stop()


@entry("APS: spectra of a DANTE analyser and traces of a Struck scaler, as arrays in events")
def aps_spectra_in_events(_: Path) -> Documents:
    run = RunDocuments(**APS)
    keys = {
        "dante_mca1_spectrum": key("array", [128], dtype_numpy="<i4"),
        "struck_mca1_spectrum": key("array", [64]),
        "dante_mca1_rois": key("array", [4], dtype_numpy="<f8"),
        "dante_input_count_rate": key(dtype_numpy="<f8"),
    }
    descriptor = run.descriptor(keys)
    rows = [
        {
            "dante_mca1_spectrum": numpy.arange(128, dtype="<i4") + n,
            "struck_mca1_spectrum": list(range(n, 64 + n)),
            "dante_mca1_rois": [1.5 * n] * 4,
            "dante_input_count_rate": 1e5 + n,
        }
        for n in range(3)
    ]
    run.events(descriptor, rows)
    return run.stop()
