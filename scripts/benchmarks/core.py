"""What the pure core costs per event: normalizer and run writer, without a server."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from unittest.mock import MagicMock

from bluesky_tiled_plugins.writing import tiled_writer as peer

from tiledbroker import Encoder, Record, decode
from tiledwriter.mapping._fold import Fold
from tiledwriter.mapping._writing_options import WritingOptions

from .documents import Document, Emitted, run_of
from .rounds import OURS, Figure, Rounds

PEER = "bluesky-tiled-plugins"


def measure(*, rounds: int, quick: bool) -> Iterator[Figure]:
    """Events of 5, 50 and 500 keys."""
    for keys, events in ((5, 5_000), (50, 1_000), (500, 200)):
        emitted = run_of(events // (5 if quick else 1), keys)
        count = len(emitted) - 3
        sides = {
            OURS: lambda emitted=emitted, count=count: _ours(emitted, count),
            PEER: lambda emitted=emitted, count=count: _peer(emitted, count),
        }
        for values in Rounds(sides).run(rounds).values():
            what = f"events of {keys} keys, normalizer and run writer"
            yield Figure(what, "us per event", values, budget=1 / 15 if keys == 5 else None, peer=PEER)
            if keys == 5:
                yield Figure(f"{what}, ours", "us per event", {OURS: values[OURS]}, budget=20.0)


class Folding:
    """A run's way through the core as a worker has it: from the journal's bytes on, a batch of thousands at a time.

    `seconds` of processor time are what it has taken so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._encoder = Encoder()
        self._fold: Fold | None = None

    def feed(self, documents: Iterable[Document]) -> None:
        """Further documents of the run."""
        records = self._records(documents)
        if self._fold is None:
            self._fold = Fold(decode(records[0].body)["uid"], WritingOptions(), 16)
        began = time.process_time()
        operations = self._fold.feed(records)
        self.seconds += time.process_time() - began
        assert operations, self._fold.error
        assert self._fold.error is None

    def _records(self, documents: Iterable[Document]) -> list[Record]:
        first = 0 if self._fold is None else self._fold.cursor
        bodies = [(name, self._encoder.encode(doc)) for name, doc in documents]
        return [Record(first + i, name, 0.0, zlib.crc32(body), body) for i, (name, body) in enumerate(bodies)]


def _ours(emitted: Emitted, events: int) -> Mapping[str, float]:
    folding = Folding()
    folding.feed(emitted)
    return {"core": 1e6 * folding.seconds / events}


def _peer(emitted: Emitted, events: int) -> Mapping[str, float]:
    """Its own classes, with a client that does nothing."""
    stream, run = MagicMock(item={"id": "primary"}), MagicMock()
    run.create_container.return_value.base = stream
    client: Any = MagicMock()
    client.create_container.return_value = run
    writer = peer._RunWriter(client, batch_size=10_000)
    normalizer = peer.RunNormalizer()
    normalizer.subscribe(writer)
    began = time.process_time()
    for name, doc in emitted:
        normalizer(name, doc)
    return {"core": 1e6 * (time.process_time() - began) / events}
