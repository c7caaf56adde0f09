"""Another try for runs in quarantine: asked for by a file beside the journal, which a supervisor looks for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ._journal import SUFFIX, Journal
from ._lifecycle import State

REQUEST_SUFFIX: Final = ".retry"

_COUNTED: Final = "repairs"  # how often the writer has mended what; a new try begins at none


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
    """The journals in a directory whose runs are to be tried again, by name."""
    found = sorted(directory.glob(f"*{SUFFIX}{REQUEST_SUFFIX}"))
    return [path.with_suffix("") for path in found if not path.name.startswith((".", "_"))]


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
