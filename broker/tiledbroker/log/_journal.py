"""The log of one run on the ingest host: an append-only SQLite file."""

from __future__ import annotations

import json
import logging
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from .._errors import DocumentsMissing, JournalGap, JournalInvalid
from .._fair_lock import FairLock
from .._outcomes import RECORDED
from ._codec import Encoder, decode
from ._journal_connection import (
    check_format,
    check_length,
    connect_to_inspect,
    connect_to_read,
    connect_to_write,
    translate_error,
)
from ._journal_files import FILE_SUFFIXES, LOG_SUFFIX, follow_link, follow_run_file, is_orphaned_log, journal_lock_path
from ._journal_place import identify_file, put_back
from ._journal_schema import NORMALIZED_SCHEMA, create_file
from ._lock import FileLock
from ._record import Record, take
from ._write_ahead_log import count_lost_transactions

log = logging.getLogger(__name__)

# The latter leaves the write-ahead log as it is in memory at a commit. A later commit that syncs it syncs all of it.
_SYNC_AT_COMMITS: Final = "PRAGMA synchronous = FULL"
_SYNC_AT_CHECKPOINTS: Final = "PRAGMA synchronous = NORMAL"

_INSERT: Final = "INSERT INTO documents VALUES(?, ?, ?, ?, ?)"
# sqlite3 releases the GIL for each statement and can need 5 ms to get it back from a busy thread, so insert many rows
# per statement. SQLite allows at least 999 values in a statement, and 32,766 since version 3.32.
_ROWS_AT_ONCE: Final = (1024, 256, 64, 16, 4, 1) if sqlite3.sqlite_version_info >= (3, 32) else (64, 16, 4, 1)
_INSERT_MANY: Final = {rows: _INSERT + ", (?, ?, ?, ?, ?)" * (rows - 1) for rows in _ROWS_AT_ONCE}
# Faster than `Record`, because a named tuple's own `__new__` is a Python function.
_new_record: Final = partial(tuple.__new__, Record)
_RECORD_TYPES: Final = (int, str, float, int, bytes)
_INTENT_TYPES: Final = (int, type(None))
_ENTRY_TYPES: Final = (float, str, dict)

_MAX_MOVES_FOLLOWED: Final = 3
_WRITING: Final = frozenset({"create", "write"})

# Name of the document that ends a run.
_STOP: Final = "stop"

# Key of the run's state; see `Journal.revise_below`.
_REVISE_BELOW: Final = "revise_normalized_below"

Mode: TypeAlias = Literal["create", "write", "read", "inspect"]


class NodeProgress(NamedTuple):
    """Progress of one Tiled node.

    Attributes
    ----------
    rows
        Number of rows that the server has confirmed: rows of a table or array, datums of external data, 0 for a
        container.
    intent
        Number of rows after the request that was started and has no confirmed result yet; None if there is none.
    """

    rows: int
    intent: int | None


class HistoryEntry(NamedTuple):
    """One entry of a run's history.

    Attributes
    ----------
    time
        Unix time, in seconds.
    event
        Name of the event.
    detail
        Details of the event.
    """

    time: float
    event: str
    detail: dict[str, Any]


class Journal:
    """The documents of one run in order, with the state of their writing to Tiled. Document *i* has index *i*.

    Several threads may share one object. Only one process at a time can open a file for writing.

    Parameters
    ----------
    path
        The file. Its directory must exist. An existing file is also found if it has been moved to the `finished`
        subdirectory or back.
    mode
        "create" creates the file or opens an existing one; "write" opens an existing one. Both lock the file against
        other writers. "read" opens the file, possibly while another process writes it, and recovers it after its
        writer has died. "inspect" opens the file without ever modifying it.
    run_uid
        Uid of the run: stored in a new file, compared with that in an existing one.
    lock_timeout
        Maximum time in seconds to wait for another process to release the file.

    Raises
    ------
    JournalLocked
        Another process has the file open for writing.
    JournalInvalid
        The file does not exist, is not a journal, belongs to another run, or was written by a newer version.
    """

    def __init__(
        self,
        path: str | Path,
        mode: Mode = "read",
        *,
        run_uid: str | None = None,
        lock_timeout: float = 0.0,
    ) -> None:
        self.path = follow_link(Path(path) if mode == "create" else follow_run_file(Path(path)))
        self._mutex = FairLock()
        # What the file says, as far as it was read: only this object changes a file that it has locked.
        self._known_state: dict[str, str | None] = {}
        self._known_stopped: bool | None = None
        self._lock: FileLock | None = None
        if is_orphaned_log(self.path):
            main = self.path.name.removesuffix(LOG_SUFFIX)
            raise JournalInvalid(self.path, f"its main file is missing: {main} belongs beside it.")
        if mode != "create" and not self.path.is_file():
            # It may have been moved after it was found.
            self.path = follow_run_file(self.path)
        if mode != "create" and not self.path.is_file():
            raise JournalInvalid(self.path, "it is not a file." if self.path.exists() else "there is no such file.")
        if mode in _WRITING:
            self._lock = FileLock(journal_lock_path(self.path))
            self._lock.acquire(lock_timeout)
        try:
            self._open_where_it_is(mode, run_uid)
        except BaseException:
            if self._lock is not None:
                self._lock.release()
            raise

    def _open_where_it_is(self, mode: Mode, run_uid: str | None) -> None:
        """Open the file, even if a supervisor is moving it right now. A supervisor never moves a locked file."""
        for _ in range(_MAX_MOVES_FOLLOWED):
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
        with self._guard_connection():
            self._check_write_ahead_log()
            self._connection = self._open_connection(mode)
            try:
                check_format(self.path, self._connection)
                self._file = identify_file(self.path)
                if mode in _WRITING:
                    _prepare_to_write(self._connection)
                if mode == "create" and self.get("run_uid") is None:
                    self.set("run_uid", run_uid)
                self.run_uid = self._stored_uid(run_uid)
                self._length = self._stored_length()
                check_length(self.path, self._connection, self._length)
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. When its last user closes it, SQLite removes the write-ahead log."""
        with self._mutex:
            self._connection.close()
            if self._lock is not None:
                self._lock.release()

    def detach(self) -> None:
        """Close the file but keep its lock. Afterwards, only `remove` and `close` may be called."""
        with self._mutex:
            self._connection.close()

    def remove(self) -> None:
        """Close and delete the file.

        Raises
        ------
        JournalInvalid
            The file is open for reading only.
        """
        if self._lock is None:
            raise JournalInvalid(self.path, "it is open read-only and cannot be removed.")
        with self._mutex:
            self._connection.close()
            for suffix in FILE_SUFFIXES:
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self._lock.release(remove=True)

    @property
    def is_in_place(self) -> bool:
        """True if the file that is open is the one at `path`.

        Raises
        ------
        OSError
            It cannot be looked at, for example because a directory above it may not be entered.
        """
        return identify_file(self.path) == self._file

    def put_back(self) -> Path | None:
        """Write everything to `path` again, and continue there. Return where the file is now that was in its place.

        Raises
        ------
        JournalInvalid
            The file that was open is damaged.
        OSError, sqlite3.OperationalError
            It cannot be written. The file that was open stays open, so this can be tried again.
        """
        with self._guard_connection():
            moved = put_back(self._connection, self.path)
            connection = self._open_connection("write")
            _prepare_to_write(connection)
            self._connection.close()
            self._connection, self._file = connection, identify_file(self.path)
        return moved

    @property
    def being_written(self) -> bool:
        """True if a process has the file open for writing."""
        return FileLock(journal_lock_path(self.path)).held

    @property
    def length(self) -> int:
        """Number of documents, which is the index of the next one."""
        return self._length

    def refresh(self) -> int:
        """Update and return `length`, for a journal that another process appends to."""
        with self._guard_connection():
            self._length = self._stored_length()
        return self._length

    def append_one(self, name: str, body: bytes) -> int:
        """Append one document as a transaction of its own, and return its index."""
        with self._guard_connection():
            return self.extend([Record(self._length, name, time.time(), zlib.crc32(body), body)]) - 1

    def append(self, first: int, documents: Sequence[tuple[str, int, bytes]]) -> int:
        """Append documents like `append_verified`.

        Returns
        -------
        int
            The index of the next document.
        """
        with self._guard_connection():
            self.append_verified(first, documents)
            return self._length

    def append_verified(self, first: int, documents: Sequence[tuple[str, int, bytes]]) -> list[Record]:
        """Append documents in one transaction, skipping those that the journal already has.

        Parameters
        ----------
        first
            Index of the first document.
        documents
            `(name, crc, body)` of each document.

        Returns
        -------
        list of Record
            The appended documents.

        Raises
        ------
        JournalGap
            `first` is greater than the index of the next document.
        JournalInvalid
            A body does not match its checksum, or the journal has another document at its index. Nothing is stored.
        """
        with self._guard_connection():
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
                raise JournalInvalid(
                    self.path, f"document {damaged} was damaged in transit: its checksum does not match."
                )
            records = list(map(_new_record, zip(count(start), names, repeat(time.time()), crcs, bodies, strict=False)))
            self.extend(records)
            return records

    def extend(self, records: Sequence[Record]) -> int:
        """Append consecutive records in one transaction, skipping those that the journal already has.

        Returns
        -------
        int
            The index of the next document.

        Raises
        ------
        JournalGap
            The index of the first record is greater than that of the next document.
        """
        with self._guard_connection():
            fresh = [record for record in records if record.idx >= self._length]
            if fresh:
                if fresh[0].idx > self._length:
                    raise JournalGap(self.path, self._length, fresh[0].idx)
                with self.atomic():
                    self._insert_records(fresh)
                self._length = fresh[-1].idx + 1
                self._known_stopped = fresh[-1].name == _STOP
            return self._length

    def _insert_records(self, records: Sequence[Record]) -> None:
        start = 0
        for rows, statement in _INSERT_MANY.items():
            while len(records) - start >= rows:
                values = tuple(chain.from_iterable(records[start : start + rows]))
                self._connection.execute(statement, values)
                start += rows

    def _check_same(self, first: int, documents: Sequence[tuple[str, int, bytes]]) -> None:
        """Raise `JournalInvalid` if the journal has another document at the index of one in `documents`."""
        known = documents[: max(self._length - first, 0)]
        if not known:
            return
        rows = self._connection.execute(
            "SELECT idx, crc FROM documents WHERE idx >= ? ORDER BY idx LIMIT ?", (first, len(known))
        )
        for (idx, crc), (name, expected, _) in zip(rows.fetchall(), known, strict=True):
            if crc != expected:
                raise JournalInvalid(
                    self.path, f"document {idx} differs from the {name!r} received now; is the uid reused?"
                )

    def has(self, first: int, crcs: Sequence[int]) -> bool:
        """Return True if the documents from index `first` on have these CRC-32 checksums."""
        with self._guard_connection():
            rows = self._connection.execute(
                "SELECT crc FROM documents WHERE idx >= ? ORDER BY idx LIMIT ?", (first, len(crcs))
            )
            return [crc for (crc,) in rows] == list(crcs)

    def read(self, start: int, limit: int = 10_000, max_bytes: int = 2**24) -> list[Record]:
        """Return records from index `start`.

        The result ends before a damaged document; a read that starts at the damaged document raises.

        Parameters
        ----------
        start
            Index of the first document.
        limit
            Maximum number of documents.
        max_bytes
            Maximum total size of their bodies, in bytes. At least one document is returned, whatever its size.

        Raises
        ------
        JournalInvalid
            The document at `start` is damaged; `DocumentsMissing` if it is missing but later documents exist.
        """
        with self._guard_connection():
            cursor = self._connection.execute(
                "SELECT * FROM documents WHERE idx >= ? ORDER BY idx LIMIT ?", (start, limit)
            )
            try:
                return take(self._valid_records(cursor, start), max_bytes)
            finally:
                cursor.close()

    def _valid_records(self, rows: Iterable[tuple[Any, ...]], start: int) -> Iterator[Record]:
        """Yield the records of valid rows with consecutive indexes from `start`; raise if the first one is damaged."""
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
            raise JournalInvalid(self.path, f"it is damaged: row {row[0]} is not a document.")
        if row[0] != idx:
            raise DocumentsMissing(self.path, idx, row[0])

    def records(self) -> Iterator[Record]:
        """Yield all records in order, reading them in batches."""
        start = 0
        while batch := self.read(start):
            yield from batch
            start = batch[-1].idx + 1

    def names(self) -> dict[str, int]:
        """Return the number of documents by document name."""
        with self._guard_connection():
            rows = self._connection.execute("SELECT name, count(*) FROM documents GROUP BY name ORDER BY min(idx)")
            names = dict(rows.fetchall())
        if not all(type(name) is str for name in names):
            raise JournalInvalid(self.path, "it is damaged: names of documents are not text.")
        return names

    @property
    def stopped(self) -> bool:
        """True if the journal has the run's stop document."""
        with self._guard_connection():
            if self._known_stopped is None or self._lock is None:
                row = self._connection.execute("SELECT name FROM documents ORDER BY idx DESC LIMIT 1").fetchone()
                self._known_stopped = row is not None and row[0] == _STOP
            return self._known_stopped

    @property
    def abandoned(self) -> bool:
        """True if a publisher has declared that the run ended without a stop document."""
        return bool(self.get("abandoned"))

    @property
    def ended(self) -> bool:
        """True if no more documents will come: the run is stopped or abandoned."""
        return self.stopped or self.abandoned

    @property
    def outcome(self) -> str | None:
        """Recorded outcome of the run, None if there is none yet; one that does not exist is `JournalInvalid`."""
        outcome: str | None = self.get("outcome")
        if outcome is not None and outcome not in RECORDED:
            raise JournalInvalid(self.path, f"it is damaged: there is no outcome {outcome!r}.")
        return outcome

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the run's state; `default` if there is none."""
        with self._guard_connection():
            if key not in self._known_state or self._lock is None:
                row = self._connection.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
                self._known_state[key] = None if row is None else row[0]
            text = self._known_state[key]
        return default if text is None else self._parse_json(text)

    def set(self, key: str, value: Any) -> None:
        """Store a JSON-serializable value in the run's state; None deletes it."""
        text = None if value is None else json.dumps(value)
        with self._guard_connection():
            if text is None:
                self._connection.execute("DELETE FROM state WHERE key = ?", (key,))
            else:
                self._connection.execute("INSERT OR REPLACE INTO state VALUES(?, ?)", (key, text))
            self._known_state[key] = text

    def progress(self) -> dict[str, NodeProgress]:
        """Return the progress of each Tiled node of the run, by node."""
        with self._guard_connection():
            rows = self._connection.execute("SELECT node, rows, intent FROM progress ORDER BY node").fetchall()
        if not all(type(node) is str and type(n) is int and type(end) in _INTENT_TYPES for node, n, end in rows):
            raise JournalInvalid(self.path, "it is damaged: its table of progress has wrong types.")
        return {node: NodeProgress(*rest) for node, *rest in rows}

    def set_progress(self, node: str, rows: int, intent: int | None = None, *, synced: bool = True) -> None:
        """Store the progress of a node.

        Parameters
        ----------
        node
            The node.
        rows
            Number of rows that the server has.
        intent
            Number of rows after the append request that is about to be sent; None if there is none.
        synced
            Whether it survives a power cut; otherwise, it survives the end of this process only, and a power cut can
            leave the progress before. Without effect within a transaction.
        """
        with self._guard_connection():
            skips_sync = not (synced or self._connection.in_transaction)
            if skips_sync:
                self._connection.execute(_SYNC_AT_CHECKPOINTS)
            try:
                self._connection.execute("INSERT OR REPLACE INTO progress VALUES(?, ?, ?)", (node, rows, intent))
            finally:
                if skips_sync:
                    self._connection.execute(_SYNC_AT_COMMITS)

    def drop_progress(self, node: str) -> None:
        """Delete the progress of a node that the server does not have any more."""
        with self._guard_connection():
            self._connection.execute("DELETE FROM progress WHERE node = ?", (node,))

    def store_normalized(self, results: Iterable[tuple[int, bytes]]) -> None:
        """Store what a normalizer made of documents, in one transaction.

        Parameters
        ----------
        results
            `(idx, body)`: index of the document, and the encoded result, by index. It replaces an earlier one.
        """
        with self.atomic(), self._guard_connection():
            self._connection.execute(NORMALIZED_SCHEMA)
            rows = [(idx, zlib.crc32(body), body) for idx, body in results]
            self._connection.executemany("INSERT OR REPLACE INTO normalized VALUES(?, ?, ?)", rows)
            if rows and rows[-1][0] + 1 >= self.revise_below:
                self.set(_REVISE_BELOW, None)

    @property
    def revise_below(self) -> int:
        """Index below which results of a normalizer are to be made anew, as it was mended; 0 if there are none."""
        return int(self.get(_REVISE_BELOW, 0))

    def request_revision(self) -> None:
        """Have the results of a normalizer made anew, as far as there are any."""
        with self.atomic():
            if self.read_normalized(0, 1):
                self.set(_REVISE_BELOW, self._length)

    def read_normalized(self, start: int, limit: int) -> dict[int, bytes]:
        """Return what a normalizer made of documents, by index.

        Parameters
        ----------
        start, limit
            Index of the first document, and maximum number of results.

        Raises
        ------
        JournalInvalid
            A result does not match its checksum.
        """
        with self._guard_connection():
            if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'normalized'").fetchone():
                return {}
            rows = self._connection.execute(
                "SELECT idx, crc, body FROM normalized WHERE idx >= ? ORDER BY idx LIMIT ?", (start, limit)
            ).fetchall()
        for idx, crc, body in rows:
            if type(body) is not bytes or zlib.crc32(body) != crc:
                raise JournalInvalid(self.path, f"it is damaged: what document {idx} was normalized to is not sound.")
        return {idx: body for idx, _, body in rows}

    @staticmethod
    def encode_result(result: Mapping[str, Any]) -> bytes:
        """Return the bytes of what a normalizer made of a document, encoded as documents are."""
        return Encoder().encode(result)

    @staticmethod
    def decode_result(body: bytes) -> dict[str, Any]:
        """Return what `encode_result` encoded.

        Raises
        ------
        CodecError
            The bytes are damaged.
        """
        return decode(body)

    def history(self) -> list[HistoryEntry]:
        """Return the run's history, oldest entry first."""
        with self._guard_connection():
            rows = self._connection.execute("SELECT time, event, detail FROM history ORDER BY id").fetchall()
        entries = [HistoryEntry(when, event, self._parse_json(detail)) for when, event, detail in rows]
        if not all(tuple(map(type, entry)) == _ENTRY_TYPES for entry in entries):
            raise JournalInvalid(self.path, "it is damaged: its history has wrong types.")
        return entries

    def changed_at(self) -> float | None:
        """Return the Unix time of the last entry of the history; None if there is none of use."""
        with self._guard_connection():
            row = self._connection.execute("SELECT time FROM history ORDER BY id DESC LIMIT 1").fetchone()
        return row[0] if row is not None and isinstance(row[0], float) else None

    def note(self, event: str, **detail: Any) -> int:
        """Append an entry to the run's history, with the current time; return its number for `revise_note`."""
        with self._guard_connection():
            cursor = self._connection.execute(
                "INSERT INTO history(time, event, detail) VALUES(?, ?, ?)",
                (time.time(), event, json.dumps(detail, default=str)),
            )
            return cursor.lastrowid or 0

    def revise_note(self, number: int, **detail: Any) -> None:
        """Replace the details of an entry of the history about something that lasts, such as an outage."""
        with self._guard_connection():
            self._connection.execute(
                "UPDATE history SET detail = ? WHERE id = ?", (json.dumps(detail, default=str), number)
            )

    def _parse_json(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise JournalInvalid(self.path, f"it is damaged: {error}.") from error

    def damage(self, limit: int = 20) -> list[str]:
        """Return up to `limit` errors from SQLite's integrity check of the whole file; an empty list if it is sound."""
        with self._mutex:
            try:
                rows = self._connection.execute(f"PRAGMA integrity_check({int(limit)})").fetchall()
            except sqlite3.DatabaseError as error:
                return [str(error)]
        lines = [line for (text,) in rows for line in str(text).splitlines()]
        return [] if lines == ["ok"] else lines

    def _guard_connection(self) -> _ConnectionGuard:
        """Return a guard of the connection, for a `with` statement; see `_ConnectionGuard`."""
        return _ConnectionGuard(self)

    @contextmanager
    def atomic(self) -> Iterator[None]:
        """Execute the body in one transaction, or in the enclosing one if there is one."""
        with self._mutex:
            if self._connection.in_transaction:
                yield
                return
            with self._guard_connection():
                self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                with self._guard_connection():
                    self._connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        # A COMMIT that failed (disk full) may or may not leave the transaction open.
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
        self._known_state.clear()
        self._known_stopped = None
        self._length = self._stored_length()

    def _check_write_ahead_log(self) -> None:
        if self._lock is None and self.being_written:
            return
        lost = count_lost_transactions(self.path)
        # A process that reads holds no lock, so another one may have begun to write meanwhile.
        if lost and (self._lock is not None or not self.being_written):
            raise JournalInvalid(
                self.path,
                f"its write-ahead log, the file beside it that ends in -wal, is damaged in front of {lost} "
                "transaction(s), which would be lost if it was opened.",
            )

    def _open_connection(self, mode: Mode) -> sqlite3.Connection:
        if mode in _WRITING:
            return connect_to_write(self.path)
        return connect_to_inspect(self.path) if mode == "inspect" else connect_to_read(self.path)

    def _stored_uid(self, expected: str | None) -> str:
        stored = self.get("run_uid")
        if expected is not None and stored is not None and stored != expected:
            raise JournalInvalid(self.path, f"it belongs to run {stored!r}, not to {expected!r}.")
        return str(stored if stored is not None else expected or self.path.stem)

    def _stored_length(self) -> int:
        (last,) = self._connection.execute("SELECT max(idx) FROM main.documents").fetchone()
        return 0 if last is None else int(last) + 1


def _prepare_to_write(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(_SYNC_AT_COMMITS)


class _ConnectionGuard:
    """Admits one thread at a time to a journal's connection, and raises `JournalInvalid` for errors that mean damage.

    A class, because a generator takes several times as long, and each document passes a dozen guards.
    """

    __slots__ = ("_journal",)

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def __enter__(self) -> None:
        self._journal._mutex.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        journal = self._journal
        journal._mutex.__exit__()
        if error is None:
            return
        if isinstance(error, sqlite3.Error):
            translated = translate_error(error, journal.path, is_locked=journal._lock is not None)
            if translated is not error:
                raise translated from error
        # The sqlite3 module raises these for a message that contains a damaged name, and for absurd sizes.
        elif isinstance(error, UnicodeDecodeError | MemoryError):
            raise JournalInvalid(journal.path, f"it is damaged ({type(error).__name__}: {error}).") from error
