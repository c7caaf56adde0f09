"""Repairs of nodes that do not hold the journal's rows: proofs, and rewrites of tables to a copy beside them."""

from __future__ import annotations

import logging
from typing import Final, NoReturn

from msgspec.structs import replace

from tiledbroker._crash_points import crash_point

from .._errors import AuditFailed, NodeRewound
from ..mapping import AppendRows, Array, CreateTable
from ._data_beyond_journal import DataBeyondJournal
from ._known_nodes import NEVER, KnownNode, KnownNodes
from ._ledger import Ledger
from ._nodes import Nodes, arrow_columns, columns_of, is_detached
from ._quiet import QuietPeriods
from ._row_proof import RowProof, key_columns, keys_of_append

log = logging.getLogger(__name__)

MAX_REPAIRS_PER_NODE: Final = 5


class TableRewrites:
    """Rewrites of a run's tables, and the proofs that precede them.

    Parameters
    ----------
    nodes
        Nodes on the server.
    known
        What is known of the run's nodes.
    beyond
        What Tiled has of the run beyond its journal.
    quiet
        Quiet periods of the run's nodes.
    ledger
        Store of the run's progress.
    """

    def __init__(
        self, nodes: Nodes, known: KnownNodes, beyond: DataBeyondJournal, quiet: QuietPeriods, ledger: Ledger
    ) -> None:
        self._nodes = nodes
        self._known = known
        self._beyond = beyond
        self._quiet = quiet
        self._ledger = ledger

    def reject_rows(self, node: KnownNode, shown: KnownNode, reason: str, rows: int) -> NoReturn:
        """Have a wrong table rewritten: a copy at once, as readers do not see it, the shown table only after a proof.

        The shown table must not be rewritten if it has rows that the journal does not have.

        Parameters
        ----------
        node
            The wrong table: the shown one or its copy.
        shown
            The table that readers see.
        reason
            Difference, for the history.
        rows
            Number of rows that the wrong table has.

        Raises
        ------
        NodeRewound
            Unless the table was repaired too often.
        AuditFailed
            The table was repaired `MAX_REPAIRS_PER_NODE` times already.
        """
        if node is not shown:
            self._start_rewrite(shown, reason)
        self._known.mark_doubted(node, reason, rows)
        raise NodeRewound(node.path, reason)

    def send_again(self, node: KnownNode, reason: str) -> NoReturn:
        """Have the rows of an array or the files of external data sent again, in place; raises as `reject_rows`."""
        self._count_repair(node, reason)
        self._known.confirm_rows(node, 0)
        raise NodeRewound(node.path, reason)

    def rewind(self, node: KnownNode, reason: str, *, event: str) -> NoReturn:
        """Have the run folded again because of a node, with this event in the history; raises as `reject_rows`."""
        self._count_repair(node, reason, event)
        raise NodeRewound(node.path, reason)

    def _start_rewrite(self, node: KnownNode, reason: str) -> NoReturn:
        """Have a table's rows sent again, to a copy; raises as `reject_rows`."""
        self._count_repair(node, reason)
        unfinished = node.rewrite
        columns = node.columns if unfinished is None else unfinished.columns
        # The columns of a table are recorded when it is created or taken over.
        assert columns is not None
        if unfinished is not None:
            self.discard_copy(unfinished.copy)
        self._known.begin_rewrite(node, columns, NEVER)
        raise NodeRewound(node.path, reason)

    def _count_repair(self, node: KnownNode, reason: str, event: str = "repairing") -> None:
        if node.repairs >= MAX_REPAIRS_PER_NODE:
            raise AuditFailed(node.path, reason)
        self._known.count_repair(node)
        self._ledger.note(event, node=node.path, reason=reason)
        log.warning("%s %s; it is compared with the journal, and what it lacks is written again.", node.path, reason)

    def extend_proof(self, node: KnownNode, operation: AppendRows) -> None:
        """Add the journal's next rows to the proof of a table; return if the table is proved, or not yet.

        A proved table that holds exactly the journal's first rows is continued after them. A proved table with
        duplicated rows, or with a reason for a rewrite, is rewritten.

        Raises
        ------
        NodeNotQuiet
            It is not certain yet which rows the table has.
        NodeRewound
            The rows must be passed from the first one, or the table is rewritten.
        """
        proof = node.proof
        if proof is None:
            if operation.first:
                raise NodeRewound(node.path, "is compared with the journal")
            proof = node.proof = RowProof(self._read_keys(node, operation, node.doubted_rows))
        if operation.first != proof.journaled:
            raise NodeRewound(node.path, "is compared with the journal")
        proof.add_keys(keys_of_append(operation))
        if not proof.explained:
            return
        reason = node.doubt
        if not reason and not proof.is_beginning:
            reason = f"has {proof.found} rows, some of them more than once"
        self._known.clear_doubt(node)
        if reason:
            node.unseen = False
            self._start_rewrite(self._known[operation.path], reason)
        self._known.confirm_rows(node, proof.found)
        if node.columns != arrow_columns(operation.columns):
            raise NodeRewound(node.path, "needs other columns")

    def _read_keys(self, node: KnownNode, operation: AppendRows, at_least: int | None) -> Array:
        """Return the keys of all rows of a table; believe at once only what has so many rows."""
        keys: list[Array] = []

        def read_keys() -> int:
            keys[:] = [self._nodes.row_keys(node.path, [column.name for column in key_columns(operation.columns)])]
            return len(keys[0])

        is_current = None if at_least is None else at_least.__le__
        self._quiet.wait_until_quiet(node, read_keys, is_current=is_current)
        return keys[0]

    def extend_proof_of_shown(self, operation: AppendRows) -> None:
        """Add the journal's next rows to the proof of a table that an earlier process has begun to rewrite.

        Another host may have finished the rewrite and have added rows, which the copy must have before it is shown.

        Raises
        ------
        NodeNotQuiet
            It is not certain yet which rows the table has.
        NodeRewound
            The rows must be passed from the first one.
        """
        shown = self._known[operation.path]
        if not _is_unproved(shown):
            return
        if shown.proof is None:
            if operation.first:
                raise NodeRewound(shown.path, "is compared with the journal")
            shown.proof = RowProof(self._read_keys(shown, operation, shown.rows))
        if operation.first > shown.proof.journaled:
            raise NodeRewound(shown.path, "is compared with the journal")
        # The operation may have been applied in part, and wait for the rest.
        if operation.first == shown.proof.journaled:
            shown.proof.add_keys(keys_of_append(operation))
        if shown.proof.explained:
            shown.unseen, shown.proof = False, None

    def check_copy(self, node: KnownNode, operation: CreateTable) -> None:
        """Before the copy of an earlier process is used, check that it is as that process has left it.

        Raises
        ------
        NodeNotQuiet
            It is not certain yet what Tiled has.
        NodeRewound
            The copy is of no use any more, or the journal must be proved to have its rows.
        """
        rewrite = node.rewrite
        if rewrite is None or rewrite.swapped:
            return
        if node.unseen:
            # The rows are passed from the first one, and so is the proof.
            node.proof = None
            column = key_columns(operation.columns)[0].name
            node.unseen = node.rows > 0 or self._nodes.size(f"{node.path}/{column}") > 0
        copy = self._known[rewrite.copy]
        if not copy.exists or not copy.unseen:
            return
        attributes = self._nodes.read(copy.path)
        if is_detached(attributes):
            self.abandon_rewrite(node, "has a copy without rows")
        if copy.rewrite is None and columns_of(attributes["data_sources"][0]) != rewrite.columns:
            self.abandon_rewrite(node, "has a copy with other columns")
        if copy.intent is None and copy.doubt is None:
            column = key_columns(operation.columns)[0].name
            found, _ = self._quiet.wait_until_quiet(
                copy, lambda: self._nodes.size(f"{copy.path}/{column}"), is_current=lambda rows: rows == copy.rows
            )
            if found != copy.rows:
                self.abandon_rewrite(node, f"has a copy with {found} rows where {copy.rows} are expected")
        copy.unseen = False

    def abandon_rewrite(self, node: KnownNode, reason: str) -> NoReturn:
        """Forget the unfinished rewrite of a table, and have the table compared with the journal as it is.

        Raises
        ------
        NodeRewound
            Unless the table was repaired too often.
        AuditFailed
            The table was repaired `MAX_REPAIRS_PER_NODE` times already.
        """
        assert node.rewrite is not None
        self._count_repair(node, reason, "rewrite abandoned")
        self.discard_copy(node.rewrite.copy)
        self._known.drop_rewrite(node)
        self._known.mark_doubted(node, "", None)
        raise NodeRewound(node.path, reason)

    def check_table(self, node: KnownNode, operation: AppendRows | CreateTable) -> None:
        """Before the first change to an earlier process's table, check that nobody has changed it since.

        Raises
        ------
        NodeNotQuiet
            It is not certain yet what the table has.
        NodeRewound
            The table has other columns or another number of rows; the journal must be proved to contain them.
        """
        if not node.unseen:
            return
        expected, confirmed = node.columns, node.rows
        columns = self._nodes.columns(node.path)
        if expected not in (None, columns):
            # Otherwise the node is not watched, because the watch on its rows would begin anew.
            columns, _ = self._quiet.wait_until_quiet(node, lambda: self._nodes.columns(node.path))
        if columns != expected:
            self._known.record_columns(node, columns)
            if expected is not None:
                raise NodeRewound(node.path, "has other columns")
        column = f"{node.path}/{key_columns(operation.columns)[0].name}"
        has_stop = self._beyond.has_stop
        found, _ = self._quiet.wait_until_quiet(
            node,
            lambda: self._nodes.size(column),
            is_current=lambda rows: rows > confirmed or (rows == confirmed and not has_stop),
        )
        node.unseen = False
        if found != confirmed:
            self._known.mark_doubted(node, "", found)
            raise NodeRewound(node.path, f"has {found} rows where {confirmed} are expected")

    def finish_all_rewrites(self, run: str) -> None:
        """Complete all rewrites at the end of a run, when the copies have all rows."""
        for node in self._known.rewrites_in(run):
            self.finish_rewrite(node, complete=True)

    def finish_rewrite(self, node: KnownNode, *, complete: bool = False) -> None:
        """Make a table's node show the rows of its copy if there are enough of them, or if the run is `complete`.

        Raises
        ------
        TiledHasMore
            The run is complete, but the table has rows that the copy lacks.
        NodeRewound
            The run is complete, and the table is to be compared with the journal.
        """
        rewrite = node.rewrite
        if rewrite is None:
            return
        if not rewrite.swapped:
            if _is_unproved(node):
                if not complete:
                    return
                if node.proof is None and node.journaled:
                    raise NodeRewound(node.path, "is compared with the journal")
                self._beyond.raise_tiled_has_more()
            rows = self._known[rewrite.copy].rows
            if rows < rewrite.until and not complete:
                return
            if rows < rewrite.until < NEVER:
                self._beyond.raise_tiled_has_more()
            self._nodes.show_rows_of(node.path, rewrite.copy)
            crash_point("catalog: rewrite shown")
            self._known.record_columns(node, rewrite.columns)
            self._known.confirm_rows(node, rows)
            self._known.show_rewrite(node, replace(rewrite, swapped=True))
            if node.doubt is not None:
                # It was about rows that the table does not show any more.
                self._known.clear_doubt(node)
            crash_point("catalog: rewrite recorded")
        self.discard_copy(rewrite.copy, shown=True)
        self._known.end_rewrite(node)
        self._ledger.note("rewritten", node=node.path, rows=node.rows)

    def discard_copy(self, path: str, *, shown: bool = False) -> None:
        """Delete the node of a copy but not its rows; a table may be `shown` that has them now."""
        copy = self._known[path]
        if copy.rewrite is not None:
            self.discard_copy(copy.rewrite.copy)
            self._known.end_rewrite(copy)
        self._nodes.detach(path, may_be_absent=not (shown or copy.exists))
        crash_point("catalog: copy detached")
        self._known.forget_doubt(copy)
        self.delete_node(copy)

    def delete_node(self, node: KnownNode) -> None:
        """Delete a node of this run, and what Tiled stores of it; another host may have made it or deleted it."""
        self._nodes.delete(node.path)
        crash_point("catalog: node deleted")
        self._known.record_deletion(node)


def _is_unproved(shown: KnownNode) -> bool:
    """Return True if a table may have rows that the copy of its rewrite lacks."""
    return shown.unseen and shown.rewrite is not None and not shown.rewrite.swapped
