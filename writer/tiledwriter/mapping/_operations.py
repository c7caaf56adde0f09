"""Operations on Tiled as immutable values: the fold produces them, the catalog applies them.

Paths are relative to the container to which runs are written; their first part is the key of the run's node, usually
its uid: `<uid>/primary/internal`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import numpy
import numpy.typing
import pyarrow

Specs: TypeAlias = tuple[tuple[str, str | None], ...]
"""The specs of a node: pairs of name and version; the version may be None."""


@dataclass(frozen=True)
class Column:
    """A table column: its name and the name of its type, such as `("motor", "float64")` or `("roi", "list<int64>")`.

    `arrow_type` returns the Arrow type for such a name.
    """

    name: str
    type: str


@dataclass(frozen=True)
class CreateContainer:
    """Create a container.

    Attributes
    ----------
    path
        The path of the node.
    metadata
        The metadata of the node.
    specs
        Pairs of name and version.
    access_tags
        The access tags of the node; None for the server's default.
    identity
        The path, in the metadata, of a value that must be equal if a container already exists at `path`. Otherwise it
        belongs to something else. Empty: accept any container.
    """

    path: str
    metadata: Mapping[str, Any]
    specs: Specs = ()
    access_tags: tuple[str, ...] | None = None
    identity: tuple[str, ...] = ()


@dataclass(frozen=True)
class CreateTable:
    """Create an appendable table without rows.

    Attributes
    ----------
    path
        The path of the node.
    columns
        The columns.
    order
        The columns by which readers get the rows sorted.
    metadata
        The metadata of the node.
    access_tags
        The access tags of the node; None for the server's default.
    """

    path: str
    columns: tuple[Column, ...]
    order: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    access_tags: tuple[str, ...] | None = None


NEW_NODE: Final = "array"
FIRST_FILLED: Final = "filled"
"""What becomes of a data key that begins late: its numbers get a node, or something is put into the first row."""


@dataclass(frozen=True)
class AppendRows:
    """Append rows to a table.

    Attributes
    ----------
    path
        The path of the node.
    first
        The number of rows that precede these in the table.
    columns
        The columns.
    values
        The values of each column, all of equal length.
    begin_late
        Entries of the plan, as (stream, data key, type), that the run needs if its tables are in SQLite: columns that
        have their first value here, behind so many rows without one that it could not be read.
    """

    path: str
    first: int
    columns: tuple[Column, ...]
    values: tuple[pyarrow.Array, ...]
    begin_late: tuple[tuple[str, str, str], ...] = ()

    @property
    def loses_late_columns(self) -> bool:
        """Whether the table has other columns as soon as the plan has the entries of `begin_late`."""
        return any(kind == NEW_NODE for _, _, kind in self.begin_late)

    @property
    def stop(self) -> int:
        """The number of rows in the table after the operation."""
        return self.first + (len(self.values[0]) if self.values else 0)

    def rows(self, first: int, stop: int) -> AppendRows:
        """Return the part of the operation that appends the table's rows `first` to `stop - 1`."""
        part = slice(max(first - self.first, 0), stop - self.first)
        return replace(self, first=max(first, self.first), values=tuple(values[part] for values in self.values))


@dataclass(frozen=True)
class OrderTable:
    """Change the columns by which readers get a table's rows sorted; with no columns, the rows stay as appended."""

    path: str
    order: tuple[str, ...]


@dataclass(frozen=True)
class CreateArray:
    """Create an array without rows, stored by Tiled, that grows along its first dimension.

    Attributes
    ----------
    path
        The path of the node.
    dtype
        The NumPy type of the elements.
    shape
        The shape of one row.
    chunk_rows
        The number of rows per chunk.
    dims
        The names of the dimensions, that of the rows included.
    metadata
        The metadata of the node.
    access_tags
        The access tags of the node; None for the server's default.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    chunk_rows: int
    dims: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    access_tags: tuple[str, ...] | None = None


@dataclass(frozen=True)
class WriteArray:
    """Write rows of an array at their positions.

    Attributes
    ----------
    path
        The path of the node.
    first
        The position of the first row.
    values
        The rows; the first dimension counts them.
    """

    path: str
    first: int
    values: numpy.typing.NDArray[Any]

    @property
    def stop(self) -> int:
        """The number of rows in the array after the operation."""
        return self.first + len(self.values)

    def rows(self, first: int, stop: int) -> WriteArray:
        """Return the part of the operation that writes the array's rows `first` to `stop - 1`."""
        part = slice(max(first - self.first, 0), stop - self.first)
        return replace(self, first=max(first, self.first), values=self.values[part])


@dataclass(frozen=True)
class RegisterExternal:
    """Create a node without rows for files that a detector wrote.

    Attributes
    ----------
    path
        The path of the node.
    data_source
        The data source, in the form that Tiled's API accepts.
    metadata
        The metadata of the node.
    access_tags
        The access tags of the node; None for the server's default.
    """

    path: str
    data_source: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    access_tags: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ExtendExternal:
    """Register more datums of a node for external files.

    Attributes
    ----------
    path
        The path of the node.
    first, stop
        The number of datums before and after the operation.
    data_source
        The complete data source after the operation.
    offset, shape
        The region of the array that changes.
    known_assets
        The number of files, at the start of the list of assets, that Tiled knows from earlier operations and keeps.
    """

    path: str
    first: int
    stop: int
    data_source: Mapping[str, Any]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    known_assets: int = 0

    @property
    def new_data_source(self) -> dict[str, Any]:
        """The data source with the new files only."""
        return {**self.data_source, "assets": self.data_source["assets"][self.known_assets :]}


@dataclass(frozen=True)
class DescribeExternal:
    """Set the final structure and parameters of a node for external files; the list of its files does not change."""

    path: str
    data_source: Mapping[str, Any]


@dataclass(frozen=True)
class UpdateMetadata:
    """Set top-level keys of a node's metadata, and remove others, if it has them; all other keys keep their values."""

    path: str
    metadata: Mapping[str, Any]
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class RemoveNode:
    """Delete a node of the run, if it exists: its data is stored elsewhere now, or Tiled cannot read its files."""

    path: str


@dataclass(frozen=True)
class Audit:
    """Verify the number of rows of a node, and the values of a table's key columns.

    Attributes
    ----------
    path
        The path of the node.
    rows
        The expected number of rows of a table, or size of an array's first dimension.
    columns
        For a table: names of columns, each with the digest of its values (see `ColumnDigest`), or None if the values
        cannot be compared. There is at least one, because the rows of a column are counted. Empty for an array.
    """

    path: str
    rows: int
    columns: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class CloseStream:
    """Tell subscribers of a node that it is complete."""

    path: str


Growth: TypeAlias = AppendRows | WriteArray | ExtendExternal
"""An operation that adds rows to a node."""

Creation: TypeAlias = CreateContainer | CreateTable | CreateArray | RegisterExternal
"""An operation that creates a node."""

Operation: TypeAlias = (
    Creation | Growth | OrderTable | DescribeExternal | RemoveNode | Audit | UpdateMetadata | CloseStream
)


class ColumnDigest:
    """Digest of the values of an "int64" or "float64" column, to compare sent values with those read back."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._comparable = True

    def add(self, values: pyarrow.Array) -> None:
        """Add the next values of the column; a missing value makes the column incomparable."""
        if not self._comparable or values.null_count:
            self._comparable = False
            return
        self.add_bytes(values.to_numpy().tobytes())

    def add_bytes(self, values: bytes) -> None:
        """Add the next values of the column as bytes: 8 for each value, in native byte order."""
        self._hash.update(values)

    @property
    def value(self) -> str | None:
        """The digest in hexadecimal digits; None if a value was missing."""
        return self._hash.hexdigest() if self._comparable else None


def describe_operation(operation: Operation) -> str:
    """Return a one-line description of an operation for logs and errors, without its data."""
    text = f"{type(operation).__name__} {operation.path}"
    if isinstance(operation, AppendRows | WriteArray | ExtendExternal):
        text += f" rows {operation.first} to {operation.stop}"
    return text
