"""The lease of a service that several hosts can serve, as one of their supervisors uses it."""

from __future__ import annotations

import logging
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from .._errors import DirectoryUnusable, LeaseHeld, LeaseLost
from ..log import FileLock
from ..ownership import (
    DeadlinePage,
    LeaseKeeper,
    LeaseStore,
    LeaseTiming,
    Ownership,
    OwnershipState,
    make_holder_name,
)
from ._run_owner import RunOwner, SoleOwner
from ._superseded import record_start, set_aside_superseded
from .status import LeaseStatus

log = logging.getLogger(__name__)

PAGE_FILE: Final = ".lease-deadline"
# Time to tell the store that the lease is given up. Without that, a successor waits until it has run out.
_RELEASE_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.1


class HeldLease(ABC):
    """A lease that this supervisor holds as long as it may write. Only `close` waits for the store.

    Parameters
    ----------
    page
        Path of the deadline page, which workers map.
    """

    _keeper: LeaseKeeper
    _place: str

    def __init__(self, page: Path) -> None:
        self.page = page
        self._is_started = False

    def start(self) -> None:
        """Begin to ask for the lease."""
        self._is_started = True
        self._keeper.start()

    @abstractmethod
    def is_held(self) -> bool:
        """Return whether this supervisor may serve.

        Raises
        ------
        LeaseHeld
            Another host holds and renews the lease, and this supervisor is not to wait for it.
        LeaseLost
            This supervisor has held it, and does not any more.
        """

    @abstractmethod
    def take_over(self) -> None:
        """Say what was taken over, and set aside what other hosts have made stale; see `_superseded`.

        Raises
        ------
        DirectoryUnusable
            A journal cannot be moved.
        """

    @property
    @abstractmethod
    def owner(self) -> RunOwner:
        """Tells which runs are this host's."""

    def wait_until_held(self, timeout: float) -> bool:
        """Wait for up to `timeout` seconds; return whether this supervisor holds the lease. Thread-safe."""
        return self._keeper.wait_until_held(timeout)

    @property
    def unrevoked(self) -> tuple[str, ...]:
        """First eight characters of API keys of earlier holders that may still be valid."""
        return self._keeper.unrevoked

    @property
    def has_keys_to_revoke(self) -> bool:
        """Whether runs of other hosts wait until `unrevoked` keys are revoked."""
        return False

    def note_revoked(self, keys: Collection[str]) -> None:
        """Note that API keys are no longer valid."""
        self._keeper.note_revoked(keys)

    def give_up_revoking(self) -> None:  # noqa: B027  nothing waits for it
        """Note that keys of other hosts cannot be revoked: there is no fence."""

    def announce_key(self, key: str, timeout: float) -> bool:
        """Have the lease name the API key that this supervisor is about to use, so that a successor can revoke it.

        Returns
        -------
        bool
            False if the lease does not name it within `timeout` seconds: it must not be used.
        """
        self._keeper.change_key(key)
        deadline = time.monotonic() + timeout
        while (lease := self._keeper.lease) is None or lease.key != key:
            if time.monotonic() >= deadline or not self._keeper.wait_until_held(0.0):
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def describe(self) -> str:
        """Return what is known of the lease as one line for people."""
        return f"{self._keeper.describe()} ({self._place})"

    def status(self) -> LeaseStatus:
        """Return what the snapshot of the service says of the lease."""
        facts = self._keeper.facts()
        return LeaseStatus(
            held=facts.held,
            place=self._place,
            host=None if facts.lease is None or facts.lease.released else facts.lease.host,
            epoch=None if facts.lease is None else facts.lease.epoch,
            renewed=None if facts.seen_seconds_ago is None else time.time() - facts.seen_seconds_ago,
            seconds_left=facts.seconds_left,
            problem=facts.problem,
        )

    def close(self) -> None:
        """Give the lease up, so that another host need not wait. No worker may be left."""
        if self._is_started:
            self._keeper.release(_RELEASE_SECONDS)
            self._keeper.stop()


class ServiceLease(HeldLease):
    """The lease of a service of which one host serves at a time.

    Parameters
    ----------
    journal_dir
        The journal directory.
    lock
        Its lock, which this process holds.
    store
        Where all hosts of the service keep the lease.
    timing
        Times of the lease.
    standby
        Wait for a lease that another host holds.
    on_change
        Called in another thread when the lease is obtained or lost.
    """

    def __init__(
        self,
        journal_dir: Path,
        lock: FileLock,
        store: LeaseStore,
        *,
        timing: LeaseTiming,
        standby: bool,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(journal_dir / PAGE_FILE)
        self._journal_dir = journal_dir
        self._place = str(store)
        self._is_standby = standby
        holder = make_holder_name()
        record_start(journal_dir, holder)
        page = make_page(self.page, timing)
        ownership = Ownership(holder, socket.gethostname(), lock=lock.identity, timing=timing)
        self._keeper = LeaseKeeper(store, ownership, page, on_change=on_change)

    def is_held(self) -> bool:
        """Return whether this supervisor holds the lease; see `HeldLease.is_held`."""
        state = self._keeper.state
        if state is OwnershipState.LOST:
            raise LeaseLost(self.describe())
        if state is OwnershipState.WAITING and not self._is_standby and self._keeper.has_seen_renewal:
            raise LeaseHeld(f"{self.describe()}. To wait for it: --standby")
        return state is OwnershipState.HOLDING

    def take_over(self) -> None:
        """Say whose lease was taken over, and set aside what another host's turn has made stale."""
        predecessor = self._keeper.predecessor
        if predecessor is not None:
            how = "has released the lease" if predecessor.released else "does not renew the lease any more"
            log.info("This host takes over from %s (epoch %d), which %s.", predecessor.host, predecessor.epoch, how)
        if (own := self._keeper.lease) is None:
            raise LeaseLost(self.describe())
        set_aside_superseded(self._journal_dir, own, predecessor)

    @property
    def owner(self) -> RunOwner:
        """The owner of all runs: only one host serves."""
        return SoleOwner()


def make_page(path: Path, timing: LeaseTiming) -> DeadlinePage:
    """Make the page for the deadline of a new start.

    Raises
    ------
    DirectoryUnusable
        It cannot be made.
    """
    try:
        return DeadlinePage.create(path, timing=timing)
    except OSError as error:
        raise DirectoryUnusable(path.parent, f"{path.name} cannot be made: {error.strerror}.") from error
