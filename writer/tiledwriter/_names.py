"""Names that Tiled takes for nodes and for the columns of tables, made from names that it does not take."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

TIMESTAMP: Final = "ts_"
TABLE_KEY: Final = "internal"
TIME: Final = "time"

_FURTHER_TABLE: Final = re.compile(rf"{TABLE_KEY}_\d+(_row)?")

_MAX_BYTES: Final = 63  # of an identifier in PostgreSQL
_COLUMN: Final = re.compile(r"[a-zA-Z].*")
_REFUSED: Final = re.compile(r"""['"`;\\%()=+\x00-\x1f\x7f]|--|/\*|\*/""")
_REFUSED_IN_URL: Final = re.compile(r"[/?#%\\\x00-\x1f\x7f]")
_DIGEST: Final = 8
_MAX_KEY: Final = 240  # characters, quoted as in URLs; file systems take 255 bytes
_KEY_DIGEST: Final = 16
_MOST_PER_CHARACTER: Final = 12


def column_name(key: str) -> str:
    """A name for the column of a data key; its timestamps then go by `ts_` and that name.

    The key itself if Tiled takes both. Otherwise with `_` for what it refuses, and an `x` where no letter comes first.
    """
    name = _REFUSED.sub("_", key)
    if not _COLUMN.match(name):
        name = f"x{name}"
    room = _MAX_BYTES - len(TIMESTAMP)
    if len(name.encode("utf-8", "backslashreplace")) > room:
        digest = hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()[:_DIGEST]
        head = name.encode("utf-8", "backslashreplace")[: room - _DIGEST - 1].decode("utf-8", "ignore")
        name = f"{head}_{digest}"
    return name.encode("utf-8", "backslashreplace").decode()


def node_key(name: str) -> str:
    """A name as the key of a node: paths in URLs are made of keys, and clients do not quote all of them.

    The server makes names of files and directories of them, too: so they are not too long.
    """
    key = _REFUSED_IN_URL.sub("_", name).encode("utf-8", "backslashreplace").decode()
    key = "".join(c if c.isprintable() else "_" for c in key)
    if not key.strip("."):
        return f"{key.replace('.', '_')}_"
    return key if _length_in_url(key) <= _MAX_KEY else _with_digest(key, name)


def run_key(uid: str) -> str:
    """The key of a run's node: its uid if Tiled takes that, else something like it that is no other run's."""
    key = node_key(uid)
    return key if key == uid else _with_digest(key, uid)


def _with_digest(key: str, name: str) -> str:
    """A key that tells names apart which would have the same; with its length kept within limits."""
    end = f"-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:_KEY_DIGEST]}"
    while _length_in_url(key) + len(end) > _MAX_KEY:
        key = key[: -max(1, (_length_in_url(key) + len(end) - _MAX_KEY) // _MOST_PER_CHARACTER)]
    return key if key.endswith(end) else key + end


def _length_in_url(key: str) -> int:
    return len(quote(key, safe=""))


class StreamNames:
    """All names that are given out in one stream: of nodes, of columns, and of dimensions.

    For readers nodes and columns are one set of names, and a dimension has one size in all of them. Data keys keep
    their names where Tiled takes them; the others get names that no data key has. Each change is told to `note`.
    """

    def __init__(self, about: str, note: Callable[[str], None]) -> None:
        self._about = about
        self._note = note
        self._keys: set[str] = set()
        self._taken: set[str] = {TABLE_KEY, "seq_num", TIME}
        self._external: dict[str, str] = {}
        self._used: set[str] = set()
        self._sizes: dict[str, int | None] = {TIME: None}

    def declare(self, data_keys: Mapping[str, Mapping[str, Any]]) -> None:
        """Keep names for data keys of a descriptor: of those in files the names of their nodes."""
        self._keys |= data_keys.keys()
        for key in [key for key, data_key in data_keys.items() if "external" in data_key]:
            if key not in self._external:
                self._external[key] = self._free(key, node_key(key), self._is_free)
                self._taken.add(self._external[key])

    def of_files(self, key: str) -> str:
        """The name of the node for a data key's files."""
        if key not in self._external:
            self.declare({key: {"external": ""}})
        self._used.add(key)
        return self._told(key, self._external[key])

    def of_values(self, key: str, *, as_column: bool) -> tuple[str, str]:
        """The names of the column, or of the node, for a data key's values, and of the column for their timestamps."""
        if key in self._external and key not in self._used:
            self._taken.discard(self._external.pop(key))  # its data is in the events
        name = self._free(key, column_name(key) if as_column else node_key(key), self._is_free_with_timestamps)
        timestamps = f"{TIMESTAMP}{column_name(name)}"
        self._taken |= {name, timestamps}
        return self._told(key, name), timestamps

    def of_array(self, key: str) -> str:
        """The name that the node for a data key's values would get now."""
        return self._free(key, node_key(key), self._is_free_with_timestamps)

    def of_dimensions(self, node: str, names: Sequence[str], sizes: Sequence[int]) -> list[str]:
        """Names for the dimensions of a node, of which the first may be "time": each once, and of one size."""
        given: list[str] = []
        for position, (name, size) in enumerate(zip(names, sizes, strict=True)):
            free = str(name)
            while (
                free in given
                or free == node
                or (free == TIME and position > 0)
                or (position > 0 and self._sizes.get(free, size) != size)
            ):
                free += "_"
            if position > 0:
                self._sizes[free] = size
            if free != name:
                self._note(f"{self._about}: dimension {str(name)!r} of {node!r} is called {free!r}, as others are.")
            given.append(free)
        return given

    def own_dimensions(self, node: str, count: int) -> list[str]:
        """Names for the dimensions of a node whose rows are not those of the stream's events."""
        first = f"{node}_frame"
        while first in self._sizes or first in self._taken:
            first += "_"
        return [first, *(f"{node}_dim{number}" for number in range(1, count))]

    def _free(self, key: str, name: str, is_free: Callable[[str], bool]) -> str:
        others = self._keys - {key}
        while name in others or not is_free(name):
            name += "_"
        return name

    def _is_free(self, name: str) -> bool:
        return name not in self._taken and not _FURTHER_TABLE.fullmatch(name)

    def _is_free_with_timestamps(self, name: str) -> bool:
        return self._is_free(name) and self._is_free(f"{TIMESTAMP}{column_name(name)}")

    def _told(self, key: str, name: str) -> str:
        if name != key:
            self._note(f"{self._about}: {key!r} is stored as {name!r}, as Tiled does not take that name here.")
        return name
