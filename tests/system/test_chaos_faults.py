"""Whether the faults of a campaign are really done to logs, permissions, sockets, databases and gateways."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chaos.campaign  # noqa: F401  has all kinds registered
import httpx
import psutil
import pytest
from chaos import faults
from chaos.databases import tables_locked
from chaos.elsewhere import Elsewhere
from chaos.gateway import LOGIN, Gateway, html
from chaos.kinds import KINDS, Planned, kinds_of
from chaos.logs import copy_files, documents_in, files_of, flip_bit, runs_in, used
from chaos.permissions import permissions_away, subject_to_permissions
from chaos.referee import CONTAINER, Harm, Referee
from chaos.site import Seat, Setting, Site
from event_model import compose_run

from tiledbroker import Encoder, Journal, ZMQPublisher
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, wait_until

DOCUMENTS = 40


class IdleSeat(Seat):
    """A seat whose sessions only say that they begin and end; what is in its spool was published here."""

    def __init__(self, number: int, site: Site, directory: Path) -> None:
        super().__init__(number, site, directory / f"spool-{number}", directory / f"seat-{number}", at_once=1)
        self.happened: list[str] = []

    def start(self, *, away: str = "") -> None:
        self.happened.append(f"starts for {away}" if away else "starts")

    def kill(self) -> None:
        self.happened.append("is killed")

    def leave(self, timeout: float) -> None:
        self.happened.append("leaves")


class IdleSite(Site):
    """A site with spools and journals, of which no process runs; `during` is called while a fault lasts."""

    def __init__(self, directory: Path) -> None:
        super().__init__(Setting(directory), note=lambda _: None)
        self.journal_dir = directory / "host" / "journals"
        self.journal_dir.mkdir(parents=True, mode=0o700)
        self.happened: list[str] = []
        self.during: Callable[[], object] = lambda: None
        self.supervisor: Any = SimpleNamespace()
        self.idle_seats = [IdleSeat(number, self, directory) for number in range(2)]
        self.seats = [*self.idle_seats]

    def pause(self, seconds: float) -> None:
        self.during()

    def ingest_processes(self) -> list[psutil.Process]:
        return []

    def workers(self) -> list[psutil.Process]:
        return []

    def kill_ingest_host(self) -> None:
        self.happened.append("the host dies")

    def bring_up(self, process: Any) -> None:
        self.happened.append("a host starts")

    def publish(self, run_uid: str, count: int, *, seat: int = 0) -> None:
        """Publish a run of a start and events, or the rest of it, which nobody ships; it is left without a stop."""
        home = self.seats[seat].home
        known = len(home.emitted().get(run_uid, ()))
        with closing(ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir=self.seats[seat].spool)) as publisher:
            with home.witness.open("a") as witness:
                for idx, (name, document) in enumerate(documents(run_uid)[:count]):
                    publisher(name, document)
                    if idx >= known:
                        witness.write(f"{run_uid} {idx} {name} 0 1.0\n")
            publisher.close(0)

    def journal_run(self, run_uid: str, count: int, outcome: str = "") -> None:
        """Bring so many documents of a run into its journal."""
        encoder = Encoder()
        with Journal(self.journal_dir / f"{run_uid}.sqlite", "create", run_uid=run_uid) as journal:
            for name, document in documents(run_uid)[journal.length : count]:
                journal.append_one(name, encoder.encode(document))
            if outcome:
                journal.set("outcome", outcome)


def documents(run_uid: str) -> list[tuple[str, dict[str, Any]]]:
    start = {"uid": run_uid, "time": 1.0}
    descriptor = {"uid": f"{run_uid}-primary", "run_start": run_uid, "time": 1.0, "name": "primary", "data_keys": {}}
    events = [
        {"uid": f"{run_uid}-{number}", "descriptor": f"{run_uid}-primary", "seq_num": number, "time": 1.0, "data": {}}
        for number in range(1, DOCUMENTS)
    ]
    return [("start", start), ("descriptor", descriptor), *(("event", event) for event in events)]


def planned(kind: str, *, victim: float = 0.0, lasting: float = 0.5, amount: float = 0.9) -> Planned:
    return Planned(0, kind, 0.0, victim, lasting, amount)


@pytest.fixture
def site(tmp_path: Path) -> IdleSite:
    return IdleSite(tmp_path / "site")


def contents(directory: Path) -> dict[str, bytes]:
    """Of files with documents, by name."""
    uids = {path.name.partition(".")[0] for path in directory.iterdir()}
    return {path.name: path.read_bytes() for uid in uids for path in files_of(directory, uid)}


def bits_that_differ(one: dict[str, bytes], other: dict[str, bytes]) -> int:
    assert {name: len(content) for name, content in one.items()} == {name: len(other[name]) for name in other}
    pairs = [pair for name in one for pair in zip(one[name], other[name], strict=True)]
    return sum((left ^ right).bit_count() for left, right in pairs)


# Bits


@pytest.mark.parametrize("lasting", [0.1, 0.5, 0.9])
def test_one_bit_of_one_run_in_a_spool_is_flipped_between_two_sessions(site: IdleSite, lasting: float) -> None:
    site.publish("a", 20)
    site.publish("b", 20)
    before = contents(site.seats[0].spool)
    assert KINDS["bit flipped in spool"](site, planned("bit flipped in spool", lasting=lasting)).startswith("bit ")
    assert bits_that_differ(before, contents(site.seats[0].spool)) == 1
    assert list(site.harms.values()) == [Harm(damaged=True)]
    assert site.idle_seats[0].happened == ["is killed", "starts"]


@pytest.mark.parametrize(("amount", "happened"), [(0.9, ["the host dies", "a host starts"]), (0.1, [])])
def test_one_bit_of_a_journal_is_flipped_with_and_without_its_host(
    site: IdleSite, amount: float, happened: list[str]
) -> None:
    site.publish("a", 5)
    site.publish("b", 5)
    site.journal_run("a", 5, outcome="interrupted")
    site.journal_run("b", 5)
    before = contents(site.journal_dir)
    assert KINDS["bit flipped in journal"](site, planned("bit flipped in journal", amount=amount))
    assert bits_that_differ(before, contents(site.journal_dir)) == 1
    assert site.harms == {"b": Harm(damaged=True)}
    assert site.happened == happened


def test_where_there_is_nothing_to_flip_no_host_is_killed(site: IdleSite) -> None:
    for kind in ("bit flipped in spool", "bit flipped in journal"):
        assert not KINDS[kind](site, planned(kind))
    assert site.harms == {}
    assert site.happened == []


def test_only_what_is_used_of_a_file_is_flipped(tmp_path: Path) -> None:
    path = tmp_path / "a.000000000000.segment"
    path.write_bytes(b"abc" + bytes(100_000))
    assert used(path) == 3
    for seed in range(20):
        path.write_bytes(b"abc" + bytes(100_000))
        flip_bit(path, random.Random(seed))
        assert bits_that_differ({"": b"abc"}, {"": path.read_bytes()[:3]}) == 1


def test_files_are_found_by_their_run_however_many_there_are(tmp_path: Path) -> None:
    names = ["a.000000000000.segment", "a.000000000500.segment", "b.sqlite", "b.sqlite-wal"]
    for name in [*names, "a.lock", "b.sqlite-shm", "ab.sqlite", ".workers.ipc"]:
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in files_of(tmp_path, "a")] == names[:2]
    assert [path.name for path in files_of(tmp_path, "b")] == names[2:]
    assert runs_in(tmp_path, ["c", "b", "a"]) == ["b", "a"]


# Files that are taken from under a worker


@pytest.mark.parametrize("kind", ["open journal removed", "open journal replaced"])
def test_a_journal_is_taken_from_a_worker_which_puts_it_back(
    tmp_path: Path, site: IdleSite, tiled_server: TiledServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with (
        SupervisorProcess(site.journal_dir, tiled_server) as supervisor,
        closing(ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool")) as publisher,
    ):
        run = documents(str(uuid.uuid4()))
        for name, document in run[:3]:
            publisher(name, document)
        assert publisher.flush(60)
        run_uid = run[0][1]["uid"]
        monkeypatch.setattr(site, "workers", supervisor.workers)
        monkeypatch.setattr(site, "emitted", lambda: {run_uid: []})
        before = (site.journal_dir / f"{run_uid}.sqlite").stat().st_ino
        assert KINDS[kind](site, planned(kind)) == f"{run_uid}.sqlite with 3 documents"
        assert (site.journal_dir / f"{run_uid}.sqlite").stat().st_ino != before
    assert site.harms == {}


def test_a_journal_that_nobody_puts_back_is_noted_as_lost(site: IdleSite, monkeypatch: pytest.MonkeyPatch) -> None:
    site.publish("a", 3)
    site.journal_run("a", 3)
    monkeypatch.setattr("chaos.harm._PUT_BACK", 0.1)
    with Journal(site.journal_dir / "a.sqlite"):
        monkeypatch.setattr(site, "workers", lambda: [psutil.Process()])
        done = KINDS["open journal removed"](site, planned("open journal removed"))
    assert done == "a.sqlite, which nobody has put back"
    assert site.harms == {"a": Harm(0, readable=False, stale=True)}


@pytest.mark.parametrize("kind", ["open journal removed", "open journal replaced"])
def test_a_journal_that_no_worker_has_open_is_left_alone(site: IdleSite, kind: str) -> None:
    site.publish("a", 3)
    site.journal_run("a", 3)
    before = contents(site.journal_dir)
    assert not KINDS[kind](site, planned(kind))
    assert contents(site.journal_dir) == before
    assert site.harms == {}


# Copies of earlier times


def test_a_spool_is_as_it_was_when_an_old_copy_is_put_back(site: IdleSite) -> None:
    site.publish("a", 10)
    site.take_snapshot()
    before = contents(site.seats[0].spool)
    site.publish("b", 10)
    site.journal_run("a", 25)
    assert contents(site.seats[0].spool) != before
    assert KINDS["old spool put back"](site, planned("old spool put back"))
    assert contents(site.seats[0].spool) == before
    # What the ingest host has is safe; of what nobody has any more, nothing is.
    assert site.harms == {"a": Harm(25, readable=True), "b": Harm(0, readable=False)}
    assert site.idle_seats[0].happened == ["is killed", "starts"]


def test_journals_are_as_they_were_and_the_newer_ones_are_kept_for_the_referee(site: IdleSite) -> None:
    for run_uid in ("a", "b", "c"):
        site.publish(run_uid, 10)
    site.journal_run("a", 5)
    site.journal_run("c", 10, outcome="interrupted")
    site.take_snapshot()
    site.journal_run("a", 10, outcome="interrupted")
    site.journal_run("b", 10)
    assert KINDS["old journals put back"](site, planned("old journals put back"))
    assert site.happened == ["the host dies", "a host starts"]
    assert documents_in(site.journal_dir) == {"a": 5, "c": 10}
    assert documents_in(site.retired[-1]) == {"a": 10, "b": 10, "c": 10}
    assert site.harms == {"a": Harm(stale=True)}
    assert site.outcome("a") == "interrupted"


def test_spools_and_journals_of_one_moment_are_put_back(site: IdleSite) -> None:
    site.publish("a", 10)
    site.publish("b", 10, seat=1)
    site.journal_run("b", 5)
    site.take_snapshot()
    before = [contents(seat.spool) for seat in site.seats]
    site.journal_run("b", 10)
    site.publish("c", 10)
    kind = "old spools and journals put back"
    assert KINDS[kind](site, planned(kind))
    assert [contents(seat.spool) for seat in site.seats] == before
    assert documents_in(site.journal_dir) == {"b": 5}
    assert site.harms == {
        "a": Harm(10, stale=True),
        "b": Harm(10, stale=True),
        "c": Harm(0, readable=False, stale=True),
    }


@pytest.mark.parametrize(("kind", "left"), [("old journals put back", 15), ("second ingest host", 10)])
def test_what_neither_spool_nor_journals_have_any_more_is_not_asked_for(site: IdleSite, kind: str, left: int) -> None:
    site.publish("a", 10)
    site.publish("b", 10)
    site.journal_run("a", 15)
    site.take_snapshot()
    site.journal_run("a", 25)
    site.journal_run("b", 25)
    site.publish("c", 10, seat=1)
    assert KINDS["old spool put back"](site, planned("old spool put back"))
    assert site.harms["a"].safe == 25
    assert KINDS[kind](site, planned(kind, victim=0.9 if kind == "second ingest host" else 0.0))
    assert (site.harms["a"].safe, site.harms["b"].safe) == (left, 10)
    assert site.harms.get("c", Harm()).safe is None


def test_a_copy_is_taken_while_all_processes_stand_still(site: IdleSite, monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        standing: list[str] = []

        def copy(source: Path, target: Path) -> Path:
            standing.append(psutil.Process(process.pid).status())
            return copy_files(source, target)

        monkeypatch.setattr("chaos.site.copy_files", copy)
        monkeypatch.setattr(site, "ingest_processes", lambda: [psutil.Process(process.pid)])
        site.take_snapshot()
        assert set(standing) == {psutil.STATUS_STOPPED}
        assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
        process.kill()


# Ingest hosts that come and go


def test_a_second_ingest_host_has_no_journals(site: IdleSite) -> None:
    site.publish("a", 10)
    site.journal_run("a", 10)
    assert KINDS["second ingest host"](site, planned("second ingest host", victim=0.9))
    assert documents_in(site.journal_dir) == {}
    assert documents_in(site.retired[-1]) == {"a": 10}
    assert site.harms == {}
    assert site.happened == ["the host dies", "a host starts"]


def test_the_first_ingest_host_comes_back_with_its_journals(site: IdleSite) -> None:
    site.publish("a", 10)
    site.journal_run("a", 4)
    site.during = lambda: site.journal_run("b", 10)
    assert KINDS["second ingest host"](site, planned("second ingest host", victim=0.1))
    assert documents_in(site.journal_dir) == {"a": 4}
    assert documents_in(site.retired[-1]) == {"b": 10}
    assert site.harms == {"a": Harm(stale=True)}
    assert site.happened == ["the host dies", "a host starts"] * 2


# Permissions


@pytest.mark.parametrize(
    ("kind", "amount", "hit"),
    [
        ("permissions of spools away", 0.9, "spool-0"),
        ("permissions of spools away", 0.1, "."),
        ("permissions of journals away", 0.9, "host/journals"),
        ("permissions of journals away", 0.1, "host"),
    ],
)
def test_permissions_are_away_while_the_fault_lasts_and_back_then(
    site: IdleSite, kind: str, amount: float, hit: str
) -> None:
    prefix, problem = subject_to_permissions()
    if problem:
        pytest.skip(problem)
    site.publish("a", 3)
    site.publish("b", 3, seat=1)
    directory = site.setting.directory / hit
    seen: list[int] = []

    def look() -> None:
        done = subprocess.run([*prefix, "ls", str(directory)], capture_output=True, check=False)
        seen.append(done.returncode)

    site.during = look
    assert KINDS[kind](site, planned(kind, amount=amount))
    assert seen[0] != 0
    look()
    assert seen[-1] == 0


def test_permissions_come_back_as_they_were_when_a_fault_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    modes = []

    def fail() -> None:
        modes.append(tmp_path.stat().st_mode & 0o777)
        raise RuntimeError

    with pytest.raises(RuntimeError), permissions_away(tmp_path):
        fail()
    assert modes == [0]
    assert tmp_path.stat().st_mode & 0o777 == 0o750


# Temporary files


def test_a_service_has_nothing_in_the_temporary_directory(tmp_path: Path, tiled_server: TiledServer) -> None:
    """So nobody harms it who deletes old files there, as systemd-tmpfiles does."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary)}
    with (
        SupervisorProcess(tmp_path / "journals", tiled_server, environment=environment) as supervisor,
        closing(ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool")) as publisher,
    ):
        publisher("start", compose_run().start_doc)
        assert publisher.flush(60)
        assert supervisor.workers()
        assert list(temporary.iterdir()) == []


# Destinations


@pytest.mark.parametrize(("amount", "listens"), [(0.1, True), (0.9, False)])
def test_a_session_for_another_supervisor_comes_between_two(site: IdleSite, amount: float, listens: bool) -> None:
    happened = site.idle_seats[0].happened
    site.elsewhere = SimpleNamespace(  # type: ignore[assignment]
        mutex=threading.Lock(),
        address="tcp://elsewhere",
        start=lambda: happened.append("elsewhere starts"),
        stop=lambda: happened.append("elsewhere stops"),
    )
    site.publish("a", 3)
    assert KINDS["destination changed"](site, planned("destination changed", amount=amount))
    assert happened == [
        "is killed",
        *(["elsewhere starts"] if listens else []),
        *("starts for tcp://elsewhere", "leaves", "elsewhere stops", "is killed", "starts"),
    ]


def test_the_other_supervisor_has_journals_and_a_container_of_its_own(
    tmp_path: Path, own_tiled_server: TiledServer
) -> None:
    elsewhere = Elsewhere(tmp_path / "elsewhere", own_tiled_server)
    elsewhere.start()
    try:
        with closing(ZMQPublisher(elsewhere.address, spool_dir=tmp_path / "spool")) as publisher:
            for name, document in documents("away")[:3]:
                publisher(name, document)
            assert publisher.flush(60)
        wait_until((elsewhere.journal_dir / "away.sqlite").exists, 30, "the run is in its journal")
        wait_until(lambda: "away" in own_tiled_server.client()[CONTAINER], 60, "the run is in its container")
        assert "away" not in own_tiled_server.client()
    finally:
        elsewhere.stop()
    referee = Referee(tmp_path, own_tiled_server.uri, own_tiled_server.api_key, elsewhere=elsewhere.journal_dir)
    with closing(referee):
        assert referee.foreign("away") == 4  # documents and a node: it would be wrong for a run that is not away
        assert referee.foreign("another") == 0


# Databases


@pytest.mark.parametrize("storage_server", ["sqlite", "postgresql"], indirect=True)
def test_nobody_else_gets_at_the_tables_while_they_are_locked(storage_server: TiledServer) -> None:
    table(storage_server)
    with tables_locked(storage_server):
        assert not can_write(storage_server)
    assert can_write(storage_server)


def table(server: TiledServer) -> None:
    """Have at least one table there."""
    import pyarrow

    node = server.client().create_appendable_table(pyarrow.schema([("x", pyarrow.int64())]))
    node.append_partition(0, pyarrow.table({"x": [1]}))


def can_write(server: TiledServer) -> bool:
    if server._postgresql is None:
        with closing(sqlite3.connect(server._directory / "tables.db", timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.execute("ROLLBACK")
            return True
    import adbc_driver_postgresql.dbapi

    uri = server._postgresql.uri("tiled")
    with adbc_driver_postgresql.dbapi.connect(uri) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename LIKE 'table%'")
        name = cursor.fetchall()[0][0]
        try:
            cursor.execute(f'LOCK TABLE "{name}" IN ROW EXCLUSIVE MODE NOWAIT')
        except adbc_driver_postgresql.dbapi.Error:
            return False
        finally:
            connection.rollback()
        return True


# Gateways


@pytest.fixture
def gateway(tiled_server: TiledServer) -> Iterator[Gateway]:
    with Gateway(tiled_server.uri) as gateway:
        yield gateway


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("status", [302, 200, 404, 405, 503])
def test_a_gateway_answers_by_itself_for_a_while(
    gateway: Gateway, tiled_server: TiledServer, status: int, reads: bool
) -> None:
    answers: list[httpx.Response] = []

    def ask(_: float = 0.0) -> None:
        with httpx.Client(headers={"Authorization": f"Apikey {tiled_server.api_key}"}) as client:
            answers.append(client.get(f"{gateway.uri}/api/v1/metadata/"))
            answers.append(client.post(f"{gateway.uri}/api/v1/metadata/nowhere", json={}))
            answers.append(client.get(f"{gateway.uri}{LOGIN}"))

    fault = html(status, "by itself", location=LOGIN if status == 302 else None)
    assert gateway.answer_all(fault, 1.0, ask, reads=reads) == 1 + reads
    read, written, login = answers
    assert (written.status_code, written.headers["Content-Type"]) == (status, "text/html")
    assert written.headers.get("Location") == (LOGIN if status == 302 else None)
    assert (read.headers["Content-Type"] == "text/html") == reads
    assert (login.status_code, login.headers["Content-Type"]) == (200, "text/html")
    answers.clear()
    ask()
    assert ["json" in answer.headers["Content-Type"] for answer in answers] == [True, True, False]


# Runs


def test_a_run_that_cannot_be_written_gets_into_quarantine(tmp_path: Path, tiled_server: TiledServer) -> None:
    site = IdleSite(tmp_path / "site")
    with SupervisorProcess(site.journal_dir, tiled_server) as supervisor:
        site.wire = SimpleNamespace(address=supervisor.address)
        done = KINDS["run that cannot be written"](site, planned("run that cannot be written"))
    assert done.endswith(": failed")
    assert site.complaints == []


def test_a_run_that_no_supervisor_takes_is_no_fault(site: IdleSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_NO_REQUEST", 0.1)
    site.wire = SimpleNamespace(address=f"tcp://127.0.0.1:{free_port()}")
    assert KINDS["run that cannot be written"](site, planned("run that cannot be written")) == ""


def test_all_kinds_of_faults_are_in_a_campaign() -> None:
    assert {
        *("bit flipped in spool", "bit flipped in journal", "second ingest host", "destination changed"),
        *("open journal removed", "open journal replaced"),
        *("old spool put back", "old journals put back", "old spools and journals put back"),
        *("permissions of spools away", "permissions of journals away"),
        *("tables locked", "gateway answers", "spool truncated", "worker killed", "cable cut", "zombie"),
        "run that cannot be written",
    } <= set(kinds_of("zeromq"))
