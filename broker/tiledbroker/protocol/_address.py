"""ZeroMQ addresses in the forms that Bluesky users write."""

from __future__ import annotations

import ipaddress
from typing import TypeAlias

from .._errors import AddressError

Address: TypeAlias = str | tuple[str | int, ...]


def normalize_address(address: Address) -> str:
    """Return an address as a ZeroMQ URL.

    Parameters
    ----------
    address
        `"host:port"`, `"tcp://host:port"`, `"ipc:///path"`, `("host", port)` or `("ipc", "/path")`.

    Returns
    -------
    str
        `"tcp://host:port"` or `"ipc:///path"`.

    Raises
    ------
    AddressError
        The address has none of these forms.
    """
    if isinstance(address, str):
        url = address if "://" in address else f"tcp://{address}"
    elif isinstance(address, tuple) and len(address) in (2, 3):
        scheme, *rest = address if address[0] in ("tcp", "ipc") else ("tcp", *address)
        url = f"{scheme}://{':'.join(map(str, rest))}"
    else:
        raise AddressError(f"{address!r} is not an address; give 'tcp://host:port', 'host:port' or ('host', port).")
    scheme, _, rest_of_url = url.partition("://")
    if scheme not in ("tcp", "ipc") or not rest_of_url:
        raise AddressError(f"{address!r} is not an address; give 'tcp://host:port', 'host:port' or 'ipc:///path'.")
    if scheme == "tcp" and (problem := _find_problem(rest_of_url)):
        raise AddressError(f"{address!r} has {problem}; give 'tcp://host:port'. The supervisor's default is 5579.")
    return url


def _find_problem(endpoint: str) -> str:
    """Return what is wrong with the host and the port of an address; "" if nothing is."""
    host, colon, port = endpoint.rpartition(":")
    if colon and not host:
        return "no host"
    if any(map(str.isspace, host)):
        return "a space in its host"
    if not colon or not (port == "*" or (port.isascii() and port.isdigit())):
        return "no port"
    return "a port beyond 65535" if len(port) > 5 or (port != "*" and int(port) > 65535) else ""


def is_local(url: str) -> bool:
    """Return True if only processes on this host can reach a supervisor that listens at `url`."""
    scheme, _, endpoint = url.partition("://")
    host = endpoint.rpartition(":")[0].strip("[]")
    if scheme == "ipc" or host in ("localhost", "lo"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
