"""Hosts claim runs in a real log, and tell each other about it."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from log_site import LogSite

from tiledbroker.jetstream import (
    HOSTS_BUCKET,
    ClaimKeeper,
    Connection,
    HostLeaseStore,
    bucket_stream,
    claim_subject,
    lease_subject,
)
from tiledbroker.ownership import DeadlinePage, Lease, LeaseKeeper, LeaseTiming, Ownership, OwnershipState, RunClaims
from tiledwriter.testing import wait_until

# A busy machine must not lose it by being late.
TIMING = LeaseTiming.of(10.0)
RUNS = [f"run-{number}" for number in range(12)]

pytestmark = pytest.mark.timeout(900)


class Start:
    """The lease and the claims of one supervisor start."""

    def __init__(self, site: LogSite, directory: Path, name: str) -> None:
        self.changed: set[str] = set()
        page = DeadlinePage.create(directory / f"page-{name}", timing=TIMING)
        store = HostLeaseStore(site.address, name, lambda lease: self.claims.ask(lambda c: c.compose_record(lease)))
        self.lease = LeaseKeeper(store, Ownership(name, name, timing=TIMING), page, on_change=lambda: None)
        self.claims = ClaimKeeper(
            site.address,
            RunClaims(Lease(name, name, 1, 0), timing=TIMING),
            renewal_seconds=TIMING.renewal_seconds,
            may_act=lambda: self.lease.state is OwnershipState.HOLDING,
            renew_soon=self.lease.renew_soon,
            on_change=self.note_changed,
        )

    def note_changed(self, runs: Collection[str]) -> None:
        self.changed |= set(runs)

    def start(self) -> None:
        self.lease.start()
        self.claims.start()

    def stop(self) -> None:
        self.lease.stop()
        self.claims.close()

    def want(self, runs: Collection[str]) -> None:
        for run in runs:
            self.claims.tell(lambda claims, run=run: claims.want(run))

    def held(self) -> set[str]:
        return {run for run in RUNS if self.claims.ask(lambda claims, run=run: claims.holds(run))}

    def is_ready(self) -> bool:
        return bool(self.claims.ask(lambda claims: claims.is_ready))

    def count_ready(self) -> int:
        """Number of the starts that say to this one that they are ready."""
        return sum(each.ready for each in self.claims.ask(RunClaims.list_hosts))


@contextmanager
def starts_of(site: LogSite, directory: Path, *names: str) -> Iterator[list[Start]]:
    made = [Start(site, directory, name) for name in names]
    for each in made:
        each.start()
    try:
        wait_until(lambda: all(each.is_ready() for each in made), 240, "all have watched for long enough")
        wait_until(lambda: all(each.count_ready() == len(made) for each in made), 120, "all know that")
        yield made
    finally:
        for each in made:
            each.stop()


def subjects_in(site: LogSite) -> dict[str, Any]:
    async def list_subjects(connection: Connection) -> dict[str, Any]:
        found = await connection.call(f"STREAM.INFO.{bucket_stream(HOSTS_BUCKET)}", {"subjects_filter": ">"})
        return dict(found["state"].get("subjects") or {})

    found: dict[str, Any] = site.ask(list_subjects)
    return found


def test_runs_are_shared_and_those_of_a_host_that_falls_silent_go_to_the_other(
    log_site: LogSite, tmp_path: Path
) -> None:
    with starts_of(log_site, tmp_path, "a", "b") as (first, second):
        for each in (first, second):
            each.want(RUNS)
        wait_until(lambda: len(first.held() | second.held()) == len(RUNS), 120, "all runs are claimed")
        assert first.held()
        assert second.held()
        assert not first.held() & second.held()
        wait_until(lambda: second.changed >= set(RUNS), 120, "the second one was told of all")
        first.stop()
        second.want(RUNS)
        wait_until(lambda: second.held() == set(RUNS), 120, "all runs are the second one's")
        (lease,) = (each for each in log_site.hosts() if each.lease.released)
        assert lease.lease.epoch == 2


def test_claims_outlive_connections_and_servers(log_site: LogSite, tmp_path: Path) -> None:
    with starts_of(log_site, tmp_path, "a") as (start,):
        start.want(RUNS[:3])
        wait_until(lambda: len(start.held()) == 3, 120, "the runs are claimed")
        (node,) = log_site.nodes
        node.kill()
        node.start()
        start.want(RUNS)
        wait_until(lambda: len(start.held()) == len(RUNS), 120, "all runs are claimed")
        assert start.lease.state is OwnershipState.HOLDING


def test_a_claim_that_is_removed_leaves_nothing(
    log_site: LogSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tiledbroker.jetstream._claim_keeper._PURGE_SECONDS", 0.5)
    with starts_of(log_site, tmp_path, "a", "b") as (first, second):
        first.want(RUNS[:1])
        wait_until(lambda: bool(first.held()), 120, "the run is claimed")
        wait_until(lambda: second.claims.ask(lambda c: c.is_others(RUNS[0])), 120, "the other one knows")
        first.claims.remove_claim(RUNS[0])
        wait_until(lambda: not second.claims.ask(lambda c: c.is_others(RUNS[0])), 120, "the other one knows")
        wait_until(lambda: claim_subject(RUNS[0]) not in subjects_in(log_site), 120, "the record is gone")
        assert not first.held()
        # It can be claimed again, though nobody was told that the record is gone.
        second.want(RUNS[:1])
        wait_until(lambda: bool(second.held()), 120, "the run is claimed again")
        assert set(subjects_in(log_site)) == {lease_subject("a"), lease_subject("b"), claim_subject(RUNS[0])}


def test_a_lease_that_cannot_be_read_is_watched_and_ended(log_site: LogSite, tmp_path: Path) -> None:
    async def spoil(connection: Connection) -> None:
        await connection.append(lease_subject("other"), b"{", {}, 0)
        await connection.append(claim_subject(RUNS[0]), b"{", {}, 0)

    log_site.ask(spoil)
    with starts_of(log_site, tmp_path, "a") as (start,):
        start.want(RUNS[:1])
        wait_until(lambda: bool(start.held()), 120, "the run is claimed")
        assert sum(each.lease.released for each in log_site.hosts()) == 2


def test_a_claim_that_cannot_be_read_stays_while_somebody_lives_whose_lease_cannot(
    log_site: LogSite, tmp_path: Path
) -> None:
    """A host of a newer version."""
    number = 0

    async def renew(connection: Connection) -> None:
        nonlocal number
        number = await connection.append(lease_subject("newer"), b'{"version": 2}', {}, number)

    async def claim(connection: Connection) -> None:
        await connection.append(claim_subject(RUNS[0]), b'{"version": 2}', {}, 0)

    log_site.ask(renew)
    log_site.ask(claim)
    start = Start(log_site, tmp_path, "a")
    start.start()
    try:
        wait_until(lambda: log_site.ask(renew) or start.is_ready(), 240, "it has watched for long enough")
        deadline = time.monotonic() + 2 * TIMING.lease_seconds
        while time.monotonic() < deadline:
            log_site.ask(renew)
            assert start.claims.ask(lambda claims: claims.is_others(RUNS[0]))
            time.sleep(1.0)
        start.want(RUNS[:1])
        wait_until(lambda: start.held() == set(RUNS[:1]), 120, "it is free when the other one has fallen silent")
    finally:
        start.stop()
