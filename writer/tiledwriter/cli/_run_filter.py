"""Selection of runs by state, start and number, for `tiledwriter-journal ls`."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol, TypeVar

from ..journals import DAMAGED, STATES, UNREADABLE
from ._parser import suggestion_for
from ._terminal import local

_UNIT_SECONDS: Final = {"s": 1, "min": 60, "m": 60, "h": 3600, "d": 24 * 3600, "w": 7 * 24 * 3600}
_AGE: Final = re.compile(r"(\d+(?:\.\d+)?) ?(s|min|m|h|d|w)")


class _Run(Protocol):
    """What a selection depends on: the summary of a run in a file or in a log."""

    @property
    def state(self) -> str: ...

    @property
    def started(self) -> float | None: ...


R = TypeVar("R", bound=_Run)


@dataclass(frozen=True)
class RunFilter:
    """Selection of runs. What is not known of a run never excludes it, so unreadable runs are always selected.

    The state of a run whose file is damaged is not known either.

    Attributes
    ----------
    states
        States of the selected runs; empty for all.
    since
        Unix time in seconds since which they have started; None for all.
    latest
        Number of runs to select, those that started last; None for all.
    """

    states: tuple[str, ...] = ()
    since: float | None = None
    latest: int | None = None

    def select_runs(self, runs: Sequence[R]) -> list[R]:
        """Return the selected runs, sorted by the time of their start."""
        ordered = sorted(runs, key=lambda run: run.started or 0.0)
        chosen = [run for run in ordered if run.state == UNREADABLE or self._matches(run)]
        timeless = [run for run in chosen if run.started is None]
        timed = [run for run in chosen if run.started is not None]
        return [*timeless, *(timed if self.latest is None else timed[len(timed) - min(self.latest, len(timed)) :])]

    def _matches(self, run: _Run) -> bool:
        if self.states and run.state not in (*self.states, DAMAGED):
            return False
        return self.since is None or run.started is None or run.started >= self.since

    def __str__(self) -> str:
        states = f"is {' or '.join(self.states)}" if self.states else ""
        since = f"has started since {local(self.since)}" if self.since is not None else ""
        return " and ".join(filter(None, (states, since))) or "is among the latest 0"


def parse_states(text: str) -> tuple[str, ...]:
    """Return the states in a list with commas; raise `argparse.ArgumentTypeError` if there is no such state."""
    states = tuple(word.strip() for word in text.split(","))
    for state in states:
        if state not in STATES:
            hint = suggestion_for(state, STATES)
            raise argparse.ArgumentTypeError(f"there is no state {state!r}{hint} (states: {', '.join(STATES)})")
    return states


def parse_since(text: str) -> float:
    """Return the Unix time in seconds that a date, a date with time, or an age such as `2h` means.

    Times without a zone are in the local time zone.

    Raises
    ------
    argparse.ArgumentTypeError
        The text is none of these.
    """
    age = _AGE.fullmatch(text)
    if age is not None:
        return time.time() - float(age[1]) * _UNIT_SECONDS[age[2]]
    try:
        # Python 3.10 does not understand the Z of UTC.
        return datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text)).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        problem = f"{text!r} is neither a time (2026-03-02, 2026-03-02T09:15, 2026-03-02T09:15+01:00) nor an age"
        raise argparse.ArgumentTypeError(f"{problem} (90s, 30min, 2h, 3d, 1w)") from None
