"""Runs of a real RunEngine with the simulated devices of ophyd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy
from ophyd import Component, Device, Kind, Signal
from ophyd.sim import SynSignal, hw

from ._engine import PlanFailed, acquire
from ._entry import Collection, Documents

entry = Collection()


def signal(name: str, *values: Any) -> SynSignal:
    """A detector that gives these values one after the other, and then the last one for ever."""
    left = list(values)
    return SynSignal(name=name, func=lambda: left.pop(0) if len(left) > 1 else left[0])


@entry("count: the simplest run")
def count(_: Path) -> Documents:
    return acquire(bp.count([hw().det], num=3), sample="nothing")


@entry("count: many detectors, one event per batch", batch_size=1)
def count_event_by_event(_: Path) -> Documents:
    devices = hw()
    return acquire(bp.count([devices.det1, devices.det2, devices.motor], num=3))


@entry("scan of one motor with hints and plan arguments in the metadata")
def scan(_: Path) -> Documents:
    devices = hw()
    return acquire(bp.scan([devices.det], devices.motor, -1, 1, 5))


@entry("snaked grid scan of two motors, with a shape and extents in the metadata")
def grid_scan(_: Path) -> Documents:
    devices = hw()
    return acquire(bp.grid_scan([devices.det4], devices.motor1, -1, 1, 3, devices.motor2, 0, 2, 2, snake_axes=True))


@entry("scan of a list of points that are integers")
def list_scan(_: Path) -> Documents:
    devices = hw()
    return acquire(bp.list_scan([devices.det], devices.motor, [0, 1, 3, 2]))


@entry("adaptive scan, with a step that depends on what was measured")
def adaptive_scan(_: Path) -> Documents:
    devices = hw()
    plan = bp.adaptive_scan([devices.det], "det", devices.motor, -3, 3, 0.3, 2.0, 0.5, backstep=False)
    return acquire(plan)


@entry("detector that is noisy and has configuration of its own")
def noisy_detector(_: Path) -> Documents:
    devices = hw()
    devices.noisy_det.Imax.put(10)
    return acquire(bp.count([devices.noisy_det], num=4))


@entry("baseline stream, by SupplementalData")
def baseline(_: Path) -> Documents:
    devices = hw()
    supplemental = bpp.SupplementalData(baseline=[devices.motor1, devices.motor2, devices.det1])
    return acquire(bp.scan([devices.det], devices.motor, 0, 2, 3), preprocessors=[supplemental])


@entry("monitored signals, each in a stream of its own")
def monitors(_: Path) -> Documents:
    ring, shutter = Signal(name="ring_current", value=400.0), Signal(name="shutter", value="open")

    @bpp.monitor_during_decorator([ring, shutter])
    @bpp.run_decorator()
    def plan() -> Iterator[Any]:
        for current in (399.5, 399.0):
            yield from bps.abs_set(ring, current, wait=True)
        yield from bps.abs_set(shutter, "closed", wait=True)
        yield from bps.trigger_and_read([hw().det])

    return acquire(plan())


@entry("two runs at once, their documents interleaved")
def interleaved_runs(_: Path) -> Documents:
    devices = hw()
    read_first, read_second = devices.det1, devices.det2

    @bpp.set_run_key_decorator("inner")
    @bpp.run_decorator(md={"role": "inner"})
    def inner() -> Iterator[Any]:
        yield from bps.trigger_and_read([read_second])
        yield from bps.trigger_and_read([read_second])

    @bpp.set_run_key_decorator("outer")
    @bpp.run_decorator(md={"role": "outer"})
    def outer() -> Iterator[Any]:
        yield from bps.trigger_and_read([read_first])
        yield from inner()
        yield from bps.trigger_and_read([read_first])

    return acquire(outer())


@entry("run that is aborted in a pause")
def aborted_run(_: Path) -> Documents:
    @bpp.run_decorator()
    def plan() -> Iterator[Any]:
        yield from bps.checkpoint()
        yield from bps.trigger_and_read([hw().det])
        yield from bps.checkpoint()
        yield from bps.pause()

    return acquire(plan(), then="abort")


@entry("run whose plan fails after the first event")
def failed_run(_: Path) -> Documents:
    @bpp.run_decorator()
    def plan() -> Iterator[Any]:
        yield from bps.trigger_and_read([hw().det])
        raise PlanFailed("as expected")

    return acquire(plan())


@entry("pause and rewind: sequence numbers come again")
def rewound_run(_: Path) -> Documents:
    @bpp.run_decorator()
    def plan() -> Iterator[Any]:
        motor, det = hw().motor, hw().det
        yield from bps.checkpoint()
        for position in (0.5, 1.5):
            yield from bps.mv(motor, position)
            yield from bps.trigger_and_read([det, motor])
        yield from bps.pause()
        yield from bps.checkpoint()
        yield from bps.trigger_and_read([det, motor])

    return acquire(plan(), then="resume")


@entry("start and stop, nothing else")
def run_without_streams(_: Path) -> Documents:
    @bpp.run_decorator()
    def plan() -> Iterator[Any]:
        yield from bps.null()

    return acquire(plan())


@entry("stream that is declared and gets no event")
def stream_without_events(_: Path) -> Documents:
    det, motor = hw().det, hw().motor

    @bpp.run_decorator()
    def plan() -> Iterator[Any]:
        yield from bps.declare_stream(det, motor, name="empty")
        yield from bps.trigger_and_read([det])

    return acquire(plan())


@entry("configuration that changes in mid-run: a second descriptor of the stream")
def configuration_change(_: Path) -> Documents:
    det = hw().det

    @bpp.run_decorator()
    def plan() -> Iterator[Any]:
        yield from bps.trigger_and_read([det])
        yield from bps.configure(det, {"Imax": 5})
        yield from bps.trigger_and_read([det])
        yield from bps.configure(det, {"Imax": 7, "sigma": 2})
        yield from bps.trigger_and_read([det])

    # The detector's components can be set without moving anything.
    det.configure = lambda values: configured(det, values)
    return acquire(plan())


def configured(device: Device, values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Set components; as a device's `configure` does, give the configuration before and after."""
    before = device.read_configuration()
    for name, value in values.items():
        getattr(device, name).put(value)
    return before, device.read_configuration()


@entry("area detector that writes NPY files, by Resource and Datum documents")
def image_files(directory: Path) -> Documents:
    devices = hw(save_path=str(directory))
    return acquire(bp.scan([devices.img, devices.det], devices.motor, 0, 1, 3))


@entry("images that come in the events themselves")
def images_in_events(_: Path) -> Documents:
    return acquire(bp.count([hw().direct_img], num=3))


@entry("images in the events as lists of lists")
def images_as_lists(_: Path) -> Documents:
    return acquire(bp.count([hw().direct_img_list], num=3))


@entry("strings, some of them empty or with line breaks")
def strings(_: Path) -> Documents:
    return acquire(bp.count([signal("label", "a", "", "two\nlines", "Ängström µ 試料")], num=4))


@entry("booleans")
def booleans(_: Path) -> Documents:
    return acquire(bp.count([signal("shutter_open", True, False, True)], num=3))


@entry("integers")
def integers(_: Path) -> Documents:
    return acquire(bp.count([signal("counts", 1, -5, 2**40)], num=3))


@entry("short lists of numbers, which fit the table")
def short_lists(_: Path) -> Documents:
    return acquire(bp.count([signal("roi", [1.5, 2.5, 3.5], [4.5, 5.5, 6.5])], num=2))


@entry("short numpy arrays of integers")
def short_arrays(_: Path) -> Documents:
    return acquire(bp.count([signal("bins", numpy.arange(5), numpy.arange(5) * 2)], num=2))


@entry("waveforms that are too long for the table")
def waveforms(_: Path) -> Documents:
    waves = [numpy.linspace(0, i, 64) for i in range(1, 5)]
    return acquire(bp.count([signal("waveform", *waves)], num=4))


@entry("waveforms, two events per batch", batch_size=2)
def waveforms_in_batches(_: Path) -> Documents:
    waves = [numpy.linspace(0, i, 64) for i in range(1, 7)]
    return acquire(bp.count([signal("waveform", *waves), signal("number", 1.5, 2.5)], num=5))


@entry("two waveforms and an image of partly equal sizes: dimensions that line up")
def waveforms_of_equal_size(_: Path) -> Documents:
    detectors = [signal("wave1", numpy.zeros(20)), signal("wave2", numpy.ones(20)), signal("image", numpy.eye(20, 30))]
    return acquire(bp.count(detectors, num=2))


class Stage(Device):
    """A device of several parts, of all kinds."""

    x = Component(Signal, value=1.0, kind=Kind.hinted)
    mode = Component(Signal, value="fast", kind=Kind.config)
    limits = Component(Signal, value=[-5.0, 5.0], kind=Kind.config)
    steps = Component(Signal, value=12, kind=Kind.normal)


@entry("device with hinted, normal and configuration parts, and deep metadata")
def composed_device(_: Path) -> Documents:
    metadata = {"sample": {"name": "S1", "layers": [{"material": "Si", "nm": 5.5}, {"material": "W", "nm": 2}]}}
    return acquire(bp.count([Stage(name="stage")], num=2), **metadata, none=None, flags=[True, False, None])


@entry("events of a fly scan, in event pages")
def flyer(_: Path) -> Documents:
    devices = hw()
    return acquire(bp.fly([devices.flyer1]))
