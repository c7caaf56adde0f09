"""The lease: decides, without I/O and without a clock, which supervisor start may write to Tiled, and until when.

All supervisors of a service share one lease in a store. A store does two things: it returns the newest lease with its
revision, and it replaces the lease of a given revision by another one (compare-and-set). Only a compare-and-set
decides; what was read may be old, and an answer may never come although the store did what it was asked to.

The rules:

1. The holder renews the lease every `renewal_seconds`. Its deadline is the time *before it sent* the renewal that was
   accepted, plus `lease_seconds`. It begins no request to Tiled in the last `margin_seconds` before the deadline. Once
   the deadline has passed, this holder has lost the lease for good.
2. A renewal without an answer is sent again. After a refusal the lease is read. If it is a renewal of this holder, the
   holder continues from its revision, with the deadline of that renewal; the lease of another holder means lost.
3. A successor takes over when it has seen one revision unchanged for `takeover_seconds`, by a compare-and-set at
   exactly that revision. It takes over at once if the lease was released, if there has never been one, or if it has the
   lock that the holder has as long as its process lives: this is then another start on the same journals.

Why two holders never send at once: each renewal is in the store later than its time of sending, and the successor sees
it later still. So the successor waits longer than the holder may send, even if one clock gains and the other loses one
percent. If a renewal comes between, the revision is another one and the compare-and-set is refused.

All times are seconds of `CLOCK_BOOTTIME`, which continues while the host is suspended. A forward jump makes a holder
lose early. A successor counts only its own pauses between two reads: up to `renewal_seconds` of each, and none that
was more than twice as long as intended. So neither a jump nor a pause of the process counts as time in which it has
seen anything. A clock that stops (a virtual machine that is paused without knowing it, or restored from a snapshot) is
beyond any lease. Against it, the successor revokes the keys of earlier holders: `Lease.key`, `Lease.unrevoked`.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

_FASTEST_CLOCK: Final = 1.01
_HASTE: Final = 10
_NEVER: Final = float("-inf")


@dataclass(frozen=True)
class LeaseTiming:
    """Times of a lease in seconds.

    Attributes
    ----------
    lease_seconds
        Time after the sending of a renewal for which it is valid.
    renewal_seconds
        Pause between two renewals, and between two reads of a supervisor that waits.
    margin_seconds
        Time before the deadline in which the holder begins no request.
    """

    lease_seconds: float
    renewal_seconds: float
    margin_seconds: float

    @classmethod
    def of(cls, lease_seconds: float) -> LeaseTiming:
        """Return the times of a lease that is valid for so many seconds."""
        return cls(lease_seconds, lease_seconds / 15.0, lease_seconds / 6.0)


DEFAULT_TIMING: Final = LeaseTiming.of(30.0)
SHORTEST_LEASE_SECONDS: Final = 3.0


@dataclass(frozen=True)
class Lease:
    """What the store holds.

    Attributes
    ----------
    holder
        Name of a supervisor start; no two starts have the same.
    host
        Name of its host, for people.
    epoch
        Rises by one with each change of the holder.
    beat
        Rises with each compare-and-set that the holder has sent.
    key
        First eight characters of the API key with which the holder writes; "" if it has none.
    released
        True if the holder has given the lease up, and does not write any more.
    unrevoked
        First eight characters of API keys of earlier holders that may still be valid.
    lease_seconds
        Time for which the holder takes each of its renewals to be valid.
    lock
        The lock that the holder has as long as its process lives, as `FileLock.identity`; "" if it has none.
    """

    holder: str
    host: str
    epoch: int
    beat: int
    key: str = ""
    released: bool = False
    unrevoked: tuple[str, ...] = ()
    lease_seconds: float = DEFAULT_TIMING.lease_seconds
    lock: str = ""

    @property
    def takeover_seconds(self) -> float:
        """Time for which a successor must have seen one revision unchanged."""
        return _find_takeover_seconds(self.lease_seconds)


def _find_takeover_seconds(lease_seconds: float) -> float:
    return _FASTEST_CLOCK * lease_seconds + lease_seconds / 30.0


@dataclass(frozen=True)
class Stored:
    """A lease and its revision; revision 0 means that no lease was ever stored."""

    revision: int
    lease: Lease | None

    def __post_init__(self) -> None:
        if (self.revision == 0) != (self.lease is None):
            raise ValueError(f"revision {self.revision} with lease {self.lease}")


@dataclass(frozen=True)
class Read:
    """Read the store; then call `note_read` or `note_no_answer`."""


@dataclass(frozen=True)
class CompareAndSet:
    """Replace the lease of a revision; then call `note_accepted`, `note_refused` or `note_no_answer`."""

    expected_revision: int
    lease: Lease


@dataclass(frozen=True)
class Wait:
    """Do nothing until a time, or until `Ownership.release` was called."""

    until: float


Step: TypeAlias = Read | CompareAndSet | Wait


class OwnershipState(enum.Enum):
    """State of one supervisor start.

    waiting -> holding -> lost or released; waiting -> released. No way leads back.
    """

    WAITING = "waiting"
    HOLDING = "holding"
    LOST = "lost"
    RELEASED = "released"


class Ownership:
    """State machine of one supervisor start. `now` is always the current time of `CLOCK_BOOTTIME`, in seconds.

    The caller, `LeaseKeeper`, repeats `next_step`, performs the step, and notes what came of it, before it asks for
    another step.

    Parameters
    ----------
    holder
        Name of this supervisor start. It must be unique, also among starts on the same host.
    host
        Name of the host, for people.
    key
        First eight characters of the API key with which this supervisor will write; "" if it has none yet.
    lock
        The lock that this process holds until it ends, as `FileLock.identity`; "" if it has none.
    timing
        Times of the lease.
    first_epoch
        Epoch of a lease that nobody has held before.

    Attributes
    ----------
    has_seen_renewal
        Another holder has renewed the lease while this supervisor waited for it.
    """

    def __init__(
        self,
        holder: str,
        host: str,
        *,
        key: str = "",
        lock: str = "",
        timing: LeaseTiming = DEFAULT_TIMING,
        first_epoch: int = 1,
    ) -> None:
        self.holder = holder
        self.host = host
        self.state = OwnershipState.WAITING
        self.predecessor: Lease | None = None
        self._reason = ""
        self._timing = timing
        self._key = key
        self._lock = lock
        self._first_epoch = first_epoch
        self.has_seen_renewal = False
        self._unrevoked: tuple[str, ...] = ()
        # Newest lease that is known, whoever holds it. Before the first read, "never stored" is safe: if it is wrong,
        # a compare-and-set at revision 0 is refused.
        self._stored = Stored(0, None)
        self._stored_at = _NEVER
        # Times before the sending of each compare-and-set that may be in the store, by beat.
        self._sent_at: dict[int, float] = {}
        self._beat = 0
        self._proposed: Lease | None = None
        self._deadline = float("inf")
        self._must_read = True
        self._due = _NEVER
        self._is_done = False
        self._asked_at = self._answered_at = _NEVER
        self._unchanged_seconds = 0.0

    @property
    def deadline(self) -> float:
        """Time at which everything that this holder does must have ended; in the past if it does not hold the lease."""
        return self._deadline if self.state is OwnershipState.HOLDING else _NEVER

    @property
    def may_send_until(self) -> float:
        """Time before which a request to Tiled may begin."""
        return self.deadline - self._timing.margin_seconds

    @property
    def seen(self) -> tuple[Lease, float] | None:
        """The newest lease that is known, whoever holds it, and the time at which it was seen first."""
        return None if self._stored.lease is None else (self._stored.lease, self._stored_at)

    @property
    def lease(self) -> Lease | None:
        """The newest own lease that is known to be stored; None before this supervisor has held it."""
        return self._stored.lease if self._is_own(self._stored.lease) else None

    @property
    def unrevoked(self) -> tuple[str, ...]:
        """First eight characters of API keys that this holder should revoke."""
        return self._unrevoked

    @property
    def is_done(self) -> bool:
        """True if nothing is left to do, so that `next_step` returns None from now on."""
        return self._is_done

    @property
    def revision(self) -> int:
        """Revision of the newest own lease that is known to be stored; 0 before this supervisor has held it."""
        return self._stored.revision if self._is_own(self._stored.lease) else 0

    def hasten(self, now: float) -> None:
        """Renew the lease soon, since somebody waits for that; not more often than ten times as often as usual."""
        if self.state is OwnershipState.HOLDING and not self._must_read:
            soonest = self._sent_at[max(self._sent_at)] + self._timing.renewal_seconds / _HASTE
            self._due = min(self._due, max(now, soonest))

    def change_key(self, key: str) -> None:
        """Write with another API key as soon as `lease` has it; the one before must be revoked."""
        self._unrevoked += (self._key,) if self._key else ()
        self._key = key

    def note_revoked(self, keys: Collection[str]) -> None:
        """Note that API keys are no longer valid."""
        self._unrevoked = tuple(key for key in self._unrevoked if key not in keys)

    def next_step(self, now: float) -> Step | None:
        """Return what to do next; None if nothing is left. A compare-and-set counts as sent at `now`."""
        self.check(now)
        if self._is_done:
            return None
        if now < self._due:
            return Wait(self._due)
        if self._must_read:
            self._asked_at = now
            return Read()
        self._beat += 1
        self._sent_at[self._beat] = now
        self._proposed = self._compose_lease()
        return CompareAndSet(self._stored.revision, self._proposed)

    def check(self, now: float) -> None:
        """Lose the lease if its deadline has passed."""
        if now >= self._deadline:
            self._end("it was not renewed in time")

    def note_read(self, stored: Stored, now: float) -> None:
        """Note the answer to `Read`, which may be older than what is known already."""
        self.check(now)
        if self._is_done:
            return
        is_newer = stored.revision > self._stored.revision
        if is_newer and self._is_own(stored.lease):
            self._adopt(stored, now)
        elif self.state is OwnershipState.WAITING:
            self._observe(stored, now)
        elif is_newer:
            self._end(_describe_takeover(stored.lease))
        else:
            # The refusal had another reason than a newer lease, or the read is older than that lease.
            self._must_read = False
            self._due = self._sent_at[self._beat] + self._timing.renewal_seconds

    def note_accepted(self, revision: int, now: float) -> None:
        """Note that the lease of the last `CompareAndSet` is stored with a revision."""
        self.check(now)
        if not self._is_done:
            self._adopt(Stored(revision, self._proposed), now)

    def note_refused(self, now: float) -> None:
        """Note that the last `CompareAndSet` found another revision than it expected."""
        is_waiting = self.state is OwnershipState.WAITING
        self._must_read = True
        self._due = now + self._timing.renewal_seconds if is_waiting else now

    def note_no_answer(self, now: float) -> None:
        """Note that nobody knows what came of the last step; if it was a `CompareAndSet`, it may still be stored."""
        self._must_read = self._must_read or self.state is OwnershipState.WAITING
        self._due = now + self._timing.renewal_seconds

    def release(self, now: float) -> None:
        """Give the lease up, so that a successor need not wait. Nothing may be written to Tiled any more before this.

        The remaining steps tell the store.
        """
        self.check(now)
        if self.state is OwnershipState.HOLDING:
            self._due = now
        elif self.state is OwnershipState.WAITING:
            self._is_done = True
        else:
            return
        self.state = OwnershipState.RELEASED

    def describe(self, now: float) -> str:
        """Return one line for people."""
        if self.state is OwnershipState.LOST:
            return f"lost the lease: {self._reason}"
        if self.state is OwnershipState.RELEASED:
            return "gave up the lease" if self.lease is not None else "stopped waiting for the lease"
        lease = self._stored.lease
        if self._stored_at == _NEVER:
            return "standby: the lease has not been read yet"
        if lease is None:
            return "standby: nobody has held the lease yet"
        facts = f"epoch {lease.epoch}, renewed {now - self._stored_at:.1f} s ago"
        if self.state is OwnershipState.HOLDING:
            return f"holding the lease, {facts}"
        if lease.released:
            return f"standby: host {lease.host} has released the lease, epoch {lease.epoch}"
        return f"standby: host {lease.host} holds the lease, {facts}"

    def _compose_lease(self) -> Lease:
        found = self._stored.lease
        if self.state is OwnershipState.WAITING:
            epoch = self._first_epoch if found is None else found.epoch + 1
            unrevoked = keys_of(found) + self._unrevoked
            return Lease(
                self.holder,
                self.host,
                epoch,
                self._beat,
                self._key,
                unrevoked=unrevoked,
                lease_seconds=self._timing.lease_seconds,
                lock=self._lock,
            )
        assert found is not None
        released = self.state is OwnershipState.RELEASED
        return replace(found, beat=self._beat, key=self._key, released=released, unrevoked=self._unrevoked)

    def _is_own(self, lease: Lease | None) -> bool:
        return lease is not None and lease.holder == self.holder and lease.beat in self._sent_at

    def _adopt(self, stored: Stored, now: float) -> None:
        """Hold a lease that this supervisor has stored."""
        lease = stored.lease
        assert lease is not None
        if self.state is OwnershipState.WAITING:
            self.predecessor = self._stored.lease
            self._unrevoked = keys_of(self.predecessor) + self._unrevoked
            self.state = OwnershipState.HOLDING
        sent_at = self._sent_at[lease.beat]
        self._sent_at = {beat: sent for beat, sent in self._sent_at.items() if beat >= lease.beat}
        self._stored, self._stored_at = stored, now
        self._deadline = sent_at + self._timing.lease_seconds
        self._must_read = False
        self._due = now if self.state is OwnershipState.RELEASED else sent_at + self._timing.renewal_seconds
        self._is_done = lease.released
        # The lease was this supervisor's, perhaps, but the answer has come too late.
        self.check(now)

    def _observe(self, stored: Stored, now: float) -> None:
        """Count for how long a lease has not changed, and take it over when its holder can no longer use it."""
        pause_seconds = self._timing.renewal_seconds
        since_last_answer = self._asked_at - self._answered_at
        is_newer = stored.revision > self._stored.revision
        if is_newer or self._stored_at == _NEVER:
            self.has_seen_renewal = (
                is_newer and self._stored_at != _NEVER and stored.lease is not None and not stored.lease.released
            )
            self._stored, self._stored_at = stored, now
            self._unchanged_seconds = 0.0
        elif stored.revision == self._stored.revision and since_last_answer <= 2 * pause_seconds:
            self._unchanged_seconds += min(since_last_answer, pause_seconds)
        self._answered_at = now
        found = self._stored.lease
        seems_free = found is None or found.released
        is_next_start = found is not None and self._lock != "" and found.lock == self._lock
        wait_seconds = _find_takeover_seconds(self._timing.lease_seconds if found is None else found.lease_seconds)
        has_run_out = self._unchanged_seconds >= wait_seconds
        is_free = seems_free or is_next_start or has_run_out
        self._must_read = not is_free
        self._due = now if is_free else now + pause_seconds

    def _end(self, reason: str) -> None:
        if self.state is OwnershipState.HOLDING:
            self.state = OwnershipState.LOST
            self._reason = reason
        self._is_done = True


def keys_of(lease: Lease | None) -> tuple[str, ...]:
    """Return the keys that the successor of a lease's holder must revoke."""
    if lease is None:
        return ()
    return (*lease.unrevoked, lease.key) if lease.key else lease.unrevoked


def _describe_takeover(lease: Lease | None) -> str:
    assert lease is not None
    return f"host {lease.host} has taken over, epoch {lease.epoch}"
