"""The look at Tiled from the start of the service until it answers. The supervisor serves publishers meanwhile."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

import httpx

from tiledbroker.supervisor import TILED_GRACE_SECONDS

from .._config import Settings
from ._credentials import find_server

log = logging.getLogger("tiledwriter.supervisor")

_TIMEOUT_SECONDS: Final = 5.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 5.0


class TiledPresence:
    """Asks Tiled for an answer in a thread, again and again until there is one; also a context manager.

    There is one warning if no answer has come within `TILED_GRACE_SECONDS`, and then one line when it comes. Any answer
    counts, except one of a server that says that it is out of service (5xx): the key, the version and the container are
    for `check` and for the workers to judge.

    Parameters
    ----------
    settings
        Address of Tiled. Nobody is asked if the profile runs Tiled in this process.
    note
        Is told what each request has found: "", or the reason why there was no answer.
    check_command
        Command that says more, for the warning.
    """

    def __init__(self, settings: Settings, note: Callable[[str], None], check_command: str) -> None:
        self._uri, self._verify = find_server(settings)
        self._headers = {name: value.get_secret_value() for name, value in settings.headers.items()}
        self._note = note
        self._check_command = check_command
        self._stopping = threading.Event()

    def __enter__(self) -> TiledPresence:
        if self._uri is not None:
            threading.Thread(target=self._run, args=(self._uri,), name="tiledwriter-first-contact", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Not joined: the last request may take `_TIMEOUT_SECONDS`.
        self._stopping.set()

    def _run(self, uri: str) -> None:
        # A profile's URI may hold a key.
        shown = uri.partition("?")[0]
        warn_at, has_warned = time.monotonic() + TILED_GRACE_SECONDS, False
        while problem := self._find_problem(uri):
            self._note(problem)
            if not has_warned and time.monotonic() >= warn_at and not self._stopping.is_set():
                has_warned = True
                log.warning(
                    "Tiled at %s cannot be reached (%s). Documents are journaled meanwhile, and written once it can. "
                    "More by: `%s`",
                    shown,
                    problem,
                    self._check_command,
                )
            if self._stopping.wait(_PAUSE_SECONDS if has_warned else _FIRST_PAUSE_SECONDS):
                return
        self._note("")
        if has_warned:
            log.info("Tiled at %s answers now.", shown)

    def _find_problem(self, uri: str) -> str:
        """Ask once, and return "", or the reason why there was no answer."""
        try:
            status = httpx.get(uri, headers=self._headers, timeout=_TIMEOUT_SECONDS, verify=self._verify).status_code
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        return f"it answers {status}" if status >= 500 else ""
