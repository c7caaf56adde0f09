"""Which runs this host may read and write, as sources and the supervisor ask for it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol


class RunOwner(Protocol):
    """Tells which runs are this host's. All methods can be called from any thread, and none of them waits."""

    def owns(self, run_uid: str) -> bool:
        """Return whether this host may write a run at this moment."""

    def is_others(self, run_uid: str) -> bool:
        """Return whether another host that may be alive has a run."""

    def want(self, run_uid: str) -> None:
        """Try to get a run, as soon as no other host has it."""

    def unwant(self, run_uid: str) -> None:
        """Do not try to get a run any more."""

    def remove_claim(self, run_uid: str) -> None:
        """Note that a run is complete, and that nobody need have it any more."""

    def note_open_runs(self, count: int) -> None:
        """Note how many of this host's runs are not complete, so that hosts with fewer get the next ones."""

    def listen(self, on_change: Callable[[Collection[str]], None]) -> None:
        """Have a function called, in another thread, with the runs of which there may be something new to know."""


class SoleOwner:
    """The owner of a host that has all runs, since no other one serves at the same time."""

    def owns(self, run_uid: str) -> bool:  # noqa: ARG002  any run
        """Return True."""
        return True

    def is_others(self, run_uid: str) -> bool:  # noqa: ARG002  any run
        """Return False."""
        return False

    def want(self, run_uid: str) -> None:
        """Do nothing."""

    def unwant(self, run_uid: str) -> None:
        """Do nothing."""

    def remove_claim(self, run_uid: str) -> None:
        """Do nothing."""

    def note_open_runs(self, count: int) -> None:
        """Do nothing."""

    def listen(self, on_change: Callable[[Collection[str]], None]) -> None:
        """Do nothing: nothing changes."""
