"""Asks the supervisor once for all who want to know, and remembers what it said last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tiledbroker.supervisor import Snapshot

from ._snapshot import Answer, SupervisorAway

# Readers within this time get the same answer, however many they are.
MAX_AGE_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Observation:
    """What the supervisor said when it was asked last, or why it said nothing.

    Attributes
    ----------
    now
        Unix time at which the supervisor was asked, in seconds.
    answer
        Its last answer, which is old if `problem` is set; None if it has never answered.
    problem
        Why there is no answer now; None if there is one.
    answered
        Unix time of the last answer, in seconds; None if there was none.
    away_since
        Unix time of the first question without an answer since; None if there is an answer.
    """

    now: float
    answer: Answer | None = None
    problem: str | None = None
    answered: float | None = None
    away_since: float | None = None

    @property
    def current(self) -> Snapshot | None:
        """The snapshot if the supervisor answers, else None."""
        return None if self.answer is None or self.problem is not None else self.answer.snapshot


class SnapshotSource:
    """Reads snapshots in a thread, one at a time.

    Parameters
    ----------
    read
        Returns an answer or raises `SupervisorAway`. It may block.
    clock
        Returns the Unix time in seconds.
    """

    def __init__(self, read: Callable[[], Answer], clock: Callable[[], float] = time.time) -> None:
        self._read = read
        self._clock = clock
        self._asking = asyncio.Lock()
        self._latest: Observation | None = None
        self._read_at = 0.0

    async def observe(self) -> Observation:
        """Return what the supervisor says, or said less than `MAX_AGE_SECONDS` ago."""
        async with self._asking:
            age = time.monotonic() - self._read_at
            if self._latest is None or age >= MAX_AGE_SECONDS:
                self._latest = await self._ask_supervisor(self._latest)
                self._read_at = time.monotonic()
            return self._latest

    async def _ask_supervisor(self, before: Observation | None) -> Observation:
        asked = self._clock()
        try:
            answer = await asyncio.to_thread(self._read)
        except SupervisorAway as error:
            if before is None:
                return Observation(asked, None, str(error), None, asked)
            since = asked if before.away_since is None else before.away_since
            return Observation(asked, before.answer, str(error), before.answered, since)
        return Observation(asked, answer, answered=asked)
