"""The directory of the journals: made or refused, locked, and checked while it is in use."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from .._errors import DirectoryUnusable
from .._filesystem import measure_space, network_filesystem
from .._rate_limited_log import RateLimitedLog
from ..log import FileLock
from ._status_client import SUPERVISOR_LOCK
from .scheduler import Space

log = logging.getLogger(__name__)


class JournalDirectory:
    """A directory with one journal per run, which this process has locked.

    Parameters
    ----------
    path
        The directory.
    make
        Make it if it is missing.

    Attributes
    ----------
    lock
        The lock, which keeps other supervisors out.

    Raises
    ------
    JournalLocked
        Another supervisor uses the directory.
    DirectoryUnusable
        It cannot be read or written, is on a network file system, or is missing and not to be made.
    """

    def __init__(self, path: Path, *, make: bool) -> None:
        _prepare_directory(path, make=make)
        self.path = path
        self.lock = FileLock(path / SUPERVISOR_LOCK)
        self.lock.acquire()
        self._limited_log = RateLimitedLog(log)

    def check_in_place(self) -> None:
        """Check that the directory and its lock file are still those that this process has locked.

        Raises
        ------
        DirectoryUnusable
            One of them was removed or replaced.
        """
        try:
            is_in_place = self.lock.is_in_place
        except OSError as error:
            # What cannot be looked at may be in place, and open journals can still be written.
            self._limited_log.log(
                logging.WARNING, "directory", "%s cannot be looked at: %s.", self.path, error.strerror
            )
            return
        if not is_in_place:
            raise DirectoryUnusable(
                self.path,
                f"its file {SUPERVISOR_LOCK}, or the directory itself, was removed or replaced while it was in use, so "
                "another supervisor could use it, too. This one ends; start it again.",
            )

    def measure_space(self) -> Space | None:
        """Return the space on the disk of the directory; None if it cannot be determined."""
        space = measure_space(self.path)
        return None if space is None else Space(*space)


def _prepare_directory(directory: Path, *, make: bool) -> None:
    """Make a journal directory if it is missing, and check that it can be used."""
    if not make and not directory.is_dir():
        raise DirectoryUnusable(directory, "there is no such journal directory, so nothing can be drained.")
    if (name := network_filesystem(directory)) is not None:
        raise DirectoryUnusable(
            directory, f"it is on a network file system ({name}), which does not keep journals safe. Take a local disk."
        )
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.scandir(directory):
            pass
    except OSError as error:
        raise DirectoryUnusable(directory, f"it cannot hold journals: {error.strerror}.") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise DirectoryUnusable(directory, "it cannot hold journals: Permission denied to write into it.")
