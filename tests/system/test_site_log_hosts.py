"""Several ingest hosts read one site's log and write to Tiled, whatever happens to them and to the log."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from log_site import LogSite
from runs import NoTiled, documents, publish, seq_nums
from sharing_hosts import SharingHost
from tiled_users import TiledWithUsers
from warm import run_process

from tiledbroker import JetStreamPublisher, journal_filename, run_files
from tiledbroker.supervisor import LogStatus
from tiledwriter.testing import TiledServer, free_port, wait_until

# A busy machine must not lose it by being late.
TIMES = {"TILEDWRITER_LEASE_SECONDS": "15", "TILEDWRITER_QUIET_PERIOD": "1"}
BEAMLINES = ("csx", "hxn", "six")
RUNS_PER_BEAMLINE = 7
EVENTS = 30

pytestmark = [pytest.mark.filterwarnings("default:::tiled"), pytest.mark.timeout(1800)]

Emitted = list[tuple[str, Any]]


class Host(SharingHost):
    """An ingest host that reads a site's log."""

    def __init__(
        self, directory: Path, server: Any, site: LogSite, *options: str, credentials: Path | None = None
    ) -> None:
        environment = dict(TIMES)
        if credentials is not None:
            environment["TILEDWRITER_SOURCE_CREDENTIALS"] = str(credentials)
        super().__init__(directory, server, options=["--source", str(site.address), *options], environment=environment)

    def ready(self) -> bool:
        return self.snapshot() is not None

    def has_journal(self, uid: str) -> bool:
        """Whether a run is in one of the journals that are written from."""
        name = journal_filename(uid)
        return any((self.journal_dir / folder / name).exists() for folder in ("", "finished"))


@contextmanager
def hosts_of(directory: Path, server: Any, site: LogSite, count: int = 3) -> Iterator[list[Host]]:
    """Hosts that have watched the log for long enough to claim runs."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(Host(directory / f"host-{number}", server, site)) for number in range(count)]
        wait_until(lambda: site.count_ready_hosts() == count, 240, "all hosts are ready")
        yield hosts


def publisher_to(site: LogSite, directory: Path, beamline: str, **options: Any) -> JetStreamPublisher:
    return JetStreamPublisher(
        site.address.servers, beamline=beamline, spool_dir=directory / f"of-{beamline}", **options
    )


def uid_of(emitted: Emitted) -> str:
    return str(emitted[0][1]["uid"])


def wait_with_restarts(hosts: Sequence[Host], condition: Callable[[], bool], what: str) -> None:
    """Wait for something; start hosts again that have ended, as systemd does."""

    def is_met() -> bool:
        for host in hosts:
            if not host.running:
                host.start()
        return condition()

    wait_until(is_met, 600, what)


def test_hosts_share_runs_and_go_on_with_those_of_one_that_is_killed_and_one_that_ends(
    tiled_server: TiledServer, tmp_path: Path
) -> None:
    runs = {beamline: [documents(EVENTS) for _ in range(RUNS_PER_BEAMLINE)] for beamline in BEAMLINES}
    uids = [uid_of(emitted) for each in runs.values() for emitted in each]
    third = EVENTS // 3
    with (
        LogSite(tmp_path / "log", nodes=3) as site,
        hosts_of(tmp_path, tiled_server, site) as hosts,
        ExitStack() as stack,
    ):
        publishers = {
            beamline: stack.enter_context(closing(publisher_to(site, tmp_path, beamline))) for beamline in BEAMLINES
        }

        def publish_all(first: int, last: int) -> None:
            for beamline, publisher in publishers.items():
                for emitted in runs[beamline]:
                    publish(publisher, emitted[first:last])

        def flush() -> bool:
            return all(publisher.flush(240) for publisher in publishers.values())

        publish_all(0, third)
        assert flush()
        shares = Counter(host.journal_dir for host in hosts for uid in uids if host.has_journal(uid))
        assert sum(shares.values()) == len(uids)
        assert len(shares) == 3, shares
        publish_all(third, third + 5)
        site.nodes[0].kill()
        hosts[0].kill()
        publish_all(third + 5, 2 * third)
        assert flush()
        hosts[1].stop()
        wait_until(lambda: sum(each.lease.released for each in site.hosts()) == 2, 120, "two leases have ended")
        publish_all(2 * third, EVENTS + 3)
        for beamline, publisher in publishers.items():
            assert all(publisher.wait_written(uid_of(emitted), 240) for emitted in runs[beamline])
    for uid in uids:
        assert seq_nums(tiled_server, uid) == list(range(1, EVENTS + 1))


def test_a_host_that_was_stopped_for_longer_than_its_lease_writes_nothing_after_it(tmp_path: Path) -> None:
    emitted = documents(60)
    with (
        TiledWithUsers(tmp_path / "tiled-with-users") as server,
        LogSite(tmp_path / "log") as site,
        hosts_of(tmp_path, server, site, 2) as hosts,
        closing(publisher_to(site, tmp_path, "csx")) as publisher,
    ):
        uid = publish(publisher, emitted[:20])
        assert publisher.flush(240)
        first, second = sorted(hosts, key=lambda host: not host.has_journal(uid))
        assert not second.has_journal(uid)
        first.signal_all(signal.SIGSTOP)
        try:
            publish(publisher, emitted[20:40])
            assert publisher.flush(240)
            assert second.has_journal(uid)
        finally:
            first.signal_all(signal.SIGCONT)
        wait_until(lambda: not first.running, 240, "the first host has ended")
        # It begins anew, with what it has set aside.
        first.start()
        wait_until(lambda: not first.has_journal(uid), 240, "the journal is set aside")
        publish(publisher, emitted[40:])
        assert publisher.wait_written(uid, 240)
        assert not first.has_journal(uid)
        assert seq_nums(server, uid) == list(range(1, 61))
        # Those of the two starts that live; the one that was stopped has none any more.
        wait_until(lambda: len(server.list_service_keys()) == 2, 240, "each host has a key")


def test_the_next_start_of_a_lone_host_goes_on_with_its_journals(tiled_server: TiledServer, tmp_path: Path) -> None:
    emitted = documents(30)
    with (
        LogSite(tmp_path / "log") as site,
        hosts_of(tmp_path, tiled_server, site, 1) as (host,),
        closing(publisher_to(site, tmp_path, "csx")) as publisher,
    ):
        uid = publish(publisher, emitted[:10])
        assert publisher.flush(240)
        host.kill()
        host.start()
        publish(publisher, emitted[10:20])
        assert publisher.flush(240)
        host.stop()
        host.start()
        publish(publisher, emitted[20:])
        assert publisher.wait_written(uid, 240)
        assert not (host.journal_dir / "superseded").exists()
    assert seq_nums(tiled_server, uid) == list(range(1, 31))


def drain(host: Host, server: TiledServer, site: LogSite) -> CompletedProcess[str]:
    """Write what a host's journals hold by a supervisor that ends then."""
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--drain", "--source", site.address]
    environment = {**os.environ, "TILED_API_KEY": server.api_key, **TIMES}
    return run_process([*command, "--tiled", server.uri, "--journal-dir", host.journal_dir], env=environment)


def test_a_lone_host_drains_its_journals(tiled_server: TiledServer, tmp_path: Path) -> None:
    with (
        LogSite(tmp_path / "log") as site,
        hosts_of(tmp_path, NoTiled(f"http://127.0.0.1:{free_port()}"), site, 1) as (host,),
        closing(publisher_to(site, tmp_path, "csx", keep_until="durable")) as publisher,
    ):
        uid = publish(publisher, documents(30))
        wait_until(lambda: not run_files(tmp_path / "of-csx"), 240, "the whole run is in the journal")
        host.stop()
        drained = drain(host, tiled_server, site)
        assert drained.returncode == 0, drained.stderr
    assert seq_nums(tiled_server, uid) == list(range(1, 31))


def test_journals_that_another_host_has_gone_on_with_are_not_drained(tiled_server: TiledServer, tmp_path: Path) -> None:
    emitted = documents(30)
    with (
        LogSite(tmp_path / "log") as site,
        hosts_of(tmp_path, NoTiled(f"http://127.0.0.1:{free_port()}"), site, 2) as hosts,
        closing(publisher_to(site, tmp_path, "csx")) as publisher,
    ):
        uid = publish(publisher, emitted[:10])
        assert publisher.flush(240)
        first, second = sorted(hosts, key=lambda host: not host.has_journal(uid))
        first.kill()
        publish(publisher, emitted[10:])
        wait_until(lambda: second.has_journal(uid), 240, "the other host goes on with the run")
        drained = drain(first, tiled_server, site)
        assert drained.returncode == 1
        assert "unfinished journals (1) cannot be drained, as other hosts may go on" in drained.stderr
        assert first.has_journal(uid)
        assert uid not in tiled_server.client()
        assert second.running


def test_journals_that_another_host_could_go_on_with_are_not_drained(tiled_server: TiledServer, tmp_path: Path) -> None:
    with (
        LogSite(tmp_path / "log") as site,
        hosts_of(tmp_path, NoTiled(f"http://127.0.0.1:{free_port()}"), site, 2) as hosts,
        closing(publisher_to(site, tmp_path, "csx")) as publisher,
    ):
        uid = publish(publisher, documents(30))
        assert publisher.flush(240)
        first, second = sorted(hosts, key=lambda host: not host.has_journal(uid))
        # So that its runs are still its own when it is drained.
        second.signal_all(signal.SIGSTOP)
        try:
            first.kill()
            drained = drain(first, tiled_server, site)
        finally:
            second.signal_all(signal.SIGCONT)
        assert drained.returncode == 1
        assert "unfinished journals (1) cannot be drained, as other hosts may go on" in drained.stderr
        assert first.has_journal(uid)
        assert uid not in tiled_server.client()


def test_a_log_that_is_set_back_loses_and_doubles_nothing(tiled_server: TiledServer, tmp_path: Path) -> None:
    runs = [documents(60) for _ in range(4)]
    uids = list(map(uid_of, runs))
    with (
        LogSite(tmp_path / "log", nodes=3) as site,
        hosts_of(tmp_path, tiled_server, site, 2) as hosts,
        closing(publisher_to(site, tmp_path, "csx")) as publisher,
    ):
        for emitted in runs[:3]:
            publish(publisher, emitted[:20])
        assert publisher.flush(240)
        for node in site.nodes:
            node.kill()
        site.save(tmp_path / "saved")
        site.start()
        # One run ends, one goes on, one does not, and one is claimed and forgotten.
        publish(publisher, runs[0][20:])
        publish(publisher, runs[1][20:40])
        publish(publisher, runs[3][:30])
        wait_with_restarts(hosts, lambda: publisher.flush(0.5), "the documents are durable")
        for node in site.nodes:
            node.kill()
        site.set_back(tmp_path / "saved")
        site.start()
        for emitted, published in zip(runs[1:], (40, 20, 30), strict=True):
            publish(publisher, emitted[published:])
        for uid in uids:
            wait_with_restarts(hosts, partial(publisher.wait_written, uid, 0.5), "the run is written")
        wait_with_restarts(hosts, lambda: not publisher.status().kept, "the spool is empty")
        for uid in uids[1:]:
            assert site.indexes("csx", uid) == list(range(63))
    for uid in uids:
        assert seq_nums(tiled_server, uid) == list(range(1, 61))


def test_hosts_tell_of_the_log_and_of_refused_credentials(tiled_server: TiledServer, tmp_path: Path) -> None:
    secret = tmp_path / "credentials"
    secret.touch(mode=0o600)
    secret.write_text("supervisor:secret-of-supervisor")
    users = [{"user": "supervisor", "password": "secret-of-supervisor"}]

    def log_of(host: Host) -> LogStatus | None:
        snapshot = host.snapshot()
        return None if snapshot is None else snapshot.log

    configuration = {"authorization": {"users": users}}
    with LogSite(tmp_path / "log", configuration=configuration, credentials=secret) as site:
        wrong = tmp_path / "wrong"
        wrong.touch(mode=0o600)
        wrong.write_text("supervisor:secret-that-is-wrong")
        with Host(tmp_path / "host", tiled_server, site, credentials=wrong) as host:
            wait_until(lambda: (found := log_of(host)) and found.reachable is False, 240, "the log is out of reach")
            found = log_of(host)
            assert found is not None
            assert "does not accept these credentials" in (found.problem or "")
            # What is corrected is taken without a restart.
            wrong.write_bytes(secret.read_bytes())
            wait_until(lambda: (found := log_of(host)) and found.reachable is True, 240, "the log is reached")
            wait_until(host.serves, 240, "the host serves")
            wait_until(lambda: (found := log_of(host)) and found.read_problem is None, 240, "the log is read")
            with closing(publisher_to(site, tmp_path, "csx", credentials=secret)) as publisher:
                uid = publish(publisher, documents(10)[:-1])
                assert publisher.flush(240)
                wait_until(
                    lambda: (found := log_of(host)) and found.unfinished_runs == {socket.gethostname(): 1},
                    240,
                    "the owner of the run is told",
                )
            found = log_of(host)
            assert found is not None
            assert found.lag == {"csx": 0}
            assert (found.replicas, found.replicas_current) == (1, 1)
            assert uid not in (found.problem or "")
        said = host.log.read_text()
        assert "does not accept these credentials" in said
        assert "secret-" not in said
