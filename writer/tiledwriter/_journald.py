"""Log entries with fields for systemd's journal, by its native protocol.

An entry is one datagram to journald's socket: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import sys
from typing import IO, Final

from ._plain_text import plain

SOCKET_PATH: Final = "/run/systemd/journal/socket"

# Priorities of syslog by level; see syslog(3).
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY: Final = 7
_IDENTIFIER: Final = "tiledwriter-supervisor"
# Bytes of a traceback, of which the end is kept. The kernel takes datagrams of about 200 kB.
_MAX_TRACEBACK_BYTES: Final = 64 * 2**10


def find_priority(level: int) -> int:
    """Return the priority of syslog for a level of `logging`."""
    return next((priority for lowest, priority in _PRIORITIES if level >= lowest), _DEBUG_PRIORITY)


def is_journal_stream(stream: IO[str], environment: dict[str, str] | os._Environ[str] = os.environ) -> bool:
    """Return True if what is written to a stream goes to journald, which names its device and inode."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        # It is closed, or no file.
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class JournaldHandler(logging.Handler):
    """Sends records to journald; writes those that it does not take to standard error, with their priority.

    Parameters
    ----------
    run
        Uid of the run whose worker this process is, for the field RUN_UID; None in the supervisor.
    path
        Path of journald's socket.
    target
        Name of the target, for the field TILEDWRITER_TARGET; "" if there is only one.
    """

    def __init__(self, run: str | None, path: str = SOCKET_PATH, *, target: str = "") -> None:
        super().__init__()
        self._run = run
        self._target = target
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        # A journal that does not read must not stop the service.
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        try:
            fields = self._collect_fields(record)
            try:
                self._socket.sendto(encode_fields(fields), self._path)
            except OSError:
                sys.stderr.write(f"<{fields['PRIORITY']}>{fields['MESSAGE']}\n")
                for line in fields.get("TRACEBACK", "").splitlines():
                    sys.stderr.write(f"<{fields['PRIORITY']}>    {line}\n")
                sys.stderr.flush()
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _collect_fields(self, record: logging.LogRecord) -> dict[str, str]:
        fields = {
            "MESSAGE": plain(record.getMessage()),
            "PRIORITY": str(find_priority(record.levelno)),
            "SYSLOG_IDENTIFIER": _IDENTIFIER,
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
        }
        if self._run is not None:
            fields["RUN_UID"] = plain(self._run)
        if self._target:
            fields["TILEDWRITER_TARGET"] = self._target
        if record.exc_info:
            formatted = logging.Formatter().formatException(record.exc_info)
            text = "\n".join(map(plain, formatted.splitlines())).encode(errors="replace")
            fields["TRACEBACK"] = text[-_MAX_TRACEBACK_BYTES:].decode(errors="ignore")
        return fields


def encode_fields(fields: dict[str, str]) -> bytes:
    """Return an entry of journald's native protocol."""
    parts = []
    for name, value in fields.items():
        data = value.encode(errors="replace")
        if b"\n" in data:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n")
        else:
            parts.append(name.encode() + b"=" + data + b"\n")
    return b"".join(parts)
