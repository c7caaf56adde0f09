"""The supervisor of the ingest host: it runs one worker process per run and reports each run's state to publishers."""

from __future__ import annotations

from ._lifecycle import State
from ._publishers import (
    DEFAULT_MAX_CONNECTIONS,
    DEFAULT_MAX_DOCUMENT,
    DEFAULT_MAX_OPEN_RUNS,
    DEFAULT_WINDOW,
    ClientLimits,
)
from ._reload import ReloadSource, ServiceChanges
from ._retention import time_written
from ._retry import clear_failure, request_retry, retry_is_requested, withdraw_retry
from ._run_owner import RunOwner
from ._service_lease import HeldLease, ServiceLease
from ._service_notifier import ServiceNotifier
from ._source import Source
from ._status_client import SUPERVISOR_LOCK, read_snapshot, read_snapshot_and_text
from ._supervisor import Supervisor
from ._tasks import ProcessIdentity, WorkerCommand, WorkerTask
from .frontend import DEFAULT_ADDRESS, Frontend, Relay, RelayedFrontend
from .scheduler import (
    DEFAULT_MAX_RESUMED,
    DEFAULT_MAX_WORKERS,
    DEFAULT_SILENCE,
    LOW_FACTOR,
    WorkerLimits,
    find_min_free,
)
from .status import (
    TILED_GRACE_SECONDS,
    DiskStatus,
    Latency,
    LeaseStatus,
    LogStatus,
    PublisherConnection,
    RunStatus,
    Snapshot,
    TiledLook,
    TiledStatus,
    Trouble,
    commands_for_failed,
    format_bytes,
)

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_MAX_CONNECTIONS",
    "DEFAULT_MAX_DOCUMENT",
    "DEFAULT_MAX_OPEN_RUNS",
    "DEFAULT_MAX_RESUMED",
    "DEFAULT_MAX_WORKERS",
    "DEFAULT_SILENCE",
    "DEFAULT_WINDOW",
    "LOW_FACTOR",
    "SUPERVISOR_LOCK",
    "TILED_GRACE_SECONDS",
    "ClientLimits",
    "DiskStatus",
    "Frontend",
    "HeldLease",
    "Latency",
    "LeaseStatus",
    "LogStatus",
    "ProcessIdentity",
    "PublisherConnection",
    "Relay",
    "RelayedFrontend",
    "ReloadSource",
    "RunOwner",
    "RunStatus",
    "ServiceChanges",
    "ServiceLease",
    "ServiceNotifier",
    "Snapshot",
    "Source",
    "State",
    "Supervisor",
    "TiledLook",
    "TiledStatus",
    "Trouble",
    "WorkerCommand",
    "WorkerLimits",
    "WorkerTask",
    "clear_failure",
    "commands_for_failed",
    "find_min_free",
    "format_bytes",
    "read_snapshot",
    "read_snapshot_and_text",
    "request_retry",
    "retry_is_requested",
    "time_written",
    "withdraw_retry",
]
