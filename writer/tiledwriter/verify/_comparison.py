"""Compares a run in Tiled with its documents: nodes, metadata, and every row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import pyarrow

from tiledbroker import NodeProgress

from .._errors import Refused, ServerFailed, TiledUnavailable
from .._findings import Example, Finding
from ..catalog import ArrayCheck, ExternalCheck, NodeCheck, StoredNodes, TableCheck, node_body, same
from ..mapping import (
    AppendRows,
    CreateArray,
    CreateContainer,
    CreateTable,
    Creation,
    ExtendExternal,
    Growth,
    Operation,
    OrderTable,
    RegisterExternal,
    RemoveNode,
    UpdateMetadata,
    WriteArray,
)

_UPDATED: Final = frozenset({"stop", "notes", "_config_updates"})
# What a converter raises if Tiled's answer is not what it should be.
_UNUSABLE: Final = (LookupError, TypeError, ValueError, AttributeError, pyarrow.ArrowException)


class Comparison:
    """Compares one run in Tiled with its journal.

    `add` takes the operations that the journal yields, in order. If `again` then returns True, `add` them once more.

    Parameters
    ----------
    stored
        Access to what Tiled holds.
    confirmed
        Progress of each node of an incomplete run; only that much must be in Tiled. None: everything must be.
    """

    def __init__(self, stored: StoredNodes, confirmed: Mapping[str, NodeProgress] | None) -> None:
        self._stored = stored
        self._confirmed = confirmed
        self._checks: dict[str, NodeCheck] = {}
        self._metadata: dict[str, dict[str, Any]] = {}
        self._found: dict[str, Mapping[str, Any]] = {}
        self._problems: list[Finding] = []
        self._skipped: set[str] = set()
        # Nodes that the journal creates or removes, or records as created.
        self._led_to = set(confirmed or ())
        self._repeating: set[str] | None = None

    @property
    def nodes(self) -> int:
        """Number of nodes compared."""
        return len(self._found)

    @property
    def rows(self) -> int:
        """Number of rows or datums compared."""
        return sum(check.rows for check in self._checks.values())

    def add(self, operation: Operation) -> None:
        """Compare Tiled with the result of this operation, if that must be in Tiled."""
        if isinstance(operation, AppendRows | WriteArray | ExtendExternal):
            self._compare_growth(operation)
        elif self._repeating is not None:
            return
        elif isinstance(operation, CreateContainer | CreateTable | CreateArray | RegisterExternal):
            self._start_check(operation)
        elif isinstance(operation, OrderTable):
            check = self._checks.get(operation.path)
            if isinstance(check, TableCheck):
                check.order = operation.order
        elif isinstance(operation, UpdateMetadata):
            self._metadata.setdefault(operation.path, {}).update(operation.metadata)
        elif isinstance(operation, RemoveNode):
            self._check_removal(operation.path)

    def again(self) -> bool:
        """Return whether all operations must be added once more."""
        self._repeating = set()
        for path, check in self._checks.items():
            if path not in self._skipped:
                with self._reading(path):
                    if check.again():
                        self._repeating.add(path)
        return bool(self._repeating)

    def findings(self, *, stopped: bool) -> list[Finding]:
        """Return the problems. `stopped` is True if the journal has a stop document."""
        strangers = self._unexpected_node_findings()
        problems = [*self._problems]
        for path, metadata in self._metadata.items():
            if path in self._found:
                problems += self._compare_metadata(path, metadata, stopped=stopped)
        for path, check in self._checks.items():
            if path not in self._skipped:
                problems += check.findings()
        return problems + strangers

    def _unexpected_node_findings(self) -> list[Finding]:
        """Return findings for nodes of the run in Tiled that the journal does not account for."""
        strangers: list[str] = []
        for run in [path for path in self._found if "/" not in path]:
            with self._reading(run):
                strangers += sorted(path for path in self._stored.below(run) if path not in self._led_to)
        return [Finding(_path_in_run(path), "is in Tiled, but does not follow from the journal") for path in strangers]

    def _start_check(self, operation: Creation) -> None:
        self._led_to.add(operation.path)
        with self._reading(operation.path):
            self._begin_comparison(operation)

    @contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """Turn an error about this node into a finding, after which the node is compared no further.

        Raises
        ------
        TiledUnavailable
            Tiled does not answer for other nodes either.
        """
        try:
            yield
            return
        except Refused as error:
            reason = str(error)
        except TiledUnavailable as error:
            if not isinstance(error.__cause__, ServerFailed) or not self._stored.answers_for(path.partition("/")[0]):
                raise
            reason = f"{error.__cause__}, again and again, while Tiled answers for the run itself"
        except _UNUSABLE as error:
            reason = f"Tiled's answer cannot be used: {type(error).__name__}: {error}"
        self._skipped.add(path)
        self._problems.append(Finding(_path_in_run(path), f"cannot be read back: {reason}"))

    def _begin_comparison(self, operation: Creation) -> None:
        path = operation.path
        progress = None if self._confirmed is None else self._confirmed.get(path)
        found = self._stored.attributes(path)
        if found is None:
            self._skipped.add(path)
            if self._confirmed is None or progress is not None:
                self._problems.append(Finding(_path_in_run(path), "is missing"))
            return
        family = node_body(operation, "")["structure_family"]
        if found["structure_family"] != family:
            self._skipped.add(path)
            text = f"its kind is {found['structure_family']}, but should be {family}"
            self._problems.append(Finding(_path_in_run(path), text))
            return
        self._found[path] = found
        self._metadata[path] = dict(operation.metadata)
        if isinstance(operation, CreateContainer):
            self._compare_specs(operation, found)
            return
        required = None if self._confirmed is None else 0 if progress is None else progress.rows
        kinds: dict[type[Any], Any] = {CreateTable: TableCheck, CreateArray: ArrayCheck}
        self._checks[path] = kinds.get(type(operation), ExternalCheck)(operation, found, self._stored, required)

    def _check_removal(self, path: str) -> None:
        self._led_to.add(path)
        if self._confirmed is None and self._stored.attributes(path) is not None:
            self._problems.append(Finding(_path_in_run(path), "exists, but should have been deleted"))

    def _compare_growth(self, operation: Growth) -> None:
        path = operation.path
        if path in self._skipped or (self._repeating is not None and path not in self._repeating):
            return
        with self._reading(path):
            self._checks[path].compare(operation)

    def _compare_specs(self, operation: CreateContainer, found: Mapping[str, Any]) -> None:
        have = {(spec["name"], spec["version"]) for spec in found["specs"]}
        lacking = [name for name, version in operation.specs if (name, version) not in have]
        if lacking:
            self._problems.append(Finding(_path_in_run(operation.path), f"lacks the specs {', '.join(lacking)}"))

    def _compare_metadata(self, path: str, metadata: Mapping[str, Any], *, stopped: bool) -> list[Finding]:
        found = self._found[path]["metadata"]
        problems = []
        for key, wanted in metadata.items():
            have = found.get(key)
            if self._confirmed is not None and key in _UPDATED and have is None:
                continue
            if have is None and wanted is not None:
                problems.append(Finding(_path_in_run(path), f"has no {key!r} in its metadata"))
            elif not (_sorted_notes(wanted) == _sorted_notes(have) if key == "notes" else same(wanted, have)):
                example = (Example(None, *_innermost_difference(wanted, have)),)
                problems.append(
                    Finding(_path_in_run(path), f"has a different {key!r} in its metadata", examples=example)
                )
        if self._confirmed is None and "notes" not in metadata and found.get("notes"):
            notes = (Example(None, None, found["notes"]),)
            problems.append(Finding(_path_in_run(path), "has notes that the journal does not yield", examples=notes))
        if "/" not in path and not stopped and found.get("stop") is not None:
            problems.append(Finding(_path_in_run(path), "has a stop document, but the journal does not"))
        return problems


def _sorted_notes(notes: Any) -> Any:
    return sorted(map(str, notes)) if isinstance(notes, list | tuple) else notes


def _innermost_difference(wanted: Any, have: Any) -> tuple[Any, Any]:
    """Return the innermost parts in which two values differ."""
    if isinstance(wanted, Mapping) and isinstance(have, Mapping):
        for key in [*wanted, *have]:
            if not same(wanted.get(key), have.get(key)):
                inner = _innermost_difference(wanted.get(key), have.get(key))
                return f"{key}: {inner[0]}", f"{key}: {inner[1]}"
    return wanted, have


def _path_in_run(path: str) -> str:
    return path.partition("/")[2] or "run"
