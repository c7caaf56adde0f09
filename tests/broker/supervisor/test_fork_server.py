"""Workers are forked without anybody waiting for it, and whatever becomes of the fork server."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
import zmq
from lone_workers import fail, live_while_supervised, refuse_to_prepare
from runs import documents, publish

from tiledbroker import ZMQPublisher
from tiledbroker.protocol import messages
from tiledbroker.supervisor import _fork_server
from tiledbroker.supervisor._fork_server import ForkServer, WorkerProcess
from tiledbroker.supervisor._supervisor import Supervisor
from tiledbroker.supervisor._tasks import WorkerCommand, WorkerTask
from tiledbroker.supervisor.frontend import Frontend
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, wait_until

pytestmark = [pytest.mark.filterwarnings("default:::tiled")]


def task_of(directory: Path, name: str = "run") -> WorkerTask:
    return WorkerTask("", b"", name, directory / f"{name}.sqlite", drain=False)


@pytest.fixture
def server() -> Iterator[ForkServer]:
    server = ForkServer(WorkerCommand(live_while_supervised))
    yield server
    server.close()


def wait_for(server: ForkServer, condition: object) -> None:
    def holds() -> bool:
        server.receive()
        server.check(time.monotonic())
        return bool(condition())  # type: ignore[operator]

    wait_until(holds, 30, "the fork server does as it should")


def is_there(directory: Path, name: str) -> bool:
    return (directory / name).exists()


@pytest.mark.parametrize(("name", "code"), [("0", 0), ("3", 3), ("raises", 1)])
def test_a_worker_s_exit_code_is_told(name: str, code: int, tmp_path: Path) -> None:
    server = ForkServer(WorkerCommand(fail))
    worker = server.start_worker(task_of(tmp_path, name))
    wait_for(server, lambda: worker.ended)
    assert worker.pid is not None
    assert worker.exit_code == code
    server.close()


def test_changed_command_is_for_later_workers_only(server: ForkServer, tmp_path: Path) -> None:
    first = server.start_worker(task_of(tmp_path, "first"))
    server.change_command(WorkerCommand(fail))
    second = server.start_worker(task_of(tmp_path, "3"))
    wait_for(server, lambda: second.ended and first.pid is not None)
    assert second.exit_code == 3
    assert not first.ended
    first.kill()
    wait_for(server, lambda: first.ended)
    assert first.exit_code == -signal.SIGKILL


def test_command_is_kept_for_next_fork_server(tmp_path: Path) -> None:
    server = ForkServer(WorkerCommand(live_while_supervised))
    server.change_command(WorkerCommand(fail))
    worker = server.start_worker(task_of(tmp_path, "3"))
    wait_for(server, lambda: worker.ended)
    assert worker.exit_code == 3
    server.close()


def test_a_worker_that_is_killed_has_the_signal_for_its_exit_code(server: ForkServer, tmp_path: Path) -> None:
    worker = server.start_worker(task_of(tmp_path))
    wait_for(server, lambda: is_there(tmp_path, "run.alive"))
    wait_for(server, lambda: worker.pid is not None)
    worker.kill()
    wait_for(server, lambda: worker.ended)
    assert worker.exit_code == -signal.SIGKILL


def test_each_change_of_a_worker_is_told_once(server: ForkServer, tmp_path: Path) -> None:
    worker = server.start_worker(task_of(tmp_path))
    told: list[tuple[WorkerProcess, bool]] = []

    def has_ended() -> bool:
        told.extend((process, process.ended) for process in server.receive())
        if worker.pid is not None and not worker.ended:
            worker.kill()
        return worker.ended

    wait_until(has_ended, 30, "the worker has ended")
    assert told in ([(worker, False), (worker, True)], [(worker, True)])


def test_nobody_waits_for_the_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = tmp_path / "gate"
    (tmp_path / "slow_to_import.py").write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists():\n    time.sleep(0.01)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    server = ForkServer(WorkerCommand(live_while_supervised, ("slow_to_import",)))
    workers = [server.start_worker(task_of(tmp_path, f"run-{number}")) for number in range(40)]
    assert server.receive() == []
    gate.touch()
    wait_for(server, lambda: all(is_there(tmp_path, f"run-{number}.alive") for number in range(40)))
    wait_for(server, lambda: all(worker.pid is not None for worker in workers))
    server.close()
    wait_until(lambda: all(is_there(tmp_path, f"run-{number}.orphaned") for number in range(40)), 30, "they have ended")


def test_no_worker_is_forked_if_the_first_fork_server_is_not_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_UNPREPARED", str(tmp_path))
    server = ForkServer(WorkerCommand(live_while_supervised, prepare=refuse_to_prepare))
    worker = server.start_worker(task_of(tmp_path))
    wait_for(server, lambda: server.unusable)
    assert server.unusable == "the lab's module is broken"
    assert worker.pid is None
    server.close()
    assert not is_there(tmp_path, "run.alive")


def test_a_later_fork_server_that_is_not_prepared_forks_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEST_UNPREPARED", str(tmp_path / "broken"))
    monkeypatch.setattr(_fork_server, "_RESTART_PAUSE_SECONDS", 0.0)
    server = ForkServer(WorkerCommand(live_while_supervised, prepare=refuse_to_prepare))
    first = server.start_worker(task_of(tmp_path, "first"))
    wait_for(server, lambda: first.pid is not None)
    (tmp_path / "broken").touch()
    assert server.pid is not None
    before = server.pid
    os.kill(before, signal.SIGKILL)
    wait_for(server, lambda: server.pid not in (None, before))
    second = server.start_worker(task_of(tmp_path, "second"))
    wait_for(server, lambda: second.pid is not None)
    assert not server.unusable
    assert "Workers are not prepared: the lab's module is broken." in caplog.text
    server.close()


def test_workers_outlive_a_fork_server_that_is_killed_and_others_are_forked_by_the_next(
    server: ForkServer, tmp_path: Path
) -> None:
    before = server.start_worker(task_of(tmp_path, "before"))
    wait_for(server, lambda: before.pid is not None)
    first = server.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    wait_for(server, lambda: server.pid not in (first, None))
    after = server.start_worker(task_of(tmp_path, "after"))
    wait_for(server, lambda: is_there(tmp_path, "after.alive"))
    assert not before.ended
    assert psutil.Process(before.pid).is_running()
    (tmp_path / "before.end").touch()
    wait_for(server, lambda: before.ended)
    assert before.exit_code is None
    assert not after.ended


def test_a_worker_that_was_not_forked_yet_is_given_up_with_its_fork_server(server: ForkServer, tmp_path: Path) -> None:
    server.ensure_running()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    worker = server.start_worker(task_of(tmp_path))
    os.kill(server.pid, signal.SIGKILL)
    wait_for(server, lambda: worker.ended)
    assert worker.pid is None


def test_it_says_that_there_are_changes_that_its_descriptor_does_not_show(server: ForkServer, tmp_path: Path) -> None:
    server.ensure_running()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    worker = server.start_worker(task_of(tmp_path))
    assert not server.has_changes
    server._drop_server("is dropped")
    assert server.has_changes
    assert server.receive() == [worker]
    assert not server.has_changes


def test_a_fork_server_that_hangs_is_replaced(
    server: ForkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ensure_running()
    hanging = server.pid
    assert hanging is not None
    os.kill(hanging, signal.SIGSTOP)
    monkeypatch.setattr(_fork_server, "FORK_TIMEOUT_SECONDS", 0.1)
    worker = server.start_worker(task_of(tmp_path))
    wait_for(server, lambda: worker.ended)
    monkeypatch.undo()
    wait_for(server, lambda: server.pid not in (hanging, None))
    server.start_worker(task_of(tmp_path))
    wait_for(server, lambda: is_there(tmp_path, "run.alive"))


def test_one_that_ended_a_moment_ago_is_not_started_over_and_over(tmp_path: Path) -> None:
    server = ForkServer(WorkerCommand(live_while_supervised, ("there_is_no_such_module",)))
    server.ensure_running()
    wait_until(lambda: server.receive() == [] and server.pid is None, 30, "it has ended")
    server._start_at = time.monotonic() + 60.0
    with pytest.raises(OSError, match="a moment ago"):
        server.start_worker(task_of(tmp_path))
    server.close()


# With a supervisor


def test_a_supervisor_answers_while_its_fork_server_hangs(tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    supervisor = Supervisor(tmp_path / "journals", WorkerCommand(live_while_supervised), partial(Frontend, address))
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.setsockopt(zmq.LINGER, 0)
        peer.setsockopt(zmq.ROUTING_ID, b"\x01" * messages.IDENTITY_BYTES)
        peer.connect(address)

        def ask(message: messages.Message) -> messages.Message:
            peer.send_multipart(messages.encode(message))
            assert peer.poll(10_000)
            return messages.decode(peer.recv_multipart())

        try:
            assert isinstance(ask(messages.Hello("test", {}, [])), messages.Welcome)
            wait_until(lambda: supervisor._pool.fork_server.pid is not None, 60, "there is a fork server")
            assert supervisor._pool.fork_server.pid is not None
            os.kill(supervisor._pool.fork_server.pid, signal.SIGSTOP)
            peer.send_multipart(messages.encode(messages.documents("run", 0, [("start", 0, b"")])))
            wait_until(lambda: supervisor._pool._workers, 60, "a worker is asked for")
            for token in range(20):
                assert ask(messages.Ping(token)) == messages.Pong(token)
        finally:
            supervisor.stop()
            thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("length", [100, 200])
def test_neither_the_paths_of_temporary_files_nor_of_journals_may_be_too_long(
    length: int, tmp_path: Path, tiled_server: TiledServer
) -> None:
    temporary = tmp_path / ("t" * length)
    temporary.mkdir()
    journals = tmp_path / ("j" * length) / "journals"
    journals.parent.mkdir()
    environment = {"TMPDIR": str(temporary)}
    with SupervisorProcess(journals, tiled_server, environment=environment) as supervisor:
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool")
        try:
            assert publisher.wait_written(publish(publisher, documents()), timeout=60)
        finally:
            publisher.close(timeout=0)
    assert not [path for path in temporary.iterdir() if path.name.startswith("tiledwriter")]


def test_runs_have_workers_after_temporary_files_and_the_fork_server_are_gone(
    supervisor: SupervisorProcess, tmp_path: Path, tiled_server: TiledServer
) -> None:
    publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool")
    try:
        assert publisher.wait_written(publish(publisher, documents()), timeout=60)
        for child in psutil.Process(supervisor.pid).children():
            child.kill()
        assert publisher.wait_written(publish(publisher, documents()), timeout=60)
    finally:
        publisher.close(timeout=0)
    assert "starting another" in supervisor.log.read_text()
