"""The database of a Tiled server's tables, kept from Tiled by somebody else who uses it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Final

from tiledwriter.testing import TiledServer

_TURN: Final = 60.0  # seconds until we get the lock
_CATALOG: Final = "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 'table%'"


@contextmanager
def tables_locked(server: TiledServer) -> Iterator[str]:
    """Let nobody else write to the tables, nor, on PostgreSQL, read them, meanwhile; says what is locked."""
    if server._postgresql is None:
        with _sqlite_locked(server) as locked:
            yield locked
    else:
        with _postgresql_locked(server._postgresql.uri("tiled")) as locked:
            yield locked


@contextmanager
def _sqlite_locked(server: TiledServer) -> Iterator[str]:
    path = server._directory / "tables.db"
    with closing(sqlite3.connect(path, timeout=_TURN, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        try:
            yield path.name
        finally:
            connection.execute("ROLLBACK")


@contextmanager
def _postgresql_locked(uri: str) -> Iterator[str]:
    import adbc_driver_postgresql.dbapi

    with adbc_driver_postgresql.dbapi.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute(_CATALOG)
        tables = [str(name) for (name,) in cursor.fetchall()]
        if tables:
            cursor.execute("LOCK TABLE " + ", ".join(f'"{name}"' for name in tables) + " IN ACCESS EXCLUSIVE MODE")
        try:
            yield f"{len(tables)} tables"
        finally:
            connection.rollback()
