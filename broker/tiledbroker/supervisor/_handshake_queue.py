"""Queue of Hellos to answer, a few runs at a time, so that one Hello with a thousand runs delays no other publisher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ..protocol import Hello, RunState
from ._frontend import Publisher

RUNS_PER_TURN: Final = 10
"""Runs looked up at a time. Each may open a journal, which takes about a millisecond."""

# Characters of uids in all queued Hellos. A Hello beyond that is dropped; its publisher says Hello again.
_MAX_TEXT: Final = 64 * 2**20


@dataclass
class _Greeting:
    left: dict[str, None]
    views: dict[str, RunState]
    text: int


class HandshakeQueue:
    """The Hellos of publishers in a round-robin queue."""

    def __init__(self) -> None:
        self._handshake_queue: dict[Publisher, _Greeting] = {}

    def __bool__(self) -> bool:
        return bool(self._handshake_queue)

    def put(self, publisher: Publisher, hello: Hello) -> None:
        """Queue a Hello. It replaces an earlier one of this publisher and keeps the states already looked up."""
        before = self._handshake_queue.pop(publisher, None)
        views = {} if before is None else before.views
        uids = dict.fromkeys([*hello.runs, *hello.awaited])
        text = sum(map(len, uids))
        if text + sum(greeting.text for greeting in self._handshake_queue.values()) <= _MAX_TEXT:
            known = {uid: views[uid] for uid in uids if uid in views}
            left = {uid: None for uid in uids if uid not in views}
            self._handshake_queue[publisher] = _Greeting(left, known, text)

    def turn(
        self, look: Callable[[Publisher, str], RunState], is_there: Callable[[Publisher], bool]
    ) -> Iterator[tuple[Publisher, dict[str, RunState]]]:
        """Look up the next runs, at most `RUNS_PER_TURN`, and yield the Hellos that are complete.

        Parameters
        ----------
        look
            Returns the state of a run for a publisher.
        is_there
            Returns False for a publisher that is gone; its Hello is dropped.

        Yields
        ------
        tuple of Publisher and dict of str to RunState
            A publisher, and the states of all runs of its Hello by uid.
        """
        looks = RUNS_PER_TURN
        while self._handshake_queue and looks:
            publisher, greeting = next(iter(self._handshake_queue.items()))
            del self._handshake_queue[publisher]
            if not is_there(publisher):
                continue
            while greeting.left and looks:
                uid = next(iter(greeting.left))
                del greeting.left[uid]
                greeting.views[uid] = look(publisher, uid)
                looks -= 1
            if greeting.left:
                self._handshake_queue[publisher] = greeting
            else:
                yield publisher, greeting.views
