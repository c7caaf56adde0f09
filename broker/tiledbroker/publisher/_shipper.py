"""The thread that ships spooled runs to the supervisor on the ingest host.

Before records are sent, their checksums and indexes are checked. A damaged log stops only its own run.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import logging
import math
import secrets
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Final

import zmq

from .._crash_points import crash_point
from .._errors import JournalInvalid, ProtocolError, SpoolDamaged
from .._rate_limited_log import RateLimitedLog
from ..log import Record, RunLog
from ..protocol import Keys, messages
from ._monitor import ConnectionMonitor
from ._spool import Spool

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 512 * 2**10
BATCH_DOCUMENTS: Final = 2_000
LINGER_SECONDS: Final = 0.01
"""Delay before the next batch so that it fills; none after an idle period."""
FULL_BATCH_DOCUMENTS: Final = 500
"""Number of waiting documents from which a batch is sent without linger."""
IDLE_SECONDS: Final = 0.5
HELLO_INTERVAL_SECONDS: Final = 1.0
ASK_INTERVAL_SECONDS: Final = 5.0
MAX_ASK_INTERVAL_SECONDS: Final = 60.0
PING_INTERVAL_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 6.0
"""Time without any message from the supervisor after which the connection is replaced."""
NAME_TIMEOUT_SECONDS: Final = 60.0
"""The same timeout while libzmq may be waiting for a name server."""
RECONNECT_SECONDS: Final = 0.1
LATER_SECONDS: Final = 1.0
"""Delay before a run is sent again that the supervisor has refused with reason "later"."""
REREAD_SECONDS: Final = 5.0
"""Delay before a run is read again whose file could not be read."""
# Fields of a `Record`.
_NAME_CRC_BODY: Final = itemgetter(1, 3, 4)
_COMPLETE: Final = ("written", "interrupted")
"""Outcomes of runs of which all existing documents are in Tiled."""


@dataclass
class Shipment:
    """Shipping state of one run.

    Attributes
    ----------
    run
        Log of the run in the spool.
    known
        True if the run's state on the ingest host is known on this connection.
    sent, durable
        Index of the next document to send, and of the first one that is not durable on the ingest host.
    ended
        True if the ingest host has the run's end.
    refused
        Reason why the run is not shipped; "" if it is.
    delayed
        Reason why the run cannot be shipped at the moment; "" if it can.
    not_before
        Time on the clock of `time.monotonic` before which nothing is sent, in seconds.
    in_flight
        Next index and number of bytes of each batch that was sent and is not acknowledged.
    """

    run: RunLog
    known: bool
    sent: int = 0
    durable: int = 0
    ended: bool = False
    refused: str = ""
    delayed: str = ""
    not_before: float = 0.0
    in_flight: deque[tuple[int, int]] = field(default_factory=deque)

    @property
    def bytes_in_flight(self) -> int:
        """Bytes of bodies that were sent and are not acknowledged."""
        return sum(size for _, size in self.in_flight)

    @property
    def delivered(self) -> bool:
        """True if all documents in the spool are durable on the ingest host; the run may not have ended yet."""
        return self.durable >= self.run.length

    @property
    def settled(self) -> bool:
        """True if nothing more can be shipped: the run is durable, or refused."""
        return self.run.is_durable or bool(self.refused)

    @property
    def waiting(self) -> int:
        """Number of documents that are still to be sent."""
        return 0 if self.refused else self.run.length - self.sent

    def is_due(self, now: float) -> bool:
        """Return True if documents can be sent now, or if damage of the log is still to be reported."""
        if not self.known or self.refused or now < self.not_before:
            return False
        return self.run.length > self.sent or bool(self.run.damage)

    def rewind(self, index: int) -> None:
        """Continue sending at `index`, and expect no acknowledgement of earlier batches."""
        self.sent = index
        self.in_flight.clear()

    def begin(self, index: int) -> None:
        """Continue at `index`, which the supervisor reports. It can go back, for example if its disk was replaced."""
        self.known, self.refused, self.delayed, self.not_before = True, "", "", 0.0
        self.durable = self.run.acknowledged = index
        self.ended = self.run.is_durable = False
        self.rewind(index)

    def acknowledge(self, index: int) -> None:
        """Record that all documents below `index` are durable on the ingest host."""
        if index > self.durable:
            self.delayed = ""
        self.durable = self.run.acknowledged = max(self.durable, index)
        self.sent = max(self.sent, self.durable)
        while self.in_flight and self.in_flight[0][0] <= index:
            self.in_flight.popleft()


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

    Attributes
    ----------
    problem
        Reason why nothing is shipped or acknowledged; "" if there is no problem.
    """

    def __init__(self, spool: Spool, url: str, *, name: str | None = None, keys: Keys | None = None) -> None:
        self._connection_problem = "no connection has come about yet"
        self._spool = spool
        self._url = url
        self._keys = keys
        self._name = f"{name or socket.gethostname()}/{uuid.uuid4().hex[:12]}"
        self._changed = threading.Condition()
        self._shipments: dict[str, Shipment] = {}
        self._awaited: dict[str, None] = {}
        self._outcomes: dict[str, tuple[str, str]] = {}
        self._welcome: messages.Welcome | None = None
        # Reason why the supervisor rejects this publisher, or why its answer to Hello is not understood.
        self._rejected = ""
        self._ipv6 = "[" in url
        self._asleep = False
        self._linger_until = 0.0
        # Time of the next Hello. Set to 0 to request the supervisor's state of our runs immediately.
        self._hello_at = 0.0
        self._ask_interval = ASK_INTERVAL_SECONDS
        self._stopping = False
        self._ended = False
        self._deadline = float("inf")
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="tiledbroker-shipper", daemon=True)
        self._limited_log = RateLimitedLog(log)

    # Methods for other threads.

    @property
    def connected(self) -> bool:
        """True from a Welcome of the supervisor until its connection is lost."""
        return self._welcome is not None

    @property
    def problem(self) -> str:
        """Reason why nothing is shipped or acknowledged; "" if there is no problem."""
        if self._connection_problem:
            return self._connection_problem
        with self._changed:
            return next((each.delayed for each in self._shipments.values() if each.delayed), "")

    @property
    def refused(self) -> dict[str, str]:
        """Reasons why runs are not shipped, by uid: rejections by the supervisor, or damaged files."""
        with self._changed:
            return {uid: shipment.refused for uid, shipment in self._shipments.items() if shipment.refused}

    def refusal(self, run_uid: str) -> str:
        """Return the reason why a run is not shipped; "" if it is shipped, or is not known."""
        shipment = self._shipments.get(run_uid)
        if shipment is not None:
            return shipment.refused
        return "" if run_uid in self._outcomes else self._spool.refused.get(run_uid, "")

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
        self._stopping = True
        self._wake_thread()
        self._thread.join(timeout + 2.0)
        return self._spool.is_durable

    def notify(self) -> None:
        """Announce new documents. The call is cheap enough for the callback."""
        if self._asleep:
            self._asleep = False
            self._wake_thread()

    def wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Block until `condition` is true, and return it; it is evaluated after each message of the supervisor.

        The timeout is in seconds; None means no limit.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._ended or condition(), timeout)
            return condition()

    def durable(self, run_uid: str) -> int | None:
        """Return how many documents of a run are durable; None if it is not being shipped, e.g. after its removal."""
        shipment = self._shipments.get(run_uid)
        return None if shipment is None else shipment.durable

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
            # Ask again for any other outcome, because the supervisor may have retried the run.
            if self._outcomes.get(run_uid, ("", ""))[0] != "written":
                self._outcomes.pop(run_uid, None)
                self._awaited[run_uid] = None
                self._ask_interval = ASK_INTERVAL_SECONDS
                self._hello_at = 0.0
                self._wake_thread()
            self._changed.wait_for(lambda: self._ended or run_uid in self._outcomes or self.refusal(run_uid), timeout)
            if run_uid not in self._outcomes and (reason := self.refusal(run_uid)):
                return "refused", reason
            return self._outcomes.get(run_uid)

    def _wake_thread(self) -> None:
        # Sending fails if the buffer is full, when the thread wakes up anyway, or if the thread has ended.
        with contextlib.suppress(OSError):
            self._wake_sender.send(b"\0")

    # Methods of the shipper thread.

    def _run(self) -> None:
        context = zmq.Context()
        try:
            while not self._is_done():
                try:
                    self._run_session(context)
                    if not self._is_done():
                        time.sleep(RECONNECT_SECONDS)
                except Exception as error:
                    # Keep the thread alive after any error: the spool still has all documents, so retry.
                    self._connection_problem = f"shipping was interrupted ({type(error).__name__}: {error})"
                    self._limited_log.log(logging.ERROR, "session", "Shipping is interrupted.", exc_info=True)
                    time.sleep(IDLE_SECONDS)
        finally:
            context.destroy(linger=0)
            self._wake_receiver.close()
            self._wake_sender.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _is_done(self) -> bool:
        if not self._stopping:
            return False
        return time.monotonic() >= self._deadline or all(map(self._is_settled, self._spool.runs()))

    def _is_settled(self, run: RunLog) -> bool:
        shipment = self._shipments.get(run.run_uid)
        return shipment is not None and shipment.run is run and shipment.settled

    def _run_session(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Ship over one connection until it breaks, the supervisor is silent for too long, or all work is done."""
        connection = self._make_socket(context)
        before = self._connection_problem
        monitor = ConnectionMonitor(connection, self._url, secured=self._keys is not None, before=before)
        connection.connect(self._url)
        poller = zmq.Poller()
        poller.register(connection, zmq.POLLIN)
        poller.register(monitor.socket, zmq.POLLIN)
        poller.register(self._wake_receiver.fileno(), zmq.POLLIN)
        begun = heard = time.monotonic()
        ping_at = 0.0
        self._hello_at = 0.0
        for shipment in self._shipments.values():
            shipment.known = False
            shipment.in_flight.clear()
        tokens = itertools.count()
        try:
            while not self._is_done():
                now = time.monotonic()
                self._take_in_new_runs()
                # The socket becomes writable once a supervisor is connected, so that the Hello can be sent.
                greeted = now < self._hello_at or self._send_hello(connection)
                poller.modify(connection, zmq.POLLIN if greeted else zmq.POLLIN | zmq.POLLOUT)
                if self._welcome is not None and now >= ping_at:
                    ping_at = now + PING_INTERVAL_SECONDS
                    self._send_message(connection, messages.Ping(next(tokens)))
                more = self._welcome is not None and self._ship_batches(connection)
                if self._receive_messages(poller, connection, 0.0 if more else IDLE_SECONDS):
                    heard = time.monotonic()
                elif time.monotonic() - heard > (SILENCE_SECONDS if monitor.begun else NAME_TIMEOUT_SECONDS):
                    return
                monitor.read()
                if monitor.broken or (monitor.unresolved and time.monotonic() - begun > IDLE_SECONDS):
                    return
                self._connection_problem = self._problem_of(monitor, before, heard)
        finally:
            if self._welcome is not None and not self._stopping:
                log.warning("The connection to %s is gone; documents are spooled.", self._url)
            elif not _is_numeric(self._url):
                # The host's name may have only IPv4 or only IPv6 addresses, so try the other kind next.
                self._ipv6 = not self._ipv6
            self._connection_problem = self._problem_of(monitor, before, heard) or "the supervisor has fallen silent"
            self._welcome = None
            monitor.close()
            connection.close(linger=int(1000 * self._stopping))

    def _problem_of(self, monitor: ConnectionMonitor, before: str, heard: float) -> str:
        """Return the reason why nothing is shipped: a connection problem, a rejection, or no answer; "" if none."""
        if monitor.problem or self._rejected or self._welcome is not None:
            return monitor.problem or self._rejected
        if time.monotonic() - heard < HELLO_INTERVAL_SECONDS:
            # The supervisor has not had the time to answer yet.
            return before
        return f"something at {self._url} takes connections and does not answer; is it a supervisor?"

    def _send_hello(self, connection: zmq.Socket[bytes]) -> bool:
        """Send a Hello, and schedule the next one. Return False if it cannot be sent yet."""
        self._hello_at = time.monotonic() + HELLO_INTERVAL_SECONDS
        if self._send_message(connection, self._make_hello()):
            return True
        self._hello_at = 0.0
        return False

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

    def _send_message(self, connection: zmq.Socket[bytes], message: messages.Message) -> bool:
        try:
            connection.send_multipart(messages.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _make_hello(self) -> messages.Hello:
        unknown = [shipment.run for shipment in self._shipments.values() if not shipment.known]
        return messages.Hello(
            self._name, {run.run_uid: run.length for run in unknown[: messages.MAX_RUNS]}, self._awaited_uids()
        )

    def _awaited_uids(self) -> list[str]:
        """Return the uids of runs whose outcome the next Hello asks for."""
        return list(itertools.islice(self._awaited, messages.MAX_RUNS))

    def _take_in_new_runs(self) -> None:
        if self._stopping:
            self._spool.abandon()
        runs = {run.run_uid: run for run in self._spool.runs()}
        gone = [uid for uid, shipment in self._shipments.items() if runs.get(uid) is not shipment.run]
        new = [run for uid, run in runs.items() if uid not in self._shipments or uid in gone]
        if not (gone or new):
            return
        with self._changed:
            for uid in gone:
                del self._shipments[uid]
            for run in new:
                # The supervisor may already have documents of an adopted run; its answer to the next Hello tells.
                self._shipments[run.run_uid] = Shipment(run, known=not run.is_adopted)
                if run.is_adopted:
                    self._hello_at = 0.0
            self._changed.notify_all()

    def _ship_batches(self, connection: zmq.Socket[bytes]) -> bool:
        """Send batches within the supervisor's window. Return True if there is more to send right now."""
        assert self._welcome is not None
        now = time.monotonic()
        waiting = sum(shipment.waiting for shipment in self._shipments.values())
        if now < self._linger_until and waiting < FULL_BATCH_DOCUMENTS:
            return False
        room = self._welcome.window - sum(shipment.bytes_in_flight for shipment in self._shipments.values())
        more = False
        for shipment in self._shipments.values():
            if room <= 0:
                return False
            if not shipment.is_due(now):
                continue
            # A run gets half of the window that the other runs leave, so that a run whose worker has not started yet
            # cannot block the others.
            share = (room - shipment.bytes_in_flight) // 2
            if share <= 0 and shipment.in_flight:
                continue
            try:
                size = self._send_batch(connection, shipment, max(1, min(share, BATCH_BYTES)))
            except JournalInvalid as error:
                self._refuse_shipment(shipment, str(error))
                continue
            except OSError as error:
                shipment.delayed = f"run {shipment.run.run_uid} cannot be read: {error}"
                shipment.not_before = now + REREAD_SECONDS
                self._limited_log.log(logging.ERROR, shipment.run.run_uid, "It is tried again: %s.", shipment.delayed)
                continue
            if size == 0:
                return False
            room -= size
            more = more or shipment.waiting > 0
            self._linger_until = now + LINGER_SECONDS
        return more and room > 0

    def _send_batch(self, connection: zmq.Socket[bytes], shipment: Shipment, max_bytes: int) -> int:
        assert self._welcome is not None
        records = shipment.run.read(shipment.sent, BATCH_DOCUMENTS, max_bytes)
        self._check_records(shipment, records)
        limit = self._welcome.max_document
        fitting = list(itertools.takewhile(lambda record: len(record.body) <= limit, records))
        if not fitting:
            if records:
                self._refuse_for_size(shipment, records[0])
            return 1
        batch = messages.documents(shipment.run.run_uid, shipment.sent, list(map(_NAME_CRC_BODY, fitting)))
        if not self._send_message(connection, batch):
            return 0
        crash_point("shipper: batch sent")
        shipment.sent = batch.next
        shipment.in_flight.append((batch.next, len(batch.body)))
        return max(len(batch.body), 1)

    @staticmethod
    def _check_records(shipment: Shipment, records: list[Record]) -> None:
        """Check that records continue the run without a gap.

        Raises
        ------
        SpoolDamaged
            They do not, or there are none because the log is damaged after its last readable record.
        """
        run, expected = shipment.run, range(shipment.sent, shipment.sent + len(records))
        if [record.idx for record in records] != list(expected):
            raise SpoolDamaged(next(iter(run.files), "memory"), f"document {shipment.sent} is not where it should be")
        if not records and run.damage:
            path, _, damage = run.damage.partition(": ")
            raise SpoolDamaged(path, f"it is damaged behind document {run.length - 1}: {damage}")

    def _refuse_for_size(self, shipment: Shipment, record: Record) -> None:
        assert self._welcome is not None
        size, limit = len(record.body), self._welcome.max_document
        self._refuse_shipment(
            shipment, f"its document {record.idx} has {size} bytes; the supervisor takes up to {limit}"
        )

    def _refuse_shipment(self, shipment: Shipment, reason: str) -> None:
        with self._changed:
            shipment.refused = reason
            shipment.in_flight.clear()
            self._changed.notify_all()
        log.error("Run %s is not shipped to %s: %s. It stays spooled.", shipment.run.run_uid, self._url, reason)

    def _receive_messages(self, poller: zmq.Poller, connection: zmq.Socket[bytes], timeout: float) -> bool:
        """Wait for messages or new documents, and handle all messages. Return True if there was any message."""
        self._asleep = True
        now = time.monotonic()
        if now < self._linger_until:
            # The thread wakes up soon anyway, so save the callback the system call.
            self._asleep = False
            timeout = min(timeout, self._linger_until - now)
        elif any(shipment.is_due(now) for shipment in self._shipments.values()):
            # Documents that were appended before `_asleep` was set did not wake this thread, so do not sleep.
            self._asleep = False
            timeout = min(timeout, 0.05) if self._welcome is not None else timeout
        events = dict(poller.poll(math.ceil(timeout * 1000)))
        self._asleep = False
        if self._wake_receiver.fileno() in events:
            self._wake_receiver.recv(4096)
        heard = False
        while True:
            try:
                frames = connection.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return heard
            heard = True
            try:
                self._handle_message(connection, messages.decode(frames))
            except ProtocolError as error:
                if self._welcome is None:
                    self._rejected = f"{self._url} is no supervisor that this publisher can talk to: {error}"
                self._limited_log.log(logging.ERROR, "protocol", "%s sent something else: %s", self._url, error)

    def _handle_message(self, connection: zmq.Socket[bytes], message: messages.Message) -> None:
        with self._changed:
            if isinstance(message, messages.Welcome):
                self._on_welcome(message)
            elif isinstance(message, messages.Durable):
                self._on_durable(message.run, message.next, message.ended)
            elif isinstance(message, messages.Written):
                self._on_outcome(message.run, message.outcome, message.reason)
            elif isinstance(message, messages.Refused):
                self._on_refused(message)
            self._changed.notify_all()
        self._declare_abandoned(connection)

    def _on_welcome(self, message: messages.Welcome) -> None:
        if self._welcome is None:
            log.info("Connected to the supervisor at %s.", self._url)
        self._welcome = message
        self._rejected = ""
        outcomes = len(self._awaited)
        for uid, state in message.runs.items():
            shipment = self._shipments.get(uid)
            if shipment is not None and not shipment.known:
                refusal = self._find_conflict(shipment.run, state)
                shipment.begin(0 if refusal else state.next)
                if refusal:
                    self._refuse_shipment(shipment, refusal)
            if shipment is not None and shipment.refused:
                # The reported outcome may be that of another run with the same uid.
                continue
            self._on_durable(uid, state.next, state.ended)
            if state.outcome:
                self._on_outcome(uid, state.outcome, state.reason)
        self._hello_at = self._next_hello(message, news=len(self._awaited) < outcomes)

    def _next_hello(self, welcome: messages.Welcome, *, news: bool) -> float:
        if any(not shipment.known for shipment in self._shipments.values()):
            return 0.0
        # Some outcomes were requested after that Hello was sent.
        if any(uid not in welcome.runs for uid in self._awaited_uids()):
            return 0.0
        if not self._awaited:
            return float("inf")
        self._ask_interval = ASK_INTERVAL_SECONDS if news else min(2 * self._ask_interval, MAX_ASK_INTERVAL_SECONDS)
        return time.monotonic() + self._ask_interval

    @staticmethod
    def _find_conflict(run: RunLog, state: messages.RunState) -> str:
        """Return the reason why the spool cannot continue a run from the supervisor's state; "" if it can.

        The supervisor may have another run with the same uid, or fewer documents than the spool has already deleted.
        """
        if state.next < run.first:
            return f"the ingest host has {state.next} documents of it, and the spool has given up the first {run.first}"
        places = ((0, state.start_crc), (state.next - 1, state.end_crc))
        try:
            is_another = state.next > 0 and any(
                record.crc != crc
                for index, crc in places
                if crc is not None and run.first <= index < run.length
                for record in run.read(index, 1, 1)
            )
        except (JournalInvalid, OSError) as error:
            return str(error)
        return messages.ANOTHER_RUN if is_another else ""

    def _on_durable(self, uid: str, index: int, ended: bool) -> None:
        shipment = self._shipments.get(uid)
        if shipment is None or shipment.refused or not shipment.known:
            return
        shipment.acknowledge(index)
        shipment.ended = ended
        if not (ended and shipment.delivered) or shipment.run.damage:
            return
        if not (shipment.run.stopped or shipment.run.abandoned):
            self._refuse_shipment(shipment, "it has been declared as ended by somebody else")
            return
        crash_point("shipper: run durable, spool not removed")
        shipment.run.is_durable = True
        if self._outcomes.get(uid, ("",))[0] in _COMPLETE:
            self._spool.remove(shipment.run)
        elif uid not in self._awaited:
            self._awaited[uid] = None
            self._ask_interval = ASK_INTERVAL_SECONDS
            self._hello_at = min(self._hello_at, time.monotonic() + ASK_INTERVAL_SECONDS)

    def _on_outcome(self, uid: str, outcome: str, reason: str) -> None:
        news = self._outcomes.get(uid) != (outcome, reason)
        self._outcomes[uid] = (outcome, reason)
        shipment = self._shipments.get(uid)
        if outcome == "failed":
            # The supervisor may retry the run later: keep its spool files, and keep asking for the outcome.
            if shipment is None:
                self._awaited.pop(uid, None)
            if news:
                log.error("Run %s was not written to Tiled: %s.", uid, reason)
            return
        self._awaited.pop(uid, None)
        if shipment is not None and shipment.run.is_durable:
            self._spool.remove(shipment.run)

    def _on_refused(self, message: messages.Refused) -> None:
        if message.reason == messages.NO_HELLO:
            self._welcome = None
            self._hello_at = 0.0
            return
        shipment = self._shipments.get(message.run)
        if shipment is None:
            # The supervisor rejects the publisher itself.
            if not message.run:
                if message.reason != self._rejected:
                    log.error("The supervisor at %s takes nothing of this publisher: %s.", self._url, message.reason)
                self._welcome = None
                self._rejected = message.reason
                self._hello_at = time.monotonic() + HELLO_INTERVAL_SECONDS
        elif message.reason in (messages.GAP, messages.LATER):
            shipment.rewind(message.index)
            shipment.delayed = message.detail or shipment.delayed
            if message.reason == messages.LATER:
                shipment.not_before = time.monotonic() + LATER_SECONDS
        else:
            self._refuse_shipment(shipment, message.reason)

    def _declare_abandoned(self, connection: zmq.Socket[bytes]) -> None:
        if self._welcome is None:
            return
        for shipment in self._shipments.values():
            run = shipment.run
            if not run.abandoned or shipment.ended or shipment.refused or run.damage or not shipment.known:
                continue
            if shipment.delivered:
                # The ingest host may have more documents than the spool, whose last ones can be lost with the process
                # or the disk.
                self._send_message(connection, messages.Abandoned(run.run_uid, max(run.length, shipment.durable)))


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
