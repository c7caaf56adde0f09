"""The source of the supervisor that is a site's log in NATS JetStream."""

from __future__ import annotations

from ._source import JetStreamSource

__all__ = ["JetStreamSource"]
