"""Lock files, which the kernel releases however their holder ends."""

from __future__ import annotations

import fcntl
import os
import time
import weakref
from pathlib import Path
from typing import Final

from .._errors import JournalLocked
from .._filesystem import open_regular_file

# Of the kernel, so containers of one host share it.
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_POLL_SECONDS: Final = 0.005
_MAX_WAIT_SECONDS: Final = 5.0
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """Exclusive lock between processes, by `flock` on a file that serves only as lock.

    Journals, supervisors, publisher sessions and adopters have one each.

    Parameters
    ----------
    path
        The lock file, which is created if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self, timeout: float = 0.0) -> None:
        """Acquire the lock, waiting for up to `timeout` seconds.

        Raises
        ------
        JournalLocked
            Another holder, also one in this process, still has the lock after the timeout.
        """
        began = time.monotonic()
        while not self.try_acquire():
            waited = time.monotonic() - began
            # Another process that evaluates `held` locks the file briefly, or longer on a busy machine. So without a
            # holder, keep trying after `timeout`.
            if waited >= timeout and (self.held or waited >= _MAX_WAIT_SECONDS):
                raise JournalLocked(self.path.with_suffix(""))
            time.sleep(_POLL_SECONDS)

    def release(self, *, remove: bool = False) -> None:
        """Release the lock. With `remove`, delete the file first, while it is still locked."""
        if self._descriptor is None:
            return
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = None
        _held.discard(self)

    @property
    def identity(self) -> str:
        """What tells this lock from all others, as long as it is held and the host runs; "" if it is not held.

        Two processes with locks of one identity cannot both hold them: it is the same file.
        """
        if self._descriptor is None:
            return ""
        file = os.fstat(self._descriptor)
        return f"{_BOOT_ID.read_text().strip()}:{file.st_dev}:{file.st_ino}"

    @property
    def is_in_place(self) -> bool:
        """True if this object holds the lock, and the locked file still exists at `path`.

        Raises
        ------
        OSError
            The file cannot be looked at, for example because a directory above it may not be entered.
        """
        if self._descriptor is None:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), self.path.stat())
        except (FileNotFoundError, NotADirectoryError):
            return False

    @property
    def held(self) -> bool:
        """True if some process, including this one, holds the lock exclusively.

        Raises
        ------
        OSError
            The file exists but cannot be opened, or is not a regular file.
        """
        try:
            descriptor = open_regular_file(self.path)
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
        """Acquire the lock if it is free, without waiting; return True if it was acquired."""
        descriptor = open_regular_file(self.path, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The previous holder may have deleted the file between our `open` and our `flock`.
            if os.fstat(descriptor).st_ino != self.path.stat().st_ino:
                raise FileNotFoundError(self.path)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        _held.add(self)
        return True


def _let_go_in_child() -> None:
    # A forked child inherits the open lock file, which would keep the lock after the owner has ended.
    for lock in list(_held):
        if lock._descriptor is not None:
            os.close(lock._descriptor)
            lock._descriptor = None


os.register_at_fork(after_in_child=_let_go_in_child)
