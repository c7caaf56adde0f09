"""The acquisition host: the callback, its spool, and the thread that ships it."""

from __future__ import annotations

from ._publisher import PublisherStatus, ZMQPublisher

__all__ = ["PublisherStatus", "ZMQPublisher"]
