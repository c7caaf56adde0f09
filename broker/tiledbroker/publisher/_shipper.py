"""The thread that ships the spool: it moves messages between the supervisor's socket and a session, which decides."""

from __future__ import annotations

import ipaddress
import logging
import math
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Final

import zmq

from .._crash_points import crash_point
from .._errors import ProtocolError
from .._rate_limited_log import RateLimitedLog
from .._wake_up import WakeUp
from ..protocol import Keys, messages
from ._monitor import ConnectionMonitor
from ._session import ShippingSession
from ._spool import Spool

log = logging.getLogger(__name__)

MAX_SLEEP_SECONDS: Final = 0.5
"""Interval at which adopted runs, the state of the connection and the deadline are looked at if nothing happens."""
RECONNECT_SECONDS: Final = 0.1
RESOLVE_SECONDS: Final = 0.5
"""Time that a connection is given to resolve the supervisor's name, if it has failed to do so."""
RETRY_SECONDS: Final = 0.5
"""Delay before the next connection after an unexpected error."""


class Shipper:
    """Thread that ships a spool over one DEALER socket at a time.

    `stop` joins the thread. The owner of the spool closes it afterwards.

    Parameters
    ----------
    spool
        The spool to ship.
    url
        Address of the supervisor.
    name
        Name of this publisher in the supervisor's log. Default: the host name.
    keys
        CURVE keys; None for a connection without encryption.
    """

    def __init__(self, spool: Spool, url: str, *, name: str | None = None, keys: Keys | None = None) -> None:
        self._connection_problem = "no connection has come about yet"
        self._spool = spool
        self._url = url
        self._keys = keys
        self._session = ShippingSession(spool, f"{name or socket.gethostname()}/{uuid.uuid4().hex[:12]}", url)
        # Held for all that changes the session, except for reading what is to be sent.
        self._changed = threading.Condition()
        self._ipv6 = "[" in url
        self._asleep = False
        self._stopping = False
        self._ended = False
        self._deadline = math.inf
        self._wake_up = WakeUp()
        self._thread = threading.Thread(target=self._run, name="tiledbroker-shipper", daemon=True)
        self._limited_log = RateLimitedLog(log)

    # Methods for other threads.

    @property
    def connected(self) -> bool:
        """True from a Welcome of the supervisor until its connection is lost."""
        return self._session.connected

    @property
    def problem(self) -> str:
        """Reason why nothing is shipped or acknowledged; "" if there is no problem."""
        if self._connection_problem:
            return self._connection_problem
        with self._changed:
            return self._session.problem

    @property
    def refused(self) -> dict[str, str]:
        """Reasons why runs are not shipped, by uid: rejections by the supervisor, or damaged files."""
        with self._changed:
            return self._session.refused

    def refusal(self, run_uid: str) -> str:
        """Return the reason why a run is not shipped; "" if it is shipped, or is not known."""
        return self._session.refusal(run_uid)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ship as many documents as possible within `timeout` seconds, then end the thread.

        Returns
        -------
        bool
            True if all runs are durable on the ingest host.
        """
        self._deadline = time.monotonic() + timeout
        with self._changed:
            self._session.stop()
        self._stopping = True
        self._wake_up.wake()
        self._thread.join(timeout + 2.0)
        return self._spool.is_durable

    def notify(self) -> None:
        """Announce new documents. The call is cheap enough for the callback."""
        if self._asleep:
            self._asleep = False
            self._wake_up.wake()

    def wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Block until `condition` is true, and return it; it is evaluated after each message of the supervisor.

        The timeout is in seconds; None means no limit. Meanwhile documents do not wait for company.
        """

        def is_over() -> bool:
            if self._ended or condition():
                return True
            # Each acknowledgement asks for a pause again.
            self._session.hurry()
            return False

        with self._changed:
            if not is_over():
                self._wake_up.wake()
            self._changed.wait_for(is_over, timeout)
            return condition()

    def durable(self, run_uid: str) -> int | None:
        """Return how many documents of a run are durable; None if it is not being shipped, e.g. after its removal."""
        return self._session.durable(run_uid)

    def outcome(self, run_uid: str, timeout: float | None) -> tuple[str, str] | None:
        """Block until the outcome of a run is known.

        Parameters
        ----------
        run_uid
            Uid of the run.
        timeout
            Maximum time to wait in seconds; None for no limit.

        Returns
        -------
        tuple or None
            Outcome and reason as in `messages.Written`, or "refused" and the reason if the run is not shipped. None
            after the timeout.
        """
        with self._changed:
            self._session.request_outcome(run_uid)
            self._wake_up.wake()
            self._changed.wait_for(lambda: self._ended or self._session.outcome(run_uid) is not None, timeout)
            return self._session.outcome(run_uid)

    # Methods of the shipper thread.

    def _run(self) -> None:
        context = zmq.Context()
        try:
            while not self._is_done():
                try:
                    self._ship_over_connection(context)
                    if not self._is_done():
                        time.sleep(RECONNECT_SECONDS)
                except Exception as error:
                    # Keep the thread alive after any error: the spool still has all documents, so retry.
                    self._connection_problem = f"shipping was interrupted ({type(error).__name__}: {error})"
                    self._limited_log.log(logging.ERROR, "session", "Shipping was interrupted.", exc_info=True)
                    time.sleep(RETRY_SECONDS)
        finally:
            context.destroy(linger=0)
            self._wake_up.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _is_done(self) -> bool:
        if not self._stopping:
            return False
        return time.monotonic() >= self._deadline or self._session.is_complete

    def _ship_over_connection(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Ship over one connection until it breaks, the supervisor is silent for too long, or all work is done."""
        connection = self._make_socket(context)
        before = self._connection_problem
        monitor = ConnectionMonitor(connection, self._url, secured=self._keys is not None, before=before)
        connection.connect(self._url)
        poller = zmq.Poller()
        poller.register(connection, zmq.POLLIN)
        poller.register(monitor.socket, zmq.POLLIN)
        poller.register(self._wake_up.fileno(), zmq.POLLIN)
        opened_at = time.monotonic()
        with self._changed:
            self._session.open_connection(opened_at)
        try:
            while not self._is_done():
                blocked = not self._send_messages(connection)
                # The socket becomes writable once a supervisor is connected, and when it takes messages again.
                poller.modify(connection, zmq.POLLIN | zmq.POLLOUT if blocked else zmq.POLLIN)
                self._wait_for_events(poller, blocked=blocked)
                self._receive_messages(connection)
                if not self._is_usable(monitor, opened_at):
                    return
                self._connection_problem = self._find_problem(monitor, before)
        finally:
            if not self._session.connected and not _is_numeric(self._url):
                # The host's name may have only IPv4 or only IPv6 addresses, so try the other kind next.
                self._ipv6 = not self._ipv6
            self._connection_problem = self._find_problem(monitor, before) or "the supervisor has fallen silent"
            with self._changed:
                self._session.lose_connection()
            monitor.close()
            connection.close(linger=int(1000 * self._stopping))

    def _make_socket(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        connection = context.socket(zmq.DEALER)
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

    def _send_messages(self, connection: zmq.Socket[bytes]) -> bool:
        """Send all messages that are due. Return False if the socket does not take all of them now."""
        with self._changed:
            self._session.update_runs()
        try:
            for message in self._session.messages_due(time.monotonic(), time.time()):
                connection.send_multipart(messages.encode(message), zmq.NOBLOCK)
                if isinstance(message, messages.Documents):
                    crash_point("shipper: batch sent")
        except zmq.Again:
            return False
        finally:
            with self._changed:
                self._changed.notify_all()
        return True

    def _wait_for_events(self, poller: zmq.Poller, *, blocked: bool) -> None:
        """Wait for messages, for new documents, or until something is due."""
        # Look for documents after announcing the sleep: those that were appended before did not wake this thread.
        self._asleep = True
        now = time.monotonic()
        # Save the callback the system call if the thread wakes up soon anyway, or could not send its documents.
        self._asleep = not blocked and self._session.awaits_documents(now)
        wake_at = math.inf if blocked else self._session.next_at(now)
        timeout = min(max(wake_at - now, 0.0), MAX_SLEEP_SECONDS)
        events = dict(poller.poll(math.ceil(timeout * 1000)))
        self._asleep = False
        if self._wake_up.fileno() in events:
            self._wake_up.clear()

    def _receive_messages(self, connection: zmq.Socket[bytes]) -> None:
        """Pass all messages that have arrived to the session."""
        while True:
            try:
                frames = connection.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            now = time.monotonic()
            try:
                message = messages.decode(frames)
            except ProtocolError as error:
                self._session.reject_message(error, now)
                self._limited_log.log(
                    logging.ERROR, "protocol", "%s has sent something that is no valid message: %s", self._url, error
                )
                continue
            if isinstance(message, messages.Durable) and message.ended:
                crash_point("shipper: run durable, spool not removed")
            with self._changed:
                self._session.receive(message, now)
                self._changed.notify_all()

    def _is_usable(self, monitor: ConnectionMonitor, opened_at: float) -> bool:
        """Return False if the connection must be replaced."""
        was_begun = monitor.begun
        monitor.read()
        now = time.monotonic()
        if monitor.begun and not was_begun:
            self._session.note_activity(now)
        if monitor.unresolved and now - opened_at > RESOLVE_SECONDS:
            return False
        return not (monitor.broken or self._session.is_silent(now))

    def _find_problem(self, monitor: ConnectionMonitor, before: str) -> str:
        """Return the reason why nothing is shipped: a connection problem, a rejection, or no answer; "" if none."""
        return monitor.problem or self._session.diagnose_connection(time.monotonic(), before)


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
