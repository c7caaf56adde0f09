"""The acquisition process of the demo: a RunEngine with simulated devices and one line that publishes its documents.

Prints a JSON object per line about what it emits, for the process that watches: run, label, and documents so far.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from pathlib import Path

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy
from bluesky import RunEngine
from ophyd.sim import SynSignalWithRegistry, det, det1, motor
from ophyd_async.core import StaticPathProvider, UUIDFilenameProvider, init_devices
from ophyd_async.sim import PatternGenerator, SimBlobDetector, SimMotor

from tiledbroker import ZMQPublisher


class Witness:
    """Counts what the RunEngine emits, run by run, independently of the publisher."""

    def __init__(self) -> None:
        self.label = ""
        self._runs: dict[str, Counter[str]] = {}
        self._run_of: dict[str, str] = {}

    def __call__(self, name: str, doc: dict) -> None:
        run = self._find(doc)
        self._runs.setdefault(run, Counter())[name] += 1
        total = sum(self._runs[run].values())
        if name in ("start", "stop") or total % 100 == 0:
            counts = dict(self._runs[run])
            print(json.dumps({"run": run, "label": self.label, "last": name, "counts": counts}), flush=True)

    def _find(self, doc: dict) -> str:
        for reference in ("run_start", "descriptor", "resource"):
            if reference in doc:
                run = doc[reference] if reference == "run_start" else self._run_of[doc[reference]]
                break
        else:
            run = doc["uid"]
        if "uid" in doc:
            self._run_of[doc["uid"]] = run
        return run


def interleaved(detectors: list, number: int):
    """Two runs at once: every point is measured into both."""

    @bpp.set_run_key_decorator("outer")
    @bpp.run_decorator(md={"plan_name": "interleaved_outer"})
    def outer():
        @bpp.set_run_key_decorator("inner")
        @bpp.run_decorator(md={"plan_name": "interleaved_inner"})
        def inner():
            for _ in range(number):
                yield from bpp.set_run_key_wrapper(bps.trigger_and_read(detectors), "outer")
                yield from bps.trigger_and_read(detectors)

        yield from inner()

    yield from outer()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--spool", type=Path, required=True)
    parser.add_argument("--files", type=Path, required=True)
    parser.add_argument("--events", type=int, default=1500)
    arguments = parser.parse_args()
    logging.getLogger("bluesky").setLevel(logging.WARNING)

    engine = RunEngine({"beamline": "demo"})
    witness = Witness()
    publisher = ZMQPublisher(arguments.address, spool_dir=arguments.spool)
    engine.subscribe(witness)
    engine.subscribe(publisher)

    image = SynSignalWithRegistry(func=lambda: numpy.ones((10, 10)), name="img", save_path=str(arguments.files))
    with init_devices():
        blob = SimBlobDetector(
            StaticPathProvider(UUIDFilenameProvider(), arguments.files),
            PatternGenerator(),
        )
        x, y = SimMotor(), SimMotor()

    witness.label = "scan"
    engine(bp.scan([det], motor, -5, 5, 21))
    witness.label = "grid scan, HDF5"
    engine(bp.grid_scan([blob], x, -1, 1, 3, y, -1, 1, 4))
    witness.label = "count, NPY files"
    engine(bp.count([image], 5))
    witness.label = "interleaved"
    engine(interleaved([det, det1], 10))
    witness.label = "long scan, with kills"
    engine(bp.count([det, motor], arguments.events, delay=0.002))
    publisher.close(timeout=30)


if __name__ == "__main__":
    main()
