"""What publishers talk to over ZeroMQ: the source of the supervisor, its connections, and the relay to targets."""

from __future__ import annotations

from ._frontend import DEFAULT_ADDRESS, Frontend
from ._relay import Relay
from ._relayed_frontend import RelayedFrontend

__all__ = [
    "DEFAULT_ADDRESS",
    "Frontend",
    "Relay",
    "RelayedFrontend",
]
