"""A worker tells its supervisor what is in Tiled along with other messages, and by itself only now and then."""

from __future__ import annotations

import select
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from tiledbroker import Journal, JournalInvalid
from tiledbroker.protocol import messages
from tiledbroker.supervisor import WorkerTask
from tiledwriter.worker import TiledAddress, WorkerOptions
from tiledwriter.worker import _worker as worker_module
from tiledwriter.worker._worker import Worker


class Sent(list[messages.Message]):
    """What a worker has sent."""

    def take(self) -> list[messages.Message]:
        taken = list(self)
        self.clear()
        return taken


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    task = WorkerTask("ipc:///nowhere", b"1", "run", tmp_path / "run.sqlite", drain=False)
    worker = Worker(task, WorkerOptions(TiledAddress("http://127.0.0.1:1")))
    yield worker
    worker._wake_up.close()


@pytest.fixture
def sent(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Sent:
    sent = Sent()
    monkeypatch.setattr(worker, "_send_message", sent.append)
    return sent


class Reports:
    """What a worker has to report, once for each of `waiting`."""

    def __init__(self, *waiting: messages.Report) -> None:
        self.waiting = list(waiting)

    def next_report(self, now: float, *, last: bool = False) -> messages.Report | None:
        return self.waiting.pop() if last and self.waiting else None


@pytest.fixture
def reports(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Reports:
    reports = Reports()
    monkeypatch.setattr(worker, "_reporter", reports, raising=False)
    return reports


def is_woken(worker: Worker) -> bool:
    woken = bool(select.select([worker._wake_up], [], [], 0)[0])
    worker._wake_up.clear()
    return woken


def test_the_first_progress_is_told_at_once_and_the_next_with_the_next_message(worker: Worker, sent: Sent) -> None:
    worker._on_progress(3)
    assert is_woken(worker)
    worker._send_queued()
    assert sent.take() == [messages.Progress("run", 3)]
    worker._on_progress(4)
    worker._on_progress(5)
    assert not is_woken(worker)
    worker._on_reached()
    assert is_woken(worker)
    worker._send_queued()
    assert sent.take() == [messages.Progress("run", 5), messages.Reached("run")]
    worker._send_queued()
    assert sent.take() == []


def test_progress_after_a_time_is_told_by_itself(worker: Worker, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PROGRESS_SECONDS", 0.0)
    for index in (3, 4):
        worker._on_progress(index)
        assert is_woken(worker)
        worker._send_queued()
        assert sent.take() == [messages.Progress("run", index)]


def test_an_outcome_comes_after_the_progress_that_led_to_it(worker: Worker, sent: Sent, reports: Reports) -> None:
    worker._on_progress(3)
    worker._send_queued()
    sent.take()
    worker._on_progress(9)
    worker._on_end("written", "")
    worker._send_queued()
    assert sent.take() == [messages.Progress("run", 9), messages.Written("run", "written", "")]


def test_an_outcome_comes_after_the_report_of_the_requests_that_led_to_it(
    worker: Worker, sent: Sent, reports: Reports
) -> None:
    report = messages.Report("run", 1, "count", written_at=2.0)
    reports.waiting.append(report)
    worker._on_reached()
    worker._on_end("written", "")
    worker._send_queued()
    assert sent.take() == [messages.Reached("run"), report, messages.Written("run", "written", "")]


# Documents that come behind the end of a run


@pytest.fixture
def journal(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Journal]:
    """The journal of a run that was given up after two documents, and is in Tiled as far as that."""
    with Journal(worker._task.journal, "create", run_uid="run") as journal:
        for name in ("start", "descriptor"):
            journal.append_one(name, b"")
        journal.set("abandoned", True)
        journal.set("outcome", "interrupted")
        monkeypatch.setattr(worker, "_journal", journal, raising=False)
        yield journal


@pytest.fixture
def writing(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What has been concluded about the run."""
    writing = SimpleNamespace(has_concluded=False)
    monkeypatch.setattr(worker, "_writing", writing, raising=False)
    return writing


def documents(first: int, *names: str) -> messages.Documents:
    return messages.documents("run", first, [(name, 0, b"") for name in names])


def stored_names(journal: Journal) -> list[str]:
    return [record.name for record in journal.records()]


@pytest.mark.parametrize("further", [[], [documents(9, "stop")]], ids=["alone", "before a gap"])
def test_documents_behind_the_end_leave_a_run_without_an_outcome(
    worker: Worker, journal: Journal, writing: Any, further: list[messages.Documents]
) -> None:
    stored, refusal = worker._store_documents([documents(2, "event"), *further], None)
    assert ([record.idx for record in stored], refusal) == ([2], messages.GAP if further else "")
    assert journal.get("outcome") is None


def test_an_audit_that_was_planned_is_planned_again_when_documents_behind_the_end_are_written(
    worker: Worker, journal: Journal, writing: Any
) -> None:
    journal.set("audit_at", 1e9)
    worker._store_documents([documents(2, "event")], None)
    assert (journal.get("audit_at"), journal.get("late_audit")) == (None, True)


def test_a_worker_that_has_concluded_stores_no_more_documents(worker: Worker, journal: Journal, writing: Any) -> None:
    writing.has_concluded = True
    assert worker._store_documents([documents(2, "event")], None) == ([], messages.GAP)
    assert worker._store_documents([documents(0, "start", "descriptor")], None) == ([], "")
    assert journal.get("outcome") == "interrupted"
    assert journal.length == 2


@pytest.mark.parametrize("together", [True, False])
def test_documents_behind_a_stop_document_do_not_keep_it_from_being_stored(
    *, together: bool, worker: Worker, journal: Journal, writing: Any
) -> None:
    arrived = [documents(2, "event"), documents(3, "stop"), documents(4, "event")]
    if together:
        stored, refusal = worker._store_documents(arrived, None)
    else:
        stored, _ = worker._store_documents(arrived[:2], None)
        _, refusal = worker._store_documents(arrived[2:], None)
    assert len(stored) == 2
    assert "behind its stop document" in refusal
    assert stored_names(journal) == ["start", "descriptor", "event", "stop"]


# A journal that somebody removes


class Mailbox:
    """Gives a worker the supervisor's messages."""

    def __init__(self, *arriving: messages.Message) -> None:
        self._arriving = [messages.encode(message) for message in arriving]

    def recv_multipart(self, _flags: int) -> list[bytes]:
        if not self._arriving:
            raise zmq.Again
        return self._arriving.pop(0)


@pytest.fixture
def told(writing: Any) -> list[int]:
    """How many documents the writing thread was given at a time."""
    told: list[int] = []
    writing.notify = lambda records: told.append(len(records))
    return told


def take_in(worker: Worker, *arriving: messages.Message) -> None:
    vars(worker)["_mailbox"] = Mailbox(*arriving)
    worker._take_in()


def test_documents_are_acknowledged_when_the_removed_journal_is_back(
    worker: Worker, journal: Journal, told: list[int], sent: Sent
) -> None:
    journal.path.unlink()
    take_in(worker, documents(2, "event"))
    assert messages.Durable("run", 3, True) in sent.take()
    assert told == [1]
    with Journal(journal.path) as reader:
        assert stored_names(reader) == ["start", "descriptor", "event"]
        assert [entry.event for entry in reader.history()] == ["put back"]


def test_documents_are_not_acknowledged_while_the_removed_journal_cannot_be_put_back(
    worker: Worker, journal: Journal, told: list[int], sent: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(journal, "put_back", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        take_in(worker, documents(2, "event"))
    (refused,) = sent.take()
    assert isinstance(refused, messages.Refused)
    assert (refused.index, refused.reason) == (2, messages.LATER)
    take_in(worker, documents(2, "event"))
    assert messages.Durable("run", 3, True) in sent.take()
    with Journal(journal.path) as reader:
        assert stored_names(reader) == ["start", "descriptor", "event"]


def test_a_damaged_journal_that_cannot_be_put_back_does_not_end_the_worker(
    worker: Worker, journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise JournalInvalid(journal.path, "it is damaged.")

    journal.path.unlink()
    monkeypatch.setattr(journal, "put_back", fail)
    worker._look_after_journal()
    assert "it is damaged" in caplog.text
