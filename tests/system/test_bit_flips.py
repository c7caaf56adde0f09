"""One bit of a journal that has changed on the disk is found, and a damaged document never gets to Tiled."""

from __future__ import annotations

import random
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
import pytest
from corpus import CORPUS
from runs import metadata, seq_nums, wait_for_outcome
from stored_runs import Documents, a_run, journaled, uid_of

from tiledbroker import Journal, JournalError
from tiledbroker._errors import DocumentsMissing
from tiledwriter.mapping._fold import BATCH_BYTES, BATCH_DOCUMENTS, Fold
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of
from tiledwriter.verify._verification import verify

pytestmark = [pytest.mark.filterwarnings("default:::tiled")]

OPTIONS = WritingOptions(quiet_period=0.3)
FLIPS = 500
COLUMNS = ("idx", "name", "received", "crc", "body")
BESIDE = ("state", "progress", "history")
UNREADABLE = "unreadable"

Rows = list[tuple[Any, ...]]


def large_arrays() -> Documents:
    """Each event on pages of its own."""
    documents = a_run(events=4)
    for name, document in documents:
        if name == "event":
            document["data"]["wave"] = numpy.full(1500, document["seq_num"] / 7)
    return documents


@pytest.fixture
def journals(tmp_path: Path) -> list[Path]:
    """Runs of several kinds, each in one file, written as far as a journal shows."""
    entry = CORPUS["unequal-arrays"]
    paths = [
        journaled(documents, tmp_path / "journals")
        for documents in (a_run(events=150, frames=tmp_path / "frames"), large_arrays(), entry.make(tmp_path))
    ]
    for path in paths:
        with Journal(path, "write") as journal:
            journal.note("worker started", pid=1)
            journal.set("worker", [1, 2.5])
            journal.set_progress(f"{path.stem}/primary/internal", 2)
    assert not [path for path in paths[0].parent.iterdir() if path.suffix != ".sqlite" and path.suffix != ".lock"]
    return paths


def flipped(contents: bytes, bit: int) -> bytes:
    changed = bytearray(contents)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def rows_of(path: Path, table: str = "documents") -> Rows | None:
    """All of a table as SQLite alone reads it, None if it cannot."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)) as connection:
            connection.text_factory = bytes
            return connection.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall()
    except (sqlite3.Error, UnicodeDecodeError):
        return None


def touched(before: Rows, after: Rows | None) -> set[str]:
    """The columns of documents that a flip has changed."""
    if after is None or len(before) != len(after):
        return {UNREADABLE}
    pairs = [pair for rows in zip(before, after, strict=True) for pair in zip(COLUMNS, *rows, strict=True)]
    return {column for column, old, new in pairs if old != new}


def taken_by_a_worker(path: Path) -> list[tuple[bytes, bytes]]:
    """Names and bodies of the documents that are folded to be written to Tiled."""
    taken: list[tuple[bytes, bytes]] = []
    fold = Fold(path.stem, OPTIONS, OPTIONS.max_array_size)
    try:
        with Journal(path, "create", run_uid=path.stem) as journal:
            while not fold.finished and fold.error is None:
                records = journal.read(fold.cursor, BATCH_DOCUMENTS, BATCH_BYTES)
                if not records:
                    break
                first = fold.cursor
                fold.feed(records)
                taken += [(record.name.encode(), record.body) for record in records[: fold.cursor - first]]
    except JournalError:
        pass
    return taken


def test_every_flip_that_touches_a_document_is_found_and_none_gets_to_tiled(
    journals: list[Path], tmp_path: Path
) -> None:
    chance = random.Random(7)
    contents = [path.read_bytes() for path in journals]
    sizes = [8 * len(content) for content in contents]
    originals = [rows_of(path) for path in journals]
    (tmp_path / "flipped").mkdir()
    classes: Counter[tuple[str, str]] = Counter()
    for _ in range(FLIPS):
        which = chance.randrange(len(journals))
        bit = chance.randrange(sizes[which])
        path = tmp_path / "flipped" / journals[which].name
        path.write_bytes(flipped(contents[which], bit))
        original = originals[which]
        assert original is not None
        harm = touched(original, rows_of(path))
        found = not verify(path, OPTIONS, None).ok
        beside = {table for table in BESIDE if rows_of(path, table) != rows_of(journals[which], table)}
        kind = " and ".join(sorted(harm or beside)) or "nothing that is stored"
        classes[kind, "found" if found else "not found"] += 1
        assert found or harm <= {"received"}, (journals[which], bit, harm)
        whole = [(name, body) for _, name, _, _, body in original]
        taken = taken_by_a_worker(path)
        assert taken == whole[: len(taken)], (journals[which], bit, harm)
        for left in path.parent.iterdir():
            left.unlink()
    sys.stdout.write(f"{FLIPS} flips in {sum(map(len, contents))} bytes:\n")
    sys.stdout.writelines(f"  {' '.join(kind)}: {count}\n" for kind, count in sorted(classes.items()))


def flip_in_document(path: Path, idx: int) -> None:
    """Change one bit of a document's body where it lies in the file."""
    with Journal(path) as journal:
        (record,) = journal.read(idx, 1)
    contents = path.read_bytes()
    assert contents.count(record.body) == 1
    path.write_bytes(flipped(contents, 8 * (contents.index(record.body) + len(record.body) // 2)))


def test_a_run_with_a_flipped_document_is_quarantined_and_another_is_written(
    tmp_path: Path, tiled_server: TiledServer
) -> None:
    damaged, sound = a_run(), a_run()
    journals = tmp_path / "journals"
    path = journaled(damaged, journals)
    journaled(sound, journals)
    assert [name for name, _ in damaged[:5]] == ["start", "descriptor", "event", "event", "event"]
    flip_in_document(path, 3)
    with SupervisorProcess(journals, tiled_server, environment={"TILEDWRITER_QUIET_PERIOD": "1"}):
        assert wait_for_outcome(journals, uid_of(sound)) == "written"
        assert wait_for_outcome(journals, uid_of(damaged)) == "failed"
    with journal_of(journals, uid_of(damaged)) as journal:
        assert "Document 3 (event)" in journal.get("reason")
        assert "do not match their checksum" in journal.get("reason")
    assert seq_nums(tiled_server, uid_of(damaged)) == [1]
    assert "stop" not in metadata(tiled_server, uid_of(damaged))
    assert seq_nums(tiled_server, uid_of(sound)) == [1, 2, 3, 4, 5, 6]


def test_a_document_that_is_gone_is_not_passed_over(tmp_path: Path, tiled_server: TiledServer) -> None:
    damaged, journals = a_run(), tmp_path / "journals"
    path = journaled(damaged, journals)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TRIGGER documents_are_never_deleted")
        connection.execute("DELETE FROM documents WHERE idx = 4")
    with Journal(path) as journal:
        assert [record.idx for record in journal.read(0)] == [0, 1, 2, 3]
        with pytest.raises(DocumentsMissing, match=r"document 4 is missing; the next one is 5"):
            journal.read(4)
    with SupervisorProcess(journals, tiled_server, environment={"TILEDWRITER_QUIET_PERIOD": "1"}):
        assert wait_for_outcome(journals, uid_of(damaged)) == "failed"
    with journal_of(journals, uid_of(damaged)) as journal:
        assert "document 4 is missing" in journal.get("reason")
    assert seq_nums(tiled_server, uid_of(damaged)) == [1, 2]
    assert "stop" not in metadata(tiled_server, uid_of(damaged))
