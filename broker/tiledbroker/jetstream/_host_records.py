"""Leases of hosts and claims of runs as they are kept in the bucket of hosts."""

from __future__ import annotations

import contextlib
from typing import Final

import msgspec

from .._errors import ProtocolError
from ..ownership import SERVICE, Claim, ClaimStep, EndLease, HostLease, Lease
from ._names import HOSTS_BUCKET, bucket_subject, escape, unescape
from ._record import RECORD_VERSION, compute_checksum, decode_record

_LEASE: Final = "lease"
_RUN: Final = "run"
_SERVICE: Final = bucket_subject(HOSTS_BUCKET, "service")

LEASE_SUBJECTS: Final = bucket_subject(HOSTS_BUCKET, f"{_LEASE}.>")
"""The subjects of all leases."""


class _LeaseRecord(msgspec.Struct, frozen=True):
    """The value of a host's key, as JSON. `host` and `epoch` are those of the lease, for people and their tools."""

    version: int
    host: str
    epoch: int
    lease: HostLease
    crc32: int


class _ServiceLeaseRecord(msgspec.Struct, frozen=True):
    """The lease of a service of which only one host serves at a time, as an earlier version has stored it."""

    version: int
    lease: Lease
    crc32: int


class _ClaimRecord(msgspec.Struct, frozen=True):
    """The value of a run's key, as JSON. `host` and `epoch` are those of the claim, for people and their tools."""

    version: int
    host: str
    epoch: int
    claim: Claim
    crc32: int


# Made here: msgspec must not look at a type in two threads at once.
_lease_decoder: Final = msgspec.json.Decoder(_LeaseRecord)
_service_lease_decoder: Final = msgspec.json.Decoder(_ServiceLeaseRecord)
_claim_decoder: Final = msgspec.json.Decoder(_ClaimRecord)


def lease_subject(holder: str) -> str:
    """Return the subject of a start's lease."""
    if holder == SERVICE:
        return _SERVICE
    return bucket_subject(HOSTS_BUCKET, f"{_LEASE}.{escape(holder)}")


def claim_subject(run_uid: str) -> str:
    """Return the subject of a run's claim."""
    return bucket_subject(HOSTS_BUCKET, f"{_RUN}.{escape(run_uid)}")


def parse_host_subject(subject: str) -> tuple[type[HostLease | Claim], str] | None:
    """Return the kind of record that a subject of the bucket has, and its holder or run; None if it has another."""
    if subject == _SERVICE:
        return HostLease, SERVICE
    prefix = bucket_subject(HOSTS_BUCKET, "")
    kind, _, token = subject.removeprefix(prefix).partition(".")
    found = {_LEASE: HostLease, _RUN: Claim}.get(kind)
    try:
        return None if found is None else (found, unescape(token))
    except ValueError:
        return None


def encode_host_lease(record: HostLease) -> bytes:
    """Return the value of a start's key."""
    lease = record.lease
    return msgspec.json.encode(_LeaseRecord(RECORD_VERSION, lease.host, lease.epoch, record, compute_checksum(record)))


def decode_host_lease(value: bytes) -> HostLease:
    """Return the lease of a value.

    Raises
    ------
    ProtocolError
        It is damaged, or of a newer version.
    """
    try:
        return decode_record(_lease_decoder, value, lambda record: record.lease, "The lease of a host")
    except ProtocolError:
        with contextlib.suppress(ProtocolError):
            return HostLease(
                decode_record(_service_lease_decoder, value, lambda record: record.lease, "The lease of a service")
            )
        raise


def encode_claim(claim: Claim) -> bytes:
    """Return the value of a run's key."""
    return msgspec.json.encode(_ClaimRecord(RECORD_VERSION, claim.host, claim.epoch, claim, compute_checksum(claim)))


def encode_step(step: ClaimStep) -> tuple[str, bytes]:
    """Return the subject and the value that a step stores."""
    if isinstance(step, EndLease):
        return lease_subject(step.holder), encode_host_lease(step.record)
    return claim_subject(step.run), encode_claim(step.claim)


def decode_claim(value: bytes) -> Claim:
    """Return the claim of a value.

    Raises
    ------
    ProtocolError
        It is damaged, or of a newer version.
    """
    return decode_record(_claim_decoder, value, lambda record: record.claim, "The claim of a run")
