"""Finds out whether the databases behind Tiled work, when Tiled answers 500 to something else.

`/healthz` is a constant: it says that all is well while a database is away. So the catalog is asked for a node, and the
table storage for the rows of a table. Databases that can only be read (a full disk, a replica) are told from such that
work by a table that is made, filled, read and removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import httpx
import pyarrow
from tiled.structures.table import TableStructure

from .._errors import Refused, ServerError

PROBE_KEY: Final = "tiledwriter_probe"
ARROW_FILE: Final = "application/vnd.apache.arrow.file"

_COLUMN: Final = "tiledwriter_probe_row"

Ask: TypeAlias = Callable[..., httpx.Response]
"""Sends a request once (method, endpoint, path and options of a request); raises unless Tiled carries it out."""


class DatabaseProbe:
    """Tries the databases that requests for one run need.

    Attributes
    ----------
    run
        The path of the run's node, once that exists.
    column
        The path of a table's column, once there is one.
    on_table
        Told the path of the probe's table before that is made, and None when it is gone: a process that dies in between
        leaves it.
    """

    def __init__(self) -> None:
        self.run = ""
        self.column = ""
        self.on_table: Callable[[str | None], None] = lambda _: None

    def reads(self, ask: Ask) -> bool:
        """Whether the catalog gives a node, and the table storage the number of a table's rows."""
        try:
            ask("GET", "metadata", self.run)
            if self.column:
                ask("GET", "metadata", self.column, params={"fields": "structure"})
        except ServerError:
            return False
        return True

    def writes(self, ask: Ask) -> bool:
        """Whether both take a table with one row; it is removed again."""
        path = f"{self.run}/{PROBE_KEY}" if self.run else PROBE_KEY
        self.on_table(path)
        try:
            self._make(ask, path)
            ask("PATCH", "table/partition", path, params={"partition": 0}, **_one_row())
            found = _rows(ask("GET", "metadata", f"{path}/{_COLUMN}", params={"fields": "structure"}))
            self._remove(ask, path)
        except ServerError:
            return False
        self.on_table(None)
        return found == 1

    def _make(self, ask: Ask, path: str) -> None:
        """Make the table, after the one is removed that an earlier probe could not remove."""
        parent, _, key = path.rpartition("/")
        try:
            ask("POST", "metadata", parent, json=_table(key))
        except Refused as error:
            if error.status != 409:
                raise
            # Nothing is asked of that table: without a data set's number Tiled answers 500 to what asks for its rows.
            self._remove(ask, path)
            ask("POST", "metadata", parent, json=_table(key))

    def _remove(self, ask: Ask, path: str) -> None:
        """Delete the node, and no rows: see `Rewrite`."""
        attributes = ask("GET", "metadata", path, params={"include_data_sources": True}).json()["data"]["attributes"]
        source: Mapping[str, Any] = attributes["data_sources"][0]
        detached = {**source, "parameters": {**source["parameters"], "dataset_id": None}}
        ask("PUT", "data_source", path, json={"data_source": detached})
        ask("DELETE", "metadata", path, params={"external_only": False})


def _schema() -> pyarrow.Schema:
    return pyarrow.schema([(_COLUMN, pyarrow.int64())])


def _table(key: str) -> dict[str, Any]:
    structure = TableStructure.from_schema(_schema(), 1)
    source = {
        "structure_family": "table",
        "mimetype": "application/x-tiled-sql-table",
        "parameters": {},
        "structure": {
            "arrow_schema": structure.arrow_schema,
            "npartitions": 1,
            "columns": structure.columns,
            "resizable": False,
        },
        "assets": [],
        "management": "writable",
        "properties": {},
    }
    return {
        "id": key,
        "metadata": {},
        "specs": [],
        "data_sources": [source],
        "access_tags": None,
        "structure_family": "table",
    }


def _one_row() -> dict[str, Any]:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, _schema()) as writer:
        writer.write_table(pyarrow.table({_COLUMN: [1]}, schema=_schema()))
    return {"content": bytes(sink.getvalue()), "content_type": ARROW_FILE}


def _rows(answer: httpx.Response) -> int:
    structure = answer.json()["data"]["attributes"]["structure"] or {}
    return int((structure.get("shape") or [0])[0])
