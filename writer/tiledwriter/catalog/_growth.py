"""Send rows and files to nodes with exactly-once effect: intents, lost responses and their outcome."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Final

import numpy

from tiledbroker._crash_points import crash_point

from .._errors import Ambiguous, NodeNotQuiet, NodeRewound, NotTiled, Refused, ServerFailed, Stopped, WriterError
from ..mapping import AppendRows, CreateTable, DescribeExternal, ExtendExternal, Growth, WriteArray, describe_operation
from ._known_nodes import KnownNode, KnownNodes
from ._ledger import Ledger
from ._nodes import SQLITE, Nodes, extent
from ._quiet import QuietPeriods
from ._rewrites import TableRewrites

log = logging.getLogger(__name__)

MAX_REQUEST_ROWS: Final = 20_000
MAX_REQUEST_BYTES: Final = 32 * 2**20


class NodeGrowth:
    """Growth of a run's nodes.

    Parameters
    ----------
    nodes
        Nodes on the server.
    known
        What is known of the run's nodes.
    rewrites
        Rewrites of the run's tables.
    quiet
        Quiet periods of the run's nodes.
    ledger
        Store of the run's progress.
    """

    def __init__(
        self, nodes: Nodes, known: KnownNodes, rewrites: TableRewrites, quiet: QuietPeriods, ledger: Ledger
    ) -> None:
        self._nodes = nodes
        self._known = known
        self._rewrites = rewrites
        self._quiet = quiet
        self._ledger = ledger

    def grow_node(self, operation: Growth) -> None:
        """Send what the node of an operation, or the copy of its rewrite, does not have yet.

        Raises
        ------
        NodeNotQuiet
            The outcome of a request is not known yet.
        NodeRewound
            The run must be folded again.
        Refused
            Tiled rejects the rows.
        """
        if isinstance(operation, AppendRows):
            self._rewrites.extend_proof_of_shown(operation)
        node = self._known.target(operation.path)
        if isinstance(operation, WriteArray) and node.occupying_rows is not None:
            self._delete_other_array(node, operation, node.occupying_rows)
            return
        if isinstance(operation, AppendRows) and node.doubt is not None:
            self._rewrites.extend_proof(node, operation)
            if node.doubt is not None:
                return
        if node.intent is not None:
            self.determine_outcome(node, operation, node.rows, node.intent)
        if operation.stop <= node.rows:
            return
        if operation.first > node.rows:
            raise WriterError(
                f"{describe_operation(operation)} does not continue at row {node.rows}; this is a defect."
            )
        if isinstance(operation, AppendRows):
            self._rewrites.check_table(node, operation)
        else:
            self._check_extent(node, operation)
        if isinstance(operation, ExtendExternal):
            self._extend_external(node, operation)
            return
        for piece in self._split_operation(node, operation.rows(node.rows, operation.stop)):
            if isinstance(piece, WriteArray) and self._is_there(node, piece):
                self._known.confirm_rows(node, piece.stop)
            else:
                self._send_growth(node, piece)

    def _delete_other_array(self, node: KnownNode, operation: WriteArray, rows: int) -> None:
        """Delete another writer's array of another type or shape once the journal has as many rows."""
        if operation.stop >= rows:
            self._ledger.note("array made anew", node=node.path)
            self._nodes.delete(node.path)
            self._known.record_deletion(node)
            raise NodeRewound(node.path, "is created again")

    def check_files(self, operation: DescribeExternal) -> None:
        """Before files are described, have them sent again if some of them are missing in Tiled.

        Raises
        ------
        NodeNotQuiet
            It is not certain yet which files Tiled has.
        NodeRewound
            The files are sent again.
        """
        self._check_extent(self._known[operation.path], operation)

    def _check_extent(self, node: KnownNode, operation: WriteArray | ExtendExternal | DescribeExternal) -> None:
        """Before the first change to an array or files that others may have changed, read their extent.

        Tiled fills a gap between the rows that an array has and those that are written with zeros.

        Parameters
        ----------
        node
            The node.
        operation
            The next operation on it.

        Raises
        ------
        NodeNotQuiet
            It is not certain yet that rows or files are missing.
        NodeRewound
            Rows or files are missing; what Tiled has is compared, and the rest is sent again.
        """
        if not node.unseen:
            return
        # The rows of files are frames in Tiled, and datums here.
        rows = node.rows if isinstance(operation, WriteArray) else 0
        assets = node.journaled_assets
        if isinstance(operation, ExtendExternal):
            assets = assets[: operation.known_assets]
        # Tiled stores a file that is given twice once.
        files = len({asset["data_uri"] for asset in assets})
        self._nodes.forget(node.path)
        source, _ = self._quiet.wait_until_quiet(
            node,
            lambda: self._nodes.read(node.path)["data_sources"][0],
            is_current=lambda source: extent(source) >= rows and len(source["assets"]) >= files,
        )
        node.unseen = False
        if node.of_others:
            node.initial_extent = extent(source)
        if len(source["assets"]) < files:
            # Its length may be that of all files all the same.
            node.initial_extent = None
            self._rewrites.send_again(node, f"has {len(source['assets'])} files where {files} are expected")
        if extent(source) < rows:
            node.initial_extent = extent(source)
            self._rewrites.send_again(node, f"has a length of {extent(source)} where {rows} is expected")

    def _check_after_reconnection(self, node: KnownNode) -> None:
        """Before rows of an array are sent again after Tiled was away: it may have been put back to an earlier state.

        Raises
        ------
        NodeNotQuiet
            The array may lack rows.
        """
        if extent(self._nodes.read(node.path)["data_sources"][0]) < node.rows:
            node.unseen = True
            raise NodeNotQuiet

    def _extend_external(self, node: KnownNode, operation: ExtendExternal) -> None:
        known_extent = -1 if node.initial_extent is None else node.initial_extent
        if extent(operation.data_source) <= known_extent:
            self._known.confirm_rows(node, operation.stop)
        else:
            self._send_growth(node, operation)

    def _is_there(self, node: KnownNode, operation: WriteArray) -> bool:
        """Return True if the array holds these rows already because another process has written them."""
        if operation.stop > (node.initial_extent or 0):
            return False
        found = self._nodes.rows_of_array(node.path, operation.first, operation.stop)
        return found == numpy.ascontiguousarray(operation.values).tobytes()

    def _split_operation(
        self, node: KnownNode, operation: AppendRows | WriteArray
    ) -> Iterator[AppendRows | WriteArray]:
        """Yield the operation in parts that fit into one request; the limit may shrink during the iteration."""
        first = operation.first
        while first < operation.stop:
            stop = min(operation.stop, first + self._row_limit(node, operation))
            yield operation.rows(first, stop)
            first = node.rows

    @staticmethod
    def _row_limit(node: KnownNode, operation: AppendRows | WriteArray) -> int:
        if node.max_rows is None:
            node.max_rows = MAX_REQUEST_ROWS
            if isinstance(operation, WriteArray):
                node.max_rows = max(1, MAX_REQUEST_BYTES // max(1, operation.values[:1].nbytes))
        return node.max_rows

    def _send_growth(self, node: KnownNode, operation: Growth) -> None:
        """Send one growth, with its intent recorded before and its completion after.

        Raises
        ------
        NodeNotQuiet
            The outcome is unknown.
        """
        rows = node.rows
        self._known.record_intent(node, operation.stop)
        crash_point("catalog: growth intended")
        started = self._quiet.read_clock()
        try:
            self._nodes.grow(node.path, operation, lambda: self._check_after_reconnection(node))
        except Ambiguous as error:
            if isinstance(error, NotTiled) and self._can_be_split(error.status, operation):
                # A gateway does not forward a request that is too large for it, so nothing was carried out.
                self._known.confirm_rows(node, rows)
                node.max_rows = (operation.stop - operation.first) // 2
                return
            self._known.record_lost_response(node)
            # SQLite works within Tiled's process, so that nothing of an append goes on after Tiled's answer. A server
            # such as PostgreSQL may complete a transaction after Tiled has lost the connection to it.
            node.has_answer = isinstance(error, ServerFailed) and self._nodes.storage(node.path) == SQLITE
            self._quiet.record_growth_since(started)
            self._ledger.note("ambiguous", operation=describe_operation(operation), reason=str(error))
            log.warning(
                "It is unknown whether Tiled did %s (%s); the node is read back.", describe_operation(operation), error
            )
            raise NodeNotQuiet from error
        except (Stopped, NodeNotQuiet):
            # They are raised only between two attempts, and only an attempt that was not processed is repeated.
            self._known.confirm_rows(node, rows)
            raise
        except Refused as error:
            self._known.confirm_rows(node, rows)
            if not self._can_be_split(error.status, operation):
                raise
            node.max_rows = (operation.stop - operation.first) // 2
        else:
            crash_point("catalog: growth done")
            self._quiet.record_growth_since(started)
            self._known.confirm_rows(node, operation.stop)

    @staticmethod
    def _can_be_split(status: int, operation: Growth) -> bool:
        """Return True if smaller requests may succeed."""
        return status == 413 and operation.stop - operation.first > 1 and not isinstance(operation, ExtendExternal)

    def determine_outcome(self, node: KnownNode, operation: Growth | CreateTable, rows: int, intent: int) -> None:
        """Determine the outcome of a growth whose response was lost.

        An append whose rows are present cannot be carried out again. An append whose rows are missing may still be in
        flight, because a request lives on in the server after its client is gone. Only a row count that stays the same
        for the quiet period shows that the append was not carried out. No append is in flight if Tiled itself
        answered that it has failed, as it does while SQLite is locked. Any other row count may be older than the last
        confirmed append.

        Parameters
        ----------
        node
            The node, or the copy of its rewrite.
        operation
            The next operation on the node.
        rows, intent
            Number of rows before and after the growth.

        Raises
        ------
        NodeNotQuiet
            The outcome is not known yet.
        NodeRewound
            The table has neither number of rows.
        """
        self._known.record_lost_response(node)
        columns = operation.columns if isinstance(operation, AppendRows | CreateTable) else ()
        table = bool(columns)
        # Only a table's size proves arrival: an array gets its shape before its content, and the size of external data
        # counts frames while `intent` counts datums.
        proving = {intent} if table else set()
        if node.has_answer:
            proving.add(rows)
        sized = f"{node.path}/{columns[0].name}" if columns else node.path
        size, quiet = self._quiet.wait_until_quiet(
            node, lambda: self._nodes.size(sized), is_current=proving.__contains__ if proving else None
        )
        node.has_answer = False
        if table and size not in (rows, intent):
            shown = self._known[operation.path]
            self._rewrites.reject_rows(node, shown, f"has {size} rows where {rows} or {intent} are expected", size)
        if table:
            node.unseen = False
        self._ledger.note(
            "reconciled", node=node.path, found=size, confirmed=rows, intent=intent, quiet=round(quiet, 3)
        )
        self._known.confirm_rows(node, intent if table and size == intent else rows)
