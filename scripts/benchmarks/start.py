"""How long a run waits for its worker: from the start document in the callback to its acknowledgement."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tiledwriter.testing import SupervisorProcess, TiledServer

from .documents import run_of
from .rounds import OURS, Figure, Rounds
from .service import Service, connected_publisher

LATER = 10  # runs after the first


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """The first run of a supervisor, and later ones: the worker is there, and has made the start document durable."""
    later = 2 if quick else LATER
    with tempfile.TemporaryDirectory() as place, TiledServer(Path(place) / "tiled") as server:
        places = (Path(place) / str(number) for number in range(rounds + 1))
        values = Rounds({OURS: lambda: _runs(next(places), server, later)}).run(rounds)
        yield Figure("first run of a supervisor", "ms", values["first"])
        yield Figure("later runs", "ms", values["later"], budget=100.0)
        yield Figure("slowest of the later runs", "ms", values["slowest"])


def _runs(place: Path, server: TiledServer, later: int) -> Mapping[str, float]:
    place.mkdir()
    with SupervisorProcess(place / "journals", server) as supervisor:
        publisher = connected_publisher(supervisor, place / "spool")
        try:
            service = Service(server, supervisor, publisher)
            first, *others = (_started(service) for _ in range(1 + later))
        finally:
            publisher.close(timeout=0)
    return {"first": first, "later": sorted(others)[len(others) // 2], "slowest": max(others)}


def _started(service: Service) -> float:
    """Milliseconds; the run is written before the next one begins."""
    start, *rest = run_of(1)
    began = time.perf_counter()
    service.publisher(*start)
    assert service.publisher.flush(60)
    seconds = time.perf_counter() - began
    service.publish(rest)
    service.wait_written(str(start[1]["uid"]))
    return 1e3 * seconds
