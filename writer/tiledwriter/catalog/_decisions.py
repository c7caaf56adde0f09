"""The decisions about one run as the process that writes it makes them: in its ledger, and where other hosts find them.

Whatever depends on a decision is sent to Tiled after the decision was recorded. It goes to the store of all hosts first
and to the ledger second, so what the ledger has is never newer.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tiledbroker.ownership import DecisionStore, RunDecisions

from ._ledger import Ledger


class Decisions:
    """Decisions about one run.

    Parameters
    ----------
    ledger
        Store of the run on this host.
    store
        Store that other hosts reach; None if none can take the run over.
    """

    def __init__(self, ledger: Ledger, store: DecisionStore | None = None) -> None:
        self._ledger = ledger
        self._store = store

    @property
    def made(self) -> RunDecisions:
        """The decisions as they stand; raises `ValueError` if those in the ledger are damaged."""
        return RunDecisions.of(self._ledger.get)

    def load(self) -> None:
        """Before the run is written, take over the decisions of another host if the ledger has none.

        If the ledger has some, it has been written to since this host took the run over. Then the store gets them as
        they are: a person may have had the run retried, or documents may have come after its end.

        Raises
        ------
        StoreUnavailable
            See `DecisionStore`.
        """
        if self._store is None:
            return
        stored, own = self._store.load(), self._change()
        if own == RunDecisions() and stored is not None:
            taken = msgspec.structs.replace(stored, outcome=None).recorded()
            with self._ledger.atomic():
                for name, value in taken.items():
                    self._ledger.set(name, value)
                self._ledger.note("decisions taken over", **taken)
        elif own not in (stored, RunDecisions()):
            self._store.store(own)

    def record(self, **changes: Any) -> None:
        """Change decisions, given by name.

        Raises
        ------
        StoreUnavailable
            See `DecisionStore`.
        """
        self.share(**changes)
        recorded = self._change(**changes).recorded()
        with self._ledger.atomic():
            for name in changes:
                self._ledger.set(name, recorded.get(name))

    def share(self, **changes: Any) -> None:
        """Tell other hosts of changed decisions that the caller records in the ledger; raises as `record` does."""
        if self._store is not None:
            self._store.store(self._change(**changes))

    def _change(self, **changes: Any) -> RunDecisions:
        """Return the decisions with changes; an outcome in the ledger is that of an earlier end."""
        return msgspec.structs.replace(self.made, **{"outcome": None, **changes})
