"""Workers learn from a page in memory which key to use, or why they have to wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import httpx
import pytest

from tiledwriter._errors import NotProcessed, Paused
from tiledwriter.worker import KeyPage, KeyState, TiledAddress, _key_page
from tiledwriter.worker._key_page import PageAuth


@pytest.fixture
def page() -> Iterator[KeyPage]:
    page = KeyPage.make()
    yield page
    page.close()


def test_the_last_word_counts(page: KeyPage) -> None:
    assert page.read() == (KeyState.ASKING, "")
    page.publish(KeyState.AWAY, "no connection")
    page.publish(KeyState.OWN, "abc")
    assert page.read() == (KeyState.OWN, "abc")
    assert page.find_key() == "abc"
    page.publish(KeyState.CONFIGURED)
    assert page.find_key() is None


def test_a_line_that_is_being_written_does_not_count(page: KeyPage) -> None:
    page.publish(KeyState.OWN, "abc")
    os.write(page.descriptor, b'["own","d')
    assert page.find_key() == "abc"


def test_a_long_history_and_long_reasons_are_no_trouble(page: KeyPage) -> None:
    for number in range(200):
        page.publish(KeyState.AWAY, f"{number}" + "\x00" * 1000)
    state, reason = page.read()
    assert state is KeyState.AWAY
    assert reason.startswith("199\x00")


def test_a_worker_waits_for_tiled_or_for_a_person(page: KeyPage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_key_page, "_FIRST_ANSWER_SECONDS", 0.05)
    with pytest.raises(NotProcessed, match="has not answered the supervisor yet"):
        page.find_key()
    page.publish(KeyState.AWAY, "no connection")
    with pytest.raises(NotProcessed, match="no connection") as caught:
        page.find_key()
    assert not isinstance(caught.value, Paused)
    page.publish(KeyState.PAUSED, "401")
    with pytest.raises(Paused, match="401"):
        page.find_key()


def test_a_worker_waits_a_moment_for_the_first_word(page: KeyPage) -> None:
    timer = threading.Timer(0.1, page.publish, (KeyState.OWN, "abc"))
    timer.start()
    assert page.find_key() == "abc"
    timer.join()


def test_each_request_has_the_key_of_its_moment(page: KeyPage) -> None:
    page.publish(KeyState.OWN, "first")
    transport = httpx.MockTransport(lambda request: httpx.Response(200, text=request.headers["Authorization"]))
    with httpx.Client(transport=transport, auth=PageAuth(page), headers={"Authorization": "Apikey old"}) as client:
        request = client.build_request("GET", "http://x/")
        assert client.send(request).text == "Apikey first"
        page.publish(KeyState.OWN, "second")
        assert client.send(request).text == "Apikey second"
        page.publish(KeyState.CONFIGURED)
        with pytest.raises(Paused):
            client.send(request)


def test_the_key_is_not_shown(page: KeyPage) -> None:
    page.publish(KeyState.OWN, "s3cr3t")
    assert "s3cr3t" not in repr(TiledAddress("http://x", key_page=page)) + repr(page)
