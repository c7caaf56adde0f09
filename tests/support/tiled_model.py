"""What operations do to Tiled, in memory: a model of `TiledCatalog` and the server that tests fold documents into."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import pyarrow
from hypothesis import strategies as st

from tiledwriter import RunNormalizer
from tiledwriter.mapping._columns import arrow_type
from tiledwriter.mapping._operations import (
    AppendRows,
    Audit,
    CloseStream,
    ColumnDigest,
    CreateArray,
    CreateContainer,
    CreateTable,
    DescribeExternal,
    ExtendExternal,
    OrderTable,
    RegisterExternal,
    RemoveNode,
    UpdateMetadata,
    WriteArray,
)
from tiledwriter.mapping._run_writer import RunWriter

Documents = list[tuple[str, dict[str, Any]]]
ColumnTypes = dict[tuple[str, str], str]

RUN = "run"


# What operations do


def frozen(value: Any) -> Any:
    """A value that compares equal to itself: NaN and NumPy's arrays do not."""
    if isinstance(value, Mapping):
        return {key: frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(item) for item in value]
    if isinstance(value, numpy.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    return (type(value).__name__, repr(value))


THAWED: Mapping[str, Callable[[str], Any]] = {"int": int, "float": float, "NoneType": lambda _: None}


@dataclass
class Node:
    """What a reader would see of a node, except for chunks."""

    kind: str
    metadata: dict[str, Any]
    layout: Any = None
    source: Any = None
    rows: list[Any] = field(default_factory=list)
    closed: bool = False


class Tiled:
    """Operations applied to nodes in memory, by row ranges, as `TiledCatalog` applies them."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def apply(self, operations: Iterable[Any]) -> None:
        for operation in operations:
            getattr(self, type(operation).__name__)(operation)

    @property
    def state(self) -> dict[str, Any]:
        """To compare; neither the order of nodes nor that of notes is part of it."""
        state = {path: frozen(vars(node)) for path, node in self.nodes.items()}
        for node in state.values():
            node["metadata"].get("notes", []).sort()
        return state

    def tables(self, stream: str) -> list[Node]:
        return [node for path, node in self.nodes.items() if path.startswith(f"{stream}/") and node.kind == "table"]

    def _create(self, operation: Any, kind: str, layout: Any) -> None:
        parent, _, key = operation.path.rpartition("/")
        assert key
        assert parent == "" or self.nodes[parent].kind == "container"
        json.dumps(operation.metadata, allow_nan=False)
        existing = self.nodes.setdefault(operation.path, Node(kind, dict(operation.metadata), layout))
        assert (existing.kind, frozen(existing.layout)) == (kind, frozen(layout))

    def CreateContainer(self, operation: CreateContainer) -> None:
        self._create(operation, "container", operation.specs)

    def CreateTable(self, operation: CreateTable) -> None:
        names = [column.name.lower() for column in operation.columns]
        assert len(names) == len(set(names)) <= 1024
        assert set(operation.order) <= {column.name for column in operation.columns}
        order = self.nodes[operation.path].layout[1] if operation.path in self.nodes else operation.order
        self._create(operation, "table", [operation.columns, order])

    def CreateArray(self, operation: CreateArray) -> None:
        assert len(operation.dims) == 1 + len(operation.shape)
        assert operation.chunk_rows > 0
        self._create(operation, "array", [operation.dtype, operation.shape, operation.dims])

    def RegisterExternal(self, operation: RegisterExternal) -> None:
        json.dumps(operation.data_source, allow_nan=False)
        self._create(operation, "external", None)

    def AppendRows(self, operation: AppendRows) -> None:
        node = self.nodes[operation.path]
        assert node.layout[0] == operation.columns
        columns = [
            pyarrow.array(values, arrow_type(column.type)).to_pylist()
            for column, values in zip(operation.columns, operation.values, strict=True)
        ]
        self._grow(node, operation, [frozen(row) for row in zip(*columns, strict=True)])

    def WriteArray(self, operation: WriteArray) -> None:
        node = self.nodes[operation.path]
        assert [operation.values.dtype.str, operation.values.shape[1:]] == node.layout[:2]
        self._grow(node, operation, [frozen(row) for row in operation.values])

    def _grow(self, node: Node, operation: Any, rows: list[Any]) -> None:
        assert operation.stop - operation.first == len(rows) > 0
        assert operation.first <= len(node.rows)
        known = node.rows[operation.first : operation.stop]
        assert known == rows[: len(known)]
        node.rows[operation.first : operation.stop] = [*rows[: len(known)], *rows[len(known) :]]

    def ExtendExternal(self, operation: ExtendExternal) -> None:
        node = self.nodes[operation.path]
        json.dumps(operation.data_source, allow_nan=False)
        assert operation.first < operation.stop
        assert operation.first <= len(node.rows)
        if operation.stop > len(node.rows):
            told = [] if node.source is None else node.source["assets"]
            new = operation.new_data_source["assets"]
            assert told[: operation.known_assets] + new == operation.data_source["assets"]
            node.rows += [operation.data_source["mimetype"]] * (operation.stop - len(node.rows))
            node.source = operation.data_source

    def DescribeExternal(self, operation: DescribeExternal) -> None:
        node = self.nodes[operation.path]
        assert operation.data_source["assets"] == []
        assets = [] if node.source is None else node.source["assets"]
        node.source = {**operation.data_source, "assets": assets}

    def OrderTable(self, operation: OrderTable) -> None:
        node = self.nodes[operation.path]
        node.layout = [node.layout[0], operation.order]

    def UpdateMetadata(self, operation: UpdateMetadata) -> None:
        json.dumps(operation.metadata, allow_nan=False)
        metadata = self.nodes[operation.path].metadata
        metadata.update(operation.metadata)
        for key in operation.removed:
            metadata.pop(key, None)

    def Audit(self, operation: Audit) -> None:
        node = self.nodes[operation.path]
        if node.kind == "external":
            assert node.source["structure"]["shape"][0] == operation.rows
            return
        assert len(node.rows) == operation.rows
        for name, digest in operation.columns:
            position = [column.name for column in node.layout[0]].index(name)
            column = node.layout[0][position]
            read = ColumnDigest()
            values = [THAWED[kind](text) for kind, text in (row[position] for row in node.rows)]
            read.add(pyarrow.array(values, arrow_type(column.type)))
            assert digest == (read.value if node.layout[1] else None)

    def RemoveNode(self, operation: RemoveNode) -> None:
        self.nodes.pop(operation.path, None)

    def CloseStream(self, operation: CloseStream) -> None:
        self.nodes[operation.path].closed = True


def fold_once(documents: Documents, batches: Sequence[int], types: ColumnTypes) -> tuple[list[Any], ColumnTypes]:
    """Operations for documents in batches of these sizes, over and over; and columns that are too narrow."""
    normalizer = RunNormalizer()
    writer = RunWriter(guessed_types=normalizer.guessed_types, column_types=types)
    operations: list[Any] = []
    left = iter(batches)
    until = 0
    for i, (name, document) in enumerate(documents):
        for modern_name, modern in normalizer(name, document):
            if modern_name == "stop":
                for note in normalizer.notes:
                    writer.note(note)
            operations += writer(modern_name, modern)
        if i == until:
            operations += writer.flush()
            until += next(left, len(documents))
    if documents and documents[-1][0] != "stop":
        for modern_name, modern in normalizer.abandon():
            operations += writer(modern_name, modern)
        operations += writer.abandon()
    return operations + writer.flush(), writer.too_narrow


def fold(documents: Documents, batches: Sequence[int] = ()) -> tuple[list[Any], ColumnTypes]:
    """Operations once all columns are wide enough, and the column types that this took."""
    types: ColumnTypes = {}
    for _ in range(50):
        operations, too_narrow = fold_once(documents, batches, types)
        if not too_narrow:
            return operations, types
        assert too_narrow.items() - types.items()
        types = {**types, **too_narrow}
    raise AssertionError(f"Columns are never wide enough: {types}")


def effect(*operations: Iterable[Any]) -> Tiled:
    tiled = Tiled()
    for some in operations:
        tiled.apply(some)
    return tiled


batch_sizes = st.lists(st.integers(1, 5), max_size=20)
"""Numbers of documents in each batch of a fold, again and again."""
