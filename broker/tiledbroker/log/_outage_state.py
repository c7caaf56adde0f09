"""What a journal's state says of the outage of Tiled that its run meets, so that the next worker continues it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from ._journal import Journal
    from ._run_reader import RunReader

_KEY: Final = "outage"


class OutageState(msgspec.Struct, frozen=True, kw_only=True):
    """The outage of Tiled that a run meets.

    Attributes
    ----------
    entry
        Number of its entry of the history, for `Journal.revise_note`.
    since
        Unix time of its beginning, in seconds.
    reason
        Why Tiled refused a request last.
    away
        False if Tiled refuses only some requests.
    workers
        Number of workers that have met it.
    parked
        Number of these workers that ended because of it.
    """

    entry: int
    since: float
    reason: str
    away: bool
    workers: int = 1
    parked: int = 0


def read_outage(journal: RunReader) -> OutageState | None:
    """Return the outage that a run meets; None if there is none, or if what is recorded is none."""
    value = journal.get(_KEY)
    try:
        return None if value is None else msgspec.convert(value, OutageState)
    except msgspec.ValidationError:
        return None


def record_outage(journal: Journal, outage: OutageState | None) -> None:
    """Record the outage that a run meets; None removes it."""
    journal.set(_KEY, None if outage is None else msgspec.to_builtins(outage))
