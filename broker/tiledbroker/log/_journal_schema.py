"""SQLite schema of a journal, and creation of empty journal files."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Final

APPLICATION_ID: Final = int.from_bytes(b"TWJL", "big")
SCHEMA_VERSION: Final = 1

PAGE_SIZE_BYTES: Final = 16 * 2**10
"""Bytes. Documents of 2 kB or more waste space in SQLite's default pages of 4 kB, and take twice the time."""

SCHEMA: Final = f"""
CREATE TABLE documents(
    idx INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    received REAL NOT NULL,
    crc INTEGER NOT NULL,
    body BLOB NOT NULL
);
CREATE TRIGGER documents_are_never_changed BEFORE UPDATE ON documents
BEGIN SELECT raise(ABORT, 'documents of a journal are append-only'); END;
CREATE TRIGGER documents_are_never_deleted BEFORE DELETE ON documents
BEGIN SELECT raise(ABORT, 'documents of a journal are append-only'); END;
-- Also what an INSERT OR REPLACE would do to a document that is there.
CREATE TRIGGER documents_are_only_added_at_the_end BEFORE INSERT ON documents
WHEN new.idx IS NOT (SELECT coalesce(max(idx), -1) + 1 FROM documents)
BEGIN SELECT raise(ABORT, 'documents of a journal are append-only'); END;
CREATE TABLE state(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE progress(
    node TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,
    intent INTEGER
) WITHOUT ROWID;
CREATE TABLE history(
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    event TEXT NOT NULL,
    detail TEXT NOT NULL
);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""

# Only in journals of runs with a normalizer of the facility's own, so that all others stay readable to version 0.1.
NORMALIZED_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS normalized(idx INTEGER PRIMARY KEY, crc INTEGER NOT NULL, body BLOB NOT NULL)
"""


def create_file(path: Path) -> None:
    """Create an empty journal durably and atomically: other processes see the complete file or none.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    draft = draft_path(path)
    contents = _empty_file(path.parent)
    try:
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as file:
            file.write(contents)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def draft_path(path: Path) -> Path:
    """Return where this process writes a journal before it takes its path."""
    return path.with_name(f".{path.name}.{os.getpid()}.draft")


def sync_directory(path: Path) -> None:
    """Sync a directory, so that created and renamed files survive a power cut."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@lru_cache(maxsize=1)
def schema_objects() -> frozenset[tuple[str, str, str]]:
    """Return the tables and triggers that each journal has, as `objects_of` does."""
    return _objects_made_by(SCHEMA)


@lru_cache(maxsize=1)
def optional_objects() -> frozenset[tuple[str, str, str]]:
    """Return the tables that a journal may have in addition, as `objects_of` does."""
    return _objects_made_by(NORMALIZED_SCHEMA)


def _objects_made_by(script: str) -> frozenset[tuple[str, str, str]]:
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(script)
        return objects_of(connection)
    finally:
        connection.close()


def objects_of(connection: sqlite3.Connection) -> frozenset[tuple[str, str, str]]:
    """Return the type, name and SQL of each object in a database, except those that SQLite creates itself."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return frozenset(rows.fetchall())


@lru_cache(maxsize=1)
def _empty_file(directory: Path) -> bytes:
    """Return the bytes of an empty journal, because a copy is faster than creating the tables for every run."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".draft-") as place:
        file = Path(place) / "empty"
        connection = sqlite3.connect(file, isolation_level=None)
        try:
            connection.executescript(f"PRAGMA page_size = {PAGE_SIZE_BYTES}; PRAGMA journal_mode = WAL;" + SCHEMA)
            # Closing would leave a part of the file on a full disk, without an error.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
        return file.read_bytes()
