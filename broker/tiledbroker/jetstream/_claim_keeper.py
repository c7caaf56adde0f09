"""Keeps the claims of this supervisor: follows what all hosts store, performs what `RunClaims` decides, and tells."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final

from .._errors import AppendRefused, KeyFileError, LogUnavailable, ProtocolError
from .._rate_limited_log import RateLimitedLog
from ..ownership import SERVICE, UNREADABLE, Claim, ClaimStep, EndLease, HostLease, RunClaims, boottime
from ._address import LogAddress
from ._connection import Connection, LoopThread, StoredMessage
from ._follower import Follower, follow
from ._host_records import (
    LEASE_SUBJECTS,
    claim_subject,
    decode_claim,
    decode_host_lease,
    encode_step,
    lease_subject,
    parse_host_subject,
)
from ._names import HOSTS_BUCKET, bucket_stream, bucket_subject

log = logging.getLogger(__name__)

_RECONNECT_SECONDS: Final = 0.5
_REQUESTS_AT_ONCE: Final = 32
# Those who follow the claims get a removal within this time.
_PURGE_SECONDS: Final = 20.0
_CLEAN_SECONDS: Final = 60.0
_TURNS_PER_RENEWAL: Final = 4


class ClaimKeeper:
    """Runs `RunClaims` in a thread with an event loop. All public methods can be called from any thread.

    Parameters
    ----------
    address
        The servers.
    claims
        A new state machine, which belongs to the keeper from now on.
    renewal_seconds
        Pause between two renewals of a lease.
    may_act
        Returns whether this start holds its lease.
    renew_soon
        Has the lease renewed.
    on_change
        Called in the thread of the keeper with the runs of which this start may have to know something new. It must
        return at once.
    """

    def __init__(
        self,
        address: LogAddress,
        claims: RunClaims,
        *,
        renewal_seconds: float,
        may_act: Callable[[], bool],
        renew_soon: Callable[[], None],
        on_change: Callable[[Collection[str]], None],
    ) -> None:
        self.problem = "the log has not been reached yet"
        self._address = address.with_inbox("_INBOX.supervisor")
        self._claims = claims
        self._lock = threading.Lock()
        self._turn_seconds = renewal_seconds / _TURNS_PER_RENEWAL
        self._may_act = may_act
        self._renew_soon = renew_soon
        self._on_change = on_change
        self._loop: LoopThread | None = None
        self._connection: Connection | None = None
        self._requests = asyncio.Semaphore(_REQUESTS_AT_ONCE)
        self._woken = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._clean_at = 0.0
        self._limited_log = RateLimitedLog(log)

    def start(self) -> None:
        """Begin to follow the leases and claims."""
        self._loop = LoopThread("tiledbroker-claims")
        self._loop.submit(self._serve())

    def close(self) -> None:
        """End the thread."""
        if self._loop is not None:
            loop, self._loop = self._loop, None
            loop.close()

    # Questions and wishes.

    def ask(self, question: Callable[[RunClaims], Any]) -> Any:
        """Return what a function finds in the state machine, which it must not change."""
        with self._lock:
            return question(self._claims)

    def tell(self, wish: Callable[[RunClaims], None]) -> None:
        """Have a function change the state machine, and do what follows from that."""
        with self._lock:
            wish(self._claims)
        self._wake()

    def _wake(self) -> None:
        if (loop := self._loop) is not None:
            with contextlib.suppress(RuntimeError):
                loop.loop.call_soon_threadsafe(self._woken.set)

    def remove_claim(self, run: str) -> None:
        """Remove the claim of a run that is complete and has left the log, unless another host has it."""
        with self._lock:
            number = self._claims.find_removable(run)
            self._claims.give_up(run)
        if number and (loop := self._loop) is not None:
            loop.submit(self._remove_claim(run, number))

    # The loop.

    async def _serve(self) -> None:
        while self._loop is not None:
            connection = None
            try:
                connection = await Connection.open(self._address, name="tiledwriter claims")
                async with follow(connection, bucket_stream(HOSTS_BUCKET), bucket_subject(HOSTS_BUCKET, ">")) as found:
                    self._connection = connection
                    await self._follow(found)
            except (LogUnavailable, KeyFileError) as error:
                self.problem = str(error)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                log.exception("The claims of runs cannot be followed.")
                self.problem = f"{type(error).__name__}: {error}"
            finally:
                for task in list(self._tasks):
                    task.cancel()
                if connection is not None:
                    await connection.close()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _follow(self, follower: Follower) -> None:
        self.problem = ""
        with self._lock:
            self._claims.begin_view()
        is_complete = False
        while True:
            if not is_complete and not follower.pending:
                is_complete = True
                with self._lock:
                    self._claims.end_view()
            self._take_turn()
            received = asyncio.ensure_future(follower.receive(self._turn_seconds))
            try:
                while not received.done():
                    await self._wait_for(received)
            finally:
                received.cancel()
            for message in received.result():
                self._note(message)

    async def _wait_for(self, received: asyncio.Future[list[StoredMessage]]) -> None:
        """Wait for messages; do what is due if something was noted meanwhile."""
        woken = asyncio.ensure_future(self._woken.wait())
        both: set[asyncio.Future[Any]] = {received, woken}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        if self._woken.is_set():
            self._woken.clear()
            self._take_turn()

    def _take_turn(self) -> None:
        """Do what is due, and tell what has changed."""
        may_act = self._may_act()
        with self._lock:
            steps = self._claims.begin_steps(boottime()) if may_act else []
            changed = self._claims.take_changed()
            wants_renewal = self._claims.wants_renewal
        if may_act and wants_renewal:
            self._renew_soon()
        for step in steps:
            self._start(self._perform(step))
        if changed:
            self._on_change(changed)
        now = asyncio.get_running_loop().time()
        if may_act and now >= self._clean_at:
            self._clean_at = now + _CLEAN_SECONDS
            with self._lock:
                self._claims.forget_removed()
            self._start(self._remove_left_leases())

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note(self, message: StoredMessage) -> None:
        """Take in a record; one that cannot be read is of a start that nobody knows, and is watched like any other."""
        if (found := parse_host_subject(message.subject)) is None:
            return
        kind, name = found
        with self._lock:
            if kind is HostLease:
                self._claims.note_lease(name, message.seq, self._read_lease(message))
            else:
                self._claims.note_claim(name, message.seq, self._read_claim(message))

    def _read_lease(self, message: StoredMessage) -> HostLease | None:
        try:
            return decode_host_lease(message.body)
        except ProtocolError as error:
            self._limited_log.log(logging.WARNING, "lease", "%s It is in %s.", error, message.subject)
            return None

    def _read_claim(self, message: StoredMessage) -> Claim | None:
        if not message.body:
            return None
        try:
            return decode_claim(message.body)
        except ProtocolError as error:
            self._limited_log.log(logging.WARNING, "claim", "%s It is in %s.", error, message.subject)
            return Claim(f"{UNREADABLE}{message.seq}", "", 0)

    # Steps.

    async def _perform(self, step: ClaimStep) -> None:
        subject, value = encode_step(step)
        try:
            async with self._requests:
                number = await self._find_connection().append(subject, value, {}, step.expected)
        except AppendRefused:
            await self._look_again(subject)
            self._conclude(lambda claims: claims.note_refused(step, boottime()))
        except BaseException as error:
            self._conclude(lambda claims: claims.note_no_answer(step, boottime()))
            if not isinstance(error, LogUnavailable):
                raise
            self._limited_log.log(logging.WARNING, "step", "The log gives no answer: %s.", error)
        else:
            if isinstance(step, EndLease):
                log.info("The lease of %s is not renewed any more, and has been ended.", step.holder)
            self._conclude(lambda claims: claims.note_stored(step, number, boottime()))

    def _conclude(self, note: Callable[[RunClaims], None]) -> None:
        with self._lock:
            note(self._claims)
        self._woken.set()

    async def _look_again(self, subject: str) -> None:
        """Read a record that was another one than expected: a removal from the bucket is told to nobody."""
        found = parse_host_subject(subject)
        assert found is not None
        try:
            message = await self._find_connection().read_last_from_leader(bucket_stream(HOSTS_BUCKET), subject)
        except LogUnavailable:
            return
        if message is not None:
            self._note(message)
        elif found[0] is Claim:
            with self._lock:
                self._claims.note_claim(found[1], 0, None)

    async def _remove_claim(self, run: str, number: int) -> None:
        subject = claim_subject(run)
        with contextlib.suppress(LogUnavailable, AppendRefused):
            removal = await self._find_connection().append(subject, b"", {}, number)
            await asyncio.sleep(_PURGE_SECONDS)
            await self._purge(subject, removal)

    async def _remove_left_leases(self) -> None:
        with contextlib.suppress(LogUnavailable):
            for holder, number in self.ask(RunClaims.list_left):
                await self._purge(lease_subject(holder), number)

    async def _purge(self, subject: str, number: int) -> None:
        purge = {"filter": subject, "seq": number + 1}
        await self._find_connection().call(f"STREAM.PURGE.{bucket_stream(HOSTS_BUCKET)}", purge)

    def _find_connection(self) -> Connection:
        if self._connection is None:
            raise LogUnavailable(self.problem)
        return self._connection


async def read_hosts(connection: Connection) -> dict[str, HostLease | None]:
    """Return the leases of all starts that are known, by their names, also of those that have ended.

    A lease that cannot be read is None: its holder may be alive. The lease of an earlier version, in which one host
    serves all runs, is that of `SERVICE`.

    Raises
    ------
    LogUnavailable
        There is no answer.
    """
    stream = bucket_stream(HOSTS_BUCKET)
    info = await connection.call(f"STREAM.INFO.{stream}", {"subjects_filter": LEASE_SUBJECTS})
    found: dict[str, HostLease | None] = {}
    for subject in [lease_subject(SERVICE), *(info["state"].get("subjects") or {})]:
        parsed = parse_host_subject(subject)
        message = None if parsed is None else await connection.read_last_from_leader(stream, subject)
        if parsed is not None and message is not None:
            found[parsed[1]] = None
            with contextlib.suppress(ProtocolError):
                found[parsed[1]] = decode_host_lease(message.body)
    return found
