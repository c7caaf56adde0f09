"""Names that Tiled takes for nodes and for the columns of tables, made from names that it does not take."""

from __future__ import annotations

import hashlib
import re
from typing import Final
from urllib.parse import quote

TIMESTAMP: Final = "ts_"

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
