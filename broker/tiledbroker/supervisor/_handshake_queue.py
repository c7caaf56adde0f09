"""Queue of Hellos to answer, a few runs at a time, so that one Hello with a thousand runs delays no other publisher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ..protocol import messages
from ._publishers import Publisher

RUNS_PER_TURN: Final = 10
"""Runs looked up at a time. Each may open a journal, which takes about a millisecond."""

# Bounds memory. A Hello beyond it is dropped, which does no harm, because its publisher says Hello again.
_MAX_QUEUED_UID_CHARACTERS: Final = 64 * 2**20


@dataclass
class _PendingHello:
    left: dict[str, None]
    states: dict[str, messages.RunState]
    characters: int


class HandshakeQueue:
    """The Hellos of publishers in a round-robin queue."""

    def __init__(self) -> None:
        self._queue: dict[Publisher, _PendingHello] = {}

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, publisher: Publisher, hello: messages.Hello) -> None:
        """Queue a Hello. It replaces an earlier one of this publisher and keeps the states already looked up."""
        before = self._queue.pop(publisher, None)
        states = {} if before is None else before.states
        uids = dict.fromkeys([*hello.runs, *hello.awaited])
        characters = sum(map(len, uids))
        if characters + sum(pending.characters for pending in self._queue.values()) <= _MAX_QUEUED_UID_CHARACTERS:
            known = {uid: states[uid] for uid in uids if uid in states}
            left = {uid: None for uid in uids if uid not in states}
            self._queue[publisher] = _PendingHello(left, known, characters)

    def look_up(
        self, read_state: Callable[[Publisher, str], messages.RunState], is_connected: Callable[[Publisher], bool]
    ) -> Iterator[tuple[Publisher, dict[str, messages.RunState]]]:
        """Look up the next runs, at most `RUNS_PER_TURN`, and yield the Hellos that are complete.

        Parameters
        ----------
        read_state
            Returns the state of a run for a publisher.
        is_connected
            Returns False for a publisher that is gone; its Hello is dropped.

        Yields
        ------
        tuple of Publisher and dict of str to RunState
            A publisher, and the states of all runs of its Hello by uid.
        """
        budget = RUNS_PER_TURN
        while self._queue and budget:
            publisher, pending = next(iter(self._queue.items()))
            del self._queue[publisher]
            if not is_connected(publisher):
                continue
            while pending.left and budget:
                uid = next(iter(pending.left))
                del pending.left[uid]
                pending.states[uid] = read_state(publisher, uid)
                budget -= 1
            if pending.left:
                self._queue[publisher] = pending
            else:
                yield publisher, pending.states
