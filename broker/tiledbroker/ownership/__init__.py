"""Which supervisor start may write to Tiled, by a lease of all ingest hosts, and what it must know of earlier ones."""

from __future__ import annotations

from ._claims import SERVICE, UNREADABLE, Claim, ClaimStep, EndLease, HostLease, Inheritance, PutClaim, RunClaims
from ._deadline_page import DeadlinePage, boottime
from ._decision_file import RUNS_SUBDIRECTORY, DecisionFile
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
from ._run_decisions import DECISIONS, DecisionStore, RunDecisions, TableRewrite
from ._store import LeaseStore

__all__ = [
    "DECISIONS",
    "DEFAULT_TIMING",
    "RUNS_SUBDIRECTORY",
    "SERVICE",
    "SHORTEST_LEASE_SECONDS",
    "UNREADABLE",
    "Claim",
    "ClaimStep",
    "CompareAndSet",
    "DeadlinePage",
    "DecisionFile",
    "DecisionStore",
    "DirectoryStore",
    "EndLease",
    "HostLease",
    "Inheritance",
    "Lease",
    "LeaseFacts",
    "LeaseKeeper",
    "LeaseStore",
    "LeaseTiming",
    "Ownership",
    "OwnershipState",
    "PutClaim",
    "Read",
    "RunClaims",
    "RunDecisions",
    "Step",
    "Stored",
    "TableRewrite",
    "Wait",
    "boottime",
    "make_holder_name",
]
