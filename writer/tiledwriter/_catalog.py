"""Applies operations to Tiled so that each has its effect once, whatever was killed or cut in between."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, NoReturn, Protocol

from tiledbroker import NodeProgress
from tiledbroker._crash_points import crash_point

from ._connection import Connection, ServerFailed
from ._errors import (
    Ambiguous,
    AuditFailed,
    ColumnsRefused,
    NodeRewound,
    NotOurs,
    OperationRefused,
    Refused,
    Stopped,
    WriterError,
)
from ._nodes import Nodes, arrow_columns, difference
from ._operations import (
    AppendRows,
    Audit,
    CloseStream,
    ColumnDigest,
    CreateArray,
    CreateTable,
    Creation,
    DescribeExternal,
    ExtendExternal,
    Growth,
    Operation,
    OrderTable,
    RemoveNode,
    UpdateMetadata,
    WriteArray,
    describe_operation,
)

log = logging.getLogger(__name__)

QUIET_PERIOD: Final = 5.0
MAX_ROWS: Final = 20_000
MAX_BYTES: Final = 32 * 2**20
MAX_REPAIRS: Final = 5  # of one node

_FORGETTING: Final = 0.9  # per growth
_SLOWEST: Final = "slowest_append"  # keys of the ledger
_LISTS_TAKEN: Final = "list_columns_taken"
_COLUMNS: Final = "columns"
_REWRITES: Final = "rewrites"
_REPAIRS: Final = "repairs"
_DISTURBED: Final = "disturbed"

LATE_AUDIT: Final = "late_audit"
"""Key of the ledger, set when a request may outlive the run's end."""

_NEVER: Final = 2**53


class Ledger(Protocol):
    """Where progress is kept: `tiledbroker.Journal`."""

    def progress(self) -> dict[str, NodeProgress]: ...
    def set_progress(self, node: str, rows: int, intent: int | None = None) -> None: ...
    def drop_progress(self, node: str) -> None: ...
    def note(self, event: str, **detail: Any) -> None: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...


class Settling(WriterError):
    """Raised when an operation has to wait until it is clear what became of an earlier one on the same node."""


@dataclass
class Settlement:
    """Watches a node that a request may still be changing: quiet once its size has not moved for a while."""

    size: int | None = None
    since: float = 0.0

    def observe(self, size: int, asked: float, answered: float) -> float:
        """Seconds for which the node has had this size for certain, with when that was asked and answered."""
        if size != self.size:
            self.size, self.since = size, answered
        return max(0.0, asked - self.since)


@dataclass(frozen=True)
class Rewrite:
    """A table whose columns have to be others than it was made with: its rows are written anew into a copy beside it.

    When the copy has as many rows as the table had (`until`), the table's node is made to show the copy's rows, and
    the copy's node is deleted. Rows in databases are never deleted: tables of one schema are one table there, which
    Tiled drops when it finds it empty, in spite of those who are about to append to it.
    """

    copy: str
    columns: list[list[str]]
    until: int
    swapped: bool = False


class TiledCatalog:
    """One run's nodes in Tiled.

    Parameters
    ----------
    connection
        To the server.
    ledger
        Keeps how many rows of each node the server has confirmed, and which append is under way, on disk.
    quiet_period
        Seconds for which a node must not have moved before an append whose fate is unknown counts as not carried out.
    clock
        Monotonic time in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        ledger: Ledger,
        *,
        quiet_period: float = QUIET_PERIOD,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nodes = Nodes(connection)
        self._ledger = ledger
        self._quiet_period = quiet_period
        self._clock = clock
        self._progress = ledger.progress()
        self._settling: dict[str, Settlement] = {}
        self._slowest_append = float(ledger.get(_SLOWEST, 0.0))
        self._columns: dict[str, list[list[str]]] = ledger.get(_COLUMNS, {})
        self._disturbed: set[str] = set(ledger.get(_DISTURBED, ()))
        self._rewrites = {path: Rewrite(**state) for path, state in ledger.get(_REWRITES, {}).items()}
        self._max_rows: dict[str, int] = {}

    def apply(self, operations: Iterable[Operation]) -> list[Operation]:
        """Carry out operations in order.

        Returns
        -------
        list
            Those that have to wait because their node is settling; give them again, before later ones.

        Raises
        ------
        OperationRefused
            Tiled will never do it.
        Stopped
            The process is told to end.
        """
        waiting: list[Operation] = []
        blocked: set[str] = set()
        for operation in operations:
            if not self._must_wait(operation, blocked):
                try:
                    self._apply(operation)
                    continue
                except Settling:
                    blocked.add(operation.path)
                except Refused as error:
                    raise OperationRefused(describe_operation(operation), str(error)) from error
            waiting.append(operation)
        return waiting

    @staticmethod
    def _must_wait(operation: Operation, blocked: set[str]) -> bool:
        if operation.path in blocked:
            return True
        # What ends a run or a stream comes after all that is in it.
        final = isinstance(operation, UpdateMetadata | CloseStream)
        return final and any(path.startswith(operation.path + "/") for path in blocked)

    def _apply(self, operation: Operation) -> None:
        if isinstance(operation, AppendRows | WriteArray | ExtendExternal):
            self._grow(self._target(operation.path), operation)
            self._finish_rewrite(operation.path)
        elif isinstance(operation, OrderTable):
            self._nodes.set_order(self._target(operation.path), operation.order)
            crash_point("catalog: order set")
        elif isinstance(operation, DescribeExternal):
            source = {**operation.data_source, "id": self._nodes.data_source(operation.path)["id"]}
            self._nodes.put_data_source(operation.path, source, repeat=True)
        elif isinstance(operation, Audit):
            self._audit(operation)
        elif isinstance(operation, UpdateMetadata):
            self._finish_rewrites_of(operation.path)
            self._nodes.set_metadata(operation.path, operation.metadata)
            crash_point("catalog: metadata set")
        elif isinstance(operation, RemoveNode):
            self._remove(operation.path)
        elif isinstance(operation, CloseStream):
            self._nodes.close_stream(operation.path)
            crash_point("catalog: stream closed")
        elif isinstance(operation, CreateTable) and operation.path in self._progress:
            self._check_columns(operation)
        else:
            self._create(operation)

    # Nodes

    def _create(self, operation: Creation) -> None:
        if operation.path in self._progress:
            return
        # A 500 for list columns is SQLite's answer to them: no use to wait for another, unless it has taken some.
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
        if unproven:
            self._ledger.set(_LISTS_TAKEN, True)

    def _create_or_adopt(self, operation: Creation, *, tolerated_failures: int | None = None) -> None:
        try:
            self._nodes.create(operation, tolerated_failures=tolerated_failures)
        except Refused as error:
            if error.status != 409:
                raise
            self._adopt(operation)
        else:
            crash_point("catalog: node created")
            if isinstance(operation, CreateTable):
                self._set_columns(operation.path, arrow_columns(operation.columns))
            self._record(operation.path, 0)

    def _adopt(self, operation: Creation) -> None:
        """The node exists: it is ours from before a crash, or somebody else's."""
        attributes = self._nodes.read(operation.path)
        if reason := difference(operation, attributes):
            raise NotOurs(describe_operation(operation), f"the node exists and {reason}")
        self._ledger.note("adopted", node=operation.path)
        if not isinstance(operation, CreateTable):
            self._record(operation.path, 0)
            return
        columns = self._nodes.columns(operation.path)
        self._set_columns(operation.path, columns)
        self._record(operation.path, self._nodes.size(f"{operation.path}/{columns[0][0]}"))
        self._check_columns(operation)

    # Tables whose columns have to change

    def _check_columns(self, operation: CreateTable) -> None:
        """The table exists: have it rewritten if it is to have other columns."""
        wanted = arrow_columns(operation.columns)
        rewrite = self._rewrites.get(operation.path)
        if rewrite is not None and rewrite.swapped:
            self._finish_rewrite(operation.path)
            rewrite = None
        if rewrite is None and self._columns.get(operation.path, wanted) == wanted:
            return
        if rewrite is None or rewrite.columns != wanted:
            progress = self._progress[operation.path]
            if progress.intent is not None:
                self._settle(operation.path, operation, progress.rows, progress.intent)
            if rewrite is not None:
                self._discard(rewrite.copy)
            rewrite = Rewrite(f"{operation.path}_rewrite", wanted, self._progress[operation.path].rows)
            self._ledger.note("rewriting", node=operation.path, rows=rewrite.until)
            self._set_rewrite(operation.path, rewrite)
            crash_point("catalog: rewrite begun")
        self._create(replace(operation, path=rewrite.copy))
        self._finish_rewrite(operation.path)

    def _target(self, path: str) -> str:
        """Where the rows of a node go now."""
        rewrite = self._rewrites.get(path)
        return path if rewrite is None or rewrite.swapped else rewrite.copy

    def _finish_rewrites_of(self, run: str) -> None:
        """A run that ends has no further rows: what copies have is what their tables are to have."""
        for path in [path for path in self._rewrites if path.startswith(f"{run}/") and "/" not in run]:
            self._finish_rewrite(path, complete=True)

    def _finish_rewrite(self, path: str, *, complete: bool = False) -> None:
        """Let a table's node show the rows of its copy, if there are enough of them."""
        rewrite = self._rewrites.get(path)
        if rewrite is None:
            return
        if not rewrite.swapped:
            rows = self._progress[rewrite.copy].rows
            if rows < rewrite.until and not complete:
                return
            copy = self._nodes.data_source(rewrite.copy)
            shown = {"structure": copy["structure"], "parameters": copy["parameters"]}
            self._nodes.put_data_source(path, {**self._nodes.data_source(path), **shown}, repeat=True)
            crash_point("catalog: rewrite shown")
            self._nodes.read(path)
            self._set_columns(path, rewrite.columns)
            self._record(path, rows)
            self._set_rewrite(path, replace(rewrite, swapped=True))
            crash_point("catalog: rewrite recorded")
        self._discard(rewrite.copy)
        self._set_rewrite(path, None)
        self._ledger.note("rewritten", node=path, rows=self._progress[path].rows)

    def _discard(self, copy: str) -> None:
        """Delete the node of a copy, and no rows: without a data set's number Tiled looks for none."""
        try:
            source = self._nodes.data_source(copy)
            detached = {**source, "parameters": {**source["parameters"], "dataset_id": None}}
            self._nodes.put_data_source(copy, detached, repeat=True)
            crash_point("catalog: copy detached")
        except Refused as error:
            if error.status != 404:
                raise
        self._remove(copy)

    def _remove(self, path: str) -> None:
        if path in self._progress:
            self._nodes.delete(path)
            crash_point("catalog: node deleted")
            self._ledger.drop_progress(path)
            del self._progress[path]

    # What a node holds in the end

    def _audit(self, operation: Audit) -> None:
        """Compare a node with what was sent; what differs is written anew.

        An answer that was lost may have hidden a request that the server carried out later than anybody waited for.
        """
        path = self._target(operation.path)
        reason = self._compare_rows(path, operation) if operation.columns else self._compare_shape(path, operation)
        if reason:
            self._repair(operation.path, reason, rewrite=bool(operation.columns))
        crash_point("catalog: audited")
        self._finish_rewrite(operation.path, complete=True)

    def _compare_rows(self, path: str, operation: Audit) -> str:
        """What is wrong with a table; "" if nothing is."""
        for name, digest in operation.columns:
            if digest is None:
                rows, found = self._nodes.size(f"{path}/{name}"), None
            else:
                content = self._nodes.column(path, name)
                read = ColumnDigest()
                read.add_bytes(content)
                rows, found = len(content) // 8, read.value
            if rows != operation.rows:
                return f"has {rows} rows where {operation.rows} are expected"
            if found != digest:
                return f"has other values of {name!r}, or in another order"
        return ""

    def _compare_shape(self, path: str, operation: Audit) -> str:
        """What is wrong with an array or with external data; "" if nothing is."""
        if path in self._disturbed:
            self._disturbed.discard(path)
            self._ledger.set(_DISTURBED, sorted(self._disturbed))
            return "may have been written to by a request whose answer was lost"
        rows = self._nodes.size(path)
        return "" if rows == operation.rows else f"has a length of {rows} where {operation.rows} is expected"

    def _repair(self, path: str, reason: str, *, rewrite: bool) -> NoReturn:
        """Have a node's rows written anew: a table beside itself, other nodes at their place."""
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
                self._discard(unfinished.copy)
            self._set_rewrite(path, Rewrite(f"{path}_rewrite", columns, _NEVER))
        else:
            self._record(path, 0)
        raise NodeRewound(path, reason)

    def _note_disturbance(self, path: str) -> None:
        """Remember that there may be requests about which nobody hears any more."""
        if path not in self._disturbed:
            self._disturbed.add(path)
            self._ledger.set(_DISTURBED, sorted(self._disturbed))
        if not self._ledger.get(LATE_AUDIT):
            self._ledger.set(LATE_AUDIT, True)

    def _set_columns(self, path: str, columns: list[list[str]]) -> None:
        self._columns = {**self._columns, path: columns}
        self._ledger.set(_COLUMNS, self._columns)

    def _set_rewrite(self, path: str, rewrite: Rewrite | None) -> None:
        self._rewrites.pop(path, None)
        if rewrite is not None:
            self._rewrites[path] = rewrite
        self._ledger.set(_REWRITES, {path: asdict(state) for path, state in self._rewrites.items()})

    # Rows

    def _grow(self, path: str, operation: Growth) -> None:
        progress = self._progress[path]
        if progress.intent is not None:
            self._settle(path, operation, progress.rows, progress.intent)
        done = self._progress[path].rows
        if operation.stop <= done:
            return
        if operation.first > done:
            raise WriterError(f"{describe_operation(operation)} does not continue at row {done}; this is a defect.")
        if isinstance(operation, ExtendExternal):
            self._attempt(path, operation)
            return
        for piece in self._pieces(path, operation.rows(done, operation.stop)):
            self._attempt(path, piece)

    def _pieces(self, path: str, operation: AppendRows | WriteArray) -> Iterator[AppendRows | WriteArray]:
        """The operation in parts of a size that one request may have; the limit may shrink on the way."""
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

    def _attempt(self, path: str, operation: Growth) -> None:
        """Send one growth: its intent on disk before, its completion after."""
        rows = self._progress[path].rows
        self._record(path, rows, operation.stop)
        crash_point("catalog: growth intended")
        started = self._clock()
        try:
            self._nodes.grow(path, operation)
        except Ambiguous as error:
            self._note_disturbance(path)
            self._took(self._clock() - started)
            self._ledger.note("ambiguous", operation=describe_operation(operation), reason=str(error))
            log.warning("%s may or may not have been done (%s); looking.", describe_operation(operation), error)
            raise Settling from error
        except Stopped:  # raised between two requests only, and what is sent again was not processed
            self._record(path, rows)
            raise
        except Refused as error:
            self._record(path, rows)
            if error.status != 413 or operation.stop - operation.first <= 1 or isinstance(operation, ExtendExternal):
                raise
            self._max_rows[path] = (operation.stop - operation.first) // 2
        else:
            crash_point("catalog: growth done")
            self._took(self._clock() - started)
            self._record(path, operation.stop)

    def _took(self, seconds: float) -> None:
        """Remember the slowest of the growths so far, the longer ago the less; across restarts if that matters."""
        before, self._slowest_append = self._slowest_append, max(seconds, _FORGETTING * self._slowest_append)
        if 3 * max(before, self._slowest_append) > self._quiet_period:
            self._ledger.set(_SLOWEST, self._slowest_append)

    def _settle(self, path: str, operation: Growth | CreateTable, rows: int, intent: int) -> None:
        """Find out what became of a growth, or raise `Settling` until that is clear.

        An append that is there cannot come again. One that is not there may still be under way, as a request lives on
        in the server when its client is gone: only a row count that does not move for a while tells that it is not.
        """
        self._note_disturbance(path)
        asked = self._clock()
        columns = operation.columns if isinstance(operation, AppendRows | CreateTable) else ()
        table = bool(columns)
        size = self._nodes.size(f"{path}/{columns[0].name}" if columns else path)
        quiet = self._settling.setdefault(path, Settlement()).observe(size, asked, self._clock())
        # An array has its shape before its content; of files it is the frames that have a shape, not the datums.
        arrived = table and size == intent
        if not arrived and quiet < max(self._quiet_period, 3 * self._slowest_append):
            raise Settling
        del self._settling[path]
        if table and size not in (rows, intent):
            self._repair(operation.path, f"has {size} rows where {rows} or {intent} are expected", rewrite=True)
        self._ledger.note("reconciled", node=path, found=size, confirmed=rows, intent=intent, quiet=round(quiet, 3))
        self._record(path, intent if arrived else rows)

    def _record(self, path: str, rows: int, intent: int | None = None) -> None:
        self._ledger.set_progress(path, rows, intent)
        self._progress[path] = NodeProgress(rows, intent)
