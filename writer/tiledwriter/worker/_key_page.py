"""How workers learn which API key to use: a page of memory that the supervisor writes and its workers read."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import httpx
import msgspec

from .._errors import NotProcessed, Paused
from ._line_page import LinePage

_FIRST_ANSWER_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.02
# A character takes six bytes at most.
_MAX_TEXT_CHARACTERS: Final = 500


class KeyState(str, Enum):
    """What a worker is to do: wait until Tiled was asked, wait for Tiled or for a person, or use credentials."""

    ASKING = "asking"
    AWAY = "away"
    PAUSED = "paused"
    CONFIGURED = "configured"
    OWN = "own"


@dataclass(frozen=True)
class KeyPage(LinePage):
    """What workers are to do, and the key that they use."""

    def publish(self, state: KeyState, text: str = "") -> None:
        """Tell the workers what to do: with `OWN` the key to use, else why they have to wait."""
        self.append_line(msgspec.json.encode((state.value, text[:_MAX_TEXT_CHARACTERS])))

    def read(self) -> tuple[KeyState, str]:
        """Return what was published last."""
        line = self.read_last_line()
        if not line:
            return KeyState.ASKING, ""
        state, text = msgspec.json.decode(line, type=tuple[str, str])
        return KeyState(state), text

    def find_key(self) -> str | None:
        """Return the key to use; None to use the credentials that are configured.

        Raises
        ------
        NotProcessed
            Nothing may be written yet; `Paused` if a person must intervene.
        """
        deadline = time.monotonic() + _FIRST_ANSWER_SECONDS
        while True:
            state, text = self.read()
            if state is KeyState.OWN:
                return text
            if state is KeyState.CONFIGURED:
                return None
            if state is KeyState.PAUSED:
                raise Paused(text)
            if state is KeyState.AWAY or time.monotonic() >= deadline:
                raise NotProcessed(text or "Tiled has not answered the supervisor yet")
            time.sleep(_POLL_SECONDS)


class PageAuth(httpx.Auth):
    """Gives each request the key that is on a page at that moment, so that a renewed key is used at once."""

    def __init__(self, page: KeyPage) -> None:
        self._page = page

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the key to the request.

        Raises
        ------
        Paused
            There is no key any more, so that the worker has to connect again.
        """
        key = self._page.find_key()
        if key is None:
            raise Paused("The supervisor's own API key is no longer used.")
        request.headers["Authorization"] = f"Apikey {key}"
        yield request
