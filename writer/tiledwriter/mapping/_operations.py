"""What a run becomes in Tiled, as values: the pure core makes them, the catalog applies them.

Paths are relative to the container that runs are written to, first the run's uid: `<uid>/primary/internal`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy
import numpy.typing
import pyarrow

Specs: TypeAlias = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class Column:
    """A table column: its name and Arrow type, e.g. `("motor", "float64")` or `("roi", "list<int64>")`."""

    name: str
    type: str


@dataclass(frozen=True)
class CreateContainer:
    """Make a container; `identity` is what of its metadata proves that an existing one is the same."""

    path: str
    metadata: Mapping[str, Any]
    specs: Specs = ()
    access_tags: tuple[str, ...] | None = None
    identity: tuple[str, ...] = ()


@dataclass(frozen=True)
class CreateTable:
    """Make an appendable table without rows, whose rows come back ordered by the columns in `order`."""

    path: str
    columns: tuple[Column, ...]
    order: tuple[str, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    access_tags: tuple[str, ...] | None = None


@dataclass(frozen=True)
class AppendRows:
    """Rows `first` up to `stop` of a table, column by column."""

    path: str
    first: int
    columns: tuple[Column, ...]
    values: tuple[pyarrow.Array, ...]

    @property
    def stop(self) -> int:
        """The table's number of rows afterwards."""
        return self.first + (len(self.values[0]) if self.values else 0)

    def rows(self, first: int, stop: int) -> AppendRows:
        """The part of the operation that is rows `first` to `stop` of the table."""
        part = slice(max(first - self.first, 0), stop - self.first)
        return replace(self, first=max(first, self.first), values=tuple(values[part] for values in self.values))


@dataclass(frozen=True)
class OrderTable:
    """From now on a table's rows come back ordered by these columns; by none: as they were appended."""

    path: str
    order: tuple[str, ...]


@dataclass(frozen=True)
class CreateArray:
    """Make an array stored by Tiled that grows along its first dimension, in chunks of `chunk_rows` rows.

    `shape` is the shape of one row. The node begins without rows.
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
    """Rows `first` up to `stop` of an array, at their place."""

    path: str
    first: int
    values: numpy.typing.NDArray[Any]

    @property
    def stop(self) -> int:
        """The array's number of rows afterwards."""
        return self.first + len(self.values)

    def rows(self, first: int, stop: int) -> WriteArray:
        """The part of the operation that is rows `first` to `stop` of the array."""
        part = slice(max(first - self.first, 0), stop - self.first)
        return replace(self, first=max(first, self.first), values=self.values[part])


@dataclass(frozen=True)
class RegisterExternal:
    """Make a node for files that somebody else wrote, without rows; `data_source` as Tiled's API takes it."""

    path: str
    data_source: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    access_tags: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ExtendExternal:
    """The files have `stop` datums now; `data_source` is the node's whole state, `offset` and `shape` what is new.

    Of its files Tiled was told so many before as `known_assets` says, and keeps them.
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
        """The node's state with no other files than the new ones."""
        return {**self.data_source, "assets": self.data_source["assets"][self.known_assets :]}


@dataclass(frozen=True)
class DescribeExternal:
    """The files have no more datums, and these are the node's structure and parameters; its files are as they are."""

    path: str
    data_source: Mapping[str, Any]


@dataclass(frozen=True)
class UpdateMetadata:
    """Set these top-level keys of a node's metadata."""

    path: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class RemoveNode:
    """Delete a node of ours, if there is one, whose data has found another place."""

    path: str


@dataclass(frozen=True)
class Audit:
    """Make sure that a node's first dimension is `rows`, or a table has that many.

    `columns` of a table are names with the digests of their values (see `ColumnDigest`), None where the values cannot
    be compared. At least one, of which the rows are counted.
    """

    path: str
    rows: int
    columns: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class CloseStream:
    """Tell those who follow a node live that nothing more comes."""

    path: str


Growth: TypeAlias = AppendRows | WriteArray | ExtendExternal
Creation: TypeAlias = CreateContainer | CreateTable | CreateArray | RegisterExternal
Operation: TypeAlias = (
    Creation | Growth | OrderTable | DescribeExternal | RemoveNode | Audit | UpdateMetadata | CloseStream
)


class ColumnDigest:
    """The digest of a column's values, as they are sent and as they are read back: numbers of 8 bytes."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._comparable = True

    def add(self, values: pyarrow.Array) -> None:
        """Go on with these values of an "int64" or "float64" column; a missing one cannot be compared."""
        if not self._comparable or values.null_count:
            self._comparable = False
            return
        self.add_bytes(values.to_numpy().tobytes())

    def add_bytes(self, values: bytes) -> None:
        """Go on with values as they are in memory."""
        self._hash.update(values)

    @property
    def value(self) -> str | None:
        """In hexadecimal digits; None if there was a value that cannot be compared."""
        return self._hash.hexdigest() if self._comparable else None


def describe_operation(operation: Operation) -> str:
    """One line for logs and errors, without the data."""
    text = f"{type(operation).__name__} {operation.path}"
    if isinstance(operation, AppendRows | WriteArray | ExtendExternal):
        text += f" rows {operation.first} to {operation.stop}"
    return text
