"""The whole path, as benchmarks use it: a Tiled server, a supervisor, a publisher that is connected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiledbroker import ZMQPublisher
from tiledwriter.testing import Storage, SupervisorProcess, TiledServer, journal_of, wait_until

from .documents import Emitted, uid_of

PATIENCE = 900.0


@dataclass
class Service:
    """All of it, running."""

    server: TiledServer
    supervisor: SupervisorProcess
    publisher: ZMQPublisher

    def publish(self, emitted: Emitted) -> str:
        """Hand a run over; returns its uid."""
        for name, doc in emitted:
            self.publisher(name, doc)
        return uid_of(emitted)

    def wait_written(self, run_uid: str) -> None:
        """Until the run is in Tiled, complete."""
        assert self.publisher.wait_written(run_uid, PATIENCE), f"Run {run_uid} is not written."

    def rows(self, run_uid: str) -> int:
        """How many rows of the run's stream Tiled has confirmed."""
        return confirmed(self.supervisor, run_uid)


@contextmanager
def service(place: Path, *, storage: Storage = "sqlite", readable: Sequence[Path] = ()) -> Iterator[Service]:
    """Start everything in a directory, and stop it in the end."""
    with (
        TiledServer(place / "tiled", readable=readable, storage=storage) as server,
        SupervisorProcess(place / "journals", server) as supervisor,
    ):
        publisher = connected_publisher(supervisor, place / "spool")
        try:
            yield Service(server, supervisor, publisher)
        finally:
            publisher.close(timeout=0)


def connected_publisher(supervisor: SupervisorProcess, spool: Path, **options: Any) -> ZMQPublisher:
    """A publisher that the supervisor has answered."""
    publisher = ZMQPublisher(supervisor.address, spool_dir=spool, **options)
    wait_until(lambda: publisher.status().connected, 60, "the supervisor answers")
    return publisher


def confirmed(supervisor: SupervisorProcess, run_uid: str) -> int:
    """How many rows Tiled has said to have, by the journal."""
    with journal_of(supervisor.journal_dir, run_uid) as journal:
        return sum_of_rows(journal.progress())


def sum_of_rows(progress: Mapping[str, Any]) -> int:
    """Of the tables of a run."""
    return sum(node.rows for path, node in progress.items() if path.endswith("/internal"))
