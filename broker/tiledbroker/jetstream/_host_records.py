"""Leases of hosts and claims of runs as they are kept in the bucket of hosts."""

from __future__ import annotations

import contextlib
import zlib
from typing import Final

import msgspec

from .._errors import ProtocolError
from ..ownership import SERVICE, Claim, ClaimStep, EndLease, HostLease, Lease
from ._names import HOSTS_BUCKET, bucket_subject, escape, unescape

_VERSION: Final = 1
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
    return msgspec.json.encode(_LeaseRecord(_VERSION, lease.host, lease.epoch, record, _checksum(record)))


def decode_host_lease(value: bytes) -> HostLease:
    """Return the lease of a value.

    Raises
    ------
    ProtocolError
        It is damaged, or of a newer version.
    """
    try:
        record = _lease_decoder.decode(value)
    except (msgspec.MsgspecError, ValueError) as error:
        with contextlib.suppress(msgspec.MsgspecError, ValueError):
            return _check_service_lease(_service_lease_decoder.decode(value))
        raise ProtocolError(f"The lease of a host cannot be read: {error}") from error
    if record.version != _VERSION or record.crc32 != _checksum(record.lease):
        raise ProtocolError("The lease of a host is damaged, or of another version.")
    return record.lease


def _check_service_lease(record: _ServiceLeaseRecord) -> HostLease:
    if record.version != _VERSION or record.crc32 != zlib.crc32(msgspec.json.encode((_VERSION, record.lease))):
        raise ValueError("The lease of the service is damaged.")
    return HostLease(record.lease)


def encode_claim(claim: Claim) -> bytes:
    """Return the value of a run's key."""
    return msgspec.json.encode(_ClaimRecord(_VERSION, claim.host, claim.epoch, claim, _checksum(claim)))


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
    try:
        record = _claim_decoder.decode(value)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ProtocolError(f"The claim of a run cannot be read: {error}") from error
    if record.version != _VERSION or record.crc32 != _checksum(record.claim):
        raise ProtocolError("The claim of a run is damaged, or of another version.")
    return record.claim


def _checksum(value: HostLease | Claim) -> int:
    return zlib.crc32(msgspec.json.encode((_VERSION, value)))
