"""Many runs that are open at once: each is written in its turn, whatever happens to who holds the write slot."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faulty_proxy import FaultyProxy
from lost_answers import Documents as Emitted
from lost_answers import run_of, uid_of

from tiledbroker import ZMQPublisher
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

RUNS = 12
EVENTS = 6


class CountingProxy(FaultyProxy):
    """Counts the writing requests that Tiled carries out at the same time; can hold one back."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.most = 0
        self._now = 0
        self._counting = threading.Lock()
        self.released = threading.Event()
        self.released.set()
        self.held: list[str] = []

    def carry_out(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any, bytes]:
        if method == "GET":
            return super().carry_out(method, target, headers, body)
        with self._counting:
            self._now += 1
            self.most = max(self.most, self._now)
            hold = not self.released.is_set() and not self.held
            if hold:
                self.held.append(target)
        try:
            if hold:
                self.released.wait(60)
            return super().carry_out(method, target, headers, body)
        finally:
            with self._counting:
                self._now -= 1


@pytest.fixture
def proxy(tiled_server: TiledServer) -> Iterator[CountingProxy]:
    with CountingProxy(tiled_server.uri) as proxy:
        yield proxy
        proxy.released.set()


@pytest.fixture
def service(proxy: CountingProxy, tiled_server: TiledServer, tmp_path: Path) -> Iterator[SupervisorProcess]:
    behind = SimpleNamespace(uri=proxy.uri, api_key=tiled_server.api_key, storage=tiled_server.storage)
    environment = {"TILEDWRITER_QUIET_PERIOD": "1"}
    with SupervisorProcess(tmp_path / "journals", behind, environment=environment) as process:  # type: ignore[arg-type]
        yield process


@pytest.fixture
def publisher(service: SupervisorProcess, tmp_path: Path) -> Iterator[ZMQPublisher]:
    publisher = ZMQPublisher(service.address, spool_dir=tmp_path / "spool", on_error="raise")
    yield publisher
    publisher.close(timeout=0)


def emit(publisher: ZMQPublisher, runs: list[Emitted], first: int, stop: int) -> None:
    """Publish these documents of all runs, in turns."""
    for number in range(first, stop):
        for run in runs:
            publisher(*run[number])


def check_rows(server: TiledServer, runs: list[Emitted]) -> None:
    client = server.client()
    for run in runs:
        assert client[uid_of(run)]["primary"]["seq_num"].read().tolist() == list(range(1, EVENTS + 1))


def test_no_run_waits_for_the_end_of_others(
    service: SupervisorProcess, publisher: ZMQPublisher, proxy: CountingProxy, tiled_server: TiledServer
) -> None:
    runs = [run_of(EVENTS) for _ in range(RUNS)]

    def rows_of(run: Emitted) -> int:
        # Tiled answers 500 to readers while SQLite is locked, so its answers to the worker are looked at.
        with journal_of(service.journal_dir, uid_of(run)) as journal:
            return sum(node.rows for node in journal.progress().values())

    emit(publisher, runs, 0, 4)
    assert publisher.flush(60)
    wait_until(lambda: all(rows_of(run) == 2 for run in runs), 120, "each run has rows")
    emit(publisher, runs, 4, EVENTS + 3)
    assert all(publisher.wait_written(uid_of(run), 120) for run in runs)
    check_rows(tiled_server, runs)
    # SQLite takes one write at a time, and nobody has been told so.
    assert proxy.most == 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_with_the_slot_stops_nobody_else(
    service: SupervisorProcess,
    publisher: ZMQPublisher,
    proxy: CountingProxy,
    tiled_server: TiledServer,
    end: signal.Signals,
) -> None:
    runs = [run_of(EVENTS) for _ in range(4)]
    proxy.released.clear()
    emit(publisher, runs[:1], 0, 2)
    wait_until(lambda: proxy.held, 60, "a request is under way")
    (holder,) = service.workers()
    holder.send_signal(end)
    emit(publisher, runs[1:], 0, EVENTS + 3)
    try:
        assert all(publisher.wait_written(uid_of(run), 120) for run in runs[1:])
    finally:
        proxy.released.set()
        if end is signal.SIGSTOP:
            holder.send_signal(signal.SIGCONT)
    emit(publisher, runs[:1], 2, EVENTS + 3)
    assert publisher.wait_written(uid_of(runs[0]), 120)
    check_rows(tiled_server, runs)


def test_somebody_who_waits_for_documents_does_not_wait_for_company(
    service: SupervisorProcess, publisher: ZMQPublisher
) -> None:
    runs = [run_of(EVENTS) for _ in range(RUNS)]
    for number in range(EVENTS + 3):
        emit(publisher, runs, number, number + 1)
        assert publisher.flush(60)
    assert all(publisher.wait_written(uid_of(run), 120) for run in runs)
