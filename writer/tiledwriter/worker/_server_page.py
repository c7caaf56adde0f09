"""What a worker learns of Tiled at connection, for the workers after it: a page of memory that all of them share.

A connection takes three requests: where the API is, which version it has, and whether the container exists. If many
runs are taken over at once, each of their workers would send them.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from ._line_page import LinePage

VALID_SECONDS: Final = 60.0
"""Time for which what one worker has learnt serves others, so that they see a server that was upgraded meanwhile."""

_LEARNING_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.02


class LearntServer(msgspec.Struct, frozen=True):
    """What Tiled says at connection.

    Attributes
    ----------
    configured_uri
        Address that was configured.
    api_uri
        Address of the API that was found there.
    path_parts
        Keys on the path to the container, which exists.
    version
        Version of Tiled.
    learnt_at
        Time before the requests, by `time.monotonic`, which is the same clock in all processes of a host.
    """

    configured_uri: str
    api_uri: str
    path_parts: list[str]
    version: str
    learnt_at: float


@dataclass(frozen=True)
class ServerPage(LinePage):
    """What the last worker that asked Tiled has learnt."""

    def publish(self, learnt: LearntServer) -> None:
        """Tell the other workers what this one has learnt."""
        self.append_line(msgspec.json.encode(learnt))

    def read(self, configured_uri: str) -> LearntServer | None:
        """Return what was learnt of the server at this address; None if nothing was learnt of it lately."""
        line = self.read_last_line()
        if not line:
            return None
        learnt = msgspec.json.decode(line, type=LearntServer)
        is_valid = learnt.configured_uri == configured_uri and time.monotonic() < learnt.learnt_at + VALID_SECONDS
        return learnt if is_valid else None

    @contextmanager
    def learning(self, configured_uri: str) -> Iterator[LearntServer | None]:
        """Yield what was learnt of the server at this address, or None to the one worker that is to learn it.

        The others wait for that worker, but not for long: it may hang, and its requests may be answered slowly.
        """
        deadline = time.monotonic() + _LEARNING_SECONDS
        while not (is_ours := self._lock()) and time.monotonic() < deadline:
            if (learnt := self.read(configured_uri)) is not None:
                yield learnt
                return
            time.sleep(_POLL_SECONDS)
        try:
            yield self.read(configured_uri)
        finally:
            if is_ours:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def _lock(self) -> bool:
        """Return True if this process may learn. The kernel ends the lock of a process that has ended."""
        try:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
