"""Leases and decisions in buckets of JetStream, behind the interfaces of `tiledbroker.ownership`.

Each key is replaced by compare-and-set on its revision, which is its message's number in the stream. Reads are those of
the leader of the replicas, which may have been deposed: only a compare-and-set decides.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import msgspec

from .._errors import AppendRefused, KeyFileError, LogUnavailable, ProtocolError, StoreUnavailable
from .._outcomes import COMPLETE
from ..ownership import HostLease, Lease, RunDecisions, Stored
from ._address import LogAddress
from ._connection import CONNECT_SECONDS, REQUEST_SECONDS, Connection, LoopThread, StoredMessage
from ._host_records import decode_host_lease, encode_host_lease, lease_subject
from ._names import HOSTS_BUCKET, RUNS_BUCKET, bucket_subject, decisions_key
from ._record import RECORD_VERSION, compute_checksum, decode_record

T = TypeVar("T")


class _DecisionsRecord(msgspec.Struct, frozen=True):
    version: int
    decisions: RunDecisions
    crc32: int


# Made here: msgspec must not look at a type in two threads at once.
_decisions_decoder: Final = msgspec.json.Decoder(_DecisionsRecord)


class KeyStore:
    """One key of a bucket, for a thread that may wait. It connects when it is first used, and again after an error.

    Parameters
    ----------
    address
        The servers.
    bucket, key
        The bucket and its key.
    """

    def __init__(self, address: LogAddress, bucket: str, key: str) -> None:
        self._address = address.with_inbox("_INBOX.supervisor")
        self._bucket = bucket
        self._key = key
        self._loop: LoopThread | None = None
        self._connection: Connection | None = None

    def __str__(self) -> str:
        return f"{self._address} {self._bucket}"

    def read(self) -> StoredMessage | None:
        """Return the key's value; None if it has none.

        Raises
        ------
        StoreUnavailable
            There is no answer.
        """
        return self._ask(lambda connection: connection.read_key(self._bucket, self._key))

    def replace(self, value: bytes, expected_revision: int) -> int | None:
        """Replace the value of a revision; return the new revision, or None if it is not the newest.

        Raises
        ------
        StoreUnavailable
            There is no answer. The value may be stored nevertheless, also later.
        """
        subject = bucket_subject(self._bucket, self._key)
        try:
            return self._ask(lambda connection: connection.append(subject, value, {}, expected_revision))
        except AppendRefused:
            return None

    def _ask(self, question: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        if self._loop is None:
            self._loop = LoopThread("tiledbroker-jetstream-store")
        try:
            return self._loop.run(self._answer(question), REQUEST_SECONDS + CONNECT_SECONDS * 5)
        except (LogUnavailable, KeyFileError) as error:
            raise StoreUnavailable(self, str(error)) from error

    async def _answer(self, question: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        connection = self._connection
        if connection is None or connection.lost.is_set():
            connection = self._connection = await Connection.open(self._address, name="tiledwriter store")
        try:
            return await question(connection)
        except LogUnavailable:
            # Another server may answer.
            self._connection = None
            await connection.close()
            raise

    def close(self) -> None:
        """End the connection and its thread."""
        if self._loop is None:
            return
        loop, self._loop = self._loop, None
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(LogUnavailable):
                loop.run(connection.close(), REQUEST_SECONDS)
        loop.close()


class HostLeaseStore:
    """Store of the lease of one supervisor start, under a key that no other start writes but to end it.

    Parameters
    ----------
    address
        The servers.
    holder
        The start.
    compose
        Returns what is stored for a lease.
    """

    def __init__(self, address: LogAddress, holder: str, compose: Callable[[Lease], HostLease]) -> None:
        self._store = KeyStore(
            address, HOSTS_BUCKET, lease_subject(holder).removeprefix(bucket_subject(HOSTS_BUCKET, ""))
        )
        self._compose = compose

    def __str__(self) -> str:
        return str(self._store)

    def read(self) -> Stored:
        """Return the newest lease; see `LeaseStore.read`."""
        found = self._store.read()
        if found is None:
            return Stored(0, None)
        try:
            return Stored(found.seq, decode_host_lease(found.body).lease)
        except ProtocolError as error:
            raise StoreUnavailable(self, str(error)) from error

    def compare_and_set(self, expected_revision: int, lease: Lease) -> int | None:
        """Store a lease if the newest revision is the expected one; see `LeaseStore.compare_and_set`."""
        return self._store.replace(encode_host_lease(self._compose(lease)), expected_revision)

    def close(self) -> None:
        """End the connection and its thread."""
        self._store.close()


class JetStreamDecisionStore:
    """Decision store in the bucket of runs; see `DecisionStore`. It is used rarely, and connects each time.

    Parameters
    ----------
    address
        The servers.
    run_uid
        Uid of the run.
    """

    def __init__(self, address: LogAddress, run_uid: str) -> None:
        self._store = KeyStore(address, RUNS_BUCKET, decisions_key(run_uid))
        self._run_uid = run_uid
        # Of the record as this object knows it; 0 if there is none.
        self._revision = 0

    def load(self) -> RunDecisions | None:
        """Return the decisions; see `DecisionStore.load`."""
        try:
            found = self._store.read()
        finally:
            self._store.close()
        decisions = None if found is None or not found.body else self._decode(found.body)
        self._revision = 0 if found is None else found.seq
        return decisions

    def store(self, decisions: RunDecisions) -> None:
        """Replace the record, by an empty one if the run is complete; see `DecisionStore.store`."""
        is_complete = decisions.outcome in COMPLETE
        record = _DecisionsRecord(RECORD_VERSION, decisions, compute_checksum(decisions))
        try:
            self._revision = self._replace(b"" if is_complete else msgspec.json.encode(record))
        finally:
            self._store.close()

    def _replace(self, value: bytes) -> int:
        revision = self._store.replace(value, self._revision)
        if revision is not None:
            return revision
        # An earlier attempt may have been stored without an answer.
        found = self._store.read()
        if found is None or found.body != value or found.seq <= self._revision:
            raise StoreUnavailable(
                self._store, f"another process has changed the decisions about run {self._run_uid} meanwhile"
            )
        return found.seq

    def _decode(self, value: bytes) -> RunDecisions:
        what = f"the record of decisions about run {self._run_uid}"
        try:
            return decode_record(_decisions_decoder, value, lambda record: record.decisions, what)
        except ProtocolError as error:
            raise StoreUnavailable(self._store, str(error).removesuffix(".")) from error
