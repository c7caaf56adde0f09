"""Inspection, export, dry run and replay of journals and spools."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._lazy import lazy_attributes
from ._run_files import (
    file_stem,
    gone,
    has_supervisor,
    is_superseded,
    journal_dir_of,
    misnaming_of,
    misplacement_of,
    open_run_file,
    open_run_file_for_writing,
    reason_of,
    require_own_name,
    status_of,
    translate_errors,
)
from ._summary import (
    DAMAGED,
    REFUSED,
    SPOOLED,
    STATES,
    UNREADABLE,
    WRITTEN_WITHOUT_STOP,
    RunSummary,
    summarize,
    unreadable,
)
from ._timeline import Timeline, TimelineEntry

if TYPE_CHECKING:
    from ._dry_run import DryRun, ResourcePaths, summary_of
    from ._export import export_json_lines, export_sqlite
    from ._journal_check import CHECK_OPTIONS, RECOVERY_ADVICE, DocumentsCheck, ProgressCheck
    from ._log_copy import copy_from_log
    from ._log_summary import LoggedSummary, summarize_logged
    from ._replay import Replayed, ReplayProgress, replay

__all__ = [
    "CHECK_OPTIONS",
    "DAMAGED",
    "RECOVERY_ADVICE",
    "REFUSED",
    "SPOOLED",
    "STATES",
    "UNREADABLE",
    "WRITTEN_WITHOUT_STOP",
    "DocumentsCheck",
    "DryRun",
    "LoggedSummary",
    "ProgressCheck",
    "ReplayProgress",
    "Replayed",
    "ResourcePaths",
    "RunSummary",
    "Timeline",
    "TimelineEntry",
    "copy_from_log",
    "export_json_lines",
    "export_sqlite",
    "file_stem",
    "gone",
    "has_supervisor",
    "is_superseded",
    "journal_dir_of",
    "misnaming_of",
    "misplacement_of",
    "open_run_file",
    "open_run_file_for_writing",
    "reason_of",
    "replay",
    "require_own_name",
    "status_of",
    "summarize",
    "summarize_logged",
    "summary_of",
    "translate_errors",
    "unreadable",
]

# An acquisition host only lists and ships runs; the dependencies of these names need not be installed there.
__getattr__ = lazy_attributes(
    __name__,
    {
        "CHECK_OPTIONS": "_journal_check",
        "DocumentsCheck": "_journal_check",
        "DryRun": "_dry_run",
        "LoggedSummary": "_log_summary",
        "RECOVERY_ADVICE": "_journal_check",
        "ProgressCheck": "_journal_check",
        "ReplayProgress": "_replay",
        "Replayed": "_replay",
        "ResourcePaths": "_dry_run",
        "copy_from_log": "_log_copy",
        "export_json_lines": "_export",
        "export_sqlite": "_export",
        "replay": "_replay",
        "summarize_logged": "_log_summary",
        "summary_of": "_dry_run",
    },
)
