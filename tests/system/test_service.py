"""The supervisor as a service of systemd, with the test in systemd's place."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import documents, publish
from users import without_privileges

from tiledbroker import ZMQPublisher
from tiledbroker.supervisor import read_snapshot
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

LAB = """
def rename(doc):
    return {**doc, "plan_name": "renamed"}
"""


SLOW = """
import pathlib, time
pathlib.Path({begun!r}).touch()
while not pathlib.Path({gate!r}).exists():
    time.sleep(0.01)
"""


class ServiceManager:
    """Keeps what a service tells it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.setblocking(False)

    def listen(self) -> list[str]:
        """Return all lines that were told so far."""
        while True:
            try:
                self.said += self._socket.recv(65_536).decode().splitlines()
            except BlockingIOError:
                return self.said

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ServiceManager]:
    manager = ServiceManager(tmp_path / "notify")
    yield manager
    manager.close()


def test_systemd_is_told_the_life_of_the_service(
    manager: ServiceManager, tmp_path: Path, tiled_server: TiledServer
) -> None:
    environment = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "600000"}
    supervisor = SupervisorProcess(tmp_path / "journals", tiled_server, environment=environment)
    with supervisor:
        wait_until(lambda: "READY=1" in manager.listen(), 30, "the service is ready")
        wait_until(lambda: manager.listen().count("WATCHDOG=1") > 3, 30, "the watchdog is fed")
        wait_until(lambda: "STATUS=runs: none is open" in manager.listen(), 30, "the status is told")
        os.kill(supervisor.pid, signal.SIGSTOP)
        try:
            manager.listen()
            fed = manager.said.count("WATCHDOG=1")
            with pytest.raises(TimeoutError):
                wait_until(lambda: manager.listen().count("WATCHDOG=1") > fed + 1, 2, "a stopped loop is fed")
        finally:
            os.kill(supervisor.pid, signal.SIGCONT)
    assert manager.listen()[-1] == "STOPPING=1" or "STOPPING=1" in manager.said
    ready = manager.said.index("READY=1")
    assert "WATCHDOG=1" not in manager.said[:ready]


def test_new_worker_uses_configuration_that_was_read_again(
    manager: ServiceManager,
    tmp_path: Path,
    tiled_server: TiledServer,
    publisher_to: Callable[[SupervisorProcess], ZMQPublisher],
) -> None:
    """Also a patch that was written while the service ran."""
    config = tmp_path / "config.yaml"
    config.write_text("log_level: INFO\n")
    environment = {"NOTIFY_SOCKET": manager.path, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    options = ["--config", str(config)]
    with SupervisorProcess(tmp_path / "journals", tiled_server, options=options, environment=environment) as supervisor:
        publisher = publisher_to(supervisor)
        before = publish(publisher, documents())
        assert publisher.wait_written(before, timeout=60)
        (tmp_path / "lab_of_service.py").write_text(LAB)
        config.write_text("patches: {start: 'lab_of_service:rename'}\nmax_workers: 7\n")
        os.kill(supervisor.pid, signal.SIGHUP)
        wait_until(lambda: manager.listen().count("READY=1") == 2, 60, "the configuration is read")
        assert [line for line in manager.said if line.startswith(("RELOADING", "READY"))] == [
            *("READY=1", "RELOADING=1", "READY=1")
        ]
        after = publish(publisher, documents())
        assert publisher.wait_written(after, timeout=60)
        config.write_text("patches: [")
        os.kill(supervisor.pid, signal.SIGHUP)
        wait_until(lambda: manager.listen().count("READY=1") == 3, 60, "the broken file is found to be so")
        last = publish(publisher, documents())
        assert publisher.wait_written(last, timeout=60)
    container = tiled_server.client()
    plans = [container[uid].metadata["start"].get("plan_name") for uid in (before, after, last)]
    assert plans == [None, "renamed", "renamed"]
    log = supervisor.log.read_text()
    assert log.count("The configuration was read again; changed: patches.") == 1
    assert log.count("Until a restart, these settings stay as they were at the start: max_workers.") == 1
    assert log.count("The configuration cannot be used, and nothing is changed") == 1


def with_plugin(tmp_path: Path, server: TiledServer, code: str, setting: str) -> SupervisorProcess:
    (tmp_path / "lab_of_service.py").write_text(code)
    config = tmp_path / "config.yaml"
    config.write_text(f"patches: {{start: 'lab_of_service:{setting}'}}\n")
    environment = {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    return SupervisorProcess(tmp_path / "journals", server, options=["--config", str(config)], environment=environment)


def test_nobody_waits_for_the_import_of_plugins(
    tmp_path: Path, tiled_server: TiledServer, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    code = SLOW.format(begun=str(begun), gate=str(gate)) + LAB
    with with_plugin(tmp_path, tiled_server, code, "rename") as supervisor:
        # It listens, or it would not be entered; the import has not ended.
        wait_until(begun.exists, 30, "the import has begun")
        publisher = publisher_to(supervisor)
        uid = publish(publisher, documents())
        gate.touch()
        assert publisher.wait_written(uid, timeout=60)
    assert tiled_server.client()[uid].metadata["start"]["plan_name"] == "renamed"


def test_a_plugin_that_cannot_be_imported_ends_a_service_that_has_begun_to_listen(
    tmp_path: Path, tiled_server: TiledServer, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    code = SLOW.format(begun=str(begun), gate=str(gate)) + "import no_such_module\n" + LAB
    with with_plugin(tmp_path, tiled_server, code, "rename") as supervisor:
        wait_until(begun.exists, 30, "the import has begun")
        publisher = publisher_to(supervisor)
        uid = publish(publisher, documents())
        gate.touch()
        wait_until(lambda: not supervisor.running, 30, "the service has ended")
        assert supervisor.returncode == 2
        assert (
            "tiledwriter-supervisor: 'start': lab_of_service:rename cannot be imported (ModuleNotFoundError: "
            "No module named 'no_such_module')"
        ) in supervisor.log.read_text()
        with pytest.raises(LookupError):
            journal_of(supervisor.journal_dir, uid)
        (tmp_path / "lab_of_service.py").write_text(LAB)
        supervisor.kill()  # which only closes its log
        supervisor.start()
        assert publisher.wait_written(uid, timeout=60)


@pytest.mark.parametrize(("code", "setting"), [(LAB, "renaem"), ("", "rename")])
def test_a_misspelt_plugin_is_found_before_the_service_listens(
    tmp_path: Path, tiled_server: TiledServer, code: str, setting: str
) -> None:
    supervisor = with_plugin(tmp_path, tiled_server, code, setting)
    with pytest.raises(RuntimeError):
        supervisor.__enter__()
    assert f"lab_of_service:{setting} cannot be imported" in supervisor.log.read_text()
    assert "Listening" not in supervisor.log.read_text()


def test_documents_wait_for_space_and_user_is_told_once(
    small_disk: Path, tmp_path: Path, tiled_server: TiledServer, caplog: pytest.LogCaptureFixture
) -> None:
    from disks import fill

    environment = {"TILEDWRITER_MIN_FREE": "400KiB"}
    with SupervisorProcess(small_disk / "journals", tiled_server, environment=environment) as supervisor:
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool", on_error="raise")
        first = publish(publisher, documents())
        assert publisher.wait_written(first, timeout=60)
        filling = fill(small_disk, leaving=100_000)
        wait_until(lambda: "No documents are accepted" in supervisor.log.read_text(), 30, "the disk is found full")
        snapshot = read_snapshot(supervisor.journal_dir)
        assert (snapshot.state, snapshot.disks[0].state, snapshot.disks[0].min_free) == ("failed", "full", 400 * 1024)
        second = publish(publisher, documents())
        why = "min_free is 400.0 KiB"
        wait_until(lambda: why in publisher.status().problem, 30, "the user is told")
        assert not publisher.flush(timeout=0.5)
        filling.unlink()
        assert publisher.wait_written(second, timeout=60)
        assert not publisher.status().problem
        publisher.close()
    log = supervisor.log.read_text()
    assert log.count("No documents are accepted") == log.count("Documents are accepted again") == 1
    assert "is refused" not in log
    assert caplog.text.count("does not accept them now") == 1
    with journal_of(supervisor.journal_dir, second) as journal:
        assert journal.get("outcome") == "written"


def remove_lock(journal_dir: Path) -> Path:
    (journal_dir / ".supervisor.lock").unlink()
    return journal_dir


def move_away(journal_dir: Path) -> Path:
    """Have the directory replaced by an empty one, and return where it is now."""
    moved = journal_dir.with_name("moved")
    journal_dir.rename(moved)
    journal_dir.mkdir(mode=0o700)
    return moved


@pytest.mark.parametrize("harm", [remove_lock, move_away])
def test_a_service_whose_journals_another_one_could_use_ends_and_says_so(
    harm: Callable[[Path], Path], tmp_path: Path, tiled_server: TiledServer
) -> None:
    emitted = documents(3)
    uid = emitted[0][1]["uid"]
    journals = tmp_path / "journals"
    with SupervisorProcess(journals, tiled_server) as supervisor:
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool", on_error="raise")
        for name, doc in emitted[:-1]:
            publisher(name, doc)
        assert publisher.flush(60)
        kept = harm(journals)
        wait_until(lambda: not supervisor.running, 60, "the service has ended")
        assert supervisor.returncode == 1
        text = supervisor.log.read_text()
        assert f"{journals}: its file .supervisor.lock, or the directory itself, was removed or replaced" in text
        assert "Traceback" not in text
        # Whoever puts it in order has all that was acknowledged.
        with journal_of(kept, uid) as journal:
            assert journal.length == len(emitted) - 1
        supervisor.kill()  # which only closes its log
        supervisor.start()
        publisher(*emitted[-1])
        assert publisher.wait_written(uid, 120)
        publisher.close()


def test_a_service_whose_directory_may_not_be_entered_for_a_while_goes_on(
    tmp_path: Path, tiled_server: TiledServer
) -> None:
    emitted = documents(3)
    journals = tmp_path / "journals"
    supervisor = SupervisorProcess(journals, tiled_server)
    supervisor._command[:0] = without_privileges()
    with supervisor:
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool", on_error="raise")
        for name, doc in emitted[:-1]:
            publisher(name, doc)
        assert publisher.flush(60)
        journals.chmod(0)
        try:
            wait_until(lambda: "cannot be looked at: Permission denied" in supervisor.log.read_text(), 60, "it is said")
            assert supervisor.running
        finally:
            journals.chmod(0o700)
        publisher(*emitted[-1])
        assert publisher.wait_written(emitted[0][1]["uid"], 120)
        publisher.close()
        assert "removed or replaced" not in supervisor.log.read_text()
