"""The source of the supervisor that is a site's log in NATS JetStream, and the lease of a host that reads it."""

from __future__ import annotations

from ._shared_runs import SharedRuns
from ._source import JetStreamSource

__all__ = ["JetStreamSource", "SharedRuns"]
