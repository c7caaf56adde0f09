"""Claims: decides, without I/O and without a clock, which run which of several supervisor starts may write.

A start is one life of a supervisor's process, from its beginning to its end. Another one on the same host is another
start.

All starts share one store with a history: each record that is stored gets a number above all earlier ones, and is
stored only if the newest record of its key has the number that was expected (compare-and-set). The store can be set
back: it then forgets the newest part of its history, everything from some number on. Its keys:

- The lease of each start (`Lease`), which this start renews. A lease ends when its holder releases it, or when another
  start has seen it unchanged for its takeover time, and ends it at exactly that number. An ended lease stays ended.
- The claim of each run (`Claim`): which start the run is of.

The rules:

1. A run may be claimed if it has no claim, or if the lease of the start that has claimed it has ended, and its API keys
   are revoked.
2. A claim counts once each start whose lease has not ended, this one included, has renewed its lease *after* the claim,
   and the claim is then stored a second time, confirmed, at the number that it had. Then the run may be written, as
   long as this start may send by its own lease.
3. A start claims nothing until it has watched for the takeover time, unless it inherits (see below).
4. A start that finds a confirmed claim of its own replaced has lost its lease.

Why no two starts write one run at once, also if the store is set back: whoever claims a run does so by compare-and-set,
so without a set-back only one can. If the store forgets a claim that counts, it also forgets the last renewal of each
start that was there, as these are newer. A start whose last renewal is forgotten cannot renew: the number that it
expects is not there. So all of them stop at their deadlines, at most one lease after the store was set back. Starts
that begin later watch for longer than that. If the store forgets a claim that does not count yet, the second
compare-and-set is refused.

A start **inherits** if it is the next one on the same journals, and ends the lease of the one before it at the last
number that this one knew, before the deadline of that lease. Nobody can have taken over before the deadline. So it
continues with the journals, and need not watch: what one of the two has renewed vouches for both.

All times are seconds of `CLOCK_BOOTTIME`; see `_lease` about clocks. Only time in which this start has looked is
counted.
"""

from __future__ import annotations

import enum
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from ._lease import Lease, LeaseTiming, keys_of

SERVICE: Final = "service"
"""Name under which the lease is seen that an earlier version holds, in which one host serves all runs."""
UNREADABLE: Final = "unreadable-"
"""Beginning of the name under which the holder of a claim is seen that cannot be read."""
CLAIM_STEP_SECONDS: Final = 1.0
"""Time after which the next of the starts may claim a run that is left by the one before it in the order."""
_TAKEOVERS_KEPT: Final = 10
"""Takeover times for which the record of an ended lease is kept, to be looked at."""
_NEVER: Final = float("-inf")


@dataclass(frozen=True)
class HostLease:
    """The lease of a start, and what others must know to share the runs with it.

    Attributes
    ----------
    lease
        The lease.
    open_runs
        Number of runs that it has claimed and that are not complete.
    standby
        It claims runs only if all others stand by, too.
    ready
        It has watched for long enough to claim runs.
    """

    lease: Lease
    open_runs: int = 0
    standby: bool = False
    ready: bool = False


@dataclass(frozen=True)
class Claim:
    """Which start a run is of.

    Attributes
    ----------
    holder
        The start, as `Lease.holder`.
    host
        The name of its host, for people.
    epoch
        The epoch of its lease.
    confirmed
        All starts have renewed their leases after the claim.
    """

    holder: str
    host: str
    epoch: int
    confirmed: bool = False


@dataclass(frozen=True)
class Inheritance:
    """What the start before this one on the same journals has left, on the disk of the host.

    Attributes
    ----------
    holder
        Its name.
    number
        Number of its last lease that it knew to be stored.
    deadline
        The deadline of that lease.
    lock
        The lock on the journals, which this process holds now.
    """

    holder: str
    number: int
    deadline: float
    lock: str


@dataclass(frozen=True)
class EndLease:
    """End the lease of another start; then call `note_stored`, `note_refused` or `note_no_answer`."""

    holder: str
    expected: int
    record: HostLease


@dataclass(frozen=True)
class PutClaim:
    """Store a claim; then call `note_stored`, `note_refused` or `note_no_answer`."""

    run: str
    expected: int
    claim: Claim


ClaimStep: TypeAlias = EndLease | PutClaim


class Stage(enum.Enum):
    """Stage of a run that this start claims: claiming -> claimed -> confirming -> held. A refusal leads out of it."""

    CLAIMING = "claiming"
    CLAIMED = "claimed"
    CONFIRMING = "confirming"
    HELD = "held"


@dataclass
class _SeenLease:
    """A lease as it was seen last; `record` is None if there is none that can be read."""

    number: int
    record: HostLease | None
    watched_from: float


@dataclass(frozen=True)
class _SeenClaim:
    """A claim as it was seen last; `claim` is None if it was removed, and its number is that of the removal."""

    number: int
    claim: Claim | None

    @property
    def holder(self) -> str:
        return "" if self.claim is None else self.claim.holder


@dataclass
class _OwnClaim:
    """A run that this start claims: its stage, the number of its claim, and the step on its way."""

    stage: Stage
    step: PutClaim | None
    number: int = 0


@dataclass
class _View:
    """Names that were seen since the view was begun anew."""

    leases: set[str] = field(default_factory=set)
    claims: set[str] = field(default_factory=set)


class RunClaims:
    """State machine of one start. `now` is always the current time of `CLOCK_BOOTTIME`, in seconds.

    What is stored comes through `note_lease` and `note_claim`, in the order of the numbers, possibly late. The caller
    performs the steps that `begin_steps` returns, and notes what came of each.

    Parameters
    ----------
    own
        Holder, host and epoch of this start's lease; what else it has does not matter.
    timing
        Times of the leases.
    standby
        Claim runs only if all others stand by, too.
    inheritance
        What the start before this one has left; None if there is none.

    Attributes
    ----------
    open_runs
        Number of own runs that are not complete, to be kept up to date by the caller.
    is_lost
        A confirmed claim was found replaced: nothing may be written any more.
    """

    def __init__(
        self, own: Lease, *, timing: LeaseTiming, standby: bool = False, inheritance: Inheritance | None = None
    ) -> None:
        self.open_runs = 0
        self.is_lost = False
        self._own = own
        self._timing = timing
        self._standby = standby
        self._inheritance = inheritance
        self._inherits = False
        self._leases: dict[str, _SeenLease] = {}
        self._claims: dict[str, _SeenClaim] = {}
        self._own_claims: dict[str, _OwnClaim] = {}
        # Runs to claim, and the time since which each of them could be; it is in the future after a refusal.
        self._wanted: dict[str, float | None] = {}
        self._changed: set[str] = set()
        # Number of the newest claim that was seen and is not confirmed.
        self._newest_unconfirmed = 0
        self._revoked: set[str] = set()
        self._may_revoke = True
        self._ending: set[str] = set()
        # Runs whose claims were found removed when `forget_removed` was called last.
        self._removed: set[str] = set()
        self._view: _View | None = None
        self._has_view = False
        self._watched_seconds = 0.0
        self._looked_at = _NEVER

    # Questions.

    @property
    def is_ready(self) -> bool:
        """Whether this start has watched for long enough to claim runs, or need not."""
        return self._inherits or self._watched_seconds >= self._own_takeover_seconds

    @property
    def is_settled(self) -> bool:
        """Whether the view is complete, and it is decided whether this start inherits."""
        return self._has_view and self._inheritance is None

    @property
    def inherits(self) -> bool:
        """Whether this start continues with the journals of the one before it."""
        return self._inherits

    @property
    def wants_renewal(self) -> bool:
        """Whether a claim waits for this start to renew its lease."""
        own = self._leases.get(self._own.holder)
        return own is not None and self._newest_unconfirmed > own.number

    @property
    def has_others(self) -> bool:
        """Whether there are other starts, as far as is known."""
        return any(holder != self._own.holder for holder in self._living())

    @property
    def keys_to_revoke(self) -> tuple[str, ...]:
        """First eight characters of API keys of starts whose leases have ended."""
        if not self._may_revoke:
            return ()
        ended = [seen.record.lease for seen in self._leases.values() if seen.record is not None]
        keys = {key for lease in ended if lease.released for key in keys_of(lease)}
        return tuple(sorted(keys - self._revoked))

    def list_hosts(self) -> list[HostLease]:
        """Return the leases that have not ended, this start's included."""
        return [record for record in self._living().values() if record is not None]

    def list_left(self) -> list[tuple[str, int]]:
        """Return name and number of leases that ended long ago, and whose starts have left no claims or keys."""
        claimed = {seen.holder for seen in self._claims.values()}
        keys = set(self.keys_to_revoke)
        return [
            (holder, seen.number)
            for holder, seen in self._leases.items()
            if seen.record is not None
            and seen.record.lease.released
            and self._watched_seconds - seen.watched_from > _TAKEOVERS_KEPT * seen.record.lease.takeover_seconds
            and holder not in claimed
            and keys.isdisjoint(keys_of(seen.record.lease))
        ]

    def holds(self, run: str) -> bool:
        """Return whether this start may write a run, as long as it may write at all."""
        own_claim = self._own_claims.get(run)
        return own_claim is not None and own_claim.stage is Stage.HELD and not self.is_lost

    def is_others(self, run: str) -> bool:
        """Return whether another start whose lease has not ended has claimed a run."""
        seen = self._claims.get(run)
        if seen is None or seen.claim is None or seen.holder == self._own.holder:
            return False
        return not self._has_ended(seen.holder)

    def knows_claim(self, run: str) -> bool:
        """Return whether there is a claim of a run, or one was removed lately."""
        return run in self._claims

    def find_removable(self, run: str) -> int:
        """Return the number of the claim of a run that is complete, if this start may remove it; else 0."""
        seen = self._claims.get(run)
        return 0 if seen is None or seen.claim is None or self.is_others(run) else seen.number

    def take_changed(self) -> set[str]:
        """Return the runs of which `holds`, `is_others` or `knows_claim` may say something else since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def compose_record(self, lease: Lease) -> HostLease:
        """Return what this start stores as its lease."""
        return HostLease(lease, self.open_runs, self._standby, self.is_ready)

    # What is stored.

    def begin_view(self) -> None:
        """Note that all leases and claims come anew, since some may have been missed."""
        self._view = _View()
        self._newest_unconfirmed = 0

    def end_view(self) -> None:
        """Note that all have come that were there; what has not is not there."""
        if self._view is None:
            return
        for run in self._claims.keys() - self._view.claims:
            self.note_claim(run, 0, None)
        holders = {seen.holder for seen in self._claims.values()}
        for holder in self._leases.keys() - self._view.leases:
            if self._leases[holder].number or holder not in holders:
                del self._leases[holder]
        self._view = None
        self._has_view = True
        for holder in holders:
            self._watch_holder(holder)

    def _watch_holder(self, holder: str) -> None:
        """Watch the start that has claimed a run, though the store may have forgotten its lease."""
        if holder not in ("", self._own.holder):
            self._leases.setdefault(holder, _SeenLease(0, None, self._watched_seconds))

    def note_lease(self, holder: str, number: int, record: HostLease | None) -> None:
        """Note the newest lease of a start; None if it cannot be read."""
        if self._view is not None:
            self._view.leases.add(holder)
        seen = self._leases.get(holder)
        # Any other number is a renewal, also a lower one: the store was set back.
        if seen is None or seen.number != number:
            self._leases[holder] = _SeenLease(number, record, self._watched_seconds)
            if record is not None and record.lease.released:
                self._changed.update(run for run, found in self._claims.items() if found.holder == holder)

    def note_claim(self, run: str, number: int, claim: Claim | None) -> None:
        """Note the newest claim of a run, or None that it was removed; number 0 means that there is no record."""
        if self._view is not None:
            self._view.claims.add(run)
        # The newest comes last.
        self._claims.pop(run, None)
        if number:
            self._claims[run] = _SeenClaim(number, claim)
        if claim is not None and not claim.confirmed:
            self._newest_unconfirmed = number
        if claim is not None and self._view is None:
            self._watch_holder(claim.holder)
        self._changed.add(run)
        own_claim = self._own_claims.get(run)
        # What was seen may be older than what is held.
        if own_claim is None or (claim is not None and claim.holder == self._own.holder):
            return
        if self._is_older(number, own_claim):
            return
        self._drop(run, own_claim)

    def _is_older(self, number: int, own_claim: _OwnClaim) -> bool:
        """Return whether what was seen of a claim can be from before it was held."""
        own = self._leases.get(self._own.holder)
        return number < own_claim.number and (own is None or own.number < own_claim.number)

    def _drop(self, run: str, own_claim: _OwnClaim) -> None:
        if own_claim.stage is Stage.HELD:
            self.is_lost = True
        del self._own_claims[run]

    def forget_removed(self) -> None:
        """Forget claims that were removed before the last call: nobody is told when their records are purged."""
        removed = {run for run, seen in self._claims.items() if seen.claim is None}
        # If a record is still there, the next claim of the run is refused, and the record is read.
        for run in removed & self._removed:
            del self._claims[run]
        self._removed = removed - self._removed

    # What the caller wants.

    def want(self, run: str) -> None:
        """Claim a run when it may be claimed."""
        if run not in self._own_claims:
            self._wanted.setdefault(run, None)

    def unwant(self, run: str) -> None:
        """Do not claim a run, unless this has begun."""
        self._wanted.pop(run, None)

    def give_up(self, run: str) -> None:
        """Forget a run that is held, since it is complete and is being removed."""
        self._wanted.pop(run, None)
        self._own_claims.pop(run, None)

    def note_revoked(self, keys: Collection[str]) -> None:
        """Note that API keys are no longer valid."""
        self._revoked.update(keys)

    def give_up_revoking(self) -> None:
        """Claim the runs of others although their keys cannot be revoked: there is no fence."""
        self._may_revoke = False

    # Steps.

    def begin_steps(self, now: float) -> list[ClaimStep]:
        """Return what to do now. Call it about every `renewal_seconds`, and whenever something was noted.

        It counts the time since the last call as watched. It takes what it returns for begun: it does not return a step
        again before it was told what came of it.
        """
        self._count_watched_time(now)
        if self.is_lost or not self._has_view:
            return []
        return [*self._end_leases(now), *self._confirm_claims(), *self._claim_runs(now)]

    def note_stored(self, step: ClaimStep, number: int, now: float) -> None:
        """Note that what a step stores is stored, with a number."""
        if isinstance(step, EndLease):
            self._note_ended(step, number, now)
        else:
            self._note_claimed(step, number)

    def _note_ended(self, step: EndLease, number: int, now: float) -> None:
        self._ending.discard(step.holder)
        self.note_lease(step.holder, number, step.record)
        found = self._inheritance
        if found is not None and found.holder == step.holder:
            self._inheritance = None
            self._inherits = now < found.deadline

    def _note_claimed(self, step: PutClaim, number: int) -> None:
        own_claim = self._own_claims.get(step.run)
        if own_claim is None or own_claim.step is not step:
            return
        own_claim.stage = Stage.HELD if step.claim.confirmed else Stage.CLAIMED
        own_claim.step, own_claim.number = None, number
        self._wanted.pop(step.run, None)
        self.note_claim(step.run, number, step.claim)

    def note_refused(self, step: ClaimStep, now: float) -> None:
        """Note that a step found another record than it expected."""
        if isinstance(step, EndLease):
            self._ending.discard(step.holder)
            if self._inheritance is not None and self._inheritance.holder == step.holder:
                self._inheritance = None
            return
        own_claim = self._own_claims.get(step.run)
        if own_claim is not None and own_claim.step is step:
            del self._own_claims[step.run]
            # What is stored will be seen by then.
            self._wanted[step.run] = now + self._timing.renewal_seconds / 4

    def note_no_answer(self, step: ClaimStep, now: float) -> None:
        """Note that nobody knows what came of a step: it may be stored, also later."""
        own_claim = self._own_claims.get(step.run) if isinstance(step, PutClaim) else None
        if own_claim is not None and own_claim.step is step and own_claim.stage is Stage.CONFIRMING:
            # If it was stored, the next attempt is refused, and the run is claimed anew.
            own_claim.stage, own_claim.step = Stage.CLAIMED, None
        else:
            self.note_refused(step, now)

    def _count_watched_time(self, now: float) -> None:
        """Count the time since the last look as watched, unless this process may have been stopped meanwhile."""
        pause, seconds = now - self._looked_at, self._timing.renewal_seconds
        if self._own.holder in self._leases and 0 < pause <= 2 * seconds:
            self._watched_seconds += min(pause, seconds)
        self._looked_at = now

    def _end_leases(self, now: float) -> Iterator[EndLease]:
        yield from self._inherit(now)
        # Somebody who may be alive, and may have the claims that cannot be read: a start of a newer version.
        has_strangers = any(seen.number and seen.record is None for seen in self._leases.values())
        for holder, seen in self._leases.items():
            if has_strangers and holder.startswith(UNREADABLE):
                continue
            if holder in (self._own.holder, *self._ending) or self._has_ended(holder):
                continue
            lease = None if seen.record is None else seen.record.lease
            wait_seconds = self._own_takeover_seconds if lease is None else lease.takeover_seconds
            if self._watched_seconds - seen.watched_from >= wait_seconds:
                yield self._end_lease(holder, seen)

    def _inherit(self, now: float) -> Iterator[EndLease]:
        found = self._inheritance
        if found is None or found.holder in self._ending:
            return
        seen = self._leases.get(found.holder)
        lease = None if seen is None or seen.record is None else seen.record.lease
        if seen is not None and lease is not None and now < found.deadline:
            is_its_own = lease.holder == found.holder and lease.lock == found.lock and not lease.released
            # A renewal whose answer it did not live to see is stored on top of that which it knew.
            if is_its_own and seen.number >= found.number > 0:
                yield self._end_lease(found.holder, seen)
                return
        self._inheritance = None

    def _end_lease(self, holder: str, seen: _SeenLease) -> EndLease:
        self._ending.add(holder)
        own, found = self._own, None if seen.record is None else seen.record.lease
        epoch = 1 if found is None else found.epoch + 1
        seconds = self._timing.lease_seconds if found is None else found.lease_seconds
        ended = Lease(
            own.holder, own.host, epoch, 0, released=True, unrevoked=keys_of(found), lease_seconds=seconds, lock=""
        )
        return EndLease(holder, seen.number, HostLease(ended))

    def _confirm_claims(self) -> Iterator[PutClaim]:
        oldest = self._find_oldest_renewal()
        for run, own_claim in self._own_claims.items():
            if own_claim.stage is Stage.CLAIMED and oldest is not None and oldest > own_claim.number:
                own_claim.stage = Stage.CONFIRMING
                own_claim.step = PutClaim(run, own_claim.number, self._compose_claim(confirmed=True))
                yield own_claim.step

    def _find_oldest_renewal(self) -> int | None:
        """Return the lowest number of the leases that have not ended; None if that of this start is not among them."""
        numbers = {holder: seen.number for holder, seen in self._leases.items() if not self._has_ended(holder)}
        return min(numbers.values()) if self._own.holder in numbers else None

    def _claim_runs(self, now: float) -> Iterator[PutClaim]:
        if not self._wanted or not self.is_ready or self._must_stand_by() or self._own.holder not in self._leases:
            return
        loads = self._estimate_loads()
        for run, free_since in list(self._wanted.items()):
            if run in self._own_claims:
                continue
            if not self._may_claim(run):
                self._wanted[run] = None
                continue
            since = now if free_since is None else free_since
            self._wanted[run] = since
            if now < since + self._find_rank(run, loads) * CLAIM_STEP_SECONDS:
                continue
            loads[self._own.holder] += 1
            seen = self._claims.get(run)
            step = PutClaim(run, 0 if seen is None else seen.number, self._compose_claim(confirmed=False))
            self._own_claims[run] = _OwnClaim(Stage.CLAIMING, step)
            yield step

    def _may_claim(self, run: str) -> bool:
        seen = self._claims.get(run)
        if seen is None or seen.holder in ("", self._own.holder):
            # One of its own that it does not hold was stored without an answer.
            return True
        if not self._has_ended(seen.holder):
            return False
        record = self._leases[seen.holder].record
        keys = () if record is None else keys_of(record.lease)
        return not self._may_revoke or self._revoked.issuperset(keys)

    def _must_stand_by(self) -> bool:
        if SERVICE in self._living():
            return True
        return self._standby and any(record is not None and not record.standby for record in self._living().values())

    def _estimate_loads(self) -> Counter[str]:
        """Return how many runs each start has that claims some, with those that it has claimed since it said so."""
        living = {holder: record for holder, record in self._living().items() if record is not None}
        primary = {holder for holder, record in living.items() if not record.standby}
        loads = Counter(
            {
                holder: record.open_runs
                for holder, record in living.items()
                if record.ready and (not primary or holder in primary)
            }
        )
        loads[self._own.holder] = self.open_runs + sum(
            own_claim.stage is not Stage.HELD for own_claim in self._own_claims.values()
        )
        oldest = min(self._leases[holder].number for holder in loads)
        for seen in reversed(self._claims.values()):
            if seen.number <= oldest:
                break
            holder = seen.holder
            if holder in loads and holder != self._own.holder and seen.number > self._leases[holder].number:
                loads[holder] += 1
        return loads

    def _find_rank(self, run: str, loads: Counter[str]) -> int:
        """Return how many starts come before this one, by their loads, and then by an order that differs by run."""
        order = sorted(loads, key=lambda holder: (loads[holder], zlib.crc32(f"{run} {holder}".encode()), holder))
        return order.index(self._own.holder)

    def _compose_claim(self, *, confirmed: bool) -> Claim:
        return Claim(self._own.holder, self._own.host, self._own.epoch, confirmed)

    def _living(self) -> dict[str, HostLease | None]:
        return {holder: seen.record for holder, seen in self._leases.items() if not self._has_ended(holder)}

    def _has_ended(self, holder: str) -> bool:
        """Return whether a start can no longer write; False if nothing is known of it."""
        seen = self._leases.get(holder)
        return seen is not None and seen.record is not None and seen.record.lease.released

    @property
    def _own_takeover_seconds(self) -> float:
        return replace(self._own, lease_seconds=self._timing.lease_seconds).takeover_seconds
