"""A RunEngine in a process of its own, for tests that kill things: publishes a count, and records what was emitted.

After the publisher's callback has returned for a document, its name is appended to the witness file.
"""

from __future__ import annotations

import logging
import os
import sys

import bluesky.plans as bp
from bluesky import RunEngine
from ophyd.sim import det, motor

from tiledbroker import ZMQPublisher


def main() -> None:
    address, spool, witness, events, delay, close_timeout = sys.argv[1:]
    logging.getLogger("bluesky").setLevel(logging.WARNING)
    descriptor = os.open(witness, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    engine = RunEngine({})
    publisher = ZMQPublisher(address, spool_dir=spool, on_error="raise")
    engine.subscribe(publisher)
    engine.subscribe(lambda name, doc: os.write(descriptor, f"{name} {doc['uid']}\n".encode()))
    engine(bp.count([det, motor], int(events), delay=float(delay)))
    publisher.close(timeout=float(close_timeout))


if __name__ == "__main__":
    main()
