"""A run whose appends meet with faults, written by the service's machinery or by bluesky-tiled-plugins' writer."""

from __future__ import annotations

import copy
import threading
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from bluesky_tiled_plugins.writing.tiled_writer import TiledWriter as BlueskyTiledWriter
from event_model import compose_run

from tiledbroker import Encoder, Journal
from tiledwriter.mapping import _fold
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.worker._writing import RunWriting

Documents = list[tuple[str, dict[str, Any]]]

PATIENCE = 300.0


def run_of(events: int) -> Documents:
    """A complete run of one number per event."""
    run = compose_run()
    keys = {"x": {"source": "s", "dtype": "number", "dtype_numpy": "<f8", "shape": []}}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    emitted: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    emitted += [("event", stream.compose_event(data={"x": n / 2}, timestamps={"x": n})) for n in range(events)]
    return [*emitted, ("stop", run.compose_stop())]


def uid_of(documents: Documents) -> str:
    return str(documents[0][1]["uid"])


def write_ours(client: Any, documents: Documents, directory: Path, *, quiet_period: float = 1.0) -> str:
    """Write as a worker does, one document at a time; returns the outcome."""
    encoder = Encoder()
    uid = uid_of(documents)
    with Journal(directory / f"{uid}.sqlite", "create", run_uid=uid) as journal:
        for name, document in documents:
            journal.append_one(name, encoder.encode(document))
        return write_journal(client, journal, quiet_period=quiet_period)


def write_journal(client: Any, journal: Journal, *, quiet_period: float = 1.0) -> str:
    """Write what a journal holds, from wherever it is; returns the outcome."""
    ended = threading.Event()
    ends: list[tuple[str, str]] = []

    def on_end(outcome: str, reason: str) -> None:
        ends.append((outcome, reason))
        ended.set()

    options = WritingOptions(quiet_period=quiet_period)
    writing = RunWriting(journal, lambda: client, options, drain=True, on_progress=lambda _: None, on_end=on_end)
    before, _fold.MAX_PENDING_EVENT_BYTES = _fold.MAX_PENDING_EVENT_BYTES, 0  # type: ignore[misc]
    try:
        writing.start()
        ended.wait(PATIENCE)
    finally:
        writing.stop(5.0)
        _fold.MAX_PENDING_EVENT_BYTES = before  # type: ignore[misc]
    return ends[0][0] if ends and ends[0][0] else f"not in {PATIENCE:.0f} s"


def write_theirs(client: Any, documents: Documents, *, batch: int = 1) -> None:
    """Write as bluesky-tiled-plugins' TiledWriter does; what it raises ends the run."""
    writer = BlueskyTiledWriter(client, batch_size=batch)
    with suppress(Exception):
        for name, document in documents:
            writer(name, copy.deepcopy(document))


def seq_nums(client: Any, documents: Documents) -> list[int]:
    """The sequence numbers that Tiled has, in its order."""
    return [int(n) for n in client[uid_of(documents)]["primary"]["seq_num"].read()]


def judge(found: list[int], events: int) -> tuple[int, int, bool]:
    """Rows lost, rows too many, and whether they are in order."""
    counts = Counter(found)
    lost = sum(n not in counts for n in range(1, events + 1))
    return lost, len(found) - len(counts), found == sorted(found)
