"""A lock that a busy thread cannot keep from another by asking for it again and again."""

from __future__ import annotations

import threading


class FairLock:
    """A reentrant lock, for use in `with`. Who waits for it gets it next.

    Python's own goes to whoever asks first after it was released, which is mostly the thread that released it.
    """

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._owner != me:
            with self._door:  # at which the one before waits while somebody else waits for the lock
                self._lock.acquire()
            self._owner = me
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()
