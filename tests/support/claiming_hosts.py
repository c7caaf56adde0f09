"""Hosts that share runs, in one process: a store with a history that can be set back, and clocks of their own."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from tiledbroker.ownership import (
    DEFAULT_TIMING,
    Claim,
    ClaimStep,
    CompareAndSet,
    EndLease,
    HostLease,
    Inheritance,
    Lease,
    Ownership,
    OwnershipState,
    Read,
    RunClaims,
    Stored,
    Wait,
)

STEP_SECONDS = 0.5
RENEWAL_SECONDS = DEFAULT_TIMING.renewal_seconds
Value = HostLease | Claim
Request = Read | CompareAndSet | ClaimStep


@dataclass(frozen=True)
class Entry:
    number: int
    key: str
    value: Value


class HistoryStore:
    """What a store of many keys is at its best: it decides at once. Its newest history can be forgotten."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def find(self, key: str) -> Entry | None:
        return next((entry for entry in reversed(self.entries) if entry.key == key), None)

    def compare_and_set(self, key: str, expected: int, value: Value) -> int | None:
        found = self.find(key)
        if (0 if found is None else found.number) != expected:
            return None
        self.entries.append(Entry(len(self.entries) + 1, key, value))
        return len(self.entries)

    def set_back(self, count: int) -> None:
        """Forget the newest entries."""
        del self.entries[max(0, len(self.entries) - count) :]

    def newest(self) -> list[Entry]:
        """The newest entry of each key, in their order."""
        return sorted({entry.key: entry for entry in self.entries}.values(), key=lambda entry: entry.number)


def lease_key(holder: str) -> str:
    return f"lease {holder}"


def run_key(run: str) -> str:
    return f"run {run}"


@dataclass
class Page:
    """What stays on the disk of a host of its last start."""

    holder: str = ""
    revision: int = 0
    deadline: float = float("-inf")


@dataclass
class ClaimingHost:
    """A host with a clock of its own; `start` makes the state machines of another start."""

    name: str
    store: HistoryStore
    clock: float
    rate: float
    standby: bool = False
    page: Page = field(default_factory=Page)
    starts: int = 0
    late: list[tuple[str, int, Value]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.starts += 1
        holder = f"{self.name} {self.starts}"
        found = self.page
        inheritance = Inheritance(found.holder, found.revision, found.deadline, self.name) if found.holder else None
        key = f"{self.name}{self.starts:07d}"
        self.ownership = Ownership(holder, self.name, key=key, lock=self.name, first_epoch=self.starts)
        own = Lease(holder, self.name, self.starts, 0)
        self.claims = RunClaims(own, timing=DEFAULT_TIMING, standby=self.standby, inheritance=inheritance)
        self.page = Page(holder)
        self.cursor: int | None = None
        self.requests: list[Request] = []
        self.is_alive = True

    @property
    def holder(self) -> str:
        return self.ownership.holder

    @property
    def may_send(self) -> bool:
        return self.is_alive and self.clock < self.ownership.may_send_until

    def may_write(self, run: str) -> bool:
        return self.may_send and self.claims.holds(run)

    # What the host does.

    def receive(self, limit: int | None = None) -> None:
        """Take in what was stored since the last time; at first, the newest of each key."""
        if self.cursor is None:
            self.claims.begin_view()
            entries = self.store.newest()
            self._note(entries)
            self.claims.end_view()
        else:
            seen = self.cursor
            entries = [entry for entry in self.store.newest() if entry.number > seen][:limit]
            self._note(entries)
        self.cursor = max([self.cursor or 0, *(entry.number for entry in entries)])

    def _note(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            name = entry.key.partition(" ")[2]
            if isinstance(entry.value, HostLease):
                self.claims.note_lease(name, entry.number, entry.value)
            else:
                self.claims.note_claim(name, entry.number, entry.value)

    def decide(self) -> None:
        """Add what is to be done now to the requests on their way."""
        self.ownership.check(self.clock)
        if self.ownership.state is OwnershipState.LOST or self.claims.is_lost or not self.is_alive:
            self.die()
            return
        if self.claims.wants_renewal:
            self.ownership.hasten(self.clock)
        if not any(isinstance(request, Read | CompareAndSet) for request in self.requests):
            step = self.ownership.next_step(self.clock)
            self.requests += [] if step is None or isinstance(step, Wait) else [step]
        if self.ownership.state is OwnershipState.HOLDING:
            self.claims.note_revoked(self.claims.keys_to_revoke)
            self.requests += self.claims.begin_steps(self.clock)

    def perform(self, request: Request, *, answer: bool = True, apply: bool = True) -> None:
        """Let a request reach the store, and take its answer."""
        self.requests.remove(request)
        if isinstance(request, Read):
            found = self.store.find(lease_key(self.holder))
            if not answer:
                self.ownership.note_no_answer(self.clock)
            elif found is None:
                self.ownership.note_read(Stored(0, None), self.clock)
            else:
                assert isinstance(found.value, HostLease)
                self.ownership.note_read(Stored(found.number, found.value.lease), self.clock)
            return
        key, expected, value = self._describe(request)
        number = self.store.compare_and_set(key, expected, value) if apply else None
        if not apply:
            self.late.append((key, expected, value))
        is_unanswered = not answer or not apply
        if isinstance(request, CompareAndSet):
            if is_unanswered:
                self.ownership.note_no_answer(self.clock)
            elif number is None:
                self.ownership.note_refused(self.clock)
            else:
                self.ownership.note_accepted(number, self.clock)
            self.page = Page(self.holder, self.ownership.revision, self.ownership.deadline)
        elif is_unanswered:
            self.claims.note_no_answer(request, self.clock)
        elif number is None:
            self._look_again(request)
            self.claims.note_refused(request, self.clock)
        else:
            self.claims.note_stored(request, number, self.clock)

    def _describe(self, request: CompareAndSet | ClaimStep) -> tuple[str, int, Value]:
        if isinstance(request, CompareAndSet):
            record = self.claims.compose_record(request.lease)
            return lease_key(self.holder), request.expected_revision, record
        if isinstance(request, EndLease):
            return lease_key(request.holder), request.expected, request.record
        return run_key(request.run), request.expected, request.claim

    def _look_again(self, request: ClaimStep) -> None:
        key = self._describe(request)[0]
        if (found := self.store.find(key)) is not None:
            self._note([found])
        elif not isinstance(request, EndLease):
            self.claims.note_claim(request.run, 0, None)

    def apply_late(self) -> None:
        """Let a request reach the store whose answer was given up."""
        if self.late:
            self.store.compare_and_set(*self.late.pop(0))

    def work(self) -> None:
        """Do all that is to be done at this moment, without a fault."""
        for _ in range(20):
            self.receive()
            self.decide()
            if not self.requests:
                return
            for request in list(self.requests):
                self.perform(request)

    def die(self) -> None:
        """The process ends, as it was told to or as it was killed; its requests may still be on their way."""
        self.is_alive = False
        self.late += [self._describe(request) for request in self.requests if not isinstance(request, Read)]
        self.requests = []

    def end_in_order(self) -> None:
        """Release the lease if there is another host, and end."""
        if self.claims.has_others:
            self.ownership.release(self.clock)
            self.page.deadline = float("-inf")
            while self.is_alive and (step := self.ownership.next_step(self.clock)) and not isinstance(step, Wait):
                self.requests.append(step)
                self.perform(step)
        self.die()


def let_time_pass(
    seconds: float, hosts: Collection[ClaimingHost], working: Collection[ClaimingHost] | None = None
) -> Iterable[float]:
    """Some hosts work as they should, the processes of the others are stopped; yield the time after each step."""
    for count in itertools.count(1):
        for host in hosts:
            host.clock += STEP_SECONDS * host.rate
        for host in hosts if working is None else working:
            if host.is_alive:
                host.work()
        yield count * STEP_SECONDS
        if count * STEP_SECONDS >= seconds:
            return
