"""A short campaign of faults against a site's log and the ingest hosts that read it, and what its faults do.

TILEDWRITER_TEST_CHAOS sets the seconds for which faults come; scripts/chaos runs campaigns of any length.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from chaos.campaign import Campaign, Options
from chaos.kinds import KINDS, Planned, kinds_of
from chaos.shared_log import SharedLog
from chaos.shared_site import SharedSite
from chaos.site import Setting, Site
from paths import ROOT
from runs import documents, publish
from warm import run_process

from tiledbroker import Encoder, JetStreamPublisher, Journal
from tiledbroker._errors import LogUnavailable
from tiledwriter.testing import ServerProcess, wait_until

SECONDS = float(os.environ.get("TILEDWRITER_TEST_CHAOS", "8"))
INTERVAL = 1.5
LEASE_SECONDS = 6.0


@pytest.mark.timeout(900)
def test_nothing_is_lost_doubled_or_out_of_order_whatever_happens_to_a_log(tmp_path: Path) -> None:
    setting = Setting(
        tmp_path / "campaign",
        seed=3,
        runs=3,
        quiet_period=0.5,
        late_audit=3.0,
        events=(20, 60),
        pace=0.3,
        source="jetstream",
        hosts=2,
        lease_seconds=LEASE_SECONDS,
    )
    kinds = ("node killed", "all nodes killed", "ingest host killed", "publisher killed", "node cut off")
    report = Campaign(Options(setting, SECONDS, INTERVAL, kinds, patience=240.0)).run()
    assert report.clean, "\n".join(report.lines())
    assert len(report.injected) >= 3
    assert sum(verdict.rows.found for verdict in report.verdicts) > 0


def test_kinds_of_faults_belong_to_the_sites_that_they_are_possible_at() -> None:
    of_hosts, of_logs = set(kinds_of("zeromq")), set(kinds_of("jetstream"))
    assert of_hosts | of_logs == set(KINDS)
    assert {"node killed", "old stores of all nodes put back", "journals of an ingest host lost"} <= of_logs - of_hosts
    assert {"second ingest host", "destination changed", "spool truncated"} <= of_hosts - of_logs
    assert {"publisher killed", "supervisor killed", "Tiled killed", "cable cut", "zombie"} <= of_logs & of_hosts


def test_a_kind_of_fault_of_another_site_is_refused() -> None:
    command = [sys.executable, str(ROOT / "scripts/chaos.py"), "--only", "node killed"]
    done = run_process(command, timeout=120)
    assert done.returncode == 2
    assert "with --source zeromq, there are no faults of kind node killed" in done.stderr


def test_each_publisher_has_a_run(tmp_path: Path) -> None:
    def share_runs(runs: int, publishers: int | None) -> list[int]:
        return Site(Setting(tmp_path, runs=runs, publishers=publishers), note=lambda _: None)._share_runs()

    assert share_runs(5, None) == [2, 2, 1]
    assert share_runs(4, 4) == [1, 1, 1, 1]
    assert share_runs(2, 5) == [1, 1, 1, 1, 1]
    assert share_runs(7, 3) == [3, 2, 2]


class IdleSharedSite(SharedSite):
    """A site with a log, of whose other processes none runs."""

    def __init__(self, directory: Path, log: SharedLog) -> None:
        super().__init__(Setting(directory, source="jetstream", hosts=2, lease_seconds=0.0), note=lambda _: None)
        self.log = log
        self.directories = [directory / f"host-{number}" for number in range(2)]
        for place in self.directories:
            place.mkdir(parents=True)

    @property
    def journal_dirs(self) -> list[Path]:
        return self.directories

    def pause(self, seconds: float) -> None:
        """Faults last no time."""

    def bring_up(self, process: ServerProcess) -> None:
        process.start()

    def journal_run(self, number: int, run_uid: str, count: int, outcome: str = "", *, folder: str = "") -> None:
        """Bring so many documents of a run into the journal that a host has of it."""
        place = self.directories[number] / folder
        place.mkdir(parents=True, exist_ok=True)
        encoder = Encoder()
        with Journal(place / f"{run_uid}.sqlite", "create", run_uid=run_uid) as journal:
            for name, document in documents(count)[:count]:
                journal.append_one(name, encoder.encode(document))
            if outcome:
                journal.set("outcome", outcome)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SharedLog]:
    with SharedLog(tmp_path / "log", 3) as log:
        yield log


def planned(kind: str, **numbers: float) -> Planned:
    return Planned(0, kind, 0.0, **{"victim": 0.0, "lasting": 0.0, "amount": 0.0, **numbers})


def inject(site: SharedSite, kind: str, **numbers: float) -> str:
    return KINDS[kind](site, planned(kind, **numbers))


def publisher_to(log: SharedLog, directory: Path) -> JetStreamPublisher:
    return JetStreamPublisher(str(log.address), beamline="csx", spool_dir=directory / "spool")


def count_documents(log: SharedLog, uid: str) -> int:
    try:
        return len(log.site.indexes("csx", uid))
    except LogUnavailable:
        return -1


@pytest.mark.timeout(300)
def test_stores_that_are_put_back_have_forgotten_and_publishers_send_again(log: SharedLog, tmp_path: Path) -> None:
    site = IdleSharedSite(tmp_path / "site", log)
    emitted = documents(20)
    publisher = publisher_to(log, tmp_path)
    try:
        uid = publish(publisher, emitted[:5])
        wait_until(lambda: count_documents(log, uid) == 5, 60, "the log has the first documents")
        copy = log.take_copy()
        publish(publisher, emitted[5:15])
        wait_until(lambda: count_documents(log, uid) == 15, 60, "the log has more")
    finally:
        publisher.close(0)
    for node in log.nodes:
        node.kill()
    log.put_back(copy)
    log.site.start()
    wait_until(lambda: count_documents(log, uid) == 5, 60, "the log has forgotten")
    # Another set-back within the time of a lease is more than is promised.
    site.setting = Setting(tmp_path, lease_seconds=3600.0)
    assert inject(site, "old stores of all nodes put back") == ""
    with closing(publisher_to(log, tmp_path)) as again:
        wait_until(lambda: count_documents(log, uid) == 15, 60, "the next publisher has sent it again")
        assert again.status().problem == ""
    assert log.site.indexes("csx", uid) == list(range(15))


@pytest.mark.timeout(300)
def test_faults_of_nodes_are_healed(log: SharedLog, tmp_path: Path) -> None:
    site = IdleSharedSite(tmp_path / "site", log)
    wait_until(log.find_leader, 60, "there is a leader")
    assert inject(site, "node killed").startswith("node-0")
    wait_until(log.find_leader, 60, "there is a leader")
    assert inject(site, "leader killed")
    assert inject(site, "two nodes killed").startswith("node-1, node-2")
    assert inject(site, "all nodes killed").startswith("node-0, node-1, node-2")
    wait_until(log.find_leader, 60, "there is a leader")
    assert inject(site, "store of a node lost") == "node-0"
    assert inject(site, "old store of a node put back").startswith("node-0")
    wait_until(log.find_leader, 60, "there is a leader")
    assert all(node.running for node in log.nodes)


@pytest.mark.timeout(300)
def test_a_leader_that_is_cut_off_is_replaced(log: SharedLog) -> None:
    wait_until(log.find_leader, 60, "there is a leader")
    first = log.find_leader()
    assert first is not None

    def has_another_leader() -> bool:
        return (now := log.find_leader()) is not None and now is not first

    with log.cut_off(first):
        wait_until(has_another_leader, 120, "the others have a leader")
    began = time.monotonic()
    wait_until(lambda: log.count_current_replicas() == 3, 120, "the node is back")
    assert time.monotonic() - began < 120


def test_the_journal_that_says_most_counts(log: SharedLog, tmp_path: Path) -> None:
    site = IdleSharedSite(tmp_path / "site", log)
    site.journal_run(0, "a", 3)
    site.journal_run(1, "a", 5)
    site.journal_run(0, "b", 9)
    site.journal_run(1, "b", 5, "written", folder="finished")
    site.journal_run(0, "c", 9, folder="superseded/of-another")
    assert site.journaled("a") == 5
    assert site.outcome("a") == ""
    assert (site.journaled("b"), site.outcome("b")) == (5, "written")
    # The first host is at work on it.
    assert not site.settled("b")
    site.journal_run(1, "d", 5, "written", folder="finished")
    assert site.settled("d")
    assert site.journaled("c") == 0
    assert site.left_journal_dirs() == [site.directories[0] / "superseded/of-another"]
