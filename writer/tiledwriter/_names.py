"""Names that Tiled takes for nodes and for the columns of tables, made from names that it does not take."""

from __future__ import annotations

import hashlib
import re
from typing import Final

TIMESTAMP: Final = "ts_"

_MAX_BYTES: Final = 63  # of an identifier in PostgreSQL
_COLUMN: Final = re.compile(r"[a-zA-Z].*")
_REFUSED: Final = re.compile(r"""['"`;\\%()=+\x00-\x1f\x7f]|--|/\*|\*/""")
_REFUSED_IN_URL: Final = re.compile(r"[/?#%\\\x00-\x1f\x7f]")
_DIGEST: Final = 8


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
    """A name as the key of a node: paths in URLs are made of keys, and clients do not quote all of them."""
    key = _REFUSED_IN_URL.sub("_", name).encode("utf-8", "backslashreplace").decode()
    return key if key.strip(".") else f"{key.replace('.', '_')}_"
