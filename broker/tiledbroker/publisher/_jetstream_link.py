"""The link over a site's log in JetStream: documents are appended to the log, and receipts say what ingest hosts have.

A message is appended only if the last one of its run is the expected one. A refusal, or no answer, means "ask the log":
what the log has is skipped, what it has lost is sent again. So nothing is in it twice, whatever its servers forget, and
nothing is acknowledged to the session but by a receipt.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import time
from collections import deque
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .._errors import AppendRefused, KeyFileError, LogUnavailable, ProtocolError
from .._rate_limited_log import RateLimitedLog
from .._wake_up import WakeUp
from ..jetstream import (
    RUNS_BUCKET,
    STREAM,
    Connection,
    LogAddress,
    LogEntry,
    LoopThread,
    Receipt,
    Tail,
    bucket_stream,
    bucket_subject,
    compose_messages,
    decode_receipt,
    documents_subject,
    parse_tail,
    receipt_key,
    slice_documents,
)
from ..protocol import messages

if TYPE_CHECKING:
    from nats.aio.msg import Msg

log = logging.getLogger(__name__)

_WINDOW_BYTES: Final = 2**50
"""The log is the window: a run has one message on its way, and all others are in the spool."""
_FIRST_PAUSE_SECONDS: Final = 0.01
_MAX_PAUSE_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 5.0
"""Pause between two looks at all receipts that are waited for. Hints make them known at once."""
_HINT_PAUSES_SECONDS: Final = (0.0, 0.05, 0.5)
"""Looks after a hint, since the replica that is asked may be behind."""
_QUESTION_PAUSES_SECONDS: Final = (0.0, 0.05, 0.5)
"""Times to ask the log before it is believed that it lacks what the session has sent before."""
_QUERIES_AT_ONCE: Final = 32
_APPENDS_PER_PAUSE: Final = 10.0
"""An append wakes two threads and all nodes, however few documents it has: that is to take a tenth of the time."""
_MAX_APPEND_PAUSE_SECONDS: Final = 0.1
_SMOOTHING: Final = 0.1
_OTHER_LOG: Final = "the log has another run with this uid; each run needs its own uid"


class JetStreamLink:
    """A `Link` to the ingest hosts of a site over its log.

    Parameters
    ----------
    address
        The servers of the log.
    beamline
        The beamline, whose subjects these credentials may use.
    """

    def __init__(self, address: LogAddress, beamline: str) -> None:
        self._address = address
        self._beamline = beamline
        self._loop = LoopThread("tiledbroker-jetstream-link")
        self._wake_up = WakeUp()
        self._tenure: _Tenure | None = None

    @property
    def problem(self) -> str:
        """Reason why there is no connection, or why the log takes no documents; "" if there is none."""
        return "" if self._tenure is None else self._tenure.problem

    @property
    def begun(self) -> bool:
        """True: the loop resolves names itself, within a time limit."""
        return True

    @property
    def broken(self) -> bool:
        """True once the connection is lost, or has not come about."""
        return self._tenure is not None and self._tenure.broken

    def connect(self, problem: str) -> None:
        """Begin to connect; see `Link`."""
        self._tenure = _Tenure(self._address, self._beamline, self._wake_up, problem)
        self._loop.submit(self._tenure.serve())

    def disconnect(self, linger_seconds: float) -> None:
        """End the connection; see `Link`."""
        if self._tenure is not None:
            with contextlib.suppress(LogUnavailable):
                self._loop.run(self._tenure.end(linger_seconds), linger_seconds + 5.0)

    def send(self, message: messages.Message) -> bool:
        """Send a message; return False if the link does not take it now."""
        assert self._tenure is not None
        return self._tenure.take(message, self._loop)

    def receive(self) -> messages.Message | None:
        """Return the next message that has arrived; None if there is none.

        Raises
        ------
        ProtocolError
            A receipt is damaged.
        """
        assert self._tenure is not None
        try:
            message = self._tenure.inbox.popleft()
        except IndexError:
            return None
        if isinstance(message, ProtocolError):
            raise message
        return message

    def busy(self, run_uid: str) -> bool:
        """Return True while a message of this run is on its way to the log."""
        return self._tenure is not None and run_uid in self._tenure.busy

    def wait(self, descriptor: int, timeout_seconds: float, *, blocked: bool) -> bool:  # noqa: ARG002
        """Wait for events; see `Link`."""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._wake_up.fileno(), select.POLLIN)
        found = dict(poll.poll(max(0, int(1000 * timeout_seconds + 0.999))))
        if self._wake_up.fileno() in found:
            # Before the inbox is looked at: what arrives later wakes again.
            self._wake_up.clear()
        return descriptor in found

    def close(self) -> None:
        """End the thread."""
        self._loop.close()
        self._wake_up.close()


class _StoredReceipt(NamedTuple):
    """A receipt, and its number in the bucket, which grows from one receipt of a run to the next."""

    seq: int
    receipt: Receipt


class _Tenure:
    """One connection of a link, from beginning to end. `take` is for the shipper's thread, all else for the loop.

    Attributes
    ----------
    problem, broken
        As in `Link`.
    inbox
        Messages for the session, or errors for it.
    busy
        Runs of which a message is on its way.
    """

    def __init__(self, address: LogAddress, beamline: str, wake_up: WakeUp, problem: str) -> None:
        self.problem = problem
        self.broken = False
        self.inbox: deque[messages.Message | ProtocolError] = deque()
        self.busy: set[str] = set()
        self._address = address
        self._beamline = beamline
        self._wake_up = wake_up
        self._connection: Connection | None = None
        self._is_open = False
        self._tails: dict[str, Tail] = {}
        # Runs whose receipts are waited for, and the receipt that the session was told last.
        self._awaited: dict[str, _StoredReceipt | None] = {}
        self._start_crcs: dict[str, int] = {}
        self._tasks: set[asyncio.Future[Any]] = set()
        self._appends: set[asyncio.Future[Any]] = set()
        self._append_seconds = 0.0
        self._limited_log = RateLimitedLog(log)

    # Methods for the shipper's thread.

    def take(self, message: messages.Message, loop: LoopThread) -> bool:
        """Take a message of the session; return False if it cannot be taken now."""
        if not self._is_open or self.broken:
            return False
        match message:
            case messages.Hello():
                loop.submit(self._guard(self._answer_hello(message)))
            case messages.Ping():
                self._tell(messages.Pong(message.token))
            case messages.Documents() | messages.Abandoned():
                if message.run in self.busy:
                    return False
                self.busy.add(message.run)
                loop.submit(self._guard(self._append(message), self._appends))
        return True

    # The loop.

    def _tell(self, *told: messages.Message | ProtocolError) -> None:
        self.inbox.extend(told)
        self._wake_up.wake()

    def _break(self, problem: str) -> None:
        self.problem = self.problem or problem
        self._is_open = False
        self.broken = True
        self._wake_up.wake()

    async def _guard(self, coroutine: Coroutine[Any, Any, None], kind: set[asyncio.Future[Any]] | None = None) -> None:
        """Run a coroutine; if it fails, the connection must be replaced."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        if kind is not None:
            kind.add(task)
            task.add_done_callback(kind.discard)
        try:
            await task
        except asyncio.CancelledError:
            raise
        except LogUnavailable as error:
            self._break(str(error))
        except Exception as error:
            log.exception("The log cannot be used.")
            self._break(f"{type(error).__name__}: {error}")
        finally:
            self._tasks.discard(task)

    async def serve(self) -> None:
        """Connect, and look for receipts until the connection is lost."""
        await self._guard(self._serve())

    async def _serve(self) -> None:
        try:
            connection = await Connection.open(
                self._address, name=f"tiledwriter publisher of {self._beamline}", on_lost=self._wake_up.wake
            )
        except (LogUnavailable, KeyFileError) as error:
            self.problem = str(error)
            self._wake_up.wake()
            await asyncio.sleep(_MAX_PAUSE_SECONDS)
            self._break(str(error))
            return
        self._connection = connection
        await connection.subscribe(bucket_subject(RUNS_BUCKET, receipt_key(self._beamline, "x")[:-1] + ">"), self._hear)
        await connection.flush()
        self.problem = ""
        self._is_open = True
        self._wake_up.wake()
        lost = asyncio.ensure_future(connection.lost.wait())
        self._tasks.add(lost)
        while not lost.done():
            await asyncio.wait({lost}, timeout=_POLL_SECONDS)
            if not lost.done():
                await self._read_receipts(list(self._awaited))
        reason = f": {connection.problem}" if connection.problem else ""
        self._break(f"the connection to {self._address} was lost{reason}")

    async def end(self, linger_seconds: float) -> None:
        """End the connection after what is on its way has been answered, or after some time."""
        if self._appends and not self.broken:
            await asyncio.wait(self._appends, timeout=linger_seconds)
        self._is_open = False
        for task in list(self._tasks):
            task.cancel()
        if self._connection is not None:
            await self._connection.close()

    # Receipts.

    async def _hear(self, hint: Msg) -> None:
        """Take the announcement of a receipt. It may not be stored yet, or never be, so it is only a hint."""
        prefix = bucket_subject(RUNS_BUCKET, receipt_key(self._beamline, "x")[:-1])
        token = hint.subject.removeprefix(prefix)
        uids = [uid for uid in self._awaited if receipt_key(self._beamline, uid).endswith("." + token)]
        if uids:
            task = asyncio.ensure_future(self._guard(self._follow_hint(uids)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _follow_hint(self, uids: list[str]) -> None:
        before = {uid: self._awaited.get(uid) for uid in uids}
        for pause in _HINT_PAUSES_SECONDS:
            await asyncio.sleep(pause)
            await self._read_receipts(uids)
            uids = [uid for uid in uids if uid in self._awaited and self._awaited[uid] == before[uid]]

    async def _read_receipt(self, uid: str) -> _StoredReceipt | None:
        assert self._connection is not None
        subject = bucket_subject(RUNS_BUCKET, receipt_key(self._beamline, uid))
        found = await self._connection.read_last(bucket_stream(RUNS_BUCKET), subject)
        if found is None or not found.body:
            return None
        try:
            return _StoredReceipt(found.seq, decode_receipt(found.body))
        except ProtocolError as error:
            self._tell(error)
            return None

    async def _read_receipts(self, uids: Iterable[str]) -> None:
        for uid in uids:
            if (stored := await self._read_receipt(uid)) is not None:
                self._note_receipt(uid, stored)

    def _note_receipt(self, uid: str, stored: _StoredReceipt) -> None:
        """Tell the session what is new in a receipt."""
        if uid not in self._awaited:
            return
        before, receipt = self._awaited[uid], stored.receipt
        if before is not None and stored.seq <= before.seq:
            # It is known, or of a replica that is behind.
            return
        start_crc = self._start_crcs.get(uid)
        if None not in (start_crc, receipt.start_crc) and start_crc != receipt.start_crc:
            self._tell(messages.Refused(uid, 0, messages.ANOTHER_RUN))
            return
        self._awaited[uid] = stored
        if receipt.refused:
            self._tell(messages.Refused(uid, receipt.next, receipt.refused))
            return
        pause = min(_MAX_APPEND_PAUSE_SECONDS, _APPENDS_PER_PAUSE * self._append_seconds)
        self._tell(messages.Durable(uid, receipt.next, receipt.ended, pause))
        if receipt.delayed:
            self._tell(messages.Refused(uid, receipt.next, messages.LATER, receipt.delayed))
        if receipt.outcome:
            self._tell(messages.Written(uid, receipt.outcome, receipt.reason))
        if receipt.is_complete:
            del self._awaited[uid]

    # Hello.

    async def _answer_hello(self, hello: messages.Hello) -> None:
        """Answer as a supervisor does: with what the receipts say. What the log has is looked up besides."""
        assert self._connection is not None
        uids = list(dict.fromkeys([*hello.runs, *hello.awaited]))
        limit = asyncio.Semaphore(_QUERIES_AT_ONCE)

        async def look_up(uid: str) -> _StoredReceipt | None:
            async with limit:
                if uid in hello.runs and uid not in self.busy:
                    await self._ask_log(uid)
                return await self._read_receipt(uid)

        receipts = dict(zip(uids, await asyncio.gather(*map(look_up, uids)), strict=True))
        states, refusals = {}, []
        for uid, stored in receipts.items():
            known = Receipt() if stored is None else stored.receipt
            states[uid] = messages.RunState(
                known.next, known.ended, known.outcome, known.reason, known.start_crc, known.end_crc
            )
            if known.refused:
                refusals.append(messages.Refused(uid, known.next, known.refused))
            if not known.is_complete:
                self._awaited[uid] = stored
        self._tell(messages.Welcome(_WINDOW_BYTES, messages.MAX_BODY_BYTES, states), *refusals)

    # Documents.

    async def _ask_log(self, uid: str) -> Tail:
        """Return how far the log is with a run, as far as the replica knows that is asked."""
        assert self._connection is not None
        subject = documents_subject(self._beamline, uid)
        found = await self._connection.read_last(STREAM, subject)
        tail = Tail() if found is None else parse_tail(found.seq, found.headers)
        self._tails[uid] = tail
        return tail

    async def _append(self, entry: LogEntry) -> None:
        """Append an entry, or as much of it as the log does not have; the run is free again afterwards."""
        uid = entry.run
        self._awaited.setdefault(uid, None)
        if isinstance(entry, messages.Documents) and entry.first == 0:
            self._start_crcs[uid] = entry.crcs[0]
        pause = _FIRST_PAUSE_SECONDS
        tail = self._tails.get(uid, Tail())
        questions = 0
        while True:
            rest, answer = _find_rest(entry, tail)
            if answer is not None and questions < len(_QUESTION_PAUSES_SECONDS):
                # The tail may be an old one, also that of a replica that is behind.
                await asyncio.sleep(_QUESTION_PAUSES_SECONDS[questions])
                tail, questions = await self._ask_log(uid), questions + 1
                continue
            if rest is None:
                break
            try:
                self._tails[uid] = await self._append_parts(uid, rest, tail)
                break
            except AppendRefused as error:
                log.debug("Run %s: the log has another last message than %d: %s.", uid, tail.seq, error)
            except LogUnavailable as error:
                if self._connection is None or self._connection.lost.is_set():
                    raise
                self._note_trouble(str(error))
                pause = _MAX_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)
            with contextlib.suppress(LogUnavailable):
                tail = await self._ask_log(uid)
        self.problem = ""
        self.busy.discard(uid)
        if answer is not None:
            self._tell(answer)
        else:
            self._wake_up.wake()

    async def _append_parts(self, uid: str, rest: LogEntry, tail: Tail) -> Tail:
        assert self._connection is not None
        subject = documents_subject(self._beamline, uid)
        parts, after = compose_messages(rest, tail, self._connection.max_payload)
        seq = tail.seq
        for part in parts:
            began = time.monotonic()
            seq = await self._connection.append(subject, part.body, part.headers, seq)
            self._append_seconds += _SMOOTHING * (time.monotonic() - began - self._append_seconds)
        return Tail(seq, after.next, after.ended, after.start_crc, after.end_crc)

    def _note_trouble(self, reason: str) -> None:
        self.problem = f"the log takes no documents: {reason}"
        self._limited_log.log(
            logging.WARNING, "append", "Documents stay in the spool, because the log takes none: %s.", reason
        )
        self._wake_up.wake()


def _find_rest(entry: LogEntry, tail: Tail) -> tuple[LogEntry | None, messages.Message | None]:
    """Return what of an entry the log does not have, and what the session is to be told instead of an append.

    Of two entries with the same documents, those of the log count: they must be the same documents.
    """
    if isinstance(entry, messages.Abandoned):
        if tail.next < entry.length:
            return None, messages.Refused(entry.run, tail.next, messages.GAP)
        # The log may have more than the spool, whose last documents can be lost with the disk.
        return (None if tail.ended else messages.Abandoned(entry.run, tail.next)), None
    if tail.next and entry.first == 0 and tail.start_crc != entry.crcs[0]:
        return None, messages.Refused(entry.run, 0, _OTHER_LOG)
    if entry.first > tail.next:
        return None, messages.Refused(entry.run, tail.next, messages.GAP)
    if entry.first < tail.next <= entry.next and entry.crcs[tail.next - 1 - entry.first] != tail.end_crc:
        return None, messages.Refused(entry.run, 0, _OTHER_LOG)
    if entry.next <= tail.next:
        return None, None
    return (slice_documents(entry, tail.next) if entry.first < tail.next else entry), None
