"""All communication with Tiled while runs are written: connection, retries, write slots, nodes, rewrites, checks."""

from __future__ import annotations

from ._account import Account, AccountRequests, ApiKey
from ._catalog import TiledCatalog
from ._connection import Client, Connection, KnownServer, WriteSlot, check_version
from ._decisions import Decisions
from ._ledger import MemoryLedger
from ._node_checks import ArrayCheck, ExternalCheck, NodeCheck, TableCheck, same
from ._nodes import Nodes, node_body
from ._preflight import SERVER_CHECKS, PreflightOptions, ServerChecks
from ._request_counts import CountedRequests, RequestCounts
from ._stored import StoredNodes

__all__ = [
    "SERVER_CHECKS",
    "Account",
    "AccountRequests",
    "ApiKey",
    "ArrayCheck",
    "Client",
    "Connection",
    "CountedRequests",
    "Decisions",
    "ExternalCheck",
    "KnownServer",
    "MemoryLedger",
    "NodeCheck",
    "Nodes",
    "PreflightOptions",
    "RequestCounts",
    "ServerChecks",
    "StoredNodes",
    "TableCheck",
    "TiledCatalog",
    "WriteSlot",
    "check_version",
    "node_body",
    "same",
]
