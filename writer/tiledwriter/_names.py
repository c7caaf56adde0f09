"""Names that Tiled accepts for nodes and table columns, derived from names in documents."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

TIMESTAMP: Final = "ts_"
TABLE_KEY: Final = "internal"
TIME: Final = "time"

REWRITE_SUFFIX: Final = "_rewrite"
"""What the name of a table's copy, to which the table is rewritten, has in addition."""

TRIAL_KEY: Final = f"{TABLE_KEY}_trial"
"""The key of an array that is created and deleted again, to find out where Tiled puts those of a stream."""

# Besides the table itself, which is among the names taken.
_OWN_NODE: Final = re.compile(rf"{TABLE_KEY}(_\d+)?{REWRITE_SUFFIX}|{TABLE_KEY}_\d+(_row)?|{TRIAL_KEY}")

# PostgreSQL would cut a longer identifier without an error.
_MAX_COLUMN_NAME_BYTES: Final = 63
_COLUMN: Final = re.compile(r"[a-zA-Z].*")
_REFUSED_IN_COLUMN_NAMES: Final = re.compile(r"""['"`;\\%()=+\x00-\x1f\x7f]|--|/\*|\*/""")
# Columns that every table of PostgreSQL has.
_SYSTEM_COLUMNS: Final = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
_REFUSED_IN_URL: Final = re.compile(r"[/?#%\\\x00-\x1f\x7f]")
_COLUMN_DIGEST_CHARACTERS: Final = 8
# The server makes file names from quoted keys, and file systems do not take names of more than 255 bytes.
_MAX_QUOTED_KEY_CHARACTERS: Final = 240
_KEY_DIGEST_CHARACTERS: Final = 16
# 4 UTF-8 bytes, each quoted as 3 characters.
_MAX_CHARACTERS_QUOTED_FROM_ONE: Final = 12


def column_name(key: str) -> str:
    """Return the column name for a data key; `ts_` and that name is the column of its timestamps.

    It is the key itself if Tiled accepts both names. Otherwise `_` replaces refused characters, `x` precedes a name
    that does not begin with a letter or that PostgreSQL has for itself, and a digest ends a name that is too long.
    """
    name = _REFUSED_IN_COLUMN_NAMES.sub("_", key)
    if not _COLUMN.match(name) or name.lower() in _SYSTEM_COLUMNS:
        name = f"x{name}"
    room = _MAX_COLUMN_NAME_BYTES - len(TIMESTAMP)
    if len(name.encode("utf-8", "backslashreplace")) > room:
        digest = hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()[:_COLUMN_DIGEST_CHARACTERS]
        head = name.encode("utf-8", "backslashreplace")[: room - _COLUMN_DIGEST_CHARACTERS - 1].decode(
            "utf-8", "ignore"
        )
        name = f"{head}_{digest}"
    return name.encode("utf-8", "backslashreplace").decode()


def node_key(name: str) -> str:
    """Return the node key for a name. Keys become parts of URLs, and some clients do not quote all characters.

    The server also makes names of files and directories from keys, so their length is limited.
    """
    key = _REFUSED_IN_URL.sub("_", name).encode("utf-8", "backslashreplace").decode()
    key = "".join(c if c.isprintable() else "_" for c in key)
    if not key.strip("."):
        return f"{key.replace('.', '_')}_"
    return key if _length_in_url(key) <= _MAX_QUOTED_KEY_CHARACTERS else _with_digest(key, name)


def run_key(uid: str) -> str:
    """Return the key of a run's node: its uid if Tiled accepts that, otherwise a similar key unique to this run."""
    key = node_key(uid)
    return key if key == uid else _with_digest(key, uid)


def _with_digest(key: str, name: str) -> str:
    """Return a key with a digest of `name`, to distinguish names with the same key; shorten it to the limit."""
    end = f"-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:_KEY_DIGEST_CHARACTERS]}"
    while _length_in_url(key) + len(end) > _MAX_QUOTED_KEY_CHARACTERS:
        key = key[
            : -max(1, (_length_in_url(key) + len(end) - _MAX_QUOTED_KEY_CHARACTERS) // _MAX_CHARACTERS_QUOTED_FROM_ONE)
        ]
    return key if key.endswith(end) else key + end


def _length_in_url(key: str) -> int:
    return len(quote(key, safe=""))


class StreamNames:
    """All names used in one stream: of nodes, columns and dimensions.

    Readers see nodes and columns in one namespace, and a dimension name must have the same size everywhere. Data keys
    keep their names if Tiled accepts them; the others get names that no data key has. Each change is reported to
    `note`.

    Parameters
    ----------
    about
        Prefix of the notes.
    note
        Called with a text for each changed name.
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
        """Reserve the names of a descriptor's data keys, and node names for those with external data."""
        self._keys |= data_keys.keys()
        for key in [key for key, data_key in data_keys.items() if data_key.get("external")]:
            if key not in self._external:
                self._external[key] = self._free_name(key, node_key(_visible_key(key)), self._is_free)
                self._taken.add(self._external[key])

    def name_for_files(self, key: str) -> str:
        """Return the name of the node for a data key's files."""
        if key not in self._external:
            self.declare({key: {"external": "STREAM:"}})
        self._used.add(key)
        return self._note_renaming(key, self._external[key])

    def has_files(self, key: str) -> bool:
        """Return whether there is a node for a data key's files."""
        return key in self._used

    def name_for_values(self, key: str, *, as_column: bool) -> tuple[str, str]:
        """Return the names of the column or node for a data key's values, and of the column for their timestamps."""
        if key in self._external and key not in self._used:
            # Its data is in the events although it was declared external, so the reserved name is free.
            self._taken.discard(self._external.pop(key))
        make = column_name if as_column else node_key
        name = self._free_name(key, make(_visible_key(key)), self._is_free_with_timestamps)
        timestamps = f"{TIMESTAMP}{column_name(name)}"
        self._taken |= {name, timestamps}
        return self._note_renaming(key, name), timestamps

    def of_array(self, key: str) -> str:
        """Return the name that `name_for_values` would give the node of a data key now, without reserving it."""
        return self._free_name(key, node_key(_visible_key(key)), self._is_free_with_timestamps)

    def of_dimensions(self, node: str, names: Sequence[str], sizes: Sequence[int]) -> list[str]:
        """Return names for a node's dimensions: distinct, and each with one size in the stream.

        Only the first dimension may be "time".
        """
        given: list[str] = []
        for position, (name, size) in enumerate(zip(names, sizes, strict=True)):
            own = free = str(name)
            while (
                free in given
                or free == node
                or (free == TIME and position > 0)
                or (position > 0 and self._sizes.get(free, size) != size)
            ):
                free += "_"
            if position > 0:
                self._sizes[free] = size
            if free != own:
                self._note(
                    f"{self._about}: dimension {own!r} of {node!r} is called {free!r}, because its own name is in use."
                )
            given.append(free)
        return given

    def own_dimensions(self, node: str, count: int) -> list[str]:
        """Return dimension names for a node whose rows are not the stream's events."""
        first = f"{node}_frame"
        while first in self._sizes or first in self._taken:
            first += "_"
        return [first, *(f"{node}_dim{number}" for number in range(1, count))]

    def _free_name(self, key: str, name: str, is_free: Callable[[str], bool]) -> str:
        others = self._keys - {key}
        while name in others or not is_free(name):
            name += "_"
        return name

    def _is_free(self, name: str) -> bool:
        return name not in self._taken and not _OWN_NODE.fullmatch(name)

    def _is_free_with_timestamps(self, name: str) -> bool:
        return self._is_free(name) and self._is_free(f"{TIMESTAMP}{column_name(name)}")

    def _note_renaming(self, key: str, name: str) -> str:
        if name != key:
            hidden = _visible_key(key) != key
            why = "Tiled's client leaves out" if hidden else "Tiled does not accept"
            self._note(f"{self._about}: {key!r} is stored as {name!r}, because {why} its own name here.")
        return name


def _visible_key(key: str) -> str:
    """Return a data key with `x` before it if clients would take its name for that of timestamps, and leave it out."""
    return f"x{key}" if key.startswith(TIMESTAMP) else key
