"""The publisher by itself: what it does to the acquisition process when nothing else is well."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import documents, publish
from spools import on_disk
from transports import Transport

from tiledbroker import AddressError, PublisherClosed, ZMQPublisher, open_run, run_files
from tiledbroker.log._segment import Segment
from tiledbroker.publisher._publisher import SpoolPublisher
from tiledbroker.publisher._spool import SPARE_SEGMENTS
from tiledwriter.testing import free_port, wait_until


@pytest.fixture
def publisher(transport: Transport, tmp_path: Path) -> Iterator[SpoolPublisher]:
    """One whose supervisor is not there."""
    publisher = transport.publisher(transport.new_address(), spool_dir=tmp_path / "spool")
    yield publisher
    publisher.close(timeout=0)


def test_documents_are_on_disk_when_the_callback_returns(publisher: SpoolPublisher) -> None:
    emitted = documents()
    for i, (name, doc) in enumerate(emitted):
        publisher(name, doc)
        assert len(on_disk(publisher.status().spool_dir, emitted[0][1]["uid"])) == i + 1
    assert publisher.status().waiting == len(emitted)


def test_insert_is_the_callback_by_another_name(publisher: SpoolPublisher) -> None:
    for name, doc in documents():
        publisher.insert(name, doc)
    assert publisher.status().waiting == 6


def test_status_says_how_long_documents_have_waited(publisher: SpoolPublisher) -> None:
    assert publisher.status().oldest is None
    publish(publisher, documents())
    status = publisher.status()
    (run,) = publisher._spool.runs()
    assert status.oldest == run.read(0, 1, 1)[0].received
    assert not status.connected
    assert not status.degraded


@pytest.mark.parametrize(
    "garbage",
    [
        ("event", {}),
        ("event", {"descriptor": "never seen"}),
        ("start", {"uid": 5}),
        ("start", None),
        ("nonsense", {}),
        (None, {}),
        ("stop", {"run_start": ["a", "list"]}),
    ],
)
def test_garbage_never_raises_into_the_run_engine(publisher: SpoolPublisher, garbage: tuple[Any, Any]) -> None:
    publisher(*garbage)
    publish(publisher, documents())
    assert publisher.status().waiting == 6


def test_a_document_without_a_known_run_is_kept_and_reported(
    publisher: SpoolPublisher, caplog: pytest.LogCaptureFixture
) -> None:
    publisher("event", {"descriptor": "never seen", "uid": "e", "data": {"x": 1}})
    assert publisher.status().unrouted == 1
    assert "never seen" in caplog.text
    publisher.close(timeout=0)
    (file,) = publisher.status().spool_dir.glob("_unrouted*.segment")
    assert run_files(publisher.status().spool_dir) == []
    with open_run(file) as kept:
        assert [record.name for record in kept.records()] == ["event"]


def test_a_publisher_that_is_subscribed_twice_stores_each_document_once(publisher: SpoolPublisher) -> None:
    for name, doc in documents():
        publisher(name, doc)
        publisher(name, doc)
    status = publisher.status()
    assert (status.waiting, status.unrouted) == (6, 6)


def test_on_error_raise_raises(tmp_path: Path) -> None:
    publisher = ZMQPublisher(("127.0.0.1", free_port()), spool_dir=tmp_path / "spool", on_error="raise")
    publisher.close(timeout=0)
    with pytest.raises(PublisherClosed):
        publisher("start", {"uid": "late"})


def test_a_closed_publisher_says_so_and_does_not_raise(
    publisher: SpoolPublisher, caplog: pytest.LogCaptureFixture
) -> None:
    publisher.close(timeout=0)
    publisher("start", {"uid": "late"})
    assert "closed" in caplog.text


def test_a_disk_that_fails_costs_no_document(
    publisher: SpoolPublisher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    publish(publisher, documents(0))
    with monkeypatch.context() as failing:

        def fail(*_: object) -> Segment:
            raise OSError(errno.ENOSPC, "No space left on device")

        failing.setattr(Segment, "create", fail)
        for _ in range(SPARE_SEGMENTS):
            publish(publisher, documents(0))
        emitted = documents(4)
        publish(publisher, emitted)
        wait_until(lambda: publisher.status().degraded, 60, "documents are in memory only")
        assert publisher.status().waiting == 3 + 3 * SPARE_SEGMENTS + 7
        assert "No space" in publisher.status().problem
    wait_until(lambda: not publisher.status().degraded, 60, "they are in files")
    assert "No space" in caplog.text


def test_an_unusable_spool_directory_is_no_reason_to_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.ERROR):
        publisher = ZMQPublisher(("127.0.0.1", free_port()), spool_dir=tmp_path / "file" / "spool")
        publish(publisher, documents())
    assert publisher.status().degraded
    assert publisher.status().waiting == 6
    assert "memory" in caplog.text
    publisher.close(timeout=0)
    assert "6 documents" in caplog.text


def test_several_threads_may_publish(publisher: SpoolPublisher) -> None:
    threads = [threading.Thread(target=publish, args=(publisher, documents(50))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert publisher.status().waiting == 4 * 53
    publisher.close(timeout=0)
    for file in run_files(publisher.status().spool_dir):
        with open_run(file) as spooled:
            assert [record.name for record in spooled.records()] == ["start", "descriptor", *["event"] * 50, "stop"]


def test_a_forked_child_leaves_the_spool_to_its_parent(publisher: SpoolPublisher) -> None:
    emitted = documents()
    publish(publisher, emitted[:2])
    child = os.fork()
    if child == 0:
        try:
            publisher(*emitted[2])
            publisher.close()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    publish(publisher, emitted[2:])
    assert publisher.status().waiting == len(emitted)


@pytest.mark.parametrize("how", ["end", "exception"])
def test_an_interpreter_that_ends_leaves_its_documents_in_the_spool(how: str, tmp_path: Path) -> None:
    port = free_port()
    code = f"""
from tiledbroker import ZMQPublisher
publisher = ZMQPublisher(("127.0.0.1", {port}), spool_dir={str(tmp_path)!r})
publisher("start", {{"uid": "r", "time": 1.0}})
{"raise SystemExit(3)" if how == "exception" else ""}
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == (3 if how == "exception" else 0)
    assert set(done.stderr.splitlines()) <= {
        f"Documents are spooled but not shipped to tcp://127.0.0.1:{port}: nothing is listening there."
    }
    (file,) = run_files(tmp_path)
    with open_run(file) as spooled:
        assert spooled.length == 1


def test_wrong_arguments_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(AddressError, match="5579"):
        ZMQPublisher("ingest.example", spool_dir=tmp_path)
    with pytest.raises(ValueError, match="on_error"):
        ZMQPublisher(spool_dir=tmp_path, on_error="ignore")  # type: ignore[arg-type]
    for limit in ("5", -1, None, True, float("nan")):
        with pytest.raises(ValueError, match="spool_limit must be a number of bytes"):
            ZMQPublisher(spool_dir=tmp_path, spool_limit=limit)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a ClientCurve, not <object"):
        ZMQPublisher(spool_dir=tmp_path, curve=object())  # type: ignore[arg-type]
