"""What is known of each of a run's nodes, in one object per node; what must outlast the process is in the ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tiledbroker import NodeProgress
from tiledbroker.ownership import TableRewrite

from .._errors import NodeStateError
from .._names import REWRITE_SUFFIX
from ..mapping import Column
from ._decisions import Decisions
from ._ledger import Ledger
from ._node_states import NodeEvent, NodeState, check_event
from ._row_proof import RowProof

NEVER: Final = 2**53
"""Number of rows that no table has: see `TableRewrite.until`."""

# Each value in the ledger is a mapping by path. These are no decisions: another host reads columns and arrays from
# Tiled, and doubts whatever it takes over.
_COLUMNS_KEY: Final = "columns"
_DOUBTED_KEY: Final = "doubted"
_ARRAYS_KEY: Final = "arrays"


@dataclass
class QuietWatch:
    """What was last read of a node that a request may still be changing.

    Attributes
    ----------
    reading
        Last reading, such as a size; None before the first one.
    since
        Time at which it was first read, in seconds.
    """

    reading: object = None
    since: float = 0.0

    def observe(self, reading: object, answered: float) -> float:
        """Record a reading and return the time since which it has not changed.

        Parameters
        ----------
        reading
            What was read.
        answered
            Time in seconds just after its response.
        """
        if reading != self.reading:
            self.reading, self.since = reading, answered
        return self.since


@dataclass(slots=True)
class KnownNode:
    """What is known of one node. `KnownNodes` changes the attributes that the ledger keeps.

    Attributes
    ----------
    path
        Path of the node.
    progress
        Rows that the server has confirmed, and the request in flight; None if this run has not created the node or
        taken it over.
    columns
        Names and Arrow types of a table's columns in Tiled; None if they are not known.
    array
        Type and row shape of an array as created or taken over, and, from earlier versions, its number of rows of
        zeros; None if they are not known.
    rewrite
        Rewrite that is not complete, if any.
    doubt
        Reason for which an unproved table must be rewritten; "" if it only must be proved; None if nothing is to be
        proved.
    doubted_rows
        Number of rows that a doubted table was seen to have; None if an earlier process saw it.
    disturbed
        True while a request with a lost response may still change the node.
    repairs
        Number of repairs so far.
    of_others
        True if another process has written to the node.
    unseen
        True if an earlier process wrote to the node, or Tiled was away, and the node's state in Tiled has not been read
        since.
    planned
        True if the journal's operations create the node.
    removed
        True if the node's removal was carried out in this process.
    journaled
        Number of the node's rows in the journal so far; None if no rows have come.
    journaled_assets
        Files of external data in the journal so far, in Tiled's terms.
    keys
        Key columns of a table.
    initial_extent
        Extent of an array or of files before this process wrote to them; None if it is not known.
    occupying_rows
        Number of rows of another writer's array of another type or shape; None if there is none.
    max_rows
        Maximum number of rows per request; None before the first request.
    quiet_watch
        Observation of a node that must be quiet before it is used; None if there is none.
    has_answer
        True if the server itself answered the growth whose outcome is unknown, so that none of it is under way.
    proof
        Proof that a doubted table is waiting for; None before its first rows.
    """

    path: str
    progress: NodeProgress | None = None
    columns: list[list[str]] | None = None
    array: list[Any] | None = None
    rewrite: TableRewrite | None = None
    doubt: str | None = None
    doubted_rows: int | None = None
    disturbed: bool = False
    repairs: int = 0
    of_others: bool = False
    unseen: bool = False
    planned: bool = False
    removed: bool = False
    journaled: int | None = None
    journaled_assets: Sequence[Mapping[str, Any]] = ()
    keys: tuple[Column, ...] = ()
    initial_extent: int | None = None
    occupying_rows: int | None = None
    max_rows: int | None = None
    quiet_watch: QuietWatch | None = None
    has_answer: bool = False
    proof: RowProof | None = None

    @property
    def state(self) -> NodeState:
        """State that the facts amount to."""
        if self.progress is None:
            return NodeState.ABSENT if self.occupying_rows is None else NodeState.OCCUPIED
        if self.rewrite is not None and not self.rewrite.swapped:
            return NodeState.REWRITTEN
        if self.doubt is not None:
            return NodeState.DOUBTED
        return NodeState.GROWING if self.progress.intent is None else NodeState.UNSURE

    @property
    def exists(self) -> bool:
        """True if this run has created the node or taken it over."""
        return self.progress is not None

    @property
    def rows(self) -> int:
        """Number of rows that the server has confirmed; raises `NodeStateError` if the node does not exist."""
        return self._require_progress().rows

    @property
    def intent(self) -> int | None:
        """Number of rows after the request in flight, if any; raises `NodeStateError` if the node does not exist."""
        return self._require_progress().intent

    def _require_progress(self) -> NodeProgress:
        if self.progress is None:
            raise NodeStateError(self.path, self.state, "used")
        return self.progress

    @property
    def path_in_run(self) -> str:
        """Path below the run; "the run" for the run itself."""
        return path_in_run(self.path)


class KnownNodes:
    """All nodes of a run that are known. Each change of what outlasts the process is recorded at once.

    Parameters
    ----------
    ledger
        Store of the run's progress.
    decisions
        Decisions about the run.
    """

    def __init__(self, ledger: Ledger, decisions: Decisions) -> None:
        self._ledger = ledger
        self._decisions = decisions
        self._nodes: dict[str, KnownNode] = {}
        self._last_recorded: dict[str, dict[str, Any]] = {
            key: ledger.get(key, {}) for key in (_COLUMNS_KEY, _DOUBTED_KEY, _ARRAYS_KEY)
        }
        for path, progress in ledger.progress().items():
            node = self[path]
            node.progress, node.of_others, node.unseen = progress, True, True
        for path, columns in self._last_recorded[_COLUMNS_KEY].items():
            self[path].columns = columns
        for path, reason in self._last_recorded[_DOUBTED_KEY].items():
            self[path].doubt = reason
        for path, array in self._last_recorded[_ARRAYS_KEY].items():
            self[path].array = array
        made = decisions.made
        for path, rewrite in made.rewrites.items():
            self[path].rewrite = rewrite
        for path, repairs in made.repairs.items():
            self[path].repairs = repairs
        for path in made.disturbed:
            self[path].disturbed = True

    def __getitem__(self, path: str) -> KnownNode:
        """Return what is known of a node, also of one of which nothing is known yet."""
        node = self._nodes.get(path)
        if node is None:
            node = self._nodes[path] = KnownNode(path)
        return node

    def __iter__(self) -> Iterator[KnownNode]:
        return iter(list(self._nodes.values()))

    def target(self, path: str) -> KnownNode:
        """Return the node to which rows are written now: the node itself or the copy of its rewrite."""
        node = self[path]
        if node.rewrite is None or node.rewrite.swapped:
            return node
        return self[node.rewrite.copy]

    def is_copy(self, path: str) -> bool:
        """Return True if a table's rows are being written to this node, to be shown in the table later."""
        return any(node.rewrite is not None and node.rewrite.copy == path for node in self)

    def rewrites_in(self, run: str) -> list[KnownNode]:
        """Return the run's tables whose rewrite is not complete, in the order in which it was last changed."""
        return [self[path] for path in self._decisions.made.rewrites if path.startswith(f"{run}/")]

    def record_creation(self, node: KnownNode) -> None:
        """Record that this run has created the node or taken it over."""
        self._change(node, NodeEvent.CREATED, progress=NodeProgress(0, None), occupying_rows=None)

    def record_intent(self, node: KnownNode, stop: int) -> None:
        """Record, before a request, that the node will have `stop` rows after it."""
        self._change(node, NodeEvent.INTENDED, progress=NodeProgress(node.rows, stop))
        node.quiet_watch = None

    def confirm_rows(self, node: KnownNode, rows: int) -> None:
        """Record that the node has this number of the journal's rows, and that no request is in flight."""
        self._change(node, NodeEvent.CONFIRMED, progress=NodeProgress(rows, None))

    def record_deletion(self, node: KnownNode) -> None:
        """Record that the server no longer has the node."""
        if node.state is NodeState.ABSENT:
            return
        if node.exists:
            self._ledger.drop_progress(node.path)
        self._change(node, NodeEvent.DELETED, progress=None, occupying_rows=None)

    def mark_all_unseen(self) -> None:
        """Have the state in Tiled of each node read before it is changed again: Tiled may have been put back."""
        for node in self:
            # The copy of a rewrite is read instead of the table, which is replaced.
            if node.exists and (node.rewrite is None or node.rewrite.swapped):
                node.unseen = True

    def record_occupation(self, node: KnownNode, rows: int) -> None:
        """Record that another writer's array with this number of rows is in the node's place."""
        if node.exists:
            self._ledger.drop_progress(node.path)
        self._change(node, NodeEvent.OCCUPIED, progress=None, occupying_rows=rows)

    def _change(self, node: KnownNode, event: NodeEvent, **facts: Any) -> None:
        """Change the facts of a node, and record its progress if that is among them.

        Raises
        ------
        NodeStateError
            The event may not happen in the node's state, or leads to a state that it may not lead to.
        """
        before = node.state
        allowed = check_event(node.path, before, event)
        for name, value in facts.items():
            setattr(node, name, value)
        if node.state not in allowed:
            raise NodeStateError(node.path, before, event)
        if (progress := facts.get("progress")) is not None:
            # After a power cut, a request may seem to be without an answer, and Tiled is asked what came of it.
            synced = event is not NodeEvent.CONFIRMED
            self._ledger.set_progress(node.path, progress.rows, progress.intent, synced=synced)

    def mark_doubted(self, node: KnownNode, reason: str, rows: int | None) -> None:
        """Suspend changes to a table until the journal is proved to contain all of its rows.

        Parameters
        ----------
        node
            The table.
        reason
            Reason for which the table is rewritten after the proof; "" if it is not.
        rows
            Number of rows that it was seen to have; None to believe no number before it has stayed.
        """
        node.doubted_rows = rows
        self._change(node, NodeEvent.DOUBTED, doubt=reason, proof=None)
        self._record(_DOUBTED_KEY, node.path, reason)

    def clear_doubt(self, node: KnownNode) -> None:
        """Forget the doubt about a table that is proved."""
        self._change(node, NodeEvent.PROVED, doubt=None, proof=None)
        self._record(_DOUBTED_KEY, node.path, None)

    def forget_doubt(self, node: KnownNode) -> None:
        """Forget the doubt, if any, about a table that is deleted next, or is missing."""
        node.proof = None
        if node.doubt is not None:
            node.doubt = None
            self._record(_DOUBTED_KEY, node.path, None)

    def begin_rewrite(self, node: KnownNode, columns: list[list[str]], until: int) -> TableRewrite:
        """Record that a table is rewritten; see `TableRewrite` for the arguments."""
        rewrite = TableRewrite(node.path + REWRITE_SUFFIX, columns, until)
        self._change(node, NodeEvent.REWRITE_BEGUN, rewrite=rewrite)
        self._record_rewrite(node)
        return rewrite

    def show_rewrite(self, node: KnownNode, rewrite: TableRewrite) -> None:
        """Record that a table shows the rows of its copy."""
        self._change(node, NodeEvent.REWRITE_SHOWN, rewrite=rewrite)
        self._record_rewrite(node)

    def drop_rewrite(self, node: KnownNode) -> None:
        """Record that a table is not rewritten after all."""
        self._change(node, NodeEvent.REWRITE_DROPPED, rewrite=None)
        self._record_rewrite(node)

    def end_rewrite(self, node: KnownNode) -> None:
        """Forget the rewrite of a table that shows its copy's rows, or is missing."""
        node.rewrite = None
        self._record_rewrite(node)

    def _record_rewrite(self, node: KnownNode) -> None:
        # A rewrite goes to the end of the mapping whenever it changes.
        rewrites = {path: rewrite for path, rewrite in self._decisions.made.rewrites.items() if path != node.path}
        if node.rewrite is not None:
            rewrites[node.path] = node.rewrite
        self._decisions.record(rewrites=rewrites)

    def count_repair(self, node: KnownNode) -> None:
        """Record one more repair of a node."""
        node.repairs += 1
        self._decisions.record(repairs={**self._decisions.made.repairs, node.path: node.repairs})

    def record_columns(self, node: KnownNode, columns: list[list[str]]) -> None:
        """Record the columns that a table has in Tiled."""
        node.columns = columns
        self._record(_COLUMNS_KEY, node.path, columns)

    def record_array(self, node: KnownNode, dtype: str, shape: list[int]) -> None:
        """Record the type and row shape with which an array was created or taken over."""
        node.array = [dtype, shape]
        self._record(_ARRAYS_KEY, node.path, node.array)

    def _record(self, key: str, path: str, value: Any) -> None:
        """Record a value by path in one of the ledger's mappings; remove the path if the value is None."""
        recorded = {**self._last_recorded[key], path: value}
        if value is None:
            del recorded[path]
        self._last_recorded[key] = recorded
        self._ledger.set(key, recorded)

    def record_lost_response(self, node: KnownNode) -> None:
        """Remember that a request with a lost response may still change the node."""
        if not node.disturbed:
            self._set_disturbed(node, True)
        self.plan_late_audit()

    def forget_lost_response(self, node: KnownNode) -> None:
        """Forget a lost response because all of the node's rows are sent again."""
        self._set_disturbed(node, False)

    def _set_disturbed(self, node: KnownNode, disturbed: bool) -> None:
        node.disturbed = disturbed
        self._decisions.record(disturbed=sorted(node.path for node in self._nodes.values() if node.disturbed))

    def plan_late_audit(self) -> None:
        """Have the run audited again after its end."""
        if not self._decisions.made.late_audit:
            self._decisions.record(late_audit=True)


def path_in_run(path: str) -> str:
    """Return a node's path below its run; "the run" for the run itself."""
    return path.partition("/")[2] or "the run"
