"""Read back the nodes of a run in pieces, with at most a few tens of megabytes in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy
import pyarrow

from .._errors import Refused, ServerError
from ..mapping import Array
from ._connection import Connection
from ._nodes import Nodes
from ._probe import ARROW_FILE

MAX_BYTES: Final = 32 * 2**20

# Column names are part of the URL, and a proxy such as nginx does not take more than 8 KiB of it by default.
_MAX_NAME_CHARACTERS_PER_REQUEST: Final = 4_000
_TYPICAL_VALUE_BYTES: Final = 16


class StoredNodes:
    """Reader of nodes on a server.

    Errors are those of `Connection.send`.

    Parameters
    ----------
    connection
        Connection to the server.
    directory
        Directory for local copies of tables; the caller removes it.
    """

    def __init__(self, connection: Connection, directory: Path) -> None:
        self._connection = connection
        self._directory = directory
        self._numbers = count()

    def attributes(self, path: str) -> Mapping[str, Any] | None:
        """Return a node's attributes with its data sources; None if there is no such node."""
        try:
            response = self._connection.send("GET", "metadata", path, params={"include_data_sources": True})
        except Refused as error:
            if error.status == 404:
                return None
            raise
        attributes: Mapping[str, Any] = response.json()["data"]["attributes"]
        return attributes

    def answers_for(self, path: str) -> bool:
        """Return whether the server can read the attributes of a node at the moment."""
        try:
            return self.attributes(path) is not None
        except (ServerError, LookupError, TypeError, ValueError):
            return False

    def below(self, path: str) -> Iterator[str]:
        """Yield the paths of all nodes below a container."""
        return Nodes(self._connection).below(path)

    def table(self, path: str, columns: Sequence[str]) -> StoredTable:
        """Copy these columns of a table, as they are now, to `directory` and return the copy."""
        rows = self._row_count(path, columns[0])
        files = [self._download_columns(path, group) for group in _group_columns(columns, rows)]
        return StoredTable(files)

    def rows_of_array(self, path: str, dtype: numpy.dtype[Any], shape: Sequence[int], first: int, stop: int) -> Array:
        """Return rows `first` to `stop` of an array, or fewer if it is shorter.

        Parameters
        ----------
        path
            The array's path.
        dtype
            Type of the elements.
        shape
            Shape of one row.
        first, stop
            Range of rows.
        """
        params = {"slice": f"{first}:{stop}", "format": "application/octet-stream"}
        response = self._connection.send("GET", "array/full", path, params=params)
        return numpy.frombuffer(response.content, dtype).reshape((-1, *shape))

    def _row_count(self, path: str, column: str) -> int:
        response = self._connection.send("GET", "metadata", f"{path}/{column}", params={"fields": "structure"})
        structure = response.json()["data"]["attributes"]["structure"] or {}
        return int((structure.get("shape") or [0])[0])

    def _download_columns(self, path: str, columns: Sequence[str]) -> Path:
        params = {"partition": 0, "column": list(columns), "format": ARROW_FILE}
        response = self._connection.send("GET", "table/partition", path, params=params)
        file = self._directory / f"{next(self._numbers)}.arrow"
        file.write_bytes(response.content)
        return file


class StoredTable:
    """Columns of a table, memory-mapped from local copies.

    Parameters
    ----------
    files
        Arrow files, each with some of the columns.

    Attributes
    ----------
    rows
        Number of rows that all columns have.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._columns: dict[str, pyarrow.ChunkedArray] = {}
        for file in files:
            table = pyarrow.ipc.open_file(pyarrow.memory_map(str(file))).read_all()
            self._columns.update(zip(table.column_names, table.columns, strict=True))
        # The table may grow between two copies, so a later copy may have more rows.
        self.rows = min((len(column) for column in self._columns.values()), default=0)

    def column(self, name: str) -> pyarrow.ChunkedArray:
        """Return the values of a column in row order."""
        return self._columns[name].slice(0, self.rows)


def _group_columns(columns: Sequence[str], rows: int) -> Iterator[list[str]]:
    """Yield groups of columns, each to be read with one request."""
    limit = max(1, MAX_BYTES // (_TYPICAL_VALUE_BYTES * max(rows, 1)))
    group: list[str] = []
    for column in columns:
        if group and (len(group) >= limit or sum(map(len, group)) + len(column) > _MAX_NAME_CHARACTERS_PER_REQUEST):
            yield group
            group = []
        group.append(column)
    yield group
