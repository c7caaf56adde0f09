"""Nodes that this run has created or taken over, and that somebody has removed from Tiled since."""

from __future__ import annotations

from .._errors import Refused
from ..mapping import Operation
from ._creation import COMPLETE_BEFORE
from ._data_beyond_journal import DataBeyondJournal
from ._known_nodes import KnownNode, KnownNodes
from ._ledger import Ledger
from ._nodes import Nodes
from ._rewrites import MAX_REPAIRS_PER_NODE, TableRewrites


class MissingNodes:
    """Finds missing nodes, and has them written again from the journal.

    An operator may have deleted them, a backup of Tiled's databases may have been put back, or another host may have
    finished a rewrite that this journal still counts on.

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
    ledger
        Store of the run's progress.
    """

    def __init__(
        self, nodes: Nodes, known: KnownNodes, beyond: DataBeyondJournal, rewrites: TableRewrites, ledger: Ledger
    ) -> None:
        self._nodes = nodes
        self._known = known
        self._beyond = beyond
        self._rewrites = rewrites
        self._ledger = ledger

    def write_again(self, operation: Operation) -> None:
        """After Tiled has refused an operation because something is missing, have that written again.

        Return if nothing is missing that this run had in Tiled.

        Raises
        ------
        NodeNotQuiet
            It is not certain yet that something is missing.
        NodeRewound
            Something is missing, or was replaced; the run is folded again.
        AuditFailed
            The same node was missing too often.
        """
        run = operation.path.partition("/")[0]
        for path in _with_ancestors(operation.path):
            if self._is_missing(self._known[path]):
                self._forget(path)
                self._rewrites.rewind(self._known[path], "is missing in Tiled", event="missing")
        for shown in self._known.rewrites_in(run):
            if shown.rewrite is None or shown.rewrite.swapped:
                continue
            copy = self._known[shown.rewrite.copy]
            if self._is_missing(copy):
                self._nodes.forget(copy.path)
                self._known.record_deletion(copy)
                self._rewrites.abandon_rewrite(shown, "lacks the copy to which its rows were written")
        node = self._known[operation.path]
        if node.exists and node.repairs < MAX_REPAIRS_PER_NODE:
            # The request named a data source that is another one in Tiled, because the node was created anew.
            self._nodes.forget(run)
            self._known.mark_all_unseen()
            self._rewrites.rewind(node, "was replaced in Tiled", event="replaced")

    def _is_missing(self, node: KnownNode) -> bool:
        if not node.exists:
            return False
        try:
            self._nodes.read(node.path)
        except Refused as error:
            if error.status != 404:
                raise
            return True
        return False

    def _forget(self, path: str) -> None:
        """Forget what Tiled had of a node and of those below it."""
        self._nodes.forget(path)
        for node in self._known:
            if node.path != path and not node.path.startswith(f"{path}/"):
                continue
            if node.rewrite is not None:
                self._rewrites.discard_copy(node.rewrite.copy)
                self._known.end_rewrite(node)
            self._known.forget_doubt(node)
            self._known.record_deletion(node)
        if "/" not in path:
            self._beyond.has_stop = False
            self._ledger.set(COMPLETE_BEFORE, None)


def _with_ancestors(path: str) -> list[str]:
    """Return the paths of a run, of what is in it on the way to a node, and of the node."""
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
