"""What one worker learns of Tiled at connection serves the others, until it is old or turns out to be wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FaultyProxy, small_client
from runs import documents

from tiledbroker import Encoder, Journal
from tiledwriter._errors import Paused
from tiledwriter.catalog import Client, Connection, KnownServer
from tiledwriter.mapping._writing_options import WritingOptions
from tiledwriter.testing import TiledServer, wait_until
from tiledwriter.worker import KeyPage, KeyState, ServerPage, TiledAddress, _server_page
from tiledwriter.worker._server_page import LearntServer
from tiledwriter.worker._writing import RunWriting


@pytest.fixture
def page() -> Iterator[ServerPage]:
    page = ServerPage.make()
    yield page
    page.close()


@pytest.fixture
def proxy(tiled_server: TiledServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(tiled_server.uri) as proxy:
        yield proxy


@pytest.fixture
def key_file(tmp_path: Path, tiled_server: TiledServer) -> Path:
    path = tmp_path / "key"
    path.write_text(tiled_server.api_key)
    return path


@pytest.fixture
def address(proxy: FaultyProxy, page: ServerPage, key_file: Path) -> TiledAddress:
    return TiledAddress(proxy.uri, headers={"X-Gate": "lab"}, api_key_file=key_file, server_page=page)


def learnt_of(uri: str, *, age_seconds: float = 0.0) -> LearntServer:
    return LearntServer(uri, f"{uri}/api/v1/", [], "0.2.20", time.monotonic() - age_seconds)


@pytest.fixture
def connect(address: TiledAddress) -> Iterator[Callable[[], Client]]:
    """Connects as a worker does."""
    clients: list[Client] = []

    def connect() -> Client:
        clients.append(address.connect())
        return clients[-1]

    yield connect
    for client in clients:
        client.context.http_client.close()


def connection_of(connect: Callable[[], Client], **options: Any) -> Connection:
    return Connection(connect, threading.Event(), lambda *_, **__: None, **options)


def test_only_the_first_worker_asks(
    connect: Callable[[], Client], proxy: FaultyProxy, tiled_server: TiledServer
) -> None:
    first = connection_of(connect)
    first.open()
    asked = proxy.count("GET")
    assert asked == 3
    second = connection_of(connect)
    second.open()
    assert len(proxy.requests) == asked
    assert (second.counts.address, second.counts.version) == (first.counts.address, first.counts.version)
    second.send("GET", "search", "")
    assert len(proxy.requests) == asked + 1
    first.send("GET", "search", "")
    assert proxy.requests[-1].headers["Authorization"] == f"Apikey {tiled_server.api_key}"
    of_second, of_first = ({name.lower(): text for name, text in each.headers.items()} for each in proxy.requests[-2:])
    del of_first["cookie"]
    assert of_second == of_first


def test_a_key_is_read_at_each_connection(connect: Callable[[], Client], proxy: FaultyProxy, key_file: Path) -> None:
    connect()
    key_file.write_text("another")
    with pytest.raises(Exception, match="not completed"):
        connection_of(connect, patience=60.0).send("GET", "search", "")
    assert proxy.requests[-1].headers["Authorization"] == "Apikey another"


def test_the_key_of_the_supervisor_is_used_as_long_as_it_is_on_its_page(page: ServerPage) -> None:
    page.publish(learnt_of("http://tiled.example"))
    keys = KeyPage.make()
    keys.publish(KeyState.OWN, "abc")
    client = TiledAddress("http://tiled.example", key_page=keys, server_page=page).connect()
    assert isinstance(client, KnownServer)
    request = client.context.http_client.build_request("GET", "http://tiled.example")
    keys.publish(KeyState.OWN, "def")
    sent = next(client.context.http_client.auth.auth_flow(request))
    assert sent.headers["Authorization"] == "Apikey def"
    keys.close()


@pytest.mark.parametrize("reason", ["too old", "of another server", "another address"])
def test_what_is_not_certain_to_hold_is_asked_again(
    connect: Callable[[], Client], page: ServerPage, proxy: FaultyProxy, reason: str
) -> None:
    age_seconds = _server_page.VALID_SECONDS if reason == "too old" else 0.0
    page.publish(learnt_of(proxy.uri if reason == "too old" else f"{proxy.uri}/{reason}", age_seconds=age_seconds))
    assert not isinstance(connect(), KnownServer)
    assert proxy.count("GET") == 3
    assert isinstance(connect(), KnownServer)


def test_nothing_is_shared_without_a_key(
    proxy: FaultyProxy, page: ServerPage, tiled_server: TiledServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TILED_API_KEY", raising=False)
    page.publish(learnt_of(f"{proxy.uri}?api_key={tiled_server.api_key}"))
    client = TiledAddress(f"{proxy.uri}?api_key={tiled_server.api_key}", server_page=page).connect()
    assert not isinstance(client, KnownServer)
    client.context.http_client.close()


def test_others_wait_for_the_one_that_asks(page: ServerPage) -> None:
    statement = (
        "from tiledwriter.worker import ServerPage, TiledAddress; print('connecting', flush=True); "
        f"address = TiledAddress('http://tiled.example', server_page=ServerPage({page.descriptor})); "
        "print(type(address.connect()).__name__)"
    )
    with page.learning("http://tiled.example") as learnt:
        assert learnt is None
        process = subprocess.Popen(
            [sys.executable, "-c", statement],
            env={**os.environ, "TILED_API_KEY": "abc"},
            pass_fds=[page.descriptor],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "connecting\n"
        page.publish(learnt_of("http://tiled.example"))
        assert process.communicate(timeout=60)[0] == "KnownServer\n"


def test_nobody_waits_for_long_for_one_that_hangs(page: ServerPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_server_page, "_LEARNING_SECONDS", 0.05)
    monkeypatch.setattr(ServerPage, "_lock", lambda _: False)
    with page.learning("http://tiled.example") as learnt:
        assert learnt is None


def test_a_server_that_is_known_has_not_answered(
    connect: Callable[[], Client], page: ServerPage, proxy: FaultyProxy
) -> None:
    reached: list[None] = []
    page.publish(learnt_of(proxy.uri))
    connection = connection_of(connect, on_reached=lambda: reached.append(None))
    connection.open()
    assert connection.counts.answered_at is None
    assert not reached
    connection.send("GET", "search", "")
    assert reached


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    emitted = documents(3)
    encoder = Encoder()
    with Journal(tmp_path / "run.sqlite", "create", run_uid=emitted[0][1]["uid"]) as journal:
        for name, document in emitted:
            journal.append_one(name, encoder.encode(document))
        yield journal


@pytest.mark.parametrize("is_there", [True, False])
def test_a_container_that_was_removed_after_others_connected_is_not_the_fault_of_the_run(
    journal: Journal, tiled_server: TiledServer, *, is_there: bool
) -> None:
    client = tiled_server.client()
    connections: list[str] = []
    ends: list[tuple[str, str]] = []

    def connect() -> KnownServer:
        connections.append("known")
        return KnownServer(known.context, known.path_parts, connect_anew)

    def connect_anew() -> Any:
        connections.append("anew")
        if not is_there:
            raise Paused("There is no container 'removed'.")
        return client

    with small_client(tiled_server.uri, tiled_server.api_key, ["removed"]) as known:
        writing = RunWriting(
            journal,
            connect,
            WritingOptions(quiet_period=0.2),
            drain=False,
            on_progress=lambda _: None,
            on_end=lambda *end: ends.append(end),
        )
        writing.start()
        try:
            if is_there:
                wait_until(lambda: ends, 60, "the run has been written")
            else:
                wait_until(lambda: "There is no container" in writing.waits_for, 60, "it waits for a person")
        finally:
            writing.stop(5.0)
    assert known.context.http_client.is_closed
    assert connections[:2] == ["known", "anew"]
    assert "known" not in connections[1:]
    assert ends == [("written", "") if is_there else ("", "")]
    assert journal.get("outcome") == ("written" if is_there else None)
