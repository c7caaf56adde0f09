"""Two ingest hosts share a service by a lease: one of them serves at a time, and the other takes over."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from cables import Cable
from clocks import clock_ahead
from event_model import compose_run
from faulty_proxy import STALLED, FaultyProxy, late_answer
from runs import documents, happenings, length_of, publish, seq_nums, wait_for_outcome
from sharing_hosts import SharingHost
from tiled_users import TiledWithUsers
from warm import run_process

from tiledbroker import ZMQPublisher
from tiledbroker.ownership import DirectoryStore
from tiledwriter.testing import TiledServer, free_port, wait_until

# A busy machine must not lose it by being late.
LEASE_SECONDS = 6.0

Emitted = list[tuple[str, Any]]


class Host(SharingHost):
    """An ingest host: a supervisor that shares address, lease and Tiled with others, and is left to stand by."""

    def __init__(self, directory: Path, name: str, server: Any, *options: str, ahead_seconds: int = 0) -> None:
        self._holds_by_itself = "--standby" not in options
        self.shared = directory / "shared"
        if not self.shared.exists():
            DirectoryStore.create(self.shared)
        environment = {
            "TILEDWRITER_LEASE_DIR": str(self.shared),
            "TILEDWRITER_LEASE_SECONDS": str(LEASE_SECONDS),
            "TILEDWRITER_QUIET_PERIOD": "1",
        }
        super().__init__(directory / name, server, options=options, environment=environment)
        if ahead_seconds:
            self._command = [*clock_ahead(ahead_seconds), *self._command]

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def ready(self) -> bool:
        return super().ready() if self._holds_by_itself else self.snapshot() is not None


@pytest.fixture
def address() -> Iterator[Cable]:
    """The address of the service, which a test has lead to the host that serves."""
    with Cable(free_port()) as cable:
        yield cable


@pytest.fixture
def host(tmp_path: Path, tiled_server: TiledServer) -> Iterator[Callable[..., Host]]:
    """Makes and starts ingest hosts with one lease and one Tiled server."""
    made: list[Host] = []

    def start(name: str, *options: str, server: Any = None, ahead_seconds: int = 0) -> Host:
        made.append(Host(tmp_path, name, server or tiled_server, *options, ahead_seconds=ahead_seconds))
        made[-1].start()
        return made[-1]

    yield start
    for one in made:
        one.stop()


@pytest.fixture
def publisher(tmp_path: Path, address: Cable) -> Iterator[ZMQPublisher]:
    one = ZMQPublisher(address.address, spool_dir=tmp_path / "spool", on_error="raise")
    yield one
    one.close(timeout=0)


@pytest.fixture
def proxy(tiled_server: TiledServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(tiled_server.uri) as between:
        yield between


def through(proxy: FaultyProxy, server: TiledServer) -> Any:
    """The server as it is reached through a proxy."""
    return SimpleNamespace(uri=proxy.uri, api_key=server.api_key)


EVENTS = 40


def halves() -> tuple[Emitted, Emitted]:
    """A run of so many events in two parts, of which the second one has the stop document."""
    emitted = documents(EVENTS)
    return emitted[:20], emitted[20:]


def all_rows(server: TiledServer, uid: str) -> bool:
    """Whether Tiled has each row once, in order; False if it cannot be asked at the moment, as SQLite is locked."""
    with contextlib.suppress(httpx.HTTPStatusError):
        return seq_nums(server, uid) == list(range(1, EVENTS + 1))
    return False


def begin(publisher: ZMQPublisher, address: Cable, first: Host, emitted: Emitted) -> str:
    """Publish the beginning of a run to a host, and wait until that has it; returns the run's uid."""
    address.lead_to(first.port)
    uid = publish(publisher, emitted)
    wait_until(lambda: length_of(first, uid) == len(emitted), 60, "the first host has the documents")
    return uid


def hand_over(address: Cable, other: Host) -> None:
    """Wait until the other host serves, and have the service's address lead there."""
    wait_until(other.serves, 60, "the other host has taken over")
    address.lead_to(other.port)


def writes(proxy: FaultyProxy) -> int:
    return sum(request.method != "GET" for request in list(proxy.requests))


def serves(host: Host) -> int:
    """The exit code by which a service address is lead."""
    command = [*host._command[:3], "status", "--serves", "--journal-dir", host.journal_dir]
    return run_process(command, env=host._environment).returncode


def test_a_standby_says_that_it_stands_by(host: Callable[..., Host]) -> None:
    first = host("a")
    standby = host("b", "--standby")
    snapshot = standby.snapshot()
    assert snapshot is not None
    assert snapshot.lease is not None
    wait_until(lambda: "holds the lease" in " ".join(standby.snapshot().reasons), 30, "the lease is read")  # type: ignore[union-attr]
    printed = run_process(
        [*standby._command[:3], "status", "--journal-dir", standby.journal_dir], env=standby._environment
    )
    assert printed.returncode == 0
    assert "This host stands by" in printed.stdout
    assert serves(standby) == 1
    assert serves(first) == 0
    assert not snapshot.lease.held
    assert snapshot.listen is None


def test_a_second_host_that_is_not_to_stand_by_ends(host: Callable[..., Host]) -> None:
    host("a")
    with pytest.raises(RuntimeError, match=r"ended with 3(.|\n)*holds the lease(.|\n)*--standby"):
        host("b")


def test_a_host_whose_other_has_died_needs_no_standby(host: Callable[..., Host]) -> None:
    host("a").kill()
    assert host("b").serves()


def test_a_standby_goes_on_with_the_runs_of_a_killed_host(
    host: Callable[..., Host], publisher: ZMQPublisher, address: Cable, tiled_server: TiledServer
) -> None:
    first, rest = halves()
    a, b = host("a"), host("b", "--standby")
    uid = begin(publisher, address, a, first)
    a.kill()
    publish(publisher, rest)
    hand_over(address, b)
    assert wait_for_outcome(b.journal_dir, uid) == "written"
    assert all_rows(tiled_server, uid)


def test_a_standby_takes_over_at_once_from_a_host_that_is_stopped_in_order(
    host: Callable[..., Host], publisher: ZMQPublisher, address: Cable, tiled_server: TiledServer
) -> None:
    first, rest = halves()
    a, b = host("a"), host("b", "--standby")
    uid = begin(publisher, address, a, first)
    assert a.stop() == 0
    publish(publisher, rest)
    hand_over(address, b)
    assert wait_for_outcome(b.journal_dir, uid) == "written"
    assert all_rows(tiled_server, uid)
    assert "which has released the lease" in b.log.read_text()


def test_a_host_that_is_stopped_past_its_lease_sends_nothing_any_more(
    host: Callable[..., Host], publisher: ZMQPublisher, address: Cable, tiled_server: TiledServer, proxy: FaultyProxy
) -> None:
    first, rest = halves()
    # The hosts were started on different days: what their clocks say has nothing to do with each other.
    a, b = host("a", server=through(proxy, tiled_server)), host("b", "--standby", ahead_seconds=86_400)
    uid = begin(publisher, address, a, first)
    a.signal_all(signal.SIGSTOP)
    hand_over(address, b)
    sent = writes(proxy)
    assert serves(a) == 2
    a.signal_all(signal.SIGCONT)
    assert a.wait(30) == 1
    assert writes(proxy) == sent
    assert "lost the lease" in a.log.read_text()
    publish(publisher, rest)
    assert wait_for_outcome(b.journal_dir, uid) == "written"
    assert all_rows(tiled_server, uid)


def test_what_the_lost_disk_of_a_host_had_is_written_by_the_other(
    host: Callable[..., Host], publisher: ZMQPublisher, address: Cable, tiled_server: TiledServer
) -> None:
    unreachable = SimpleNamespace(uri=f"http://127.0.0.1:{free_port()}", api_key="secret")
    a, b = host("a", server=unreachable), host("b", "--standby")
    uid = begin(publisher, address, a, documents(EVENTS))
    assert publisher.flush(60)
    a.kill()
    shutil.rmtree(a.journal_dir)
    hand_over(address, b)
    assert wait_for_outcome(b.journal_dir, uid) == "written"
    assert all_rows(tiled_server, uid)


def test_a_last_append_that_is_carried_out_late_is_in_tiled_once(
    host: Callable[..., Host], publisher: ZMQPublisher, address: Cable, tiled_server: TiledServer, proxy: FaultyProxy
) -> None:
    first, rest = halves()
    a, b = host("a", server=through(proxy, tiled_server)), host("b", "--standby")
    uid = begin(publisher, address, a, first)
    wait_until(lambda: writes(proxy) > 3, 60, "rows are written")
    proxy.script("PATCH", "table/partition", STALLED)
    publish(publisher, rest[:-1])
    wait_until(lambda: proxy.all_played, 60, "an append is held")
    a.signal_all(signal.SIGKILL)
    hand_over(address, b)
    wait_until(lambda: all_rows(tiled_server, uid), 60, "the other host has written the rows")
    proxy.release_stalled()
    assert not all_rows(tiled_server, uid)
    publish(publisher, rest[-1:])
    assert wait_for_outcome(b.journal_dir, uid) == "written"
    assert all_rows(tiled_server, uid)


def test_journals_of_a_host_that_comes_back_are_set_aside(
    host: Callable[..., Host], publisher: ZMQPublisher, address: Cable, tiled_server: TiledServer
) -> None:
    first, rest = halves()
    a, b = host("a"), host("b", "--standby")
    uid = begin(publisher, address, a, first)
    a.kill()
    hand_over(address, b)
    publish(publisher, rest[:5])
    wait_until(lambda: length_of(b, uid) == len(first) + 5, 60, "the other host has the documents")
    b.kill()
    a.start()
    address.lead_to(a.port)
    publish(publisher, rest[5:])
    assert wait_for_outcome(a.journal_dir, uid) == "written"
    assert all_rows(tiled_server, uid)
    assert "1 unfinished journals were set aside" in a.log.read_text()
    (old,) = a.journal_dir.glob("superseded/*")
    listed = run_process([sys.executable, "-m", "tiledwriter.cli.journal", "ls", old, "--json"])
    assert "another host has served since" in json.loads(listed.stdout)[0]["why"]
    assert [run["documents"] for run in json.loads(listed.stdout)] == [{"start": 1, "descriptor": 1, "event": 18}]


def test_a_host_that_is_started_again_goes_on_at_once_with_its_own_journals(
    host: Callable[..., Host], publisher: ZMQPublisher, address: Cable, tiled_server: TiledServer
) -> None:
    first, rest = halves()
    a = host("a")
    uid = begin(publisher, address, a, first)
    a.kill()
    # Nobody has to wait for the lease of a process whose lock on the journals is free.
    epoch = DirectoryStore(a.shared).read().lease
    a.start()
    assert epoch is not None
    assert DirectoryStore(a.shared).read().lease.epoch == epoch.epoch + 1  # type: ignore[union-attr]
    assert length_of(a, uid) == len(first)
    publish(publisher, rest)
    assert wait_for_outcome(a.journal_dir, uid) == "written"
    assert all_rows(tiled_server, uid)
    assert not (a.journal_dir / "superseded").exists()


def test_a_host_that_cannot_renew_its_lease_ends_and_loses_nothing(
    host: Callable[..., Host], publisher: ZMQPublisher, address: Cable, tiled_server: TiledServer, tmp_path: Path
) -> None:
    first, rest = halves()
    a = host("a")
    uid = begin(publisher, address, a, first)
    a.shared.rename(tmp_path / "away")
    assert a.wait(60) == 1
    a.stop()
    assert "lost the lease" in a.log.read_text()
    publish(publisher, rest)
    (tmp_path / "away").rename(a.shared)
    a.start()
    assert wait_for_outcome(a.journal_dir, uid) == "written"
    assert all_rows(tiled_server, uid)


def test_two_hosts_that_start_at_once_do_not_both_serve(host: Callable[..., Host]) -> None:
    both = [host(name, "--standby") for name in "ab"]
    wait_until(lambda: any(one.serves() for one in both), 60, "one of them serves")
    assert sum(one.serves() for one in both) == 1


def test_a_host_that_takes_over_has_the_key_of_the_other_revoked(
    host: Callable[..., Host], publisher: ZMQPublisher, address: Cable, tmp_path: Path
) -> None:
    first, rest = halves()
    with TiledWithUsers(tmp_path / "tiled-with-users") as server, FaultyProxy(server.uri) as between:
        a, b = host("a", server=through(between, server)), host("b", "--standby", server=server)
        uid = begin(publisher, address, a, first)
        wait_until(lambda: writes(between) > 3, 60, "rows are written")
        between.script("PATCH", "table/partition", STALLED)
        publish(publisher, rest[:-1])
        wait_until(lambda: between.all_played, 60, "an append is held")
        a.signal_all(signal.SIGKILL)
        hand_over(address, b)
        wait_until(lambda: all_rows(server, uid), 60, "the other host has written the rows")
        between.release_stalled()
        assert [status for status, _, _ in between.late_answers] == [401]
        assert all_rows(server, uid)
        publish(publisher, rest[-1:])
        assert wait_for_outcome(b.journal_dir, uid) == "written"
        assert all_rows(server, uid)
        assert len(server.list_service_keys()) == 1


# What was decided about a run goes with it.


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TiledServer]:
    with TiledServer(tmp_path_factory.mktemp("postgresql"), storage="postgresql") as server:
        yield server


@pytest.fixture
def between(postgresql: TiledServer) -> Iterator[FaultyProxy]:
    with FaultyProxy(postgresql.uri) as between:
        yield between


def widening_run() -> Emitted:
    """A run with arrays, and with a number that is no integer as it should be."""
    run = compose_run()
    keys: Any = {
        "x": {"source": "s", "dtype": "integer", "shape": []},
        "wave": {"source": "s", "dtype": "array", "dtype_numpy": "<f8", "shape": [2]},
    }
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    data = [{"x": x, "wave": [float(x), 0.25]} for x in (0, 1, 2, 0.5, 4)]
    events = [stream.compose_event(data=each, timestamps=dict.fromkeys(each, 0.0)) for each in data]
    return [
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        *(("event", event) for event in events),
        ("stop", run.compose_stop()),
    ]


@pytest.mark.parametrize(
    ("method", "endpoint", "records"),
    [
        pytest.param("PUT", "data_source/{table}", "kept", id="before the copy is shown"),
        pytest.param("DELETE", "metadata/{table}_rewrite", "kept", id="before the copy is deleted"),
        pytest.param("DELETE", "metadata/{table}_rewrite", "lost", id="records lost"),
    ],
)
def test_a_standby_goes_on_with_what_was_decided_about_a_run(
    *,
    method: str,
    endpoint: str,
    records: str,
    host: Callable[..., Host],
    publisher: ZMQPublisher,
    address: Cable,
    postgresql: TiledServer,
    between: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emitted = widening_run()
    uid = emitted[0][1]["uid"]
    table = f"{uid}/primary/internal"
    a = host("a", server=through(between, postgresql))
    monkeypatch.setenv("TILEDWRITER_MAX_ARRAY_SIZE", "0")  # of the other host, as after a change of the configuration
    b = host("b", "--standby", server=through(between, postgresql))
    begin(publisher, address, a, emitted[:5])
    wait_until(lambda: between.count("PATCH", f"table/partition/{table}"), 60, "rows are written")
    between.script(method, endpoint.format(table=table), STALLED)
    publish(publisher, emitted[5:6])
    wait_until(lambda: between.all_played, 60, "the rewrite is about to end")
    a.signal_all(signal.SIGKILL)
    (record,) = (a.shared / "runs").iterdir()
    if records == "lost":
        record.unlink()
    before = len(between.requests)
    hand_over(address, b)
    publish(publisher, emitted[6:])
    assert wait_for_outcome(b.journal_dir, uid) == "written"
    stream = postgresql.client()[uid]["primary"].base
    assert ("rewriting" in happenings(b.journal_dir, uid)) == (records == "lost")
    assert list(stream) == (["internal", "wave"] if records == "lost" else ["internal"])
    appends = [request for request in between.requests[before:] if request.is_for("PATCH", "table/partition")]
    assert len(appends) == 1 or records == "lost"
    between.release_stalled()
    assert stream["internal"].read()["x"].tolist() == [0, 1, 2, 0.5, 4]
    assert not list((a.shared / "runs").iterdir())


def test_a_run_that_a_lost_host_has_finished_is_not_written_again(
    host: Callable[..., Host], publisher: ZMQPublisher, address: Cable, postgresql: TiledServer, between: FaultyProxy
) -> None:
    emitted = widening_run()
    a, b = host("a", server=through(between, postgresql)), host("b", "--standby", server=through(between, postgresql))
    between.script("POST", "metadata/", late_answer(1.0))
    uid = begin(publisher, address, a, emitted)
    address.go_dead()
    assert wait_for_outcome(a.journal_dir, uid) == "written"
    assert a.stop() == 0
    shutil.rmtree(a.journal_dir)
    before = len(between.requests)
    wait_until(b.serves, 60, "the other host has taken over")
    address.lead_to(b.port)
    address.come_back()
    assert wait_for_outcome(b.journal_dir, uid) == "written"
    assert publisher.wait_written(uid, 60)
    assert not [request for request in between.requests[before:] if request.method in {"PATCH", "PUT", "DELETE"}]
    assert postgresql.client()[uid]["primary"].base["internal"].read()["x"].tolist() == [0, 1, 2, 0.5, 4]
