"""The thread that ships the spool: it moves messages between the link and a session, which decides."""

from __future__ import annotations

import logging
import math
import socket
import threading
import time
import uuid
from collections.abc import Callable
from typing import Final

from .._crash_points import crash_point
from .._errors import ProtocolError
from .._rate_limited_log import RateLimitedLog
from .._wake_up import WakeUp
from ..protocol import messages
from ._link import Link
from ._session import ShippingSession
from ._spool import Spool

log = logging.getLogger(__name__)

MAX_SLEEP_SECONDS: Final = 0.5
"""Interval at which adopted runs, the state of the connection and the deadline are looked at if nothing happens."""
RECONNECT_SECONDS: Final = 0.1
RETRY_SECONDS: Final = 0.5
"""Delay before the next connection after an unexpected error."""
LINGER_SECONDS: Final = 1.0
"""Time in which the last messages are sent after `Shipper.stop`."""


class Shipper:
    """Thread that ships a spool over a link.

    `stop` joins the thread. The owner of the spool closes it afterwards.

    Parameters
    ----------
    spool
        The spool to ship.
    url
        Address of the supervisor, for texts.
    open_link
        Makes the link to the supervisor, in the thread.
    name
        Name of this publisher in the supervisor's log. Default: the host name.
    """

    def __init__(self, spool: Spool, url: str, open_link: Callable[[], Link], *, name: str | None = None) -> None:
        self._connection_problem = "no connection has come about yet"
        self._spool = spool
        self._url = url
        self._open_link = open_link
        self._session = ShippingSession(spool, f"{name or socket.gethostname()}/{uuid.uuid4().hex[:12]}", url)
        # Held for all that changes the session, except for reading what is to be sent.
        self._changed = threading.Condition()
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
        link = self._open_link()
        try:
            while not self._is_done():
                try:
                    self._ship_over_connection(link)
                    if not self._is_done():
                        time.sleep(RECONNECT_SECONDS)
                except Exception as error:
                    # Keep the thread alive after any error: the spool still has all documents, so retry.
                    self._connection_problem = f"shipping was interrupted ({type(error).__name__}: {error})"
                    self._limited_log.log(logging.ERROR, "session", "Shipping was interrupted.", exc_info=True)
                    time.sleep(RETRY_SECONDS)
        finally:
            link.close()
            self._wake_up.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _is_done(self) -> bool:
        if not self._stopping:
            return False
        return time.monotonic() >= self._deadline or self._session.is_complete

    def _ship_over_connection(self, link: Link) -> None:
        """Ship over one connection until it breaks, the supervisor is silent for too long, or all work is done."""
        before = self._connection_problem
        link.connect(before)
        with self._changed:
            self._session.open_connection(time.monotonic())
        had_begun = False
        try:
            while not self._is_done():
                blocked = not self._send_messages(link)
                self._wait_for_events(link, blocked=blocked)
                if link.begun and not had_begun:
                    had_begun = True
                    self._session.note_activity(time.monotonic())
                self._receive_messages(link)
                if link.broken or self._session.is_silent(time.monotonic()):
                    return
                self._connection_problem = self._find_problem(link, before)
        finally:
            self._connection_problem = self._find_problem(link, before) or "the supervisor has fallen silent"
            with self._changed:
                self._session.lose_connection()
            link.disconnect(LINGER_SECONDS if self._stopping else 0.0)

    def _send_messages(self, link: Link) -> bool:
        """Send all messages that are due. Return False if the link does not take all of them now."""
        with self._changed:
            self._session.update_runs()
        try:
            for message in self._session.messages_due(time.monotonic(), time.time(), link.busy):
                if not link.send(message):
                    return False
                if isinstance(message, messages.Documents):
                    crash_point("shipper: batch sent")
        finally:
            with self._changed:
                self._changed.notify_all()
        return True

    def _wait_for_events(self, link: Link, *, blocked: bool) -> None:
        """Wait for messages, for new documents, or until something is due."""
        # Look for documents and runs after announcing the sleep: those that came before did not wake this thread.
        self._asleep = True
        now = time.monotonic()
        # Save the callback the system call if the thread wakes up soon anyway, or could not send its documents.
        self._asleep = not blocked and self._session.awaits_documents(now)
        if self._asleep:
            with self._changed:
                self._session.update_runs()
        wake_at = math.inf if blocked else self._session.next_at(now)
        timeout = min(max(wake_at - now, 0.0), MAX_SLEEP_SECONDS)
        was_woken = link.wait(self._wake_up.fileno(), timeout, blocked=blocked)
        self._asleep = False
        if was_woken:
            self._wake_up.clear()

    def _receive_messages(self, link: Link) -> None:
        """Pass all messages that have arrived to the session."""
        while True:
            try:
                message = link.receive()
            except ProtocolError as error:
                self._session.reject_message(error, time.monotonic())
                self._limited_log.log(
                    logging.ERROR, "protocol", "%s has sent something that is no valid message: %s", self._url, error
                )
                continue
            if message is None:
                return
            if isinstance(message, messages.Durable) and message.ended:
                crash_point("shipper: run durable, spool not removed")
            with self._changed:
                self._session.receive(message, time.monotonic())
                self._changed.notify_all()

    def _find_problem(self, link: Link, before: str) -> str:
        """Return the reason why nothing is shipped: a connection problem, a rejection, or no answer; "" if none."""
        return link.problem or self._session.diagnose_connection(time.monotonic(), before)
