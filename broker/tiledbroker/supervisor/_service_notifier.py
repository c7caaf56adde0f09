"""Tells systemd how the supervisor is, by the protocol of sd_notify(3); without systemd, nothing happens.

The protocol is one datagram of `NAME=value` lines to a Unix socket:
https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from typing import Final

log = logging.getLogger(__name__)

# The watchdog is fed this many times per interval, so that a late turn of the loop does not matter.
_FEEDS_PER_INTERVAL: Final = 3
_MICROSECONDS: Final = 1_000_000


class ServiceNotifier:
    """Notifications to the service manager that started this process.

    Parameters
    ----------
    environment
        Environment with NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID.

    Attributes
    ----------
    feed_pause
        Seconds between two calls of `feed_watchdog` at most; infinity if there is no watchdog.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = _find_address(environment)
        self._address = address
        self._socket = (
            None if address is None else socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        )
        if self._socket is not None:
            # A service manager that does not read must not stop the loop.
            self._socket.setblocking(False)
        interval = _watchdog_seconds(environment) if address is not None else None
        self.feed_pause = float("inf") if interval is None else interval / _FEEDS_PER_INTERVAL
        self._feed_at = 0.0
        self._status = ""

    def close(self) -> None:
        """Close the socket; further notifications do nothing."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def announce_ready(self) -> None:
        """Tell that the service is up, or that it has reloaded its configuration."""
        self._send("READY=1")

    def announce_reloading(self) -> None:
        """Tell that the configuration is being read again; `announce_ready` ends this."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def announce_stopping(self) -> None:
        """Tell that the service is about to end."""
        self._send("STOPPING=1")

    def describe_status(self, text: str) -> None:
        """Tell the state of the service in one line, if it has changed."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={' '.join(text.split())}")

    def feed_watchdog(self, now: float) -> None:
        """Tell that the loop is alive, if it is time to; `now` is that of `time.monotonic`."""
        if now >= self._feed_at:
            self._feed_at = now + self.feed_pause
            if self.feed_pause != float("inf"):
                self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if self._socket is None or self._address is None:
            return
        try:
            self._socket.sendto(text.encode(errors="replace"), self._address)
        except OSError as error:
            log.debug("systemd cannot be told %r: %s", text, error)


def _find_address(environment: Mapping[str, str]) -> str | None:
    """Return the address of the service manager's socket; None if there is none that this protocol knows."""
    given = environment.get("NOTIFY_SOCKET", "")
    if given.startswith("@"):
        # An address in Linux's abstract namespace.
        return "\0" + given[1:]
    return given if given.startswith("/") else None


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """Return the time within which the watchdog must be fed; None if it is not meant for this process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    given = environment.get("WATCHDOG_USEC", "")
    return int(given) / _MICROSECONDS if given.isdecimal() and int(given) > 0 else None
