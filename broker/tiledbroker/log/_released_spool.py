"""Spool files of version 0.1: an SQLite file per run, and a memory-mapped tail file with its newest documents.

This version reads, ships and deletes them, but creates none.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Literal

from .._errors import JournalGap, JournalInvalid, SpoolDamaged
from .._filesystem import open_regular_file
from ._identity import SessionIdentity
from ._journal import Journal
from ._journal_files import file_size
from ._record import Record
from ._run_log import RunLog

log = logging.getLogger(__name__)

TAIL_SUFFIX: Final = ".tail"
# Key of the run's state, for the damage of a tail that is kept under another name.
_TAIL_DAMAGE: Final = "tail_damage"

_MAGIC: Final = b"TWT1"
# Length of the body, index, time of arrival, CRC-32 of the body, length of the name.
_FIELDS: Final = struct.Struct("<IQdIB")
# CRC-32 of the fields and the name.
_CHECK: Final = struct.Struct("<I")
_HEADER: Final = _CHECK.size + _FIELDS.size
_BATCH_DOCUMENTS: Final = 4_096
_BATCH_BYTES: Final = 8 * 2**20

# Readers see a view of the file's documents followed by those in its tail.
_WITH_TAIL: Final = """
DROP VIEW IF EXISTS temp.documents;
DROP TABLE IF EXISTS temp.tail;
CREATE TEMP TABLE tail(idx INTEGER PRIMARY KEY, name, received, crc, body);
CREATE TEMP VIEW documents AS
SELECT * FROM main.documents
UNION ALL SELECT * FROM tail WHERE idx > (SELECT coalesce(max(idx), -1) FROM main.documents);
"""


class SpoolRunV01(RunLog):
    """Adopted run of a dead session of version 0.1. Its lock is held until `close` or `delete`.

    Parameters
    ----------
    path
        The SQLite file. The documents in its tail file are moved into it.

    Raises
    ------
    JournalLocked
        Another process has the file open for writing.
    JournalInvalid
        The file is not a spool file, such as the journal of an ingest host, or is damaged.
    OSError
        The file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        try:
            _refuse_ingest_journal(path)
            self._journal = Journal(path, "write")
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error), str(path)) from error
        super().__init__(self._journal.run_uid, path.parent, SessionIdentity("", "", 0, ""), "")
        self.log_id = str(path)
        self.path = path
        try:
            self.damage = take_in_tail(self._journal)
            self._length = self._journal.length
            self.stopped = self._journal.stopped
            self.started = next((record.received for record in self._journal.read(0, 1)), time.time())
        except BaseException as error:
            self._journal.close()
            if isinstance(error, sqlite3.Error):
                raise OSError(errno.EIO, str(error), str(path)) from error
            raise
        self.abandoned = not self.stopped
        self.is_adopted = True
        self._journal.detach()

    @property
    def first(self) -> int:
        """Index of the first record."""
        return 0

    @property
    def files(self) -> list[Path]:
        """The SQLite file."""
        return [self.path]

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return file_size(self.path)

    def read(self, start: int, limit: int, max_bytes: int) -> list[Record]:
        """Return records like `RunLog.read`.

        Raises
        ------
        JournalInvalid
            The file is damaged.
        OSError
            The file cannot be read.
        """
        try:
            with Journal(self.path) as reader:
                records = reader.read(start, limit, max_bytes)
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error), str(self.path)) from error
        for record in records:
            if zlib.crc32(record.body) != record.crc:
                raise SpoolDamaged(self.path, f"document {record.idx} does not match its checksum")
        return records

    def forget_before(self, idx: int) -> None:
        """Do nothing, because the file can only be deleted as a whole."""

    def delete(self) -> None:
        """Delete the file."""
        try:
            self._journal.remove()
        except sqlite3.Error as error:
            raise OSError(errno.EIO, str(error), str(self.path)) from error

    def close(self) -> None:
        """Release the file, so that another process can adopt it."""
        self._journal.close()


class ReleasedSpoolFile(Journal):
    """Reader of a journal, or of a spool file of version 0.1 together with the documents in its tail.

    Attributes
    ----------
    tail_damage
        Description of the damage if documents of the tail are lost; "" if there are none.
    """

    tail_damage = ""

    def _open(self, mode: Literal["create", "write", "read", "inspect"], run_uid: str | None) -> None:
        # Read the tail before the file: documents move from the tail to the file, so none is missed.
        damage: list[str] = []
        try:
            records = list(_sound_records(tail_of(self.path), damage))
        except FileNotFoundError:
            records = []
        super()._open(mode, run_uid)
        following = [record for record in records if record.idx >= self._length]
        if following and following[0].idx != self._length:
            damage.insert(0, f"documents {self._length} to {following[0].idx - 1} are neither in it nor in the file")
            following = []
        self.tail_damage = f"{tail_of(self.path)}: {damage[0]}" if damage else str(self.get(_TAIL_DAMAGE, ""))
        if not following:
            return
        (query_only,) = self._connection.execute("PRAGMA query_only").fetchone()
        self._connection.execute("PRAGMA query_only = OFF")
        self._connection.executescript(_WITH_TAIL)
        self._connection.executemany("INSERT INTO tail VALUES(?, ?, ?, ?, ?)", following)
        self._connection.execute(f"PRAGMA query_only = {query_only}")
        self._length = following[-1].idx + 1

    def read(self, start: int, limit: int = 10_000, max_bytes: int = 2**24) -> list[Record]:
        """Return records like `Journal.read`.

        Raises
        ------
        JournalInvalid
            As `Journal.read`; `SpoolDamaged` behind the last document before damage in the tail.
        """
        records = super().read(start, limit, max_bytes)
        if not records and limit > 0 and self.tail_damage:
            raise SpoolDamaged(self.path, f"it is damaged: {self.tail_damage}.")
        return records

    def damage(self, limit: int = 20) -> list[str]:
        """Return up to `limit` errors: of the tail, and from SQLite's integrity check of the whole file."""
        return [*filter(None, [self.tail_damage]), *super().damage(limit)][:limit]


def _refuse_ingest_journal(path: Path) -> None:
    """Raise `JournalInvalid` if a file is the journal of an ingest host: when it was shipped it would be deleted."""
    with Journal(path) as journal:
        # The first thing that a worker does is to make an entry.
        if journal.history():
            raise JournalInvalid(
                path,
                "it is the journal of an ingest host and not a spool. The service there writes it to Tiled.",
            )


def tail_of(file: Path) -> Path:
    """Return the path of a spool file's tail."""
    return file.with_name(file.name + TAIL_SUFFIX)


def take_in_tail(journal: Journal) -> str:
    """Move the documents in a spool file's tail into the file, in batches.

    Returns
    -------
    str
        Description of the damage if documents of the tail are lost, now or before; "" if all were moved. A tail file
        with damaged or missing documents is kept under another name.

    Raises
    ------
    OSError
        The tail cannot be read.
    """
    path = tail_of(journal.path)
    damage: list[str] = []
    try:
        for batch in _record_batches(_sound_records(path, damage)):
            journal.extend(batch)
    except FileNotFoundError:
        return str(journal.get(_TAIL_DAMAGE, ""))
    except JournalGap as error:
        damage.append(str(error))
    except JournalInvalid as error:
        return str(error)
    if not damage:
        path.unlink(missing_ok=True)
        return str(journal.get(_TAIL_DAMAGE, ""))
    aside = path.with_name(f"{path.name}.{time.time_ns()}.damaged")
    found = f"{aside}: {damage[0]}"
    # Before the tail has its other name, or the next reader would find a file in which nothing is missing.
    journal.set(_TAIL_DAMAGE, found)
    path.rename(aside)
    log.error("Documents in the tail of a run are lost: %s. The tail is kept as %s.", damage[0], aside)
    return found


def _record_batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.body)
        if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Damaged(Exception):
    """Raised when the bytes at a position are neither a valid document nor the end of the tail."""


def _sound_records(path: Path, damage: list[str]) -> Iterator[Record]:
    """Yield the documents in a tail before the first damaged one, and append a description of it to `damage`."""
    try:
        yield from _tail_records(path)
    except _Damaged as error:
        damage.append(str(error))


def _tail_records(path: Path) -> Iterator[Record]:
    """Yield the documents in a tail file.

    The file is read, not mapped, because a bad disk block in a mapping would kill the process with SIGBUS.

    Raises
    ------
    _Damaged
        A document is damaged.
    """
    position = 0
    with os.fdopen(open_regular_file(path), "rb") as file:
        while (magic := file.read(len(_MAGIC))) == _MAGIC:
            header = file.read(_HEADER)
            if len(header) < _HEADER:
                break
            (check,) = _CHECK.unpack_from(header)
            size, idx, received, crc, name_size = _FIELDS.unpack_from(header, _CHECK.size)
            name = file.read(name_size)
            if zlib.crc32(header[_CHECK.size :] + name) != check:
                break
            body = file.read(size)
            if zlib.crc32(body) != crc:
                break
            yield Record(idx, name.decode(errors="backslashreplace"), received, crc, body)
            position += len(_MAGIC) + _HEADER + name_size + size
    if any(magic):
        raise _Damaged(f"there is no valid document at byte {position} of it")
