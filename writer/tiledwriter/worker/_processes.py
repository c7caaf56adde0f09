"""Access to processes and limits through psutil and the kernel, for the supervisor."""

from __future__ import annotations

import resource
from typing import Final

import psutil

from tiledbroker.supervisor import ProcessIdentity

_OPEN_FILES: Final = 65_536
# Each process computes creation times from its own reading of the boot time, so they may be slightly different.
_CREATION_TIME_TOLERANCE_SECONDS: Final = 1.5


def allow_open_files() -> int:
    """Raise this process's limit of open files as far as allowed, since each connection needs one; return the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Processes:
    """Access to processes with psutil. Implements the protocol `ProcessTable` of the supervisor."""

    def identity(self, pid: int) -> ProcessIdentity | None:
        """Return the pid and creation time (Unix time) of a process; None if they cannot be read."""
        try:
            return pid, psutil.Process(pid).create_time()
        except (psutil.Error, OSError):
            # The process is gone, or this process has too many open files, for example.
            return None

    def memory(self, pid: int) -> int | None:
        """Return the resident memory in bytes; None if it cannot be read."""
        try:
            return int(psutil.Process(pid).memory_info().rss)
        except (psutil.Error, OSError):
            return None

    def is_alive(self, process: ProcessIdentity) -> bool:
        """Return whether this process is alive; False for another one with the same pid, and for a zombie."""
        return _find_process(process) is not None

    def kill(self, process: ProcessIdentity) -> bool:
        """Kill this process with SIGKILL; return False if it is gone."""
        found = _find_process(process)
        if found is None:
            return False
        try:
            found.kill()
        except psutil.NoSuchProcess:
            return False
        return True


def _find_process(identity: ProcessIdentity) -> psutil.Process | None:
    """Return the living process of this identity, or None; another process may have its pid by now."""
    pid, created = identity
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < _CREATION_TIME_TOLERANCE_SECONDS
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, OSError):
        return None
