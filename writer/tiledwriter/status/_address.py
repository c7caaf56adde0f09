"""Where the HTTP server listens: a host and a port, or a port of the loopback interface."""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

_LOOPBACK: Final = "127.0.0.1"
_MAX_PORT: Final = 65_535


class HttpAddress(NamedTuple):
    """Host name or IP address, and TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True if only this host can reach the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_http_address(text: str) -> HttpAddress:
    """Return the address that `HOST:PORT` or `PORT` means; a port alone is one of the loopback interface.

    Raises
    ------
    ValueError
        The text is neither of these.
    """
    host, colon, port = text.strip().rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) <= _MAX_PORT:
        raise ValueError(f"{text!r} is not HOST:PORT or PORT, such as 127.0.0.1:8080 or 8080")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} has an IPv6 address without brackets; write [{host}]:{port}")
    if colon and not host:
        raise ValueError(f"{text!r} names no host; give the port alone for this host only, or 0.0.0.0:{port} for all")
    if any(character.isspace() or character in "/@" for character in host):
        raise ValueError(f"{text!r} is not HOST:PORT; give no http:// and no path")
    return HttpAddress(host or _LOOPBACK, int(port))
