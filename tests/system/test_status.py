"""`tiledwriter-supervisor status` with real supervisors: well, degraded, failed, gone."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import search_path
from runs import documents, publish, supervisor_without_tiled, wait_for_outcome
from warm import run_process

from tiledbroker import ZMQPublisher
from tiledbroker.supervisor import Snapshot, read_snapshot
from tiledbroker.supervisor._status_socket import STATUS_SOCKET
from tiledwriter.testing import SupervisorProcess, TiledServer, wait_until

pytestmark = pytest.mark.filterwarnings("default")  # the reading client warns about itself

PATCHES = """
def spoil(start):
    if start.get("spoiled"):
        raise ValueError("this run is spoiled")
    return start
"""


def status(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "status", *map(str, arguments)]
    return run_process(command, timeout=60)


def status_of(supervisor: SupervisorProcess) -> subprocess.CompletedProcess[str]:
    return status("--journal-dir", supervisor.journal_dir)


def look(supervisor: SupervisorProcess) -> Snapshot:
    return read_snapshot(supervisor.journal_dir, timeout=30)


def wait_for(supervisor: SupervisorProcess, condition: Callable[[Snapshot], object], what: str) -> Snapshot:
    wait_until(lambda: condition(look(supervisor)), 60, what)
    return look(supervisor)


@pytest.fixture
def spoiling(tmp_path: Path, tiled_server: TiledServer) -> Iterator[SupervisorProcess]:
    """A supervisor that cannot write runs which say that they are spoiled."""
    (tmp_path / "patches_of_this_test.py").write_text(PATCHES)
    environment = {
        "TILEDWRITER_PATCHES": '{"start": "patches_of_this_test:spoil"}',
        "PYTHONPATH": search_path(tmp_path),
        "TILEDWRITER_HEADERS": '{"X-Token": "not to be shown"}',
    }
    with SupervisorProcess(tmp_path / "journals", tiled_server, environment=environment) as process:
        yield process


def test_a_written_run_is_well(
    supervisor: SupervisorProcess, publisher_to: Callable[[SupervisorProcess], ZMQPublisher], tiled_server: TiledServer
) -> None:
    publisher = publisher_to(supervisor)
    uid = publish(publisher, documents(plan_name="count", scan_id=17)[:-1])
    snapshot = wait_for(supervisor, lambda seen: seen.runs.open and seen.runs.open[0].written == 5, "it is written")
    (run,) = snapshot.runs.open
    assert (run.uid, run.scan_id, run.plan, run.state) == (uid, 17, "count", "open")
    written = publish(publisher, documents())
    assert publisher.wait_written(written, timeout=60)
    # A worker counts by itself, and tells its counts up to a second later than what has happened.
    snapshot = wait_for(
        supervisor,
        lambda seen: seen.tiled.requests.get("ok", 0) == seen.tiled.latency.count > 0,
        "the requests and their durations are told",
    )
    assert snapshot.state == "well"
    assert snapshot.tiled.reachable
    assert snapshot.tiled.address == tiled_server.uri
    assert snapshot.tiled.version
    assert snapshot.tiled.last_write is not None
    assert snapshot.runs.counts["written"] == 1
    told = wait_for(supervisor, lambda seen: seen.publishers[0].lag_documents == 0, "the publisher has told its lag")
    assert told.publishers[0].oldest_unacknowledged is None
    ended = status_of(supervisor)
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.startswith("WELL")
    assert uid[:8] in ended.stdout


def test_a_tiled_that_is_away_is_told_with_the_time(
    tmp_path: Path, own_tiled_server: TiledServer, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    with SupervisorProcess(tmp_path / "journals", own_tiled_server) as supervisor:
        publisher = publisher_to(supervisor)
        assert publisher.wait_written(publish(publisher, documents()), timeout=60)
        before = wait_for(supervisor, lambda seen: seen.tiled.reachable, "Tiled has answered").now
        own_tiled_server.stop()
        uid = publish(publisher, documents())
        assert publisher.flush(timeout=60)
        snapshot = wait_for(supervisor, lambda seen: seen.tiled.reachable is False, "Tiled is away")
        assert snapshot.tiled.since is not None
        assert before <= snapshot.tiled.since <= snapshot.now
        (run,) = snapshot.runs.troubled
        assert (run.uid, run.written) == (uid, 0)
        assert run.waits_for is not None
        assert "Tiled does not accept requests" in run.waits_for
        ended = status_of(supervisor)
        assert ended.returncode == 1, ended.stdout
        assert "! Tiled does not accept requests since" in ended.stdout
        assert "1 run with 6 documents wait in the journals" in ended.stdout
        own_tiled_server.start()
        assert publisher.wait_written(uid, timeout=120)
        wait_for(supervisor, lambda seen: seen.state == "well", "Tiled is back")


def test_a_wrong_key_is_a_failure(
    tmp_path: Path, tiled_server: TiledServer, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    wrong = {"TILED_API_KEY": "0" * 32}
    with SupervisorProcess(tmp_path / "journals", tiled_server, environment=wrong) as supervisor:
        publish(publisher_to(supervisor), documents())
        snapshot = wait_for(supervisor, lambda seen: seen.state == "failed", "the key is refused")
        assert "Tiled refuses all requests since" in snapshot.reasons[0]
        assert set(snapshot.tiled.requests) == {"unauthorized"}
        assert status_of(supervisor).returncode == 2


def test_a_run_in_quarantine_is_named_also_after_a_restart(
    spoiling: SupervisorProcess, publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    publisher = publisher_to(spoiling)
    uid = publish(publisher, documents(spoiled=True, plan_name="scan", scan_id=3))
    assert wait_for_outcome(spoiling.journal_dir, uid) == "failed"
    publisher.close(timeout=0)  # it would ship the run again once the journal is gone
    for _ in range(2):
        snapshot = wait_for(spoiling, lambda seen: seen.runs.counts["failed"] == 1, "the run has failed")
        (run,) = snapshot.runs.troubled
        assert (run.uid, run.plan, run.scan_id) == (uid, "scan", 3)
        assert "this run is spoiled" in (run.reason or "")
        assert run.since is not None
        ended = status_of(spoiling)
        assert ended.returncode == 1, ended.stdout
        assert f"`tiledwriter-journal show {uid} {spoiling.journal_dir}`" in ended.stdout
        spoiling.stop()
        spoiling.start()
    Path(run.journal).unlink()
    wait_for(spoiling, lambda seen: seen.runs.counts["failed"] == 0, "the deletion is seen")


def test_secrets_are_not_shown(spoiling: SupervisorProcess, tiled_server: TiledServer) -> None:
    printed = status("--journal-dir", spoiling.journal_dir, "--json").stdout
    assert json.loads(printed)["settings"]["headers"] == {"X-Token": "***"}
    assert "not to be shown" not in printed
    assert tiled_server.api_key not in printed


def test_a_supervisor_that_is_stopped_has_failed(tmp_path: Path) -> None:
    with supervisor_without_tiled(tmp_path / "journals") as supervisor:
        supervisor.send(signal.SIGSTOP)
        try:
            ended = status_of(supervisor)
        finally:
            supervisor.send(signal.SIGCONT)
        assert ended.returncode == 2
        assert f"The supervisor of {supervisor.journal_dir} gives no status: it has not answered" in ended.stdout
        assert status_of(supervisor).returncode == 0


def test_a_supervisor_that_is_gone_is_none(tmp_path: Path) -> None:
    directory = tmp_path / "journals"
    with supervisor_without_tiled(directory) as supervisor:
        assert look(supervisor).pid == supervisor.pid
    ended = status("--journal-dir", directory)
    assert ended.returncode == 3
    assert f"No supervisor uses {directory}" in ended.stdout


@pytest.mark.parametrize("name", ["", "TARGET"])
def test_whether_a_host_serves_is_told_as_json(tmp_path: Path, name: str) -> None:
    config = tmp_path / "config.yaml"
    targets = f"{{targets: {{{name.lower()}: {{}}}}}}" if name else "{}"
    config.write_text(f"{targets[:-1]}{', ' if name else ''}journal_dir: {tmp_path}}}")
    ended = status("--config", config, "--serves", "--json")
    assert ended.returncode == 3
    answer: dict[str, Any] = json.loads(ended.stdout)
    assert answer["serves"] is False
    assert str(tmp_path) in answer["reasons"][0]


def test_a_socket_of_a_killed_supervisor_is_none(tmp_path: Path) -> None:
    with supervisor_without_tiled(tmp_path / "journals") as supervisor:
        supervisor.kill()
        assert (supervisor.journal_dir / STATUS_SOCKET).exists()
        wait_until(lambda: status_of(supervisor).returncode == 3, 60, "the lock is released")
        supervisor.start()
        assert status_of(supervisor).returncode == 0


def test_a_stale_socket_is_no_supervisor(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / STATUS_SOCKET))
    ended = status("--journal-dir", tmp_path, "--json")
    assert ended.returncode == 3
    answer: dict[str, Any] = json.loads(ended.stdout)
    assert answer["state"] is None
    assert str(tmp_path) in answer["reasons"][0]


def test_readers_that_never_read_hold_up_nobody(tmp_path: Path) -> None:
    with supervisor_without_tiled(tmp_path / "journals") as supervisor:
        idle = [socket.socket(socket.AF_UNIX) for _ in range(50)]
        try:
            for reader in idle:
                reader.connect(str(supervisor.journal_dir / STATUS_SOCKET))
                # The supervisor may have answered, and closed its end, by now.
                with contextlib.suppress(BrokenPipeError):
                    reader.sendall(b"x" * 1000)
            assert look(supervisor).state == "well"
        finally:
            for reader in idle:
                reader.close()


def test_the_configuration_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TILEDWRITER_JOURNAL_DIR", raising=False)
    config = tmp_path / "config.yaml"
    config.write_text(f"tiled: http://localhost:8000\njournal_dir: {tmp_path / 'configured'}\n")
    assert f"No supervisor uses {tmp_path / 'configured'}" in status("--config", config).stdout
    monkeypatch.setenv("TILEDWRITER_JOURNAL_DIR", str(tmp_path / "of the environment"))
    assert "of the environment" in status("--config", config).stdout


@pytest.mark.parametrize("text", ["- a list", "journal_dir: [1]", "a: b: c", None])
def test_a_configuration_that_cannot_be_read_is_wrong_usage(tmp_path: Path, text: str | None) -> None:
    config = tmp_path / "config.yaml"
    if text is not None:
        config.write_text(text)
    ended = status("--config", config)
    assert ended.returncode == 2
    assert str(config) in ended.stderr


@pytest.mark.parametrize("options", [(), ("--serves",)])
def test_watching_ends_with_ctrl_c(tmp_path: Path, options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "status", "--watch", "--journal-dir", str(tmp_path)]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        lines = [watching.stdout.readline() for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(30) == 130
    assert [line.startswith("No supervisor uses") for line in lines] == [True, False, True]
