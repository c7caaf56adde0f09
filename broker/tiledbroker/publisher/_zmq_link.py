"""The link over ZeroMQ: one DEALER socket after the other, with a monitor for each."""

from __future__ import annotations

import ipaddress
import math
import secrets
import time
from typing import Final

import zmq

from ..protocol import Keys, messages
from ._monitor import ConnectionMonitor

RESOLVE_SECONDS: Final = 0.5
"""Time that a connection is given to resolve the supervisor's name, if it has failed to do so."""


class ZMQLink:
    """A `Link` to a supervisor over ZeroMQ.

    Parameters
    ----------
    url
        Address of the supervisor.
    keys
        CURVE keys; None for connections without encryption.
    """

    def __init__(self, url: str, keys: Keys | None) -> None:
        self._url = url
        self._keys = keys
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._ipv6 = "[" in url
        self._answered = False

    @property
    def problem(self) -> str:
        """Reason why there is no connection; "" once there is one."""
        return self._monitor.problem

    @property
    def begun(self) -> bool:
        """True once libzmq has reported an event."""
        return self._monitor.begun

    @property
    def broken(self) -> bool:
        """True once the connection is lost, or the supervisor's name cannot be resolved."""
        monitor = self._monitor
        return monitor.broken or (monitor.unresolved and time.monotonic() - self._connected_at > RESOLVE_SECONDS)

    def connect(self, problem: str) -> None:
        """Begin to connect; see `Link`."""
        self._answered = False
        self._socket = self._make_socket()
        self._monitor = ConnectionMonitor(self._socket, self._url, secured=self._keys is not None, before=problem)
        self._socket.connect(self._url)
        self._connected_at = time.monotonic()

    def _make_socket(self) -> zmq.Socket[bytes]:
        connection = self._context.socket(zmq.DEALER)
        connection.setsockopt(zmq.ROUTING_ID, new_identity())
        connection.setsockopt(zmq.LINGER, 0)
        # Queue messages for established connections only.
        connection.setsockopt(zmq.IMMEDIATE, 1)
        connection.setsockopt(zmq.RECONNECT_IVL, 100)
        connection.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        connection.setsockopt(zmq.MAXMSGSIZE, messages.MAX_HEADER_BYTES)
        if self._ipv6:
            connection.setsockopt(zmq.IPV6, 1)
        if self._keys is not None:
            self._keys.apply(connection)
        return connection

    def disconnect(self, linger_seconds: float) -> None:
        """End the connection; see `Link`."""
        if not self._answered and not _is_numeric(self._url):
            # The host's name may have only IPv4 or only IPv6 addresses, so try the other kind next.
            self._ipv6 = not self._ipv6
        self._monitor.close()
        self._socket.close(linger=math.ceil(1000 * linger_seconds))

    def send(self, message: messages.Message) -> bool:
        """Send a message; return False if the socket does not take it now."""
        try:
            self._socket.send_multipart(messages.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> messages.Message | None:
        """Return the next message that has arrived; None if there is none.

        Raises
        ------
        ProtocolError
            Frames have arrived that are not a valid message.
        """
        try:
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return None
        message = messages.decode(frames)
        self._answered = True
        return message

    def busy(self, run_uid: str) -> bool:  # noqa: ARG002
        """Return False: a socket keeps the order of its messages."""
        return False

    def wait(self, descriptor: int, timeout_seconds: float, *, blocked: bool) -> bool:
        """Wait for events; see `Link`."""
        # The socket becomes writable once a supervisor is connected, and when it takes messages again.
        events = zmq.POLLIN | zmq.POLLOUT if blocked else zmq.POLLIN
        awaited = [(self._socket, events), (self._monitor.socket, zmq.POLLIN), (descriptor, zmq.POLLIN)]
        # Not through the socket's own descriptor: it tells of changes only, so messages could be overlooked.
        found = dict(zmq.zmq_poll(awaited, math.ceil(1000 * timeout_seconds)))
        if self._monitor.socket in found:
            self._monitor.read()
        return descriptor in found

    def close(self) -> None:
        """Close the connections; those that linger get their time."""
        self._context.destroy(linger=0)


def new_identity() -> bytes:
    """Return a random ZeroMQ routing identity for one connection.

    It cannot be guessed, so no other client can receive messages that are meant for this one. The first byte is not
    zero, because ZeroMQ reserves identities that begin with zero.
    """
    return bytes([1 + secrets.randbelow(255)]) + secrets.token_bytes(messages.IDENTITY_BYTES - 1)


def _is_numeric(url: str) -> bool:
    """Return True if the host of a URL needs no name resolution: a numeric IP address, or not TCP at all."""
    scheme, _, endpoint = url.partition("://")
    try:
        return scheme != "tcp" or bool(ipaddress.ip_address(endpoint.rpartition(":")[0].strip("[]")))
    except ValueError:
        return False
