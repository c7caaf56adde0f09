"""Write slots, a limit on concurrent write requests across workers.

More than a few requests at a time do not make a Tiled server faster, and make its SQLite database fail.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tiledbroker.log import FileLock

from .._errors import NotProcessed, Stopped

_POLL_SECONDS: Final = 0.01


class WriteSlots:
    """Limit on concurrent requests, shared by all processes that use the same directory.

    A slot is a lock file; the kernel releases the lock however its holder ends.

    Parameters
    ----------
    directory
        Directory of the lock files; created if it does not exist.
    slots
        Maximum number of concurrent requests.
    """

    def __init__(self, directory: Path, slots: int) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._locks = [FileLock(directory / f"slot-{number}.lock") for number in range(slots)]
        self._random = random.Random(os.getpid())  # noqa: S311  only so that not all begin with the same slot

    @contextmanager
    def hold_slot(self, stopping: threading.Event) -> Iterator[None]:
        """Wait for a slot, and hold it within the context.

        Raises
        ------
        Stopped
            `stopping` was set while waiting.
        NotProcessed
            The lock files cannot be used.
        """
        lock = self._acquire_slot(stopping)
        try:
            yield
        finally:
            lock.release()

    def _acquire_slot(self, stopping: threading.Event) -> FileLock:
        while True:
            failure: OSError | None = None
            for lock in self._random.sample(self._locks, len(self._locks)):
                try:
                    if lock.try_acquire():
                        return lock
                except OSError as error:
                    failure = error
            if failure is not None:
                # The fault is this host's, for example a directory without permission, and not the request's.
                raise NotProcessed(f"no write slot is available: {failure}") from failure
            if stopping.wait(_POLL_SECONDS):
                raise Stopped("Stopped while waiting for a write slot.")
