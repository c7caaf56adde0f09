"""The spool is maintained while the callback and the shipper go on, whatever goes wrong with it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from spools import event, on_disk, seq_nums, start

from tiledbroker import ZMQPublisher, run_files
from tiledbroker.publisher import _flusher as flusher_module
from tiledbroker.publisher import _spool as spool_module
from tiledbroker.publisher._flusher import Flusher
from tiledbroker.publisher._spool import Spool
from tiledwriter.testing import free_port, wait_until


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool")
    yield spool
    spool.close()


def test_it_goes_on_after_whatever_went_wrong(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(flusher_module, "FLUSH_INTERVAL_SECONDS", 0.01)
    times = 0

    def maintain(_: Spool) -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise ZeroDivisionError("of all things")

    with monkeypatch.context() as failing:
        failing.setattr(Spool, "maintain", maintain)
        flusher = Flusher(spool, lambda: None)
        flusher.start()
        wait_until(lambda: times > 2, 60, "it has gone on")
        flusher.stop()
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (
            logging.ERROR,
            "Maintaining the spool failed; documents stay in memory or in its files, and it is tried again.",
        )
    ]
    assert not any(thread.name == "tiledbroker-flusher" for thread in threading.enumerate())


def test_it_makes_segments_as_they_are_needed(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for its next turn."""
    monkeypatch.setattr(flusher_module, "FLUSH_INTERVAL_SECONDS", 1000.0)
    monkeypatch.setattr(spool_module, "FIRST_SEGMENT_BYTES", 1000)
    monkeypatch.setattr(spool_module, "SEGMENT_BYTES", 2000)
    flusher = Flusher(spool, lambda: None)
    flusher.start()
    start(spool, "run")
    for number in range(300):
        event(spool, "run", number)
    (run,) = spool.runs()
    wait_until(lambda: not run.degraded, 60, "all is in files")
    flusher.stop()
    assert seq_nums(run) == list(range(300))
    assert len(on_disk(spool.directory, "run")) == 302


def test_it_ends_at_once(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_module, "FLUSH_INTERVAL_SECONDS", 1000.0)
    flusher = Flusher(spool, lambda: None)
    flusher.start()
    flusher.stop()


def test_documents_get_into_named_files_with_no_supervisor_to_ship_them_to(tmp_path: Path) -> None:
    with closing(ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir=tmp_path)) as publisher:
        publisher("start", {"uid": "run", "time": 0.0})
        wait_until(lambda: [path.name[:4] for path in run_files(tmp_path)] == ["run."], 60, "the file is named")
        publisher.close(0)
    assert len(on_disk(tmp_path, "run")) == 1


def test_a_disk_that_takes_its_time_holds_up_neither_callback_nor_shipping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    stuck, go_on = threading.Event(), threading.Event()
    fdatasync = os.fdatasync

    def sync_slowly(descriptor: int) -> None:
        stuck.set()
        assert go_on.wait(60)
        fdatasync(descriptor)

    monkeypatch.setattr(os, "fdatasync", sync_slowly)
    with closing(ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir=tmp_path)) as publisher:
        publisher("start", {"uid": "run", "time": 0.0})
        assert stuck.wait(60)
        for number in range(100):
            publisher("descriptor", {"uid": f"d{number}", "run_start": "run", "name": "primary", "data_keys": {}})
        (run,) = publisher._spool.runs()
        assert [record.name for record in run.read(0, 1000, 10**6)] == ["start", *["descriptor"] * 100]
        assert publisher.status().waiting == 101
        go_on.set()
        publisher.close(0)
