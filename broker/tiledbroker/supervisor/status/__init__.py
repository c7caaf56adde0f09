"""What the supervisor tells of the service: the snapshot, its health, and what is counted for it; decided without I/O.

`_service_view` above makes a snapshot from the scheduler and from what is counted here.
"""

from __future__ import annotations

from ._health import TILED_GRACE_SECONDS, Symptoms, commands_for_failed, judge_service
from ._outage import Backlog, TiledOutage
from ._recent_trouble import PACKAGE, RecentTrouble
from ._snapshot import (
    MAX_LISTED_RUNS,
    SCHEMA,
    DiskStatus,
    Latency,
    LeaseStatus,
    LogStatus,
    PublisherConnection,
    RunsStatus,
    RunStatus,
    RunWorker,
    Snapshot,
    TiledLook,
    TiledStatus,
    Totals,
    Trouble,
    WorkersStatus,
    decode_snapshot,
    encode_snapshot,
)
from ._tally import Tally
from ._texts import format_bytes, format_seconds, format_time
from ._tiled_reports import TiledReports

__all__ = [
    "MAX_LISTED_RUNS",
    "PACKAGE",
    "SCHEMA",
    "TILED_GRACE_SECONDS",
    "Backlog",
    "DiskStatus",
    "Latency",
    "LeaseStatus",
    "LogStatus",
    "PublisherConnection",
    "RecentTrouble",
    "RunStatus",
    "RunWorker",
    "RunsStatus",
    "Snapshot",
    "Symptoms",
    "Tally",
    "TiledLook",
    "TiledOutage",
    "TiledReports",
    "TiledStatus",
    "Totals",
    "Trouble",
    "WorkersStatus",
    "commands_for_failed",
    "decode_snapshot",
    "encode_snapshot",
    "format_bytes",
    "format_seconds",
    "format_time",
    "judge_service",
]
