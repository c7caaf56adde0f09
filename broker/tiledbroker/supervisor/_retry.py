"""Another try for runs in quarantine: asked for by a file beside the journal, which a supervisor looks for."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from ..log import SUFFIX, Journal
from ._lifecycle import State

REQUEST_SUFFIX: Final = ".retry"

_COUNTED: Final = "repairs"  # how often the writer has mended what; a new try begins at none
_REQUEST_NAME: Final = SUFFIX + REQUEST_SUFFIX
_SETTLED_SECONDS: Final = 2.0
_IDLE_SHARE: Final = 100  # times as long as a look takes, nobody looks again


def request_retry(journal: Path) -> None:
    """Ask whoever supervises the journal's directory to try the run again."""
    os.close(os.open(_request_of(journal), os.O_CREAT | os.O_WRONLY, 0o600))


def withdraw_retry(journal: Path) -> None:
    """There is nothing to ask for any more."""
    _request_of(journal).unlink(missing_ok=True)


def retry_is_requested(journal: Path) -> bool:
    """Whether a run is to be tried again: what became of it is open."""
    return _request_of(journal).exists()


def retry_requests(directory: Path) -> list[Path]:
    """The journals in a directory whose runs are to be tried again, by name.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(_REQUEST_NAME)]
    return [directory / name.removesuffix(REQUEST_SUFFIX) for name in sorted(names) if not name.startswith((".", "_"))]


class RetryWatch:
    """Looks for requests in a directory when something in it has changed, and for a hundredth of the time at most."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._looked_at: int | None = None  # modification time of the directory, in ns, that all is known of
        self._next_at = 0.0

    def look(self) -> list[Path]:
        """The journals whose runs are to be tried again, as far as is known without looking too often.

        Raises
        ------
        OSError
            The directory cannot be read.
        """
        began = time.monotonic()
        if began < self._next_at:
            return []
        changed = self._directory.stat().st_mtime_ns
        if changed == self._looked_at:
            return []
        found = retry_requests(self._directory)
        self._next_at = began + _IDLE_SHARE * (time.monotonic() - began)
        # The next change may have the same time as the last one; and what is found may have to wait.
        settled = time.time() - changed / 1e9 > _SETTLED_SECONDS
        self._looked_at = changed if settled and not found else None
        return found


def clear_failure(journal: Path, *, lock_timeout: float = 2.0) -> bool:
    """Take a run out of quarantine, so that it is resumed where it was; False if it is in none.

    Raises
    ------
    JournalLocked
        Its worker is still there, and has to end before.
    JournalInvalid
        The journal cannot be used.
    """
    with Journal(journal, "write", lock_timeout=lock_timeout) as opened, opened.atomic():
        if opened.get("outcome") != State.FAILED.value:
            return False
        reason = opened.get("reason", "")
        for key in ("outcome", "reason", _COUNTED):
            opened.set(key, None)
        opened.note("retry requested", reason=reason)
    return True


def _request_of(journal: Path) -> Path:
    return journal.with_name(journal.name + REQUEST_SUFFIX)
