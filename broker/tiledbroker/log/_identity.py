"""Who writes a file: this host, this boot of it, this process."""

from __future__ import annotations

import os
import secrets
import socket
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Holder(NamedTuple):
    """The process that holds a spool file, as the file names it.

    Attributes
    ----------
    host
        Name of the host.
    boot
        Identifier that the kernel draws at each boot; "" where there is none.
    pid
        Process id.
    session
        Drawn at random for each publisher.
    """

    host: str
    boot: str
    pid: int
    session: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def new_holder() -> Holder:
    """Identify this process, as the holder of one publisher's files."""
    host = socket.gethostname()
    return Holder(host, boot_id(), os.getpid(), _host_prefix(host) + secrets.token_hex(4))


def is_session_of(host: str, session: str) -> bool:
    """Whether a session was on this host, by its name: locks of other hosts may not be seen here."""
    return session.startswith(_host_prefix(host))


def _host_prefix(host: str) -> str:
    return f"{zlib.crc32(host.encode()):08x}"


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return the identifier of this boot of the kernel; "" where there is none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
