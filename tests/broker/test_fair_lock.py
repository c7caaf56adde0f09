"""A fair lock goes from hand to hand."""

from __future__ import annotations

import threading

import pytest

from tiledbroker._fair_lock import FairLock
from tiledwriter.testing import wait_until


def test_whoever_waits_gets_it_before_the_thread_that_released_it() -> None:
    lock = FairLock()
    for _ in range(100):
        order = []

        def wait(order: list[str] = order) -> None:
            with lock:
                order.append("who waits")

        other = threading.Thread(target=wait)
        with lock:
            other.start()
            wait_until(lock._door.locked, 60, "the other waits")
        with lock:
            order.append("who had it")
        other.join(60)
        assert order == ["who waits", "who had it"]


def test_it_is_reentrant() -> None:
    lock = FairLock()
    entered = threading.Event()

    def enter() -> None:
        with lock:
            entered.set()

    other = threading.Thread(target=enter)
    with lock:
        with lock:
            other.start()
        assert not entered.wait(0.05)
    other.join(60)
    assert entered.is_set()


def test_it_is_released_by_what_is_raised() -> None:
    lock = FairLock()
    with pytest.raises(ZeroDivisionError), lock:
        _ = 1 / 0
    thread = threading.Thread(target=lock.__enter__)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
