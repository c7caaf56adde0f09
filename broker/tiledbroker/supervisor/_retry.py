"""Retries of runs in quarantine, requested by a file next to the journal that the supervisor finds.

Requests to Tiled are retried elsewhere: see `tiledwriter.catalog`.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from ..log import SUFFIX, Journal
from ._lifecycle import State

REQUEST_SUFFIX: Final = ".retry"

_REPAIR_COUNTS_KEY: Final = "repairs"
_REQUEST_NAME: Final = SUFFIX + REQUEST_SUFFIX
# Age in seconds from which a modification time of the directory is reliable, see `RetryWatch.find_requests`.
_MTIME_GRANULARITY_SECONDS: Final = 2.0
# A multiple of the time that a scan takes, so that scanning takes 1 % of the time however many journals there are.
_PAUSE_PER_SCAN_TIME: Final = 100


def request_retry(journal: Path) -> None:
    """Request a retry of the run from the supervisor of the journal's directory.

    Parameters
    ----------
    journal
        Path of the run's journal.

    Raises
    ------
    OSError
        The request file cannot be made.
    """
    os.close(os.open(_request_of(journal), os.O_CREAT | os.O_WRONLY, 0o600))


def withdraw_retry(journal: Path) -> None:
    """Remove a retry request if there is one.

    Parameters
    ----------
    journal
        Path of the run's journal.

    Raises
    ------
    OSError
        The request file cannot be removed.
    """
    _request_of(journal).unlink(missing_ok=True)


def retry_is_requested(journal: Path) -> bool:
    """Return whether a retry of the run is requested; its recorded failure no longer counts then."""
    return _request_of(journal).exists()


def retry_requests(directory: Path) -> list[Path]:
    """Return the journals in a directory whose runs have a retry request, sorted by name.

    Raises
    ------
    OSError
        The directory cannot be read.
    """
    with os.scandir(directory) as entries:
        names = [entry.name for entry in entries if entry.name.endswith(_REQUEST_NAME)]
    return [directory / name.removesuffix(REQUEST_SUFFIX) for name in sorted(names) if not name.startswith((".", "_"))]


class RetryWatch:
    """Finds retry requests in a directory. Scans only after a change, and at most 1 % of the time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # Modification time of the directory in ns at a scan that found nothing and can have missed nothing.
        self._scanned_mtime_ns: int | None = None
        self._next_at = 0.0

    def find_requests(self) -> list[Path]:
        """Return the journals with a retry request; empty if nothing changed or the last scan was too recent.

        Raises
        ------
        OSError
            The directory cannot be read.
        """
        began = time.monotonic()
        if began < self._next_at:
            return []
        changed = self._directory.stat().st_mtime_ns
        if changed == self._scanned_mtime_ns:
            return []
        found = retry_requests(self._directory)
        self._next_at = began + _PAUSE_PER_SCAN_TIME * (time.monotonic() - began)
        # A later change may get the same modification time as a very recent one, and requests that were found may have
        # to wait. In both cases scan again.
        settled = time.time() - changed / 1e9 > _MTIME_GRANULARITY_SECONDS
        self._scanned_mtime_ns = changed if settled and not found else None
        return found


def clear_failure(journal: Path, *, lock_timeout: float = 2.0) -> bool:
    """Take a run out of quarantine so that it is resumed where it stopped.

    Parameters
    ----------
    journal
        Path of the run's journal.
    lock_timeout
        Seconds to wait for the journal's lock.

    Returns
    -------
    bool
        False if the run is not in quarantine.

    Raises
    ------
    JournalLocked
        The run's worker is still running and must end first.
    JournalInvalid
        The journal cannot be used.
    """
    with Journal(journal, "write", lock_timeout=lock_timeout) as journal_file, journal_file.atomic():
        if journal_file.outcome != State.FAILED.value:
            return False
        reason = journal_file.get("reason", "")
        # With the old counts, the run would fail again at its first repair.
        for key in ("outcome", "reason", _REPAIR_COUNTS_KEY):
            journal_file.set(key, None)
        # The facility's normalizer may have been mended since.
        journal_file.request_revision()
        journal_file.note("retry requested", reason=reason)
    return True


def _request_of(journal: Path) -> Path:
    return journal.with_name(journal.name + REQUEST_SUFFIX)
