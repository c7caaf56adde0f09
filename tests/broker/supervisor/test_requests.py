"""Requests to stop, and to read the configuration again."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tiledbroker.supervisor._requests import Requests


class Loop:
    """A loop that counts how often it was woken."""

    def __init__(self) -> None:
        self.woken = 0
        self.requests = Requests(self.wake)

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def signals() -> Iterator[None]:
    """Leaves signals as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_each_stop_is_taken_once_and_wakes_the_loop(loop: Loop) -> None:
    assert not loop.requests.are_pending
    loop.requests.request_stop()
    loop.requests.request_stop()
    assert (loop.woken, loop.requests.are_pending) == (2, True)
    assert [loop.requests.take_stop() for _ in range(3)] == [True, True, False]
    assert not loop.requests.are_pending
    assert loop.requests.stop_was_requested


def test_reloads_are_taken_together(loop: Loop) -> None:
    loop.requests.request_reload()
    loop.requests.request_reload()
    assert (loop.woken, loop.requests.are_pending) == (2, True)
    assert [loop.requests.take_reloads() for _ in range(2)] == [True, False]
    assert not loop.requests.stop_was_requested


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop(loop: Loop, number: signal.Signals) -> None:
    loop.requests.stop_on_signals()
    signal.raise_signal(number)
    assert loop.requests.take_stop()


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("terminal_is_gone", [False, True])
def test_hangup_reloads_unless_the_terminal_is_gone(
    loop: Loop, terminal_is_gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    loop.requests.reload_on_signal()
    monkeypatch.setattr("sys.stderr.isatty", lambda: not terminal_is_gone)
    signal.raise_signal(signal.SIGHUP)
    assert loop.requests.take_stop() is terminal_is_gone
    assert loop.requests.take_reloads() is not terminal_is_gone
