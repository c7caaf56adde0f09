"""The thread that replicates spooled runs to the ingest host, from wherever they are to wherever it is."""

from __future__ import annotations

import contextlib
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

from . import _messages as messages
from ._crash_points import crash_point
from ._errors import ProtocolError
from ._limited import LimitedLog
from ._monitor import ConnectionMonitor
from ._record import Record
from ._security import Keys
from ._spool import RunLog, Spool

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 512 * 2**10
BATCH_DOCUMENTS: Final = 2_000
GATHER: Final = 0.01  # seconds that documents wait for company after a shipment; the first one after a pause does not
COMPANY: Final = 500  # documents that wait for no more
IDLE: Final = 0.5
HELLO_INTERVAL: Final = 1.0
ASK_INTERVAL: Final = 5.0  # seconds between questions for the outcome of runs
PING_INTERVAL: Final = 1.0
SILENCE: Final = 6.0  # seconds without a word from the supervisor before the connection is made anew
NAME_TIMEOUT: Final = 60.0  # the same while a name server is asked for its host
ADOPT_INTERVAL: Final = 15.0
PAUSE: Final = 0.1  # seconds between two connections
LATER: Final = 1.0  # seconds until a run is tried again that the supervisor does not take now
_NAME_CRC_BODY: Final = itemgetter(1, 3, 4)  # of a record


@dataclass
class Shipment:
    """How far one run is on its way."""

    run: RunLog
    sent: int = 0
    durable: int = 0
    ended: bool = False
    refused: str = ""
    not_before: float = 0.0  # when the supervisor may take it
    in_flight: deque[tuple[int, int]] = field(default_factory=deque)  # (next index, bytes) of each batch sent

    @property
    def bytes_in_flight(self) -> int:
        return sum(size for _, size in self.in_flight)

    @property
    def delivered(self) -> bool:
        return self.durable >= self.run.length

    @property
    def waiting(self) -> int:
        """Documents that are to be sent."""
        return 0 if self.refused else self.run.length - self.sent

    def is_due(self, now: float) -> bool:
        """Whether there is something to be sent."""
        return self.waiting > 0 and now >= self.not_before

    def rewind(self, index: int) -> None:
        self.sent = index
        self.in_flight.clear()

    def acknowledge(self, index: int) -> None:
        self.durable = self.run.acknowledged = max(self.durable, index)
        self.sent = max(self.sent, self.durable)
        while self.in_flight and self.in_flight[0][0] <= index:
            self.in_flight.popleft()


class Shipper:
    """Ships a spool over one DEALER socket, in a thread of its own.

    `start` begins, `stop` ends it and joins the thread; the spool is closed by whoever made it, afterwards.

    Attributes
    ----------
    problem
        Why nothing is shipped; "" if all is well.
    """

    def __init__(self, spool: Spool, url: str, *, name: str | None = None, keys: Keys | None = None) -> None:
        self.problem = "no connection has come about yet"
        self._spool = spool
        self._url = url
        self._keys = keys
        self._name = f"{name or socket.gethostname()}/{uuid.uuid4().hex[:12]}"
        self._changed = threading.Condition()
        self._shipments: dict[str, Shipment] = {}
        self._awaited: dict[str, None] = {}
        self._outcomes: dict[str, tuple[str, str]] = {}
        self._welcome: messages.Welcome | None = None
        self._delayed: dict[str, str] = {}  # why runs are to be sent again later, by uid
        self._rejected = ""  # why the supervisor does not take anything of this publisher
        self._asleep = False
        self._gather_until = 0.0
        self._hello_at = 0.0  # when to say Hello next; set to 0 by whoever wants the supervisor's view of our runs
        self._stopping = False
        self._ended = False
        self._deadline = float("inf")
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="tiledbroker-shipper", daemon=True)
        self._limited = LimitedLog(log)

    # From other threads

    @property
    def connected(self) -> bool:
        """Whether the supervisor answers."""
        return self._welcome is not None

    @property
    def refused(self) -> dict[str, str]:
        """Runs the supervisor does not take, with its reasons."""
        with self._changed:
            return {uid: shipment.refused for uid, shipment in self._shipments.items() if shipment.refused}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> bool:
        """Ship what can be shipped within `timeout` seconds, then end the thread. True if everything was."""
        self._deadline = time.monotonic() + timeout
        self._stopping = True
        self._wake()
        self._thread.join(timeout + 2.0)
        return not self._spool.runs()

    def notify(self) -> None:
        """There are new documents. Cheap enough for the callback."""
        if self._asleep:
            self._asleep = False
            self._wake()

    def wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        """Block until `condition` holds; it is looked at whenever the supervisor says something."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or condition(), timeout)
            return condition()

    def durable(self, run_uid: str) -> int | None:
        """Documents of a run that are durable on the ingest host; None once all of it is, and it is forgotten here."""
        shipment = self._shipments.get(run_uid)
        return None if shipment is None else shipment.durable

    def outcome(self, run_uid: str, timeout: float | None) -> tuple[str, str] | None:
        """Block until the supervisor says what became of a run: (outcome, reason). None if it does not in time."""
        with self._changed:
            if self._outcomes.get(run_uid, ("", ""))[0] != "written":  # it can have been tried again
                self._outcomes.pop(run_uid, None)
                if run_uid not in self._shipments:
                    self._awaited[run_uid] = None
                self._hello_at = 0.0
                self._wake()
            self._changed.wait_for(lambda: self._ended or run_uid in self._outcomes, timeout)
            return self._outcomes.get(run_uid)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # enough of them are waiting already, or the shipper has ended
            self._wake_sender.send(b"\0")

    # In the thread

    def _run(self) -> None:
        context = zmq.Context()
        try:
            while not self._done():
                try:
                    self._session(context)
                    if not self._done():
                        time.sleep(PAUSE)
                except Exception:  # a spool's disk that fails, say: what is there is shipped when it is well again
                    self._limited.log(logging.ERROR, "session", "Shipping is interrupted.", exc_info=True)
                    time.sleep(IDLE)
        finally:
            context.destroy(linger=0)
            self._wake_receiver.close()
            self._wake_sender.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _done(self) -> bool:
        return self._stopping and (not self._spool.runs() or time.monotonic() >= self._deadline)

    def _session(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """One connection, until it breaks, falls silent or everything is done."""
        connection = self._make_socket(context)
        monitor = ConnectionMonitor(connection, self._url, secured=self._keys is not None, before=self.problem)
        connection.connect(self._url)
        poller = zmq.Poller()
        poller.register(connection, zmq.POLLIN)
        poller.register(monitor.socket, zmq.POLLIN)
        poller.register(self._wake_receiver.fileno(), zmq.POLLIN)
        heard = time.monotonic()
        due = dict.fromkeys(("ping", "adopt"), 0.0)
        self._hello_at = 0.0
        tokens = itertools.count()
        try:
            while not self._done():
                now = time.monotonic()
                if self._is_due(due, "adopt", now, ADOPT_INTERVAL) and not self._stopping:
                    self._spool.adopt()
                    if self._spool.more_to_adopt:
                        due["adopt"] = now + IDLE
                self._take_in_new_runs()
                # POLLOUT tells when a supervisor has appeared that the Hello can go to.
                greeted = now < self._hello_at or self._greet(connection)
                poller.modify(connection, zmq.POLLIN if greeted else zmq.POLLIN | zmq.POLLOUT)
                if self._welcome is not None and self._is_due(due, "ping", now, PING_INTERVAL):
                    self._send(connection, messages.Ping(next(tokens)))
                more = self._welcome is not None and self._ship(connection)
                if self._wait(poller, connection, 0.0 if more else IDLE):
                    heard = time.monotonic()
                elif time.monotonic() - heard > (SILENCE if monitor.begun else NAME_TIMEOUT):
                    return
                monitor.read()
                if monitor.broken:
                    return
                self.problem = monitor.problem or self._rejected or next(iter(self._delayed.values()), "")
        finally:
            if self._welcome is not None and not self._stopping:
                log.warning("The connection to %s is gone; documents are spooled.", self._url)
            self._welcome = None
            self.problem = monitor.problem or "the supervisor has fallen silent"
            monitor.close()
            connection.close(linger=int(1000 * self._stopping))

    def _greet(self, connection: zmq.Socket[bytes]) -> bool:
        """Say Hello, and again later unless it is answered."""
        self._hello_at = time.monotonic() + HELLO_INTERVAL
        if self._send(connection, self._hello()):
            return True
        self._hello_at = 0.0
        return False

    @staticmethod
    def _is_due(due: dict[str, float], what: str, now: float, interval: float) -> bool:
        if now < due[what]:
            return False
        due[what] = now + interval
        return True

    def _make_socket(self, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
        connection = context.socket(zmq.DEALER)
        connection.setsockopt(zmq.ROUTING_ID, new_identity())
        connection.setsockopt(zmq.LINGER, 0)
        connection.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a supervisor that is not there
        connection.setsockopt(zmq.RECONNECT_IVL, 100)
        connection.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        connection.setsockopt(zmq.MAXMSGSIZE, messages.MAX_HEADER_BYTES)
        if "[" in self._url:
            connection.setsockopt(zmq.IPV6, 1)
        if self._keys is not None:
            self._keys.apply(connection)
        return connection

    def _send(self, connection: zmq.Socket[bytes], message: messages.Message) -> bool:
        try:
            connection.send_multipart(messages.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _hello(self) -> messages.Hello:
        # Of those beyond the limit the supervisor skips what it has already.
        shipments = itertools.islice(self._shipments.items(), messages.MAX_RUNS)
        return messages.Hello(
            self._name,
            {uid: shipment.run.length for uid, shipment in shipments},
            self._asked(),
        )

    def _asked(self) -> list[str]:
        """Runs whose outcome the supervisor is asked for."""
        return list(itertools.islice(self._awaited, messages.MAX_RUNS))

    def _take_in_new_runs(self) -> None:
        if self._stopping:
            self._spool.abandon()
        for run in self._spool.runs():
            if run.run_uid not in self._shipments:
                with self._changed:
                    self._shipments[run.run_uid] = Shipment(run)
                # What the supervisor already has of a run from an earlier session is in its answer.
                if run.abandoned:
                    self._hello_at = 0.0

    def _ship(self, connection: zmq.Socket[bytes]) -> bool:
        """Send what the window allows; True if there is more to send right now."""
        assert self._welcome is not None
        now = time.monotonic()
        if now < self._gather_until and sum(shipment.waiting for shipment in self._shipments.values()) < COMPANY:
            return False
        room = self._welcome.window - sum(shipment.bytes_in_flight for shipment in self._shipments.values())
        more = False
        for shipment in self._shipments.values():
            if room <= 0:
                return False
            if not shipment.is_due(now):
                continue
            # Half of what the others leave: one run whose worker is not there yet does not hold up the rest.
            share = (room - shipment.bytes_in_flight) // 2
            if share <= 0 and shipment.in_flight:
                continue
            size = self._send_batch(connection, shipment, max(1, min(share, BATCH_BYTES)))
            if size == 0:
                return False
            room -= size
            more = more or shipment.waiting > 0
            self._gather_until = now + GATHER
        return more and room > 0

    def _send_batch(self, connection: zmq.Socket[bytes], shipment: Shipment, max_bytes: int) -> int:
        assert self._welcome is not None
        records = shipment.run.read(shipment.sent, BATCH_DOCUMENTS, max_bytes)
        limit = self._welcome.max_document
        fitting = list(itertools.takewhile(lambda record: len(record.body) <= limit, records))
        if not fitting:
            if records:
                self._refuse_for_size(shipment, records[0])
            return 0
        batch = messages.documents(shipment.run.run_uid, shipment.sent, list(map(_NAME_CRC_BODY, fitting)))
        if not self._send(connection, batch):
            return 0
        crash_point("shipper: batch sent")
        shipment.sent = shipment.run.shipped = batch.next
        shipment.in_flight.append((batch.next, len(batch.body)))
        return max(len(batch.body), 1)

    def _refuse_for_size(self, shipment: Shipment, record: Record) -> None:
        assert self._welcome is not None
        size, limit = len(record.body), self._welcome.max_document
        self._refuse(shipment, f"its document {record.idx} has {size} bytes; the supervisor takes up to {limit}")

    def _refuse(self, shipment: Shipment, reason: str) -> None:
        shipment.refused = reason
        shipment.in_flight.clear()
        log.error("Run %s is not shipped to %s: %s. It stays spooled.", shipment.run.run_uid, self._url, reason)

    def _wait(self, poller: zmq.Poller, connection: zmq.Socket[bytes], timeout: float) -> bool:
        """Wait for messages or new documents, and take the messages in. True if there was any."""
        self._asleep = True
        now = time.monotonic()
        if now < self._gather_until:
            self._asleep = False  # nobody has to wake us
            timeout = min(timeout, self._gather_until - now)
        elif any(shipment.is_due(now) for shipment in self._shipments.values()):
            self._asleep = False  # what came before we set the flag did not wake us
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
                self._handle(connection, messages.decode(frames))
            except ProtocolError as error:
                self._limited.log(logging.ERROR, "protocol", "%s sent something else: %s", self._url, error)

    def _handle(self, connection: zmq.Socket[bytes], message: messages.Message) -> None:
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
        connected = self._welcome is None
        if connected:
            log.info("Connected to the supervisor at %s.", self._url)
        self._welcome = message
        self._rejected = ""
        if any(uid not in message.runs for uid in self._asked()):  # since that Hello
            self._hello_at = 0.0
        else:
            self._hello_at = time.monotonic() + ASK_INTERVAL if self._awaited else float("inf")
        if connected:  # what was under way before is lost
            for each in self._shipments.values():
                each.durable, each.refused = 0, ""
                each.rewind(0)
        for uid, state in message.runs.items():
            shipment = self._shipments.get(uid)
            if shipment is not None and self._is_another(shipment, state):
                self._refuse(shipment, messages.ANOTHER_RUN)
                continue
            if shipment is not None and connected:
                shipment.durable = state.next
                shipment.rewind(state.next)
            self._on_durable(uid, state.next, state.ended)
            if state.outcome:
                self._on_outcome(uid, state.outcome, state.reason)

    def _is_another(self, shipment: Shipment, state: messages.RunState) -> bool:
        """Whether what the supervisor has under the uid of a run is not what is spooled here."""
        places = ((0, state.start_crc), (state.next - 1, state.end_crc))
        return state.next > 0 and any(
            record.crc != crc for index, crc in places if crc is not None for record in shipment.run.read(index, 1, 1)
        )

    def _on_durable(self, uid: str, index: int, ended: bool) -> None:
        shipment = self._shipments.get(uid)
        if shipment is None or shipment.refused:
            return
        if index > shipment.durable:
            self._delayed.pop(uid, None)
        shipment.acknowledge(index)
        shipment.ended = ended
        if not (ended and shipment.delivered):
            return
        if not (shipment.run.stopped or shipment.run.abandoned):
            self._refuse(shipment, "it has been declared as ended by somebody else")
            return
        del self._shipments[uid]
        self._awaited[uid] = None
        crash_point("shipper: run durable, spool not removed")
        self._spool.remove(shipment.run)

    def _on_outcome(self, uid: str, outcome: str, reason: str) -> None:
        self._outcomes[uid] = (outcome, reason)
        self._awaited.pop(uid, None)
        if outcome == "failed":
            log.error("Run %s was not written to Tiled: %s.", uid, reason)

    def _on_refused(self, message: messages.Refused) -> None:
        if message.reason == messages.NO_HELLO:
            self._welcome = None
            self._hello_at = 0.0
            return
        shipment = self._shipments.get(message.run)
        if shipment is None:
            if not message.run:  # it is this publisher that is not taken
                if message.reason != self._rejected:
                    log.error("The supervisor at %s takes nothing of this publisher: %s.", self._url, message.reason)
                self._welcome = None
                self._rejected = message.reason
                self._hello_at = time.monotonic() + HELLO_INTERVAL
        elif message.reason in (messages.GAP, messages.LATER):
            shipment.rewind(message.index)
            if message.detail:
                self._delayed[message.run] = message.detail
            shipment.not_before = time.monotonic() + LATER * (message.reason == messages.LATER)
        else:
            self._refuse(shipment, message.reason)

    def _declare_abandoned(self, connection: zmq.Socket[bytes]) -> None:
        for shipment in self._shipments.values():
            if shipment.run.abandoned and shipment.delivered and not shipment.ended and self._welcome is not None:
                # The ingest host may have more: the spool's end can have gone with the session, or its disk.
                length = max(shipment.run.length, shipment.durable)
                self._send(connection, messages.Abandoned(shipment.run.run_uid, length))


def new_identity() -> bytes:
    """What a connection is called by at the other end: nobody else can know it, and be told what is meant for us."""
    return bytes([1 + secrets.randbelow(255)]) + secrets.token_bytes(messages.IDENTITY_BYTES - 1)
