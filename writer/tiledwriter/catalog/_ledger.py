"""Store of the progress of a run: what `TiledCatalog` needs of a journal, and a replacement in memory."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from tiledbroker import NodeProgress

log = logging.getLogger(__name__)


class Ledger(Protocol):
    """Store of a run's progress: the part of `tiledbroker.Journal` that `TiledCatalog` uses."""

    @property
    def stopped(self) -> bool: ...
    def progress(self) -> dict[str, NodeProgress]: ...
    def set_progress(self, node: str, rows: int, intent: int | None = None, *, synced: bool = True) -> None: ...
    def drop_progress(self, node: str) -> None: ...
    def note(self, event: str, **detail: Any) -> object: ...
    def get(self, key: str, default: Any = None) -> Any: ...
    def set(self, key: str, value: Any) -> None: ...
    def atomic(self) -> AbstractContextManager[None]: ...


class MemoryLedger:
    """Ledger of a run that the acquisition process writes itself, which lasts as long as the process.

    Notes go to the log.

    Parameters
    ----------
    run_uid
        Uid of the run, for log messages.
    """

    def __init__(self, run_uid: str) -> None:
        self._run_uid = run_uid
        self._progress: dict[str, NodeProgress] = {}
        self._values: dict[str, Any] = {}

    @property
    def stopped(self) -> bool:
        """Always True: only the stop document itself tells that the run has ended, so nothing must wait for it."""
        return True

    def progress(self) -> dict[str, NodeProgress]:
        """Return the progress of each node by path."""
        return dict(self._progress)

    def set_progress(
        self,
        node: str,
        rows: int,
        intent: int | None = None,
        *,
        synced: bool = True,  # noqa: ARG002  there is nothing on a disk
    ) -> None:
        """Record the progress of a node.

        Parameters
        ----------
        node
            The node's path.
        rows
            Number of rows that the server has confirmed.
        intent
            Number of rows after the unresolved request; None if no request is unresolved.
        synced
            Without effect here; see `Journal.set_progress`.
        """
        self._progress[node] = NodeProgress(rows, intent)

    def drop_progress(self, node: str) -> None:
        """Forget a node that the server no longer holds."""
        self._progress.pop(node, None)

    def note(self, event: str, **detail: Any) -> None:
        """Log an event of the run, with details."""
        log.info("Run %s: %s %s", self._run_uid, event, detail)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value of the run's state, or `default`."""
        return self._values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Set a value of the run's state."""
        self._values[key] = value

    def atomic(self) -> AbstractContextManager[None]:
        """Return a context in which all changes succeed or fail together; in memory, none fails."""
        return nullcontext()
