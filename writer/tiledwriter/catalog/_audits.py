"""Audits: compare complete nodes with the rows that were sent, because lost requests may be carried out late."""

from __future__ import annotations

from collections.abc import Callable

from tiledbroker._crash_points import crash_point

from ..mapping import Audit, ColumnDigest
from ._data_beyond_journal import DataBeyondJournal
from ._known_nodes import KnownNode, KnownNodes
from ._node_states import NodeState
from ._nodes import Nodes
from ._quiet import QuietPeriods
from ._rewrites import TableRewrites


class NodeAudits:
    """Audits of a run's nodes.

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
    quiet
        Quiet periods of the run's nodes.
    is_needed
        Returns whether nodes have to be compared.
    """

    def __init__(
        self,
        nodes: Nodes,
        known: KnownNodes,
        beyond: DataBeyondJournal,
        rewrites: TableRewrites,
        *,
        quiet: QuietPeriods,
        is_needed: Callable[[], bool],
    ) -> None:
        self._nodes = nodes
        self._known = known
        self._beyond = beyond
        self._rewrites = rewrites
        self._quiet = quiet
        self._is_needed = is_needed

    def audit_node(self, operation: Audit) -> None:
        """Compare a node with the rows that were sent, and have it rewritten if it differs.

        The server may have carried out a request with a lost response after the quiet period. A difference counts only
        once it has stayed the same for the quiet period, because what is read may be older than the last write.

        Raises
        ------
        NodeNotQuiet
            The node differs, and it is not certain yet that this remains so.
        NodeRewound
            The node is rewritten.
        AuditFailed
            The node was rewritten too often.
        TiledHasMore
            The journal was not proved to contain the node's rows.
        """
        shown, node = self._known[operation.path], self._known.target(operation.path)
        if node.doubt is not None or node.state is NodeState.OCCUPIED:
            self._beyond.raise_tiled_has_more()
        if self._is_needed():
            self._compare_node(node, shown, operation)
        crash_point("catalog: audited")
        self._rewrites.finish_rewrite(shown, complete=True)

    def _compare_node(self, node: KnownNode, shown: KnownNode, operation: Audit) -> None:
        if operation.columns:
            (reason, rows), _ = self._quiet.wait_until_quiet(
                node, lambda: self._compare_rows(node, operation), is_current=lambda found: not found[0]
            )
            if reason:
                self._rewrites.reject_rows(node, shown, reason, rows)
        elif reason := self._compare_shape(node, operation):
            self._rewrites.send_again(shown, reason)

    def _compare_rows(self, node: KnownNode, operation: Audit) -> tuple[str, int]:
        """Return how a table differs from the audit, "" if it does not, and the number of rows that were read."""
        for name, digest in operation.columns:
            if digest is None:
                rows, found = self._nodes.size(f"{node.path}/{name}"), None
            else:
                read, rows = ColumnDigest(), 0
                for content in self._nodes.column(node.path, name):
                    read.add_bytes(content)
                    rows += len(content) // 8
                found = read.value
            if rows != operation.rows:
                return f"has {rows} rows where {operation.rows} are expected", rows
            if found != digest:
                return f"has other values of {name!r}, or in another order", rows
        return "", operation.rows

    def _compare_shape(self, node: KnownNode, operation: Audit) -> str:
        """Return how an array or external data differ from the audit; "" if they do not."""
        if node.disturbed:
            self._known.forget_lost_response(node)
            return "may have been written to by a request whose answer was lost"
        rows, _ = self._quiet.wait_until_quiet(
            node, lambda: self._nodes.size(node.path), is_current=lambda found: found == operation.rows
        )
        if rows > operation.rows:
            if self._nodes.trim_first_chunk(node.path, operation.rows):
                return ""
            node.journaled = operation.rows
            self._beyond.raise_tiled_has_more()
        return "" if rows == operation.rows else f"has a length of {rows} where {operation.rows} is expected"
