"""Named points between two durable steps at which a test can kill the process, as a power cut would.

`TILEDWRITER_CRASH_AT` names the point; if it is not set, `crash_point` does nothing. `TILEDWRITER_CRASH_ONCE` names a
file that the process creates before it dies. A process that finds this file survives, so its successor can continue.
"""

from __future__ import annotations

import os
import signal
from typing import Final

POINTS: Final = (
    "publisher: document spooled",
    "shipper: batch sent",
    "shipper: run durable, spool not removed",
    "spool: segment of a removed run deleted",
    "supervisor: publisher welcomed",
    "supervisor: worker forked",
    "supervisor: documents relayed",
    "supervisor: documents durable, publisher not told",
    "supervisor: journal filed away",
    "supervisor: journal brought back",
    "worker: journal made",
    "worker: documents committed",
    "worker: documents acknowledged",
    "writing: columns to be widened",
    "writing: normalized documents recorded",
    "writing: outcome recorded",
    "catalog: node created",
    "catalog: growth intended",
    "catalog: growth done",
    "catalog: rows of an array written",
    "catalog: order set",
    "catalog: metadata set",
    "catalog: stream closed",
    "catalog: audited",
    "catalog: rewrite begun",
    "catalog: rewrite shown",
    "catalog: rewrite recorded",
    "catalog: copy detached",
    "catalog: node deleted",
)

_AT: Final = os.environ.get("TILEDWRITER_CRASH_AT")
_ONCE: Final = os.environ.get("TILEDWRITER_CRASH_ONCE")


def crash_point(name: str) -> None:
    """Kill this process with SIGKILL if `TILEDWRITER_CRASH_AT` is `name`."""
    if name != _AT:
        return
    if _ONCE is not None:
        try:
            os.close(os.open(_ONCE, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
