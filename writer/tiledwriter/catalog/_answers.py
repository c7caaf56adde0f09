"""Sorts Tiled's answers: what was carried out, what was not, what is unknown, and what was not said by Tiled at all."""

from __future__ import annotations

from typing import Any, Final

import httpx

from .._errors import Ambiguous, Refused, ServerError

_PAUSE_STATUSES: Final = frozenset({401, 403})
_AMBIGUOUS_STATUSES: Final = frozenset({408})
_JSON: Final = "application/json"
# One of these is in every JSON object that Tiled answers to the requests that we send.
_FIELDS_OF_ANSWERS: Final = frozenset({"id", "data", "data_type", "shape"})


class NotProcessed(ServerError):
    """Raised when a request certainly had no effect; `retry_after` in seconds, if the server named it."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Paused(NotProcessed):
    """Raised when nothing can be written until a human changes something, such as our credentials."""


class ServerFailed(Ambiguous):
    """Raised when the server answered 500: something broke there, perhaps because of what was asked."""


class NotTiled(Ambiguous):
    """Raised when something in front of Tiled answered: a redirect, or a page of a gateway. `status` is its status.

    A gateway may replace an answer of Tiled by its own, so it is not known whether the request was carried out.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


def sort_answer(response: httpx.Response, media_type: str = _JSON) -> None:
    """Return if Tiled carried out the request; else raise what the answer means.

    Parameters
    ----------
    media_type
        What a good answer is made of.

    Raises
    ------
    NotProcessed, Paused
        The request had no effect, and may be sent again.
    Refused
        Tiled will not do it.
    NotTiled, Ambiguous
        It may have been carried out.
    """
    status = response.status_code
    if 200 <= status < 300:
        if not _is_answer_of_tiled(response, media_type):
            raise NotTiled(status, f"this is no answer of Tiled, but {_media_type(response) or 'nothing'}")
        return
    if 300 <= status < 400:
        raise NotTiled(status, f"redirected to {response.headers.get('Location', 'nowhere')}")
    detail = _detail(response)
    text = response.reason_phrase if detail is None else detail
    if status == 429:
        raise NotProcessed(f"429: {text}", _seconds(response.headers.get("Retry-After")))
    if status in _PAUSE_STATUSES:
        raise Paused(f"{status}: {text}")
    if status in _AMBIGUOUS_STATUSES or status > 500:
        raise Ambiguous(f"{status}: {text}")
    if detail is None:
        raise NotTiled(status, f"{text}, and not in Tiled's words")
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


def _detail(response: httpx.Response) -> str | None:
    """What Tiled says about an error; None if it was not Tiled that answered."""
    if _media_type(response) != _JSON:
        return None
    try:
        content: Any = response.json()
    except ValueError:
        return None
    return str(content["detail"])[:2000] if isinstance(content, dict) and "detail" in content else None


def _seconds(header: str | None) -> float | None:
    try:
        seconds = float(header or "")
    except ValueError:
        return None
    return min(seconds, 600.0) if seconds >= 0 else None
