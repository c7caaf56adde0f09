"""The connection to a journal's file: how it is opened, what is checked then, and which errors mean damage."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

from .._errors import JournalInvalid, JournalTooNew
from ._journal_files import LOG_SUFFIX, file_size
from ._journal_schema import APPLICATION_ID, SCHEMA_VERSION, objects_of, optional_objects, schema_objects

BUSY_TIMEOUT_SECONDS: Final = 10.0

_MIN_ROW_BYTES: Final = 8

# Parts of SQLite's error messages. "Could not decode" is from the sqlite3 module, about text that is not UTF-8.
_SIGNS_OF_DAMAGE: Final = (
    *("not a database", "malformed", "unsupported file format", "no such table", "no such column"),
    "Could not decode",
)


def connect_to_write(path: Path) -> sqlite3.Connection:
    """Open a journal's file for writing."""
    return _connect_as(path, "mode=rw")


def connect_to_inspect(path: Path) -> sqlite3.Connection:
    """Open a journal's file without ever modifying it."""
    log_file = path.with_name(path.name + LOG_SUFFIX)
    return _connect_as(path, "mode=ro" if log_file.exists() else "mode=ro&immutable=1")


def connect_to_read(path: Path) -> sqlite3.Connection:
    """Open a journal's file for reading, and recover it if its writer has died.

    It is open for writing if possible: the last connection to close the file has to remove the write-ahead log.
    """
    accesses = ["mode=rw", "mode=ro"]
    if not file_size(path.with_name(path.name + LOG_SUFFIX)):
        # With nothing in the write-ahead log, this also works on a disk that has no space for SQLite's -shm file. A
        # writer that found no space leaves an empty one.
        accesses.append("mode=ro&immutable=1")
    for access in accesses:
        try:
            connection = _connect_as(path, access)
        except sqlite3.OperationalError:
            if access == accesses[-1]:
                raise
            continue
        break
    connection.execute("PRAGMA query_only = ON")
    return connection


def _connect_as(path: Path, access: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?{access}"
    connection = sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_SECONDS
    )
    try:
        # Access the file now, because SQLite opens it only at the first statement.
        connection.execute("PRAGMA application_id").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def check_format(path: Path, connection: sqlite3.Connection) -> None:
    """Check that a database is a journal that this version can read.

    Raises
    ------
    JournalInvalid
        It is no journal, or, as `JournalTooNew`, one of a newer version.
    sqlite3.Error
        It cannot be read.
    """
    connection.execute("PRAGMA trusted_schema = OFF")
    if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise JournalInvalid(path, "this file is not a tiledwriter journal.")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise JournalTooNew(
            path, f"it has format {version}; this version reads up to {SCHEMA_VERSION}. Upgrade tiledwriter."
        )
    # Reject foreign views and triggers, which could do anything or run for ever.
    wanted, found = schema_objects(), objects_of(connection)
    if not found <= wanted | optional_objects() or any(kind == "table" for kind, _, _ in wanted - found):
        raise JournalInvalid(path, "its tables are not those of a journal.")


def check_length(path: Path, connection: sqlite3.Connection, length: int) -> None:
    """Check that a journal's file can hold so many documents, as it says: readers would search without end.

    Raises
    ------
    JournalInvalid
        It is too small.
    """
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    if length > pages * page_size // _MIN_ROW_BYTES:
        raise JournalInvalid(path, f"it is damaged: its last document has the impossible index {length - 1}.")


def translate_error(error: sqlite3.Error, path: Path, *, is_locked: bool) -> sqlite3.Error | JournalInvalid:
    """Return `JournalInvalid` if an error means a damaged file, else the error itself, such as a full disk.

    Parameters
    ----------
    error
        The error.
    path
        The journal's file.
    is_locked
        This process has locked the file for writing.
    """
    text = str(error)
    if any(sign in text for sign in _SIGNS_OF_DAMAGE):
        return JournalInvalid(path, f"it is damaged or not a journal ({text}).")
    may_write = is_locked and all(os.access(each, os.W_OK) for each in (path, path.parent))
    if "readonly" in text and may_write:
        return JournalInvalid(path, "it is damaged: its header marks it as read-only.")
    return error
