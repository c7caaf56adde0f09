"""`tiledwriter-journal show --operations` and `--paths`: report a run's operations and file paths without a server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from tiledbroker import RunReader

from .._errors import UnwritableDocument
from ..journals import DryRun, ResourcePaths, summary_of
from ._settings import settings_of

_MAX_URIS_SHOWN: Final = 4


class Report:
    """Report on the dry run of one journal, as lines of text or as an object for JSON.

    Parameters
    ----------
    journal
        The run.
    config
        Path of the supervisor's configuration file, if any.
    operations
        Report the operations.
    paths
        Report the locations of files.

    Raises
    ------
    WrongConfiguration
        The configuration cannot be used.
    """

    def __init__(self, journal: RunReader, config: Path | None, *, operations: bool, paths: bool) -> None:
        self._dry_run = DryRun(journal, settings_of(config, {}, server=False).writing_options())
        self._run_uid = journal.run_uid
        self._operations = operations
        self._paths = paths

    @property
    def error(self) -> UnwritableDocument | None:
        """Error of the document that cannot be folded; None if there is none, or before one of the methods has run."""
        return self._dry_run.error

    def lines(self) -> Iterator[str]:
        """Yield the report as lines of text."""
        for number, operation in enumerate(self._dry_run, 1):
            if self._operations:
                yield from _operation_lines(number, summary_of(operation))
        if self._paths:
            resources = list(self._dry_run.paths())
            for resource in resources:
                yield from _path_lines(resource)
            if not resources and self.error is None:
                yield "no files: none of the documents in the journal names one"
        if not self._dry_run.complete and self.error is None:
            yield "the run is not known to have ended: more documents may follow"

    def as_dict(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        operations = [summary_of(operation) for operation in self._dry_run]
        result = {
            "uid": self._run_uid,
            "max_array_size": self._dry_run.max_array_size,
            "complete": self._dry_run.complete,
            "error": None if self.error is None else _error_entry(self.error),
        }
        if self._operations:
            result["operations"] = operations
        if self._paths:
            result["paths"] = [asdict(resource) for resource in self._dry_run.paths()]
        return result


def _error_entry(error: UnwritableDocument) -> dict[str, Any]:
    return {"index": error.index, "name": error.name, "message": str(error)}


def _operation_lines(number: int, summary: Mapping[str, Any]) -> Iterator[str]:
    yield f"{number:4}  {summary['operation']}  {summary['path']}"
    for name, value in _for_people(summary).items():
        yield f"        {name:<12}  {value}"


def _for_people(summary: Mapping[str, Any]) -> dict[str, str]:
    lines: dict[str, str] = {}
    for name, value in summary.items():
        if name in {"operation", "path", "first", "stop"}:
            continue
        if name == "columns":
            lines[name] = _format_columns(summary)
        elif name == "chunks":
            lines[name] = " | ".join(_format_sizes(sizes) for sizes in value)
        elif name == "assets":
            lines["files"] = _format_uris(value)
        elif name == "specs":
            lines[name] = ", ".join(" ".join(filter(None, spec)) for spec in value)
        elif isinstance(value, list):
            lines[name] = ", ".join(map(str, value)) or "()"
        elif isinstance(value, dict):
            lines[name] = ", ".join(f"{key}={item!r}" for key, item in value.items())
        else:
            lines[name] = str(value)
    if "first" in summary:
        lines = {"rows": f"{summary['first']} to {summary['stop']}", **lines}
    return lines


def _format_columns(summary: Mapping[str, Any]) -> str:
    columns = summary["columns"]
    # The operation appends rows; the operation that created the table has listed its columns already.
    if "first" in summary:
        return str(len(columns))
    return ", ".join(f"{column['name']} {column['type']}" for column in columns)


def _format_sizes(sizes: Sequence[int]) -> str:
    groups = [(size, len(list(same))) for size, same in groupby(sizes)]
    return ", ".join(f"{count} x {size}" if count > 1 else f"{size}" for size, count in groups)


def _format_uris(uris: Sequence[str]) -> str:
    if len(uris) <= _MAX_URIS_SHOWN:
        return ", ".join(uris) or "none yet"
    return f"{uris[0]}, {uris[1]}, ..., {uris[-1]} ({len(uris)} files)"


def _path_lines(resource: ResourcePaths) -> Iterator[str]:
    rule = "no rule applies" if resource.rule is None else f"by the rule for {resource.rule}"
    total = len(resource.files)
    here = "not a path in a file system" if resource.found is None else f"{resource.found} of {max(total, 1)} files"
    yield f"{resource.data_key}  {resource.mimetype}"
    yield f"        published   {resource.published}"
    yield f"        registered  {resource.registered}  ({rule})"
    yield f"        here        {here}" + ("" if total else "; no node refers to it")
