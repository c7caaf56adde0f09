"""The look at Tiled while no worker asks it, so that an outage is noticed before the next run."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final

from tiledbroker.supervisor import TILED_GRACE_SECONDS

from .._errors import ServerError
from ..catalog import AccountRequests

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("tiledwriter.supervisor")

_TIMEOUT_SECONDS: Final = 5.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 5.0
_IDLE_PAUSE_SECONDS: Final = 60.0


class TiledPresence:
    """Asks Tiled for an answer in a thread, as long as no worker does; also a context manager.

    After the start it asks once a second until there is an answer, and then once a minute, unless a worker has had one
    in the last minute. If no answer has come for `TILED_GRACE_SECONDS`, there is one warning, and then one line when it
    comes. After that warning, and from the first later answer that does not come, it asks every five seconds. It asks
    what Tiled says of itself, as workers do when they connect, and judges the answer as they do: that of a gateway or
    of a login page is none. The key, the version and the container are for `check` and for the workers to judge.

    Parameters
    ----------
    uri
        URI of Tiled. Nobody is asked if it is None, as the profile runs Tiled in this process.
    open_client
        Returns a client for requests that may take so many seconds.
    note
        Is told what each request has found: "", or the reason why there was no answer.
    asked_at
        Returns the time (`time.monotonic`) of the last sign of Tiled that a worker has had; None if there was none.
    check_command
        Command that says more, for the warning.
    """

    def __init__(
        self,
        uri: str | None,
        open_client: Callable[[float], httpx.Client],
        note: Callable[[str], None],
        asked_at: Callable[[], float | None],
        check_command: str,
    ) -> None:
        self._uri = uri
        self._open_client = open_client
        self._note = note
        self._asked_at = asked_at
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
        pause, failing_since, has_warned = _FIRST_PAUSE_SECONDS, time.monotonic(), False
        while not self._stopping.is_set():
            if not has_warned and self._is_asked_by_workers():
                # They say what they find.
                pause, failing_since = _IDLE_PAUSE_SECONDS, math.inf
            elif problem := self._find_problem(uri):
                self._note(problem)
                if failing_since == math.inf:
                    pause, failing_since = _PAUSE_SECONDS, time.monotonic()
                if not has_warned and time.monotonic() - failing_since >= TILED_GRACE_SECONDS:
                    pause, has_warned = _PAUSE_SECONDS, True
                    self._warn(shown, problem)
            else:
                self._note("")
                if has_warned:
                    log.info("Tiled at %s answers now.", shown)
                pause, failing_since, has_warned = _IDLE_PAUSE_SECONDS, math.inf, False
            self._stopping.wait(pause)

    def _is_asked_by_workers(self) -> bool:
        asked_at = self._asked_at()
        return asked_at is not None and time.monotonic() - asked_at < _IDLE_PAUSE_SECONDS

    def _warn(self, shown: str, problem: str) -> None:
        if not self._stopping.is_set():
            log.warning(
                "Tiled at %s cannot be reached (%s). Documents are journaled meanwhile, and written once it can. "
                "More by: `%s`",
                shown,
                problem,
                self._check_command,
            )

    def _find_problem(self, uri: str) -> str:
        """Ask once, and return "", or the reason why there was no answer of Tiled."""
        try:
            with self._open_client(_TIMEOUT_SECONDS) as http_client:
                AccountRequests(http_client, uri).ask_for_users()
        except ServerError as error:
            return str(error)
        except Exception as error:
            # The thread must go on: nobody else would notice that Tiled is away.
            return f"{type(error).__name__}: {error}"
        return ""
