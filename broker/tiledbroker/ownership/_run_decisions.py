"""The rare decisions about a run that must go with it when another host takes it over with an empty journal.

What is in Tiled tells the other host how far the run was written. It does not tell why it was written in that form: of
which type columns had to become, or that a table's rows are on their way to a copy. `RunDecisions` is the table of what
must be told; a journal keeps each decision under the name of its field, and a `DecisionStore` keeps all of them where
other hosts find them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec


class TableRewrite(msgspec.Struct, frozen=True):
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
        Number of rows after which the table shows the copy; a number that no table has, to wait for the audit or the
        end of the run.
    swapped
        True once the table shows the copy's rows.
    """

    copy: str
    columns: list[list[str]]
    until: int
    swapped: bool = False


class RunDecisions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """All decisions about one run, as they stand. The defaults are those of a run without any.

    Attributes
    ----------
    max_array_size
        The largest array in an event, in numbers, that becomes a list column. Made by the worker from its options when
        it begins the run, and again, as 0, when Tiled's table storage turns out to have no list columns.
    column_types
        Stream, data key and type of columns that must be wider than their descriptors say, or stored otherwise; the
        types are those of `InternalData.too_narrow`. Made by the worker when a value does not fit.
    refused_mimetypes
        Mimetypes of files that Tiled does not know how to read, whose data keys are left out. Made by the worker when
        Tiled says so.
    rewrites
        Rewrites of tables that are not complete, by the table's path, in the order in which they changed last. Made by
        the catalog.
    repairs
        Number of repairs of each node so far, by its path, which limits them. Made by the catalog; forgotten when a
        person has the run retried.
    disturbed
        Paths of nodes that a request with a lost response may still change. Made by the catalog.
    slowest_append
        Duration in seconds of the slowest growth of late, which the quiet period follows. Made by the catalog, if it
        is long enough to matter.
    late_audit
        True if the run must be audited again after its end. Made by the catalog.
    probe_table
        Path of a table that a test of Tiled's databases may have left behind. Made by the catalog.
    outcome
        How writing ended: "written", "interrupted" or "failed"; None before. Made by the worker. Another host does not
        take this over: whether its own documents are in Tiled, it finds out itself.
    """

    max_array_size: int | None = None
    column_types: list[tuple[str, str, str]] = msgspec.field(default_factory=list)
    refused_mimetypes: list[str] = msgspec.field(default_factory=list)
    rewrites: dict[str, TableRewrite] = msgspec.field(default_factory=dict)
    repairs: dict[str, int] = msgspec.field(default_factory=dict)
    disturbed: list[str] = msgspec.field(default_factory=list)
    slowest_append: float = 0.0
    late_audit: bool = False
    probe_table: str | None = None
    outcome: str | None = None

    @classmethod
    def of(cls, get: Callable[[str], Any]) -> RunDecisions:
        """Return the decisions that a journal has recorded; `get` returns a value of its state, or None.

        Raises
        ------
        ValueError
            A value is damaged.
        """
        values = {name: value for name in DECISIONS if (value := get(name)) is not None}
        try:
            return msgspec.convert(values, cls)
        except msgspec.ValidationError as error:
            raise ValueError(f"What was decided about the run is damaged: {error}") from error

    def recorded(self) -> Mapping[str, Any]:
        """Return the decisions that differ from the defaults, in JSON types, by name."""
        recorded: dict[str, Any] = msgspec.to_builtins(self)
        return recorded


DECISIONS: Final = RunDecisions.__struct_fields__
"""Names of the decisions, which are also the keys under which journals keep them."""


class DecisionStore(Protocol):
    """Store of the decisions about one run, which all hosts can reach. One thread uses it; its methods may take long.

    `load` is called before anything else when a process begins to write the run. Only what it has returned last, or
    what this object has stored since, is ever replaced.
    """

    def load(self) -> RunDecisions | None:
        """Return the decisions; None if none are stored, as the run is new or complete.

        Raises
        ------
        StoreUnavailable
            There is no answer, or one that is no record of decisions. It never means that there are none.
        """

    def store(self, decisions: RunDecisions) -> None:
        """Replace what is stored; it is durable when this returns. Decisions with an outcome need not be kept.

        Raises
        ------
        StoreUnavailable
            It may not be stored, or another process has stored something since. Nothing that depends on the decisions
            must be sent to Tiled.
        """
