"""How many runs that have ended a host claims at a time."""

from __future__ import annotations

import pytest

from tiledbroker.supervisor.jetstream_source._claim_window import (
    MIN_RUNS,
    STUCK_SECONDS,
    WRITTEN_SECONDS,
    ClaimWindow,
)


def test_a_host_that_has_written_nothing_takes_a_few_runs_on() -> None:
    window = ClaimWindow()
    assert [window.find_room(in_hand, 0.0) for in_hand in (0, 3)] == [MIN_RUNS, MIN_RUNS - 3]


def test_a_host_that_has_its_share_takes_on_one_more_now_and_then() -> None:
    window, now, claimed = ClaimWindow(), 0.0, []
    window.note_claimed(now)
    while now < 3 * STUCK_SECONDS:
        now += 0.5
        if window.find_room(MIN_RUNS + len(claimed), now):
            window.note_claimed(now)
            claimed.append(now)
    assert claimed == [STUCK_SECONDS, 2 * STUCK_SECONDS, 3 * STUCK_SECONDS]


def test_a_host_takes_on_what_it_has_written_lately() -> None:
    window = ClaimWindow()
    for number in range(50):
        window.note_written(0.1 * number)
    assert window.find_room(10, 5.0) == 40
    window.note_claimed(5.0 + WRITTEN_SECONDS)
    assert window.find_room(10, 5.0 + WRITTEN_SECONDS) == 0


@pytest.mark.parametrize(("runs_per_second", "in_hand"), [(1, WRITTEN_SECONDS), (30, 30 * WRITTEN_SECONDS)])
def test_a_host_has_what_it_writes_in_ten_seconds_in_hand(runs_per_second: int, in_hand: float) -> None:
    """A run takes two seconds, and no more than a number of them are written in a second."""
    window = ClaimWindow()
    started: list[int] = []
    for now in range(120):
        if room := window.find_room(len(started), now):
            window.note_claimed(now)
            started.extend([now] * room)
        written = [begin for begin in started if begin <= now - 2][:runs_per_second]
        del started[: len(written)]
        for _ in written:
            window.note_written(now)
    assert in_hand * 0.8 <= len(started) <= in_hand * 1.2
