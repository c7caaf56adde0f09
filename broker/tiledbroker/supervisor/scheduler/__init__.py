"""What the supervisor does, decided without I/O, a clock or a process: events and the time in, effects out."""

from __future__ import annotations

from ._disk_space import LOW_FACTOR, DiskSpace, Space, find_min_free
from ._effects import (
    ClearFailure,
    CompareDocuments,
    Effect,
    FileJournal,
    KillOrphan,
    KillWorker,
    ReadForAudit,
    RecordEvent,
    RefuseDocuments,
    SendToWorker,
    StartWorker,
    TellPublisher,
    WithdrawRetry,
)
from ._runs import Run, RunMessage
from ._scheduler import DEFAULT_MAX_RESUMED, DEFAULT_MAX_WORKERS, Scheduler
from ._worker_monitor import DEFAULT_SILENCE, WorkerLimits

__all__ = [
    "DEFAULT_MAX_RESUMED",
    "DEFAULT_MAX_WORKERS",
    "DEFAULT_SILENCE",
    "LOW_FACTOR",
    "ClearFailure",
    "CompareDocuments",
    "DiskSpace",
    "Effect",
    "FileJournal",
    "KillOrphan",
    "KillWorker",
    "ReadForAudit",
    "RecordEvent",
    "RefuseDocuments",
    "Run",
    "RunMessage",
    "Scheduler",
    "SendToWorker",
    "Space",
    "StartWorker",
    "TellPublisher",
    "WithdrawRetry",
    "WorkerLimits",
    "find_min_free",
]
