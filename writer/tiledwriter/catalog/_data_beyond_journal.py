"""Data of a run that Tiled has and the journal lacks: nothing of it is undone, so the run must wait or fail."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NoReturn

from .._errors import Refused, TiledHasMore
from .._names import REWRITE_SUFFIX
from ._known_nodes import KnownNode, KnownNodes, path_in_run
from ._ledger import Ledger
from ._nodes import Nodes
from ._probe import PROBE_KEY

log = logging.getLogger(__name__)


class DataBeyondJournal:
    """What Tiled has of a run beyond its journal.

    Parameters
    ----------
    nodes
        Nodes on the server.
    known
        What is known of the run's nodes.
    ledger
        Store of the run's progress.

    Attributes
    ----------
    has_stop
        True if the run has a stop document in Tiled.
    waits_for_stop
        True while operations are not applied because Tiled has a stop document that the journal lacks.
    """

    def __init__(self, nodes: Nodes, known: KnownNodes, ledger: Ledger) -> None:
        self.has_stop = False
        self.waits_for_stop = False
        self._nodes = nodes
        self._known = known
        self._ledger = ledger
        self._other_data: list[str] = []

    def add_description(self, description: str) -> None:
        """Add a description of data that Tiled has and the journal lacks."""
        self._other_data.append(description)

    def raise_tiled_has_more(self) -> NoReturn:
        """Give up waiting for documents that Tiled has and the journal lacks.

        Raises
        ------
        TiledHasMore
            Always, with a description of the data.
        """
        stop = ["a stop document"] if self.has_stop else []
        raise TiledHasMore([*self._describe_rows(), *self._other_data, *stop])

    def check_stop(self, attributes: Mapping[str, Any]) -> None:
        """Wait for the journal's stop document if the run, with these attributes, has one in Tiled already."""
        self.has_stop = attributes["metadata"].get("stop") is not None
        if self.has_stop and not self._ledger.stopped:
            self.waits_for_stop = True
            log.warning("Tiled has a stop document of this run, which the journal does not have; nothing is written.")
            self._ledger.note("tiled has more", reason="it has a stop document")

    def check_end(self, run: str) -> None:
        """Check, at the end of a run without a stop document, that Tiled does not have more of the run.

        Raises
        ------
        TiledHasMore
            Tiled has a stop document, or nodes or configuration changes that the journal does not lead to.
        """
        self.has_stop = self._nodes.read(run)["metadata"].get("stop") is not None
        # What is read may be older than the removal of a node.
        planned = [node.path for node in self._known if node.planned or node.removed]
        ours = {*planned, *(path + REWRITE_SUFFIX for path in planned), f"{run}/{PROBE_KEY}"}
        if unknown := sorted(path for path in self._nodes.below(run) if path not in ours):
            self.add_description(f"{len(unknown)} nodes, such as {path_in_run(unknown[0])}")
        if self.has_stop or self._other_data:
            self.raise_tiled_has_more()

    def _describe_rows(self) -> list[str]:
        """Describe the rows that Tiled has beyond those of the journal, one line per node."""
        beyond = []
        for node in self._known:
            if node.journaled is None:
                continue
            try:
                found = self._read_size(node)
            except Refused as error:
                if error.status != 404:
                    raise
                continue
            if found > node.journaled or node.doubt is not None or node.proof is not None:
                beyond.append(f"{found} rows in {node.path_in_run.removesuffix('/internal')}, {node.journaled} here")
        return beyond

    def _read_size(self, node: KnownNode) -> int:
        keys = self._known[node.path.removesuffix(REWRITE_SUFFIX)].keys or node.keys
        return self._nodes.size(f"{node.path}/{keys[0].name}" if keys else node.path, may_be_absent=True)
