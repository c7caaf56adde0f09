"""The worker's side of its write slot: waits for it, keeps it while nobody else wants it, and gives it back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiledbroker.ownership import DeadlinePage, LeaseTiming, boottime
from tiledbroker.protocol import messages
from tiledbroker.protocol.messages import SlotGranted, SlotRecalled, SlotReleased, SlotWanted
from tiledwriter._errors import Stopped
from tiledwriter.worker import _write_slot
from tiledwriter.worker._write_slot import WriteSlot

WANTED = SlotWanted("run")
RELEASED = SlotReleased("run", "")


class Bench:
    """A slot, and what it says to the supervisor."""

    def __init__(self, lease: DeadlinePage | None = None) -> None:
        self.sent: list[messages.Message] = []
        self.wanted = threading.Event()
        self.slot = WriteSlot("run", self._send, lease)
        self.stopping = threading.Event()

    def _send(self, message: messages.Message) -> None:
        self.sent.append(message)
        if isinstance(message, SlotWanted):
            self.wanted.set()

    def grant(self, *, shared: bool) -> None:
        """Have another thread acquire the slot, and grant it."""
        thread = threading.Thread(target=self.slot.acquire, args=(self.stopping,))
        thread.start()
        assert self.wanted.wait(60)
        self.slot.receive(SlotGranted("run", shared=shared))
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.stopping.set()


def test_a_slot_that_nobody_else_wants_is_asked_for_once(bench: Bench) -> None:
    bench.grant(shared=False)
    for _ in range(3):
        bench.slot.rest()
        bench.slot.acquire(bench.stopping)
    assert bench.sent == [WANTED]


def test_a_slot_that_others_wait_for_is_released_after_the_work(bench: Bench) -> None:
    bench.grant(shared=True)
    bench.slot.pause()
    assert bench.sent == [WANTED]
    bench.slot.storage = "postgresql"
    bench.slot.rest()
    assert bench.sent == [WANTED, SlotReleased("run", "postgresql")]
    bench.slot.rest()
    assert len(bench.sent) == 2


def test_a_kept_slot_is_released_at_once_when_it_is_recalled(bench: Bench) -> None:
    bench.grant(shared=False)
    bench.slot.rest()
    bench.slot.receive(SlotRecalled("run"))
    assert bench.sent == [WANTED, RELEASED]


def test_a_slot_in_use_is_released_after_the_work_when_it_is_recalled(bench: Bench) -> None:
    bench.grant(shared=False)
    bench.slot.receive(SlotRecalled("run"))
    assert bench.sent == [WANTED]
    bench.slot.rest()
    assert bench.sent == [WANTED, RELEASED]


def test_work_that_takes_long_is_interrupted_between_two_requests(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.grant(shared=True)
    monkeypatch.setattr(_write_slot, "_LONGEST_TURN_SECONDS", 0.0)
    bench.slot.pause()
    assert bench.sent == [WANTED, RELEASED]


def test_a_slot_that_is_recalled_before_its_thread_wakes_is_used_once_and_released(bench: Bench) -> None:
    thread = threading.Thread(target=bench.slot.acquire, args=(bench.stopping,))
    thread.start()
    assert bench.wanted.wait(60)
    with bench.slot._changed:
        # The thread cannot wake in between.
        bench.slot.receive(SlotGranted("run", shared=False))
        bench.slot.receive(SlotRecalled("run"))
    thread.join(60)
    assert bench.sent == [WANTED]
    bench.slot.rest()
    assert bench.sent == [WANTED, RELEASED]
    # It has to be asked for again.
    bench.wanted.clear()
    bench.grant(shared=False)
    assert bench.sent == [WANTED, RELEASED, WANTED]


def test_who_waits_can_be_stopped(bench: Bench) -> None:
    bench.stopping.set()
    with pytest.raises(Stopped):
        bench.slot.acquire(bench.stopping)


def test_nothing_is_sent_until_the_lease_is_renewed(tmp_path: Path) -> None:
    page = DeadlinePage.create(tmp_path / "page", timing=LeaseTiming.of(30.0))
    page.write(boottime() + 4)
    bench = Bench(DeadlinePage.open(tmp_path / "page"))
    thread = threading.Thread(target=bench.slot.acquire, args=(bench.stopping,))
    thread.start()
    assert bench.wanted.wait(60)
    bench.slot.receive(SlotGranted("run", shared=False))
    thread.join(0.5)
    assert thread.is_alive()
    page.write(boottime() + 30)
    thread.join(60)
    assert not thread.is_alive()


def test_a_worker_that_is_to_end_does_not_wait_for_the_lease(tmp_path: Path) -> None:
    bench = Bench(DeadlinePage.open(tmp_path / "missing"))
    bench.slot.receive(SlotGranted("run", shared=False))
    bench.stopping.set()
    with pytest.raises(Stopped, match="lease"):
        bench.slot.acquire(bench.stopping)
