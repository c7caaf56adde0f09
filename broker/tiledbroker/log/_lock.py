"""A lock file: one writer per journal, one supervisor per directory, released by the kernel however its holder ends."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path
from typing import Final

from .._errors import JournalLocked

_PAUSE: Final = 0.005
_PATIENCE: Final = 5.0
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """An exclusive lock on a file of its own.

    Raises
    ------
    JournalLocked
        By `acquire`, when somebody else holds the lock for longer than `timeout` seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, timeout: float = 0.0) -> None:
        began = time.monotonic()
        while not self.try_acquire():
            waited = time.monotonic() - began
            # Who asks whether it is `held` shares it for an instant, or longer on a busy machine.
            if waited >= timeout and (self.held or waited >= _PATIENCE):
                raise JournalLocked(self.path.with_suffix(""))
            time.sleep(_PAUSE)

    def release(self, *, remove: bool = False) -> None:
        """Let go. `remove` deletes the file first, while it is still ours."""
        if self._descriptor is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None
        _held.discard(self)

    @property
    def is_in_place(self) -> bool:
        """Whether it is ours, and others find it by its name."""
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except OSError:
            return False

    @property
    def held(self) -> bool:
        """Whether somebody holds it.

        Raises
        ------
        OSError
            It cannot be told, as the file may not be opened.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it at this moment; returns whether that was so."""
        descriptor = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have deleted the file between our open and our lock.
            if os.fstat(descriptor).st_ino != self.path.stat().st_ino:
                raise FileNotFoundError(self.path)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        _held.add(self)
        return True


def _let_go_in_child() -> None:
    # A forked child shares the lock; left open there, it would outlive the process that owns the journal.
    for lock in list(_held):
        if lock._descriptor is not None:
            os.close(lock._descriptor)
            lock._descriptor = None


os.register_at_fork(after_in_child=_let_go_in_child)
