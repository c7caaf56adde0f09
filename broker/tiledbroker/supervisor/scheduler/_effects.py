"""Effects: what the scheduler decides and the supervisor performs, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from ...protocol import messages
from .._publishers import Publisher
from .._tasks import ProcessIdentity


@dataclass(frozen=True)
class StartWorker:
    """Start a worker process for a run.

    Attributes
    ----------
    worker
        Number of the worker; no two workers of a scheduler have the same.
    uid
        Uid of the run.
    journal
        Path of the run's journal, perhaps in the folder of finished runs.
    order
        Unix time at which the run arrived.
    client
        Name of the CURVE key that the run belongs to; "" without one.
    orphan
        Process that must be gone before; None if there is none.
    """

    worker: int
    uid: str
    journal: Path
    order: float
    client: str
    orphan: ProcessIdentity | None = None


@dataclass(frozen=True)
class SendToWorker:
    """Send a message to a worker, which may be gone."""

    worker: int
    message: messages.Message


@dataclass(frozen=True)
class KillWorker:
    """Kill a worker process with SIGKILL."""

    worker: int


@dataclass(frozen=True)
class KillOrphan:
    """Kill a worker process of an earlier supervisor with SIGKILL."""

    process: ProcessIdentity


@dataclass(frozen=True)
class TellPublisher:
    """Send a message to a publisher, which may be gone."""

    publisher: Publisher
    message: messages.Message


@dataclass(frozen=True)
class RefuseDocuments:
    """Refuse a message of a publisher; the refusal is counted under `topic`."""

    topic: str
    publisher: Publisher
    refusal: messages.Refused


@dataclass(frozen=True)
class CompareDocuments:
    """Compare documents of an ended run with its journal, which is `length` documents long; answer the publisher."""

    publisher: Publisher
    journal: Path
    message: messages.Documents
    length: int


@dataclass(frozen=True)
class ReadForAudit:
    """Read the journal of a run whose audit is due."""

    uid: str


@dataclass(frozen=True)
class RecordEvent:
    """Note an event in the history of a journal whose worker is gone, and set values of the journal's state."""

    journal: Path
    event: str
    detail: Mapping[str, Any]
    state: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileJournal:
    """Move the journal of a finished run to the folder of finished runs."""

    journal: Path


@dataclass(frozen=True)
class ClearFailure:
    """Remove the failure from a journal, so that its run can be written after all."""

    journal: Path


@dataclass(frozen=True)
class WithdrawRetry:
    """Remove a retry request, which is answered."""

    journal: Path


Effect: TypeAlias = (
    StartWorker
    | SendToWorker
    | KillWorker
    | KillOrphan
    | TellPublisher
    | RefuseDocuments
    | CompareDocuments
    | ReadForAudit
    | RecordEvent
    | FileJournal
    | ClearFailure
    | WithdrawRetry
)
