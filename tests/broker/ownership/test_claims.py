"""Whatever happens to processes, clocks, answers and the store, two starts never write one run at one moment."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection

import pytest
from claiming_hosts import RENEWAL_SECONDS, ClaimingHost, HistoryStore, let_time_pass, run_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tiledbroker.ownership import DEFAULT_TIMING, Claim, EndLease, HostLease, Lease, PutClaim

RUNS = ("a", "b", "c", "d", "e", "f")
TAKEOVER_SECONDS = Lease("", "", 1, 1).takeover_seconds
LEASE_SECONDS = DEFAULT_TIMING.lease_seconds
HOSTS = st.integers(0, 2)
MAX_SMALL_JUMPS = 2


def make_hosts(store: HistoryStore, count: int = 3) -> list[ClaimingHost]:
    clocks = [(1e3, 0.99), (2e5, 1.01), (5.0, 1.0)]
    return [ClaimingHost(name, store, *clock) for name, clock in zip("xyz"[:count], clocks, strict=False)]


def want_all(hosts: Collection[ClaimingHost], runs: Collection[str] = RUNS) -> None:
    for host, run in itertools.product(hosts, runs):
        host.claims.want(run)


def writers_of(run: str, hosts: Collection[ClaimingHost]) -> list[str]:
    return [host.name for host in hosts if host.may_write(run)]


def pass_until(
    condition: Callable[[], bool],
    hosts: Collection[ClaimingHost],
    *,
    limit: float,
    working: Collection[ClaimingHost] | None = None,
) -> float:
    """Let time pass until something holds; return how long that took."""
    for passed in let_time_pass(limit, hosts, working):
        for run in RUNS:
            assert len(writers_of(run, hosts)) <= 1, run
        if condition():
            return passed
    raise AssertionError(f"it does not hold after {limit} s")


def all_written(hosts: Collection[ClaimingHost], runs: Collection[str] = RUNS) -> bool:
    return all(writers_of(run, hosts) for run in runs)


def serving(count: int = 3) -> tuple[HistoryStore, list[ClaimingHost]]:
    """Hosts that have watched for long enough."""
    store = HistoryStore()
    hosts = make_hosts(store, count)
    pass_until(lambda: all(host.claims.is_ready for host in hosts), hosts, limit=TAKEOVER_SECONDS + 10)
    return store, hosts


class ClaimsMachine(RuleBasedStateMachine):
    """Three hosts with clocks of their own, and everything that can go wrong between them and the store."""

    def __init__(self) -> None:
        super().__init__()
        self.store = HistoryStore()
        self.hosts = make_hosts(self.store)
        self.small_jumps = 0
        self.passed = 0.0
        self.may_set_back_at = 0.0

    def let_time_pass(self, seconds: float, working: Collection[ClaimingHost]) -> None:
        for _ in let_time_pass(seconds, self.hosts, working):
            self.passed += 0.5
            self.at_most_one_may_write()
            for host in self.hosts:
                if host.is_alive:
                    want_all([host])

    @initialize(ready=st.booleans())
    def begin(self, ready: bool) -> None:
        self.let_time_pass(TAKEOVER_SECONDS + 4 if ready else 3.0, self.hosts)

    @rule(seconds=st.sampled_from([1.0, 3.0, 10.0, 25.0, 45.0]), stopped=st.sets(HOSTS, max_size=2))
    def work(self, seconds: float, stopped: Collection[int]) -> None:
        self.let_time_pass(seconds, [host for index, host in enumerate(self.hosts) if index not in stopped])

    @rule(
        index=HOSTS,
        acts=st.lists(
            st.sampled_from(["receive", "receive one", "decide", "perform", "lose answer", "lose request"]), max_size=8
        ),
    )
    def do_steps(self, index: int, acts: Collection[str]) -> None:
        host = self.hosts[index]
        for act in acts:
            if not host.is_alive:
                return
            if act.startswith("receive"):
                host.receive(1 if act == "receive one" else None)
            elif act == "decide":
                host.decide()
            elif host.requests:
                host.perform(host.requests[0], answer=act == "perform", apply=act != "lose request")

    @rule(index=HOSTS)
    def apply_late(self, index: int) -> None:
        self.hosts[index].apply_late()

    @rule(index=HOSTS)
    def follow_anew(self, index: int) -> None:
        self.hosts[index].cursor = None

    @precondition(lambda self: self.passed >= self.may_set_back_at)
    @rule(count=st.integers(1, 60), following=st.sets(HOSTS))
    def set_back(self, count: int, following: Collection[int]) -> None:
        """All servers have an earlier state; some hosts do not notice that they were away."""
        self.store.set_back(count)
        self.may_set_back_at = self.passed + 1.1 * TAKEOVER_SECONDS
        for index, host in enumerate(self.hosts):
            if index not in following:
                host.cursor = None

    @rule(index=HOSTS, seconds=st.floats(2.01 * RENEWAL_SECONDS, 1e3))
    def jump(self, index: int, seconds: float) -> None:
        self.hosts[index].clock += seconds

    @precondition(lambda self: self.small_jumps < MAX_SMALL_JUMPS)
    @rule(index=HOSTS, seconds=st.floats(0, 2 * RENEWAL_SECONDS))
    def jump_a_little(self, index: int, seconds: float) -> None:
        self.small_jumps += 1
        self.hosts[index].clock += seconds

    @rule(index=HOSTS, in_order=st.booleans())
    def end(self, index: int, in_order: bool) -> None:
        host = self.hosts[index]
        if in_order and host.is_alive:
            host.end_in_order()
        else:
            host.die()

    @rule(index=HOSTS)
    def start_again(self, index: int) -> None:
        host = self.hosts[index]
        host.die()
        host.start()

    @invariant()
    def at_most_one_may_write(self) -> None:
        for run in RUNS:
            assert len(writers_of(run, self.hosts)) <= 1, run


TestClaims = ClaimsMachine.TestCase
TestClaims.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)


@given(
    count=st.integers(1, 60),
    seconds=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0, 20.0, 31.0]),
    following=st.sets(HOSTS),
    killed=st.sets(HOSTS, max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_a_store_that_is_set_back_lets_no_two_write(
    count: int, seconds: float, following: Collection[int], killed: Collection[int]
) -> None:
    store, hosts = serving()
    want_all(hosts)
    list(let_time_pass(seconds, hosts))
    for index in killed:
        hosts[index].die()
    store.set_back(count)
    for index, host in enumerate(hosts):
        if index not in following:
            host.cursor = None

    def is_over() -> bool:
        for host in hosts:
            if not host.is_alive:
                # As systemd does.
                host.start()
                want_all([host])
        return all_written(hosts) and all(host.may_send for host in hosts)

    pass_until(is_over, hosts, limit=5 * TAKEOVER_SECONDS)


def test_runs_are_shared_out_at_once() -> None:
    _, hosts = serving()
    want_all(hosts)
    assert pass_until(lambda: all_written(hosts), hosts, limit=10) <= 2 * RENEWAL_SECONDS
    shares = Counter(writers_of(run, hosts)[0] for run in RUNS)
    assert len(shares) == 3, shares


def test_a_host_with_fewer_runs_gets_the_next_ones() -> None:
    _, hosts = serving()
    hosts[0].claims.open_runs = hosts[1].claims.open_runs = 10
    list(let_time_pass(5, hosts))
    want_all(hosts)
    pass_until(lambda: all_written(hosts), hosts, limit=10)
    assert {writers_of(run, hosts)[0] for run in RUNS} == {"z"}


def test_a_run_that_the_first_in_the_order_leaves_is_claimed_by_the_next() -> None:
    _, hosts = serving()
    hosts[0].claims.open_runs = hosts[1].claims.open_runs = 10
    list(let_time_pass(5, hosts))
    want_all(hosts[:2])
    pass_until(lambda: all_written(hosts), hosts, limit=10)
    assert {writers_of(run, hosts)[0] for run in RUNS} == {"x", "y"}


def test_the_runs_of_a_host_that_has_died_go_to_the_others() -> None:
    _, hosts = serving()
    want_all(hosts)
    pass_until(lambda: all_written(hosts), hosts, limit=10)
    hosts[0].die()
    others = hosts[1:]
    want_all(others)
    taken = pass_until(lambda: all_written(others), hosts, limit=2 * TAKEOVER_SECONDS)
    assert TAKEOVER_SECONDS - RENEWAL_SECONDS - 1 < taken < 1.05 * TAKEOVER_SECONDS + 4 * RENEWAL_SECONDS
    assert len({writers_of(run, others)[0] for run in RUNS}) == 2


def test_the_runs_of_a_host_that_ends_in_order_go_to_the_others_at_once() -> None:
    _, hosts = serving()
    want_all(hosts)
    pass_until(lambda: all_written(hosts), hosts, limit=10)
    hosts[0].end_in_order()
    others = hosts[1:]
    want_all(others)
    assert pass_until(lambda: all_written(others), hosts, limit=10) <= 2 * RENEWAL_SECONDS


def test_a_host_that_was_stopped_writes_nothing_after_its_lease() -> None:
    _, hosts = serving()
    want_all(hosts)
    pass_until(lambda: all_written(hosts), hosts, limit=10)
    others = hosts[1:]
    want_all(others)
    pass_until(lambda: all_written(others), hosts, limit=2 * TAKEOVER_SECONDS, working=others)
    assert not hosts[0].may_send
    hosts[0].work()
    assert not hosts[0].is_alive


@pytest.mark.parametrize("is_in_order", [True, False])
def test_the_next_start_on_the_same_journals_goes_on_at_once(is_in_order: bool) -> None:
    _, (host,) = serving(1)
    want_all([host])
    pass_until(lambda: all_written([host]), [host], limit=10)
    if is_in_order:
        host.end_in_order()
    else:
        host.die()
    host.start()
    want_all([host], [*RUNS, "new"])
    assert pass_until(lambda: all_written([host], [*RUNS, "new"]), [host], limit=10) <= 2 * RENEWAL_SECONDS
    assert host.claims.inherits


def test_the_next_start_after_the_lease_does_not_go_on_with_the_journals() -> None:
    _, (host,) = serving(1)
    want_all([host])
    pass_until(lambda: all_written([host]), [host], limit=10)
    host.die()
    list(let_time_pass(LEASE_SECONDS, [host]))
    host.start()
    want_all([host])
    assert pass_until(lambda: all_written([host]), [host], limit=60) >= TAKEOVER_SECONDS - 2
    assert host.claims.is_settled
    assert not host.claims.inherits


def test_a_lease_whose_end_is_answered_after_its_deadline_is_not_inherited() -> None:
    _, (host,) = serving(1)
    host.die()
    host.start()
    while not any(isinstance(request, EndLease) for request in host.requests):
        host.receive()
        host.decide()
        for request in list(host.requests):
            if not isinstance(request, EndLease):
                host.perform(request)
    host.clock += LEASE_SECONDS
    (end,) = (request for request in host.requests if isinstance(request, EndLease))
    host.perform(end)
    assert host.claims.is_settled
    assert not host.claims.inherits


def test_a_host_that_stands_by_claims_when_no_other_is_left() -> None:
    store = HistoryStore()
    hosts = [ClaimingHost("x", store, 10.0, 1.0), ClaimingHost("y", store, 10.0, 1.0, standby=True)]
    pass_until(lambda: all(host.claims.is_ready for host in hosts), hosts, limit=60)
    want_all(hosts)
    pass_until(lambda: all_written(hosts), hosts, limit=10)
    assert {writers_of(run, hosts)[0] for run in RUNS} == {"x"}
    hosts[0].end_in_order()
    pass_until(lambda: all_written(hosts), hosts, limit=10)
    hosts[0].start()
    list(let_time_pass(2 * TAKEOVER_SECONDS, hosts))
    assert {writers_of(run, hosts)[0] for run in RUNS} == {"y"}
    want_all(hosts, ["new"])
    pass_until(lambda: hosts[0].may_write("new"), hosts, limit=10)


def test_of_two_that_claim_at_one_moment_one_does() -> None:
    store, hosts = serving(2)
    want_all(hosts, ["a"])
    for host in hosts:
        host.receive()
        for _ in range(2):
            host.clock += 1.5
            host.requests += host.claims.begin_steps(host.clock)
    for host in hosts:
        for request in list(host.requests):
            host.perform(request)
    pass_until(lambda: len(writers_of("a", hosts)) == 1, hosts, limit=10)
    claims = [entry.value for entry in store.entries if entry.key == run_key("a")]
    assert [claim.confirmed for claim in claims if isinstance(claim, Claim)] == [False, True]


def test_runs_of_a_host_are_not_claimed_before_its_keys_are_revoked() -> None:
    _, hosts = serving(2)
    want_all(hosts[:1])
    pass_until(lambda: all_written(hosts), hosts, limit=10)
    other = hosts[1]
    want_all([other])
    key = hosts[0].ownership.lease.key if hosts[0].ownership.lease else ""
    revoked: list[str] = []
    other.claims.note_revoked = revoked.extend  # type: ignore[method-assign]
    hosts[0].end_in_order()
    list(let_time_pass(10, hosts))
    assert key in revoked
    assert not any(other.may_write(run) for run in RUNS)
    del other.claims.note_revoked
    pass_until(lambda: all_written(hosts), hosts, limit=10)


def test_a_host_without_a_fence_does_not_wait_for_keys() -> None:
    _, hosts = serving(2)
    want_all(hosts)
    pass_until(lambda: all_written(hosts), hosts, limit=10)
    hosts[1].claims.give_up_revoking()
    hosts[0].end_in_order()
    pass_until(lambda: all_written(hosts[1:]), hosts, limit=10)
    assert hosts[1].claims.keys_to_revoke == ()


def test_a_claim_waits_for_a_host_that_does_not_renew_and_no_longer() -> None:
    _, hosts = serving()
    hosts[0].die()
    want_all(hosts[1:], ["new"])
    taken = pass_until(lambda: bool(writers_of("new", hosts)), hosts, limit=2 * TAKEOVER_SECONDS)
    assert taken > LEASE_SECONDS - RENEWAL_SECONDS - 1


def test_a_confirmed_claim_that_was_replaced_ends_this_start() -> None:
    store, hosts = serving(1)
    (host,) = hosts
    want_all(hosts, ["a"])
    pass_until(lambda: host.may_write("a"), hosts, limit=10)
    found = store.find(run_key("a"))
    assert found is not None
    store.compare_and_set(run_key("a"), found.number, Claim("another", "b", 7))
    host.receive()
    assert not host.may_write("a")
    host.decide()
    assert not host.is_alive


def test_a_claim_of_which_the_store_knows_nothing_is_watched_and_taken() -> None:
    store, hosts = serving(1)
    store.compare_and_set(run_key("a"), 0, Claim("forgotten", "b", 7, confirmed=True))
    want_all(hosts, ["a"])
    taken = pass_until(lambda: hosts[0].may_write("a"), hosts, limit=2 * TAKEOVER_SECONDS)
    assert taken >= TAKEOVER_SECONDS - 1
    ended = store.find("lease forgotten")
    assert ended is not None
    assert isinstance(ended.value, HostLease)
    assert ended.value.lease.released


def test_a_claim_that_was_removed_is_free() -> None:
    _, hosts = serving(1)
    (host,) = hosts
    host.claims.note_claim("a", 7, None)
    host.claims.want("a")
    (step,) = host.claims.begin_steps(host.clock)
    assert step == PutClaim("a", 7, Claim(host.holder, "x", 1))


def test_a_removed_claim_is_forgotten_after_a_while() -> None:
    _, (host,) = serving(1)
    host.claims.note_claim("a", 7, None)
    host.claims.note_claim("b", 8, Claim("other", "y", 1))
    host.claims.forget_removed()
    assert host.claims.knows_claim("a")
    host.claims.forget_removed()
    assert not host.claims.knows_claim("a")
    assert host.claims.knows_claim("b")


def test_nothing_is_claimed_while_a_host_of_an_earlier_version_serves_all_runs() -> None:
    store, (host,) = serving(1)
    want_all([host])
    record = HostLease(Lease("earlier", "b", 7, 1, "12345678"))
    number = store.compare_and_set("lease service", 0, record)
    assert number is not None
    for _ in let_time_pass(60, [host]):
        # It renews its lease.
        number = store.compare_and_set("lease service", number, record)
        assert number is not None
        assert not any(host.may_write(run) for run in RUNS)
    assert pass_until(lambda: all_written([host]), [host], limit=60) > TAKEOVER_SECONDS - 2
