"""What a worker process is told, and what it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

ProcessIdentity: TypeAlias = tuple[int, float]
"""A process: its pid, and the Unix time of its creation."""


@dataclass(frozen=True)
class WorkerTask:
    """What a worker process is told: its run, the journal, and the socket to report to.

    Attributes
    ----------
    mailbox
        ZeroMQ URL of the supervisor's socket for workers.
    token
        The worker's identity on that socket.
    run_uid
        Uid of the run.
    journal
        Path of the run's journal.
    drain
        End once everything in the journal is written, even if the run is open.
    order
        Unix time at which the run arrived; it orders the runs, and no two are equal.
    client
        Name of the CURVE key with which the documents came; "" without CURVE.
    lease_page
        Path of the deadline page of the supervisor's lease; None if no other host can serve instead.
    lifeline
        Descriptor that becomes readable when the supervisor is gone; -1 if there is none. The fork server sets it.
    """

    mailbox: str
    token: bytes
    run_uid: str
    journal: Path
    drain: bool
    order: float = 0.0
    client: str = ""
    lease_page: Path | None = None
    lifeline: int = -1


@dataclass(frozen=True)
class WorkerCommand:
    """What a worker process runs.

    Attributes
    ----------
    target
        Function that a worker process calls.
    preload
        Modules that the fork server imports before it forks the first worker.
    prepare
        Function that the fork server calls after that; None for none. If it raises an error when it is called for the
        first time, no worker can be used, and the supervisor ends with `WorkersUnusable`. Later errors are logged.
    descriptors
        Open files of the supervisor that workers inherit, under the same numbers.
    """

    target: Callable[[WorkerTask], None]
    preload: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None
    descriptors: tuple[int, ...] = ()
