"""The spool is brought to its disk while the callback and the shipper go on."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from pathlib import Path

import pytest

from tiledbroker import ZMQPublisher, journal_filename
from tiledbroker import _storing as storing_module
from tiledbroker._spool import RunLog, Spool
from tiledbroker._storing import Storing
from tiledbroker._tail import read_tail
from tiledwriter.testing import free_port, wait_until


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storing_module, "INTERVAL", 0.01)


def test_it_goes_on_after_whatever_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    times = 0

    def sync(_: Spool) -> None:
        nonlocal times
        times += 1
        if times == 1:
            raise ZeroDivisionError("of all things")

    monkeypatch.setattr(Spool, "sync", sync)
    storing = Storing(Spool(tmp_path))
    storing.start()
    wait_until(lambda: times > 2, 10, "it has gone on")
    storing.stop()
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (logging.ERROR, "The spool cannot be written.")
    ]
    assert not any(thread.name == "tiledbroker-storing" for thread in threading.enumerate())


def test_documents_get_into_the_file_with_no_supervisor_to_ship_them_to(tmp_path: Path) -> None:
    with closing(ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir=tmp_path)) as publisher:
        publisher("start", {"uid": "run", "time": 0.0})
        file = tmp_path / journal_filename("run")
        wait_until(lambda: file.exists() and not read_tail(file).records, 10, "the tail is empty")
        publisher.close(0)
    assert file.exists()


def test_a_disk_that_takes_its_time_holds_up_neither_callback_nor_shipping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, goes_on = threading.Event(), threading.Event()
    store = RunLog._store

    def store_slowly(run: RunLog) -> None:
        stuck.set()
        assert goes_on.wait(10)
        store(run)

    monkeypatch.setattr(RunLog, "_store", store_slowly)
    with closing(ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir=tmp_path)) as publisher:
        publisher("start", {"uid": "run", "time": 0.0})
        assert stuck.wait(10)
        publisher("descriptor", {"uid": "d", "run_start": "run", "name": "primary", "data_keys": {}})
        (run,) = publisher._spool.runs()
        assert [record.name for record in run.read(0, 10, 1000)] == ["start", "descriptor"]
        assert publisher.status().problem
        goes_on.set()
        publisher.close(0)
