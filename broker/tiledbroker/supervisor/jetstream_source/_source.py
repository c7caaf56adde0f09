"""The source over a site's log in JetStream: it reads each run from where the journals end, and writes receipts.

A thread with an event loop follows the tails of all runs, which a consumer without bodies tells, and reads documents
of a run as far ahead of its journal as its window allows, if the run is this host's. What it says to the supervisor is
what publishers say: for each of these runs that is new or changed it asks with a Hello, as the proxy of a beamline's
publishers, and learns from the Welcome where to begin. Whatever was read is checked by index, so a log that has lost
its newest messages, and has got them anew, is noticed: the run is then read from its beginning, and documents that the
journal has are skipped. `_log_run` has the phases of a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import math
import socket
import time
from collections import Counter, deque
from collections.abc import Collection, Coroutine, Iterator
from typing import Any, Final

import msgspec

from ..._errors import AppendRefused, KeyFileError, LogUnavailable, ProtocolError
from ..._rate_limited_log import RateLimitedLog
from ..._wake_up import WakeUp
from ...jetstream import (
    DOCUMENTS,
    RUNS_BUCKET,
    STREAM,
    Connection,
    Follower,
    LogAddress,
    LoopThread,
    Receipt,
    StoredMessage,
    Tail,
    bucket_stream,
    bucket_subject,
    decode_receipt,
    documents_subject,
    encode_receipt,
    follow,
    parse_documents_subject,
    parse_tail,
    read_stream_info,
    receipt_key,
)
from ...protocol import messages
from .._publishers import ClientLimits, Publisher
from .._run_owner import RunOwner, SoleOwner
from ._claim_window import ClaimWindow
from ._log_run import ASK_AGAIN_SECONDS, LATER_SECONDS, LogRun, Phase, Step, is_busy

log = logging.getLogger(__name__)

RUN_WINDOW_BYTES: Final = 2 * 2**20
"""Bytes of one run that may be on their way to its journal."""
MESSAGES_PER_TURN: Final = 200
RECEIPT_SECONDS: Final = 0.5
"""Pause between two receipts of a run, unless it has ended."""
RECONNECT_SECONDS: Final = 0.5
_RECEIVE_SECONDS: Final = 1.0
_COLLECT_SECONDS: Final = 0.05
_QUERIES_AT_ONCE: Final = 32
_RUNS_PER_HELLO: Final = 200
_REMOVE_SECONDS: Final = 30.0
_MAX_QUEUED: Final = 1_000
_CLOSE_SECONDS: Final = 3.0


class JetStreamSource:
    """A `Source` that reads a site's log.

    Parameters
    ----------
    address
        The servers of the log.
    limits
        Limits for each beamline.
    keep_in_log
        Seconds for which a run stays in the log after it is complete in Tiled.
    owner
        Tells which runs are this host's; None if all are.
    """

    def __init__(
        self,
        address: LogAddress,
        limits: ClientLimits,
        *,
        keep_in_log: float,
        owner: RunOwner | None = None,
    ) -> None:
        self.publishers: dict[bytes, Publisher] = {}
        self.refused: Counter[str] = Counter()
        self.refused_at: dict[str, float] = {}
        self.problem = "the log has not been reached yet"
        self._address = address.with_inbox("_INBOX.supervisor")
        self._limits = limits
        self._keep_in_log = keep_in_log
        self._owner = owner or SoleOwner()
        self._host = socket.gethostname()
        self._wake_up = WakeUp()
        self._loop: LoopThread | None = None
        self._queue: deque[tuple[Publisher, messages.Message]] = deque()
        self._runs: dict[str, LogRun] = {}
        # Runs of a uid, which several beamlines may have.
        self._runs_of_uid: dict[str, list[LogRun]] = {}
        # Runs that are not complete.
        self._open: dict[str, LogRun] = {}
        # Runs that have ended and are nobody's.
        self._left: dict[str, LogRun] = {}
        self._claim_window = ClaimWindow()
        self._claim_timer: asyncio.TimerHandle | None = None
        # Runs to ask the supervisor for, by beamline, and when the Hello was sent that is not answered.
        self._to_ask: dict[str, dict[str, LogRun]] = {}
        self._asked_at: dict[str, float] = {}
        self._remove_at = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._connection: Connection | None = None
        self._limited_log = RateLimitedLog(log)

    # Methods for the supervisor's thread.

    @property
    def endpoint(self) -> str:
        """The servers of the log."""
        return str(self._address)

    @property
    def pollable(self) -> int:
        """Readable while messages are queued."""
        return self._wake_up.fileno()

    def open(self) -> None:
        """Begin to read the log. The servers need not be there yet."""
        self._loop = LoopThread("tiledbroker-jetstream-source")
        self._submit(self._serve())
        self._owner.listen(lambda uids: self._submit(self._note_owners(uids)))

    def _submit(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the loop. It has to handle its errors itself."""
        if self._loop is None:
            coroutine.close()
            return
        self._loop.submit(self._guard(coroutine))

    async def _guard(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except asyncio.CancelledError:
            raise
        except LogUnavailable as error:
            self._limited_log.log(logging.WARNING, "unavailable", "The log gives no answer: %s.", error)
        except Exception:
            self._limited_log.log(logging.ERROR, "source", "There is trouble with the log.", exc_info=True)

    def receive(self) -> Iterator[tuple[Publisher, messages.Message]]:
        """Yield what was read, a limited number of messages."""
        self._wake_up.clear()
        for _ in range(MESSAGES_PER_TURN):
            try:
                yield self._queue.popleft()
            except IndexError:
                return
        if self._queue:
            self._wake_up.wake()

    def send(self, publisher: Publisher, message: messages.Message) -> bool:
        """Note for a receipt what the supervisor tells the publishers of a beamline."""
        self._submit(self._hear(publisher.client, message))
        return True

    def has(self, publisher: Publisher) -> bool:
        """Return True: a beamline's documents are in the log, whether it is connected or not."""
        return self.publishers.get(publisher.identity) is publisher

    def refuse(self, topic: str, publisher: Publisher, refusal: messages.Refused) -> None:
        """Refuse a message, and note the reason for a receipt; see `Source`."""
        self.refused[topic] += 1
        self.refused_at[topic] = time.time()
        if topic != "disk":
            why = refusal.detail or refusal.reason
            self._limited_log.log(
                logging.WARNING, topic, "Run %s of %s is refused: %s.", refusal.run, publisher.client, why
            )
        self.send(publisher, refusal)

    def take_gone(self) -> list[Publisher]:
        """Return an empty list: nobody is connected to the source itself."""
        return []

    def check_connections(self) -> None:
        """Do nothing: the loop looks after its connection itself."""

    def close(self) -> None:
        """Store the last receipts, and end the thread."""
        if self._loop is not None:
            loop, self._loop = self._loop, None
            with contextlib.suppress(LogUnavailable):
                loop.run(self._finish(), _CLOSE_SECONDS)
            loop.close()
        self._wake_up.close()

    async def _finish(self) -> None:
        if self._connection is not None and not self._connection.lost.is_set():
            for run in list(self._open.values()):
                if run.phase is Phase.READING and self._needs_receipt(run):
                    await self._store_receipt(run)
            await self._connection.close()

    # The loop: connection and tails.

    async def _serve(self) -> None:
        """Follow the log over one connection after the other."""
        while self._loop is not None:
            try:
                await self._serve_connection()
            except (LogUnavailable, KeyFileError) as error:
                self._note_problem(str(error))
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.exception("The log cannot be read.")
                self._note_problem(f"{type(error).__name__}: {error}")
            finally:
                if (connection := self._connection) is not None:
                    self._connection = None
                    await connection.close()
            await asyncio.sleep(RECONNECT_SECONDS)

    def _find_connection(self) -> Connection:
        if self._connection is None:
            raise LogUnavailable(self.problem or "the connection was lost")
        return self._connection

    def _note_problem(self, problem: str) -> None:
        if problem and not self.problem and self._loop is not None:
            log.warning("The log is not read: %s.", problem)
        self.problem = problem

    async def _serve_connection(self) -> None:
        connection = await Connection.open(self._address, name=f"tiledwriter supervisor on {self._host}")
        self._connection = connection
        await read_stream_info(connection, STREAM)
        self._queries = asyncio.Semaphore(_QUERIES_AT_ONCE)
        # Documents that were read, and receipts that were stored, may not be there any more, if the servers were set
        # back. So all is asked anew: the log, the receipts and, unless these are complete, the supervisor.
        self._runs.clear()
        self._runs_of_uid.clear()
        self._open.clear()
        self._left.clear()
        self._to_ask.clear()
        self._asked_at.clear()
        for publisher in self.publishers.values():
            publisher.lag_documents = None
        async with follow(connection, STREAM, f"{DOCUMENTS}.*.*", headers_only=True) as follower:
            if self.problem:
                log.info("Reading the log at %s.", connection.server)
            self._note_problem("")
            upkeep = asyncio.ensure_future(self._keep_up(connection, follower))
            try:
                await self._follow_tails(follower, upkeep)
            finally:
                upkeep.cancel()
                for task in list(self._tasks):
                    task.cancel()

    async def _follow_tails(self, follower: Follower, upkeep: asyncio.Future[None]) -> None:
        """Take in tails until the connection is lost, or a message of the consumer was, or the upkeep has failed."""
        while not upkeep.done():
            for message in await follower.receive(_RECEIVE_SECONDS):
                self._note_tail(message.subject, parse_tail(message.seq, message.headers))
        upkeep.result()

    def _note_tail(self, subject: str, tail: Tail) -> None:
        run = self._runs.get(subject)
        if run is None:
            try:
                beamline, uid = parse_documents_subject(subject)
            except ValueError as error:
                self._limited_log.log(logging.WARNING, "subject", "A message of the log is ignored: %s", error)
                return
            run = self._runs[subject] = LogRun(beamline, uid, tail)
            self._runs_of_uid.setdefault(uid, []).append(run)
            self._look(run)
            return
        run.tail = tail
        if run.phase is Phase.COMPLETE:
            self._look(run)
        elif run.phase is Phase.READING:
            self._note_change(run, tail)

    def _note_change(self, run: LogRun, tail: Tail) -> None:
        """Read on in a run that has another tail."""
        if tail.seq < run.position or (tail.seq == run.position and tail.next not in (0, run.next)):
            log.warning("The log has lost documents of run %s, which is read anew.", run.uid)
            run.read_anew()
        if run.told.start_crc != tail.start_crc and tail.start_crc is not None:
            # Another run with the same uid, which the supervisor refuses.
            run.told = msgspec.structs.replace(run.told, start_crc=tail.start_crc)
            self._look(run)
        elif run.told.refused:
            # The reason may be gone.
            self._ask(run)
        else:
            self._pump(run)

    def _take_step(self, run: LogRun, step: Step) -> None:
        if run.take_step(step) is Phase.COMPLETE:
            self._open.pop(run.subject, None)
        else:
            self._open[run.subject] = run

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._guard(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # The loop: whose a run is.

    async def _note_owners(self, uids: Collection[str]) -> None:
        """Look at the runs of which there may be something new to know."""
        for run in [run for uid in uids for run in self._runs_of_uid.get(uid, ())]:
            self._note_owner(run)

    def _note_owner(self, run: LogRun) -> None:
        is_own = self._owner.owns(run.uid)
        if is_own == run.is_own:
            if is_own or run.phase is Phase.LOOKING:
                return
            if self._owner.is_others(run.uid):
                self._unwant(run)
            elif not is_busy(run.doubter):
                run.doubter = self._start(self._look_whether_removed(run))
        elif run.phase is not Phase.COMPLETE:
            self._look(run)

    async def _look_whether_removed(self, run: LogRun) -> None:
        """Look at a run whose owner has ended, or has removed it from the log."""
        connection = self._find_connection()
        async with self._queries:
            found = await connection.read_last_from_leader(STREAM, run.subject)
        if found is not None:
            self._look(run)
        elif run.phase in (Phase.WAITING, Phase.COMPLETE):
            self._unwant(run)
            self._forget(run)

    def _look(self, run: LogRun) -> None:
        """Read the run's receipt again, and see whose it is."""
        self._take_step(run, Step.LOOK)
        if not is_busy(run.looker):
            run.looker = self._start(self._look_at(run))

    async def _look_at(self, run: LogRun) -> None:
        async with self._queries:
            await self._read_receipt(run)
        run.told = run.receipt or Receipt()
        if run.is_settled:
            self._unwant(run)
            self._take_step(run, Step.FOUND_COMPLETE)
        elif self._owner.owns(run.uid):
            self._take_step(run, Step.FOUND_OWN)
            run.wanted = False
            self._left.pop(run.subject, None)
            self._enqueue_question(run)
        else:
            self._take_step(run, Step.FOUND_OPEN)
            if self._owner.is_others(run.uid):
                self._unwant(run)
            elif run.tail.ended and not run.wanted:
                self._left[run.subject] = run
                self._claim_soon()
            else:
                self._want(run)

    def _want(self, run: LogRun) -> None:
        run.wanted = True
        self._owner.want(run.uid)

    def _unwant(self, run: LogRun) -> None:
        """Do not claim a run, or not any more."""
        self._left.pop(run.subject, None)
        if run.wanted:
            run.wanted = False
            self._claim_soon()
        # The runs of a uid have one claim.
        if not any(other.wanted for other in self._runs_of_uid.get(run.uid, ())):
            self._owner.unwant(run.uid)

    def _claim_soon(self) -> None:
        """Claim runs that are left, once it is known of those that come together what they are."""
        if self._left and self._claim_timer is None:
            self._claim_timer = asyncio.get_running_loop().call_later(_COLLECT_SECONDS, self._claim_left)

    def _claim_left(self) -> None:
        """Claim runs that have ended and are nobody's, the oldest first, as far as the window allows."""
        self._claim_timer = None
        if not self._left:
            return
        in_hand = sum(run.is_to_be_written for run in self._open.values())
        room = self._claim_window.take_room(in_hand, time.monotonic())
        for run in heapq.nsmallest(room, self._left.values(), key=lambda run: run.tail.seq):
            del self._left[run.subject]
            self._want(run)

    def _forget(self, run: LogRun) -> None:
        if self._runs.get(run.subject) is run:
            del self._runs[run.subject]
            others = [other for other in self._runs_of_uid.pop(run.uid, ()) if other is not run]
            if others:
                self._runs_of_uid[run.uid] = others
        self._open.pop(run.subject, None)
        self._left.pop(run.subject, None)

    # The loop: what the supervisor has of a run.

    async def _read_receipt(self, run: LogRun) -> None:
        connection = self._find_connection()
        key = bucket_subject(RUNS_BUCKET, receipt_key(run.beamline, run.uid))
        found = await connection.read_last(bucket_stream(RUNS_BUCKET), key)
        run.receipt, run.revision = None, 0 if found is None else found.seq
        if found is not None and found.body:
            try:
                run.receipt = decode_receipt(found.body)
            except ProtocolError as error:
                self._limited_log.log(
                    logging.WARNING, "receipt", "The receipt of run %s is made anew: %s", run.uid, error
                )
        run.receipt_known = True

    def _ask(self, run: LogRun) -> None:
        """Ask the supervisor again for a run that is being read."""
        self._take_step(run, Step.ASK)
        self._enqueue_question(run)

    def _enqueue_question(self, run: LogRun) -> None:
        """Ask the supervisor for a run, as soon as it has answered what it was asked before."""
        run.ask_at = math.inf
        self._to_ask.setdefault(run.beamline, {})[run.uid] = run
        if run.beamline not in self._asked_at:
            self._say_hello(run.beamline)

    def _say_hello(self, beamline: str) -> None:
        """Say Hello for the runs to ask for. A Hello replaces an earlier one, so there is one at a time."""
        runs = list(itertools.islice(self._to_ask.get(beamline, {}).values(), _RUNS_PER_HELLO))
        if not runs:
            self._asked_at.pop(beamline, None)
            return
        self._asked_at[beamline] = time.monotonic()
        publisher = self._find_publisher(beamline)
        for run in runs:
            publisher.refused.pop(run.uid, None)
        self._enqueue(publisher, messages.Hello(publisher.name, {run.uid: run.tail.next for run in runs}, []))

    def _find_publisher(self, beamline: str) -> Publisher:
        identity = beamline.encode()
        publisher = self.publishers.get(identity)
        if publisher is None:
            publisher = Publisher(identity, beamline, "", name=beamline, connected_at=time.time())
            # Replaced as a whole, since the supervisor's thread may be reading it.
            self.publishers = {**self.publishers, identity: publisher}
        publisher.heard = time.monotonic()
        return publisher

    def _enqueue(self, publisher: Publisher, message: messages.Message) -> None:
        self._queue.append((publisher, message))
        self._wake_up.wake()

    async def _hear(self, beamline: str, message: messages.Message) -> None:
        """Take in an answer of the supervisor."""
        if isinstance(message, messages.Welcome):
            for uid, state in message.runs.items():
                asked = self._to_ask.get(beamline, {}).pop(uid, None)
                if asked is not None and asked.phase is Phase.ASKING:
                    self._take_step(asked, Step.ANSWERED)
                    asked.begin_at(state, self._host, time.monotonic())
                    self._store_soon(asked)
                    self._pump(asked)
            self._say_hello(beamline)
            return
        if not isinstance(message, messages.Durable | messages.Written | messages.Refused):
            return
        run = self._runs.get(documents_subject(beamline, message.run))
        if run is None or run.phase is not Phase.READING:
            return
        now = time.monotonic()
        match message:
            case messages.Durable():
                run.note_durable(message.next, ended=message.ended, now=now)
            case messages.Written():
                run.note_outcome(message.outcome, message.reason, now)
            case messages.Refused(reason=messages.NO_HELLO):
                self._ask(run)
            case messages.Refused():
                run.note_refusal(message, now)
        self._store_soon(run)
        self._pump(run)

    # The loop: reading documents.

    def _pump(self, run: LogRun) -> None:
        """Read on, if there is something to read and room for it."""
        if not is_busy(run.reader_task) and self._may_read(run):
            run.reader_task = self._start(self._read(run))

    def _may_read(self, run: LogRun) -> bool:
        if run.phase is not Phase.READING or run.told.refused:
            return False
        if run.position >= run.tail.seq or time.monotonic() < run.not_before:
            return False
        if run.next >= run.tail.next and not self._wants_end(run) and run.tail.next > 0:
            return False
        # The first message alone: a run that waits for a worker must not fill the memory.
        limit = RUN_WINDOW_BYTES if run.told.next else 1
        return run.bytes_in_flight < limit and len(self._queue) < _MAX_QUEUED

    def _wants_end(self, run: LogRun) -> bool:
        """Return whether the run's end is in the log and not in the journal: an abandonment has no document."""
        return run.tail.ended and not run.told.ended

    async def _read(self, run: LogRun) -> None:
        try:
            while self._may_read(run) and self._connection is not None:
                async with self._queries:
                    found = await self._connection.read_next(STREAM, run.subject, run.position + 1)
                if run.phase is not Phase.READING:
                    return
                if found is None:
                    # The tail is known, and the replica that was asked does not have it yet; or it was removed.
                    run.not_before = time.monotonic() + LATER_SECONDS
                    return
                self._hand_on(run, found)
                if run.position >= run.tail.seq and run.next < run.tail.next and not run.told.refused:
                    self._read_anew(run, f"to {run.tail.next - 1}")
        except LogUnavailable as error:
            self._limited_log.log(logging.WARNING, "read", "Run %s cannot be read: %s.", run.uid, error)
            run.not_before = time.monotonic() + LATER_SECONDS

    def _hand_on(self, run: LogRun, found: StoredMessage) -> None:
        if not run.reader.has_parts:
            run.entry_start = run.position
        run.position = found.seq
        try:
            entry = run.reader.read(found.headers, found.body)
        except ProtocolError as error:
            self._record_refusal("protocol", "A message of run %s in the log is ignored: %s", run.uid, error)
            return
        if entry is None:
            return
        if entry.run != run.uid:
            self._record_refusal("protocol", "A message of run %s says that it is of run %s.", run.uid, entry.run)
            return
        if isinstance(entry, messages.Documents):
            if entry.next <= run.next:
                return
            if max(entry.sizes) > self._limits.max_document:
                run.refuse(f"a document of it has {max(entry.sizes)} bytes; the limit is {self._limits.max_document}")
                self._store_soon(run)
                return
        elif entry.length < run.tail.next or run.told.ended:
            # It went on after that.
            return
        if entry.first > run.next:
            self._read_anew(run, f"to {entry.first - 1}")
            return
        run.rereads = 0
        run.next = max(run.next, entry.next)
        size = len(entry.body) if isinstance(entry, messages.Documents) else 0
        run.in_flight.append((entry.next, max(size, 1), run.entry_start))
        self._enqueue(self._find_publisher(run.beamline), entry)

    def _read_anew(self, run: LogRun, missing: str) -> None:
        """Read the run from its beginning, because documents are missing; refuse it if that did not help."""
        if not run.rereads:
            run.rereads = 1
            run.position = 0
            run.reader.forget()
            return
        run.rereads = 0
        reason = f"the log lacks its documents from {run.next} {missing}, and this ingest host does, too"
        log.error("Run %s cannot be read from the log: %s.", run.uid, reason)
        run.refuse(reason)
        self._store_soon(run)

    def _record_refusal(self, topic: str, text: str, *arguments: object) -> None:
        self.refused[topic] += 1
        self.refused_at[topic] = time.time()
        self._limited_log.log(logging.WARNING, topic, text, *arguments)

    # The loop: receipts, and what is due now and then.

    def _store_soon(self, run: LogRun) -> None:
        if not is_busy(run.storer) and self._needs_receipt(run):
            run.storer = self._start(self._store_later(run))

    def _needs_receipt(self, run: LogRun) -> bool:
        return run.phase is Phase.READING and self._owner.owns(run.uid) and run.has_news

    async def _store_later(self, run: LogRun) -> None:
        while self._needs_receipt(run):
            pause = 0.0 if run.told.ended else run.receipt_at + RECEIPT_SECONDS - time.monotonic()
            await asyncio.sleep(max(0.0, pause))
            await self._store_receipt(run)

    async def _store_receipt(self, run: LogRun) -> None:
        connection = self._find_connection()
        receipt = msgspec.structs.replace(run.told, at=time.time(), host=self._host)
        subject = bucket_subject(RUNS_BUCKET, receipt_key(run.beamline, run.uid))
        run.receipt_at = time.monotonic()
        try:
            run.revision = await connection.append(subject, encode_receipt(receipt), {}, run.revision)
        except AppendRefused:
            # An earlier attempt was stored without an answer, or the host before this one was slow to end.
            await asyncio.sleep(RECEIPT_SECONDS)
            await self._read_receipt(run)
            return
        run.receipt = receipt

    async def _keep_up(self, connection: Connection, follower: Follower) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            for run in list(self._open.values()):
                self._do_due(run, now)
            for publisher in self.publishers.values():
                publisher.heard = now
            if not follower.pending:
                self._measure_lag()
            self._owner.note_open_runs(sum(run.is_own for run in self._open.values()))
            self._claim_soon()
            for beamline in [each for each, asked in self._asked_at.items() if now >= asked + ASK_AGAIN_SECONDS]:
                self._say_hello(beamline)
            if now >= self._remove_at:
                self._remove_at = now + min(_REMOVE_SECONDS, max(1.0, self._keep_in_log))
                await self._remove_old(connection)

    def _measure_lag(self) -> None:
        """Note how many documents of each beamline the host that has to read them does not have."""
        behind: Counter[str] = Counter()
        unread = set()
        for run in self._open.values():
            if run.phase is not Phase.WAITING or not self._owner.is_others(run.uid):
                behind[run.beamline] += max(0, run.tail.next - run.told.next)
                if not run.receipt_known:
                    unread.add(run.beamline)
        for beamline in behind:
            self._find_publisher(beamline)
        for publisher in self.publishers.values():
            # After the start, complete runs would count as well, until their receipts are read.
            if publisher.lag_documents is not None or publisher.client not in unread:
                publisher.lag_documents = behind[publisher.client]

    def _do_due(self, run: LogRun, now: float) -> None:
        """Do what is due in a run."""
        if run.phase is Phase.LOOKING:
            if not is_busy(run.looker):
                self._look(run)
        elif run.phase is Phase.WAITING:
            # The log may have given no answer when its owner had ended.
            is_known = run.wanted or run.subject in self._left or is_busy(run.doubter)
            if not is_known and not self._owner.is_others(run.uid):
                run.doubter = self._start(self._look_whether_removed(run))
        elif run.phase is Phase.READING and now >= run.ask_at:
            self._ask(run)
        elif run.phase is Phase.READING:
            self._pump(run)
            self._store_soon(run)
            is_stored = run.receipt is not None and run.receipt.is_complete and not self._needs_receipt(run)
            if run.is_settled and is_stored and not is_busy(run.storer):
                self._take_step(run, Step.STORED)
                self._claim_window.note_written(now)

    async def _remove_old(self, connection: Connection) -> None:
        limit = time.time() - self._keep_in_log
        for run in list(self._runs.values()):
            is_old = run.phase is Phase.COMPLETE and run.receipt is not None and run.receipt.at <= limit
            if is_old and not self._owner.is_others(run.uid):
                await self._remove(connection, run)

    async def _remove(self, connection: Connection, run: LogRun) -> None:
        """Remove a complete run from the log, up to the message that is known to be its last one."""
        try:
            await connection.call(f"STREAM.PURGE.{STREAM}", {"filter": run.subject, "seq": run.tail.seq + 1})
        except LogUnavailable as error:
            self._limited_log.log(logging.WARNING, "purge", "Run %s stays in the log: %s.", run.uid, error)
            return
        log.debug("Run %s was removed from the log.", run.uid)
        if run.phase is Phase.COMPLETE:
            self._forget(run)
        if run.uid not in self._runs_of_uid:
            self._owner.remove_claim(run.uid)
