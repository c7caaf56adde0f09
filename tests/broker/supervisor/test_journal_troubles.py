"""Trouble with one run's journal stays with that run: it is refused with the reason, and all others go on."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq
from disks import fill
from peers import Peer, ask, hear
from runs import documents, length_of, publish, supervisor_without_tiled
from stored_runs import journaled, records_of
from transports import Transport
from users import without_privileges

from tiledbroker import Journal, ZMQPublisher
from tiledbroker._filesystem import explain_write_error
from tiledbroker.log._journal_files import FINISHED_SUBDIRECTORY
from tiledbroker.protocol import messages
from tiledbroker.supervisor import ClientLimits, Source
from tiledbroker.supervisor._journal_facts import read_facts
from tiledbroker.supervisor._retry import request_retry
from tiledbroker.supervisor._supervisor import Supervisor
from tiledbroker.supervisor._tasks import WorkerCommand, WorkerTask
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main
from tiledwriter.cli.supervisor import main as serve
from tiledwriter.testing import free_port, wait_until

pytestmark = [pytest.mark.filterwarnings("default:::tiled")]


def take_nothing(task: WorkerTask) -> None:
    """A worker that is of no interest here."""


@contextmanager
def supervising(directory: Path, transport: Transport) -> Iterator[tuple[Supervisor, Peer]]:
    """A supervisor in a thread of this process, and a publisher that it has welcomed."""
    address = transport.new_site()
    supervisor = Supervisor(directory, WorkerCommand(take_nothing), partial(transport.source, address, ClientLimits()))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        with transport.peer(address) as dealer:
            assert isinstance(ask(dealer, messages.Hello("test", {}, [])), messages.Welcome)
            yield supervisor, dealer
            dealer.send_multipart(messages.encode(messages.Ping(7)))
            assert hear(dealer, messages.Pong) == messages.Pong(7)
            assert thread.is_alive()
    finally:
        supervisor.stop()
        thread.join(30)


def documents_of(uid: str) -> messages.Documents:
    return messages.documents(uid, 0, [("start", 0, b"")])


def make_rubbish(path: Path) -> None:
    path.write_bytes(b"rubbish" * 5000)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_another_runs_file(path: Path) -> None:
    other = journaled(documents(), path.parent / "elsewhere")
    shutil.copyfile(other, path)


def make_cut_file(path: Path) -> None:
    make_another_runs_file(path)
    os.truncate(path, path.stat().st_size // 2)


def make_nested_outcome(path: Path) -> None:
    with Journal(path, "create", run_uid=path.stem):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO state VALUES('outcome', ?)", ("[" * 100_000,))
        connection.commit()


def make_log_alone(path: Path) -> None:
    with Journal(path, "create", run_uid=path.stem) as journal:
        journal.append_one("start", b"something")
        path.rename(path.with_name("moved"))
        shutil.copyfile(f"{path}-wal", path.with_name("copy"))
    # SQLite has removed its own when the file was closed.
    path.with_name("copy").rename(f"{path}-wal")
    path.with_name("moved").unlink()


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path)


TROUBLES = [make_rubbish, make_directory, make_another_runs_file, make_cut_file, make_nested_outcome]


@pytest.mark.parametrize("make", [*TROUBLES, make_dangling_link])
def test_a_supervisor_starts_beside_what_is_no_journal(
    make: Callable[[Path], None], transport: Transport, tmp_path: Path
) -> None:
    make(tmp_path / "run.sqlite")
    request_retry(tmp_path / "run.sqlite")
    with supervising(tmp_path, transport) as (supervisor, _):
        wait_until(lambda: supervisor._survey.done, 30, "all is looked at")
        assert supervisor.count_unwritten() == {"failed": 1}
        wait_until(lambda: not (tmp_path / "run.sqlite.retry").exists(), 30, "the request is answered")
    assert os.path.lexists(tmp_path / "run.sqlite")


def test_the_documents_in_a_log_without_its_journal_are_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_log_alone(tmp_path / "run.sqlite")
    alone = tmp_path / "run.sqlite-wal"
    before = alone.read_bytes()
    assert main(["ls", str(tmp_path)]) == ExitCode.FAILED
    assert f"{alone}: its main file is missing" in capsys.readouterr().out
    assert main(["show", "run", str(tmp_path)]) == ExitCode.FAILED
    assert f"{alone}: its main file is missing" in capsys.readouterr().err
    monkeypatch.setenv("TILED_API_KEY", "secret")
    command = ["--tiled", f"http://127.0.0.1:{free_port()}", "--drain", "--journal-dir", str(tmp_path)]
    assert serve(command) == ExitCode.INCOMPLETE
    assert "its main file is missing" in capsys.readouterr().err
    assert alone.read_bytes() == before


@pytest.mark.parametrize("folder", [".", FINISHED_SUBDIRECTORY])
@pytest.mark.parametrize("make", TROUBLES)
def test_documents_for_what_is_no_journal_are_refused_with_the_reason(
    make: Callable[[Path], None], folder: str, transport: Transport, tmp_path: Path
) -> None:
    with supervising(tmp_path, transport) as (_, dealer):
        (tmp_path / folder).mkdir(exist_ok=True)
        make(tmp_path / folder / "run.sqlite")
        welcome = ask(dealer, messages.Hello("test", {"run": 1}, []))
        assert isinstance(welcome, messages.Welcome)
        dealer.send_multipart(messages.encode(documents_of("run")))
        refusal = hear(dealer, messages.Refused)
        assert refusal.reason not in (messages.LATER, messages.GAP)
        assert "run.sqlite" in refusal.reason


def test_a_file_of_another_run_s_name_is_not_taken_for_that_run(tmp_path: Path) -> None:
    path = journaled(documents(), tmp_path)
    path.rename(tmp_path / "other.sqlite")
    run = read_facts(tmp_path / "other.sqlite")
    assert run.unusable
    assert "has another name" in run.reason


class Unlucky(Supervisor):
    """Fails in one of its steps, whenever a certain run is concerned."""

    def __init__(self, directory: Path, step: str, make_source: Callable[[], Source]) -> None:
        super().__init__(directory, WorkerCommand(take_nothing), make_source)
        whole: Callable[..., Any] = getattr(self, step)

        def broken(*arguments: Any) -> Any:
            if any("unlucky" in str(getattr(each, "uid", getattr(each, "run", each))) for each in arguments):
                raise PermissionError(13, "Permission denied", "unlucky.sqlite")
            return whole(*arguments)

        setattr(self, step, broken)


@pytest.mark.parametrize(
    "step", ["_relay_message", "_describe_run", "_start_worker", "_handle_worker_end", "_request_retry"]
)
def test_an_exception_for_one_run_ends_no_loop(step: str, transport: Transport, tmp_path: Path) -> None:
    address = transport.new_site()
    request_retry(tmp_path / "unlucky.sqlite")
    supervisor = Unlucky(tmp_path, step, partial(transport.source, address, ClientLimits()))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        with transport.peer(address) as dealer:
            welcome = ask(dealer, messages.Hello("test", {"unlucky": 1}, []))
            assert isinstance(welcome, messages.Welcome)
            assert welcome.runs["unlucky"].next == 0
            dealer.send_multipart(messages.encode(documents_of("unlucky")))
            if step in ("_relay_message", "_start_worker"):
                refusal = hear(dealer, messages.Refused)
                assert (refusal.run, refusal.reason) == ("unlucky", messages.LATER)
                assert "Permission denied" in refusal.detail
            dealer.send_multipart(messages.encode(documents_of("lucky")))
            wait_until(lambda: "lucky" in supervisor._scheduler.runs, 20, "it is taken")
            if step == "_handle_worker_end":
                assert "there was an error" in hear(dealer, messages.Refused).detail
                run = supervisor._scheduler.runs.get("unlucky")
                assert run is None or run.worker is None
            dealer.send_multipart(messages.encode(messages.Ping(7)))
            assert hear(dealer, messages.Pong) == messages.Pong(7)
            assert thread.is_alive()
    finally:
        supervisor.stop()
        thread.join(30)


def test_a_journal_that_may_not_be_read_is_refused_for_now_with_the_reason(tmp_path: Path) -> None:
    run = documents()
    path = journaled(run, tmp_path)
    path.chmod(0)
    code = f"""
from pathlib import Path
from tiledbroker.supervisor._journal_facts import find_facts
run = find_facts(Path({str(tmp_path)!r}), {path.stem!r})
print(run.unusable, run.unavailable, run.reason)
"""
    done = subprocess.run(
        [*without_privileges(), sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith(f"True True its journal cannot be used: {path}: Permission denied")


def test_a_publisher_of_another_protocol_version_is_told_so(wire: Transport, tmp_path: Path) -> None:
    with supervising(tmp_path, wire) as (_, dealer):
        preamble, header = messages.encode(messages.Hello("test", {}, []))
        dealer.send_multipart([preamble[:2] + b"\x02" + preamble[3:], header])
        refusal = messages.decode(dealer.recv_multipart())
    assert refusal == messages.Refused("", 0, "this supervisor speaks protocol version 1, this publisher 2")


# A full disk


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "the journal's disk is full: No space left on device"),
        (OSError(122, "Disk quota exceeded"), "the journal's disk is full: Disk quota exceeded"),
        (PermissionError(13, "Permission denied"), "the journal cannot be written: [Errno 13] Permission denied"),
    ],
)
def test_why_a_journal_cannot_be_written_is_said(error: OSError, said: str) -> None:
    assert explain_write_error(Path("/journals/run.sqlite"), error).startswith(said)


@pytest.mark.parametrize("by_worker", [True, False], ids=["by the worker", "by the supervisor"])
@pytest.mark.parametrize("before", [True, False], ids=["before the run", "in mid-run"])
def test_a_publisher_is_told_of_a_full_disk_and_all_is_delivered_when_there_is_space(
    before: bool, by_worker: bool, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_worker:
        monkeypatch.setenv("TILEDWRITER_MIN_FREE", "0")
    told = f"the journal's disk is full: {'No space left on device' if by_worker else '0 B free in'}"
    emitted = documents(50, padding="x" * 20_000)
    with supervisor_without_tiled(small_disk / "journals") as supervisor:
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool")
        try:
            if not before:
                publish(publisher, emitted[:5])
                assert publisher.flush(60)
            filling = fill(small_disk)
            uid = publish(publisher, emitted if before else emitted[5:])
            uid = str(emitted[0][1]["uid"])
            wait_until(lambda: told in publisher.status().problem, 60, "the publisher is told")
            filling.unlink()
            assert publisher.flush(60)
            wait_until(lambda: not publisher.status().problem, 20, "all is well")
        finally:
            publisher.close(timeout=0)
        assert length_of(supervisor, uid) == len(emitted)


@contextmanager
def working(directory: Path) -> Iterator[tuple[Callable[[messages.Message], None], Callable[..., Any]]]:
    """A worker of a run in a thread, without Tiled; gives what sends to it, and what waits for its next message."""
    from tiledwriter.worker._worker import TiledAddress, Worker, WorkerOptions

    with zmq.Context() as context, context.socket(zmq.ROUTER) as mailbox:
        mailbox.setsockopt(zmq.RCVTIMEO, 60_000)
        mailbox.bind(f"ipc://{directory}/workers.ipc")
        task = WorkerTask(f"ipc://{directory}/workers.ipc", b"token", "run", directory / "run.sqlite", drain=False)
        options = WorkerOptions(TiledAddress(f"http://127.0.0.1:{free_port()}"))
        thread = threading.Thread(target=Worker(task, options).run)
        thread.start()

        def send(frames: list[bytes] | messages.Message) -> None:
            mailbox.send_multipart([b"token", *(frames if isinstance(frames, list) else messages.encode(frames))])

        def hear(kind: type[messages.Message]) -> Any:
            while not isinstance(message := messages.decode(mailbox.recv_multipart()[1:]), kind):
                pass
            return message

        try:
            hear(messages.Ready)
            yield send, hear
        finally:
            send(messages.Finish())
            thread.join(30)


def test_a_worker_that_hears_nonsense_goes_on(tmp_path: Path) -> None:
    records = [(record.name, record.crc, record.body) for record in records_of(documents())]
    with working(tmp_path) as (send, hear):
        send([b"TW\x01\x03", b"nonsense", b""])
        send([b"nonsense"])
        damaged = [*records[:2], (records[2][0], records[2][1] ^ 1, records[2][2])]
        send(messages.documents("run", 0, damaged))
        assert "document 2 was damaged" in hear(messages.Refused).reason
        send(messages.documents("run", 0, records))
        assert hear(messages.Durable) == messages.Durable("run", len(records), ended=True)
    with Journal(tmp_path / "run.sqlite") as journal:
        assert journal.length == len(records)


def test_documents_after_the_end_take_the_outcome_back(tmp_path: Path) -> None:
    """Otherwise the next supervisor, or this one while Tiled is away, takes the run for complete."""
    stop = {"uid": "stop", "run_start": "run", "time": 2.0, "exit_status": "success"}
    emitted = [("start", {"uid": "run", "time": 1.0}), ("stop", stop)]
    records = [(record.name, record.crc, record.body) for record in records_of(emitted)]
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        journal.append_verified(0, records[:-1])
        for key, value in {"abandoned": True, "outcome": "interrupted", "audit_at": 1.0}.items():
            journal.set(key, value)
    assert read_facts(tmp_path / "run.sqlite").complete
    with working(tmp_path) as (send, hear):
        send(messages.documents("run", 0, records[:-1]))
        hear(messages.Durable)
        with Journal(tmp_path / "run.sqlite") as journal:
            assert journal.get("outcome") == "interrupted"
        send(messages.documents("run", len(records) - 1, records[-1:]))
        hear(messages.Durable)
        with Journal(tmp_path / "run.sqlite") as journal:
            assert (journal.get("outcome"), journal.get("audit_at")) == (None, None)
    facts = read_facts(tmp_path / "run.sqlite")
    assert (facts.complete, facts.ended, facts.length) == (False, True, len(records))
