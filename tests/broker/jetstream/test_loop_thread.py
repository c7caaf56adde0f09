"""The thread in which connections live ends, whatever runs in it."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tiledbroker._errors import LogUnavailable
from tiledbroker.jetstream import LoopThread


def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    thread = LoopThread("tiledbroker-test")
    begun = threading.Event()
    lost: list[str] = []

    async def lose_one() -> None:
        begun.set()
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if lost:
                    raise
                lost.append("cancellation")

    thread.submit(lose_one())
    assert begun.wait(60)
    thread.close()
    assert lost == ["cancellation"]


def test_what_takes_too_long_is_no_answer() -> None:
    thread = LoopThread("tiledbroker-test")
    with pytest.raises(LogUnavailable, match="within"):
        thread.run(asyncio.sleep(3600), 0.01)
    thread.close()
