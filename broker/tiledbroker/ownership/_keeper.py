"""Keeps the lease of this supervisor: asks the store, renews, writes the deadline page, and tells what has changed."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import socket
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final

from .._errors import StoreUnavailable
from ._deadline_page import DeadlinePage, boottime
from ._lease import CompareAndSet, Lease, Ownership, OwnershipState, Read, Wait
from ._store import LeaseStore

log = logging.getLogger(__name__)

# Time after which `describe` says that the store does not answer.
_SILENCE_SECONDS: Final = 5.0


def make_holder_name() -> str:
    """Return a name for this supervisor start that no other start has."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"


@dataclass(frozen=True)
class LeaseFacts:
    """What a supervisor knows of the lease.

    Attributes
    ----------
    held
        This supervisor holds it.
    lease, seen_seconds_ago
        The newest lease that is known, and the seconds since it was seen first; None if there is none.
    seconds_left
        Seconds until a lease that is held is lost if it is not renewed; None if it is not held.
    problem
        Why the store gives no answer; None if it does.
    """

    held: bool
    lease: Lease | None
    seen_seconds_ago: float | None
    seconds_left: float | None
    problem: str | None


class LeaseKeeper:
    """Runs `Ownership` in threads. One asks the store, which may take minutes; the other never waits for it.

    `release` gives the lease up; `stop` only ends the threads, and the lease runs out. Neither waits for a store that
    does not answer, and nor does the end of the process. All methods can be called from any thread.

    Parameters
    ----------
    store
        Where the lease is.
    ownership
        A new state machine, which belongs to the keeper from now on.
    page
        The page that workers map.
    on_change
        Called without arguments, in a thread of the keeper, after `state` has changed. It must return at once.
    """

    def __init__(
        self, store: LeaseStore, ownership: Ownership, page: DeadlinePage, *, on_change: Callable[[], None]
    ) -> None:
        self._store = store
        self._ownership = ownership
        self._page = page
        self._on_change = on_change
        self._condition = threading.Condition()
        self._steps: queue.SimpleQueue[Read | CompareAndSet | None] = queue.SimpleQueue()
        self._asked_at: float | None = None
        self._problem: str | None = None
        self._is_stopping = False
        self._threads = [
            # Daemons: neither a store that hangs nor a forgotten `stop` keeps the process from ending.
            threading.Thread(target=self._keep, name="tiledbroker-lease-keeper", daemon=True),
            threading.Thread(target=self._ask_store, name="tiledbroker-lease-store", daemon=True),
        ]

    def start(self) -> None:
        """Start to wait for the lease."""
        for thread in self._threads:
            thread.start()

    @property
    def state(self) -> OwnershipState:
        """The state at this moment, also while the store does not answer."""
        with self._condition:
            self._ownership.check(boottime())
            return self._ownership.state

    @property
    def has_seen_renewal(self) -> bool:
        """Whether another holder has renewed the lease while this supervisor waited for it."""
        with self._condition:
            return self._ownership.has_seen_renewal

    def facts(self) -> LeaseFacts:
        """Return what is known of the lease at this moment."""
        with self._condition:
            now = boottime()
            self._ownership.check(now)
            held = self._ownership.state is OwnershipState.HOLDING
            lease, seen_at = self._ownership.seen or (None, None)
            return LeaseFacts(
                held=held,
                lease=lease,
                seen_seconds_ago=None if seen_at is None else now - seen_at,
                seconds_left=self._ownership.deadline - now if held else None,
                problem=self._find_problem(now),
            )

    @property
    def lease(self) -> Lease | None:
        """The newest own lease that is known to be stored."""
        with self._condition:
            return self._ownership.lease

    @property
    def predecessor(self) -> Lease | None:
        """The lease that was taken over; None if there was none, or none was taken over yet."""
        with self._condition:
            return self._ownership.predecessor

    @property
    def unrevoked(self) -> tuple[str, ...]:
        """First eight characters of API keys that this supervisor should revoke."""
        with self._condition:
            return self._ownership.unrevoked

    def renew_soon(self) -> None:
        """Renew the lease soon, since somebody waits for that."""
        with self._condition:
            self._ownership.hasten(boottime())
            self._condition.notify_all()

    def change_key(self, key: str) -> None:
        """Announce another API key by its first eight characters. It may be used once `lease` has it."""
        with self._condition:
            self._ownership.change_key(key)

    def note_revoked(self, keys: Collection[str]) -> None:
        """Note that API keys are no longer valid."""
        with self._condition:
            self._ownership.note_revoked(keys)

    def wait_until_held(self, timeout: float) -> bool:
        """Wait for up to `timeout` seconds; return True if this supervisor holds the lease."""
        with self._condition:
            self._condition.wait_for(
                lambda: self._is_stopping or self._ownership.state is not OwnershipState.WAITING, timeout
            )
        return self.state is OwnershipState.HOLDING

    def release(self, timeout: float) -> bool:
        """Give the lease up. Call it when no worker is left that could write.

        Returns
        -------
        bool
            False if the store has not confirmed it within `timeout` seconds, or another host holds the lease.
        """
        with self._condition:
            self._ownership.release(boottime())
            self._page.write(self._ownership.deadline, self._ownership.revision)
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._ownership.is_done or self._is_stopping, timeout)
            lease = self._ownership.lease
        return lease is None or lease.released

    def stop(self) -> None:
        """End the threads, but for one that waits for the store. The page keeps its deadline."""
        with self._condition:
            self._is_stopping = True
            self._condition.notify_all()
        self._threads[0].join()

    def describe(self) -> str:
        """Return one line for people, such as "standby: host b holds the lease, epoch 7, renewed 1.4 s ago"."""
        with self._condition:
            now = boottime()
            self._ownership.check(now)
            line = self._ownership.describe(now)
            problem = self._find_problem(now)
            return line if problem is None else f"{line}; {problem}"

    def _find_problem(self, now: float) -> str | None:
        if self._problem is not None:
            return f"the store gives no answer: {self._problem}"
        if self._asked_at is not None and now - self._asked_at > _SILENCE_SECONDS:
            return f"the store has not answered for {now - self._asked_at:.0f} s"
        return None

    def _keep(self) -> None:
        told = OwnershipState.WAITING
        while not self._is_stopping:
            with self._condition:
                while self._ownership.state is told and not self._ownership.is_done and not self._is_stopping:
                    self._proceed()
                state, is_done = self._ownership.state, self._ownership.is_done
            if state is not told:
                told = state
                log.info("Ownership: %s", self.describe())
                self._on_change()
            elif is_done:
                break
        self._steps.put(None)

    def _proceed(self) -> None:
        """Have the next step performed, or wait until there may be one. The caller holds the lock."""
        now = boottime()
        self._ownership.check(now)
        if self._ownership.is_done:
            return
        if self._asked_at is not None:
            is_holding = self._ownership.state is OwnershipState.HOLDING
            self._condition.wait(self._ownership.deadline - now if is_holding else None)
            return
        step = self._ownership.next_step(now)
        if isinstance(step, Wait):
            self._condition.wait(step.until - now)
        elif step is not None:
            self._asked_at = now
            self._steps.put(step)

    def _ask_store(self) -> None:
        while (step := self._steps.get()) is not None:
            problem = None
            note: Callable[[float], None] = self._ownership.note_no_answer
            try:
                note = self._perform(step)
            except StoreUnavailable as error:
                problem = str(error)
            except Exception as error:
                log.exception("The store of leases failed.")
                problem = repr(error)
            with self._condition:
                note(boottime())
                self._page.write(self._ownership.deadline, self._ownership.revision)
                self._asked_at, self._problem = None, problem
                self._condition.notify_all()
        self._store.close()

    def _perform(self, step: Read | CompareAndSet) -> Callable[[float], None]:
        """Ask the store, and return the method that notes its answer."""
        if isinstance(step, Read):
            return partial(self._ownership.note_read, self._store.read())
        revision = self._store.compare_and_set(step.expected_revision, step.lease)
        return self._ownership.note_refused if revision is None else partial(self._ownership.note_accepted, revision)
