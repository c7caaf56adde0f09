"""Changes that keep an input well-formed, so that a campaign gets behind the first check. Seeded, and nothing else."""

from __future__ import annotations

import math
import random
import sqlite3
import tempfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy

from tiledbroker import CodecError, Encoder, decode
from tiledbroker.protocol import messages

from . import framing
from .seeds import MESSAGES

Mutate = Callable[[bytes, int], bytes]
"""The fuzzer's own way to change bytes, to at most so many."""

_VALUES: Final = (
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    2**64 - 1,
    10**400,
    0.5,
    math.nan,
    math.inf,
    "",
    "primary",
    "uid",
    "file://localhost/data/a.h5",
    "../../x",
    "a" * 300,
    "\ud800",
    "\0",
    b"",
    b"\xff",
    [],
    {},
    [[]],
    [1, "a", None],
    {"": {}},
    {"a": [{"b": 1}]},
    1j,
    numpy.float32(1),
    numpy.datetime64("NaT"),
    numpy.str_("a"),
    numpy.zeros((2, 3)),
    numpy.zeros((0, 3)),
    numpy.array(["a", None], dtype=object),
    numpy.zeros(1, [("a", "i4"), ("b", "S3")]),
    "number",
    "array",
    "integer",
    "string",
    "<f8",
    "image/tiff",
    [2**40, 2**40],
    [-1],
    ["<U0"],
)


def mutated(target: str, data: bytes, seed: int, mutate: Mutate, max_size: int) -> bytes:
    """Another input like `data`."""
    chance = random.Random(seed)
    result = _WAYS[target](data, chance, mutate) if chance.random() < 0.7 else mutate(data, max_size)
    return result if len(result) <= max_size else mutate(data, max_size)


def _codec(data: bytes, chance: random.Random, _: Mutate) -> bytes:
    return _document(data, chance) or data


def _frames(data: bytes, chance: random.Random, mutate: Mutate) -> bytes:
    frames = framing.split(data)
    if len(frames) < 2 or chance.random() < 0.2:  # all kinds look alike to what counts coverage
        frames = messages.encode(chance.choice(MESSAGES))
    if chance.random() < 0.3:
        i = chance.randrange(len(frames))
        frames[i] = mutate(frames[i], len(frames[i]) + 20)
        return framing.join(frames)
    try:
        header = msgspec.msgpack.decode(frames[1])
        frames[1] = msgspec.msgpack.encode(_changed(header, chance))
    except (ValueError, TypeError, OverflowError, RecursionError):
        frames[1] = mutate(frames[1], len(frames[1]) + 20)
    if len(frames) > 2:
        frames[2] = frames[2][: chance.randrange(len(frames[2]) + 1)]
    return framing.join(frames)


def _fold(data: bytes, chance: random.Random, _: Mutate) -> bytes:
    documents = list(framing.documents(data))
    if not documents:
        return data
    i, way = chance.randrange(len(documents)), chance.random()
    name, body = documents[i]
    if way < 0.7:
        documents[i] = (name, _document(body, chance) or body)
    elif way < 0.8:
        documents.pop(i)
    elif way < 0.9:
        documents.insert(chance.randrange(len(documents)), (name, body))
    else:
        documents[i] = (chance.choice(framing.NAMES), body)
    return framing.joined_documents(documents)


def _journal(data: bytes, chance: random.Random, mutate: Mutate) -> bytes:
    """What a program that knows SQLite can do to the file, or a flipped bit."""
    if chance.random() < 0.5:
        changed = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 10)) if data else 0):
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
        return bytes(changed)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        path = Path(directory) / "x"
        path.write_bytes(data)
        try:
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.set_progress_handler(lambda: 1, 100_000)
                _tamper(connection, chance)
        except (sqlite3.Error, OverflowError, TypeError, UnicodeDecodeError, MemoryError):
            return mutate(data, len(data) + 100)
        return path.read_bytes()


def _tamper(connection: sqlite3.Connection, chance: random.Random) -> None:
    triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        connection.execute(f'DROP TRIGGER "{name}"')
    table, columns = chance.choice(
        (
            ("documents", ("idx", "name", "received", "crc", "body")),
            ("state", ("key", "value")),
            ("progress", ("node", "rows", "intent")),
            ("history", ("id", "time", "event", "detail")),
        )
    )
    column = chance.choice(columns)
    old = connection.execute(f"SELECT {column} FROM {table} ORDER BY random() LIMIT 1").fetchone()
    value: Any = chance.choice((None, -1, 2**63 - 1, 0, 1.5, "x", "{}", "[]", "null", "1", '"a"', b"", b"\xff\xfe"))
    connection.execute(
        f"UPDATE OR IGNORE {table} SET {column} = ? WHERE {column} IS ?", (value, None if old is None else old[0])
    )
    if table == "documents" and column == "body":
        row = connection.execute("SELECT idx, body FROM documents ORDER BY random() LIMIT 1").fetchone()
        if row is not None and isinstance(row[1], bytes) and (body := _document(row[1], chance)):
            values = (body, zlib.crc32(body), row[0])
            connection.execute("UPDATE documents SET body = ?, crc = ? WHERE idx = ?", values)
    if chance.random() < 0.8:
        for _, sql in triggers:
            connection.execute(sql)


def _document(body: bytes, chance: random.Random) -> bytes | None:
    """The document with something changed; None if it is none."""
    try:
        document = decode(body)
    except CodecError:
        return None
    for _ in range(chance.choice((1, 1, 1, 3))):
        document = _changed(document, chance)
    return Encoder().encode(document if isinstance(document, dict) else {"value": document})


def _changed(value: Any, chance: random.Random) -> Any:
    """The same but for one thing somewhere inside."""
    way = chance.random()
    if isinstance(value, dict) and value and way < 0.9:
        key = chance.choice(list(value))
        rest = {other: item for other, item in value.items() if other != key}
        if way < 0.65:
            return {**value, key: _changed(value[key], chance)}
        if way < 0.75:
            return rest
        if way < 0.85:
            other = chance.choice(list(value))
            return {**value, key: value[other]}
        return {**rest, chance.choice(("", "uid", "data", "x" * 300, "A", "time")): value[key]}
    if isinstance(value, list) and value and way < 0.85:
        i = chance.randrange(len(value))
        if way < 0.6:
            return [*value[:i], _changed(value[i], chance), *value[i + 1 :]]
        return value[:i] + value[i + 1 :] if way < 0.7 else value[:i] + [value[i]] * 3 + value[i:]
    if isinstance(value, int) and way < 0.5:
        return value + chance.choice((-1, 1, 2**32, -(2**33)))
    if isinstance(value, str) and way < 0.4:
        return value[: chance.randrange(len(value) + 1)] + chance.choice(("", "é", "/", "\n", "0"))
    return chance.choice(_VALUES)


_WAYS: Final = {"frames": _frames, "codec": _codec, "fold": _fold, "journal": _journal}
