"""What an ingest host gets of a site's log, and what it tells publishers through it."""

from __future__ import annotations

import asyncio
import math
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from log_site import LogSite
from memory_host import MemoryHost
from runs import documents, publish

from tiledbroker import JetStreamPublisher
from tiledbroker._errors import LogUnavailable
from tiledbroker.jetstream import (
    RUNS_BUCKET,
    STREAM,
    Connection,
    Receipt,
    StoredMessage,
    Tail,
    bucket_subject,
    compose_messages,
    decode_receipt,
    documents_subject,
    parse_tail,
    receipt_key,
)
from tiledbroker.protocol import messages
from tiledbroker.supervisor import ClientLimits, RunOwner
from tiledbroker.supervisor._run_owner import SoleOwner
from tiledbroker.supervisor.jetstream_source import JetStreamSource, _claim_window
from tiledbroker.supervisor.jetstream_source._claim_window import MIN_RUNS
from tiledbroker.supervisor.jetstream_source._log_run import LogRun, Phase
from tiledwriter.testing import wait_until


def make_source(
    site: LogSite, *, keep_in_log: float = 3600.0, owner: RunOwner | None = None, **limits: Any
) -> JetStreamSource:
    return JetStreamSource(site.address, ClientLimits(**limits), keep_in_log=keep_in_log, owner=owner)


class Owner(SoleOwner):
    """The owner of the runs that a test gives it."""

    def __init__(self) -> None:
        self.own: set[str] = set()
        self.of_others: set[str] = set()
        self.wanted: set[str] = set()
        self.removed: set[str] = set()
        # How often the source has looked after all of its runs.
        self.turns = 0
        self._listeners: list[Callable[[Collection[str]], None]] = []

    def owns(self, run_uid: str) -> bool:
        return run_uid in self.own

    def is_others(self, run_uid: str) -> bool:
        return run_uid in self.of_others

    def want(self, run_uid: str) -> None:
        self.wanted.add(run_uid)

    def unwant(self, run_uid: str) -> None:
        self.wanted.discard(run_uid)

    def remove_claim(self, run_uid: str) -> None:
        self.removed.add(run_uid)

    def note_open_runs(self, count: int) -> None:
        self.turns += 1

    def wait_for_turns(self) -> None:
        """Wait until the source has looked after all of its runs, from the beginning to the end."""
        before = self.turns
        wait_for(lambda: self.turns >= before + 2, "the source has looked after its runs")

    def listen(self, on_change: Callable[[Collection[str]], None]) -> None:
        self._listeners.append(on_change)

    def tell(self, run_uid: str) -> None:
        for listener in self._listeners:
            listener([run_uid])


@pytest.fixture
def publisher(log_site: LogSite, tmp_path: Path) -> Iterator[JetStreamPublisher]:
    made = JetStreamPublisher(log_site.address.servers, beamline="csx", spool_dir=tmp_path / "spool")
    try:
        yield made
    finally:
        # Some tests leave runs that no host has.
        made.close(timeout=0)


def uid_of(emitted: list[tuple[str, Any]]) -> str:
    return str(emitted[0][1]["uid"])


def length_in(host: MemoryHost, uid: str) -> int:
    journal = host.journals.get(uid)
    return 0 if journal is None else len(journal.documents)


def wait_for(condition: Callable[[], object], what: str) -> None:
    wait_until(lambda: bool(condition()), 60, what)


def receipt_of(site: LogSite, uid: str) -> Receipt | None:
    async def read(connection: Connection) -> Receipt | None:
        found = await connection.read_key(RUNS_BUCKET, receipt_key("csx", uid))
        return None if found is None else decode_receipt(found.body)

    found: Receipt | None = site.ask(read)
    return found


def append(site: LogSite, uid: str, first: int, *names: str, beamline: str = "csx") -> None:
    """Append documents to the log without looking whether they continue the run."""
    records = [(name, zlib.crc32(body), body) for name in names for body in [f"{name} of {uid}".encode()]]
    entry = messages.documents(uid, first, records)

    async def store(connection: Connection) -> None:
        subject = documents_subject(beamline, uid)
        found = await connection.read_last(STREAM, subject)
        tail = Tail() if found is None else parse_tail(found.seq, found.headers)
        (message,), _ = compose_messages(entry, tail, connection.max_payload)
        await connection.append(subject, message.body, message.headers, tail.seq)

    site.ask(store)


def test_runs_are_read_once_and_receipts_let_the_spool_go(log_site: LogSite, publisher: JetStreamPublisher) -> None:
    runs = [documents(200) for _ in range(3)]
    publish(publisher, runs[0])
    with MemoryHost(make_source(log_site)) as host:
        publish(publisher, runs[1][:100])
        publish(publisher, runs[2])
        publish(publisher, runs[1][100:])
        assert all(publisher.wait_written(uid_of(emitted), 60) for emitted in runs)
        wait_for(lambda: not publisher.status().kept, "the spool is empty")
        assert all(host.received[uid_of(emitted)] == list(range(203)) for emitted in runs)


def test_the_next_start_goes_on_where_its_journals_end(log_site: LogSite, publisher: JetStreamPublisher) -> None:
    emitted = documents(200)
    with MemoryHost(make_source(log_site)) as first:
        publish(publisher, emitted[:100])
        assert publisher.flush(60)
    publish(publisher, emitted[100:])
    with MemoryHost(make_source(log_site), first.journals) as second:
        assert publisher.wait_written(uid_of(emitted), 60)
        # At most the message in which the journal ends comes again.
        assert len(second.received[uid_of(emitted)]) < 203


def test_a_host_without_journals_gets_all_that_is_not_complete(
    log_site: LogSite, publisher: JetStreamPublisher
) -> None:
    complete, rest = documents(10), documents(200)
    with MemoryHost(make_source(log_site)):
        publish(publisher, complete)
        assert publisher.wait_written(uid_of(complete), 60)
        publish(publisher, rest[:100])
        assert publisher.flush(60)
    publish(publisher, rest[100:])
    with MemoryHost(make_source(log_site)) as host:
        assert publisher.wait_written(uid_of(rest), 60)
        assert host.received == {uid_of(rest): list(range(203))}
        assert all(uid_of(complete) not in hello.runs for hello in host.hellos)


@pytest.mark.parametrize("has_journals", [True, False])
def test_a_log_that_is_set_back_loses_nothing(
    has_journals: bool, log_site: LogSite, publisher: JetStreamPublisher, tmp_path: Path
) -> None:
    runs = [documents(60) for _ in range(3)]
    uids = list(map(uid_of, runs))
    (node,) = log_site.nodes
    with MemoryHost(make_source(log_site)) as host:
        for emitted in runs:
            publish(publisher, emitted[:20])
        assert publisher.flush(60)
        node.kill()
        log_site.save(tmp_path / "saved")
        node.start()
        # One run ends, one goes on, one does not.
        publish(publisher, runs[0][20:])
        publish(publisher, runs[1][20:40])
        assert publisher.flush(60)
        node.kill()
        log_site.set_back(tmp_path / "saved")
        if not has_journals:
            host.journals.clear()
        node.start()
        publish(publisher, runs[1][40:])
        publish(publisher, runs[2][20:])
        assert all(publisher.wait_written(uid, 60) for uid in uids[1:])
        wait_for(lambda: not publisher.status().kept, "the spool is empty")
        assert all(length_in(host, uid) == 63 for uid in uids[1:])
    assert all(log_site.indexes("csx", uid) == list(range(63)) for uid in uids[1:])


def test_what_is_refused_for_now_comes_again(log_site: LogSite, publisher: JetStreamPublisher) -> None:
    emitted = documents(50)
    with MemoryHost(make_source(log_site)) as host:
        host.is_refusing = True
        publish(publisher, emitted)
        wait_for(lambda: "the disk is full" in publisher.status().problem, "the publisher knows the reason")
        host.is_refusing = False
        assert publisher.wait_written(uid_of(emitted), 60)
        wait_for(lambda: not publisher.status().problem, "the problem is gone")


def test_a_run_without_answers_does_not_fill_the_memory(log_site: LogSite, publisher: JetStreamPublisher) -> None:
    silent, other = documents(5000), documents(10)
    with MemoryHost(make_source(log_site)) as host:
        host.is_silent = True
        publish(publisher, silent)
        wait_for(lambda: len(log_site.indexes("csx", uid_of(silent))) == 5003, "the run is in the log")
        wait_for(lambda: host.received.get(uid_of(silent)), "the first message has come")
        host.is_silent = False
        publish(publisher, other)
        assert publisher.wait_written(uid_of(other), 60)
        assert len(host.received[uid_of(silent)]) < 5003


def test_a_hole_in_the_log_is_said_and_stops_no_other_run(log_site: LogSite, publisher: JetStreamPublisher) -> None:
    append(log_site, "holed", 0, "start", "descriptor")
    append(log_site, "holed", 5, "event", "stop")
    with MemoryHost(make_source(log_site)) as host:
        emitted = documents(10)
        publish(publisher, emitted)
        assert publisher.wait_written(uid_of(emitted), 60)
        wait_for(lambda: (found := receipt_of(log_site, "holed")) and found.refused, "the hole is said")
        found = receipt_of(log_site, "holed")
        assert found is not None
        assert "lacks its documents from 2 to 4" in found.refused
        assert length_in(host, "holed") == 2


def test_documents_that_come_twice_are_handed_on_once(log_site: LogSite) -> None:
    append(log_site, "run", 0, "start", "descriptor", "event")
    append(log_site, "run", 0, "start", "descriptor", "event")
    append(log_site, "run", 1, "descriptor", "event", "stop")
    with MemoryHost(make_source(log_site)) as host:
        wait_for(lambda: length_in(host, "run") == 4, "the run is read")
        assert host.journals["run"].documents[-1][0] == "stop"


def test_what_is_no_message_of_ours_is_ignored(log_site: LogSite, publisher: JetStreamPublisher) -> None:
    emitted = documents(10)
    uid = uid_of(emitted)

    async def spoil(connection: Connection) -> None:
        await connection.append("tw.docs.csx.=zz", b"", {}, 0)
        await connection.append(documents_subject("csx", "other"), b"nonsense", {}, 0)
        await connection.append(documents_subject("csx", uid), b"nonsense", {}, 0)

    log_site.ask(spoil)
    source = make_source(log_site)
    with MemoryHost(source) as host:
        publish(publisher, emitted)
        assert publisher.wait_written(uid, 60)
        assert length_in(host, uid) == 13
        assert source.refused["protocol"]


def test_a_message_of_another_run_is_not_taken(log_site: LogSite) -> None:
    entry = messages.documents("victim", 0, [("start", zlib.crc32(b""), b"")])

    async def forge(connection: Connection) -> None:
        (message,), _ = compose_messages(entry, Tail(), connection.max_payload)
        await connection.append(documents_subject("csx", "own"), message.body, message.headers, 0)

    log_site.ask(forge)
    source = make_source(log_site)
    with MemoryHost(source) as host:
        wait_for(lambda: source.refused["protocol"], "the message is refused")
        assert not host.received


def test_another_run_with_the_uid_of_a_complete_one_is_refused(
    log_site: LogSite, publisher: JetStreamPublisher, tmp_path: Path
) -> None:
    emitted = documents(10)
    with MemoryHost(make_source(log_site, keep_in_log=0.2)) as host:
        uid = publish(publisher, emitted)
        assert publisher.wait_written(uid, 60)
        wait_for(lambda: not log_site.entries("csx", uid), "the run leaves the log")
        other = JetStreamPublisher(log_site.address.servers, beamline="csx", spool_dir=tmp_path / "other")
        with closing(other):
            publish(other, [("start", {**emitted[0][1], "time": 1.0}), *emitted[1:]])
            wait_for(lambda: uid in other.status().refused, "the run is refused")
            assert other.status().waiting
        assert length_in(host, uid) == 13


def test_a_document_above_the_limit_is_refused_with_the_reason(
    log_site: LogSite, publisher: JetStreamPublisher
) -> None:
    emitted = documents(3, remark="x" * 5000)
    with MemoryHost(make_source(log_site, max_document=4000)) as host:
        uid = publish(publisher, emitted)
        wait_for(lambda: "limit is 4000" in publisher.status().refused.get(uid, ""), "the reason is known")
        assert not host.received


def test_documents_larger_than_a_message_are_whole(log_site: LogSite, publisher: JetStreamPublisher) -> None:
    emitted = documents(3, remark="x" * 3_000_000)
    with MemoryHost(make_source(log_site)) as host:
        uid = publish(publisher, emitted)
        assert publisher.wait_written(uid, 60)
        assert host.received[uid] == list(range(6))


def test_many_runs_are_asked_for_together(log_site: LogSite) -> None:
    uids = [f"run-{number}" for number in range(450)]

    async def fill(connection: Connection) -> None:
        for uid in uids:
            records = [(name, zlib.crc32(name.encode()), name.encode()) for name in ("start", "stop")]
            (message,), _ = compose_messages(messages.documents(uid, 0, records), Tail(), connection.max_payload)
            await connection.append(documents_subject("csx", uid), message.body, message.headers, 0)

    log_site.ask(fill)
    with MemoryHost(make_source(log_site)) as host:
        wait_for(lambda: all(length_in(host, uid) == 2 for uid in uids), "all runs are read")
        assert len(host.hellos) < len(uids)
        expected = bucket_subject(RUNS_BUCKET, "receipt.csx.>")

        async def count(connection: Connection) -> int:
            found = await connection.call("STREAM.INFO.KV_TW_RUNS", {"subjects_filter": expected})
            return len(found["state"].get("subjects") or {})

        wait_for(lambda: log_site.ask(count) == len(uids), "all have receipts")


def test_a_run_is_read_once_it_is_this_host_s(log_site: LogSite, publisher: JetStreamPublisher) -> None:
    owner, emitted = Owner(), documents(50)
    uid = uid_of(emitted)
    with MemoryHost(make_source(log_site, owner=owner)) as host:
        publish(publisher, emitted)
        wait_for(lambda: uid in owner.wanted, "the run is wanted")
        assert not host.received
        owner.own.add(uid)
        owner.tell(uid)
        assert publisher.wait_written(uid, 60)
        assert host.received[uid] == list(range(53))


def test_runs_that_have_ended_are_claimed_as_far_as_they_can_be_written_soon(
    log_site: LogSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_claim_window, "FIRST_STUCK_SECONDS", math.inf)
    ended, going_on = [f"ended-{number}" for number in range(20)], [f"open-{number}" for number in range(20)]
    for uid in ended:
        append(log_site, uid, 0, "start", "stop")
    for uid in going_on:
        append(log_site, uid, 0, "start")
    owner = Owner()
    with MemoryHost(make_source(log_site, owner=owner)) as host:
        wait_for(lambda: owner.wanted == {*going_on, *ended[:MIN_RUNS]}, "the oldest and those that go on are wanted")
        for uid in ended[:3]:
            owner.own.add(uid)
            owner.tell(uid)
        owner.of_others.add(ended[3])
        owner.tell(ended[3])
        rest = {*going_on, *ended[4 : MIN_RUNS + 4]}
        wait_for(lambda: owner.wanted - set(ended[:3]) == rest, "as many others are wanted")
        assert sorted(host.received) == ended[:3]


def test_a_run_that_is_not_written_does_not_keep_others_waiting(
    log_site: LogSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_claim_window, "FIRST_STUCK_SECONDS", 0.2)
    uids = [f"ended-{number}" for number in range(MIN_RUNS + 2)]
    for uid in uids:
        append(log_site, uid, 0, "start", "stop")
    owner = Owner()
    with MemoryHost(make_source(log_site, owner=owner)):
        wait_for(lambda: owner.wanted == set(uids), "all are wanted in the end, though none is got")


def test_a_run_of_another_host_is_wanted_when_that_one_has_ended(
    log_site: LogSite, publisher: JetStreamPublisher
) -> None:
    owner, emitted = Owner(), documents(50)
    uid = uid_of(emitted)
    owner.of_others.add(uid)
    source = make_source(log_site, owner=owner)
    with MemoryHost(source) as host:
        publish(publisher, emitted)
        wait_for(lambda: [run for run in source._runs.values() if run.phase is Phase.WAITING], "the run is known")
        assert not owner.wanted
        owner.of_others.clear()
        owner.tell(uid)
        wait_for(lambda: uid in owner.wanted, "the run is wanted")
        assert not host.received


def test_documents_that_wait_for_a_host_are_behind_but_those_of_another_host_are_not(
    log_site: LogSite, publisher: JetStreamPublisher
) -> None:
    owner = Owner()
    emitted = documents(30)
    uid = publish(publisher, emitted[:20])
    source = make_source(log_site, owner=owner)
    with MemoryHost(source) as host:
        wait_for(lambda: lags(source) == {"csx": 20}, "nobody has the run")
        owner.of_others.add(uid)
        owner.tell(uid)
        wait_for(lambda: lags(source) == {"csx": 0}, "another host has it")
        owner.of_others.clear()
        owner.own.add(uid)
        owner.tell(uid)
        wait_for(lambda: length_in(host, uid) == 20, "it is read")
        assert set(lags(source)) == {"csx"}


def test_how_far_a_host_is_behind_is_not_known_before_receipts_are_read(
    log_site: LogSite, publisher: JetStreamPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = documents(30)
    with MemoryHost(make_source(log_site)) as first:
        publish(publisher, complete)
        assert publisher.wait_written(uid_of(complete), 60)
    source, may_read = make_source(log_site), threading.Event()
    read_receipt = source._read_receipt

    async def read_later(run: LogRun) -> None:
        await asyncio.to_thread(may_read.wait, 60)
        await read_receipt(run)

    monkeypatch.setattr(source, "_read_receipt", read_later)
    with MemoryHost(source, first.journals):
        try:
            wait_for(lambda: lags(source), "the beamline is known")
            assert lags(source) == {"csx": None}
        finally:
            may_read.set()
        wait_for(lambda: lags(source) == {"csx": 0}, "nothing is behind")


def lags(source: JetStreamSource) -> dict[str, int | None]:
    """How many documents each beamline is behind."""
    return {publisher.client: publisher.lag_documents for publisher in source.publishers.values()}


def test_a_run_that_was_taken_away_is_neither_read_on_nor_told_of(
    log_site: LogSite, publisher: JetStreamPublisher
) -> None:
    owner, emitted = Owner(), documents(50)
    uid = uid_of(emitted)
    owner.own.add(uid)
    with MemoryHost(make_source(log_site, owner=owner)) as host:
        publish(publisher, emitted[:20])
        assert publisher.flush(60)
        owner.own.clear()
        owner.tell(uid)
        wait_for(lambda: uid in owner.wanted, "the run is wanted again")
        before = receipt_of(log_site, uid)
        publish(publisher, emitted[20:])
        wait_for(lambda: len(log_site.indexes("csx", uid)) == 53, "all is in the log")
        assert host.received[uid] == list(range(20))
        assert receipt_of(log_site, uid) == before


def test_a_run_that_another_host_has_removed_is_forgotten(log_site: LogSite, publisher: JetStreamPublisher) -> None:
    owner, emitted = Owner(), documents(10)
    uid = uid_of(emitted)
    owner.of_others.add(uid)
    source = make_source(log_site, owner=owner)
    with MemoryHost(source):
        publish(publisher, emitted)
        wait_for(lambda: [run for run in source._runs.values() if run.phase is Phase.WAITING], "the run is known")

        async def purge(connection: Connection) -> None:
            await connection.call(f"STREAM.PURGE.{STREAM}", {"filter": documents_subject("csx", uid)})

        log_site.ask(purge)
        owner.of_others.clear()
        owner.tell(uid)
        wait_for(lambda: not source._runs, "the run is forgotten")
        assert not owner.wanted


def test_the_claim_of_a_run_is_removed_with_the_run(log_site: LogSite, publisher: JetStreamPublisher) -> None:
    owner, emitted = Owner(), documents(10)
    uid = uid_of(emitted)
    owner.own.add(uid)
    with MemoryHost(make_source(log_site, keep_in_log=0.2, owner=owner)):
        publish(publisher, emitted)
        assert publisher.wait_written(uid, 60)
        wait_for(lambda: uid in owner.removed, "the claim is removed")
        assert not log_site.entries("csx", uid)


def test_a_run_whose_owner_ends_while_the_log_gives_no_answer_is_wanted(
    log_site: LogSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    append(log_site, "open", 0, "start")
    append(log_site, "ended", 0, "start", "stop")
    owner = Owner()
    owner.of_others |= {"open", "ended"}
    source = make_source(log_site, owner=owner)
    read = Connection.read_last_from_leader
    answers = iter([False] * 2)

    async def read_or_fail(self: Connection, stream: str, subject: str) -> StoredMessage | None:
        if stream == STREAM and not next(answers, True):
            raise LogUnavailable("the leader is elected")
        return await read(self, stream, subject)

    monkeypatch.setattr(Connection, "read_last_from_leader", read_or_fail)
    with MemoryHost(source):
        wait_for(lambda: [run.phase for run in source._runs.values()] == [Phase.WAITING] * 2, "both are seen")
        owner.of_others.clear()
        for uid in ("open", "ended"):
            owner.tell(uid)
        wait_for(lambda: owner.wanted == {"open", "ended"}, "both are wanted")


def test_a_run_is_wanted_though_a_complete_one_of_another_beamline_has_its_uid(log_site: LogSite) -> None:
    uids = [f"run-{number}" for number in range(10)]
    owner = Owner()
    for uid in uids:
        append(log_site, uid, 0, "start", "stop", beamline="before")
        start, stop = (zlib.crc32(f"{name} of {uid}".encode()) for name in ("start", "stop"))
        receipt = Receipt(2, True, "written", start_crc=start, end_crc=stop, host="a", at=time.time())
        log_site.store_receipt("before", uid, receipt)
        append(log_site, uid, 0, "start")
        owner.of_others.add(uid)
    source = make_source(log_site, owner=owner)
    with MemoryHost(source):
        phases = [Phase.COMPLETE] * 10 + [Phase.WAITING] * 10
        wait_for(lambda: sorted((run.phase for run in source._runs.values()), key=str) == phases, "all are seen")
        owner.of_others.clear()
        for uid in uids:
            owner.tell(uid)
        wait_for(lambda: owner.wanted == set(uids), "those that are not complete are wanted")
        owner.wait_for_turns()
        assert owner.wanted == set(uids)


def test_the_claim_of_a_uid_stays_while_another_beamline_has_a_run_of_it(log_site: LogSite) -> None:
    append(log_site, "run", 0, "start", "stop", beamline="before")
    start, stop = (zlib.crc32(f"{name} of run".encode()) for name in ("start", "stop"))
    log_site.store_receipt("before", "run", Receipt(2, True, "written", start_crc=start, end_crc=stop, at=1.0))
    append(log_site, "run", 0, "start")
    owner = Owner()
    owner.own.add("run")
    with MemoryHost(make_source(log_site, owner=owner)):
        wait_for(lambda: not log_site.entries("before", "run"), "the complete run leaves the log")
        owner.wait_for_turns()
        assert not owner.removed


def test_a_stream_of_another_product_is_no_log(log_site: LogSite) -> None:
    async def replace(connection: Connection) -> None:
        await connection.call("STREAM.DELETE.TW")
        await connection.call("STREAM.CREATE.TW", {"name": "TW", "subjects": ["foo.>"], "storage": "memory"})

    log_site.ask(replace)
    source = make_source(log_site)
    with MemoryHost(source):
        wait_for(lambda: "is not that of a log" in source.problem, "the source says so")


def test_a_question_between_two_connections_has_no_answer_and_is_no_error(
    log_site: LogSite, caplog: pytest.LogCaptureFixture
) -> None:
    source = make_source(log_site)
    asyncio.run(source._guard(source._read_receipt(LogRun("csx", "run"))))
    source.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "The log gives no answer" in caplog.text
