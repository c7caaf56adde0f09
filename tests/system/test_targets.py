"""One service that writes each run to two Tiled servers, of which one is away at times."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from runs import Acquisition, NoTiled, documents, publish, seq_nums, wait_for_outcome

from tiledbroker import ZMQPublisher
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli._targets import TargetService
from tiledwriter.cli.supervisor import main
from tiledwriter.testing import ServerProcess, TiledServer, free_port, journal_of, wait_until

pytestmark = pytest.mark.filterwarnings("default")  # the reading client warns about itself


class TargetsProcess(ServerProcess):
    """A `tiledwriter-supervisor` that writes to several servers."""

    def __init__(self, directory: Path, servers: dict[str, TiledServer], **settings: Any) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.journal_dir = directory / "journals"
        self.config = directory / "config.yaml"
        sections = {}
        for name, server in servers.items():
            key = directory / f"{name}.key"
            key.write_text(server.api_key)
            sections[name] = {"tiled": server.uri, "api_key_file": str(key)}
        common = {
            "listen": self.address,
            "journal_dir": str(self.journal_dir),
            "quiet_period": 1,
            "park_after": 1,
            **settings,
        }
        self.config.write_text(yaml.safe_dump({**common, "targets": sections}, sort_keys=False))
        command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--config", str(self.config)]
        super().__init__(command, directory / "supervisor.log")

    def start(self) -> None:
        self._ready_before = self._times_ready()
        super().start()

    def ready(self) -> bool:
        return self._times_ready() > self._ready_before

    def _times_ready(self) -> int:
        return self.log.read_bytes().count(b"for the targets") if self.log.exists() else 0

    def supervisors(self) -> list[psutil.Process]:
        """The supervisors of the targets."""
        return psutil.Process(self.pid).children()


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, TiledServer]]:
    with TiledServer(tmp_path / "tiled-old") as old, TiledServer(tmp_path / "tiled-new") as new:
        yield {"old": old, "new": new}


@pytest.fixture
def service(tmp_path: Path, servers: dict[str, TiledServer]) -> Iterator[TargetsProcess]:
    with TargetsProcess(tmp_path, servers) as process:
        yield process


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )


def is_written(directory: Path, uid: str) -> bool:
    try:
        with journal_of(directory, uid) as journal:
            return journal.get("outcome") == "written"
    except LookupError:
        return False


def stored(server: TiledServer, uid: str) -> Any:
    """A run as a server gives it."""
    run = server.client()[uid]
    streams = {
        name: [[float(n) for n in run[name][column].read()] for column in ("seq_num", "time", "x")] for name in run
    }
    return dict(run.metadata), streams


def test_each_run_is_written_to_both_targets_also_when_one_is_away_and_the_service_is_killed(
    tmp_path: Path, servers: dict[str, TiledServer], service: TargetsProcess
) -> None:
    spool = tmp_path / "spool"
    publisher = ZMQPublisher(service.address, spool_dir=spool, on_error="raise")
    first = publish(publisher, documents())
    assert publisher.wait_written(first, timeout=60)
    assert is_written(service.journal_dir / "old", first)
    assert is_written(service.journal_dir / "new", first)

    servers["new"].stop()
    meanwhile = [publish(publisher, documents(events=20, number=number)) for number in range(3)]
    for uid in meanwhile:
        assert wait_for_outcome(service.journal_dir / "old", uid) == "written"
    assert publisher.flush(60)
    assert not any(publisher.wait_written(uid, timeout=0.1) for uid in meanwhile)
    assert all(any(uid in path.name for path in spool.iterdir()) for uid in meanwhile)
    states: dict[str, str] = {}

    def one_is_away() -> bool:
        status = run_command("tiledwriter.cli.supervisor", "status", "--config", service.config, "--json")
        states.update({name: target["state"] for name, target in json.loads(status.stdout)["targets"].items()})
        return status.returncode == 1 and states == {"old": "well", "new": "degraded"}

    wait_until(one_is_away, 60, f"the status says that one target is away: {states}")
    listing = run_command("tiledwriter.cli.journal", "ls", "--config", service.config)
    assert listing.returncode == 0, listing.stderr
    old, new = listing.stdout.split(f"{service.config}:new:")
    assert ": 4 written;" in old
    # Parked, but for one at a time by which the supervisor tries whether Tiled is back.
    assert re.search(r"\b1 written\b", new), new
    assert re.search(r"\b[123] parked\b", new), new

    supervisors = service.supervisors()
    service.kill()
    psutil.wait_procs(supervisors, timeout=60)
    assert not any(process.is_running() for process in supervisors)
    (tmp_path / "beamline").mkdir()
    with Acquisition(service.address, tmp_path / "beamline", events=200, delay=0.002) as acquisition:
        during = acquisition.run_uid
        service.start()
        servers["new"].start()
        acquisition.process.wait(120)
    for uid in meanwhile:
        assert publisher.wait_written(uid, timeout=120)
    publisher.close()
    for name, server in servers.items():
        assert wait_for_outcome(service.journal_dir / name, during) == "written"
        assert seq_nums(server, during) == list(range(1, 201))
    for uid in (first, *meanwhile):
        assert stored(servers["old"], uid) == stored(servers["new"], uid)
    for name in servers:
        verified = run_command("tiledwriter.cli.journal", "verify", "--config", f"{service.config}:{name}")
        assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_supervisor_that_was_killed_is_started_again_and_nothing_is_lost(
    tmp_path: Path, servers: dict[str, TiledServer], service: TargetsProcess
) -> None:
    with Acquisition(service.address, tmp_path, events=300, delay=0.005) as acquisition:
        uid = acquisition.run_uid
        wait_until(lambda: len(acquisition.documents) > 50, 60, "the run is under way")
        victim = next(each for each in service.supervisors() if any(word.endswith(":new") for word in each.cmdline()))
        os.kill(victim.pid, signal.SIGKILL)
        acquisition.process.wait(120)
    for name, server in servers.items():
        assert wait_for_outcome(service.journal_dir / name, uid) == "written"
        assert seq_nums(server, uid) == list(range(1, 301))
    assert "The supervisor of target new ended" in service.log.read_text()


def test_service_ends_on_request_and_drains_both(tmp_path: Path, servers: dict[str, TiledServer]) -> None:
    service = TargetsProcess(tmp_path, servers)
    with service:
        servers["old"].stop()
        publisher = ZMQPublisher(service.address, spool_dir=tmp_path / "spool", on_error="raise")
        uid = publish(publisher, documents())
        assert publisher.flush(60)
        assert wait_for_outcome(service.journal_dir / "new", uid) == "written"
        publisher.close(timeout=0)
    assert service.returncode == 0
    servers["old"].start()
    drained = run_command("tiledwriter.cli.supervisor", "--config", service.config, "--drain")
    assert drained.returncode == 0, drained.stderr
    assert stored(servers["old"], uid) == stored(servers["new"], uid)


def test_draining_that_is_stopped_before_a_supervisor_was_started_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = TargetsProcess(tmp_path, {"old": NoTiled("http://127.0.0.1:9")})  # type: ignore[dict-item]
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    # As if the signal came as soon as it is heard.
    monkeypatch.setattr(TargetService, "_is_over", lambda _: True)
    assert main(["--config", str(service.config)]) == ExitCode.OK
    assert main(["--config", str(service.config), "--drain"]) == ExitCode.INCOMPLETE


def test_each_target_knows_clients_by_their_keys_and_reads_its_settings_again(
    tmp_path: Path, servers: dict[str, TiledServer]
) -> None:
    keys = tmp_path / "keys"
    for options in ((), ("--client", "beamline")):
        made = run_command("tiledwriter.cli.supervisor", "keygen", keys, *options)
        assert made.returncode == 0, made.stderr
    with TargetsProcess(tmp_path, servers, curve=str(keys)) as service:
        stranger = ZMQPublisher(service.address, spool_dir=tmp_path / "strange")
        publish(stranger, documents())
        publisher = ZMQPublisher(service.address, spool_dir=tmp_path / "spool", curve=keys / "beamline")
        uid = publish(publisher, documents())
        assert publisher.wait_written(uid, timeout=60)
        for name in servers:
            with journal_of(service.journal_dir / name, uid) as journal:
                assert journal.get("client") == "beamline"
        wait_until(lambda: "CURVE" in stranger.status().problem, 30, "the stranger is told why it stays outside")
        stranger.close(timeout=0)
        service.config.write_text(f"late_audit: 7\n{service.config.read_text()}")
        os.kill(service.pid, signal.SIGHUP)
        wait_until(lambda: service.log.read_text().count("changed: late_audit") == 2, 60, "both have read it again")
        assert service.running
        publisher.close()
