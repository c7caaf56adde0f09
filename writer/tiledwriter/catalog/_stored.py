"""What Tiled holds of a run, read back piece by piece: no more than a few dozen megabytes in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy
import pyarrow

from .._errors import Refused
from ..mapping import Array
from ._connection import Connection
from ._nodes import Nodes
from ._probe import ARROW_FILE

MAX_BYTES: Final = 32 * 2**20

_MAX_NAMES: Final = 4_000  # characters of an address
_TYPICAL_VALUE: Final = 16  # bytes


class StoredNodes:
    """Reads nodes of a server.

    Parameters
    ----------
    connection
        To the server.
    directory
        Takes copies of tables; the caller removes it.
    """

    def __init__(self, connection: Connection, directory: Path) -> None:
        self._connection = connection
        self._directory = directory
        self._numbers = count()

    def attributes(self, path: str) -> Mapping[str, Any] | None:
        """What the server says of a node; None if there is none."""
        try:
            response = self._connection.send("GET", "metadata", path, params={"include_data_sources": True})
        except Refused as error:
            if error.status == 404:
                return None
            raise
        attributes: Mapping[str, Any] = response.json()["data"]["attributes"]
        return attributes

    def below(self, path: str) -> Iterator[str]:
        """Paths of all nodes below a container."""
        return Nodes(self._connection).below(path)

    def table(self, path: str, columns: Sequence[str]) -> StoredTable:
        """The rows of a table as they are now."""
        rows = self._rows(path, columns[0])
        files = [self._copy(path, group) for group in _groups(columns, rows)]
        return StoredTable(files)

    def rows_of_array(self, path: str, dtype: numpy.dtype[Any], shape: Sequence[int], first: int, stop: int) -> Array:
        """Rows of an array, of this type and this shape each: fewer if it has fewer."""
        params = {"slice": f"{first}:{stop}", "format": "application/octet-stream"}
        response = self._connection.send("GET", "array/full", path, params=params)
        return numpy.frombuffer(response.content, dtype).reshape((-1, *shape))

    def _rows(self, path: str, column: str) -> int:
        response = self._connection.send("GET", "metadata", f"{path}/{column}", params={"fields": "structure"})
        structure = response.json()["data"]["attributes"]["structure"] or {}
        return int((structure.get("shape") or [0])[0])

    def _copy(self, path: str, columns: Sequence[str]) -> Path:
        params = {"partition": 0, "column": list(columns), "format": ARROW_FILE}
        response = self._connection.send("GET", "table/partition", path, params=params)
        file = self._directory / f"{next(self._numbers)}.arrow"
        file.write_bytes(response.content)
        return file


class StoredTable:
    """Columns of a table, read from copies of it when they are needed."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._columns: dict[str, pyarrow.ChunkedArray] = {}
        for file in files:
            table = pyarrow.ipc.open_file(pyarrow.memory_map(str(file))).read_all()
            self._columns.update(zip(table.column_names, table.columns, strict=True))
        # Of a table that grows, a later copy has more rows.
        self.rows = min((len(column) for column in self._columns.values()), default=0)

    def column(self, name: str) -> pyarrow.ChunkedArray:
        """The values of a column, in the order of the rows."""
        return self._columns[name].slice(0, self.rows)


def _groups(columns: Sequence[str], rows: int) -> Iterator[list[str]]:
    """Columns to be asked for together."""
    limit = max(1, MAX_BYTES // (_TYPICAL_VALUE * max(rows, 1)))
    group: list[str] = []
    for column in columns:
        if group and (len(group) >= limit or sum(map(len, group)) + len(column) > _MAX_NAMES):
            yield group
            group = []
        group.append(column)
    yield group
