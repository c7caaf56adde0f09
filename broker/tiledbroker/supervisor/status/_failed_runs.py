"""Runs in quarantine, also those without a worker: a bounded number by name, and the number of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from .._lifecycle import State
from ._snapshot import RunStatus

if TYPE_CHECKING:
    from ..scheduler import Run

MAX_NAMED: Final = 1_000
"""Failed runs that are remembered by name. An outage does not make runs fail, so more are rare."""


def describe_without_worker(run: Run) -> RunStatus:
    """Return a run for later looks, at which its worker and its publishers may be gone."""
    return msgspec.structs.replace(run.describe(), worker=None, publisher=None)


class FailedRuns:
    """The failed runs of a journal directory.

    Attributes
    ----------
    unnamed
        Number of failed runs beyond those that are remembered by name.
    """

    def __init__(self) -> None:
        self.unnamed = 0
        self._named: dict[str, RunStatus] = {}
        self._listed = 0
        # Runs whose journals could not be read, and that are counted as failed until they can.
        self._unavailable: set[str] = set()

    def __len__(self) -> int:
        return len(self._named) + self.unnamed

    def __iter__(self) -> Iterator[RunStatus]:
        return iter(self._named.values())

    def __contains__(self, uid: object) -> bool:
        return uid in self._named

    def add(self, run: Run) -> None:
        """Remember a run that has failed, or what has changed about it."""
        if run.uid in self._named or len(self._named) < MAX_NAMED:
            self._named[run.uid] = describe_without_worker(run)
        else:
            self.unnamed += 1

    def note_found(self, run: Run) -> None:
        """Count the run of a journal that was found as failed, or as failed no more because it can be read again."""
        if run.uid in self._unavailable:
            if run.unavailable:
                return
            self._unavailable.discard(run.uid)
            self.discard(run.uid)
        if run.unavailable:
            self._unavailable.add(run.uid)
        if run.state is State.FAILED:
            self.add(run)

    def discard(self, uid: str) -> None:
        """Forget a run that was failed and is not any more."""
        if self._named.pop(uid, None) is None:
            self.unnamed = max(0, self.unnamed - 1)

    def list_next(self, count: int) -> list[RunStatus]:
        """Return some of the named runs: with each call the next `count`, and after the last ones the first again."""
        uids = list(self._named)[self._listed : self._listed + count]
        self._listed = self._listed + count if len(uids) == count else 0
        return [self._named[uid] for uid in uids]
