"""Tiled is asked while no worker does: from the start until it answers, and then now and then."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tiledwriter.cli import _tiled_presence
from tiledwriter.cli._tiled_presence import TiledPresence
from tiledwriter.testing import free_port, wait_until

CHECK = "tiledwriter-supervisor check --tiled URI"


TILED = httpx.Response(200, json={"authentication": {"providers": []}})


class Handler(BaseHTTPRequestHandler):
    """Gives one answer, whatever it is asked."""

    answer: httpx.Response

    def do_GET(self) -> None:
        self.send_response(self.answer.status_code)
        for name, value in {"content-length": "0", **self.answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(self.answer.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def answering(port: int, answer: httpx.Response = TILED) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", port), type("Answering", (Handler,), {"answer": answer}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tiled_presence, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(_tiled_presence, "_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(_tiled_presence, "_IDLE_PAUSE_SECONDS", 0.1)


@contextmanager
def asking(port: int, found: list[str], asked_at: Callable[[], float | None] = lambda: None) -> Iterator[None]:
    uri = f"http://127.0.0.1:{port}"
    before = set(threading.enumerate())
    with TiledPresence(uri, lambda timeout: httpx.Client(timeout=timeout), found.append, asked_at, CHECK):
        (thread,) = set(threading.enumerate()) - before or {None}
        yield
    if thread is not None:
        thread.join(30)


def test_a_tiled_that_starts_together_with_the_service_is_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    port, found = free_port(), []
    with caplog.at_level("INFO"), asking(port, found):
        wait_until(lambda: found, 30, "it was asked")
        with answering(port):
            wait_until(lambda: found[-1] == "", 30, "it has answered")
    assert found[0].startswith("ConnectError")
    assert [record for record in caplog.records if record.name.startswith("tiledwriter")] == []


def test_a_warning_is_taken_back_when_tiled_answers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tiled_presence, "TILED_GRACE_SECONDS", 0.1)
    port, found = free_port(), []
    with caplog.at_level("INFO"), asking(port, found):
        wait_until(lambda: caplog.records, 30, "it is warned of")
        asked = len(found)
        wait_until(lambda: len(found) > asked + 2, 30, "it is asked again")
        with answering(port):
            wait_until(lambda: found[-1] == "", 30, "it has answered")
    said = [record for record in caplog.records if record.name == "tiledwriter.supervisor"]
    assert [record.levelname for record in said] == ["WARNING", "INFO"]
    assert f"Tiled at http://127.0.0.1:{port} cannot be reached (ConnectError" in said[0].getMessage()
    assert f"`{CHECK}`" in said[0].getMessage()
    assert said[1].getMessage() == f"Tiled at http://127.0.0.1:{port} answers now."


def test_a_tiled_that_goes_away_while_there_is_nothing_to_write_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_tiled_presence, "TILED_GRACE_SECONDS", 0.1)
    port, found = free_port(), []
    with caplog.at_level("INFO"), asking(port, found):
        with answering(port):
            wait_until(lambda: found.count("") > 2, 30, "it is asked now and then")
        wait_until(lambda: "cannot be reached" in caplog.text, 30, "it is warned of")
        with answering(port):
            wait_until(lambda: "answers now" in caplog.text, 30, "that is taken back")


def test_nobody_asks_while_workers_do() -> None:
    port, found, looked, ended = free_port(), [], [], threading.Event()

    def asked_at() -> float | None:
        looked.append(None)
        return None if ended.is_set() else time.monotonic()

    with answering(port), asking(port, found, asked_at):
        wait_until(lambda: len(looked) > 3, 30, "it has looked whether workers ask")
        assert found == []
        ended.set()
        wait_until(lambda: found, 30, "it is asked")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (httpx.Response(200, html="<h1>Log in</h1>"), "200: this is not an answer of Tiled"),
        (httpx.Response(200, json={"status": "down for maintenance"}), "what answers there is not Tiled"),
        (httpx.Response(404, html="<h1>default backend</h1>"), "404: Not Found; this is not an answer of Tiled"),
        (httpx.Response(404, json={"detail": "Not Found"}), "404: Not Found; this is not an answer of Tiled"),
        (httpx.Response(302, headers={"Location": "http://127.0.0.1:1/login"}), "redirected to 127.0.0.1:1/login: "),
        (httpx.Response(401, html="<h1>Who are you?</h1>"), "401: Unauthorized"),
        (httpx.Response(503), "503: Service Unavailable"),
        (httpx.Response(200, content=b"[" * 9**5, headers={"Content-Type": "application/json"}), "RecursionError: "),
    ],
)
def test_what_is_not_an_answer_of_tiled_is_none(answer: httpx.Response, problem: str) -> None:
    port, found = free_port(), []
    with answering(port, answer), asking(port, found):
        wait_until(lambda: len(found) > 1, 30, "it is asked again")
    assert found[0].startswith(problem)
