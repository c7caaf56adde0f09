"""A lock that a busy thread cannot monopolize by releasing and reacquiring it."""

from __future__ import annotations

import threading


class FairLock:
    """Reentrant lock, used as a context manager, that a waiting thread gets before the thread that released it.

    `threading.Lock` goes to the first thread that asks after the release, which is mostly the thread that released it.
    """

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._owner != me:
            # The first waiting thread holds `_door`, so a thread that has just released the lock queues behind it.
            with self._door:
                self._lock.acquire()
            self._owner = me
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()
