"""Whether a document costs more in a long run than in a short one, on each leg of its way."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

from tiledwriter.mapping._fold import BATCH_DOCUMENTS

from .core import Folding
from .documents import stream_of
from .rounds import OURS, Along, Figure, Rounds
from .service import Service, service

DOCUMENTS = (1_000, 10_000, 100_000, 1_000_000)
COMPARED = (10_000, 1_000_000)
BUDGET = 1.2
ROUNDS = 2  # at most: the longest run takes minutes


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """Microseconds per document, on average over all of a run; each leg from the first document on, wherever it is.

    callback: processor time in the callback; then the time with all that it waits for, which is for the interpreter
    while documents are shipped: a run of 10,000 is over before its worker is there. durable: until the last is
    acknowledged. writing: until the run is in Tiled, complete. core: the normalizer and the run writer alone.
    """
    sizes = DOCUMENTS[: 2 if quick else None]
    with tempfile.TemporaryDirectory() as place, service(Path(place)) as running:
        _through_all(running, sizes[0])
        by_leg: dict[str, dict[int, list[float]]] = {}
        sides = {str(size): lambda size=size: {**_through_all(running, size), **_core(size)} for size in sizes}
        for leg, values in Rounds(sides).run(min(rounds, ROUNDS), warm_up=False).items():
            by_leg[leg] = {int(size): of_size for size, of_size in values.items()}
            for size, of_size in by_leg[leg].items():
                yield Figure(leg, "us per document", {OURS: of_size}, along=Along("documents per run", size))
    short, long = COMPARED
    for leg, by_size in by_leg.items():
        if long in by_size:
            what = f"{leg}: a document of a run of {long:,}, compared with one of {short:,}"
            ratio = [a / b for a, b in zip(by_size[long], by_size[short], strict=True)]
            yield Figure(what, "x", {OURS: ratio}, BUDGET)


def _through_all(running: Service, size: int) -> Mapping[str, float]:
    in_callback = computing = 0.0
    run_uid = ""
    began = time.perf_counter()
    for name, doc in stream_of(size - 3):
        run_uid = run_uid or str(doc["uid"])
        called, began_to_compute = time.perf_counter(), time.thread_time()
        running.publisher(name, doc)
        computing += time.thread_time() - began_to_compute
        in_callback += time.perf_counter() - called
    assert running.publisher.flush(600)
    durable = time.perf_counter() - began
    running.wait_written(run_uid)
    written = time.perf_counter() - began
    legs = {"callback": computing, "callback, waiting included": in_callback, "durable": durable, "writing": written}
    return {leg: 1e6 * seconds / size for leg, seconds in legs.items()}


def _core(size: int) -> Mapping[str, float]:
    documents = stream_of(size - 3)
    folding = Folding()
    while batch := list(islice(documents, BATCH_DOCUMENTS)):
        folding.feed(batch)
    return {"core": 1e6 * folding.seconds / size}
