"""Requests of the pre-flight checks: short timeouts, a few retries, and questions about the key."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Final

import httpx
import msgspec
import tenacity

from .._errors import Ambiguous, NotProcessed, Paused, Refused, ServerError, ServerFailed
from ._account import effective_scopes
from ._connection import Client, quote_segments, sort_transport_error
from ._responses import raise_for_response

_TIMEOUT_SECONDS: Final = 20.0
_ATTEMPTS: Final = 3
_PAUSE_SECONDS: Final = 0.5
_JSON: Final = "application/json"


class PreflightRequests:
    """Requests to a Tiled server, below the container that runs are written to.

    Parameters
    ----------
    client
        The client's HTTP context, and the path of the container.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def ask(
        self,
        method: str,
        endpoint: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        content_type: str = _JSON,
        media_type: str = _JSON,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        attempts: int = _ATTEMPTS,
    ) -> httpx.Response:
        """Send a request, and send it again a few times if Tiled neither carries it out nor refuses it.

        The path is relative to the container. An append may be done twice.

        Raises
        ------
        ServerError
            Tiled did not carry it out; see `raise_for_response`.
        """
        body = msgspec.json.encode(json) if json is not None else content
        # After an answer of 500 the server closes the connection, on which the next request would fail.
        sent = {"Accept-Encoding": "identity", "Connection": "close", **(headers or {})}
        if body is not None:
            sent["Content-Type"] = content_type

        def once() -> httpx.Response:
            response = self._send(method, endpoint, path, content=body, headers=sent, params=params)
            raise_for_response(response, media_type)
            return response

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_passing),
            stop=tenacity.stop_after_attempt(attempts),
            wait=tenacity.wait_fixed(_PAUSE_SECONDS),
            reraise=True,
        )
        answer: httpx.Response = retrying(once)
        return answer

    def ask_status(
        self, method: str, endpoint: str, path: str, *, params: Mapping[str, Any], headers: Mapping[str, str]
    ) -> int:
        """Send a request once, and return the HTTP status of the answer.

        Raises
        ------
        ServerError
            There was no answer.
        """
        sent = {"Accept-Encoding": "identity", "Connection": "close", **headers}
        return self._send(method, endpoint, path, headers=sent, params=params).status_code

    def may_delete(self) -> bool | None:
        """Return whether the key may delete nodes; None if Tiled does not say.

        Tiled checks scopes before it looks for the node, so deleting one that cannot exist tells.
        """
        try:
            self.ask("DELETE", "metadata", f"tiledwriter_check_{secrets.token_hex(8)}")
        except Paused:
            return False
        except Refused as error:
            return error.status == 404 or None
        except ServerError:
            return None
        return None

    def ask_about_key(self) -> dict[str, Any] | None:
        """Return what Tiled says of the API key; None if it says nothing, as a server with a single user does."""
        return self._ask_auth("apikey")

    def ask_scopes(self) -> frozenset[str] | None:
        """Return the scopes of the key; None if Tiled does not say."""
        key, owner = self._ask_auth("apikey"), self._ask_auth("whoami")
        if key is None and getattr(self._client.context, "api_key", None) is not None:
            return None
        # Without a key there is a stored login.
        return effective_scopes(key, owner)

    def _ask_auth(self, endpoint: str) -> dict[str, Any] | None:
        try:
            response = self._send_to(f"{self._client.context.api_uri}auth/{endpoint}", "GET", headers={"Accept": _JSON})
            content = response.json() if response.status_code == 200 else None
        except (ServerError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def _send(self, method: str, endpoint: str, path: str, **arguments: Any) -> httpx.Response:
        segments = quote_segments([*self._client.path_parts, *path.split("/")])
        return self._send_to(f"{self._client.context.api_uri}{endpoint}/{segments}", method, **arguments)

    def _send_to(self, url: str, method: str, **arguments: Any) -> httpx.Response:
        try:
            response: httpx.Response = self._client.context.http_client.request(
                method, url, timeout=_TIMEOUT_SECONDS, follow_redirects=False, **arguments
            )
        except httpx.HTTPError as error:
            raise sort_transport_error(error) from error
        return response


def _is_passing(error: BaseException) -> bool:
    """Return whether the next attempt may succeed: a database that is locked for a moment, a lost answer."""
    return isinstance(error, ServerFailed | Ambiguous | NotProcessed) and not isinstance(error, Paused)
