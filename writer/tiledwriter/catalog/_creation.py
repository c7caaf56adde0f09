"""Create a run's nodes or take over those that exist, and change the columns of tables and the type of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from tiledbroker._crash_points import crash_point

from .._errors import ColumnsRefused, ColumnsTooNarrow, NodeRewound, NotOurs, Refused, ServerFailed
from ..mapping import AppendRows, CreateArray, CreateContainer, CreateTable, Creation, RemoveNode, describe_operation
from ._data_beyond_journal import DataBeyondJournal
from ._growth import NodeGrowth
from ._known_nodes import NEVER, KnownNode, KnownNodes
from ._ledger import Ledger
from ._nodes import SQLITE, Nodes, arrow_columns, columns_of, difference, extent, is_detached
from ._quiet import QuietPeriods
from ._rewrites import TableRewrites

_LISTS_TAKEN_KEY: Final = "list_columns_taken"
COMPLETE_BEFORE: Final = "complete_before"
"""Key of the ledger, set if the run was complete in Tiled before this host wrote to it."""


class NodeCreation:
    """Creation, adoption and removal of a run's nodes.

    Parameters
    ----------
    nodes
        Nodes on the server.
    known
        What is known of the run's nodes.
    beyond
        What Tiled has of the run beyond its journal.
    rewrites
        Rewrites of the run's tables.
    growth
        Growth of the run's nodes.
    quiet
        Quiet periods of the run's nodes.
    ledger
        Store of the run's progress.
    """

    def __init__(
        self,
        nodes: Nodes,
        known: KnownNodes,
        beyond: DataBeyondJournal,
        rewrites: TableRewrites,
        growth: NodeGrowth,
        *,
        quiet: QuietPeriods,
        ledger: Ledger,
    ) -> None:
        self._nodes = nodes
        self._known = known
        self._beyond = beyond
        self._rewrites = rewrites
        self._growth = growth
        self._quiet = quiet
        self._ledger = ledger

    def create_node(self, operation: Creation) -> None:
        """Create a node, take over an existing one, or change one of this run to what the operation demands.

        Raises
        ------
        NotOurs
            The node belongs to something else.
        NodeNotQuiet
            Another process may still be writing to the node.
        ColumnsRefused
            The server's table storage has no list columns.
        TiledHasMore
            An array must be made anew but has rows that the journal lacks.
        """
        node = self._known[operation.path]
        if node.exists:
            self._check_existing(node, operation)
            if node.exists:
                return
        # With SQLite as table storage Tiled always answers 500 to list columns. Do not wait for another response
        # unless this server has accepted list columns before.
        lists = isinstance(operation, CreateTable) and any(c.type.startswith("list<") for c in operation.columns)
        unproven = lists and not self._ledger.get(_LISTS_TAKEN_KEY)
        try:
            self._create_or_adopt(
                node, operation, tolerated_failures=2 if unproven or isinstance(operation, CreateArray) else None
            )
        except ServerFailed as error:
            if not isinstance(operation, CreateArray):
                raise ColumnsRefused(describe_operation(operation), str(error)) from error
            directory = self._nodes.clear_array_key(operation)
            self._ledger.note("cleared away", node=operation.path, directory=directory)
            self._create_or_adopt(node, operation)
        # An adopted table may have other columns and proves nothing about list columns.
        if unproven and isinstance(operation, CreateTable) and node.columns == arrow_columns(operation.columns):
            self._ledger.set(_LISTS_TAKEN_KEY, True)

    def create_table(self, operation: CreateTable) -> None:
        """Create a table as `create_node` does, or start to rewrite one of this run whose columns must change."""
        if self._known[operation.path].exists:
            self._check_columns(operation)
        else:
            self.create_node(operation)

    def check_first_rows(self, operation: AppendRows) -> None:
        """Check that the server can read a table with columns that have their first value in these rows.

        Raises
        ------
        ColumnsTooNarrow
            It cannot; a table that keeps its columns is rewritten for what its first row must have.
        AuditFailed
            Such a table was rewritten too often already.
        """
        if self._nodes.find_storage(operation.path) != SQLITE:
            return
        target = self._known.target(operation.path)
        if target.rows and not operation.loses_late_columns:
            reason = "cannot be read, because columns begin late"
            with suppress(NodeRewound):
                self._rewrites.reject_rows(target, self._known[operation.path], reason, target.rows)
        raise ColumnsTooNarrow({(stream, key): kind for stream, key, kind in operation.begin_late})

    def _create_or_adopt(self, node: KnownNode, operation: Creation, *, tolerated_failures: int | None = None) -> None:
        if node.quiet_watch is not None:
            self._adopt_node(node, operation, made_here=False)
            return
        try:
            self._nodes.create(operation, tolerated_failures=tolerated_failures)
        except Refused as error:
            if error.status != 409:
                raise
            self._adopt_node(node, operation, made_here=error.may_be_ours)
        else:
            crash_point("catalog: node created")
            if isinstance(operation, CreateTable):
                self._known.record_columns(node, arrow_columns(operation.columns))
            if isinstance(operation, CreateArray):
                self._known.record_array(node, operation.dtype, list(operation.shape))
            self._known.record_creation(node)
        if "/" not in operation.path:
            self._nodes.probe.run = operation.path

    def _check_existing(self, node: KnownNode, operation: Creation) -> None:
        """Check a node that is in the progress already, before it is used again."""
        if "/" not in operation.path:
            self._nodes.probe.run = operation.path
            if node.unseen:
                node.unseen = False
                self._beyond.check_stop(self._nodes.read(operation.path))
        elif isinstance(operation, CreateArray):
            self._remake_array(node, operation)

    def _remake_array(self, node: KnownNode, operation: CreateArray) -> None:
        """Delete an array of this run if its type or shape must change, unless it may have rows of another writer."""
        if node.array is None:
            return
        # Earlier versions created arrays with rows of zeros and recorded their number.
        dtype, shape, *rows_of_zeros = node.array
        if (dtype, shape) == (operation.dtype, list(operation.shape)):
            return
        found = extent(self._nodes.read(node.path)["data_sources"][0])
        if found > max(node.rows, node.intent or 0, *rows_of_zeros):
            self._known.record_occupation(node, found)
            return
        self._ledger.note("array made anew", node=node.path, type=operation.dtype, shape=list(operation.shape))
        self._rewrites.delete_node(node)

    def _adopt_node(self, node: KnownNode, operation: Creation, *, made_here: bool) -> None:
        """Take over an existing node: from before a crash, or from another host that wrote the run.

        Raises
        ------
        NotOurs
            The node belongs to something else.
        NodeNotQuiet
            Another process may still be writing to the node.
        """
        path, asked = operation.path, self._quiet.read_clock()
        attributes = self._nodes.read(path)
        if reason := difference(operation, attributes):
            if not (isinstance(operation, CreateArray) and _is_stored_array(attributes)):
                raise NotOurs(describe_operation(operation), f"the node exists and {reason}")
            self._known.record_occupation(node, self._find_quiet_size(node, attributes, asked))
            self._ledger.note("another array", node=path, reason=reason)
            return
        if isinstance(operation, CreateTable) and self._is_of_no_use(operation, attributes):
            self._rewrites.discard_copy(path)
            self._create_or_adopt(node, operation)
            return
        if "/" not in path:
            self._beyond.check_stop(attributes)
            if self._beyond.has_stop:
                self._ledger.set(COMPLETE_BEFORE, True)
        size = 0
        if not isinstance(operation, CreateContainer):
            # A complete run need not be waited for before something of it is to be changed.
            size = self._find_quiet_size(node, attributes, asked, is_quiet=made_here or self._beyond.has_stop)
        if not made_here:
            self._known.plan_late_audit()
        node.of_others = True
        self._ledger.note("adopted", node=path)
        if isinstance(operation, CreateTable):
            self._adopt_table(node, operation, columns_of(attributes["data_sources"][0]), size)
        else:
            node.initial_extent = size
            if isinstance(operation, CreateArray):
                self._known.record_array(node, operation.dtype, list(operation.shape))
            self._known.record_creation(node)

    def _is_of_no_use(self, operation: CreateTable, attributes: Mapping[str, Any]) -> bool:
        """Return True for the copy of another host's rewrite if this host's rows must not be added to it.

        That host may have died before it had deleted the node, so that the copy has no rows any more, and Tiled answers
        500 to requests for them. Or the copy is for other columns, to which Tiled would convert the values.
        """
        if is_detached(attributes):
            return True
        columns = columns_of(attributes["data_sources"][0])
        return self._known.is_copy(operation.path) and columns != arrow_columns(operation.columns)

    def _adopt_table(self, node: KnownNode, operation: CreateTable, columns: list[list[str]], rows: int) -> None:
        self._known.record_columns(node, columns)
        if rows:
            self._known.mark_doubted(node, "", rows)
        self._known.record_creation(node)
        # Its size was believed at once; see `_adopt_node`.
        node.unseen = self._beyond.has_stop
        rewrite = node.rewrite
        if rewrite is not None and not rewrite.swapped and rows != rewrite.until:
            # Another host has begun it with other rows in the table, so whether the journal has them must be proved.
            self._rewrites.discard_copy(rewrite.copy)
            self._known.drop_rewrite(node)
        self._check_columns(operation)

    def _find_quiet_size(
        self, node: KnownNode, attributes: Mapping[str, Any], asked: float, *, is_quiet: bool = False
    ) -> int:
        """Return the number of rows of a table, or the extent of other data, of a node that exists.

        Another process may have a request in flight. That may also be one that makes a table show the rows of its copy,
        so the data source must not change either.

        Parameters
        ----------
        node
            The node.
        attributes, asked
            The node's attributes, and the time just before they were read, by `QuietPeriods.read_clock`.
        is_quiet
            True if the reading is believed at once.

        Raises
        ------
        NodeNotQuiet
            The data source and the size have not been the same for the quiet period.
        """
        source = attributes["data_sources"][0]

        def read_size() -> tuple[Any, int]:
            if attributes["structure_family"] == "table":
                return source, self._nodes.size(f"{node.path}/{columns_of(source)[0][0]}")
            return source, extent(source)

        (_, size), _ = self._quiet.wait_until_quiet(
            node, read_size, is_current=(lambda _: True) if is_quiet else None, asked=asked
        )
        return size

    def _check_columns(self, operation: CreateTable) -> None:
        """Start or continue the rewrite of an existing table if its columns must change."""
        node = self._known[operation.path]
        self._rewrites.check_copy(node, operation)
        target = self._known.target(operation.path)
        if target.doubt is not None:
            # The rows come again from the first one, so the proof starts again.
            target.proof = None
            return
        wanted = arrow_columns(operation.columns)
        if node.rewrite is not None and node.rewrite.swapped:
            self._rewrites.finish_rewrite(node)
        rewrite = node.rewrite
        if rewrite is None and node.columns in (None, wanted):
            return
        if rewrite is not None and rewrite.until < NEVER and node.columns == wanted:
            # The table has the required columns after all, for example because the server refused those of the copy.
            self._rewrites.discard_copy(rewrite.copy)
            self._known.drop_rewrite(node)
            return
        if rewrite is None or rewrite.columns != wanted:
            if node.intent is not None:
                self._growth.determine_outcome(node, operation, node.rows, node.intent)
            self._rewrites.check_table(node, operation)
            if rewrite is not None:
                self._rewrites.discard_copy(rewrite.copy)
            self._ledger.note("rewriting", node=node.path, rows=node.rows)
            rewrite = self._known.begin_rewrite(node, wanted, node.rows)
            crash_point("catalog: rewrite begun")
        self.create_node(replace(operation, path=rewrite.copy))
        self._rewrites.finish_rewrite(node)

    def remove_node(self, operation: RemoveNode) -> None:
        """Delete an array whose values are now in a column, including one of another host that died before deleting it.

        Raises
        ------
        NotOurs
            The node is not an array that Tiled stores.
        TiledHasMore
            The array has more rows than the journal.
        """
        node = self._known[operation.path]
        if node.removed:
            return
        if not node.exists:
            self._adopt_removed(node, operation)
        if node.exists:
            self._rewrites.delete_node(node)
        node.removed = True

    def _adopt_removed(self, node: KnownNode, operation: RemoveNode) -> None:
        """Take over another host's array, if there is one, to delete it."""
        try:
            attributes = self._nodes.read(node.path, may_be_absent=True)
        except Refused as error:
            if error.status != 404:
                raise
            return
        if not _is_stored_array(attributes):
            raise NotOurs(describe_operation(operation), "the node is not an array that Tiled stores")
        stream = node.path.rpartition("/")[0]
        journaled = [
            other.journaled
            for other in self._known
            if other.journaled is not None and other.path.startswith(stream + "/")
        ]
        if extent(attributes["data_sources"][0]) > max(journaled, default=0):
            self._beyond.add_description(f"rows in {node.path_in_run}")
            self._beyond.raise_tiled_has_more()
        self._ledger.note("removed", node=node.path)
        self._known.record_creation(node)


def _is_stored_array(attributes: Mapping[str, Any]) -> bool:
    """Return True if a node is an array that Tiled stores."""
    if attributes["structure_family"] != "array":
        return False
    return bool(attributes["data_sources"][0]["management"] == "writable")
