"""Whatever happens to processes, clocks and answers, two holders never send at one moment."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tiledbroker.ownership import (
    DEFAULT_TIMING,
    CompareAndSet,
    Lease,
    LeaseTiming,
    Ownership,
    OwnershipState,
    Read,
    Stored,
    Wait,
)

HOLDING, LOST, RELEASED, WAITING = (
    OwnershipState.HOLDING,
    OwnershipState.LOST,
    OwnershipState.RELEASED,
    OwnershipState.WAITING,
)
LEASE_SECONDS = DEFAULT_TIMING.lease_seconds
RENEWAL_SECONDS = DEFAULT_TIMING.renewal_seconds
# Small jumps of the clock during one wait that the margin before the deadline makes up for.
MAX_SMALL_JUMPS = 2


class MemoryStore:
    """What a store is at its best: it decides at once, and remembers all revisions, for those who read old ones."""

    def __init__(self) -> None:
        self.history = [Stored(0, None)]

    def compare_and_set(self, expected_revision: int, lease: Lease) -> int | None:
        if self.history[-1].revision != expected_revision:
            return None
        self.history.append(Stored(expected_revision + 1, lease))
        return expected_revision + 1


@dataclass
class Host:
    """A supervisor start with a clock of its own, and its request under way."""

    ownership: Ownership
    clock: float
    rate: float
    request: Read | CompareAndSet | None = None
    is_applied: bool = False
    answer: Stored | int | None = None
    was_lost: bool = field(default=False)

    def decide(self) -> None:
        if self.request is None:
            step = self.ownership.next_step(self.clock)
            self.request = None if isinstance(step, Wait) else step
            self.is_applied = False

    def apply(self, store: MemoryStore, age: int = 0) -> None:
        """Let the request reach the store; a read gets a revision as old as `age`."""
        if self.request is not None and not self.is_applied:
            self.is_applied = True
            if isinstance(self.request, Read):
                self.answer = store.history[max(0, len(store.history) - 1 - age)]
            else:
                self.answer = store.compare_and_set(self.request.expected_revision, self.request.lease)

    def take_answer(self) -> None:
        if self.request is None or not self.is_applied:
            return
        self.request = None
        if isinstance(self.answer, Stored):
            self.ownership.note_read(self.answer, self.clock)
        elif self.answer is None:
            self.ownership.note_refused(self.clock)
        else:
            self.ownership.note_accepted(self.answer, self.clock)

    def lose_answer(self) -> CompareAndSet | None:
        """The answer never comes; return the request if it can still reach the store."""
        request, self.request = self.request, None
        if request is None:
            return None
        self.ownership.note_no_answer(self.clock)
        return None if self.is_applied or isinstance(request, Read) else request

    def work(self, store: MemoryStore) -> None:
        """Do all that is to be done at this moment, without a fault."""
        self.decide()
        while self.request is not None:
            self.apply(store)
            self.take_answer()
            self.decide()

    @property
    def may_send(self) -> bool:
        return self.clock < self.ownership.may_send_until


HOSTS = st.integers(0, 2)
STEP_SECONDS = 0.5


class OwnershipMachine(RuleBasedStateMachine):
    """Three hosts with clocks of their own, and everything that can go wrong between them and the store."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.late: list[CompareAndSet] = []
        self.small_jumps = 0
        self.starts = 0
        self.hosts = [self.start_host(clock, rate) for clock, rate in ((1e3, 0.99), (2e5, 1.01), (5.0, 1.0))]

    def start_host(self, clock: float, rate: float) -> Host:
        self.starts += 1
        return Host(Ownership(f"start {self.starts}", f"host {self.starts}", key=f"{self.starts:08d}"), clock, rate)

    @property
    def holder(self) -> Host:
        """A host that believes that it holds the lease; the first one if there is none."""
        return next((host for host in self.hosts if host.ownership.state is HOLDING), self.hosts[0])

    def let_time_pass(self, seconds: float, working: Collection[Host]) -> None:
        """Some hosts work as they should; the processes of the others are stopped."""
        for _ in range(int(seconds / STEP_SECONDS) + 1):
            for host in self.hosts:
                host.clock += STEP_SECONDS * host.rate
            for host in working:
                host.work(self.store)
            self.at_most_one_may_send()

    @initialize()
    def begin(self) -> None:
        self.let_time_pass(3.0, self.hosts)

    @rule(seconds=st.sampled_from([1.0, 3.0, 10.0, 25.0, 45.0]), stopped=st.sets(HOSTS, max_size=2))
    def work(self, seconds: float, stopped: Collection[int]) -> None:
        self.let_time_pass(seconds, [host for index, host in enumerate(self.hosts) if index not in stopped])

    @rule(
        sent_after=st.sampled_from([0.0, 2.0, 2.5, 10.0]),
        on_the_way=st.sampled_from([0.0, 3.0, 10.0, 35.0]),
        answered_after=st.sampled_from([0.0, 4.0, 10.0, 20.0, 40.0]),
        is_answered=st.booleans(),
        stopped_seconds=st.sampled_from([0.0, 5.0, 20.0, 30.0]),
    )
    def stop_holder_between_steps(
        self, sent_after: float, on_the_way: float, answered_after: float, is_answered: bool, stopped_seconds: float
    ) -> None:
        """The process of the holder is stopped, and its request and the answer take long or are lost."""
        holder = self.holder
        others = [host for host in self.hosts if host is not holder]
        self.let_time_pass(sent_after, others)
        holder.decide()
        self.let_time_pass(on_the_way, others)
        holder.apply(self.store)
        self.let_time_pass(answered_after, others)
        if is_answered:
            holder.take_answer()
        else:
            self.lose_answer(holder)
        self.let_time_pass(stopped_seconds, others)

    @rule(
        pause=st.sampled_from([0.0, 2.5]),
        requests=st.integers(1, 3),
        stopped_seconds=st.sampled_from([0.0, 5.0, 20.0, 30.0]),
    )
    def stop_holder_after_requests(self, pause: float, requests: int, stopped_seconds: float) -> None:
        """The holder does a few requests without a fault before its process is stopped."""
        holder = self.holder
        others = [host for host in self.hosts if host is not holder]
        self.let_time_pass(pause, others)
        for _ in range(requests):
            holder.decide()
            holder.apply(self.store)
            holder.take_answer()
        self.let_time_pass(stopped_seconds, others)

    @rule(index=HOSTS, act=st.sampled_from(["decide", "apply", "take answer", "lose answer"]), age=st.integers(0, 3))
    def do_one_step(self, index: int, act: str, age: int) -> None:
        host = self.hosts[index]
        if act == "decide":
            host.decide()
        elif act == "apply":
            host.apply(self.store, age)
        elif act == "take answer":
            host.take_answer()
        else:
            self.lose_answer(host)

    def lose_answer(self, host: Host) -> None:
        if request := host.lose_answer():
            self.late.append(request)

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def apply_late(self, data: st.DataObject) -> None:
        request = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        self.store.compare_and_set(request.expected_revision, request.lease)

    @rule(index=HOSTS, seconds=st.floats(2.01 * RENEWAL_SECONDS, 1e3))
    def jump(self, index: int, seconds: float) -> None:
        self.hosts[index].clock += seconds

    @precondition(lambda self: self.small_jumps < MAX_SMALL_JUMPS)
    @rule(index=HOSTS, seconds=st.floats(0, 2 * RENEWAL_SECONDS))
    def jump_a_little(self, index: int, seconds: float) -> None:
        self.small_jumps += 1
        self.hosts[index].clock += seconds

    @rule(index=HOSTS, in_order=st.booleans())
    def end_and_start_again(self, index: int, in_order: bool) -> None:
        old = self.hosts[index]
        if in_order:
            old.ownership.release(old.clock)
            old.work(self.store)
        self.lose_answer(old)
        self.hosts[index] = self.start_host(old.clock, old.rate)

    @invariant()
    def at_most_one_may_send(self) -> None:
        assert sum(host.may_send for host in self.hosts) <= 1

    @invariant()
    def who_has_lost_never_sends_again(self) -> None:
        for host in self.hosts:
            host.was_lost |= host.ownership.state in {LOST, RELEASED}
            assert not (host.was_lost and host.may_send)

    @invariant()
    def epochs_and_holders_change_together(self) -> None:
        leases = [stored.lease for stored in self.store.history if stored.lease is not None]
        for before, after in itertools.pairwise(leases):
            assert after.epoch - before.epoch == (before.holder != after.holder)

    @invariant()
    def no_key_of_an_earlier_holder_is_forgotten(self) -> None:
        newest = self.store.history[-1].lease
        if newest is not None:
            keys = {stored.lease.key for stored in self.store.history if stored.lease is not None}
            assert keys - {newest.key} == set(newest.unrevoked)


TestOwnership = OwnershipMachine.TestCase
TestOwnership.settings = settings(
    max_examples=150, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_no_combination_of_slow_or_lost_answers_and_stopped_holders_lets_two_send() -> None:
    """The schedules that random ones seldom hit, all of them."""
    for on_the_way, answered_after, is_answered, stopped, requests, stopped_again in itertools.product(
        [0.0, 3.0, 35.0], [0.0, 10.0, 20.0], [True, False], [0.0, 30.0], [0, 2, 3], [0.0, 20.0, 30.0]
    ):
        machine = OwnershipMachine()
        machine.begin()
        machine.stop_holder_between_steps(2.5, on_the_way, answered_after, is_answered, stopped)
        machine.stop_holder_after_requests(2.5, requests, stopped_again)
        machine.let_time_pass(3.0, machine.hosts)


@given(
    rates=st.tuples(st.floats(0.99, 1.01), st.floats(0.99, 1.01)),
    held_seconds=st.floats(1, 300),
    start_seconds=st.floats(0, 5),
)
@settings(max_examples=100, deadline=None)
def test_when_a_holder_dies_another_holds_soon_after_its_deadline(
    rates: tuple[float, float], held_seconds: float, start_seconds: float
) -> None:
    store = MemoryStore()
    first, second = (Host(Ownership(name, name), 100.0, rate) for name, rate in zip("ab", rates, strict=True))
    passed, died_at = 0.0, start_seconds + held_seconds
    while second.ownership.state is WAITING:
        for host in (first, second):
            host.clock += 0.1 * host.rate
        passed += 0.1
        if passed < died_at:
            first.work(store)
            assert first.may_send
        if passed > start_seconds:
            second.work(store)
        assert passed < died_at + 1.01 * LEASE_SECONDS + 1 + 3 * RENEWAL_SECONDS
    assert second.may_send
    assert not first.may_send
    assert second.ownership.predecessor is not None
    assert second.ownership.predecessor.holder == "a"


NOW = 1000.0
FOREIGN = Lease("another start", "b", 7, 40, "11111111", unrevoked=("00000000",))


def hold(**options: str) -> Ownership:
    """A holder that has taken over, at revision 1, with what it sent at `NOW`."""
    ownership = Ownership("own start", "a", **options)
    assert ownership.next_step(NOW) == Read()
    ownership.note_read(Stored(0, None), NOW)
    step = ownership.next_step(NOW)
    assert step == CompareAndSet(0, Lease("own start", "a", 1, 1, options.get("key", "")))
    ownership.note_accepted(1, NOW + 1)
    return ownership


def next_lease(ownership: Ownership, now: float) -> CompareAndSet:
    step = ownership.next_step(now)
    assert isinstance(step, CompareAndSet)
    return step


def test_the_first_ever_takes_the_lease_at_once() -> None:
    ownership = hold()
    assert ownership.state is HOLDING
    assert ownership.predecessor is None
    assert ownership.deadline == NOW + LEASE_SECONDS
    assert ownership.may_send_until == NOW + 25
    assert ownership.next_step(NOW + 1) == Wait(NOW + 2)


def test_a_renewal_counts_from_before_it_was_sent() -> None:
    ownership = hold()
    assert next_lease(ownership, NOW + 2) == CompareAndSet(1, Lease("own start", "a", 1, 2))
    ownership.note_accepted(2, NOW + 9)
    assert ownership.deadline == NOW + 2 + LEASE_SECONDS


def test_a_renewal_without_an_answer_is_repeated_and_counts_from_when_it_was_sent() -> None:
    ownership = hold()
    unanswered = next_lease(ownership, NOW + 2)
    ownership.note_no_answer(NOW + 5)
    assert next_lease(ownership, NOW + 8).expected_revision == unanswered.expected_revision
    ownership.note_refused(NOW + 9)
    assert ownership.next_step(NOW + 9) == Read()
    ownership.note_read(Stored(2, unanswered.lease), NOW + 10)
    assert ownership.state is HOLDING
    assert ownership.deadline == NOW + 2 + LEASE_SECONDS
    assert next_lease(ownership, NOW + 10).expected_revision == 2


def test_another_holder_in_the_store_means_lost_for_good() -> None:
    ownership = hold()
    next_lease(ownership, NOW + 2)
    ownership.note_refused(NOW + 3)
    assert ownership.next_step(NOW + 3) == Read()
    ownership.note_read(Stored(2, FOREIGN), NOW + 3)
    assert ownership.state is LOST
    assert ownership.deadline < NOW
    assert ownership.next_step(NOW + 4) is None
    assert ownership.describe(NOW + 4) == "lost the lease: host b has taken over, epoch 7"


def test_a_refusal_for_no_reason_is_followed_by_another_renewal() -> None:
    ownership = hold()
    next_lease(ownership, NOW + 2)
    ownership.note_refused(NOW + 3)
    assert ownership.next_step(NOW + 3) == Read()
    ownership.note_read(Stored(1, ownership.lease), NOW + 3)
    assert ownership.next_step(NOW + 3) == Wait(NOW + 4)
    assert next_lease(ownership, NOW + 4).expected_revision == 1


def test_a_read_that_is_older_than_the_own_lease_says_nothing() -> None:
    ownership = Ownership("own start", "a")
    ownership.next_step(NOW)
    ownership.note_read(Stored(5, replace(FOREIGN, released=True)), NOW)
    next_lease(ownership, NOW)
    ownership.note_accepted(6, NOW)
    next_lease(ownership, NOW + 2)
    ownership.note_refused(NOW + 3)
    ownership.note_read(Stored(5, FOREIGN), NOW + 3)
    assert ownership.state is HOLDING


def test_a_lease_of_this_name_that_this_start_has_not_sent_is_foreign() -> None:
    ownership = hold()
    next_lease(ownership, NOW + 2)
    ownership.note_refused(NOW + 3)
    ownership.note_read(Stored(2, Lease("own start", "a", 1, 77)), NOW + 3)
    assert ownership.state is LOST


@pytest.mark.parametrize("seconds", [LEASE_SECONDS, 1e6])
def test_a_renewal_that_is_accepted_behind_the_deadline_is_too_late(seconds: float) -> None:
    ownership = hold()
    next_lease(ownership, NOW + 29)
    ownership.note_accepted(2, NOW + seconds)
    assert ownership.state is LOST
    assert ownership.describe(NOW + seconds) == "lost the lease: it was not renewed in time"


def test_a_takeover_whose_answer_comes_behind_its_deadline_is_lost() -> None:
    ownership = Ownership("own start", "a")
    ownership.next_step(NOW)
    ownership.note_read(Stored(0, None), NOW)
    next_lease(ownership, NOW)
    ownership.note_accepted(1, NOW + LEASE_SECONDS)
    assert ownership.state is LOST


def test_a_takeover_without_an_answer_is_found_by_reading() -> None:
    ownership = Ownership("own start", "a", key="22222222")
    ownership.next_step(NOW)
    ownership.note_read(Stored(5, replace(FOREIGN, released=True)), NOW)
    takeover = next_lease(ownership, NOW)
    assert takeover == CompareAndSet(5, Lease("own start", "a", 8, 1, "22222222", unrevoked=("00000000", "11111111")))
    ownership.note_no_answer(NOW + 3)
    assert ownership.next_step(NOW + 5) == Read()
    ownership.note_read(Stored(6, takeover.lease), NOW + 6)
    assert ownership.state is HOLDING
    assert ownership.deadline == NOW + LEASE_SECONDS
    assert ownership.predecessor == replace(FOREIGN, released=True)
    assert ownership.unrevoked == ("00000000", "11111111")


def watch(ownership: Ownership, stored: Stored, start: float, seconds: float) -> float:
    """Let a standby read the same at each pause; return the time at which it takes over, or the end."""
    now = start
    while now < start + seconds:
        step = ownership.next_step(now)
        if isinstance(step, CompareAndSet):
            return now
        if isinstance(step, Wait):
            now = step.until
        else:
            ownership.note_read(stored, now)
    return now


def test_a_successor_takes_over_when_it_has_seen_a_revision_unchanged_for_long_enough() -> None:
    ownership = Ownership("own start", "a")
    taken_at = watch(ownership, Stored(5, FOREIGN), NOW, 60)
    assert NOW + 1.01 * LEASE_SECONDS + 1 <= taken_at <= NOW + 1.01 * LEASE_SECONDS + 1 + RENEWAL_SECONDS


def test_each_renewal_begins_the_wait_anew() -> None:
    ownership = Ownership("own start", "a")
    watch(ownership, Stored(5, FOREIGN), NOW, 30)
    taken_at = watch(ownership, Stored(6, FOREIGN), NOW + 30, 60)
    assert taken_at >= NOW + 30 + 1.01 * LEASE_SECONDS + 1


def test_who_has_the_lock_of_the_holder_need_not_wait_for_it() -> None:
    ownership = Ownership("next start", "a", lock="this file")
    assert watch(ownership, Stored(5, replace(FOREIGN, lock="this file")), NOW, 60) == NOW


@pytest.mark.parametrize(("own", "other"), [("this file", "a copy of it"), ("this file", ""), ("", ""), ("", "a file")])
def test_who_has_another_lock_than_the_holder_waits(own: str, other: str) -> None:
    ownership = Ownership("own start", "a", lock=own)
    assert watch(ownership, Stored(5, replace(FOREIGN, lock=other)), NOW, 60) > NOW + LEASE_SECONDS


def test_a_successor_waits_for_as_long_as_the_holder_takes_its_lease_to_be_valid() -> None:
    ownership = Ownership("own start", "a", timing=LeaseTiming.of(3.0))
    taken_at = watch(ownership, Stored(5, replace(FOREIGN, lease_seconds=60.0)), NOW, 90)
    assert taken_at >= NOW + 1.01 * 60 + 2


def test_only_what_was_renewed_while_it_was_watched_counts_as_a_holder_that_lives() -> None:
    ownership = Ownership("own start", "a")
    watch(ownership, Stored(5, FOREIGN), NOW, 10)
    assert not ownership.has_seen_renewal
    watch(ownership, Stored(6, FOREIGN), NOW + 10, 3)
    assert ownership.has_seen_renewal
    watch(ownership, Stored(7, replace(FOREIGN, released=True)), NOW + 13, 3)
    assert not ownership.has_seen_renewal


@pytest.mark.parametrize("seconds", [2.1 * RENEWAL_SECONDS, 1e6])
def test_a_pause_or_a_jump_is_no_time_in_which_a_successor_has_seen_anything(seconds: float) -> None:
    ownership = Ownership("own start", "a")
    end = watch(ownership, Stored(5, FOREIGN), NOW, 20)
    taken_at = watch(ownership, Stored(5, FOREIGN), end + seconds, 60)
    assert taken_at - end - seconds >= 10


def test_a_takeover_that_is_refused_is_tried_again_after_a_pause_only() -> None:
    ownership = Ownership("own start", "a")
    ownership.next_step(NOW)
    ownership.note_read(Stored(5, replace(FOREIGN, released=True)), NOW)
    next_lease(ownership, NOW)
    ownership.note_refused(NOW)
    assert ownership.next_step(NOW) == Wait(NOW + RENEWAL_SECONDS)
    assert ownership.next_step(NOW + RENEWAL_SECONDS) == Read()


def test_releasing_is_told_to_the_store_until_it_is_stored() -> None:
    ownership = hold()
    in_flight = next_lease(ownership, NOW + 2)
    ownership.release(NOW + 3)
    assert ownership.state is RELEASED
    assert ownership.may_send_until < NOW
    ownership.note_accepted(2, NOW + 4)
    assert not in_flight.lease.released
    unanswered = next_lease(ownership, NOW + 4)
    assert unanswered.lease.released
    ownership.note_no_answer(NOW + 5)
    next_lease(ownership, NOW + 7)
    ownership.note_refused(NOW + 7)
    assert ownership.next_step(NOW + 7) == Read()
    ownership.note_read(Stored(3, unanswered.lease), NOW + 7)
    assert ownership.is_done
    assert ownership.next_step(NOW + 7) is None
    assert ownership.describe(NOW + 7) == "gave up the lease"


def test_a_release_is_no_longer_tried_behind_the_deadline() -> None:
    ownership = hold()
    ownership.release(NOW + 1)
    next_lease(ownership, NOW + 1)
    ownership.note_no_answer(NOW + 50)
    assert ownership.next_step(NOW + 52) is None


def test_a_standby_that_gives_up_waiting_does_nothing_more() -> None:
    ownership = Ownership("own start", "a")
    ownership.release(NOW)
    assert ownership.next_step(NOW) is None
    assert ownership.lease is None


def test_another_key_is_announced_by_the_next_renewal_and_the_one_before_is_to_be_revoked() -> None:
    ownership = hold(key="22222222")
    ownership.change_key("33333333")
    assert ownership.lease is not None
    assert ownership.lease.key == "22222222"
    assert next_lease(ownership, NOW + 2).lease.key == "33333333"
    ownership.note_accepted(2, NOW + 2)
    assert ownership.lease.key == "33333333"
    assert ownership.lease.unrevoked == ("22222222",)
    ownership.note_revoked(["22222222"])
    assert next_lease(ownership, NOW + 4).lease.unrevoked == ()


def test_a_standby_describes_who_holds_the_lease() -> None:
    ownership = Ownership("own start", "a")
    assert ownership.describe(NOW) == "standby: the lease has not been read yet"
    ownership.next_step(NOW)
    ownership.note_read(Stored(5, FOREIGN), NOW)
    assert ownership.describe(NOW + 1.4) == "standby: host b holds the lease, epoch 7, renewed 1.4 s ago"


@pytest.mark.parametrize(("revision", "lease"), [(0, FOREIGN), (3, None)])
def test_only_revision_0_has_no_lease(revision: int, lease: Lease | None) -> None:
    with pytest.raises(ValueError, match="revision"):
        Stored(revision, lease)


@pytest.mark.parametrize("stored", [Stored(0, None), Stored(5, Lease("old", "b", 3, 9, released=True))])
def test_a_free_lease_is_not_watched(stored: Stored) -> None:
    assert watch(Ownership("own", "a"), stored, NOW, 100) == NOW


def test_the_next_start_on_the_same_journals_does_not_watch() -> None:
    ownership = Ownership("own", "a", lock="journals")
    assert watch(ownership, Stored(5, Lease("old", "a", 3, 9, lock="journals")), NOW, 100) == NOW


def test_a_lease_that_nobody_has_held_begins_with_the_given_epoch() -> None:
    ownership = Ownership("own", "a", first_epoch=7)
    watch(ownership, Stored(0, None), NOW, 100)
    assert next_lease(ownership, NOW).lease.epoch == 7


def test_a_holder_that_others_wait_for_renews_sooner_and_not_all_the_time() -> None:
    ownership = hold()
    ownership.hasten(NOW + 1)
    assert next_lease(ownership, NOW + 1).expected_revision == 1
    ownership.note_accepted(2, NOW + 1)
    ownership.hasten(NOW + 1)
    assert ownership.next_step(NOW + 1) == Wait(NOW + 1 + RENEWAL_SECONDS / 10)
