"""Apply operations to Tiled with exactly-once effect, across crashes and lost answers.

`NodeGrowth.determine_outcome`, in `_growth.py`, finds out what became of a request whose answer was lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any, Final, NamedTuple, NoReturn

import msgspec

from tiledbroker._crash_points import crash_point

from .._errors import MimetypeRefused, NodeNotQuiet, NodeRewound, NotOurs, OperationRefused, Refused
from ..mapping import (
    QUIET_PERIOD_SECONDS,
    AppendRows,
    Audit,
    CloseStream,
    CreateArray,
    CreateContainer,
    CreateTable,
    DescribeExternal,
    ExtendExternal,
    Operation,
    OrderTable,
    RegisterExternal,
    RemoveNode,
    UpdateMetadata,
    WriteArray,
    describe_operation,
)
from ._audits import NodeAudits
from ._connection import Connection
from ._creation import COMPLETE_BEFORE, NodeCreation
from ._data_beyond_journal import DataBeyondJournal
from ._decisions import Decisions
from ._growth import NodeGrowth
from ._known_nodes import KnownNodes, path_in_run
from ._ledger import Ledger
from ._missing_nodes import MissingNodes
from ._nodes import Nodes, order_of
from ._quiet import QuietPeriods
from ._rewrites import TableRewrites
from ._row_proof import key_columns

# The order of a table only moves to a later entry, never back.
_ORDERS: Final = (("seq_num", "time"), ("time", "seq_num"), ())


class _Wait(NamedTuple):
    """What is known of the next reading of a node that is not quiet; see `NodeNotQuiet`."""

    decided_at: float
    may_be_sooner: bool


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
    decisions
        Decisions about the run; None for those in the ledger.
    quiet_period
        Seconds for which a node's size must not change before an append with unknown outcome counts as not carried
        out.
    audit_undisturbed
        Whether nodes are also compared with what was sent if each request was answered and this process has created
        all nodes.
    clock
        Returns monotonic time in seconds.
    """

    def __init__(
        self,
        connection: Connection,
        ledger: Ledger,
        decisions: Decisions | None = None,
        *,
        quiet_period: float = QUIET_PERIOD_SECONDS,
        audit_undisturbed: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._audit_undisturbed = audit_undisturbed
        self._ledger = ledger
        self._decisions = decisions = decisions or Decisions(ledger)
        self._clock = clock
        # By path of a node that waits: what its last reading said of the next one.
        self._waits: dict[str, _Wait] = {}
        self._last_waits: list[_Wait] = []
        self._quiet = QuietPeriods(decisions, quiet_period, clock)
        self._nodes = Nodes(connection, self._quiet)
        self._nodes.probe.on_table = lambda path: decisions.record(probe_table=path)
        self._known = KnownNodes(ledger, decisions)
        self._beyond = DataBeyondJournal(self._nodes, self._known, ledger)
        self._rewrites = TableRewrites(self._nodes, self._known, self._beyond, self._quiet, ledger)
        self._growth = NodeGrowth(self._nodes, self._known, self._rewrites, self._quiet, ledger)
        self._creation = NodeCreation(
            self._nodes, self._known, self._beyond, self._rewrites, self._growth, quiet=self._quiet, ledger=ledger
        )
        self._audits = NodeAudits(
            self._nodes, self._known, self._beyond, self._rewrites, quiet=self._quiet, is_needed=self._needs_audit
        )
        self._missing = MissingNodes(self._nodes, self._known, self._beyond, self._rewrites, ledger)
        self._journal_has_all = False
        self._held_metadata: dict[str, UpdateMetadata] = {}
        self._absences = connection.absences

    @property
    def waits_for_stop(self) -> bool:
        """True while operations are not applied because Tiled has a stop document that the journal lacks."""
        return self._beyond.waits_for_stop

    def _needs_audit(self) -> bool:
        return self._audit_undisturbed or self._connection.was_disturbed or self._decisions.made.late_audit

    def raise_tiled_has_more(self) -> NoReturn:
        """Give up waiting for documents that Tiled has and the journal lacks.

        Raises
        ------
        TiledHasMore
            Always, with a description of the data.
        """
        self._beyond.raise_tiled_has_more()

    def choose_pause(self, poll_seconds: float) -> float:
        """Return the seconds after which operations that wait should be passed again.

        That is when the first of their quiet periods ends, or `poll_seconds` if a reading may decide sooner.
        """
        seconds = min((wait.decided_at for wait in self._last_waits), default=math.inf) - self._clock()
        if any(wait.may_be_sooner for wait in self._last_waits):
            seconds = min(seconds, poll_seconds)
        return max(0.0, seconds)

    def apply(self, operations: Iterable[Operation]) -> list[Operation]:
        """Carry out operations in order.

        Nodes that wait do so at the same time, and are not read again before this can decide anything.

        Returns
        -------
        list
            Operations that must wait until their node is quiet; pass them again, before later ones. See `choose_pause`.

        Raises
        ------
        OperationRefused
            Tiled will never accept an operation.
        ColumnsRefused
            The server's table storage has no list columns.
        ColumnsTooNarrow
            The server's table storage could not read columns that begin late.
        MimetypeRefused
            The server does not know how to read some files.
        TiledHasMore
            Tiled has more of the run than the journal, and the journal will not get it.
        NodeRewound
            All operations of the run must be passed again, from the first one.
        AuditFailed
            A node still differs after `MAX_REPAIRS_PER_NODE` repairs.
        Stopped
            The process was told to stop.
        """
        if self._beyond.waits_for_stop and self._ledger.stopped:
            self._beyond.waits_for_stop = False
            raise NodeRewound("The run", "has its stop document in the journal now")
        waiting: list[Operation] = []
        blocked: set[str] = set()
        self._last_waits = []
        for operation in operations:
            # Also if it waits: what follows it must not be taken for the end of a run without a stop document.
            if isinstance(operation, UpdateMetadata) and "stop" in operation.metadata:
                self._journal_has_all = True
            if not self._must_wait(operation, blocked):
                wait = self._apply_if_quiet(operation)
                if wait is None:
                    self._send_held_metadata()
                    continue
                self._last_waits.append(wait)
                blocked.add(operation.path)
            waiting.append(operation)
        return waiting

    def _apply_if_quiet(self, operation: Operation) -> _Wait | None:
        """Carry out an operation; if its node is not quiet, return what is known of the next reading of it."""
        path = operation.path
        wait = self._waits.pop(path, None)
        if wait is None or wait.may_be_sooner or self._clock() >= wait.decided_at:
            try:
                self._apply_or_write_again(operation)
                return None
            except NodeNotQuiet as error:
                wait = _Wait(error.decided_at, error.may_be_sooner)
        self._waits[path] = wait
        return wait

    @staticmethod
    def _must_wait(operation: Operation, blocked: set[str]) -> bool:
        # A node is used only after what it is in, such as a run that may be complete in Tiled.
        if any(operation.path == path or operation.path.startswith(path + "/") for path in blocked):
            return True
        # An operation that ends a run or a stream must follow all operations in it.
        final = isinstance(operation, UpdateMetadata | CloseStream)
        return final and any(path.startswith(operation.path + "/") for path in blocked)

    def _apply_or_write_again(self, operation: Operation) -> None:
        if self._absences != self._connection.absences:
            # While Tiled was away, somebody may have put back a backup of its databases.
            self._absences = self._connection.absences
            self._known.mark_all_unseen()
        try:
            self._apply_operation(operation)
        except Refused as error:
            if error.status == 404:
                self._missing.write_again(operation)
            if error.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE and isinstance(operation, RegisterExternal):
                mimetype = operation.data_source["mimetype"]
                raise MimetypeRefused(describe_operation(operation), str(error), mimetype) from error
            raise OperationRefused(describe_operation(operation), str(error)) from error

    def _apply_operation(self, operation: Operation) -> None:
        self._take_note(operation)
        if self._beyond.waits_for_stop:
            # These operations come last in a run, so the journal will not get further documents.
            if isinstance(operation, Audit | CloseStream):
                self._beyond.raise_tiled_has_more()
        elif isinstance(operation, AppendRows | WriteArray | ExtendExternal):
            if isinstance(operation, AppendRows) and operation.begin_late:
                self._creation.check_first_rows(operation)
            self._growth.grow_node(operation)
            self._rewrites.finish_rewrite(self._known[operation.path])
        elif isinstance(operation, OrderTable):
            self._set_order(operation)
        elif isinstance(operation, DescribeExternal):
            self._growth.check_files(operation)
            self._describe_external(operation)
        elif isinstance(operation, Audit):
            self._audits.audit_node(operation)
        elif isinstance(operation, UpdateMetadata):
            if "/" not in operation.path:
                self._rewrites.finish_all_rewrites(operation.path)
                self._send_held_metadata()
            if self._known.rewrites_in(operation.path) and "/" in operation.path:
                self._hold_metadata(operation)
            else:
                self._update_metadata(operation)
        elif isinstance(operation, RemoveNode):
            self._creation.remove_node(operation)
        elif isinstance(operation, CloseStream):
            self._close_stream(operation.path)
        elif isinstance(operation, CreateTable):
            self._creation.create_table(operation)
        else:
            self._creation.create_node(operation)

    def _take_note(self, operation: Operation) -> None:
        """Remember the nodes, row counts and key columns that the journal's operations lead to."""
        node = self._known[operation.path]
        if isinstance(operation, AppendRows | WriteArray | ExtendExternal):
            node.journaled = operation.stop
            if isinstance(operation, ExtendExternal):
                node.journaled_assets = operation.data_source["assets"]
        elif isinstance(operation, CreateContainer | CreateTable | CreateArray | RegisterExternal):
            node.planned = True
        if isinstance(operation, CreateTable | AppendRows):
            node.keys = key_columns(operation.columns)
        # Rows are appended only to a table that exists, so the probe can read its columns.
        if isinstance(operation, AppendRows):
            self._nodes.probe.column = f"{operation.path}/{node.keys[0].name}"

    def _describe_external(self, operation: DescribeExternal) -> None:
        """Describe files for the last time, unless Tiled has more frames of them, which it would not show any more.

        Raises
        ------
        TiledHasMore
            Another process has written frames that the journal does not have.
        """
        node = self._known[operation.path]
        shape = operation.data_source["structure"].get("shape")
        if shape and node.initial_extent is not None and node.initial_extent > shape[0]:
            node.journaled = shape[0]
            self._beyond.raise_tiled_has_more()
        self._nodes.describe_external(operation)

    def _set_order(self, operation: OrderTable) -> None:
        target = self._known.target(operation.path)
        if target.of_others:
            # All of the data source is sent back, so it must not be that from before the table was rewritten.
            found, _ = self._quiet.wait_until_quiet(
                target,
                lambda: self._nodes.read(target.path)["data_sources"][0],
                is_current=lambda source: _is_ordered(source, operation.order),
            )
            if _is_ordered(found, operation.order):
                return
        self._nodes.set_order(target.path, operation.order)
        crash_point("catalog: order set")

    def _hold_metadata(self, operation: UpdateMetadata) -> None:
        """Keep the metadata of a stream until none of its tables is rewritten.

        Tiled refuses the metadata of a stream in which a name occurs twice, as that of a column does in a table and in
        its copy.
        """
        held = self._held_metadata.get(operation.path)
        metadata = {**(held.metadata if held else {}), **operation.metadata}
        self._held_metadata[operation.path] = replace(operation, metadata=metadata)

    def _send_held_metadata(self) -> None:
        """Update the metadata of streams that none is rewritten in any more."""
        for path in [path for path in self._held_metadata if not self._known.rewrites_in(path)]:
            self._apply_or_write_again(self._held_metadata[path])
            del self._held_metadata[path]

    def _update_metadata(self, operation: UpdateMetadata) -> None:
        path, metadata, removed = operation.path, operation.metadata, operation.removed
        self._remove_probe_table()
        if self._known[path].of_others:
            found = self._nodes.read(path)["metadata"]
            wanted: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(metadata))
            self._check_same_stop(operation, wanted.get("stop"), found.get("stop"))
            metadata = {key: value for key, value in wanted.items() if not self._is_known(path, value, found.get(key))}
            removed = tuple(key for key in removed if key in found)
        if metadata or removed:
            self._nodes.set_metadata(path, metadata, removed)
        crash_point("catalog: metadata set")

    def _is_known(self, path: str, wanted: Any, found: Any) -> bool:
        """Return True if Tiled has this metadata value or a longer list that begins with it; report a longer list."""
        if isinstance(wanted, list) and isinstance(found, list) and found[: len(wanted)] == wanted:
            if len(found) > len(wanted):
                self._beyond.add_description(
                    f"{len(found)} changes of configuration in {path_in_run(path)}, {len(wanted)} here"
                )
            return True
        return bool(wanted == found)

    @staticmethod
    def _check_same_stop(operation: UpdateMetadata, wanted: Any, found: Any) -> None:
        if isinstance(wanted, dict) and isinstance(found, dict) and wanted.get("uid") != found.get("uid"):
            raise NotOurs(describe_operation(operation), f"the run has another stop document, {found.get('uid')!r}")

    def _close_stream(self, path: str) -> None:
        self._remove_probe_table()
        if not self._journal_has_all:
            self._beyond.check_end(path.partition("/")[0])
            self._journal_has_all = True
        if not self._ledger.get(COMPLETE_BEFORE):
            self._nodes.close_stream(path)
            crash_point("catalog: stream closed")

    def _remove_probe_table(self) -> None:
        """Delete the table that a probe left because its deletion failed or its process was killed."""
        if (path := self._decisions.made.probe_table) is not None:
            self._nodes.detach(path, may_be_absent=True)
            self._nodes.delete(path)
            self._decisions.record(probe_table=None)


def _is_ordered(source: Mapping[str, Any], order: tuple[str, ...]) -> bool:
    """Return True if a table, by its data source, has this order or a later one."""
    found = order_of(source)
    return found == order or _ORDERS.index(found) > _ORDERS.index(order)
