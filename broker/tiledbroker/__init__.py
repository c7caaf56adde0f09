"""Moves Bluesky documents from the acquisition process to the ingest host, durably."""

from ._codec import Encoder, ReplacedByRepr, decode
from ._errors import (
    AddressError,
    BrokerError,
    CodecError,
    JournalError,
    JournalGap,
    JournalInvalid,
    JournalLocked,
    KeyFileError,
    LifecycleError,
    ProtocolError,
    PublisherClosed,
    RoutingError,
    RunNotWritten,
    SpoolDamaged,
)
from ._journal import HistoryEntry, Journal, NodeProgress, journal_filename
from ._places import default_journal_dir, default_spool_dir
from ._publisher import PublisherStatus, ZMQPublisher
from ._record import Record
from ._run_reader import RunReader, SpooledRun, labelled_run_files, open_run, run_files
from ._security import ClientCurve

__all__ = [
    "AddressError",
    "BrokerError",
    "ClientCurve",
    "CodecError",
    "Encoder",
    "HistoryEntry",
    "Journal",
    "JournalError",
    "JournalGap",
    "JournalInvalid",
    "JournalLocked",
    "KeyFileError",
    "LifecycleError",
    "NodeProgress",
    "ProtocolError",
    "PublisherClosed",
    "PublisherStatus",
    "Record",
    "ReplacedByRepr",
    "RoutingError",
    "RunNotWritten",
    "RunReader",
    "SpoolDamaged",
    "SpooledRun",
    "ZMQPublisher",
    "decode",
    "default_journal_dir",
    "default_spool_dir",
    "journal_filename",
    "labelled_run_files",
    "open_run",
    "run_files",
]
