"""Segment files for tests: made, read back and spoiled."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import msgspec

from tiledbroker import Record, SpoolDamaged
from tiledbroker.log._identity import new_session
from tiledbroker.log._segment import Segment, SegmentHeader

DESTINATION = "tcp://127.0.0.1:5579"


def header(run: str = "run", first: int = 0, log: str = "0123abcd", **changed: Any) -> SegmentHeader:
    """A header as this process would write it."""
    made = SegmentHeader(run, first, log, *new_session(), DESTINATION, 1e9)
    return msgspec.structs.replace(made, **changed)


def record(idx: int, body: bytes = b"body", name: str = "event") -> Record:
    return Record(idx, name, 1e9 + idx, zlib.crc32(body), body)


def segment_with(path: Path, *records: Record, capacity: int = 2000, **changed: Any) -> Segment:
    """A segment that is open, with some records."""
    segment = Segment.create(path, capacity)
    segment.begin(header(first=records[0].idx if records else 0, **changed))
    for each in records:
        assert segment.append(each.idx, each.name, each.received, each.crc, each.body)
    return segment


def contents_of(path: Path) -> tuple[list[Record], str]:
    """The records that a file gives, one read after the other, and what is said to be wrong behind them."""
    segment = Segment.load(path)
    records: list[Record] = []
    if segment.header is None:
        return records, segment.damage or "no run has begun to use it"
    try:
        while batch := segment.read(segment.first + len(records), 3, 2**20):
            records += batch
    except SpoolDamaged as error:
        return records, str(error)
    return records, segment.damage
