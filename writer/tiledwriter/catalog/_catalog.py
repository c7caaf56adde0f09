"""Apply operations to Tiled with exactly-once effect, across crashes and lost responses."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NoReturn, Protocol

import msgspec
import numpy

from tiledbroker import NodeProgress
from tiledbroker._crash_points import crash_point

from .._errors import (
    Ambiguous,
    AuditFailed,
    ColumnsRefused,
    NodeRewound,
    NotOurs,
    OperationRefused,
    Refused,
    Stopped,
    TiledHasMore,
    WriterError,
)
from ..mapping import (
    QUIET_PERIOD_SECONDS,
    AppendRows,
    Audit,
    CloseStream,
    Column,
    ColumnDigest,
    CreateArray,
    CreateContainer,
    CreateTable,
    Creation,
    DescribeExternal,
    ExtendExternal,
    Growth,
    Operation,
    OrderTable,
    RegisterExternal,
    RemoveNode,
    UpdateMetadata,
    WriteArray,
    describe_operation,
)
from ._connection import Connection
from ._nodes import Nodes, arrow_columns, difference, extent, order_of
from ._probe import PROBE_KEY
from ._responses import NotTiled, ServerFailed
from ._row_proof import RowProof, key_columns, keys_of_append

log = logging.getLogger(__name__)

MAX_ROWS: Final = 20_000
MAX_BYTES: Final = 32 * 2**20
# Per node.
MAX_REPAIRS: Final = 5

# Decay factor of the slowest append, per growth.
_FORGETTING: Final = 0.9

# Keys of the ledger.
_SLOWEST: Final = "slowest_append"
_LISTS_TAKEN: Final = "list_columns_taken"
_COLUMNS: Final = "columns"
_REWRITES: Final = "rewrites"
_REPAIRS: Final = "repairs"
_DISTURBED: Final = "disturbed"
_DOUBTED: Final = "doubted"
_ARRAYS: Final = "arrays"
_COMPLETE_BEFORE: Final = "complete_before"
_PROBE_TABLE: Final = "probe_table"

_REWRITE_SUFFIX: Final = "_rewrite"
# The order of a table only moves to a later entry, never back.
_ORDERS: Final = (("seq_num", "time"), ("time", "seq_num"), ())

LATE_AUDIT: Final = "late_audit"
"""Key of the ledger, set when a late audit is needed because a request may be carried out after the run's end."""

_NEVER: Final = 2**53


class Ledger(Protocol):
    """Store of a run's progress: the part of `tiledbroker.Journal` that `TiledCatalog` uses."""

    @property
    def stopped(self) -> bool: ...
    def progress(self) -> dict[str, NodeProgress]: ...
    def set_progress(self, node: str, rows: int, intent: int | None = None) -> None: ...
    def drop_progress(self, node: str) -> None: ...
    def note(self, event: str, **detail: Any) -> None: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...


class NodeNotQuiet(WriterError):
    """Raised when an operation must wait until the node is quiet: an earlier request may still change it."""


@dataclass
class QuietWatch:
    """Observed size of a node that a request may still be changing.

    Attributes
    ----------
    size
        Last observed size; None before the first observation.
    since
        Time at which this size was first observed, in seconds.
    """

    size: int | None = None
    since: float = 0.0

    def observe(self, size: int, asked: float, answered: float) -> float:
        """Record an observation and return the seconds for which the node has certainly had this size.

        Parameters
        ----------
        size
            Observed size.
        asked, answered
            Times in seconds just before the request for the size and just after its response.
        """
        if size != self.size:
            self.size, self.since = size, answered
        return max(0.0, asked - self.since)


@dataclass(frozen=True)
class Rewrite:
    """Rewrite of a table whose column types must change or whose rows are wrong: its rows go to a copy beside it.

    When the copy has as many rows as the table had, the data source of the table's node is replaced to show the copy's
    rows, and the copy's node is deleted. The old rows stay in the database: Tiled stores all tables of one schema in
    one SQL table and drops it when it becomes empty, even if another process is about to append to it.

    Attributes
    ----------
    copy
        Path of the copy.
    columns
        Names and Arrow types of the copy's columns.
    until
        Number of rows after which the table shows the copy; `_NEVER` to wait for the audit or the end of the run.
    swapped
        True once the table shows the copy's rows.
    """

    copy: str
    columns: list[list[str]]
    until: int
    swapped: bool = False


class TiledCatalog:
    """Nodes of one run in Tiled.

    The catalog never undoes data in Tiled that this process did not write: another host may have written it from more
    documents than the journal has. It does not change such a table before the journal has been proved to contain all
    of its rows (`RowProof`). It does not change a run at all that has a stop document in Tiled but not in the journal.
    If the journal ends without the missing documents, `TiledHasMore` is raised.

    Parameters
    ----------
    connection
        Connection to the server.
    ledger
        Store of the rows that the server has confirmed for each node and of the requests in flight; a journal keeps
        them on disk.
    quiet_period
        Seconds for which a node's size must not change before an append with unknown outcome counts as not carried
        out.
    clock
        Returns monotonic time in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        ledger: Ledger,
        *,
        quiet_period: float = QUIET_PERIOD_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = Nodes(connection)
        self._nodes.probe.on_table = lambda path: ledger.set(_PROBE_TABLE, path)
        self._ledger = ledger
        self._quiet_period = quiet_period
        self._clock = clock
        self._progress = ledger.progress()
        self._settling: dict[str, QuietWatch] = {}
        self._slowest_append = float(ledger.get(_SLOWEST, 0.0))
        self._columns: dict[str, list[list[str]]] = ledger.get(_COLUMNS, {})
        self._lost_responses: set[str] = set(ledger.get(_DISTURBED, ()))
        self._rewrites = {path: Rewrite(**state) for path, state in ledger.get(_REWRITES, {}).items()}
        self._max_rows: dict[str, int] = {}
        # Nodes that another process has written to.
        self._nodes_of_others = set(self._progress)
        # Nodes of earlier processes whose state in Tiled this process has not read yet.
        self._unseen = set(self._progress)
        # Reason for which each unproved table must be rewritten; "" if it only must be proved.
        self._doubted: dict[str, str] = ledger.get(_DOUBTED, {})
        self._proofs: dict[str, RowProof] = {}
        # Extent of arrays and files that Tiled had before this process wrote to them.
        self._initial_extents: dict[str, int] = {}
        # Number of rows of arrays that another writer has created with another type or shape.
        self._foreign_arrays: dict[str, int] = {}
        # All nodes that the journal's operations create.
        self._known: set[str] = set()
        # Number of rows of each node in the journal so far.
        self._journaled: dict[str, int] = {}
        # Key columns of tables.
        self._keys: dict[str, tuple[Column, ...]] = {}
        # Descriptions of data that Tiled has and the journal lacks, besides `_rows_beyond` and the stop document.
        self._more: list[str] = []
        self._removed: set[str] = set()
        self._has_stop = False
        self._suspended = False
        self._concluded = False

    @property
    def waits_for_stop(self) -> bool:
        """True while operations are not applied because Tiled has a stop document that the journal lacks."""
        return self._suspended

    def refuse(self) -> NoReturn:
        """Give up waiting for documents that Tiled has and the journal lacks.

        Raises
        ------
        TiledHasMore
            Always, with a description of the data.
        """
        raise TiledHasMore([*self._rows_beyond(), *self._more, *(["a stop document"] if self._has_stop else [])])

    def apply(self, operations: Iterable[Operation]) -> list[Operation]:
        """Carry out operations in order.

        Returns
        -------
        list
            Operations that must wait until their node is quiet; pass them again, before later ones.

        Raises
        ------
        OperationRefused
            Tiled will never accept an operation.
        ColumnsRefused
            The server's table storage has no list columns.
        TiledHasMore
            Tiled has more of the run than the journal, and the journal will not get it.
        NodeRewound
            All operations of the run must be passed again, from the first one.
        AuditFailed
            A node still differs after `MAX_REPAIRS` repairs.
        Stopped
            The process was told to stop.
        """
        if self._suspended and self._ledger.stopped:
            self._suspended = False
            raise NodeRewound("run", "has come to its stop document here, too")
        waiting: list[Operation] = []
        blocked: set[str] = set()
        for operation in operations:
            if not self._must_wait(operation, blocked):
                try:
                    self._apply_operation(operation)
                    continue
                except NodeNotQuiet:
                    blocked.add(operation.path)
                except Refused as error:
                    raise OperationRefused(describe_operation(operation), str(error)) from error
            waiting.append(operation)
        return waiting

    @staticmethod
    def _must_wait(operation: Operation, blocked: set[str]) -> bool:
        if operation.path in blocked:
            return True
        # An operation that ends a run or a stream must follow all operations in it.
        final = isinstance(operation, UpdateMetadata | CloseStream)
        return final and any(path.startswith(operation.path + "/") for path in blocked)

    def _apply_operation(self, operation: Operation) -> None:
        self._take_note(operation)
        if self._suspended:
            # These operations come last in a run, so the journal will not get further documents.
            if isinstance(operation, Audit | CloseStream):
                self.refuse()
        elif isinstance(operation, AppendRows | WriteArray | ExtendExternal):
            self._grow_node(self._target_path(operation.path), operation)
            self._finish_rewrite(operation.path)
        elif isinstance(operation, OrderTable):
            self._set_order(operation)
        elif isinstance(operation, DescribeExternal):
            source = {**operation.data_source, "id": self._nodes.data_source(operation.path)["id"]}
            self._nodes.put_data_source(operation.path, source, repeat=True)
        elif isinstance(operation, Audit):
            self._audit_node(operation)
        elif isinstance(operation, UpdateMetadata):
            self._finish_rewrites_of(operation.path)
            self._update_metadata(operation)
        elif isinstance(operation, RemoveNode):
            self._remove_replaced(operation.path)
        elif isinstance(operation, CloseStream):
            self._close_stream(operation.path)
        elif isinstance(operation, CreateTable) and operation.path in self._progress:
            self._check_columns(operation)
        else:
            self._create_node(operation)

    def _take_note(self, operation: Operation) -> None:
        """Remember the nodes, row counts and key columns that the journal's operations lead to."""
        if isinstance(operation, AppendRows | WriteArray | ExtendExternal):
            self._journaled[operation.path] = operation.stop
        elif isinstance(operation, CreateContainer | CreateTable | CreateArray | RegisterExternal):
            self._known.add(operation.path)
        if isinstance(operation, CreateTable | AppendRows):
            self._keys[operation.path] = key_columns(operation.columns)
        # Rows are appended only to a table that exists, so the probe can read its columns.
        if isinstance(operation, AppendRows):
            self._nodes.probe.column = f"{operation.path}/{self._keys[operation.path][0].name}"

    def _set_order(self, operation: OrderTable) -> None:
        path = self._target_path(operation.path)
        if path in self._nodes_of_others:
            found = order_of(self._nodes.data_source(path))
            if found == operation.order or _ORDERS.index(found) > _ORDERS.index(operation.order):
                return
        self._nodes.set_order(path, operation.order)
        crash_point("catalog: order set")

    def _update_metadata(self, operation: UpdateMetadata) -> None:
        path, metadata = operation.path, operation.metadata
        self._remove_probe_table()
        if path in self._nodes_of_others:
            found = self._nodes.read(path)["metadata"]
            wanted: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(metadata))
            self._check_same_stop(operation, wanted.get("stop"), found.get("stop"))
            metadata = {key: value for key, value in wanted.items() if not self._is_known(path, value, found.get(key))}
        if metadata:
            self._nodes.set_metadata(path, metadata)
        self._concluded = self._concluded or "stop" in operation.metadata
        crash_point("catalog: metadata set")

    def _is_known(self, path: str, wanted: Any, found: Any) -> bool:
        """Return True if Tiled has this metadata value or a longer list that begins with it; report a longer list."""
        if isinstance(wanted, list) and isinstance(found, list) and found[: len(wanted)] == wanted:
            if len(found) > len(wanted):
                self._more.append(f"{len(found)} changes of configuration in {_path_in_run(path)}, {len(wanted)} here")
            return True
        return bool(wanted == found)

    @staticmethod
    def _check_same_stop(operation: UpdateMetadata, wanted: Any, found: Any) -> None:
        if isinstance(wanted, dict) and isinstance(found, dict) and wanted.get("uid") != found.get("uid"):
            raise NotOurs(describe_operation(operation), f"the run has another stop document, {found.get('uid')!r}")

    def _close_stream(self, path: str) -> None:
        self._remove_probe_table()
        if not self._concluded:
            self._check_end(path.partition("/")[0])
            self._concluded = True
        if not self._ledger.get(_COMPLETE_BEFORE):
            self._nodes.close_stream(path)
            crash_point("catalog: stream closed")

    def _check_end(self, run: str) -> None:
        """Check, at the end of a run without a stop document, that Tiled does not have more of the run.

        Raises
        ------
        TiledHasMore
            Tiled has a stop document, or nodes or configuration changes that the journal does not lead to.
        """
        self._has_stop = self._nodes.read(run)["metadata"].get("stop") is not None
        ours = {*self._known, *(path + _REWRITE_SUFFIX for path in self._known), f"{run}/{PROBE_KEY}"}
        if unknown := sorted(path for path in self._nodes.below(run) if path not in ours):
            self._more.append(f"{len(unknown)} nodes, such as {_path_in_run(unknown[0])}")
        if self._has_stop or self._more:
            self.refuse()

    def _rows_beyond(self) -> list[str]:
        """Describe the rows that Tiled has beyond those of the journal, one line per node."""
        beyond = []
        for path, journaled in self._journaled.items():
            try:
                found = self._node_size(path)
            except Refused as error:
                if error.status != 404:
                    raise
                continue
            if found > journaled or path in self._doubted:
                beyond.append(f"{found} rows in {_path_in_run(path).removesuffix('/internal')}, {journaled} here")
        return beyond

    def _node_size(self, path: str) -> int:
        keys = self._keys.get(path.removesuffix(_REWRITE_SUFFIX)) or self._keys.get(path)
        return self._nodes.size(f"{path}/{keys[0].name}" if keys else path)

    # Nodes

    def _create_node(self, operation: Creation) -> None:
        if operation.path in self._progress:
            self._check_existing(operation)
            if operation.path in self._progress:
                return
        # With SQLite as table storage Tiled always answers 500 to list columns. Do not wait for another response
        # unless this server has accepted list columns before.
        lists = isinstance(operation, CreateTable) and any(c.type.startswith("list<") for c in operation.columns)
        unproven = lists and not self._ledger.get(_LISTS_TAKEN)
        try:
            self._create_or_adopt(
                operation, tolerated_failures=2 if unproven or isinstance(operation, CreateArray) else None
            )
        except ServerFailed as error:
            if not isinstance(operation, CreateArray):
                raise ColumnsRefused(describe_operation(operation), str(error)) from error
            directory = self._nodes.clear_array_key(operation)
            self._ledger.note("cleared away", node=operation.path, directory=directory)
            self._create_or_adopt(operation)
        # An adopted table may have other columns and proves nothing about list columns.
        if unproven and isinstance(operation, CreateTable) and self._has_columns(operation):
            self._ledger.set(_LISTS_TAKEN, True)

    def _has_columns(self, operation: CreateTable) -> bool:
        """Return True if the table has the columns of the operation."""
        return self._columns.get(operation.path) == arrow_columns(operation.columns)

    def _create_or_adopt(self, operation: Creation, *, tolerated_failures: int | None = None) -> None:
        path = operation.path
        if path in self._settling:
            self._adopt_node(operation, made_here=False)
            return
        try:
            self._nodes.create(operation, tolerated_failures=tolerated_failures)
        except Refused as error:
            if error.status != 409:
                raise
            self._adopt_node(operation, made_here=error.may_be_ours)
        else:
            crash_point("catalog: node created")
            if isinstance(operation, CreateTable):
                self._set_columns(path, arrow_columns(operation.columns))
            if isinstance(operation, CreateArray):
                self._remember_array(operation)
            self._record_progress(path, 0)
        if "/" not in path:
            self._nodes.probe.run = path

    def _adopt_node(self, operation: Creation, *, made_here: bool) -> None:
        """Take over an existing node: from before a crash, or from another host that wrote the run.

        Raises
        ------
        NotOurs
            The node belongs to something else.
        NodeNotQuiet
            Another process may still be writing to the node.
        """
        path = operation.path
        attributes = self._nodes.read(path)
        if reason := difference(operation, attributes):
            if not self._holds_array(operation, attributes):
                raise NotOurs(describe_operation(operation), f"the node exists and {reason}")
            self._wait_until_unchanged(operation)
            self._foreign_arrays[path] = extent(attributes["data_sources"][0])
            self._ledger.note("another array", node=path, reason=reason)
            return
        if "/" not in path:
            self._check_run_complete(attributes)
            if self._has_stop:
                self._ledger.set(_COMPLETE_BEFORE, True)
        elif not made_here and not isinstance(operation, CreateContainer):
            self._wait_until_unchanged(operation)
        if not made_here:
            self._plan_late_audit()
        self._nodes_of_others.add(path)
        self._ledger.note("adopted", node=path)
        if isinstance(operation, CreateTable):
            self._adopt_table(operation)
        else:
            self._initial_extents[path] = self._extent_of(operation, attributes)
            self._record_progress(path, 0)

    def _adopt_table(self, operation: CreateTable) -> None:
        path = operation.path
        columns = self._nodes.columns(path)
        self._set_columns(path, columns)
        if self._nodes.size(f"{path}/{columns[0][0]}"):
            self._mark_doubted(path, "")
        self._record_progress(path, 0)
        self._check_columns(operation)

    def _wait_until_unchanged(self, operation: Creation) -> None:
        """Raise `NodeNotQuiet` until a node that another process has written is quiet: a request may be in flight.

        A run with a stop document is complete, so there is no need to wait.
        """
        if self._has_stop:
            return
        path, asked = operation.path, self._clock()
        if isinstance(operation, CreateTable):
            size = self._nodes.size(f"{path}/{self._nodes.columns(path)[0][0]}")
        else:
            size = self._extent_of(operation, self._nodes.read(path))
        quiet = self._settling.setdefault(path, QuietWatch()).observe(size, asked, self._clock())
        if quiet < self._needed_quiet:
            raise NodeNotQuiet
        del self._settling[path]

    @staticmethod
    def _extent_of(operation: Creation, attributes: Mapping[str, Any]) -> int:
        """Return the extent of a node's data (see `extent`); 0 for a container."""
        return 0 if isinstance(operation, CreateContainer) else extent(attributes["data_sources"][0])

    def _check_existing(self, operation: Creation) -> None:
        """Check a node that is in the progress already, before it is used again."""
        path = operation.path
        if "/" not in path:
            self._nodes.probe.run = path
            if path in self._unseen:
                self._unseen.discard(path)
                self._check_run_complete(self._nodes.read(path))
        elif isinstance(operation, CreateArray):
            self._remake_array(operation)

    def _check_run_complete(self, attributes: Mapping[str, Any]) -> None:
        """Stop applying operations if the run has its stop document in Tiled but not in the journal."""
        self._has_stop = attributes["metadata"].get("stop") is not None
        if self._has_stop and not self._ledger.stopped:
            self._suspended = True
            log.warning("Tiled has a stop document of this run, which the journal does not have; nothing is written.")
            self._ledger.note("tiled has more", reason="it has a stop document")

    # Arrays whose type or shape must change

    @staticmethod
    def _holds_array(operation: Creation, attributes: Mapping[str, Any]) -> bool:
        """Return True if the operation creates an array and the existing node is an array that Tiled stores."""
        if not isinstance(operation, CreateArray) or attributes["structure_family"] != "array":
            return False
        return bool(attributes["data_sources"][0]["management"] == "writable")

    def _replace_array(self, path: str, operation: WriteArray) -> None:
        """Delete another writer's array of another type or shape once the journal has as many rows."""
        if operation.stop >= self._foreign_arrays[path]:
            self._ledger.note("array made anew", node=path)
            del self._foreign_arrays[path]
            self._nodes.delete(path)
            raise NodeRewound(path, "is made anew")

    def _remember_array(self, operation: CreateArray) -> None:
        arrays = self._ledger.get(_ARRAYS, {})
        made = [operation.dtype, list(operation.shape)]
        self._ledger.set(_ARRAYS, {**arrays, operation.path: made})

    def _remake_array(self, operation: CreateArray) -> None:
        """Delete an array that was created from this journal if its type or shape must change."""
        path = operation.path
        arrays = self._ledger.get(_ARRAYS, {})
        if path not in arrays:
            return
        # Earlier versions created arrays with rows of zeros and recorded their number.
        dtype, shape, *rows_of_zeros = arrays[path]
        if (dtype, shape) == (operation.dtype, list(operation.shape)):
            return
        progress = self._progress[path]
        found = extent(self._nodes.read(path)["data_sources"][0])
        if found > max(progress.rows, progress.intent or 0, *rows_of_zeros):
            self._more.append(f"rows in {_path_in_run(path)}")
            self.refuse()
        self._ledger.note("array made anew", node=path, type=operation.dtype, shape=list(operation.shape))
        self._delete_node(path)

    # Tables with rows that were not written from this journal

    def _mark_doubted(self, path: str, reason: str) -> None:
        """Suspend changes to a table until the journal is proved to contain all of its rows.

        With a reason other than "" the table is rewritten after the proof.
        """
        self._proofs.pop(path, None)
        self._doubted = {**self._doubted, path: reason}
        self._ledger.set(_DOUBTED, self._doubted)

    def _reject_rows(self, path: str, shown: str, reason: str) -> NoReturn:
        """Have a wrong table rewritten: a copy at once, as readers do not see it, the shown table only after a proof.

        The shown table must not be rewritten if it has rows that the journal does not have.

        Parameters
        ----------
        path
            Path of the wrong table: the shown one or its copy.
        shown
            Path of the table that readers see.
        reason
            Difference, for the history.
        """
        if path != shown:
            self._start_repair(shown, reason, rewrite=True)
        self._mark_doubted(path, reason)
        raise NodeRewound(path, reason)

    def _clear_doubt(self, path: str) -> None:
        self._proofs.pop(path, None)
        if path in self._doubted:
            self._doubted = {other: reason for other, reason in self._doubted.items() if other != path}
            self._ledger.set(_DOUBTED, self._doubted)

    def _extend_proof(self, path: str, operation: AppendRows) -> None:
        """Add the journal's next rows to the proof of a table; return if the table is proved, or not yet.

        A proved table that holds exactly the journal's first rows is continued after them. A proved table with
        duplicated rows, or with a reason for a rewrite, is rewritten.

        Raises
        ------
        NodeRewound
            The rows must be passed from the first one, or the table is rewritten.
        """
        proof = self._proofs.get(path)
        if proof is None:
            if operation.first:
                raise NodeRewound(path, "is compared with the journal")
            found = self._nodes.row_keys(path, [column.name for column in key_columns(operation.columns)])
            proof = self._proofs[path] = RowProof(found)
        if operation.first != proof.journaled:
            raise NodeRewound(path, "is compared with the journal")
        proof.add(keys_of_append(operation))
        if not proof.explained:
            return
        reason = self._doubted[path]
        if not reason and not proof.is_beginning:
            reason = f"has {proof.found} rows, some of them more than once"
        self._clear_doubt(path)
        if reason:
            self._start_repair(operation.path, reason, rewrite=True)
        self._record_progress(path, proof.found)
        if self._columns[path] != arrow_columns(operation.columns):
            raise NodeRewound(path, "needs other columns")

    def _check_foreign_rows(self, path: str, operation: AppendRows | CreateTable) -> None:
        """Before the first change to an earlier process's table, check that no other writer has added rows since.

        Raises
        ------
        NodeRewound
            The table has more rows than confirmed; the journal must be proved to contain them.
        """
        if path not in self._unseen:
            return
        self._unseen.discard(path)
        found = self._nodes.size(f"{path}/{key_columns(operation.columns)[0].name}")
        if found > (known := self._progress[path].rows):
            self._mark_doubted(path, "")
            raise NodeRewound(path, f"has {found} rows where {known} are expected")

    def _record_initial_extent(self, path: str) -> None:
        """Before the first change to an earlier process's array or files, remember their extent."""
        if path in self._unseen:
            self._unseen.discard(path)
            self._initial_extents[path] = extent(self._nodes.read(path)["data_sources"][0])

    # Tables whose columns must change

    def _check_columns(self, operation: CreateTable) -> None:
        """Start or continue the rewrite of an existing table if its columns must change."""
        path = self._target_path(operation.path)
        if path in self._doubted:
            # The rows come again from the first one, so the proof starts again.
            self._proofs.pop(path, None)
            return
        wanted = arrow_columns(operation.columns)
        rewrite = self._rewrites.get(operation.path)
        if rewrite is not None and rewrite.swapped:
            self._finish_rewrite(operation.path)
            rewrite = None
        if rewrite is None and self._columns.get(operation.path, wanted) == wanted:
            return
        if rewrite is not None and rewrite.until < _NEVER and self._columns.get(operation.path) == wanted:
            # The table has the required columns after all, for example because the server refused those of the copy.
            self._discard_copy(rewrite.copy)
            self._set_rewrite(operation.path, None)
            return
        if rewrite is None or rewrite.columns != wanted:
            progress = self._progress[operation.path]
            if progress.intent is not None:
                self._determine_outcome(operation.path, operation, progress.rows, progress.intent)
            self._check_foreign_rows(operation.path, operation)
            if rewrite is not None:
                self._discard_copy(rewrite.copy)
            rewrite = Rewrite(operation.path + _REWRITE_SUFFIX, wanted, self._progress[operation.path].rows)
            self._ledger.note("rewriting", node=operation.path, rows=rewrite.until)
            self._set_rewrite(operation.path, rewrite)
            crash_point("catalog: rewrite begun")
        self._create_node(replace(operation, path=rewrite.copy))
        self._finish_rewrite(operation.path)

    def _target_path(self, path: str) -> str:
        """Return the path to which a node's rows are written now: the node itself or the copy of its rewrite."""
        rewrite = self._rewrites.get(path)
        return path if rewrite is None or rewrite.swapped else rewrite.copy

    def _finish_rewrites_of(self, run: str) -> None:
        """Complete all rewrites at the end of a run, when the copies have all rows."""
        for path in [path for path in self._rewrites if path.startswith(f"{run}/") and "/" not in run]:
            self._finish_rewrite(path, complete=True)

    def _finish_rewrite(self, path: str, *, complete: bool = False) -> None:
        """Make a table's node show the rows of its copy if there are enough of them, or if the run is `complete`.

        Raises
        ------
        TiledHasMore
            The run is complete, but the table has more rows than the copy.
        """
        rewrite = self._rewrites.get(path)
        if rewrite is None:
            return
        if not rewrite.swapped:
            rows = self._progress[rewrite.copy].rows
            if rows < rewrite.until and not complete:
                return
            if rows < rewrite.until < _NEVER:
                self.refuse()
            copy = self._nodes.data_source(rewrite.copy)
            shown = {"structure": copy["structure"], "parameters": copy["parameters"]}
            self._nodes.put_data_source(path, {**self._nodes.data_source(path), **shown}, repeat=True)
            crash_point("catalog: rewrite shown")
            self._nodes.read(path)
            self._set_columns(path, rewrite.columns)
            self._record_progress(path, rows)
            self._set_rewrite(path, replace(rewrite, swapped=True))
            crash_point("catalog: rewrite recorded")
        self._discard_copy(rewrite.copy)
        self._set_rewrite(path, None)
        self._ledger.note("rewritten", node=path, rows=self._progress[path].rows)

    def _discard_copy(self, copy: str) -> None:
        """Delete the node of a copy but not its rows."""
        self._nodes.detach(copy)
        crash_point("catalog: copy detached")
        self._clear_doubt(copy)
        self._delete_node(copy)

    def _remove_probe_table(self) -> None:
        """Delete the table that a probe left because its deletion failed or its process was killed."""
        if (path := self._ledger.get(_PROBE_TABLE)) is not None:
            self._nodes.detach(path)
            self._nodes.delete(path)
            self._ledger.set(_PROBE_TABLE, None)

    def _remove_replaced(self, path: str) -> None:
        """Delete an array whose values are now in a column, including one of another host that died before deleting it.

        Raises
        ------
        NotOurs
            The node is not an array that Tiled stores.
        TiledHasMore
            The array has more rows than the journal.
        """
        if path in self._removed:
            return
        if path not in self._progress:
            try:
                attributes = self._nodes.read(path)
            except Refused as error:
                if error.status != 404:
                    raise
            else:
                source = attributes["data_sources"][0] if attributes["structure_family"] == "array" else None
                if source is None or source["management"] != "writable":
                    raise NotOurs(describe_operation(RemoveNode(path)), "the node is no array of ours")
                stream = path.rpartition("/")[0]
                journaled = [rows for node, rows in self._journaled.items() if node.startswith(stream + "/")]
                if extent(source) > max(journaled, default=0):
                    self._more.append(f"rows in {_path_in_run(path)}")
                    self.refuse()
                self._ledger.note("removed", node=path)
                self._record_progress(path, 0)
        self._delete_node(path)
        self._removed.add(path)

    def _delete_node(self, path: str) -> None:
        if path in self._progress:
            self._nodes.delete(path)
            crash_point("catalog: node deleted")
            self._ledger.drop_progress(path)
            del self._progress[path]

    # Audits of complete nodes

    def _audit_node(self, operation: Audit) -> None:
        """Compare a node with the rows that were sent, and have it rewritten if it differs.

        The server may have carried out a request with a lost response after the quiet period.

        Raises
        ------
        NodeRewound
            The node is rewritten.
        AuditFailed
            The node was rewritten too often.
        TiledHasMore
            The journal was not proved to contain the node's rows.
        """
        path = self._target_path(operation.path)
        if path in self._doubted or path in self._foreign_arrays:
            self.refuse()
        if operation.columns:
            if reason := self._compare_rows(path, operation):
                self._reject_rows(path, operation.path, reason)
        elif reason := self._compare_shape(path, operation):
            self._start_repair(operation.path, reason, rewrite=False)
        crash_point("catalog: audited")
        self._finish_rewrite(operation.path, complete=True)

    def _compare_rows(self, path: str, operation: Audit) -> str:
        """Return how a table differs from the audit; "" if it does not."""
        for name, digest in operation.columns:
            if digest is None:
                rows, found = self._nodes.size(f"{path}/{name}"), None
            else:
                read, rows = ColumnDigest(), 0
                for content in self._nodes.column(path, name):
                    read.add_bytes(content)
                    rows += len(content) // 8
                found = read.value
            if rows != operation.rows:
                return f"has {rows} rows where {operation.rows} are expected"
            if found != digest:
                return f"has other values of {name!r}, or in another order"
        return ""

    def _compare_shape(self, path: str, operation: Audit) -> str:
        """Return how an array or external data differ from the audit; "" if they do not."""
        if path in self._lost_responses:
            self._lost_responses.discard(path)
            self._ledger.set(_DISTURBED, sorted(self._lost_responses))
            return "may have been written to by a request whose answer was lost"
        rows = self._nodes.size(path)
        if rows > operation.rows:
            if self._nodes.trim_first_chunk(path, operation.rows):
                return ""
            self._journaled[path] = operation.rows
            self.refuse()
        return "" if rows == operation.rows else f"has a length of {rows} where {operation.rows} is expected"

    def _start_repair(self, path: str, reason: str, *, rewrite: bool) -> NoReturn:
        """Have a node's rows sent again: with `rewrite`, to a copy of the table; otherwise in place.

        Raises
        ------
        NodeRewound
            Unless the node was repaired too often.
        AuditFailed
            The node was repaired `MAX_REPAIRS` times already.
        """
        repairs = self._ledger.get(_REPAIRS, {})
        count = repairs.get(path, 0) + 1
        if count > MAX_REPAIRS:
            raise AuditFailed(path, reason)
        self._ledger.set(_REPAIRS, {**repairs, path: count})
        self._ledger.note("repairing", node=path, reason=reason)
        log.warning("%s %s; it is written anew.", path, reason)
        if rewrite:
            columns = self._columns[path]
            if (unfinished := self._rewrites.get(path)) is not None:
                columns = unfinished.columns
                self._discard_copy(unfinished.copy)
            self._set_rewrite(path, Rewrite(path + _REWRITE_SUFFIX, columns, _NEVER))
        else:
            self._record_progress(path, 0)
        raise NodeRewound(path, reason)

    def _record_lost_response(self, path: str) -> None:
        """Remember that a request with a lost response may still change the node."""
        if path not in self._lost_responses:
            self._lost_responses.add(path)
            self._ledger.set(_DISTURBED, sorted(self._lost_responses))
        self._plan_late_audit()

    def _plan_late_audit(self) -> None:
        if not self._ledger.get(LATE_AUDIT):
            self._ledger.set(LATE_AUDIT, True)

    @property
    def _needed_quiet(self) -> float:
        """Seconds for which a node's size must not have changed."""
        return max(self._quiet_period, 3 * self._slowest_append)

    def _set_columns(self, path: str, columns: list[list[str]]) -> None:
        self._columns = {**self._columns, path: columns}
        self._ledger.set(_COLUMNS, self._columns)

    def _set_rewrite(self, path: str, rewrite: Rewrite | None) -> None:
        self._rewrites.pop(path, None)
        if rewrite is not None:
            self._rewrites[path] = rewrite
        self._ledger.set(_REWRITES, {path: asdict(state) for path, state in self._rewrites.items()})

    # Rows

    def _grow_node(self, path: str, operation: Growth) -> None:
        if isinstance(operation, WriteArray) and path in self._foreign_arrays:
            self._replace_array(path, operation)
            return
        if isinstance(operation, AppendRows) and path in self._doubted:
            self._extend_proof(path, operation)
            if path in self._doubted:
                return
        progress = self._progress[path]
        if progress.intent is not None:
            self._determine_outcome(path, operation, progress.rows, progress.intent)
        done = self._progress[path].rows
        if operation.stop <= done:
            return
        if operation.first > done:
            raise WriterError(f"{describe_operation(operation)} does not continue at row {done}; this is a defect.")
        if isinstance(operation, AppendRows):
            self._check_foreign_rows(path, operation)
        else:
            self._record_initial_extent(path)
        if isinstance(operation, ExtendExternal):
            if extent(operation.data_source) <= self._initial_extents.get(path, -1):
                self._record_progress(path, operation.stop)
            else:
                self._send_growth(path, operation)
            return
        for piece in self._split_operation(path, operation.rows(done, operation.stop)):
            if isinstance(piece, WriteArray) and self._is_there(path, piece):
                self._record_progress(path, piece.stop)
            else:
                self._send_growth(path, piece)

    def _is_there(self, path: str, operation: WriteArray) -> bool:
        """Return True if the array holds these rows already because another process has written them."""
        if operation.stop > self._initial_extents.get(path, 0):
            return False
        found = self._nodes.rows_of_array(path, operation.first, operation.stop)
        return found == numpy.ascontiguousarray(operation.values).tobytes()

    def _split_operation(self, path: str, operation: AppendRows | WriteArray) -> Iterator[AppendRows | WriteArray]:
        """Yield the operation in parts that fit into one request; the limit may shrink during the iteration."""
        first = operation.first
        while first < operation.stop:
            stop = min(operation.stop, first + self._row_limit(path, operation))
            yield operation.rows(first, stop)
            first = self._progress[path].rows

    def _row_limit(self, path: str, operation: AppendRows | WriteArray) -> int:
        limit = self._max_rows.get(path)
        if limit is None:
            limit = MAX_ROWS
            if isinstance(operation, WriteArray):
                limit = max(1, MAX_BYTES // max(1, operation.values[:1].nbytes))
            self._max_rows[path] = limit
        return limit

    def _send_growth(self, path: str, operation: Growth) -> None:
        """Send one growth, with its intent recorded before and its completion after.

        Raises
        ------
        NodeNotQuiet
            The outcome is unknown.
        """
        rows = self._progress[path].rows
        self._record_progress(path, rows, operation.stop)
        crash_point("catalog: growth intended")
        started = self._clock()
        try:
            self._nodes.grow(path, operation)
        except Ambiguous as error:
            if isinstance(error, NotTiled) and self._can_be_split(error.status, operation):
                # A gateway does not forward a request that is too large for it, so nothing was carried out.
                self._record_progress(path, rows)
                self._max_rows[path] = (operation.stop - operation.first) // 2
                return
            self._record_lost_response(path)
            self._record_duration(self._clock() - started)
            self._ledger.note("ambiguous", operation=describe_operation(operation), reason=str(error))
            log.warning("%s may or may not have been done (%s); looking.", describe_operation(operation), error)
            raise NodeNotQuiet from error
        except Stopped:
            # It is raised only between two attempts, and only an attempt that was not processed is repeated.
            self._record_progress(path, rows)
            raise
        except Refused as error:
            self._record_progress(path, rows)
            if not self._can_be_split(error.status, operation):
                raise
            self._max_rows[path] = (operation.stop - operation.first) // 2
        else:
            crash_point("catalog: growth done")
            self._record_duration(self._clock() - started)
            self._record_progress(path, operation.stop)

    @staticmethod
    def _can_be_split(status: int, operation: Growth) -> bool:
        """Return True if smaller requests may succeed."""
        return status == 413 and operation.stop - operation.first > 1 and not isinstance(operation, ExtendExternal)

    def _record_duration(self, seconds: float) -> None:
        """Update the decaying maximum of request durations; store it if it determines the quiet period."""
        before, self._slowest_append = self._slowest_append, max(seconds, _FORGETTING * self._slowest_append)
        if 3 * max(before, self._slowest_append) > self._quiet_period:
            self._ledger.set(_SLOWEST, self._slowest_append)

    def _determine_outcome(self, path: str, operation: Growth | CreateTable, rows: int, intent: int) -> None:
        """Determine the outcome of a growth whose response was lost.

        An append whose rows are present cannot be carried out again. An append whose rows are missing may still be in
        flight, because a request lives on in the server after its client is gone. Only a row count that stays the same
        for the quiet period shows that the append was not carried out.

        Parameters
        ----------
        path
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
        self._record_lost_response(path)
        asked = self._clock()
        columns = operation.columns if isinstance(operation, AppendRows | CreateTable) else ()
        table = bool(columns)
        size = self._nodes.size(f"{path}/{columns[0].name}" if columns else path)
        quiet = self._settling.setdefault(path, QuietWatch()).observe(size, asked, self._clock())
        # Only a table's size proves arrival: an array gets its shape before its content, and the size of external data
        # counts frames while `intent` counts datums.
        arrived = table and size == intent
        if not arrived and quiet < self._needed_quiet:
            raise NodeNotQuiet
        del self._settling[path]
        if table and size not in (rows, intent):
            self._reject_rows(path, operation.path, f"has {size} rows where {rows} or {intent} are expected")
        if table:
            self._unseen.discard(path)
        self._ledger.note("reconciled", node=path, found=size, confirmed=rows, intent=intent, quiet=round(quiet, 3))
        self._record_progress(path, intent if arrived else rows)

    def _record_progress(self, path: str, rows: int, intent: int | None = None) -> None:
        self._ledger.set_progress(path, rows, intent)
        self._progress[path] = NodeProgress(rows, intent)


def _path_in_run(path: str) -> str:
    """Return a node's path below its run; "the run" for the run itself."""
    return path.partition("/")[2] or "the run"
