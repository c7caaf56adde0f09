"""Identity of the process that writes a spool file: host, boot, process and session."""

from __future__ import annotations

import os
import secrets
import socket
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class SessionIdentity(NamedTuple):
    """Identity of the publisher session that made a spool file, as stored in its header.

    Attributes
    ----------
    host
        Name of the host.
    boot
        Random identifier of the kernel's current boot; "" if the system has none.
    pid
        Process id.
    session
        Identifier of one publisher: a prefix for the host, and random hexadecimal digits.
    """

    host: str
    boot: str
    pid: int
    session: str

    @property
    def is_of_this_host(self) -> bool:
        """True if the session ran on this host. Locks of other hosts may be invisible here."""
        return self.host == socket.gethostname()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def new_session() -> SessionIdentity:
    """Return a new identity, for one publisher in this process."""
    host = socket.gethostname()
    return SessionIdentity(host, boot_id(), os.getpid(), _host_prefix(host) + secrets.token_hex(4))


def is_session_of(host: str, session: str) -> bool:
    """Return True if a session ran on `host`, judging by its name. Locks of other hosts may be invisible here."""
    return session.startswith(_host_prefix(host))


def _host_prefix(host: str) -> str:
    return f"{zlib.crc32(host.encode()):08x}"


@lru_cache(maxsize=1)
def boot_id() -> str:
    """Return the identifier of the kernel's current boot; "" if the system has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
