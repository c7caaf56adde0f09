"""One table of a stream: its columns, their values in the events, and the order of its rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy

from .._json import to_json
from ._columnar import EventBatch, Values
from ._columns import arrow_size
from ._operations import Column, ColumnDigest

MAX_COLUMNS: Final = 1024
MAX_ROW_BYTES: Final = 8_160
"""The largest size of a table row, in bytes.

PostgreSQL stores a row in one page of 8 KiB. It can store long texts and lists elsewhere.
"""
_ROW_HEADER_BYTES: Final = 40
"""What PostgreSQL and Tiled add to a row, beside a bit for each column."""

_TRANSPOSED_EVENTS: Final = 32

BY_SEQ_NUM: Final = ("seq_num", "time")
_BY_TIME: Final = ("time", "seq_num")


class RowOrder:
    """The columns that sort the rows of a table into their order of arrival.

    These are sequence number and time. If a scan was rewound, they are time and sequence number, unless the clock was
    set back as well, or a time is NaN, whose place in an order depends on the database.

    Attributes
    ----------
    columns
        The names of the columns; empty if neither sort order is the order of arrival.
    """

    def __init__(self) -> None:
        self.columns: tuple[str, ...] = BY_SEQ_NUM
        self._fits = {BY_SEQ_NUM: True, _BY_TIME: True}
        self._last = (-math.inf, -math.inf)

    def add_batch(self, events: EventBatch) -> None:
        """Add a batch of consecutive events."""
        seq_num, time = events.numbers("seq_num"), events.numbers("time")
        self.add(seq_num[0].item(), time[0].item())
        for columns, first, second in ((BY_SEQ_NUM, seq_num, time), (_BY_TIME, time, seq_num)):
            follows = (first[:-1] < first[1:]) | ((first[:-1] == first[1:]) & (second[:-1] <= second[1:]))
            self._fits[columns] = self._fits[columns] and bool(follows.all())
        self._last = (seq_num[-1].item(), time[-1].item())
        self._choose_columns()

    def add(self, seq_num: float, time: float) -> None:
        """Add the next event."""
        last_seq_num, last_time = self._last
        # Comparisons of NaN are false, and those of tuples with NaN are not.
        if not (last_seq_num < seq_num or (last_seq_num == seq_num and last_time <= time)):
            self._fits[BY_SEQ_NUM] = False
        if not (last_time < time or (last_time == time and last_seq_num <= seq_num)):
            self._fits[_BY_TIME] = False
        self._last = (seq_num, time)
        self._choose_columns()

    def _choose_columns(self) -> None:
        if not self._fits[BY_SEQ_NUM]:
            self.columns = _BY_TIME if self._fits[_BY_TIME] else ()


@dataclass(frozen=True)
class ColumnSource:
    """A table column and the source of its values.

    Attributes
    ----------
    column
        The column.
    kind
        The part of an event with the values: its sequence number or time, the value of a data key, that value as JSON
        ("text"), or its timestamp. "row" is the number of the event in its stream, from 0.
    key
        The data key; empty for columns without one.
    changed
        A description of the first value that JSON could not represent unchanged; empty if there is none.
    """

    column: Column
    kind: Literal["seq_num", "time", "row", "value", "text", "timestamp"]
    key: str = ""
    changed: list[str] = field(default_factory=list, compare=False)

    def pick_values(self, events: Sequence[Mapping[str, Any]], first_row: int) -> list[Any]:
        """Return the column's values for consecutive events; `first_row` is the row of the first event."""
        kind, key = self.kind, self.key
        if kind == "value":
            return [event["data"].get(key) for event in events]
        if kind == "timestamp":
            return [event["timestamps"].get(key) for event in events]
        if kind == "text":
            return self._json_texts([event["data"].get(key) for event in events])
        if kind == "row":
            return list(range(first_row, first_row + len(events)))
        return [event[kind] for event in events]

    def pick_batch(self, events: EventBatch, first_row: int) -> Values:
        """Return the column's values for a batch of events; `first_row` is the row of the first event."""
        if self.kind == "row":
            return numpy.arange(first_row, first_row + events.count)
        field = "timestamps" if self.kind == "timestamp" else "data"
        values = events.columns.get((self.kind,) if self.kind in ("seq_num", "time") else (field, self.key))
        if values is None:
            return [None] * events.count
        return self._json_texts(values) if self.kind == "text" else values

    def _json_texts(self, values: Values) -> list[str | None]:
        """Return values as JSON."""
        plain = values.tolist() if isinstance(values, numpy.ndarray) else values
        return [None if value is None else json.dumps(to_json(value, self._on_changed)) for value in plain]

    def _on_changed(self, what: str) -> None:
        if not self.changed:
            self.changed.append(what.partition(": ")[2])


@dataclass
class InternalTable:
    """One table of a stream: its columns, and the events whose rows are not flushed yet.

    Attributes
    ----------
    path
        The path of the node.
    order
        The columns by which readers get the rows sorted.
    sources
        The columns and the sources of their values.
    rows
        The number of rows flushed.
    created
        Whether the operation that creates the table was emitted.
    digests
        The digests of the key columns, by column name.
    """

    path: str
    order: tuple[str, ...]
    sources: list[ColumnSource] = field(default_factory=list)
    rows: int = 0
    created: bool = False
    digests: dict[str, ColumnDigest] = field(default_factory=dict)
    _events: list[Mapping[str, Any]] = field(default_factory=list)
    # The values of the events before `_events`, by column.
    _values: list[list[Any]] = field(default_factory=list)
    # The values of the events before those in `_values`: parts, each by column.
    _parts: list[Sequence[Values]] = field(default_factory=list)
    _transposed_rows: int = 0
    _bytes: int = 0
    _names: set[str] = field(default_factory=set)

    def has_room(self, sources: Sequence[ColumnSource]) -> bool:
        """Return whether the table has room for further columns.

        Their names must be new, regardless of case, because Tiled does not distinguish upper and lower case.
        """
        columns = len(self.sources) + len(sources)
        return (
            columns <= MAX_COLUMNS
            and _ROW_HEADER_BYTES + columns // 8 + 1 + self._bytes + _bytes(sources) <= MAX_ROW_BYTES
            and self._names.isdisjoint(source.column.name.lower() for source in sources)
        )

    def add_columns(self, sources: Sequence[ColumnSource]) -> None:
        """Add columns; allowed only while the table has no rows."""
        self.sources += sources
        self._bytes += _bytes(sources)
        self._names |= {source.column.name.lower() for source in sources}
        self.digests |= {
            source.column.name: ColumnDigest() for source in sources if source.kind in ("seq_num", "time", "row")
        }

    def add(self, event: Mapping[str, Any]) -> None:
        """Add one event document."""
        self._events.append(event)
        if len(self._events) >= _TRANSPOSED_EVENTS:
            self._transpose_events()

    def add_batch(self, events: EventBatch) -> None:
        """Add a batch of events."""
        self._end_part()
        first_row = self.rows + self._transposed_rows
        self._parts.append([source.pick_batch(events, first_row) for source in self.sources])
        self._transposed_rows += events.count

    @property
    def rows_taken_in(self) -> int:
        """The number of rows, including those not flushed yet."""
        return self.rows + self._transposed_rows + len(self._events)

    @property
    def pending(self) -> bool:
        """Whether there are rows to flush with `take_rows`."""
        return bool(self._events or self._transposed_rows)

    def take_rows(self) -> list[list[Values]]:
        """Remove the rows not flushed yet; return them by column, each column in the same number of parts."""
        self._end_part()
        parts, self._parts = self._parts, []
        self.rows += self._transposed_rows
        self._transposed_rows = 0
        return [list(column) for column in zip(*parts, strict=True)]

    def _end_part(self) -> None:
        if self._events:
            self._transpose_events()
        if self._values:
            self._parts.append(self._values)
            self._values = []

    def _transpose_events(self) -> None:
        """Transpose the latest events into columns.

        This happens for a few events at a time, while they are still in the processor's cache.
        """
        self._values = self._values or [[] for _ in self.sources]
        first_row = self.rows + self._transposed_rows
        for column, source in zip(self._values, self.sources, strict=True):
            column.extend(source.pick_values(self._events, first_row))
        self._transposed_rows += len(self._events)
        self._events = []


def _bytes(sources: Sequence[ColumnSource]) -> int:
    return sum(arrow_size(source.column.type) for source in sources)
