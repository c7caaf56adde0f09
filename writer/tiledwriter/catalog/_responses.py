"""Classify HTTP responses: request done, not processed, refused, outcome unknown, or not a response of Tiled."""

from __future__ import annotations

from typing import Any, Final

import httpx

from .._errors import Ambiguous, NotProcessed, NotTiled, Paused, Refused, ServerFailed

_PAUSE_STATUSES: Final = frozenset({401, 403})
_AMBIGUOUS_STATUSES: Final = frozenset({408})
_JSON: Final = "application/json"
# Every JSON object that Tiled returns for the requests of this package has at least one of these keys.
_FIELDS_OF_ANSWERS: Final = frozenset({"id", "data", "data_type", "shape"})
# What FastAPI, in which Tiled and many gateways are written, says of a path or a method that no application behind it
# has. Tiled has all that this package asks for, and names the node in what it says itself.
_WITHOUT_ROUTE: Final = frozenset({"Not Found", "Method Not Allowed"})


def raise_for_response(response: httpx.Response, media_type: str = _JSON) -> None:
    """Return if Tiled carried out the request; otherwise raise the error that the response stands for.

    Parameters
    ----------
    response
        The HTTP response.
    media_type
        Expected media type of a successful response.

    Raises
    ------
    NotProcessed, Paused
        The request had no effect and may be sent again.
    Refused
        Tiled rejected the request.
    NotTiled, ServerFailed, Ambiguous
        The request may have been carried out.
    """
    status = response.status_code
    if 200 <= status < 300:
        if not _is_answer_of_tiled(response, media_type):
            raise NotTiled(status, f"this is not an answer of Tiled but {_media_type(response) or 'nothing'}")
        return
    if 300 <= status < 400:
        raise NotTiled(status, f"redirected to {response.headers.get('Location', 'nowhere')}")
    detail = _error_detail(response)
    text = response.reason_phrase if detail is None else detail
    if status == 429:
        raise NotProcessed(f"429: {text}", _parse_retry_after(response.headers.get("Retry-After")))
    if status in _PAUSE_STATUSES:
        raise Paused(f"{status}: {text}")
    if status in _AMBIGUOUS_STATUSES or status > 500:
        raise Ambiguous(f"{status}: {text}")
    if detail is None:
        raise NotTiled(status, f"{text}; this is not an answer of Tiled")
    if status == 500:
        raise ServerFailed(f"500: {detail}")
    raise Refused(status, detail)


def _is_answer_of_tiled(response: httpx.Response, media_type: str) -> bool:
    if _media_type(response) != media_type:
        return False
    if media_type != _JSON:
        return True
    try:
        content = response.json()
    except ValueError:
        return False
    return content is None or (isinstance(content, dict) and not _FIELDS_OF_ANSWERS.isdisjoint(content))


def _media_type(response: httpx.Response) -> str:
    return str(response.headers.get("Content-Type", "")).partition(";")[0].strip().lower()


def _error_detail(response: httpx.Response) -> str | None:
    """Return the error text of Tiled, at most 2000 characters; None if the response is not from Tiled."""
    if _media_type(response) != _JSON:
        return None
    try:
        content: Any = response.json()
    except ValueError:
        return None
    if not isinstance(content, dict) or "detail" not in content:
        return None
    detail = str(content["detail"])[:2000]
    return None if detail in _WITHOUT_ROUTE else detail


def _parse_retry_after(header: str | None) -> float | None:
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return min(seconds, 600.0) if seconds >= 0 else None
