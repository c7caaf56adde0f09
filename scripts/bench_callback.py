"""How much longer a scan takes with the publisher subscribed than with a callback that does nothing.

No supervisor runs: the publisher spools. Rounds alternate between the two; the figure is the ratio of the medians.

    .demo/venv/bin/python scripts/bench_callback.py
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from pathlib import Path

import bluesky.plans as bp
from bluesky import RunEngine
from ophyd.sim import det, motor

from tiledbroker import ZMQPublisher
from tiledwriter.testing import free_port


def do_nothing(_name: str, _doc: dict) -> None:
    """What the publisher is compared with."""


def scan_with(callback, events: int) -> float:
    """Seconds that a scan of so many events takes."""
    engine = RunEngine({})
    engine.subscribe(callback)
    begun = time.perf_counter()
    engine(bp.scan([det], motor, -1, 1, events))
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.getLogger("bluesky").setLevel(logging.WARNING)
    empty, ours = [], []
    with tempfile.TemporaryDirectory() as directory:
        publisher = ZMQPublisher(("127.0.0.1", free_port()), spool_dir=Path(directory) / "spool")
        scan_with(do_nothing, arguments.events)  # warm up
        for _ in range(arguments.rounds):
            empty.append(scan_with(do_nothing, arguments.events))
            ours.append(scan_with(publisher, arguments.events))
        waiting = publisher.status().waiting
        publisher.close(timeout=0)
    result = {
        "events": arguments.events,
        "empty callback, s": [round(t, 4) for t in empty],
        "ZMQPublisher, s": [round(t, 4) for t in ours],
        "ratio of medians": round(statistics.median(ours) / statistics.median(empty), 4),
        "documents spooled": waiting,
    }
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:20} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
