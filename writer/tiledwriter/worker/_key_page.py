"""How workers learn which API key to use: a page of memory that the supervisor writes and its workers read."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum
from typing import Final

import httpx
import msgspec

from .._errors import NotProcessed, Paused

_FIRST_ANSWER_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.02
_MAX_TEXT_CHARACTERS: Final = 500
# Longer than any line: a character takes six bytes at most.
_TAIL_BYTES: Final = 4096


class KeyState(str, Enum):
    """What a worker is to do: wait until Tiled was asked, wait for Tiled or for a person, or use credentials."""

    ASKING = "asking"
    AWAY = "away"
    PAUSED = "paused"
    CONFIGURED = "configured"
    OWN = "own"


@dataclass(frozen=True)
class KeyPage:
    """A file without a name, in memory only, that a supervisor and its workers share by its descriptor.

    Lines are appended to it, of which the last complete one counts: a reader never sees a part of a key.
    """

    descriptor: int

    @classmethod
    def make(cls) -> KeyPage:
        """Return a new page. It exists until the last process that has it open has ended."""
        return cls(os.memfd_create("tiledwriter-key"))

    def close(self) -> None:
        """Close the page in this process."""
        os.close(self.descriptor)

    def publish(self, state: KeyState, text: str = "") -> None:
        """Tell the workers what to do: with `OWN` the key to use, else why they have to wait."""
        os.write(self.descriptor, msgspec.json.encode((state.value, text[:_MAX_TEXT_CHARACTERS])) + b"\n")

    def read(self) -> tuple[KeyState, str]:
        """Return what was published last."""
        size = os.fstat(self.descriptor).st_size
        tail = os.pread(self.descriptor, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        line = tail[: tail.rfind(b"\n") + 1].rstrip(b"\n").rpartition(b"\n")[2]
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
