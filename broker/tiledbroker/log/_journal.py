"""The log of one run on the ingest host: an append-only SQLite file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import sqlite3
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from .._errors import DocumentsMissing, JournalGap, JournalInvalid
from .._fair_lock import FairLock
from ._journal_schema import APPLICATION_ID, SCHEMA_VERSION, create_file, objects_of, schema_objects
from ._lock import FileLock
from ._record import Record, take

log = logging.getLogger(__name__)

SUFFIX: Final = ".sqlite"
FINISHED: Final = "finished"
"""Folder in a journal directory, for the files of runs that need no process any more."""

# In SQLite's messages. "Could not decode" is the sqlite3 module's about text that is no UTF-8.
_SIGNS_OF_DAMAGE: Final = (
    *("not a database", "malformed", "unsupported file format", "no such table", "no such column"),
    "Could not decode",
)

_INSERT: Final = "INSERT INTO documents VALUES(?, ?, ?, ?, ?)"
# Python gives its lock away for each statement, and waits 5 ms for it beside a busy thread; so many rows per statement.
# SQLite takes 999 values in one at least, and 32,766 since 3.32.
_ROWS_AT_ONCE: Final = (1024, 256, 64, 16, 4, 1) if sqlite3.sqlite_version_info >= (3, 32) else (64, 16, 4, 1)
_INSERT_MANY: Final = {rows: _INSERT + ", (?, ?, ?, ?, ?)" * (rows - 1) for rows in _ROWS_AT_ONCE}
_new_record: Final = partial(tuple.__new__, Record)  # a named tuple's own goes through Python
_RECORD_TYPES: Final = (int, str, float, int, bytes)
_INTENT_TYPES: Final = (int, type(None))
_ENTRY_TYPES: Final = (float, str, dict)
_SMALLEST_ROW: Final = 8  # bytes

BUSY_TIMEOUT_SECONDS: Final = 10.0
_MOVES_FOLLOWED: Final = 3
_WRITING: Final = frozenset({"create", "write"})

_PLAIN_UID: Final = re.compile(r"(?!sha256-)[0-9a-z][0-9a-z._-]{0,99}")

Mode: TypeAlias = Literal["create", "write", "read", "inspect"]


class NodeProgress(NamedTuple):
    """How far one Tiled node is: rows confirmed by the server, and the end of the append that is not resolved yet."""

    rows: int
    intent: int | None


class HistoryEntry(NamedTuple):
    """Something that happened to a run: Unix time, what, details."""

    time: float
    event: str
    detail: dict[str, Any]


def journal_filename(run_uid: str) -> str:
    """File name for a run: its uid where that is a plain lower-case name, else a digest of it. Never a path."""
    if _PLAIN_UID.fullmatch(run_uid):
        return run_uid + SUFFIX
    return "sha256-" + hashlib.sha256(run_uid.encode("utf-8", "surrogatepass")).hexdigest() + SUFFIX


def journal_files(directory: Path) -> list[Path]:
    """The files of journals in a directory and in its folder of finished runs, by name.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    found = set(unfinished_run_files(directory))
    with suppress(FileNotFoundError):
        found.update(unfinished_run_files(directory / FINISHED))
    # A supervisor moves files while we look: one can be in both lists, or have come back in between.
    found.update(unfinished_run_files(directory))
    names = Counter(path.name for path in found)
    return sorted((path for path in found if names[path.name] == 1 or path.exists()), key=lambda path: path.name)


def unfinished_run_files(directory: Path) -> list[Path]:
    """The run files in a spool or journal directory itself, by name: of runs that are open, failed or to be audited.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries]
    return [directory / name for name in sorted(names) if is_run_file(name)]


def is_run_file(name: str) -> bool:
    """Whether a file of this name holds a run."""
    return name.endswith(SUFFIX) and not name.startswith(("_", "."))


def find_run_file(directory: Path, run_uid: str) -> Path:
    """The file of a run in a journal directory: among the finished ones if it is there, else where it belongs."""
    return follow_run_file(directory / journal_filename(run_uid))


def follow_run_file(path: Path) -> Path:
    """Where a run's file is by now: a supervisor moves it to the folder of finished runs, and back."""
    if path.exists():
        return path
    above = path.parent
    moved = above.parent / path.name if above.name == FINISHED else above / FINISHED / path.name
    return moved if moved.exists() else path


class Journal:
    """The documents of one run in order, and how far they got. Document *i* of the run has index *i*.

    One object may be used by several threads; one file is written by one process at a time.

    Parameters
    ----------
    path
        The file. Its directory must exist. One that has been moved to the folder of finished runs, or back, is found.
    mode
        "create" makes the file or opens it, "write" opens an existing one, both lock it against other processes;
        "read" opens it beside a writer, and tidies up after a dead one; "inspect" leaves the file as it is, whatever
        it is.
    run_uid
        Stored in a new file, checked against an existing one.
    lock_timeout
        Seconds to wait for another process to release the file.

    Raises
    ------
    JournalLocked
        Another process writes this file.
    JournalInvalid
        The file is no journal, belongs to another run, or comes from a newer version.
    """

    def __init__(
        self,
        path: str | Path,
        mode: Mode = "read",
        *,
        run_uid: str | None = None,
        lock_timeout: float = 0.0,
    ) -> None:
        self.path = Path(path) if mode == "create" else follow_run_file(Path(path))
        self._mutex = FairLock()
        self._lock: FileLock | None = None
        if mode != "create" and not self.path.is_file():
            raise JournalInvalid(self.path, "it is no file." if self.path.exists() else "there is no such file.")
        if mode in _WRITING:
            self._lock = FileLock(_lock_path(self.path))
            self._lock.acquire(lock_timeout)
        try:
            self._open_where_it_is(mode, run_uid)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    def _open_where_it_is(self, mode: Mode, run_uid: str | None) -> None:
        """Open the file, also if a supervisor moves it this instant; the one that has it locked is not moved."""
        for _ in range(_MOVES_FOLLOWED):
            try:
                self._open(mode, run_uid)
            except sqlite3.OperationalError:
                moved = follow_run_file(self.path)
                if mode in _WRITING or moved == self.path:
                    raise
                self.path = moved
            else:
                return
        self._open(mode, run_uid)

    def _open(self, mode: Mode, run_uid: str | None) -> None:
        if mode == "create" and not self.path.exists():
            create_file(self.path)
        with self._access():
            self._connection = self._connect(mode)
            try:
                self._check_format()
                if mode in _WRITING:
                    self._connection.execute("PRAGMA journal_mode = WAL")
                    self._connection.execute("PRAGMA synchronous = FULL")
                if mode == "create" and self.get("run_uid") is None:
                    self.set("run_uid", run_uid)
                self.run_uid = self._stored_uid(run_uid)
                self._length = self._count()
                self._check_length()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the last one to do so leaves a single file without a write-ahead log."""
        with self._mutex:
            self._connection.close()
            if self._lock is not None:
                self._lock.release()

    def detach(self) -> None:
        """Give the file's descriptors back, but for the lock: the file can only be removed or closed after this."""
        with self._mutex:
            self._connection.close()

    def remove(self) -> None:
        """Delete a file opened for writing, and close it."""
        if self._lock is None:
            raise JournalInvalid(self.path, "it is open for reading only and cannot be removed.")
        with self._mutex:
            self._connection.close()
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self._lock.release(remove=True)

    # Documents

    @property
    def being_written(self) -> bool:
        """Whether a process has the file open for writing."""
        return FileLock(_lock_path(self.path)).held

    @property
    def length(self) -> int:
        """Number of documents, which is the index of the next one."""
        return self._length

    def refresh(self) -> int:
        """Count again, for a journal that another process appends to."""
        with self._access():
            self._length = self._count()
        return self._length

    def append_one(self, name: str, body: bytes) -> int:
        """Append one document as a transaction of its own, and return its index."""
        with self._access():
            return self.extend([Record(self._length, name, time.time(), zlib.crc32(body), body)]) - 1

    def append(self, first: int, documents: Sequence[tuple[str, int, bytes]]) -> int:
        """Append documents as `admit` does.

        Returns
        -------
        int
            The index of the next document.
        """
        with self._access():
            self.admit(first, documents)
            return self._length

    def admit(self, first: int, documents: Sequence[tuple[str, int, bytes]]) -> list[Record]:
        """Append `(name, crc, body)` documents as one transaction; those that are here already are skipped.

        Returns
        -------
        list of Record
            Those that were appended.

        Raises
        ------
        JournalGap
            `first` lies beyond the end.
        JournalInvalid
            A body does not match its checksum, or a document that is here is another one; nothing of this call is
            stored.
        """
        with self._access():
            if first > self._length:
                raise JournalGap(self.path, self._length, first)
            self._check_same(first, documents)
            start = max(self._length, first)
            fresh = documents[start - first :]
            if not fresh:
                return []
            names, crcs, bodies = zip(*fresh, strict=True)
            if (found := tuple(map(zlib.crc32, bodies))) != crcs:
                damaged = next(
                    idx for idx, pair in enumerate(zip(found, crcs, strict=True), start) if pair[0] != pair[1]
                )
                raise JournalInvalid(self.path, f"document {damaged} was damaged on its way here.")
            records = list(map(_new_record, zip(count(start), names, repeat(time.time()), crcs, bodies, strict=False)))
            self.extend(records)
            return records

    def extend(self, records: Sequence[Record]) -> int:
        """Append documents that have their numbers, as one transaction; those that are here already are skipped.

        Returns
        -------
        int
            The index of the next document.

        Raises
        ------
        JournalGap
            The first of them lies beyond the end.
        """
        with self._access():
            fresh = [record for record in records if record.idx >= self._length]
            if fresh:
                if fresh[0].idx > self._length:
                    raise JournalGap(self.path, self._length, fresh[0].idx)
                with self.atomic():
                    self._insert(fresh)
                self._length = fresh[-1].idx + 1
            return self._length

    def _insert(self, records: Sequence[Record]) -> None:
        start = 0
        for rows, statement in _INSERT_MANY.items():
            while len(records) - start >= rows:
                values = tuple(chain.from_iterable(records[start : start + rows]))
                self._connection.execute(statement, values)
                start += rows

    def _check_same(self, first: int, documents: Sequence[tuple[str, int, bytes]]) -> None:
        """Whether documents that are here are what the caller takes them for."""
        known = documents[: max(self._length - first, 0)]
        if not known:
            return
        rows = self._connection.execute(
            "SELECT idx, crc FROM documents WHERE idx >= ? ORDER BY idx LIMIT ?", (first, len(known))
        )
        for (idx, crc), (name, expected, _) in zip(rows.fetchall(), known, strict=True):
            if crc != expected:
                raise JournalInvalid(self.path, f"document {idx} is another one than this {name!r}; is the uid reused?")

    def has(self, first: int, crcs: Sequence[int]) -> bool:
        """Whether documents with these checksums are here, from index `first` on."""
        with self._access():
            rows = self._connection.execute(
                "SELECT crc FROM documents WHERE idx >= ? ORDER BY idx LIMIT ?", (first, len(crcs))
            )
            return [crc for (crc,) in rows] == list(crcs)

    def read(self, start: int, limit: int = 10_000, max_bytes: int = 2**24) -> list[Record]:
        """Documents from index `start`: at most `limit` of them, and at most `max_bytes` but at least one.

        Documents before a damaged one are returned; the next read, which begins at it, raises.

        Raises
        ------
        JournalInvalid
            The file is damaged at `start`; `DocumentsMissing` where a later document follows.
        """
        with self._access():
            cursor = self._connection.execute(
                "SELECT * FROM documents WHERE idx >= ? ORDER BY idx LIMIT ?", (start, limit)
            )
            try:
                return take(self._sound(cursor, start), max_bytes)
            finally:
                cursor.close()

    def _sound(self, rows: Iterable[tuple[Any, ...]], start: int) -> Iterator[Record]:
        """Records of rows that are what they should be, and follow each other from index `start`."""
        rows = iter(rows)
        for idx in count(start):
            try:
                row = next(rows, None)
                if row is None:
                    return
                self._check_row(row, idx)
            except (sqlite3.Error, JournalInvalid):
                if idx == start:
                    raise
                return
            yield Record._make(row)

    def _check_row(self, row: tuple[Any, ...], idx: int) -> None:
        if tuple(map(type, row)) != _RECORD_TYPES:
            raise JournalInvalid(self.path, f"it is damaged: document {row[0]} is none.")
        if row[0] != idx:
            raise DocumentsMissing(self.path, idx, row[0])

    def records(self) -> Iterator[Record]:
        """All documents, in order, read a batch at a time."""
        start = 0
        while batch := self.read(start):
            yield from batch
            start = batch[-1].idx + 1

    def names(self) -> dict[str, int]:
        """How many documents there are of each name."""
        with self._access():
            rows = self._connection.execute("SELECT name, count(*) FROM documents GROUP BY name ORDER BY min(idx)")
            names = dict(rows.fetchall())
        if not all(type(name) is str for name in names):
            raise JournalInvalid(self.path, "names of its documents are damaged.")
        return names

    @property
    def stopped(self) -> bool:
        """Whether the run's stop document is here."""
        with self._access():
            row = self._connection.execute("SELECT name FROM documents ORDER BY idx DESC LIMIT 1").fetchone()
        return row is not None and row[0] == "stop"

    @property
    def abandoned(self) -> bool:
        """Whether the publisher said that the run ended without a stop document."""
        return bool(self.get("abandoned"))

    @property
    def ended(self) -> bool:
        """Whether no more documents are to come."""
        return self.stopped or self.abandoned

    # What became of them

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the run's state."""
        with self._access():
            row = self._connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return default if row is None else self._parsed(row[0])

    def set(self, key: str, value: Any) -> None:
        """Store a value (anything JSON carries) in the run's state; None removes it."""
        with self._access():
            if value is None:
                self._connection.execute("DELETE FROM state WHERE key = ?", (key,))
            else:
                self._connection.execute("INSERT OR REPLACE INTO state VALUES(?, ?)", (key, json.dumps(value)))

    def progress(self) -> dict[str, NodeProgress]:
        """How far each Tiled node of the run is."""
        with self._access():
            rows = self._connection.execute("SELECT node, rows, intent FROM progress ORDER BY node").fetchall()
        if not all(type(node) is str and type(n) is int and type(end) in _INTENT_TYPES for node, n, end in rows):
            raise JournalInvalid(self.path, "what it says of Tiled's nodes is damaged.")
        return {node: NodeProgress(*rest) for node, *rest in rows}

    def set_progress(self, node: str, rows: int, intent: int | None = None) -> None:
        """Record what the server holds of a node, and up to where the request that is sent next would bring it."""
        with self._access():
            self._connection.execute("INSERT OR REPLACE INTO progress VALUES(?, ?, ?)", (node, rows, intent))

    def drop_progress(self, node: str) -> None:
        """Forget a node that the server does not hold any more."""
        with self._access():
            self._connection.execute("DELETE FROM progress WHERE node = ?", (node,))

    def history(self) -> list[HistoryEntry]:
        """What happened to the run, oldest first."""
        with self._access():
            rows = self._connection.execute("SELECT time, event, detail FROM history ORDER BY id").fetchall()
        entries = [HistoryEntry(when, event, self._parsed(detail)) for when, event, detail in rows]
        if not all(tuple(map(type, entry)) == _ENTRY_TYPES for entry in entries):
            raise JournalInvalid(self.path, "its history is damaged.")
        return entries

    def note(self, event: str, **detail: Any) -> None:
        """Add to the run's history."""
        with self._access():
            self._connection.execute(
                "INSERT INTO history(time, event, detail) VALUES(?, ?, ?)",
                (time.time(), event, json.dumps(detail, default=str)),
            )

    def _parsed(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise JournalInvalid(self.path, f"it is damaged: {error}.") from error

    # The file

    def damage(self, limit: int = 20) -> list[str]:
        """What SQLite finds wrong with the file, after having read all of it; nothing if it is well."""
        with self._mutex:
            try:
                rows = self._connection.execute(f"PRAGMA integrity_check({int(limit)})").fetchall()
            except sqlite3.DatabaseError as error:
                return [str(error)]
        lines = [line for (text,) in rows for line in str(text).splitlines()]
        return [] if lines == ["ok"] else lines

    @contextmanager
    def _access(self) -> Iterator[None]:
        """One thread at a time; damage that SQLite finds is our error."""
        with self._mutex:
            try:
                yield
            except sqlite3.Error as error:
                translated = self._translated(error)
                if translated is error:
                    raise
                raise translated from error
            # The sqlite3 module's, about a message with a damaged name in it, and sizes that no memory has.
            except (UnicodeDecodeError, MemoryError) as error:
                raise JournalInvalid(self.path, f"it is damaged ({type(error).__name__}: {error}).") from error

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Everything inside is one transaction; inside another one, part of that."""
        with self._mutex:
            if self._connection.in_transaction:
                yield
                return
            with self._access():
                self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                with self._access():
                    self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        # A COMMIT that failed (disk full) may or may not leave the transaction open.
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._length = self._count()

    def _connect(self, mode: str) -> sqlite3.Connection:
        if mode in _WRITING:
            return self._connect_as("mode=rw")
        if mode == "inspect":
            log_file = self.path.with_name(self.path.name + "-wal")
            return self._connect_as("mode=ro" if log_file.exists() else "mode=ro&immutable=1")
        # A reader opens for writing, too, where it may: the last one to close the file has to tidy up after SQLite.
        accesses = ["mode=rw", "mode=ro"]
        if not self.path.with_name(self.path.name + "-wal").exists():
            accesses.append("mode=ro&immutable=1")  # all there is on a disk with no space for SQLite's own files
        for access in accesses:
            try:
                connection = self._connect_as(access)
            except sqlite3.OperationalError:
                if access == accesses[-1]:
                    raise
                continue
            break
        connection.execute("PRAGMA query_only = ON")
        return connection

    def _connect_as(self, access: str) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?{access}"
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_SECONDS
        )
        try:
            connection.execute("PRAGMA application_id").fetchone()  # SQLite opens the file only when it is used
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_format(self) -> None:
        self._connection.execute("PRAGMA trusted_schema = OFF")
        if self._connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise JournalInvalid(self.path, "this file is not a journal of tiledwriter.")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise JournalInvalid(
                self.path, f"it has format {version}; this version reads up to {SCHEMA_VERSION}. Upgrade tiledwriter."
            )
        # Views and triggers of others could do anything, and never end.
        wanted, found = schema_objects(), objects_of(self._connection)
        if not found <= wanted or any(kind == "table" for kind, _, _ in wanted - found):
            raise JournalInvalid(self.path, "its tables are not those of a journal.")

    def _check_length(self) -> None:
        """A damaged number would have readers look for documents without end."""
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        (page_size,) = self._connection.execute("PRAGMA page_size").fetchone()
        if self._length > pages * page_size // _SMALLEST_ROW:
            raise JournalInvalid(self.path, f"it is damaged: its last document has the number {self._length - 1}.")

    def _stored_uid(self, expected: str | None) -> str:
        stored = self.get("run_uid")
        if expected is not None and stored is not None and stored != expected:
            raise JournalInvalid(self.path, f"it belongs to run {stored!r}, not to {expected!r}.")
        return str(stored if stored is not None else expected or self.path.stem)

    def _count(self) -> int:
        (last,) = self._connection.execute("SELECT max(idx) FROM main.documents").fetchone()
        return 0 if last is None else int(last) + 1

    def _translated(self, error: sqlite3.Error) -> sqlite3.Error | JournalInvalid:
        """Our error for a file SQLite cannot use; full disks and the like stay what they are."""
        text = str(error)
        if any(sign in text for sign in _SIGNS_OF_DAMAGE):
            return JournalInvalid(self.path, f"it is damaged or not a journal ({text}).")
        may_write = self._lock is not None and all(os.access(path, os.W_OK) for path in (self.path, self.path.parent))
        if "readonly" in text and may_write:
            return JournalInvalid(self.path, "it is damaged: its header says that it may not be written.")
        return error


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")
