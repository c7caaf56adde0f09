"""Lease and decisions in JetStream: only a compare-and-set decides, and no answer is never taken for an empty store."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator

import msgspec
import pytest
from log_site import LogSite

from tiledbroker._errors import ProtocolError, StoreUnavailable
from tiledbroker.jetstream import (
    HOSTS_BUCKET,
    Connection,
    HostLeaseStore,
    JetStreamDecisionStore,
    bucket_stream,
    claim_subject,
    decode_claim,
    decode_host_lease,
    lease_subject,
)
from tiledbroker.jetstream._host_records import encode_claim, encode_host_lease, parse_host_subject
from tiledbroker.ownership import Claim, HostLease, Lease, RunDecisions, Stored

LEASE = Lease("a", "host", 1, 1)


@pytest.fixture
def store(log_site: LogSite) -> Iterator[HostLeaseStore]:
    made = HostLeaseStore(log_site.address, "a", HostLease)
    yield made
    made.close()


def test_a_lease_is_read_as_it_was_stored(store: HostLeaseStore) -> None:
    assert store.read() == Stored(0, None)
    revision = store.compare_and_set(0, LEASE)
    assert revision is not None
    assert store.read() == Stored(revision, LEASE)


def test_of_two_who_expect_one_revision_one_is_accepted(log_site: LogSite, store: HostLeaseStore) -> None:
    other = HostLeaseStore(log_site.address, "a", HostLease)
    try:
        first = store.compare_and_set(0, LEASE)
        assert other.compare_and_set(0, Lease("b", "other", 1, 1)) is None
        assert first is not None
        second = other.compare_and_set(first, Lease("b", "other", 2, 1))
        assert second is not None
        assert second > first
        assert store.compare_and_set(first, LEASE) is None
    finally:
        other.close()


def test_servers_that_are_away_are_no_free_lease(log_site: LogSite, store: HostLeaseStore) -> None:
    revision = store.compare_and_set(0, LEASE)
    (node,) = log_site.nodes
    node.kill()
    with pytest.raises(StoreUnavailable):
        store.read()
    with pytest.raises(StoreUnavailable, match="can be used"):
        store.compare_and_set(revision or 0, LEASE)
    node.start()
    assert store.read() == Stored(revision or 0, LEASE)


def test_a_bucket_that_is_missing_is_no_free_lease(log_site: LogSite, store: HostLeaseStore) -> None:
    async def delete(connection: Connection) -> None:
        await connection.call(f"STREAM.DELETE.{bucket_stream(HOSTS_BUCKET)}")

    log_site.ask(delete)
    with pytest.raises(StoreUnavailable, match="not found"):
        store.read()


def test_a_damaged_lease_is_no_free_lease(log_site: LogSite, store: HostLeaseStore) -> None:
    async def spoil(connection: Connection) -> None:
        await connection.append(lease_subject("a"), b"{", {}, 0)

    log_site.ask(spoil)
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        store.read()


def test_decisions_are_read_as_they_were_stored_until_the_run_is_complete(log_site: LogSite) -> None:
    store = JetStreamDecisionStore(log_site.address, "run.of / many *")
    assert store.load() is None
    store.store(RunDecisions(max_array_size=7))
    store.store(RunDecisions(max_array_size=0, late_audit=True))
    successor = JetStreamDecisionStore(log_site.address, "run.of / many *")
    assert successor.load() == RunDecisions(max_array_size=0, late_audit=True)
    successor.store(RunDecisions(outcome="written"))
    assert JetStreamDecisionStore(log_site.address, "run.of / many *").load() is None


def test_what_another_process_has_decided_since_is_not_replaced(log_site: LogSite) -> None:
    first = JetStreamDecisionStore(log_site.address, "run")
    assert first.load() is None
    second = JetStreamDecisionStore(log_site.address, "run")
    assert second.load() is None
    second.store(RunDecisions(max_array_size=2))
    with pytest.raises(StoreUnavailable, match="another process"):
        first.store(RunDecisions(max_array_size=1))
    assert JetStreamDecisionStore(log_site.address, "run").load() == RunDecisions(max_array_size=2)


def test_records_of_hosts_and_runs_are_read_as_they_were_stored() -> None:
    lease, claim = HostLease(LEASE, 7, standby=True, ready=True), Claim("a", "host", 3, confirmed=True)
    assert decode_host_lease(encode_host_lease(lease)) == lease
    assert decode_claim(encode_claim(claim)) == claim
    assert parse_host_subject(lease_subject("start.of / host *")) == (HostLease, "start.of / host *")
    assert parse_host_subject(claim_subject("run.of / many *")) == (Claim, "run.of / many *")
    assert parse_host_subject("$KV.TW_HOSTS.other") is None


def test_host_and_epoch_of_a_record_are_plain_fields() -> None:
    for value in (encode_host_lease(HostLease(LEASE)), encode_claim(Claim("a", "host", 1))):
        found = json.loads(value)
        assert (found["host"], found["epoch"]) == ("host", 1)


@pytest.mark.parametrize(
    "value", [b"", b"{", b'{"version": 2}', encode_claim(Claim("a", "b", 1)).replace(b'"b"', b'"c"')]
)
def test_a_damaged_record_is_none(value: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_claim(value)
    with pytest.raises(ProtocolError):
        decode_host_lease(value)


def test_the_lease_of_an_earlier_version_is_that_of_the_service() -> None:
    checksum = zlib.crc32(msgspec.json.encode((1, LEASE)))
    value = msgspec.json.encode({"version": 1, "lease": LEASE, "crc32": checksum})
    assert decode_host_lease(value) == HostLease(LEASE)
    assert parse_host_subject("$KV.TW_HOSTS.service") == (HostLease, "service")
    with pytest.raises(ProtocolError):
        decode_host_lease(msgspec.json.encode({"version": 1, "lease": LEASE, "crc32": checksum + 1}))
