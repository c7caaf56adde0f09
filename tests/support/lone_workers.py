"""Workers without a supervisor, in a module that the fork server can import wherever it was started."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

from tiledbroker.supervisor._tasks import WorkerTask


def live_while_supervised(task: WorkerTask) -> None:
    """Say that it lives, and end with the supervisor's end of the lifeline, or when a file is there."""
    task.journal.with_suffix(".alive").touch()
    lifeline = socket.socket(fileno=task.lifeline)
    lifeline.settimeout(0.02)
    while not task.journal.with_suffix(".end").exists():
        try:
            lifeline.recv(1)
            task.journal.with_suffix(".orphaned").touch()
            return
        except TimeoutError:
            pass


def refuse_to_prepare() -> None:
    """Raise an error once the file exists that the environment names."""
    if Path(os.environ["TEST_UNPREPARED"]).exists():
        raise RuntimeError("the lab's module is broken")


def fail(task: WorkerTask) -> None:
    if task.run_uid == "raises":
        raise RuntimeError("as the test wants it")
    sys.exit(int(task.run_uid))
