"""A wake-up ends a poller's wait."""

from __future__ import annotations

import select

from tiledbroker._wake_up import WakeUp


def is_readable(wake_up: WakeUp) -> bool:
    return bool(select.select([wake_up], [], [], 0)[0])


def test_it_is_readable_from_wake_to_clear() -> None:
    wake_up = WakeUp()
    assert not is_readable(wake_up)
    wake_up.wake()
    wake_up.wake()
    assert is_readable(wake_up)
    wake_up.clear()
    assert not is_readable(wake_up)
    wake_up.close()


def test_clear_does_not_wait() -> None:
    wake_up = WakeUp()
    wake_up.clear()
    wake_up.close()


def test_wake_never_blocks() -> None:
    wake_up = WakeUp()
    for _ in range(100_000):
        wake_up.wake()
    while is_readable(wake_up):
        wake_up.clear()
    wake_up.close()


def test_wake_after_close_does_nothing() -> None:
    wake_up = WakeUp()
    wake_up.close()
    wake_up.wake()
