"""Which supervisor start may write to Tiled: one lease for all ingest hosts of a service, with a deadline."""

from __future__ import annotations

from ._deadline_page import DeadlinePage, boottime
from ._directory_store import DirectoryStore
from ._keeper import LeaseFacts, LeaseKeeper, make_holder_name
from ._lease import (
    DEFAULT_TIMING,
    SHORTEST_LEASE_SECONDS,
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
    "SHORTEST_LEASE_SECONDS",
    "CompareAndSet",
    "DeadlinePage",
    "DirectoryStore",
    "Lease",
    "LeaseFacts",
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
