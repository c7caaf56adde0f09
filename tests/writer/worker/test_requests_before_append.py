"""Requests that a run costs Tiled before its first append: connection, creation, and the questions of a takeover."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run
from faulty_proxy import FaultyProxy

from tiledbroker import Encoder, Journal
from tiledwriter.catalog import Client
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import TiledServer, wait_until
from tiledwriter.worker import ServerPage, TiledAddress, _server_page
from tiledwriter.worker._writing import RunWriting

CONNECTION = 3
# Node and size twice, and the two columns that tell which rows there are.
ADOPTION_OF_TABLE = 6


@pytest.fixture
def proxy(tiled_server: TiledServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(tiled_server.uri) as proxy:
        yield proxy


@pytest.fixture
def write(
    proxy: FaultyProxy, tiled_server: TiledServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Journal], None]]:
    """Writes what a journal holds, each time as a worker of its own."""
    monkeypatch.setattr(_server_page, "VALID_SECONDS", 3600.0)
    monkeypatch.setenv("TILED_API_KEY", tiled_server.api_key)
    page = ServerPage.make()
    clients: list[Client] = []

    def connect() -> Client:
        clients.append(TiledAddress(proxy.uri, server_page=page).connect())
        return clients[-1]

    def write(journal: Journal) -> None:
        ended = threading.Event()
        options = WritingOptions(quiet_period=1.0)
        writing = RunWriting(
            journal, connect, options, drain=True, on_progress=lambda _: None, on_end=lambda *_: ended.set()
        )
        writing.start()
        try:
            wait_until(ended.is_set, 120, "all is written")
        finally:
            writing.stop(5.0)

    yield write
    for client in clients:
        client.context.http_client.close()
    page.close()


def open_run(tables: int, events: int) -> list[tuple[str, Any]]:
    """A run of one stream for each table that has not ended."""
    run = compose_run()
    emitted: list[tuple[str, Any]] = [("start", run.start_doc)]
    keys = {"x": {"source": "s", "dtype": "number", "dtype_numpy": "<f8", "shape": []}}
    for number in range(tables):
        stream = run.compose_descriptor(name=f"stream{number}", data_keys=keys)
        emitted.append(("descriptor", stream.descriptor_doc))
        emitted += [("event", stream.compose_event(data={"x": 0.5}, timestamps={"x": 0.0})) for _ in range(events)]
    return emitted


@pytest.fixture
def journal_of(tmp_path: Path) -> Iterator[Callable[[list[tuple[str, Any]]], Journal]]:
    """Makes journals, each as on a host of its own."""
    journals: list[Journal] = []

    def journal_of(emitted: list[tuple[str, Any]]) -> Journal:
        path = tmp_path / f"{len(journals)}.sqlite"
        journals.append(Journal(path, "create", run_uid=emitted[0][1]["uid"]))
        encoder = Encoder()
        for name, document in emitted:
            journals[-1].append_one(name, encoder.encode(document))
        return journals[-1]

    yield journal_of
    for journal in journals:
        journal.close()


def methods(proxy: FaultyProxy, start: int = 0) -> list[str]:
    return [request.method for request in proxy.requests[start:]]


def test_a_new_run_reads_nothing_and_only_the_first_worker_connects(
    write: Callable[[Journal], None], journal_of: Callable[[list[tuple[str, Any]]], Journal], proxy: FaultyProxy
) -> None:
    written = ["POST", "POST", "POST", "PATCH"]
    write(journal_of(open_run(1, 3)))
    assert methods(proxy) == ["GET"] * CONNECTION + written
    write(journal_of(open_run(1, 3)))
    assert methods(proxy, CONNECTION + len(written)) == written


@pytest.mark.parametrize("tables", [1, 3])
def test_a_run_that_is_taken_over_costs_the_same_however_long_the_quiet_period_is(
    write: Callable[[Journal], None],
    journal_of: Callable[[list[tuple[str, Any]]], Journal],
    proxy: FaultyProxy,
    tables: int,
) -> None:
    emitted = open_run(tables, 3)
    write(journal_of(emitted[:-1]))
    before = len(proxy.requests)
    write(journal_of(emitted))
    sent = methods(proxy, before)
    containers = 1 + tables
    assert sent.count("POST") == containers + tables
    assert sent.count("GET") == containers + ADOPTION_OF_TABLE * tables
    # The last table alone lacks a row.
    assert sent.index("PATCH") == len(sent) - 1
