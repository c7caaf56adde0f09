"""What publishers talk to: connections, handshakes, and the relay to several targets."""

from __future__ import annotations

from ._frontend import Frontend
from ._handshake_queue import HandshakeQueue
from ._relay import Relay
from ._relayed_frontend import RelayedFrontend

__all__ = [
    "Frontend",
    "HandshakeQueue",
    "Relay",
    "RelayedFrontend",
]
