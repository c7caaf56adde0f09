"""Workers take turns: a Tiled server gets no faster by more than a few requests at a time, and SQLite fails."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tiledbroker.log import FileLock

from .._errors import Stopped
from ._answers import NotProcessed

_POLL: Final = 0.01


class Turns:
    """At most `slots` requests at a time, over all processes that use the same directory.

    A slot is a lock file, which the kernel releases however its holder ends.
    """

    def __init__(self, directory: Path, slots: int) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._locks = [FileLock(directory / f"slot-{number}.lock") for number in range(slots)]
        self._random = random.Random(os.getpid())  # noqa: S311  only so that not all begin with the same slot

    @contextmanager
    def turn(self, stopping: threading.Event) -> Iterator[None]:
        """Hold a slot.

        Raises
        ------
        Stopped
            `stopping` was set while waiting.
        NotProcessed
            The directory cannot be used.
        """
        lock = self._take(stopping)
        try:
            yield
        finally:
            lock.release()

    def _take(self, stopping: threading.Event) -> FileLock:
        while True:
            failure: OSError | None = None
            for lock in self._random.sample(self._locks, len(self._locks)):
                try:
                    if lock.try_acquire():
                        return lock
                except OSError as error:
                    failure = error
            if failure is not None:
                # This host's trouble, such as a directory that may not be entered: no fault of the request.
                raise NotProcessed(f"no write slot can be had: {failure}") from failure
            if stopping.wait(_POLL):
                raise Stopped("Stopped while waiting for a turn.")
