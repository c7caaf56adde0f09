"""Unfinished journals whose runs this host may not write yet, because it has not claimed them."""

from __future__ import annotations

from pathlib import Path

from ._journal_facts import JournalFacts
from ._run_owner import RunOwner


class UnclaimedJournals:
    """Leaves journals as they are until this host has claimed their runs.

    Parameters
    ----------
    owner
        Tells which runs are this host's.
    """

    def __init__(self, owner: RunOwner) -> None:
        self._owner = owner
        self._journals: dict[str, Path] = {}

    def __len__(self) -> int:
        return len(self._journals)

    def may_write(self, facts: JournalFacts) -> bool:
        """Return whether this host may write a run; a complete run is no other host's any more."""
        return facts.complete or facts.unavailable or self._owner.owns(facts.uid)

    def add(self, facts: JournalFacts) -> None:
        """Keep a journal until this host has claimed its run."""
        self._journals[facts.uid] = facts.journal
        self._owner.want(facts.uid)

    def take_claimed(self) -> list[Path]:
        """Remove and return the journals of runs that this host has claimed since they were added."""
        return [self._journals.pop(uid) for uid in list(self._journals) if self._owner.owns(uid)]
