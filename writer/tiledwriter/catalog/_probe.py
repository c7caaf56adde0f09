"""Test the databases behind Tiled after Tiled has answered 500 to a request.

Tiled's `/healthz` returns a constant and reports success even while a database is down. The probe therefore reads a
node from the catalog database and a row count from the table storage. To detect databases that can only be read (full
disk, read-only replica), it also creates a table, appends a row and deletes the table's node. It reads nothing of that
table, because reads may lag behind writes.
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
SQL_TABLE: Final = "application/x-tiled-sql-table"

_COLUMN: Final = "tiledwriter_probe_row"

Ask: TypeAlias = Callable[..., httpx.Response]
"""Function that sends a request (method, endpoint, path, options) without retrying; raises unless Tiled does it."""


class DatabaseProbe:
    """Probe of the databases that the requests of one run need.

    Attributes
    ----------
    run
        Path of the run's node; "" until it exists.
    column
        Path of a table's column; "" until there is one.
    on_table
        Called with the path of the probe's table before its creation, and with None after its deletion. A process
        that dies in between leaves the table behind.
    """

    def __init__(self) -> None:
        self.run = ""
        self.column = ""
        self.on_table: Callable[[str | None], None] = lambda _: None

    def can_read(self, ask: Ask) -> bool:
        """Return True if the catalog database returns a node and the table storage, once used, a row count."""
        try:
            ask("GET", "metadata", self.run)
            if self.column:
                ask("GET", "metadata", self.column, params={"fields": "structure"})
        except ServerError:
            return False
        return True

    def can_write(self, ask: Ask) -> bool:
        """Return True if both databases accept a table with one row; the table's node is deleted again."""
        path = f"{self.run}/{PROBE_KEY}" if self.run else PROBE_KEY
        self.on_table(path)
        try:
            source = self._create_table(ask, path)
            ask("PATCH", "table/partition", path, params={"partition": 0}, **_one_row())
            self._delete_node(ask, path, source)
        except ServerError:
            return False
        self.on_table(None)
        return True

    def _create_table(self, ask: Ask, path: str) -> dict[str, Any]:
        """Create the table and return its data source; if an earlier probe left a table, delete that first."""
        parent, _, key = path.rpartition("/")
        try:
            created = ask("POST", "metadata", parent, json=_table_body(key))
        except Refused as error:
            if error.status != 409:
                raise
            # Do not read that table: it may be detached already, and Tiled answers 500 to requests for the rows of a
            # table without a `dataset_id`.
            node = ask("GET", "metadata", path, params={"include_data_sources": True}).json()["data"]
            self._delete_node(ask, path, node["attributes"]["data_sources"][0])
            created = ask("POST", "metadata", parent, json=_table_body(key))
        source: dict[str, Any] = created.json()["data_sources"][0]
        return source

    def _delete_node(self, ask: Ask, path: str, source: Mapping[str, Any]) -> None:
        """Delete the node, which has this data source, but not its row; see `Rewrite` for the reason."""
        ask("PUT", "data_source", path, json={"data_source": without_rows(source)})
        ask("DELETE", "metadata", path, params={"external_only": False})


def without_rows(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table's data source without the number of its data set, so that Tiled finds no rows to delete."""
    return {**source, "parameters": {**source["parameters"], "dataset_id": None}}


def _probe_schema() -> pyarrow.Schema:
    return pyarrow.schema([(_COLUMN, pyarrow.int64())])


def _table_body(key: str) -> dict[str, Any]:
    structure = TableStructure.from_schema(_probe_schema(), 1)
    source = {
        "structure_family": "table",
        "mimetype": SQL_TABLE,
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
    with pyarrow.ipc.new_file(sink, _probe_schema()) as writer:
        writer.write_table(pyarrow.table({_COLUMN: [1]}, schema=_probe_schema()))
    return {"content": bytes(sink.getvalue()), "content_type": ARROW_FILE}
