"""Runs in a site's log, as publishers append them and ingest hosts tell of them."""

from __future__ import annotations

import time
import zlib
from dataclasses import replace
from typing import Any

import msgspec
from log_site import LogSite

from tiledbroker import Encoder
from tiledbroker.jetstream import (
    RUNS_BUCKET,
    Connection,
    LogEntry,
    Receipt,
    Tail,
    bucket_subject,
    compose_messages,
    documents_subject,
    encode_receipt,
    parse_tail,
    receipt_key,
)
from tiledbroker.protocol import messages

Documents = list[tuple[str, dict[str, Any]]]


def records_of(documents: Documents) -> list[tuple[str, int, bytes]]:
    """Name, checksum and body of each document."""
    encoder = Encoder()
    bodies = [(name, encoder.encode(document)) for name, document in documents]
    return [(name, zlib.crc32(body), body) for name, body in bodies]


def append(site: LogSite, entry: LogEntry, beamline: str = "csx") -> Tail:
    """Append an entry to a run, whatever the run's last message is; return its tail."""
    subject = documents_subject(beamline, entry.run)

    async def store(connection: Connection) -> Tail:
        found = await connection.read_last("TW", subject)
        before = Tail() if found is None else parse_tail(found.seq, found.headers)
        parts, after = compose_messages(entry, before, connection.max_payload)
        seq = before.seq
        for part in parts:
            seq = await connection.append(subject, part.body, part.headers, seq)
        return replace(after, seq=seq)

    return site.ask(store)  # type: ignore[no-any-return]


def log_run(site: LogSite, documents: Documents, beamline: str = "csx", *, first: int = 0, batch: int = 3) -> Tail:
    """Append a run from an index on, some documents in each message; return its tail."""
    records = records_of(documents)
    uid = str(documents[0][1]["uid"])
    tail = Tail()
    for start in range(first, len(records), batch):
        tail = append(site, messages.documents(uid, start, records[start : start + batch]), beamline)
    return tail


def tell(site: LogSite, uid: str, tail: Tail, beamline: str = "csx", **values: Any) -> Receipt:
    """Store the receipt of a run, as an ingest host does that has all of the log."""
    told = Receipt(
        next=tail.next, ended=tail.ended, start_crc=tail.start_crc, end_crc=tail.end_crc, host="ingest", at=time.time()
    )
    receipt = msgspec.structs.replace(told, **values)

    async def store(connection: Connection) -> None:
        subject = bucket_subject(RUNS_BUCKET, receipt_key(beamline, uid))
        found = await connection.read_last(f"KV_{RUNS_BUCKET}", subject)
        await connection.append(subject, encode_receipt(receipt), {}, 0 if found is None else found.seq)

    site.ask(store)
    return receipt


def remove(site: LogSite, uid: str, beamline: str = "csx", *, before: int | None = None) -> None:
    """Remove a run from the log, or its messages before a number."""

    async def purge(connection: Connection) -> None:
        arguments = {"filter": documents_subject(beamline, uid), **({} if before is None else {"seq": before})}
        await connection.call("STREAM.PURGE.TW", arguments)

    site.ask(purge)
