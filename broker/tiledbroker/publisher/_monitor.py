"""What libzmq knows of a connection to the supervisor: whether it came about, and what stands in its way."""

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
_numbers: Final = itertools.count()  # an address is taken until libzmq has tidied up
_FAILURES: Final = {
    zmq.EVENT_CLOSED: "nothing listens there",
    zmq.EVENT_DISCONNECTED: "the connection broke",
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: "the supervisor does not let this publisher's key in",
}


class ConnectionMonitor:
    """Watches a socket that is about to connect.

    Parameters
    ----------
    url
        Where to, for the log.
    secured
        Whether it uses CURVE.
    before
        What stood in the way of the connection before this one: it is not logged again.

    Attributes
    ----------
    problem
        What stands in the way; "" once the connection is there.
    begun
        Whether there was anything to be told. Before that, libzmq waits for a name server.
    broken
        Whether the connection was there, and is gone. The socket would make another by itself, under the identity of
        this one, which the other end can still take for alive.
    unresolved
        Whether no address was found for the host's name.
    socket
        To be polled; `read` takes in what it says.
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
        self.socket.setsockopt(zmq.RCVHWM, 0)  # else libzmq's thread waits for us when many events come at once
        self.socket.connect(address)

    def read(self) -> None:
        """Take in what has happened."""
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
                if not self._tried:  # there was no socket to be closed
                    host = self._url.partition("://")[2].rpartition(":")[0]
                    self._note(f"the name {host} cannot be resolved")
                    self.unresolved = True
                self._tried = False
                continue
            self._tried = True
            self.broken = self.broken or (self._there and event == zmq.EVENT_DISCONNECTED)
            if not self._failed:  # what comes after is a consequence
                self._failed = event != zmq.EVENT_CLOSED
                self._note(_FAILURES.get(event) or self._explain(event))

    def _note(self, problem: str) -> None:
        """Something stands in the way; logged if it is news."""
        if problem == self.problem:
            return
        self.problem = problem
        log.warning("Documents are spooled, and not shipped to %s: %s.", self._url, problem)

    def _explain(self, event: zmq.Event) -> str:
        """A handshake that fails as such has to do with how the two sides are set up."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            known = "is it a supervisor, and is its public key the one that this publisher has?"
            return f"the handshake fails: {known if self._secured else 'is it a supervisor?'}"
        if self._secured:
            return "it does not use CURVE, and this publisher does"
        return "it lets in clients with keys only, and this publisher has none (see `curve`)"

    def close(self) -> None:
        """Before the connection is closed."""
        # First: libzmq's thread would wait for ever, and with it all connections, to tell a socket that is closed.
        self._connection.disable_monitor()
        self.socket.close(linger=0)
