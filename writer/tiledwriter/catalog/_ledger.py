"""Progress of a run that is written while it is measured, for as long as the process lives."""

from __future__ import annotations

import logging
from typing import Any

from tiledbroker import NodeProgress

log = logging.getLogger(__name__)


class MemoryLedger:
    """What `TiledCatalog` keeps in a journal elsewhere. Notes go to the log."""

    def __init__(self, run_uid: str) -> None:
        self._run_uid = run_uid
        self._progress: dict[str, NodeProgress] = {}
        self._values: dict[str, Any] = {}

    @property
    def stopped(self) -> bool:
        """Whether the run's stop document is known: it may come, as nothing else tells that the run has ended."""
        return True

    def progress(self) -> dict[str, NodeProgress]:
        """How far each node is."""
        return dict(self._progress)

    def set_progress(self, node: str, rows: int, intent: int | None = None) -> None:
        """Record what the server holds of a node, and up to where the request sent next would bring it."""
        self._progress[node] = NodeProgress(rows, intent)

    def drop_progress(self, node: str) -> None:
        """Forget a node that the server does not hold any more."""
        self._progress.pop(node, None)

    def note(self, event: str, **detail: Any) -> None:
        """Log what happened to the run."""
        log.info("Run %s: %s %s", self._run_uid, event, detail)

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the run's state."""
        return self._values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Keep a value in the run's state."""
        self._values[key] = value
