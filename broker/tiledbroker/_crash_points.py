"""Points between two durable steps at which tests end the process, as a power switch would.

`TILEDWRITER_CRASH_AT` names the point, `TILEDWRITER_CRASH_ONCE` a file that the process makes before it dies: a process
that finds the file lives, so the next one can go on. Without the first, nothing of this does anything.
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
    """End the process here if a test wants it."""
    if name != _AT:
        return
    if _ONCE is not None:
        try:
            os.close(os.open(_ONCE, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)
