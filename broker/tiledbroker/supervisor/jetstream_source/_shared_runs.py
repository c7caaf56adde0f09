"""The lease and the runs of one of several hosts that read a site's log together."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from ..._errors import DirectoryUnusable, LeaseLost
from ...jetstream import ClaimKeeper, HostLeaseStore, LogAddress
from ...log import FileLock
from ...ownership import (
    DeadlinePage,
    Inheritance,
    Lease,
    LeaseKeeper,
    LeaseTiming,
    Ownership,
    OwnershipState,
    RunClaims,
    make_holder_name,
)
from .._run_owner import RunOwner
from .._service_lease import PAGE_FILE, HeldLease, make_page
from .._superseded import EarlierStarts, count_unfinished, record_start, record_turn, set_aside_unfinished
from ..status import LeaseStatus

log = logging.getLogger(__name__)


class SharedRuns(HeldLease):
    """The lease of this supervisor start, which only it can hold, and the runs that it has claimed.

    It is a `RunOwner`. All its methods can be called from any thread.

    Parameters
    ----------
    journal_dir
        The journal directory.
    lock
        Its lock, which this process holds.
    address
        The servers of the log.
    timing
        Times of the lease.
    standby
        Claim runs only while all others stand by, too.
    drain
        The journals are to be written, and nothing else.
    on_change
        Called in another thread when the lease is obtained or lost, or runs were claimed.
    """

    def __init__(
        self,
        journal_dir: Path,
        lock: FileLock,
        address: LogAddress,
        *,
        timing: LeaseTiming,
        standby: bool,
        drain: bool,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(journal_dir / PAGE_FILE)
        self._journal_dir = journal_dir
        self._drain = drain
        self._on_change = on_change
        self._listener: Callable[[Collection[str]], None] | None = None
        host, holder = socket.gethostname(), make_holder_name()
        self._earlier = record_start(journal_dir, holder)
        inheritance = _find_inheritance(self._earlier, self.page, lock.identity)
        epoch = self._earlier.next_epoch
        claims = RunClaims(Lease(holder, host, epoch, 0), timing=timing, standby=standby, inheritance=inheritance)
        store = HostLeaseStore(address, holder, lambda lease: self._claims.ask(lambda c: c.compose_record(lease)))
        self._place = str(store)
        ownership = Ownership(holder, host, lock=lock.identity, timing=timing, first_epoch=epoch)
        self._keeper = LeaseKeeper(store, ownership, make_page(self.page, timing), on_change=on_change)
        self._claims = ClaimKeeper(
            address,
            claims,
            renewal_seconds=timing.renewal_seconds,
            may_act=lambda: self._keeper.state is OwnershipState.HOLDING,
            renew_soon=self._keeper.renew_soon,
            on_change=self._tell,
        )

    def start(self) -> None:
        """Begin to ask for the lease, and to follow those of others."""
        super().start()
        self._claims.start()

    def is_held(self) -> bool:
        """Return whether this start holds its lease, and knows what it may do with its journals."""
        state = self._keeper.state
        if state is OwnershipState.LOST:
            raise LeaseLost(self.describe())
        if self._claims.ask(lambda claims: claims.is_lost):
            raise LeaseLost(f"another host has a run that was this host's ({self._place})")
        return state is OwnershipState.HOLDING and bool(self._claims.ask(lambda claims: claims.is_settled))

    def take_over(self) -> None:
        """Go on with the journals if nobody can have taken their runs over; otherwise set aside unfinished ones."""
        if (own := self._keeper.lease) is None:
            raise LeaseLost(self.describe())
        if self._earlier.have_served:
            is_alone, inherits = self._claims.ask(lambda claims: (not claims.has_others, claims.inherits))
            # Another host could claim a run just before this one, which would then wait for it for ever.
            may_drain = inherits and is_alone
            if self._drain and not may_drain and (count := count_unfinished(self._journal_dir)):
                raise DirectoryUnusable(
                    self._journal_dir,
                    f"unfinished journals ({count}) cannot be drained, as other hosts may go on with their runs, or "
                    "have done so. The service itself reads these runs from the log.",
                )
            if not inherits:
                set_aside_unfinished(
                    self._journal_dir,
                    "other hosts may have gone on with these runs since. Runs that are not written are read from the "
                    "log",
                )
        record_turn(self._journal_dir, own)
        hosts = self._claims.ask(lambda claims: sorted(each.lease.host for each in claims.list_hosts()))
        log.info("Hosts that share the log: %s.", ", ".join(hosts))

    @property
    def owner(self) -> RunOwner:
        """This object."""
        return self

    @property
    def unrevoked(self) -> tuple[str, ...]:
        """First eight characters of API keys of hosts that have ended, and of earlier ones of this start."""
        return (*super().unrevoked, *self._claims.ask(lambda claims: claims.keys_to_revoke))

    @property
    def has_keys_to_revoke(self) -> bool:
        """Whether runs of hosts that have ended wait for the revocation of keys."""
        return bool(self._claims.ask(lambda claims: claims.keys_to_revoke))

    def note_revoked(self, keys: Collection[str]) -> None:
        """Note that API keys are no longer valid."""
        super().note_revoked(keys)
        self._claims.tell(lambda claims: claims.note_revoked(keys))

    def give_up_revoking(self) -> None:
        """Note that keys of other hosts cannot be revoked: there is no fence."""
        self._claims.tell(RunClaims.give_up_revoking)

    def describe(self) -> str:
        """Return what is known of the lease and the claims as one line for people."""
        problem = f"; claims cannot be followed: {self._claims.problem}" if self._claims.problem else ""
        return super().describe() + problem

    def status(self) -> LeaseStatus:
        """Return what the snapshot of the service says of the lease."""
        found = super().status()
        return msgspec.structs.replace(found, problem=found.problem or self._claims.problem or None)

    def close(self) -> None:
        """Give the lease up if there is another host, so that it need not wait. No worker may be left.

        Without another host, the lease stays for the next start on these journals, which then need not watch.
        """
        if self._is_started:
            if self._claims.ask(lambda claims: claims.has_others):
                super().close()
            else:
                self._keeper.stop()
        self._claims.close()

    # The runs.

    def owns(self, run_uid: str) -> bool:
        """Return whether this host may write a run at this moment."""
        is_own = self._claims.ask(lambda claims: claims.holds(run_uid))
        return bool(is_own) and self._keeper.state is OwnershipState.HOLDING

    def is_others(self, run_uid: str) -> bool:
        """Return whether another host that may be alive has claimed a run."""
        return bool(self._claims.ask(lambda claims: claims.is_others(run_uid)))

    def want(self, run_uid: str) -> None:
        """Claim a run as soon as no other host has it."""
        self._claims.tell(lambda claims: claims.want(run_uid))

    def unwant(self, run_uid: str) -> None:
        """Do not claim a run any more."""
        self._claims.tell(lambda claims: claims.unwant(run_uid))

    def remove_claim(self, run_uid: str) -> None:
        """Remove the claim of a run that is complete and has left the log."""
        self._claims.remove_claim(run_uid)

    def note_open_runs(self, count: int) -> None:
        """Tell other hosts how many runs of this one are not complete."""

        def note(claims: RunClaims) -> None:
            claims.open_runs = count

        self._claims.tell(note)

    def listen(self, on_change: Callable[[Collection[str]], None]) -> None:
        """Have a function called, in another thread, with the runs of which there may be something new to know."""
        self._listener = on_change

    def _tell(self, uids: Collection[str]) -> None:
        if (listener := self._listener) is not None:
            listener(uids)
        with contextlib.suppress(OSError):
            # The supervisor may have ended.
            self._on_change()


def _find_inheritance(earlier: EarlierStarts, page: Path, lock: str) -> Inheritance | None:
    """Return what the start before this one has left; its page has it as long as the host runs."""
    left = DeadlinePage.open(page)
    try:
        if not earlier.last or not left.revision:
            return None
        return Inheritance(earlier.last, left.revision, left.deadline, lock)
    finally:
        left.close()
