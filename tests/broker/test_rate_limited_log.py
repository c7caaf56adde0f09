"""A message that comes a thousand times is logged once, and the rest counted."""

from __future__ import annotations

import logging

import pytest

from tiledbroker._rate_limited_log import RateLimitedLog


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set by the test."""
    now = [1000.0]
    monkeypatch.setattr("tiledbroker._rate_limited_log.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def limited(caplog: pytest.LogCaptureFixture) -> RateLimitedLog:
    caplog.set_level(logging.DEBUG, "test.limited")
    return RateLimitedLog(logging.getLogger("test.limited"), interval=10.0)


def test_the_first_is_logged_at_once(limited: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    limited.log(logging.WARNING, "topic", "Frame %d is bad.", 7)
    assert caplog.record_tuples == [("test.limited", logging.WARNING, "Frame 7 is bad.")]


def test_the_rest_are_counted(limited: RateLimitedLog, caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    for number in range(1000):
        limited.log(logging.WARNING, "topic", "Frame %d is bad.", number)
    assert caplog.messages == ["Frame 0 is bad."]
    clock[0] += 10.0
    limited.log(logging.WARNING, "topic", "Frame %d is bad.", 1000)
    assert caplog.messages[1:] == ["Frame 1000 is bad. (and 999 more like this since the last report)"]


def test_the_count_starts_again(limited: RateLimitedLog, caplog: pytest.LogCaptureFixture, clock: list[float]) -> None:
    for _ in range(3):
        limited.log(logging.WARNING, "topic", "Bad.")
        limited.log(logging.WARNING, "topic", "Bad.")
        clock[0] += 10.0
    clock[0] += 10.0
    counted = "Bad. (and 1 more like this since the last report)"
    assert caplog.messages == ["Bad.", counted, counted]


def test_nothing_is_said_of_none_left_out(
    limited: RateLimitedLog, caplog: pytest.LogCaptureFixture, clock: list[float]
) -> None:
    for _ in range(2):
        limited.log(logging.WARNING, "topic", "Bad.")
        clock[0] += 10.0
    assert caplog.messages == ["Bad.", "Bad."]


def test_topics_do_not_silence_each_other(limited: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    for topic in ("one", "two", "one"):
        limited.log(logging.INFO, topic, topic)
    assert caplog.messages == ["one", "two"]


def test_the_traceback_is_logged_when_asked_for(limited: RateLimitedLog, caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise KeyError("reason")
    except KeyError:
        limited.log(logging.ERROR, "topic", "Failed.", exc_info=True)
    assert "KeyError: 'reason'" in caplog.text
