"""Documents go from the callback over a site's log in JetStream to Tiled, whatever is killed on the way."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bluesky import RunEngine
from bluesky.plans import scan
from log_site import LogSite
from ophyd.sim import det, motor
from runs import documents, publish, seq_nums
from sharing_hosts import SharingHost

from tiledbroker import JetStreamPublisher
from tiledbroker.supervisor import ClientLimits, LogStatus, Supervisor, WorkerCommand
from tiledbroker.supervisor.jetstream_source import JetStreamSource
from tiledwriter.testing import TiledServer, journal_of, wait_until

# A busy machine must not lose it by being late.
LEASE_SECONDS = 6.0

pytestmark = [pytest.mark.filterwarnings("default:::tiled")]


@contextmanager
def supervising(
    journals: Path, worker_command: WorkerCommand, site: LogSite, *, keep_in_log: float = 3600.0
) -> Iterator[Supervisor]:
    """A supervisor in a thread of this process."""
    limits = ClientLimits()
    source = partial(JetStreamSource, site.address, limits, keep_in_log=keep_in_log)
    supervisor = Supervisor(journals, worker_command, source, clients=limits)
    thread = threading.Thread(target=supervisor.run)
    thread.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
        thread.join(60)
        assert not thread.is_alive()


def publisher_to(site: LogSite, directory: Path, beamline: str = "csx", **options: Any) -> JetStreamPublisher:
    return JetStreamPublisher(site.address.servers, beamline=beamline, spool_dir=directory, **options)


def test_runs_are_written_whole_though_the_supervisor_ends_in_the_middle(
    log_site: LogSite, worker_command: WorkerCommand, tiled_server: TiledServer, tmp_path: Path
) -> None:
    runs = [documents(300) for _ in range(3)]
    uids = [str(emitted[0][1]["uid"]) for emitted in runs]
    journals = tmp_path / "journals"
    with closing(publisher_to(log_site, tmp_path / "spool")) as publisher:
        for emitted in runs:
            publish(publisher, emitted[:100])
        with supervising(journals, worker_command, log_site):
            assert publisher.flush(60)
            for emitted in runs:
                publish(publisher, emitted[100:200])
        for emitted in runs:
            publish(publisher, emitted[200:])
        # The log takes them while nobody reads it; the spool keeps them.
        wait_until(lambda: all(len(log_site.indexes("csx", uid)) == 303 for uid in uids), 60, "all are in the log")
        assert publisher.status().waiting
        with supervising(journals, worker_command, log_site):
            assert all(publisher.wait_written(uid, 60) for uid in uids)
            wait_until(lambda: not publisher.status().kept, 60, "the spool is empty")
    for uid in uids:
        assert seq_nums(tiled_server, uid) == list(range(1, 301))
        assert log_site.indexes("csx", uid) == list(range(303))
        with journal_of(journals, uid) as journal:
            assert journal.length == 303
            assert journal.get("client") == "csx"


def test_a_complete_run_leaves_the_log(
    log_site: LogSite, worker_command: WorkerCommand, tiled_server: TiledServer, tmp_path: Path
) -> None:
    with (
        closing(publisher_to(log_site, tmp_path / "spool")) as publisher,
        supervising(tmp_path / "journals", worker_command, log_site, keep_in_log=0.5),
    ):
        uid = publish(publisher, documents(10))
        assert publisher.wait_written(uid, 60)
        wait_until(lambda: not log_site.entries("csx", uid), 60, "the run is removed from the log")
        wait_until(lambda: not publisher.status().kept, 60, "the spool is empty")


def test_a_run_that_was_abandoned_is_interrupted(
    log_site: LogSite, worker_command: WorkerCommand, tiled_server: TiledServer, tmp_path: Path
) -> None:
    emitted = documents(10)[:-1]
    with supervising(tmp_path / "journals", worker_command, log_site):
        publisher = publisher_to(log_site, tmp_path / "spool")
        uid = publish(publisher, emitted)
        assert publisher.close(60)
        with closing(publisher_to(log_site, tmp_path / "other")) as other:
            wait_until(lambda: _outcome(other, uid) == "interrupted", 60, "the outcome is known")
    assert seq_nums(tiled_server, uid) == list(range(1, 11))


def _outcome(publisher: JetStreamPublisher, uid: str) -> str | None:
    found = publisher._shipper.outcome(uid, 1.0)
    return None if found is None else found[0]


class Host(SharingHost):
    """An ingest host that reads a site's log, or stands by."""

    def __init__(self, directory: Path, server: TiledServer, site: LogSite, *, credentials: Path | None = None) -> None:
        options = ["--source", str(site.address), "--standby"]
        environment = {"TILEDWRITER_LEASE_SECONDS": str(LEASE_SECONDS), "TILEDWRITER_QUIET_PERIOD": "1"}
        if credentials is not None:
            environment["TILEDWRITER_SOURCE_CREDENTIALS"] = str(credentials)
        super().__init__(directory, server, options=options, environment=environment)

    def ready(self) -> bool:
        return self.snapshot() is not None


@contextmanager
def two_hosts(directory: Path, server: TiledServer, site: LogSite) -> Iterator[tuple[Host, Host]]:
    """The host that serves, and the one that stands by."""
    with Host(directory / "first", server, site) as first:
        wait_until(first.serves, 60, "the first host serves")
        with Host(directory / "second", server, site) as second:
            yield first, second


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
            wait_until(lambda: (found := log_of(host)) and found.reachable is False, 60, "the log is out of reach")
            found = log_of(host)
            assert found is not None
            assert "does not accept these credentials" in (found.problem or "")
            # What is corrected is taken without a restart.
            wrong.write_bytes(secret.read_bytes())
            wait_until(lambda: (found := log_of(host)) and found.reachable is True, 60, "the log is reached")
            wait_until(host.serves, 60, "the host serves")
            wait_until(lambda: (found := log_of(host)) and found.read_problem is None, 60, "the log is read")
            with closing(publisher_to(site, tmp_path / "spool", credentials=secret)) as publisher:
                uid = publish(publisher, documents(10)[:-1])
                assert publisher.flush(60)
                wait_until(
                    lambda: (found := log_of(host)) and found.unfinished_runs == {socket.gethostname(): 1},
                    90,
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


def test_a_node_and_a_host_die_during_a_scan(engine: RunEngine, tiled_server: TiledServer, tmp_path: Path) -> None:
    uids: list[str] = []
    with (
        LogSite(tmp_path / "log", nodes=3) as site,
        two_hosts(tmp_path, tiled_server, site) as (first, second),
        closing(publisher_to(site, tmp_path / "spool")) as publisher,
    ):

        def strike(name: str, doc: dict[str, Any]) -> None:
            if name == "event" and doc["seq_num"] == 10:
                assert publisher.flush(60)
                site.nodes[0].kill()
            if name == "event" and doc["seq_num"] == 20:
                first.kill()

        engine.subscribe(publisher)
        engine.subscribe(strike)
        engine.subscribe(lambda _, doc: uids.append(doc["uid"]), "start")
        engine(scan([det], motor, -1, 1, 30))
        (uid,) = uids
        assert publisher.wait_written(uid, 120)
        wait_until(lambda: not publisher.status().kept, 60, "the spool is empty")
        assert second.serves()
        assert site.indexes("csx", uid) == list(range(33))
    assert seq_nums(tiled_server, uid) == list(range(1, 31))


def wait_with_restarts(hosts: tuple[Host, Host], condition: Callable[[], bool], what: str) -> None:
    """Wait for something; start hosts again that have lost the lease, as systemd does."""

    def is_met() -> bool:
        for host in hosts:
            if not host.running:
                host.start()
        return condition()

    wait_until(is_met, 240, what)


def test_a_log_that_is_set_back_loses_and_doubles_nothing(tiled_server: TiledServer, tmp_path: Path) -> None:
    runs = [documents(60) for _ in range(3)]
    with (
        LogSite(tmp_path / "log", nodes=3) as site,
        two_hosts(tmp_path, tiled_server, site) as hosts,
        closing(publisher_to(site, tmp_path / "spool")) as publisher,
    ):
        for emitted in runs:
            publish(publisher, emitted[:20])
        assert publisher.flush(120)
        for node in site.nodes:
            node.kill()
        site.save(tmp_path / "saved")
        site.start()
        # One run ends, one goes on, one does not.
        publish(publisher, runs[0][20:])
        publish(publisher, runs[1][20:40])
        wait_with_restarts(hosts, lambda: publisher.flush(0.5), "the documents are durable")
        for node in site.nodes:
            node.kill()
        site.set_back(tmp_path / "saved")
        site.start()
        publish(publisher, runs[1][40:])
        publish(publisher, runs[2][20:])
        uids = [str(emitted[0][1]["uid"]) for emitted in runs]
        for uid in uids:
            wait_with_restarts(hosts, partial(publisher.wait_written, uid, 0.5), "the run is written")
        wait_with_restarts(hosts, lambda: not publisher.status().kept, "the spool is empty")
        for uid in uids[1:]:
            assert site.indexes("csx", uid) == list(range(63))
    for uid in uids:
        assert seq_nums(tiled_server, uid) == list(range(1, 61))


def test_a_host_that_was_stopped_for_longer_than_its_lease_writes_nothing_after_it(
    tiled_server: TiledServer, tmp_path: Path
) -> None:
    emitted = documents(60)
    with (
        LogSite(tmp_path / "log") as site,
        two_hosts(tmp_path, tiled_server, site) as (first, second),
        closing(publisher_to(site, tmp_path / "spool")) as publisher,
    ):
        uid = publish(publisher, emitted[:20])
        assert publisher.flush(60)
        first.signal_all(signal.SIGSTOP)
        try:
            publish(publisher, emitted[20:40])
            wait_until(second.serves, 120, "the second host serves")
            assert publisher.flush(60)
        finally:
            first.signal_all(signal.SIGCONT)
        wait_until(lambda: not first.running, 60, "the first host has ended")
        publish(publisher, emitted[40:])
        assert publisher.wait_written(uid, 120)
        assert second.serves()
    assert seq_nums(tiled_server, uid) == list(range(1, 61))
