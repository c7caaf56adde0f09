"""Refuses requests under names that are not this service's, so that no web site can read the status page.

A site may make its own name point to this host while somebody looks at it (DNS rebinding). To the browser, the status
page then belongs to that site. But the request has the site's name in it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_MISDIRECTED: Final = 421


class KnownHosts:
    """ASGI middleware that lets through requests to addresses, to this host by its local name, and to given names.

    Parameters
    ----------
    app
        The application.
    names
        Other names, such as that under which a proxy passes requests on.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = _without_port(Headers(scope=scope).get("host", "").strip().lower())
            if not (host in self._names or host.endswith(".localhost") or _is_address(host)):
                text = f"{host!a} is not a name of this service. If it is that of its proxy, add it to http_names.\n"
                await PlainTextResponse(text, _MISDIRECTED)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and not name.endswith(":") else host


def _is_address(host: str) -> bool:
    """Return True for an IP address, for which no site needs a name server."""
    try:
        ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return False
    return True
