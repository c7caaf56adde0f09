"""Durable transport of Bluesky documents from the acquisition process to the ingest host."""

from typing import TYPE_CHECKING

from ._errors import (
    AddressError,
    BrokerError,
    CodecError,
    JournalError,
    JournalGap,
    JournalInvalid,
    JournalLocked,
    JournalTooNew,
    KeyFileError,
    LifecycleError,
    ProtocolError,
    PublisherClosed,
    RoutingError,
    RunNotWritten,
    SpoolDamaged,
)
from ._paths import default_journal_dir, default_spool_dir
from .log import (
    Encoder,
    HistoryEntry,
    Journal,
    NodeProgress,
    Record,
    ReplacedByRepr,
    RunReader,
    SpooledRun,
    decode,
    journal_filename,
    labelled_run_files,
    open_run,
    run_files,
)
from .protocol import ClientCurve
from .publisher import JetStreamPublisher, PublisherStatus, ZMQPublisher

__all__ = [
    "AddressError",
    "BrokerError",
    "ClientCurve",
    "CodecError",
    "Encoder",
    "HistoryEntry",
    "JetStreamPublisher",
    "Journal",
    "JournalError",
    "JournalGap",
    "JournalInvalid",
    "JournalLocked",
    "JournalTooNew",
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

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        # Looked up on first use, to keep the import light.
        if name == "__version__":
            from ._version import __version__

            return __version__
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
