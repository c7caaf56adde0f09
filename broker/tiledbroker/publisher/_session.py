"""The decisions of the shipper: what is sent when, after which answer of the supervisor.

A session has no clock, no thread and no socket. Messages of the supervisor, the runs in the spool and the time go in;
messages for the supervisor come out. So tests and simulations can run a session on a clock of their own.

Before records are sent, their checksums and indexes are checked. A damaged log stops only its own run.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Final

from .._errors import JournalInvalid, ProtocolError
from .._outcomes import COMPLETE, FAILED, REFUSED, WRITTEN
from ..protocol import messages
from ._shipment import Shipment, ShippedRun, ShippedSpool

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 512 * 2**10
BATCH_DOCUMENTS: Final = 2_000
LINGER_SECONDS: Final = 0.01
"""Delay before the next batches so that they fill, for each run of the last ones; none after an idle period."""
MAX_LINGER_SECONDS: Final = 0.1
FULL_BATCH_DOCUMENTS: Final = 500
"""Number of waiting documents of each run from which batches are sent without linger."""
RECHECK_SECONDS: Final = 0.05
"""Delay before documents are looked at again that wait for company, or for room in the supervisor's window."""
HELLO_INTERVAL_SECONDS: Final = 1.0
ASK_INTERVAL_SECONDS: Final = 5.0
MAX_ASK_INTERVAL_SECONDS: Final = 60.0
PING_INTERVAL_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 6.0
"""Time without any message from the supervisor after which the connection is replaced."""
NAME_TIMEOUT_SECONDS: Final = 60.0
"""The same timeout while the transport may be waiting for a name server."""
LATER_SECONDS: Final = 1.0
"""Delay before a run is sent again that the supervisor has refused with reason "later"."""
REREAD_SECONDS: Final = 5.0
"""Delay before a run is read again whose file could not be read."""
_NAME_CRC_BODY_OF_RECORD: Final = itemgetter(1, 3, 4)


def _is_never_busy(_run_uid: str) -> bool:
    return False


class ShippingSession:
    """State of shipping a spool to a supervisor, over one connection after the other.

    The owner reports each event: `open_connection`, `note_activity`, `update_runs`, `receive`, `request_outcome`,
    `stop`, `lose_connection`. After one or several of them, it sends `messages_due`, and then waits for the next event,
    at most until `next_at`. It replaces the connection if `is_silent`.

    All times are in seconds, on one clock that never goes back. Only the owner's thread may report events, except
    `request_outcome`, `hurry` and `stop`, which need a lock that is also held during `update_runs` and `receive`.

    Parameters
    ----------
    spool
        The runs to ship.
    name
        Name of the publisher for `Hello`.
    url
        Address of the supervisor, for texts.
    """

    def __init__(self, spool: ShippedSpool, name: str, url: str) -> None:
        self._spool = spool
        self._name = name
        self._url = url
        self._shipments: dict[str, Shipment] = {}
        self._awaited: dict[str, None] = {}
        self._outcomes: dict[str, tuple[str, str]] = {}
        self._welcome: messages.Welcome | None = None
        # Reason why the supervisor rejects this publisher, or why its answer to Hello is not understood.
        self._rejected = ""
        self._delay_is_logged = False
        self._heard_at = 0.0
        self._silence_timeout = NAME_TIMEOUT_SECONDS
        self._next_hello_at = 0.0
        self._next_ping_at = 0.0
        self._next_declare_at = math.inf
        self._pings = 0
        self._linger_until = 0.0
        self._has_more = False
        self._ask_interval = ASK_INTERVAL_SECONDS
        self._stopping = False

    @property
    def connected(self) -> bool:
        """True from a Welcome of the supervisor until its connection is lost."""
        return self._welcome is not None

    @property
    def problem(self) -> str:
        """Reason why a run cannot be shipped at the moment; "" if there is none."""
        return next((each.delayed for each in self._shipments.values() if each.delayed), "")

    @property
    def refused(self) -> dict[str, str]:
        """Reasons why runs are not shipped, by uid: rejections by the supervisor, or damaged files."""
        return {uid: shipment.refused for uid, shipment in self._shipments.items() if shipment.refused}

    @property
    def is_complete(self) -> bool:
        """True if nothing more of any run in the spool can be shipped."""
        return all(map(self._is_settled, self._spool.runs()))

    def refusal(self, run_uid: str) -> str:
        """Return the reason why a run is not shipped; "" if it is shipped, or is not known."""
        shipment = self._shipments.get(run_uid)
        if shipment is not None:
            return shipment.refused
        return "" if run_uid in self._outcomes else self._spool.refused.get(run_uid, "")

    def durable(self, run_uid: str) -> int | None:
        """Return how many documents of a run are durable; None if it is not being shipped, e.g. after its removal."""
        shipment = self._shipments.get(run_uid)
        return None if shipment is None else shipment.durable

    def outcome(self, run_uid: str) -> tuple[str, str] | None:
        """Return outcome and reason as in `messages.Written`, or "refused" and the reason; None if not known yet."""
        if run_uid not in self._outcomes and (reason := self.refusal(run_uid)):
            return REFUSED, reason
        return self._outcomes.get(run_uid)

    def diagnose_connection(self, now: float, before: str) -> str:
        """Return the reason why an open connection is of no use; "" if there is none.

        It is `before`, the problem known so far, while the supervisor has not had the time to answer.
        """
        if self._rejected or self._welcome is not None:
            return self._rejected
        if now - self._heard_at < HELLO_INTERVAL_SECONDS:
            return before
        return f"something at {self._url} takes connections and does not answer; is it a supervisor?"

    def is_silent(self, now: float) -> bool:
        """Return True if the supervisor has been silent for so long that the connection must be replaced."""
        return now >= self._heard_at + self._silence_timeout

    def _is_settled(self, run: ShippedRun) -> bool:
        shipment = self._shipments.get(run.run_uid)
        return shipment is not None and shipment.run is run and shipment.settled

    def open_connection(self, now: float) -> None:
        """Begin with a new connection, which need not be established yet."""
        self._heard_at, self._silence_timeout = now, NAME_TIMEOUT_SECONDS
        self._next_hello_at = self._next_ping_at = 0.0
        for shipment in self._shipments.values():
            shipment.forget_state()

    def note_activity(self, now: float) -> None:
        """Shorten the silence timeout, and restart it: the supervisor's name is resolved, or it has sent something."""
        self._heard_at, self._silence_timeout = now, SILENCE_SECONDS

    def lose_connection(self) -> None:
        """End the connection."""
        if self._welcome is not None and not self._stopping:
            log.warning("The connection to %s is lost. Documents are kept in the spool until it is back.", self._url)
        self._welcome = None

    def update_runs(self) -> None:
        """Take in runs that are new in the spool, and forget those that were removed."""
        if self._stopping:
            self._spool.abandon()
        runs = {run.run_uid: run for run in self._spool.runs()}
        for uid in [uid for uid, shipment in self._shipments.items() if runs.get(uid) is not shipment.run]:
            del self._shipments[uid]
        for run in [run for uid, run in runs.items() if uid not in self._shipments]:
            # The supervisor may already have documents of an adopted run; its answer to the next Hello tells.
            self._shipments[run.run_uid] = Shipment(run, known=not run.is_adopted)
            # It may have documents, of which nobody has told the shipper while it was awake.
            self._has_more = True
            if run.is_adopted:
                self._next_hello_at = 0.0

    def request_outcome(self, run_uid: str) -> None:
        """Ask for the outcome of a run, even if another one than "written" is known: it may have been retried."""
        if self._outcomes.get(run_uid, ("", ""))[0] != WRITTEN:
            self._outcomes.pop(run_uid, None)
            self._await_outcome(run_uid)
            self._next_hello_at = 0.0

    def hurry(self) -> None:
        """Send what waits for company now, since somebody waits for it. Like `stop`, it needs the lock."""
        self._linger_until = 0.0
        for shipment in self._shipments.values():
            shipment.pause = 0.0

    def stop(self) -> None:
        """End all open runs without a stop document, and ship what is left."""
        self._stopping = True
        self.hurry()
        self._spool.abandon()
        self._next_declare_at = 0.0

    def receive(self, message: messages.Message, now: float) -> None:
        """Handle a message of the supervisor."""
        self.note_activity(now)
        if isinstance(message, messages.Welcome):
            self._accept_welcome(message, now)
        elif isinstance(message, messages.Durable):
            self._acknowledge(message.run, message.next, now, ended=message.ended)
            if (shipment := self._shipments.get(message.run)) is not None:
                shipment.pause = message.pause
            self._log_acceptance()
        elif isinstance(message, messages.Written):
            self._note_outcome(message.run, message.outcome, message.reason)
        elif isinstance(message, messages.Refused):
            self._apply_refusal(message, now)
        self._next_declare_at = 0.0

    def reject_message(self, error: ProtocolError, now: float) -> None:
        """Handle something that is no valid message."""
        self.note_activity(now)
        if self._welcome is None:
            self._rejected = f"{self._url} is no supervisor that this publisher can talk to: {error}"

    def _accept_welcome(self, message: messages.Welcome, now: float) -> None:
        if self._welcome is None:
            log.info("Connected to the supervisor at %s.", self._url)
        self._welcome = message
        self._rejected = ""
        outcomes = len(self._awaited)
        for uid, state in message.runs.items():
            shipment = self._shipments.get(uid)
            if shipment is not None and not shipment.known:
                refusal = _find_conflict(shipment.run, state)
                shipment.begin(0 if refusal else state.next)
                if refusal:
                    self._refuse_shipment(shipment, refusal)
            if shipment is not None and shipment.refused:
                # The reported outcome may be that of another run with the same uid.
                continue
            self._acknowledge(uid, state.next, now, ended=state.ended)
            if state.outcome:
                self._note_outcome(uid, state.outcome, state.reason)
        self._schedule_hello(message, now, news=len(self._awaited) < outcomes)

    def _schedule_hello(self, welcome: messages.Welcome, now: float, *, news: bool) -> None:
        """Set the time of the next Hello: for more runs or outcomes than one can ask for, or to ask again."""
        if any(not shipment.known for shipment in self._shipments.values()):
            self._next_hello_at = 0.0
        elif any(uid not in welcome.runs for uid in self._uids_to_ask_for()):
            # Some outcomes were requested after that Hello was sent.
            self._next_hello_at = 0.0
        elif not self._awaited:
            self._next_hello_at = math.inf
        else:
            doubled = min(2 * self._ask_interval, MAX_ASK_INTERVAL_SECONDS)
            self._ask_interval = ASK_INTERVAL_SECONDS if news else doubled
            self._next_hello_at = now + self._ask_interval

    def _await_outcome(self, uid: str) -> None:
        self._awaited[uid] = None
        self._ask_interval = ASK_INTERVAL_SECONDS

    def _acknowledge(self, uid: str, index: int, now: float, *, ended: bool) -> None:
        shipment = self._shipments.get(uid)
        if shipment is None or shipment.refused or not shipment.known:
            return
        if index > shipment.durable and self._outcomes.get(uid, ("",))[0] in COMPLETE:
            # It is that of the documents before, and says nothing about further ones. The host is asked again.
            del self._outcomes[uid]
        shipment.acknowledge(index)
        shipment.ended = ended
        if not (ended and shipment.delivered) or shipment.run.damage:
            return
        if not (shipment.run.stopped or shipment.run.abandoned):
            if shipment.durable > shipment.run.length:
                # The run is published again. The ingest host compares the documents that are still to come.
                shipment.rewind(shipment.run.length)
                return
            self._refuse_shipment(shipment, "it has been declared as ended by somebody else")
            return
        shipment.run.is_durable = True
        if self._outcomes.get(uid, ("",))[0] in COMPLETE:
            self._spool.remove(shipment.run)
        elif uid not in self._awaited:
            self._await_outcome(uid)
            self._next_hello_at = min(self._next_hello_at, now + ASK_INTERVAL_SECONDS)

    def _note_outcome(self, uid: str, outcome: str, reason: str) -> None:
        news = self._outcomes.get(uid) != (outcome, reason)
        self._outcomes[uid] = (outcome, reason)
        shipment = self._shipments.get(uid)
        if outcome == FAILED:
            # The supervisor may retry the run later: keep its spool files, and keep asking for the outcome.
            if shipment is None:
                self._awaited.pop(uid, None)
            if news:
                log.error("Run %s was not written to Tiled: %s.", uid, reason)
            return
        self._awaited.pop(uid, None)
        if shipment is not None and shipment.run.is_durable:
            self._spool.remove(shipment.run)

    def _apply_refusal(self, message: messages.Refused, now: float) -> None:
        shipment = self._shipments.get(message.run)
        if message.reason == messages.NO_HELLO:
            self._welcome = None
            self._next_hello_at = 0.0
        elif not message.run:
            self._note_rejection(message.reason, now)
        elif shipment is None:
            return
        elif message.reason in (messages.GAP, messages.LATER):
            shipment.rewind(message.index)
            shipment.delayed = message.detail or shipment.delayed
            self._log_delay(message.detail)
            if message.reason == messages.LATER:
                shipment.not_before = now + LATER_SECONDS
        else:
            self._refuse_shipment(shipment, message.reason)

    def _log_delay(self, detail: str) -> None:
        """Log why documents are not accepted for the moment: once until some are, because figures in it may change."""
        if detail and not self._delay_is_logged:
            self._delay_is_logged = True
            log.warning("Documents stay in the spool, because %s does not accept them now: %s.", self._url, detail)

    def _log_acceptance(self) -> None:
        if self._delay_is_logged and not self.problem:
            self._delay_is_logged = False
            log.info("%s accepts documents again.", self._url)

    def _note_rejection(self, reason: str, now: float) -> None:
        """Ship nothing until the supervisor, which rejects this publisher, answers the next Hello with a Welcome."""
        if reason != self._rejected:
            log.error("The supervisor at %s rejects this publisher: %s.", self._url, reason)
        self._welcome = None
        self._rejected = reason
        self._next_hello_at = now + HELLO_INTERVAL_SECONDS

    def _refuse_shipment(self, shipment: Shipment, reason: str) -> None:
        shipment.refuse(reason)
        uid = shipment.run.run_uid
        log.error("Run %s is not shipped to %s: %s. It stays in the spool.", uid, self._url, reason)

    def next_at(self, now: float) -> float:
        """Return the time at which `messages_due` and `is_silent` are to be called again, to be asked after them."""
        times = [self._next_hello_at, self._heard_at + self._silence_timeout]
        if self._welcome is not None:
            times += [self._next_ping_at, self._next_declare_at, self._next_batch_at(now)]
        return min(times)

    def awaits_documents(self, now: float) -> bool:
        """Return True if new documents are to be announced, because none are looked for soon anyway."""
        if self._welcome is None or now < self._linger_until:
            return False
        return self._next_batch_at(now) > now + RECHECK_SECONDS

    def _next_batch_at(self, now: float) -> float:
        if self._has_more:
            return now
        if now < self._linger_until:
            return self._linger_until
        due_at = min((shipment.due_at for shipment in self._shipments.values()), default=math.inf)
        recheck_at = now + RECHECK_SECONDS
        if due_at <= now:
            return recheck_at
        # Documents that wait for company are looked at now and then, rather than whenever others join them.
        is_paused = any(shipment.is_paused(now) for shipment in self._shipments.values())
        return min(due_at, recheck_at) if is_paused else due_at

    def messages_due(
        self, now: float, unix_now: float | None = None, busy: Callable[[str], bool] = _is_never_busy
    ) -> Iterator[messages.Message]:
        """Yield the messages to send now.

        A message counts as sent once the next one is requested. If one cannot be sent, stop iterating; the next call
        yields it again. No event may be reported during the iteration.

        Parameters
        ----------
        now
            The time.
        unix_now
            The Unix time, so that messages can tell the age of documents; None if they need not.
        busy
            Returns True for the uid of a run of which no documents can be sent now.
        """
        if now >= self._next_hello_at:
            yield self._make_hello()
            self._next_hello_at = now + HELLO_INTERVAL_SECONDS
        if self._welcome is None:
            return
        if now >= self._next_ping_at:
            yield self._make_ping(unix_now)
            self._pings += 1
            self._next_ping_at = now + PING_INTERVAL_SECONDS
        if now >= self._next_declare_at:
            for shipment in self._shipments.values():
                if shipment.is_abandonment_due(now):
                    # The ingest host may have more documents than the spool, whose last ones can be lost with the
                    # process or the disk.
                    yield messages.Abandoned(shipment.run.run_uid, max(shipment.run.length, shipment.durable))
            self._next_declare_at = math.inf
        yield from self._batches_due(self._welcome, now, busy)

    def _make_ping(self, unix_now: float | None) -> messages.Ping:
        behind = [shipment for shipment in self._shipments.values() if shipment.behind]
        documents = sum(shipment.behind for shipment in behind)
        size = sum(shipment.run.count_bytes(shipment.durable) for shipment in behind)
        oldest = min(filter(None, (shipment.find_oldest() for shipment in behind)), default=None)
        age = None if oldest is None or unix_now is None else max(0.0, unix_now - oldest)
        return messages.Ping(self._pings, documents, size, age)

    def _make_hello(self) -> messages.Hello:
        unknown = [shipment.run for shipment in self._shipments.values() if not shipment.known]
        runs = {run.run_uid: run.length for run in unknown[: messages.MAX_RUNS]}
        return messages.Hello(self._name, runs, self._uids_to_ask_for())

    def _uids_to_ask_for(self) -> list[str]:
        """Return the uids of runs whose outcome the next Hello asks for."""
        return list(itertools.islice(self._awaited, messages.MAX_RUNS))

    def _batches_due(
        self, welcome: messages.Welcome, now: float, busy: Callable[[str], bool]
    ) -> Iterator[messages.Documents]:
        """Yield at most one batch of each run, all within the supervisor's window."""
        self._has_more = False
        shipments = self._shipments.values()
        if now < self._linger_until:
            waiting = [shipment.waiting for shipment in shipments if shipment.waiting]
            if sum(waiting) < FULL_BATCH_DOCUMENTS * max(len(waiting), 1):
                return
        room = welcome.window - sum(shipment.bytes_in_flight for shipment in shipments)
        more = False
        linger_seconds = 0.0
        for shipment in shipments:
            if room <= 0:
                return
            if shipment.due_at > now or busy(shipment.run.run_uid):
                continue
            # A run gets half of the window that the other runs leave, so that a run whose worker has not started yet
            # cannot block the others.
            share = (room - shipment.bytes_in_flight) // 2
            if share <= 0 and shipment.in_flight:
                continue
            batch = self._read_batch(shipment, max(1, min(share, BATCH_BYTES)), welcome.max_document, now)
            if batch is None:
                continue
            yield batch
            shipment.note_sent(batch, now)
            room -= max(len(batch.body), 1)
            more = more or shipment.waiting > 0
            # A batch costs its worker a commit, however small it is, and with several runs each takes longer to fill.
            linger_seconds = min(linger_seconds + LINGER_SECONDS, MAX_LINGER_SECONDS)
            self._linger_until = now + linger_seconds
        self._has_more = more and room > 0

    def _read_batch(
        self, shipment: Shipment, max_bytes: int, max_document: int, now: float
    ) -> messages.Documents | None:
        """Return the next batch of a run; None if it cannot be read now, or never."""
        uid = shipment.run.run_uid
        try:
            records = shipment.read_next(BATCH_DOCUMENTS, max_bytes)
        except JournalInvalid as error:
            self._refuse_shipment(shipment, str(error))
            return None
        except OSError as error:
            reason = f"run {uid} cannot be read: {error}"
            if reason != shipment.delayed:
                log.error("Run %s cannot be read: %s. It is read again every %g s.", uid, error, REREAD_SECONDS)
            shipment.delay(reason, now + REREAD_SECONDS)
            return None
        fitting = list(itertools.takewhile(lambda record: len(record.body) <= max_document, records))
        if records and not fitting:
            idx, size = records[0].idx, len(records[0].body)
            reason = f"its document {idx} has {size} bytes; the supervisor takes up to {max_document}"
            self._refuse_shipment(shipment, reason)
        return messages.documents(uid, shipment.sent, list(map(_NAME_CRC_BODY_OF_RECORD, fitting))) if fitting else None


def _find_conflict(run: ShippedRun, state: messages.RunState) -> str:
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
