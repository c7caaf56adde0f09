"""Builds HTTP requests; what a request has in common with an earlier one is computed once.

httpx parses the URL of each request twice, merges all headers, and looks for cookies. That takes a quarter of the
processor time of a small request.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookiejar import Cookie
from typing import Any, Final, NamedTuple, TypeAlias

import httpx

_MAX_MODELS: Final = 1000
# Headers that depend on the body; httpx adds them.
_BODY_HEADERS: Final = ("Content-Length", "Transfer-Encoding")

_Key: TypeAlias = "tuple[str, str, str | None, tuple[tuple[str, str], ...]]"


class _Model(NamedTuple):
    """What requests of the same kind have in common."""

    url: httpx.URL
    headers: httpx.Headers


class _ClientState(NamedTuple):
    """What requests take from their client."""

    headers: list[tuple[bytes, bytes]]
    cookies: list[Cookie]


class RequestBuilder:
    """Builds the requests of one client, as `httpx.Client.build_request` does.

    A request is a copy of the first one of its method, URL, query and media type, with another body, as long as the
    client's own headers and cookies are the same as then.

    Parameters
    ----------
    client
        The client that sends the requests.

    Attributes
    ----------
    client
        The same client.
    """

    def __init__(self, client: httpx.Client) -> None:
        self.client = client
        self._state = _ClientState([], [])
        self._models: dict[_Key, _Model] = {}

    def build(
        self,
        method: str,
        url: str,
        *,
        content: bytes | None,
        content_type: str | None,
        params: Mapping[str, Any] | None,
        timeout: httpx.Timeout,
    ) -> httpx.Request:
        """Return a request.

        Parameters
        ----------
        method, url
            HTTP method, and absolute URL without query.
        content, content_type
            Body and its media type; None if there is none.
        params
            Query parameters.
        timeout
            Limits of the time that its steps may take.
        """
        # The timeout is passed on as httpx itself does, because the client of a server in this process warns of a
        # `timeout` argument.
        extensions = {"timeout": timeout.as_dict()}
        key = (method, url, content_type, tuple((name, str(value)) for name, value in (params or {}).items()))
        model = self._find_model(key)
        if model is not None:
            return httpx.Request(method, model.url, headers=model.headers, content=content, extensions=extensions)
        # Do not ask for compression: most responses are short, and decoding Tiled's compressed ones would import
        # blosc2, which takes 80 ms and 13 MiB.
        headers = {"Accept-Encoding": "identity"}
        if content_type is not None:
            headers["Content-Type"] = content_type
        request = self.client.build_request(
            method, url, headers=headers, content=content, params=params, extensions=extensions
        )
        self._keep_model(key, request)
        return request

    def _find_model(self, key: _Key) -> _Model | None:
        state = _ClientState(self.client.headers.raw, list(self.client.cookies.jar))
        if state != self._state:
            self._state = state
            self._models.clear()
        return self._models.get(key)

    def _keep_model(self, key: _Key, request: httpx.Request) -> None:
        if any(cookie.expires is not None for cookie in self._state.cookies):
            # Each request has to look which cookies are still valid.
            return
        if len(self._models) >= _MAX_MODELS:
            self._models.clear()
        headers = httpx.Headers(request.headers)
        for name in _BODY_HEADERS:
            headers.pop(name, None)
        self._models[key] = _Model(request.url, headers)
