"""How often a campaign looks at all its runs."""

from __future__ import annotations

import time

from chaos.pace import Pace


def spin(seconds: float) -> None:
    """Use up so much time of the processor."""
    began = time.thread_time()
    while time.thread_time() < began + seconds:
        pass


def test_a_look_is_due_at_first() -> None:
    assert Pace(60).is_due


def test_a_look_takes_a_tenth_of_the_time_at_most() -> None:
    pace = Pace(0)
    with pace.look():
        spin(0.02)
    assert pace.pause_seconds >= 9 * 0.02
    assert not pace.is_due


def test_waiting_is_not_what_a_look_takes() -> None:
    pace = Pace(0.1)
    with pace.look():
        time.sleep(0.2)
    assert pace.pause_seconds == 0.1


def test_a_look_that_has_failed_is_one_too() -> None:
    pace = Pace(60)
    try:
        with pace.look():
            raise TimeoutError
    except TimeoutError:
        pass
    assert not pace.is_due
