"""The keeper holds the lease in real time: with a store that hangs, beside others, and in a process that is stopped."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tiledbroker._errors import StoreUnavailable
from tiledbroker.ownership import (
    DeadlinePage,
    DirectoryStore,
    Lease,
    LeaseKeeper,
    LeaseTiming,
    Ownership,
    OwnershipState,
    Stored,
    boottime,
    make_holder_name,
)

TIMING = LeaseTiming(lease_seconds=5.0, renewal_seconds=0.2, margin_seconds=0.5)
LONG_SECONDS = 60.0


class FaultyStore:
    """A directory whose calls hang while `is_open` is not set, and fail while `problem` is."""

    def __init__(self, path: Path) -> None:
        self.inner = DirectoryStore(path)
        self.is_open = threading.Event()
        self.is_open.set()
        self.is_hanging = threading.Event()
        self.problem: Exception | None = None

    def _meet_fault(self) -> None:
        if not self.is_open.is_set():
            self.is_hanging.set()
            self.is_open.wait(LONG_SECONDS)
        if self.problem is not None:
            raise self.problem

    def read(self) -> Stored:
        self._meet_fault()
        return self.inner.read()

    def close(self) -> None:
        self.inner.close()

    def compare_and_set(self, expected_revision: int, lease: Lease) -> int | None:
        self._meet_fault()
        return self.inner.compare_and_set(expected_revision, lease)


class Start:
    """A supervisor start: keeper, store and page."""

    def __init__(self, name: str, directory: Path, problem: Exception | None = None) -> None:
        self.store = FaultyStore(directory / "leases")
        self.store.problem = problem
        self.page_path = directory / f"page of {name}"
        page = DeadlinePage.create(self.page_path, timing=TIMING)
        self.page = DeadlinePage.open(self.page_path)
        self.changed = threading.Event()
        ownership = Ownership(make_holder_name(), name, timing=TIMING)
        self.keeper = LeaseKeeper(self.store, ownership, page, on_change=self.changed.set)
        self.keeper.start()

    def close(self) -> None:
        self.keeper.stop()
        self.store.is_open.set()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[str], Start]]:
    DirectoryStore.create(tmp_path / "leases")
    started: list[Start] = []

    def make(name: str, problem: Exception | None = None) -> Start:
        started.append(Start(name, tmp_path, problem))
        return started[-1]

    yield make
    for each in started:
        each.close()


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG_SECONDS
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_first_holds_and_goes_on_holding(start: Callable[[str], Start]) -> None:
    first = start("a")
    assert first.keeper.wait_until_held(LONG_SECONDS)
    assert first.changed.wait(LONG_SECONDS)
    assert first.page.may_send(boottime())
    assert first.keeper.describe().startswith("holding the lease, epoch 1, renewed ")
    revision = first.store.inner.read().revision
    wait_until(lambda: first.store.inner.read().revision > revision + 3)
    assert first.page.may_send(boottime())


def test_a_standby_takes_over_at_once_when_the_lease_is_released(start: Callable[[str], Start]) -> None:
    first = start("a")
    assert first.keeper.wait_until_held(LONG_SECONDS)
    second = start("b")
    wait_until(lambda: second.keeper.describe().startswith("standby: host a holds the lease, epoch 1, renewed "))
    assert not second.page.may_send(boottime())
    assert not second.keeper.wait_until_held(0)
    assert first.keeper.release(LONG_SECONDS)
    assert not first.page.may_send(boottime())
    assert first.keeper.state is OwnershipState.RELEASED
    assert second.keeper.wait_until_held(LONG_SECONDS)
    assert second.keeper.predecessor is not None
    assert second.keeper.predecessor.host == "a"
    assert second.keeper.predecessor.released


def test_a_store_that_hangs_costs_the_lease_at_its_deadline_and_holds_nobody_up(start: Callable[[str], Start]) -> None:
    first = start("a")
    assert first.keeper.wait_until_held(LONG_SECONDS)
    assert first.changed.wait(LONG_SECONDS)
    first.changed.clear()
    first.store.is_open.clear()
    assert first.store.is_hanging.wait(LONG_SECONDS)
    second = start("b")
    assert first.changed.wait(LONG_SECONDS), "the owner must be told although the store still hangs"
    assert first.keeper.state is OwnershipState.LOST
    assert first.page.seconds_left(boottime()) <= 0
    assert second.keeper.wait_until_held(LONG_SECONDS)
    assert not first.keeper.release(0.1)
    first.keeper.stop()
    assert first.keeper.describe().startswith("lost the lease: it was not renewed in time")
    first.store.is_open.set()
    assert second.page.may_send(boottime())


def test_a_store_that_fails_for_a_while_costs_nothing(start: Callable[..., Start]) -> None:
    first = start("a", StoreUnavailable("there", "it is away"))
    wait_until(lambda: "the store gives no answer: there: it is away" in first.keeper.describe())
    assert not first.keeper.wait_until_held(0)
    first.store.problem = None
    assert first.keeper.wait_until_held(LONG_SECONDS)
    first.store.problem = OSError("a defect of the store")
    wait_until(lambda: "a defect of the store" in first.keeper.describe())
    first.store.problem = None
    revision = first.store.inner.read().revision
    wait_until(lambda: first.store.inner.read().revision > revision)
    assert first.keeper.state is OwnershipState.HOLDING


def test_another_key_can_be_announced(start: Callable[[str], Start]) -> None:
    first = start("a")
    assert first.keeper.wait_until_held(LONG_SECONDS)
    first.keeper.change_key("11111111")
    wait_until(lambda: first.keeper.lease is not None and first.keeper.lease.key == "11111111")
    first.keeper.change_key("22222222")
    assert first.keeper.unrevoked == ("11111111",)
    first.keeper.note_revoked(["11111111"])
    assert first.keeper.unrevoked == ()


PROCESS = """
    import os, sys, threading
    from pathlib import Path
    from tiledbroker.ownership import *
    directory, hangs = Path(sys.argv[1]), sys.argv[2] == "hangs"
    timing = LeaseTiming(lease_seconds=5.0, renewal_seconds=0.2, margin_seconds=0.5)
    class Store(DirectoryStore):
        def read(self):
            if hangs:
                os.write(1, b"hanging\\n")  # no buffer, whose lock this thread could hold at the end
                threading.Event().wait()
            return super().read()
    path = directory / "page"
    page = DeadlinePage.create(path, timing=timing)
    ownership = Ownership(make_holder_name(), "process", timing=timing)
    keeper = LeaseKeeper(Store(directory / "leases"), ownership, page, on_change=lambda: None)
    keeper.start()
    if hangs:
        sys.stdin.readline()
        sys.exit(5)
    assert keeper.wait_until_held(60)
    while page.may_send(boottime()):
        os.write(1, b".")  # stands for a request
    print("expired", keeper.state.value, flush=True)
    keeper.stop()
"""


def start_process(directory: Path, what: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(directory), what]
    return subprocess.Popen(command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_process_that_was_stopped_past_its_lease_finds_it_expired(
    tmp_path: Path, start: Callable[[str], Start]
) -> None:
    with start_process(tmp_path, "works") as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"."
        process.send_signal(signal.SIGSTOP)
        try:
            second = start("b")
            assert second.keeper.wait_until_held(LONG_SECONDS)
            # Take what was sent before the stop, so that what comes now was sent after it.
            while select.select([process.stdout], [], [], 0)[0]:
                os.read(process.stdout.fileno(), 2**20)
        finally:
            process.send_signal(signal.SIGCONT)
        # At most the one request whose check was made before the stop.
        assert process.stdout.read() in {b"expired lost\n", b".expired lost\n"}
        assert process.wait(LONG_SECONDS) == 0
    assert second.page.may_send(boottime())


def test_a_process_ends_although_the_store_hangs(tmp_path: Path) -> None:
    DirectoryStore.create(tmp_path / "leases")
    with start_process(tmp_path, "hangs") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"hanging\n"
        process.communicate(b"\n", timeout=LONG_SECONDS)
        assert process.returncode == 5
