"""The log of a run: records and their codec, journals, spool segments, and the routing of documents to runs."""

from __future__ import annotations

from ._codec import Encoder, ReplacedByRepr, decode
from ._identity import SessionIdentity, is_session_of, new_session
from ._journal import HistoryEntry, Journal, NodeProgress
from ._journal_connection import check_format
from ._journal_files import (
    FINISHED_SUBDIRECTORY,
    LOG_SUFFIX,
    SUFFIX,
    SUPERSEDED_SUBDIRECTORY,
    file_size,
    find_run_file,
    follow_run_file,
    is_orphaned_log,
    is_run_file,
    journal_filename,
    journal_files,
    journal_lock_path,
)
from ._journal_schema import APPLICATION_ID, sync_directory
from ._lock import FileLock
from ._outage_state import OutageState, read_outage, record_outage
from ._recent_assets import RECENT_ASSETS
from ._record import Record
from ._released_spool import ReleasedSpoolFile, SpoolRunV01
from ._routing import RunRouting
from ._run_log import RunLog
from ._run_reader import RunReader, SpooledRun, labelled_run_files, open_run, run_files, unrouted_files
from ._segment import Segment, SegmentHeader, read_header
from ._spool_files import (
    SegmentFile,
    adopter_lock_path,
    files_in,
    find_segment,
    is_named_after_run,
    lock_path,
    segment_path,
    session_of_lock,
    session_of_spare,
    sort_segments,
    spare_path,
)
from ._start_label import read_start_label

__all__ = [
    "APPLICATION_ID",
    "FINISHED_SUBDIRECTORY",
    "LOG_SUFFIX",
    "RECENT_ASSETS",
    "SUFFIX",
    "SUPERSEDED_SUBDIRECTORY",
    "Encoder",
    "FileLock",
    "HistoryEntry",
    "Journal",
    "NodeProgress",
    "OutageState",
    "Record",
    "ReleasedSpoolFile",
    "ReplacedByRepr",
    "RunLog",
    "RunReader",
    "RunRouting",
    "Segment",
    "SegmentFile",
    "SegmentHeader",
    "SessionIdentity",
    "SpoolRunV01",
    "SpooledRun",
    "adopter_lock_path",
    "check_format",
    "decode",
    "file_size",
    "files_in",
    "find_run_file",
    "find_segment",
    "follow_run_file",
    "is_named_after_run",
    "is_orphaned_log",
    "is_run_file",
    "is_session_of",
    "journal_filename",
    "journal_files",
    "journal_lock_path",
    "labelled_run_files",
    "lock_path",
    "new_session",
    "open_run",
    "read_header",
    "read_outage",
    "read_start_label",
    "record_outage",
    "run_files",
    "segment_path",
    "session_of_lock",
    "session_of_spare",
    "sort_segments",
    "spare_path",
    "sync_directory",
    "unrouted_files",
]
