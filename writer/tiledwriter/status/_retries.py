"""Retries of runs in quarantine from the page, for those who have the token."""

from __future__ import annotations

import hmac
import time
from collections import deque
from pathlib import Path
from typing import Final

from tiledbroker.log import find_run_file
from tiledbroker.supervisor import Snapshot, request_retry

from ._options import TokenFileError, read_token

# Wrong tokens within a minute after which no token is looked at, so that guessing takes ages.
_MAX_WRONG_TOKENS: Final = 10
_MINUTE_SECONDS: Final = 60.0


class RetryRefused(Exception):
    """Raised when a retry is not requested.

    Attributes
    ----------
    status
        HTTP status of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RetryDesk:
    """Checks tokens, and passes retries on to the supervisor as `tiledwriter-journal retry` does.

    Parameters
    ----------
    journal_dir
        Journal directory of the supervisor.
    token_file
        File with the token; it is read each time, so that it can be changed.
    """

    def __init__(self, journal_dir: Path, token_file: Path) -> None:
        self._journal_dir = journal_dir
        self._token_file = token_file
        self._wrong: deque[float] = deque(maxlen=_MAX_WRONG_TOKENS)

    def check_token(self, token: str) -> None:
        """Raise `RetryRefused` unless this is the token in the file."""
        now = time.monotonic()
        if len(self._wrong) == _MAX_WRONG_TOKENS and now - self._wrong[0] < _MINUTE_SECONDS:
            raise RetryRefused(429, "There were too many wrong tokens. Wait a minute.")
        try:
            expected = read_token(self._token_file)
        except TokenFileError as error:
            raise RetryRefused(503, f"No token can be checked: {error}.") from error
        if not hmac.compare_digest(token.strip().encode("utf-8", "replace"), expected.encode()):
            self._wrong.append(now)
            raise RetryRefused(403, "The token is wrong. Nothing was done.")

    def request_retry(self, uid: str, snapshot: Snapshot | None) -> None:
        """Request the retry of a run that the supervisor has in quarantine; raise `RetryRefused` for any other."""
        if snapshot is None:
            raise RetryRefused(503, "The supervisor does not answer, so it cannot be asked. Nothing was done.")
        failed = {run.uid for run in (*snapshot.runs.troubled, *snapshot.runs.open) if run.state == "failed"}
        if uid not in failed:
            raise RetryRefused(409, "The supervisor has no such run in quarantine. Nothing was done.")
        journal = find_run_file(self._journal_dir, uid)
        if not journal.is_file():
            raise RetryRefused(409, f"There is no journal {journal}. Nothing was done.")
        try:
            request_retry(journal)
        except OSError as error:
            raise RetryRefused(503, f"The retry cannot be requested: {error}.") from error
