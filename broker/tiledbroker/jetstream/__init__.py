"""A site's log in NATS JetStream: names, messages, receipts and connections, for both ends and for the leases."""

from __future__ import annotations

from ._address import LogAddress
from ._claim_keeper import ClaimKeeper, read_hosts
from ._connection import Connection, LoopThread, StoredMessage
from ._follower import Follower, follow
from ._host_records import claim_subject, decode_claim, decode_host_lease, lease_subject
from ._log_message import (
    HEADER_ROOM_BYTES,
    EntryReader,
    LogEntry,
    LogMessage,
    Tail,
    compose_messages,
    parse_tail,
    slice_documents,
)
from ._names import (
    DOCUMENTS,
    HOSTS_BUCKET,
    RUNS_BUCKET,
    STREAM,
    bucket_stream,
    bucket_subject,
    check_beamline,
    check_subject_beamline,
    decisions_key,
    documents_subject,
    parse_documents_subject,
    receipt_key,
)
from ._probe import LogSpace, find_account_space, parse_space, try_requests
from ._reader import LoggedNames, LoggedRun, LogMeasure, LogReader
from ._receipt import Receipt, decode_receipt, encode_receipt
from ._setup import (
    LogLayout,
    beamline_permissions,
    create_streams,
    find_configuration,
    find_problems,
    read_stream_info,
    supervisor_permissions,
)
from ._stores import HostLeaseStore, JetStreamDecisionStore

__all__ = [
    "DOCUMENTS",
    "HEADER_ROOM_BYTES",
    "HOSTS_BUCKET",
    "RUNS_BUCKET",
    "STREAM",
    "ClaimKeeper",
    "Connection",
    "EntryReader",
    "Follower",
    "HostLeaseStore",
    "JetStreamDecisionStore",
    "LogAddress",
    "LogEntry",
    "LogLayout",
    "LogMeasure",
    "LogMessage",
    "LogReader",
    "LogSpace",
    "LoggedNames",
    "LoggedRun",
    "LoopThread",
    "Receipt",
    "StoredMessage",
    "Tail",
    "beamline_permissions",
    "bucket_stream",
    "bucket_subject",
    "check_beamline",
    "check_subject_beamline",
    "claim_subject",
    "compose_messages",
    "create_streams",
    "decisions_key",
    "decode_claim",
    "decode_host_lease",
    "decode_receipt",
    "documents_subject",
    "encode_receipt",
    "find_account_space",
    "find_configuration",
    "find_problems",
    "follow",
    "lease_subject",
    "parse_documents_subject",
    "parse_space",
    "parse_tail",
    "read_hosts",
    "read_stream_info",
    "receipt_key",
    "slice_documents",
    "supervisor_permissions",
    "try_requests",
]
