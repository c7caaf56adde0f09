"""How many runs that have ended a host claims at a time."""

from __future__ import annotations

import pytest

from tiledbroker.supervisor.jetstream_source._claim_window import (
    FIRST_STUCK_SECONDS,
    MAX_STUCK_SECONDS,
    MIN_RUNS,
    WRITTEN_SECONDS,
    ClaimWindow,
)


def take_on(window: ClaimWindow, now: float) -> int:
    """The share of a host that has nothing."""
    return window.take_room(0, now)


def test_a_host_that_has_written_nothing_takes_a_few_runs_on() -> None:
    assert take_on(ClaimWindow(), 0.0) == MIN_RUNS
    assert ClaimWindow().take_room(MIN_RUNS - 1, 0.0) == 1


def test_a_host_that_has_its_share_takes_on_one_more_now_and_then_and_ever_more_rarely() -> None:
    window = ClaimWindow()
    in_hand, claimed = take_on(window, 0.0), []
    for half_second in range(1, 600):
        if room := window.take_room(in_hand, 0.5 * half_second):
            in_hand += room
            claimed.append(0.5 * half_second)
    pauses = [after - before for before, after in zip([0.0, *claimed], claimed, strict=False)]
    assert pauses[:4] == [FIRST_STUCK_SECONDS * factor for factor in (1, 2, 4, 8)]
    assert set(pauses[4:]) == {MAX_STUCK_SECONDS}
    assert in_hand == MIN_RUNS + len(claimed)


def test_a_host_that_had_room_again_does_not_wait_for_as_long() -> None:
    window = ClaimWindow()
    window.take_room(MIN_RUNS, 0.0)
    window.take_room(MIN_RUNS, 5.0)
    assert window.take_room(MIN_RUNS - 1, 6.0) == 1
    assert window.take_room(MIN_RUNS, 6.0 + FIRST_STUCK_SECONDS) == 1


def test_a_host_takes_on_what_it_has_written_lately() -> None:
    window = ClaimWindow()
    for number in range(50):
        window.note_written(0.1 * number)
    assert window.take_room(10, 5.0) == 50
    assert window.take_room(10, 5.0) == 40
    window.take_room(50, 5.0 + WRITTEN_SECONDS)
    assert window.take_room(10, 5.0 + WRITTEN_SECONDS) == 0


def test_runs_that_are_stuck_do_not_slow_down_those_that_are_written() -> None:
    window, stuck = ClaimWindow(), 100
    assert window.take_room(stuck, 0.0) == 1
    for now in range(1, 100):
        window.note_written(now)
        assert window.take_room(stuck, now) >= 1


def test_what_was_written_long_ago_does_not_count() -> None:
    window = ClaimWindow()
    for number in range(50):
        window.note_written(0.1 * number)
    assert take_on(window, 5.0 + WRITTEN_SECONDS) == MIN_RUNS


@pytest.mark.parametrize(("runs_per_second", "in_hand"), [(1, WRITTEN_SECONDS), (30, 30 * WRITTEN_SECONDS)])
def test_a_host_has_what_it_writes_in_ten_seconds_in_hand(runs_per_second: int, in_hand: float) -> None:
    """A run takes two seconds, and no more than a number of them are written in a second."""
    window = ClaimWindow()
    started: list[int] = []
    for now in range(120):
        started.extend([now] * window.take_room(len(started), now))
        written = [begin for begin in started if begin <= now - 2][:runs_per_second]
        del started[: len(written)]
        for _ in written:
            window.note_written(now)
    assert in_hand * 0.8 <= len(started) <= in_hand * 1.2
