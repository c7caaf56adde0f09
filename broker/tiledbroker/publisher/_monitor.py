"""State of a connection to the supervisor, and the reason if there is none, from libzmq's socket monitor."""

from __future__ import annotations

import itertools
import logging
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

log = logging.getLogger(__name__)

_EVENTS: Final = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_CONNECT_RETRIED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
)
# Each monitor needs a new inproc address, because libzmq frees the old one asynchronously.
_numbers: Final = itertools.count()
_FAILURES: Final = {
    zmq.EVENT_CLOSED: "nothing is listening there",
    zmq.EVENT_DISCONNECTED: "the connection broke",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the supervisor does not accept this publisher's key",
}


class ConnectionMonitor:
    """Monitor of a socket, to be created before the socket connects.

    Parameters
    ----------
    connection
        The socket.
    url
        Address that it will connect to, for log messages.
    secured
        True if it uses CURVE.
    before
        Problem of the previous connection, which is not logged again.

    Attributes
    ----------
    problem
        Reason why there is no connection; "" once there is one.
    begun
        True once libzmq has reported an event. Until then, it may be waiting for a name server.
    broken
        True once an established connection is lost. The socket would reconnect by itself with the same identity, under
        which the other end may still consider the old connection alive.
    unresolved
        True if the host's name cannot be resolved.
    socket
        Monitor socket, to be polled; call `read` when it is readable.
    """

    def __init__(self, connection: zmq.Socket[bytes], url: str, *, secured: bool, before: str) -> None:
        self.problem = before
        self.begun = False
        self.broken = self.unresolved = False
        self._url = url
        self._secured = secured
        self._failed = self._there = False
        self._tried = False
        self._connection = connection
        address = f"inproc://tiledbroker-monitor-{next(_numbers)}"
        connection.monitor(address, _EVENTS)
        self.socket = connection.context.socket(zmq.PAIR)
        # With a high-water mark, a burst of events would block libzmq's I/O thread until we read them.
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(address)

    def read(self) -> None:
        """Process all pending events, without blocking."""
        while True:
            try:
                message = recv_monitor_message(self.socket, zmq.NOBLOCK)
            except zmq.Again:
                return
            event = zmq.Event(message["event"])
            self.begun = True
            if event == zmq.EVENT_CONNECTED:
                self._failed = False
                continue
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._there = True
                self.problem = ""
                continue
            if event == zmq.EVENT_CONNECT_RETRIED:
                # A retry without a closed TCP socket before it means that the name could not be resolved.
                if not self._tried:
                    host = self._url.partition("://")[2].rpartition(":")[0]
                    self._note_problem(f"the host name {host} cannot be resolved")
                    self.unresolved = True
                self._tried = False
                continue
            self._tried = True
            self.broken = self.broken or (self._there and event == zmq.EVENT_DISCONNECTED)
            # Events after a failed handshake or a disconnect are only consequences of it.
            if not self._failed:
                self._failed = event != zmq.EVENT_CLOSED
                self._note_problem(_FAILURES.get(event) or self._explain_failure(event))

    def _note_problem(self, problem: str) -> None:
        """Set `problem`, and log it if it is new."""
        if problem == self.problem:
            return
        self.problem = problem
        log.warning("Documents are spooled but not shipped to %s: %s.", self._url, problem)

    def _explain_failure(self, event: zmq.Event) -> str:
        """Return the probable misconfiguration behind a failed handshake."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            known = "is it a supervisor, and does this publisher have its current public key?"
            return f"the handshake failed: {known if self._secured else 'is it a supervisor?'}"
        if self._secured:
            return "it does not use CURVE, but this publisher does"
        return "it requires client keys (CURVE), and this publisher has none (see `curve`)"

    def close(self) -> None:
        """Stop monitoring; to be called before the monitored socket is closed."""
        # Disable the monitor before its socket closes: libzmq's I/O thread would block for ever, together with all
        # connections, when it sends an event to a closed socket.
        self._connection.disable_monitor()
        self.socket.close(linger=0)
