"""The writing thread by itself, on a real Tiled server: what a journal or a server that fails does to it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run

from tiledbroker import Encoder, Journal
from tiledwriter import _writing as writing_module
from tiledwriter._writing import RunWriting, WritingOptions
from tiledwriter.testing import TiledServer, wait_until

pytestmark = [pytest.mark.filterwarnings("default")]  # the reading client warns about itself


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """A complete run of 20 events."""
    run = compose_run()
    stream = run.compose_descriptor(name="primary", data_keys={"x": {"source": "s", "dtype": "number", "shape": []}})
    emitted: list[tuple[str, Any]] = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    emitted += [("event", stream.compose_event(data={"x": i}, timestamps={"x": i})) for i in range(20)]
    emitted.append(("stop", run.compose_stop()))
    encoder = Encoder()
    with Journal(tmp_path / "run.sqlite", "create", run_uid=run.start_doc["uid"]) as journal:
        for name, document in emitted:
            journal.append_one(name, encoder.encode(document))
        yield journal


@pytest.fixture
def write(journal: Journal, tiled_server: TiledServer) -> Callable[[], tuple[str, str]]:
    """Writes the run; gives back the outcome and its reason."""

    def write(**options: Any) -> tuple[str, str]:
        ended = threading.Event()
        ends: list[tuple[str, str]] = []

        def on_end(outcome: str, reason: str) -> None:
            ends.append((outcome, reason))
            ended.set()

        writing = RunWriting(
            journal,
            tiled_server.client,
            WritingOptions(quiet_period=0.2, **options),
            drain=False,
            on_progress=lambda _: None,
            on_end=on_end,
        )
        writing.start()
        wait_until(ended.is_set, 60, "the run has been written")
        writing.stop(5.0)
        (end,) = ends
        return end

    return write


def seq_nums(server: TiledServer, run_uid: str) -> list[int]:
    return [int(n) for n in server.client()[run_uid]["primary"]["seq_num"].read()]


@pytest.mark.parametrize("failing", ["set_progress", "set", "note", "read", "atomic"])
def test_a_journal_disk_that_fails_for_a_while_costs_nothing(
    failing: str,
    journal: Journal,
    write: Callable[..., tuple[str, str]],
    tiled_server: TiledServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(writing_module, "DISK_PAUSE", 0.01)
    works = getattr(journal, failing)
    calls = 0

    def fails_now_and_then(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls in (1, 3, 6):
            raise sqlite3.OperationalError("database or disk is full")
        return works(*arguments, **keywords)

    monkeypatch.setattr(journal, failing, fails_now_and_then)
    assert write() == ("written", "")
    assert calls > 0 or failing == "note"  # there may be nothing to note
    assert seq_nums(tiled_server, journal.run_uid) == list(range(1, 21))


def test_the_setting_for_arrays_holds_for_the_whole_run(
    journal: Journal, write: Callable[..., tuple[str, str]]
) -> None:
    assert write(max_array_size=5) == ("written", "")
    assert journal.get("max_array_size") == 5


def test_a_run_that_is_written_already_is_left_as_it_is(
    journal: Journal, write: Callable[..., tuple[str, str]], tiled_server: TiledServer
) -> None:
    assert write() == ("written", "")
    assert write() == ("written", "")
    assert seq_nums(tiled_server, journal.run_uid) == list(range(1, 21))
