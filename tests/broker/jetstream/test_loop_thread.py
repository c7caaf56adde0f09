"""The thread in which connections live ends, whatever runs in it."""

from __future__ import annotations

import asyncio
import gc
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


def test_errors_that_come_as_the_thread_ends_are_not_called_forgotten() -> None:
    thread = LoopThread("tiledbroker-test")
    complaints: list[str] = []
    errors: list[BaseException | None] = []
    thread.loop.set_exception_handler(lambda _loop, context: complaints.append(context["message"]))

    async def fail() -> None:
        raise LogUnavailable("the connection is lost")

    async def ask_and_end() -> None:
        asyncio.gather(fail(), fail()).add_done_callback(lambda both: errors.append(both.exception()))
        # Both have failed in the last turn of the loop, and nobody was told of it yet.
        await asyncio.sleep(0)
        thread.loop.stop()

    thread.submit(ask_and_end())
    thread._thread.join(60)
    gc.collect()
    assert not complaints
    assert [type(error) for error in errors] == [LogUnavailable]
