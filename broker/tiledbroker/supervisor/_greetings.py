"""Hellos that are being answered, a few runs at a time: one with a thousand makes nobody else wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ..protocol import Hello, RunState
from ._front import Publisher

RUNS_PER_TURN: Final = 10
"""Each may be a journal to open, which takes about a millisecond."""

_MAX_TEXT: Final = 64 * 2**20  # characters of uids; the publisher of what is more says Hello again


@dataclass
class _Greeting:
    left: dict[str, None]
    views: dict[str, RunState]
    text: int


class Greetings:
    """The Hellos of publishers, in the order in which they take turns."""

    def __init__(self) -> None:
        self._greetings: dict[Publisher, _Greeting] = {}

    def __bool__(self) -> bool:
        return bool(self._greetings)

    def put(self, publisher: Publisher, hello: Hello) -> None:
        """A Hello is to be answered; if it comes again meanwhile, with what has been looked at already."""
        before = self._greetings.pop(publisher, None)
        views = {} if before is None else before.views
        uids = dict.fromkeys([*hello.runs, *hello.awaited])
        text = sum(map(len, uids))
        if text + sum(greeting.text for greeting in self._greetings.values()) <= _MAX_TEXT:
            known = {uid: views[uid] for uid in uids if uid in views}
            left = {uid: None for uid in uids if uid not in views}
            self._greetings[publisher] = _Greeting(left, known, text)

    def turn(
        self, look: Callable[[Publisher, str], RunState], is_there: Callable[[Publisher], bool]
    ) -> Iterator[tuple[Publisher, dict[str, RunState]]]:
        """Look at the next runs; those publishers follow, with their runs, for whom all are looked at."""
        looks = RUNS_PER_TURN
        while self._greetings and looks:
            publisher, greeting = next(iter(self._greetings.items()))
            del self._greetings[publisher]
            if not is_there(publisher):
                continue
            while greeting.left and looks:
                uid = next(iter(greeting.left))
                del greeting.left[uid]
                greeting.views[uid] = look(publisher, uid)
                looks -= 1
            if greeting.left:
                self._greetings[publisher] = greeting
            else:
                yield publisher, greeting.views
