"""Renders the status page. Whatever is shown is escaped, because much of it comes from other hosts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from tiledbroker import __version__
from tiledbroker._outcomes import COMPLETE
from tiledbroker._wording import format_command
from tiledbroker.supervisor import DiskStatus, RunStatus, Snapshot, commands_for_failed

from ._format import (
    NOT_KNOWN,
    count_of,
    format_bytes,
    format_clock,
    format_count,
    format_duration,
    format_time,
    utc_offset,
)
from ._history import Columns, total_lag
from ._metrics import age_of_oldest, all_runs
from ._overview import Level, overview_of
from ._source import Observation

# Rows of a table; the numbers above it count all.
MAX_ROWS: Final = 50
# Characters of a text from elsewhere; the commands show all of it.
MAX_CELL_CHARACTERS: Final = 400
MAX_ERROR_CHARACTERS: Final = 3000
REFRESH_SECONDS: Final = 5

_TEMPLATES: Final = Path(__file__).parent / "templates"

_COMMAND: Final = re.compile(r"`([^`]+)`")

_LEVEL_OF_STATE: Final = {"well": Level.GOOD, "degraded": Level.WARNING, "failed": Level.BAD}
_LEVEL_OF_DISK: Final = {"well": Level.GOOD, "low": Level.WARNING, "full": Level.BAD}
_LEVEL_OF_RUN: Final = {
    "starting": Level.GOOD,
    "open": Level.GOOD,
    "closing": Level.GOOD,
    "parked": Level.WARNING,
    "failed": Level.BAD,
}


@dataclass(frozen=True)
class Notice:
    """What somebody has just asked for on the page.

    Attributes
    ----------
    time
        Unix time in seconds.
    text
        What was done.
    """

    time: float
    text: str


class Page:
    """Renders the page.

    Parameters
    ----------
    journal_dir
        Journal directory, for commands.
    may_retry
        Show a form that retries a run in quarantine.
    assets
        Version of the static files, for their addresses.
    """

    def __init__(self, journal_dir: str, assets: str, *, may_retry: bool) -> None:
        environment = Environment(
            loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True,
        )  # fmt: skip
        environment.filters.update(
            bytes=format_bytes,
            clock=format_clock,
            commands=mark_commands,
            count=format_count,
            duration=format_duration,
            time=format_time,
            text=shorten_text,
            utc_offset=utc_offset,
        )
        environment.globals.update(
            NOT_KNOWN=NOT_KNOWN,
            assets=assets,
            may_retry=may_retry,
            refresh=REFRESH_SECONDS,
            journal_dir=journal_dir,
            list_failed=format_command("tiledwriter-journal", "ls", journal_dir, "--state", "failed"),
            show_status=format_command("tiledwriter-supervisor", "status", "--journal-dir", journal_dir),
        )
        self._template = environment.get_template("page.html")
        self._journal_dir = journal_dir

    def render(self, observation: Observation, history: Columns, notices: Sequence[Notice] = ()) -> str:
        """Return the page as HTML."""
        snapshot = observation.current
        last = None if observation.answer is None else observation.answer.snapshot
        return self._template.render(
            observation=observation,
            overview=overview_of(observation, self._journal_dir),
            snapshot=last,
            current=snapshot is not None,
            age=None if observation.answered is None else observation.now - observation.answered,
            level=Level.BAD if snapshot is None else _LEVEL_OF_STATE.get(snapshot.state, Level.BAD),
            notices=notices,
            version=__version__,
            **({} if last is None else self._describe_snapshot(last, history)),
        )

    def _describe_snapshot(self, snapshot: Snapshot, history: Columns) -> dict[str, Any]:
        runs = all_runs(snapshot)
        failed = [run for run in runs if run.state == "failed"]
        in_flight = [run for run in runs if run.state != "failed"]
        # Those that must wait first, then the newest: they are what one looks for.
        in_flight.sort(key=lambda run: (not run.waits_for, -(run.since or 0.0)))
        counts = {state: count for state, count in snapshot.runs.counts.items() if count}
        return {
            "quarantine": [(run, commands_for_failed(run, self._journal_dir)) for run in failed[:MAX_ROWS]],
            "hidden_quarantine": max(snapshot.runs.counts.get("failed", 0) - MAX_ROWS, len(failed) - MAX_ROWS, 0),
            "failed_count": max(snapshot.runs.counts.get("failed", 0), len(failed)),
            "in_flight": [(run, _level_of_run(run), _share(run)) for run in in_flight[:MAX_ROWS]],
            "in_flight_count": len(in_flight) + snapshot.runs.unlisted_open,
            "hidden_in_flight": max(len(in_flight) - MAX_ROWS, 0) + snapshot.runs.unlisted_open,
            "present": [item for item in counts.items() if item[0] not in COMPLETE],
            "finished": [item for item in counts.items() if item[0] in COMPLETE],
            "publishers": [(one, age_of_oldest(one, snapshot)) for one in snapshot.publishers[:MAX_ROWS]],
            "hidden_publishers": max(len(snapshot.publishers) - MAX_ROWS, 0),
            "disks": [(disk, _level_of_disk(disk), _used(disk)) for disk in snapshot.disks],
            "trouble": sorted(snapshot.trouble, key=lambda trouble: -trouble.time)[:MAX_ROWS],
            "settings": _flat_settings(snapshot.settings),
            "rates": {name: values[-1] if values else None for name, values in history.items()},
            "lag": total_lag(snapshot),
            "count_of": count_of,
        }


def shorten_text(value: object, longest: int = MAX_CELL_CHARACTERS) -> str:
    """Return a text from elsewhere as one that can be shown: cut, and without characters that change its direction."""
    text = NOT_KNOWN if value is None else str(value)
    if len(text) > longest:
        text = f"{text[:longest]}... ({len(text):,} characters)"
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def mark_commands(text: str) -> Markup:
    """Return a sentence as HTML, with what is between backquotes as code."""
    shown = shorten_text(text)
    parts: list[str] = []
    end = 0
    for found in _COMMAND.finditer(shown):
        code = Markup("<code>{}</code>").format(found[1])
        parts += [escape(shown[end : found.start()]), code]
        end = found.end()
    return Markup().join([*parts, escape(shown[end:])])


def _level_of_run(run: RunStatus) -> Level:
    level = _LEVEL_OF_RUN.get(run.state, Level.UNKNOWN)
    return Level.WARNING if run.waits_for and level is Level.GOOD else level


def _level_of_disk(disk: DiskStatus) -> Level:
    return _LEVEL_OF_DISK.get(disk.state or "", Level.UNKNOWN)


def _share(run: RunStatus) -> float | None:
    """Return how much of a run's documents is in Tiled, from 0 to 1."""
    if run.written is None or run.durable <= 0:
        return None
    return min(run.written / run.durable, 1.0)


def _used(disk: DiskStatus) -> float | None:
    """Return how much of a disk is in use, from 0 to 1."""
    return None if disk.free is None or not disk.total else min(max(1 - disk.free / disk.total, 0.0), 1.0)


def _flat_settings(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (name, value if isinstance(value, str) else json.dumps(value, default=str))
        for name, value in sorted(settings.items())
    ]
