"""What a journal's file is made of, and an empty one."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Final

APPLICATION_ID: Final = 0x54_57_4A_4C  # "TWJL"
SCHEMA_VERSION: Final = 1

PAGE_SIZE: Final = 16 * 2**10
"""Bytes. Documents of 2 kB and more fill SQLite's usual pages of 4 kB badly, and take twice the time in them."""

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


def create_file(path: Path) -> None:
    """Make a journal without documents, durably. It appears at once: nobody ever sees half of one."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
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


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@lru_cache(maxsize=1)
def schema_objects() -> frozenset[tuple[str, str, str]]:
    """The tables and triggers of a journal."""
    connection = sqlite3.connect(":memory:")
    try:
        connection.executescript(SCHEMA)
        return objects_of(connection)
    finally:
        connection.close()


def objects_of(connection: sqlite3.Connection) -> frozenset[tuple[str, str, str]]:
    """Kind, name and definition of what a database has of its own."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return frozenset(rows.fetchall())


@lru_cache(maxsize=1)
def _empty_file(directory: Path) -> bytes:
    """The contents of such a file: copying them is faster than having SQLite make them for every run."""
    with tempfile.TemporaryDirectory(dir=directory, prefix=".draft-") as place:
        file = Path(place) / "empty"
        connection = sqlite3.connect(file, isolation_level=None)
        try:
            connection.executescript(f"PRAGMA page_size = {PAGE_SIZE}; PRAGMA journal_mode = WAL;" + SCHEMA)
        finally:
            connection.close()
        return file.read_bytes()
