"""Which supervisor start may write to Tiled: one lease for all ingest hosts of a service, with a deadline."""

from __future__ import annotations

from ._deadline_page import DeadlinePage, boottime
from ._directory_store import DirectoryStore
from ._keeper import LeaseKeeper, make_holder_name
from ._lease import (
    DEFAULT_TIMING,
    CompareAndSet,
    Lease,
    LeaseTiming,
    Ownership,
    OwnershipState,
    Read,
    Step,
    Stored,
    Wait,
)
from ._store import LeaseStore

__all__ = [
    "DEFAULT_TIMING",
    "CompareAndSet",
    "DeadlinePage",
    "DirectoryStore",
    "Lease",
    "LeaseKeeper",
    "LeaseStore",
    "LeaseTiming",
    "Ownership",
    "OwnershipState",
    "Read",
    "Step",
    "Stored",
    "Wait",
    "boottime",
    "make_holder_name",
]
