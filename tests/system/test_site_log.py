"""Documents go from the callback over a site's log in JetStream to Tiled, whatever is killed on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from log_site import LogSite
from runs import documents, publish, seq_nums

from tiledbroker import JetStreamPublisher
from tiledbroker.supervisor import ClientLimits, Supervisor, WorkerCommand
from tiledbroker.supervisor.jetstream_source import JetStreamSource
from tiledwriter.testing import TiledServer, journal_of, wait_until

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
