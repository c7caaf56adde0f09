"""Finds damage in a write-ahead log of SQLite, which SQLite takes for the log's torn end.

At the first frame whose checksum is wrong, SQLite ends reading, and it forgets all transactions from there on when the
file is closed. If only processes were killed since the log was written, not the computer, nothing but its last frame
can be torn: each was written before the next one. The format is that of https://www.sqlite.org/walformat.html.
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
import time
from pathlib import Path
from typing import Final, NamedTuple

_LOG_HEADER_BYTES: Final = 32
_FRAME_HEADER: Final = struct.Struct(">II8s8s")
_SALTS: Final = slice(16, 24)
_CHECKSUM: Final = slice(24, 32)
_MAGIC_LITTLE_ENDIAN: Final = b"\x37\x7f\x06\x82"
_PAGE_SIZE_OFFSET: Final = 16
_PAGE_SIZE: Final = struct.Struct(">H")
_LARGEST_PAGE_BYTES: Final = 65536
_LAST_VALID_FRAME_OFFSET: Final = 16
_LAST_VALID_FRAME: Final = struct.Struct("=I")


def count_lost_transactions(database: Path) -> int:
    """Return how many transactions SQLite would forget because the log is damaged in front of them, or in them.

    No process may be writing to the database. It is not changed. The log may be damaged all the same if it was written
    before the computer was started, or if the damage is in its last frame.

    Raises
    ------
    sqlite3.Error
        The database cannot be read.
    OSError
        A file cannot be read.
    """
    path = database.with_name(database.name + "-wal")
    try:
        while True:
            if path.stat().st_mtime < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME):
                return 0
            content = path.read_bytes()
            lost = _count_lost(_Log(content, _read_page_bytes(database)), database)
            # The last process that closes the database brings the log into it and removes it, also one that only reads.
            if not lost or path.read_bytes() == content:
                return lost
    except FileNotFoundError:
        return 0


def _count_lost(log: _Log, database: Path) -> int:
    if not (commits := log.find_commits()):
        return 0
    valid = _count_valid_frames(database)
    lost = [frame for frame in commits if frame > valid]
    may_be_torn = len(lost) == 1 and all(map(log.is_sound, range(valid + 1, lost[0])))
    return 0 if may_be_torn else len(lost)


class _Log(NamedTuple):
    """The content of a log. Its frames have numbers from 1 on."""

    content: bytes
    page_bytes: int

    def find_commits(self) -> list[int]:
        """Return the frames that end a transaction. Those of an earlier use of the file have other salts."""
        starts = range(_LOG_HEADER_BYTES, len(self.content) - self._frame_bytes + 1, self._frame_bytes)
        if not self.page_bytes or not starts:
            return []
        headers = [_FRAME_HEADER.unpack_from(self.content, start) for start in starts]
        header = self.content[:_LOG_HEADER_BYTES]
        is_sound = _checksum(header[:24], bytes(8), header) == header[_CHECKSUM]
        salts = header[_SALTS] if is_sound else headers[0][2]
        return [number for number, (_, pages, found, _) in enumerate(headers, 1) if pages and found == salts]

    def is_sound(self, number: int) -> bool:
        """Whether a frame has the checksum that follows from that of the frame before it."""
        start = _LOG_HEADER_BYTES + (number - 1) * self._frame_bytes
        before = start - self._frame_bytes + 16 if number > 1 else _CHECKSUM.start
        checked = self.content[start : start + 8] + self.content[start + 24 : start + self._frame_bytes]
        found = _checksum(checked, self.content[before : before + 8], self.content)
        return found == self.content[start + 16 : start + 24]

    @property
    def _frame_bytes(self) -> int:
        return _FRAME_HEADER.size + self.page_bytes


def _checksum(checked: bytes, before: bytes, log: bytes) -> bytes:
    order = "<" if log[:4] == _MAGIC_LITTLE_ENDIAN else ">"
    words = struct.unpack(f"{order}{len(checked) // 4}I", checked)
    sum_0, sum_1 = struct.unpack(">2I", before)
    for word_0, word_1 in zip(words[::2], words[1::2], strict=True):
        sum_0 = (sum_0 + word_0 + sum_1) & 0xFFFFFFFF
        sum_1 = (sum_1 + word_1 + sum_0) & 0xFFFFFFFF
    return struct.pack(">2I", sum_0, sum_1)


def _read_page_bytes(database: Path) -> int:
    with database.open("rb") as file:
        file.seek(_PAGE_SIZE_OFFSET)
        found = file.read(_PAGE_SIZE.size)
    (page_bytes,) = _PAGE_SIZE.unpack(found) if len(found) == _PAGE_SIZE.size else (0,)
    return _LARGEST_PAGE_BYTES if page_bytes == 1 else int(page_bytes)


def _count_valid_frames(database: Path) -> int:
    """Return up to which frame SQLite reads the log, from the index that it makes of it."""
    # A connection that only reads leaves the log as it is when it is closed.
    with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        with database.with_name(database.name + "-shm").open("rb") as index:
            index.seek(_LAST_VALID_FRAME_OFFSET)
            return int(_LAST_VALID_FRAME.unpack(index.read(_LAST_VALID_FRAME.size))[0])
