"""What a campaign begins with: one valid input of each kind, and inputs that have been trouble elsewhere."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy
from corpus import CORPUS
from stored_runs import Documents, a_run, journaled

from tiledbroker import Encoder, Journal
from tiledbroker.protocol import messages

from . import framing

CRASHERS: Final = Path(__file__).parent / "crashers"
"""Inputs that showed bugs, by target: kept for ever."""

_BODIES: Final = (("start", 5, b"abc"), ("event", 7, b""), ("stop", 2**32 - 1, b"defgh"))

MESSAGES: Final = (
    messages.Hello("me", {"a": 3, "b": 2**63}, ["b"]),
    messages.Welcome(65536, 4096, {"a": messages.RunState(3, True, "written", "why")}),
    messages.documents("run", 5, _BODIES),
    messages.Abandoned("a", 9),
    messages.Durable("a", 7, False),
    messages.Written("a", "failed", "why"),
    messages.Refused("a", 3, "gap"),
    messages.Ping(1),
    messages.Ping(1, 12, 3400, 1.5),
    messages.Report("run", 7, "count", "http://tiled:8000", "0.2.14", 1.5, 1.5, 1.5, requests={"ok": 3}, latencies=[3]),
    messages.Pong(2**64 - 1),
    messages.Ready("a", 3, True),
    messages.Progress("a", 4),
    messages.Finish(),
    messages.Reached("a"),
    messages.Unreachable("a", 1.5, "why", True),
    messages.SlotWanted("a"),
    messages.SlotGranted("a", True),
    messages.SlotRecalled("a"),
    messages.SlotReleased("a", "sqlite"),
)
"""One of each kind."""

_ENTRIES: Final = (
    "names-that-differ-in-case",
    "integer-then-float",
    "only-none",
    "nan-in-data",
    "unequal-arrays",
    "unequal-short-lists",
    "ragged-arrays",
)


def inputs(target: str) -> dict[str, bytes]:
    """Every input of a target, by name: seeds, and crashers."""
    seeds = {f"seed {i}": data for i, data in enumerate(_SEEDS[target]())}
    crashers = {path.name: path.read_bytes() for path in sorted((CRASHERS / target).glob("*"))}
    return {**seeds, **crashers}


def extension(code: int, payload: bytes) -> bytes:
    """A document with one value of an extension type."""
    return msgspec.msgpack.encode({"value": msgspec.msgpack.Ext(code, payload)})


def _frames() -> Iterator[bytes]:
    for message in MESSAGES:
        yield framing.join(messages.encode(message))
    for header in (b"\x93\xa1x\xdf\xff\xff\xff\xff", b"\x91\xdd\xff\xff\xff\xff", b"\x91\xc6\xff\xff\xff\xff"):
        yield framing.join([b"TW\x01\x01", header])
    yield framing.join([b"TW\x01\x03", msgspec.msgpack.encode(["r", 0, ["a"], [2**32], [0]]), b"x"])
    yield framing.join([b"TW\x01\x03", msgspec.msgpack.encode(["r", 0, ["a"] * 2, [2**63, -(2**63)], [0, 0]]), b""])


def _codec() -> Iterator[bytes]:
    encode = Encoder().encode
    for value in (
        [None, True, -5, 2**64 - 1, 1.5, "text", b"bytes", {"a": {}}],
        [2**70, -(2**200), "\ud800", 1j, len],
        [numpy.float32(1), numpy.datetime64("2024-01-01"), numpy.str_("a"), numpy.bool_(1), numpy.void(b"ab")],
        [numpy.arange(3), numpy.zeros((2, 1), [("a", ">i2"), ("b", "<f4", (2,))]), numpy.array([None, "x"])],
        [numpy.zeros((0, 5)), numpy.zeros((5, 0)), numpy.array(3), numpy.array(["a", "bc"]), numpy.longdouble(1)],
        [
            numpy.zeros(2, [("p", [("q", "<m8[25s]")], (2, 2))]),
            numpy.zeros((), "S0"),
            numpy.zeros(1, [(("t", "n"), "b1")]),
        ],
    ):
        yield encode({"value": value})
    for descr, shape in (
        ("|S0", [10**9]),
        ("<U0", [2**31, 2**31, 2]),
        ("<f8", [10**9, 0]),
        ("(1000000000,)f8", [0]),
        ("<m8[s/0]", [1]),
        ([["a", "<f8", [10**9]]], [0]),
        ([], [10**9]),
        ("<U500000000", [0]),
        ("f8," * 300 + "f8", [0]),
        ([["a", [["b", [["c", "|O"]]]]]], [1]),
    ):
        yield extension(2, msgspec.msgpack.encode([descr, shape, b"12345678", False]))
        yield extension(2, msgspec.msgpack.encode([descr, shape, b"", True]))
    for code in range(-1, 9):
        yield extension(code, b"\x03<f8" + bytes(range(8)))
    yield extension(4, msgspec.msgpack.encode([[10**9, 0], []]))
    yield extension(1, b"\x7f" * 4000)
    for claim in (b"\xc6", b"\xc9", b"\xdb", b"\xdd", b"\xdf"):
        yield b"\x81\xa1v" + claim + b"\xff\xff\xff\xff"
    yield b"\x81\xa1v" + b"\x91" * 3000 + b"\xc0"


def _fold() -> Iterator[bytes]:
    encoder = Encoder()
    for documents in _runs():
        yield framing.joined_documents((name, encoder.encode(document)) for name, document in documents)


def _journal() -> Iterator[bytes]:
    for documents in _runs():
        yield small_journal(documents)
        yield small_journal(documents[:-1], outcome="failed", reason="why", worker=[1, 2.0])
    yield small_journal([])
    with tempfile.TemporaryDirectory() as directory:
        foreign = Path(directory) / "foreign"
        with closing(sqlite3.connect(foreign)) as connection, connection:
            connection.executescript("PRAGMA page_size = 512; CREATE TABLE things(a);")
        yield foreign.read_bytes()
        pretender = Path(directory) / "pretender"
        with closing(sqlite3.connect(pretender)) as connection, connection:
            connection.executescript(
                "PRAGMA page_size = 512; PRAGMA application_id = 0x54574A4C; PRAGMA user_version = 1;"
                "CREATE TABLE state(key, value); CREATE TABLE progress(node, rows, intent);"
                "CREATE TABLE history(id, time, event, detail);"
                "CREATE VIEW documents AS WITH RECURSIVE d(idx) AS (SELECT 0 UNION ALL SELECT idx + 1 FROM d)"
                " SELECT idx, 'event' AS name, 0.0 AS received, 0 AS crc, x'80' AS body FROM d;"
            )
        yield pretender.read_bytes()
    yield b""
    yield b"SQLite format 3\0" + bytes(200)


def small_journal(documents: Documents, **state: Any) -> bytes:
    """A journal in one file of small pages, so that a fuzzer finds something in it."""
    with tempfile.TemporaryDirectory() as directory:
        if documents:
            path = journaled(documents, Path(directory))
        else:
            path = Path(directory) / "run.sqlite"
            Journal(path, "create").close()
        with Journal(path, "write") as journal:
            for key, value in state.items():
                journal.set(key, value)
            journal.note("worker started", pid=1)
            journal.set_progress("node", 3, 5)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.executescript("PRAGMA journal_mode = DELETE; PRAGMA page_size = 512; VACUUM;")
        return path.read_bytes()


def _runs() -> Iterator[Documents]:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        yield a_run(events=2, frames=place / "frames", pairs=True)
        for name in _ENTRIES:
            yield CORPUS[name].make(place)


_SEEDS: Final = {"frames": _frames, "codec": _codec, "journal": _journal, "fold": _fold}
