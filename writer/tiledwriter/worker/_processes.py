"""What psutil and the kernel say about processes: for the supervisor's watch over its workers and over itself."""

from __future__ import annotations

import resource
from typing import Final

import psutil

from tiledbroker.supervisor import ProcessIdentity

_OPEN_FILES: Final = 65_536
_SAME_TIME: Final = 1.5  # seconds; each process derives times of creation from the boot time as it knows it


def allow_open_files() -> int:
    """Let this process have as many files open as it may: each connection is one. Returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class Processes:
    """A `ProcessWatch`."""

    def identity(self, pid: int) -> ProcessIdentity | None:
        try:
            return pid, psutil.Process(pid).create_time()
        except (psutil.Error, OSError):  # such as too many open files
            return None

    def memory(self, pid: int) -> int | None:
        try:
            return int(psutil.Process(pid).memory_info().rss)
        except (psutil.Error, OSError):
            return None

    def is_alive(self, process: ProcessIdentity) -> bool:
        return _find(process) is not None

    def kill(self, process: ProcessIdentity) -> bool:
        found = _find(process)
        if found is None:
            return False
        try:
            found.kill()
        except psutil.NoSuchProcess:
            return False
        return True


def _find(identity: ProcessIdentity) -> psutil.Process | None:
    """The living process of this identity, and no other that has its pid by now."""
    pid, created = identity
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - created) < _SAME_TIME
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, OSError):
        return None
