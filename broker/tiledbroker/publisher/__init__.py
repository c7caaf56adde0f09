"""Publisher in the acquisition process: the RunEngine callback, its spool, and the threads that flush and ship it."""

from __future__ import annotations

from ._jetstream_publisher import JetStreamPublisher
from ._publisher import PublisherStatus
from ._zmq_publisher import ZMQPublisher

__all__ = ["JetStreamPublisher", "PublisherStatus", "ZMQPublisher"]
