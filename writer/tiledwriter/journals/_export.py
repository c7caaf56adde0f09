"""Export the documents of a journal to files for other programs: JSON lines, or tables in SQLite."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import event_model
import sqlite_utils
from sqlite_utils.db import Table

from tiledbroker import JournalInvalid, Record, RunReader

from ..callback import PlainText, to_entry

MAX_COLUMNS: Final = 900
"""Maximum number of columns per table; SQLite accepts up to 999 values per statement."""

FURTHER: Final = "further"
"""Name of the column that holds all values beyond `MAX_COLUMNS` as JSON."""

REPORT_DOCUMENTS: Final = 1000
"""Number of documents after which the progress of an export is reported."""

Key: TypeAlias = tuple[str, str]
"""Origin of a column: ("", key of the document), ("data", data key) or ("timestamps", data key)."""

_BATCH_ROWS: Final = 1000
_INTEGERS: Final = range(-(2**63), 2**63)
# Documents that do not have the form of their kind, as JSON.
_MALFORMED: Final = "malformed"
_TABLES: Final = {
    "start": "start",
    "stop": "stop",
    "descriptor": "descriptors",
    "event": "events",
    "resource": "resources",
    "stream_resource": "stream_resources",
    "datum": "datums",
    "stream_datum": "stream_datums",
    _MALFORMED: _MALFORMED,
}
_HISTORY: Final = "history"


def _ignore(_: int) -> None:
    """Do nothing about a document."""


def export_json_lines(journal: RunReader, file: IO[str], on_progress: Callable[[int], None] = _ignore) -> int:
    """Write all documents in the format of a backup, which can be replayed.

    Parameters
    ----------
    journal
        The run.
    file
        Text file to write to.
    on_progress
        Called with the number of documents so far, each time after `REPORT_DOCUMENTS` more.

    Returns
    -------
    int
        Number of documents.

    Raises
    ------
    JournalInvalid, CodecError
        A document is missing or damaged; the output is incomplete then.
    """
    count = 0
    for record in _consecutive_records(journal):
        file.write(json.dumps(to_entry(record.name, record.checked().body)) + "\n")
        count += 1
        if count % REPORT_DOCUMENTS == 0:
            on_progress(count)
    return count


def export_sqlite(journal: RunReader, path: Path, on_progress: Callable[[int], None] = _ignore) -> int:
    """Write all documents to an SQLite database, one table per kind of document, and the history to another table.

    Pages are unpacked: each event and datum has a row. The columns of events are their data keys, and `ts_` with a
    data key for its timestamps. Values without an SQLite type are stored as JSON.

    Parameters
    ----------
    journal
        The run.
    path
        The database file to create.
    on_progress
        Called with the number of documents so far, each time after `REPORT_DOCUMENTS` more.

    Returns
    -------
    int
        Number of documents.

    Raises
    ------
    JournalInvalid, CodecError
        A document is missing or damaged; the database is incomplete then.
    """
    count = 0
    with closing(sqlite3.connect(path)) as connection:
        database = sqlite_utils.Database(connection)
        tables = {name: _Table(database, name) for name in [*_TABLES.values(), _HISTORY]}
        streams: dict[str, str] = {}
        for record in _consecutive_records(journal):
            for name, row in _rows(record, streams):
                tables[_TABLES[name]].add(row)
            count += 1
            if count % REPORT_DOCUMENTS == 0:
                on_progress(count)
        for entry in journal.history():
            tables[_HISTORY].add({("", key): value for key, value in entry._asdict().items()})
        for table in tables.values():
            table.flush()
    return count


def _consecutive_records(journal: RunReader) -> Iterator[Record]:
    """Yield all documents; raise `JournalInvalid` if one is missing."""
    for expected, record in enumerate(journal.records()):
        if record.idx != expected:
            raise JournalInvalid(journal.path, f"documents {expected} to {record.idx - 1} are missing.")
        yield record


class _Table:
    """Table that gets its columns from the rows; column names differ in more than case, which SQLite ignores.

    All columns are BLOB, because SQLite converts values to the types of other columns, even if other values come out.
    """

    def __init__(self, database: sqlite_utils.Database, name: str) -> None:
        self._table = Table(database, name)
        self._columns: dict[Key, str] = {}
        self._taken = {FURTHER}
        self._made: list[str] = []
        self._rows: list[dict[str, Any]] = []

    def add(self, values: Mapping[Key, Any]) -> None:
        row: dict[str, Any] = {}
        further: dict[str, Any] = {}
        for key, value in values.items():
            column = self._assign_column(key)
            if column is None:
                further[_key_name(key)] = PlainText().of(value)
            else:
                row[column] = _sqlite_value(value)
        if further:
            row[FURTHER] = json.dumps(further)
        self._rows.append(row)
        if len(self._rows) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        if not self._rows:
            return
        filled = {column for row in self._rows for column, value in row.items() if value is not None}
        made = [column for column in self._column_order() if column in filled and column not in self._made]
        if self._made:
            for column in made:
                self._table.add_column(column, bytes)
        else:
            self._table.create(dict.fromkeys(made, bytes))
        self._made += made
        self._table.insert_all([{column: row.get(column) for column in self._made} for row in self._rows])
        self._rows = []

    def _column_order(self) -> list[str]:
        return [*self._columns.values(), FURTHER]

    def _assign_column(self, key: Key) -> str | None:
        if key not in self._columns and len(self._columns) < MAX_COLUMNS:
            column = "".join(c if c.isprintable() and c not in "[]" else "_" for c in _key_name(key)) or "_"
            while column.lower() in self._taken:
                column += "_"
            self._taken.add(column.lower())
            self._columns[key] = column
        return self._columns.get(key)


def _key_name(key: Key) -> str:
    # Keys of documents may be of any type: codecs keep integers.
    return f"ts_{key[1]}" if key[0] == "timestamps" else str(key[1])


def _rows(record: Record, streams: dict[str, str]) -> Iterator[tuple[str, dict[Key, Any]]]:
    """Yield the rows of a document, each with its kind of document."""
    try:
        yield from [*_rows_of_kind(record, streams)]
    except (AttributeError, KeyError, TypeError, ValueError):
        # It lacks what its kind of document has, as documents of runs in quarantine do.
        yield _MALFORMED, {("", "idx"): record.idx, ("", "name"): record.name, ("", "document"): record.document()}


def _rows_of_kind(record: Record, streams: dict[str, str]) -> Iterator[tuple[str, dict[Key, Any]]]:
    for name, document in _unpack_document(record.name, record.document()):
        values: dict[Key, Any] = {("", "idx"): record.idx}
        if name == "descriptor":
            streams[document["uid"]] = str(document.get("name"))
        parts: dict[str, Mapping[str, Any]] = {"data": {}, "timestamps": {}}
        if name == "event":
            values["", "stream"] = streams.get(document["descriptor"])
            parts = {part: document.pop(part) for part in parts}
        values |= {("", key): value for key, value in document.items()}
        yield name, values | {(part, key): value for part, items in parts.items() for key, value in items.items()}


def _unpack_document(name: str, document: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    """Unpack pages and legacy bulk documents into single documents."""
    if name == "event_page":
        _require_equal_lengths(
            [document["uid"], document["seq_num"], document["time"]],
            *(document["data"].values(), document["timestamps"].values()),
        )
        return (("event", dict(event)) for event in event_model.unpack_event_page(document))
    if name == "datum_page":
        _require_equal_lengths([document["datum_id"]], document["datum_kwargs"].values())
        return (("datum", dict(datum)) for datum in event_model.unpack_datum_page(document))
    if name == "bulk_events":
        return (("event", dict(event)) for events in document.values() for event in events)
    if name == "bulk_datum":
        pairs = zip(document["datum_ids"], document["datum_kwarg_list"], strict=True)
        resource = document["resource"]
        return (("datum", {"resource": resource, "datum_id": uid, "datum_kwargs": keywords}) for uid, keywords in pairs)
    return ((name, document),)


def _require_equal_lengths(*groups: Iterable[Sized]) -> None:
    """Check the columns of a page: event-model fills up shorter ones with None.

    Raises
    ------
    ValueError
        They are not of equal length.
    """
    if len({len(column) for columns in groups for column in columns}) != 1:
        raise ValueError("the columns of a page differ in length")


def _sqlite_value(value: Any) -> Any:
    """Convert a value to a type that SQLite accepts."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value).encode("utf-8", "backslashreplace").decode()
    if isinstance(value, bool | int):
        return value if value in _INTEGERS else str(value)
    made = PlainText().of(value)
    return json.dumps(made) if isinstance(made, list | dict) else _sqlite_value(made)
