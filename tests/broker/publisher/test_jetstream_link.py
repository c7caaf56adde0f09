"""A publisher and a site's log: nothing is in it twice or missing, and only receipts let a spool go."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from event_model import compose_run
from log_site import LogSite

from tiledbroker import JetStreamPublisher, RunNotWritten
from tiledbroker._errors import AppendRefused, LogUnavailable
from tiledbroker.jetstream import (
    STREAM,
    Connection,
    Receipt,
    documents_subject,
)
from tiledbroker.protocol import messages
from tiledbroker.publisher._session import ShippingSession
from tiledwriter.testing import wait_until

Documents = list[tuple[str, dict[str, Any]]]


def make_documents(events: int = 3, size: int = 0) -> Documents:
    run = compose_run()
    stream = run.compose_descriptor(name="primary", data_keys={"x": {"source": "s", "dtype": "string", "shape": []}})
    rows = [stream.compose_event(data={"x": "x" * size}, timestamps={"x": float(i)}) for i in range(events)]
    return [
        ("start", run.start_doc),
        ("descriptor", stream.descriptor_doc),
        *(("event", row) for row in rows),
        ("stop", run.compose_stop()),
    ]


def uid_of(emitted: Documents) -> str:
    return str(emitted[0][1]["uid"])


@pytest.fixture
def make_publisher(log_site: LogSite, tmp_path: Path) -> Iterator[Callable[..., JetStreamPublisher]]:
    made: list[JetStreamPublisher] = []

    def make(**options: Any) -> JetStreamPublisher:
        options = {"spool_dir": tmp_path / "spool", **options}
        made.append(JetStreamPublisher(log_site.address.servers, beamline="csx", **options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close(0)


def publish(publisher: JetStreamPublisher, emitted: Documents) -> str:
    for name, doc in emitted:
        publisher(name, doc)
    return uid_of(emitted)


def wait_for_log(site: LogSite, uid: str, length: int) -> None:
    wait_until(lambda: len(site.indexes("csx", uid)) >= length, 60, "the documents are in the log")
    assert site.indexes("csx", uid) == list(range(length))


def tell(site: LogSite, uid: str, **values: Any) -> Receipt:
    """Store a receipt, as an ingest host does."""
    first = next(iter(site.entries("csx", uid)), None)
    crc = first.crcs[0] if isinstance(first, messages.Documents) else None
    receipt = msgspec.structs.replace(Receipt(start_crc=crc, host="ingest", at=time.time()), **values)
    site.store_receipt("csx", uid, receipt)
    return receipt


def test_only_a_receipt_lets_the_spool_go(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher], tmp_path: Path
) -> None:
    publisher = make_publisher()
    uid = publish(publisher, make_documents())
    wait_for_log(log_site, uid, 6)
    assert not publisher.flush(0.2)
    assert publisher.status().waiting == 6
    tell(log_site, uid, next=4)
    wait_until(lambda: publisher.status().waiting == 2, 60, "the receipt is known")
    tell(log_site, uid, next=6, ended=True)
    assert publisher.flush(60)
    assert publisher.status().kept == 1
    tell(log_site, uid, next=6, ended=True, outcome="written")
    assert publisher.wait_written(uid, 60)
    wait_until(lambda: not publisher.status().kept, 60, "the spool is empty")


def test_few_documents_wait_for_company_the_longer_appends_take(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    receive = ShippingSession.receive

    def note(session: ShippingSession, message: messages.Message, now: float) -> None:
        if isinstance(message, messages.Durable):
            pauses.append(message.pause)
        receive(session, message, now)

    append = Connection.append

    async def append_late(*arguments: Any) -> int:
        await asyncio.sleep(1.0)
        return await append(*arguments)

    publisher = make_publisher()
    emitted = make_documents()
    uid = publish(publisher, emitted[:3])
    wait_for_log(log_site, uid, 3)
    with monkeypatch.context() as patch:
        patch.setattr(ShippingSession, "receive", note)
        patch.setattr(Connection, "append", append_late)
        tell(log_site, uid, next=3)
        wait_until(lambda: len(pauses) == 1, 60, "the receipt is known")
        publish(publisher, emitted[3:5])
        wait_for_log(log_site, uid, 5)
        tell(log_site, uid, next=5)
        wait_until(lambda: len(pauses) == 2, 60, "the next receipt is known")
    assert 0 < pauses[0] < pauses[1] == 0.1


def test_a_run_that_failed_is_kept_and_said(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher]
) -> None:
    publisher = make_publisher()
    uid = publish(publisher, make_documents())
    wait_for_log(log_site, uid, 6)
    tell(log_site, uid, next=6, ended=True, outcome="failed", reason="it is odd")
    with pytest.raises(RunNotWritten, match="it is odd"):
        publisher.wait_written(uid, 60)
    assert publisher.status().kept == 1


def test_what_the_ingest_host_refuses_is_kept_and_said(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher]
) -> None:
    publisher = make_publisher()
    uid = publish(publisher, make_documents())
    wait_for_log(log_site, uid, 6)
    tell(log_site, uid, refused="it is too large")
    wait_until(lambda: publisher.status().refused == {uid: "it is too large"}, 60, "the refusal is known")


def test_an_answer_that_is_lost_doubles_nothing(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, lost = Connection.append, []

    async def append(self: Connection, subject: str, body: bytes, headers: Mapping[str, str], expected_seq: int) -> int:
        seq = await original(self, subject, body, headers, expected_seq)
        if len(lost) < 3:
            lost.append(seq)
            raise LogUnavailable("the answer is lost")
        return seq

    monkeypatch.setattr(Connection, "append", append)
    publisher = make_publisher()
    uid = publish(publisher, make_documents(2000))
    wait_for_log(log_site, uid, 2003)
    assert len(lost) >= 2
    wait_until(lambda: not publisher.status().problem, 60, "the trouble is over")


def test_a_refusal_without_a_reason_is_asked_about(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, refused = Connection.append, []

    async def append(self: Connection, subject: str, body: bytes, headers: Mapping[str, str], expected_seq: int) -> int:
        if len(refused) < 2:
            refused.append(expected_seq)
            raise AppendRefused("another one is in process")
        return await original(self, subject, body, headers, expected_seq)

    monkeypatch.setattr(Connection, "append", append)
    uid = publish(make_publisher(), make_documents())
    wait_for_log(log_site, uid, 6)


def test_the_next_session_goes_on_where_the_log_ends(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher]
) -> None:
    emitted = make_documents(50)
    publisher = make_publisher()
    uid = publish(publisher, emitted[:-1])
    wait_for_log(log_site, uid, 52)
    publisher.close(0)
    # Nobody has had the documents, so it is for the next session to say that the run has ended.
    publisher = make_publisher()
    wait_until(lambda: publisher.status().waiting == 52, 60, "the run is adopted")
    tell(log_site, uid, next=52)
    wait_until(lambda: len(log_site.entries("csx", uid)) > 0 and _is_abandoned(log_site, uid), 60, "it is abandoned")
    assert log_site.indexes("csx", uid) == list(range(52))


def _is_abandoned(site: LogSite, uid: str) -> bool:
    return site.entries("csx", uid)[-1] == messages.Abandoned(uid, 52)


def test_what_the_log_has_lost_is_sent_again(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher], tmp_path: Path
) -> None:
    emitted = make_documents(100)
    publisher = make_publisher()
    uid = publish(publisher, emitted[:40])
    wait_for_log(log_site, uid, 40)
    (node,) = log_site.nodes
    node.kill()
    log_site.save(tmp_path / "saved")
    node.start()
    publish(publisher, emitted[40:80])
    wait_for_log(log_site, uid, 80)
    node.kill()
    log_site.set_back(tmp_path / "saved")
    node.start()
    assert len(log_site.indexes("csx", uid)) >= 40
    publish(publisher, emitted[80:])
    wait_for_log(log_site, uid, 103)


def test_what_the_log_has_lost_is_sent_again_though_nothing_new_comes(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher], tmp_path: Path
) -> None:
    (node,) = log_site.nodes
    node.kill()
    log_site.save(tmp_path / "saved")
    node.start()
    publisher = make_publisher()
    uid = publish(publisher, make_documents())
    wait_for_log(log_site, uid, 6)
    node.kill()
    log_site.set_back(tmp_path / "saved")
    node.start()
    wait_for_log(log_site, uid, 6)


def test_documents_larger_than_a_message_are_whole(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, lost = Connection.append, []

    async def append(self: Connection, subject: str, body: bytes, headers: Mapping[str, str], expected_seq: int) -> int:
        seq = await original(self, subject, body, headers, expected_seq)
        if "Tw-Part" in headers and len(lost) < 2:
            # In the middle of a document.
            lost.append(seq)
            raise LogUnavailable("the answer is lost")
        return seq

    monkeypatch.setattr(Connection, "append", append)
    publisher = make_publisher()
    uid = publish(publisher, make_documents(2, size=3_000_000))
    wait_for_log(log_site, uid, 5)
    assert len(lost) == 2
    sizes = [len(entry.body) for entry in log_site.entries("csx", uid) if isinstance(entry, messages.Documents)]
    assert sum(sizes) > 6_000_000


def test_another_run_with_the_same_uid_is_refused(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher], tmp_path: Path
) -> None:
    emitted = make_documents()
    publisher = make_publisher()
    uid = publish(publisher, emitted)
    wait_for_log(log_site, uid, 6)
    tell(log_site, uid, next=6, ended=True, outcome="written")
    other = make_publisher(spool_dir=tmp_path / "other")
    publish(other, [("start", {**emitted[0][1], "time": 1.0}), *emitted[1:]])
    wait_until(lambda: uid in other.status().refused, 60, "the run is refused")
    assert other.status().waiting
    assert log_site.indexes("csx", uid) == list(range(6))


def test_the_newest_receipt_counts_though_the_clock_of_the_ingest_host_was_set_back(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher]
) -> None:
    publisher = make_publisher()
    uid = publish(publisher, make_documents())
    wait_for_log(log_site, uid, 6)
    tell(log_site, uid, next=4)
    wait_until(lambda: publisher.status().waiting == 2, 60, "the receipt is known")
    tell(log_site, uid, next=6, ended=True, outcome="written", at=time.time() - 3600)
    wait_until(lambda: not publisher.status().waiting, 8, "the newest receipt is known, too")


def test_a_receipt_of_another_run_lets_nothing_go(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher], tmp_path: Path
) -> None:
    emitted = make_documents()
    uid = uid_of(emitted)
    # Such as that of a run that has left the log.
    tell(log_site, uid, next=6, ended=True, outcome="written", start_crc=1)
    publisher = make_publisher()
    publish(publisher, emitted)
    wait_for_log(log_site, uid, 6)
    wait_until(lambda: uid in publisher.status().refused, 60, "the receipt is refused")
    assert not publisher.flush(0.2)
    assert publisher.status().waiting


def test_what_is_no_message_of_ours_in_the_log_stops_nothing(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher]
) -> None:
    emitted = make_documents()
    publisher = make_publisher()
    uid = publish(publisher, emitted[:3])
    wait_for_log(log_site, uid, 3)

    async def spoil(connection: Connection) -> None:
        subject = documents_subject("csx", uid)
        found = await connection.read_last(STREAM, subject)
        assert found is not None
        await connection.append(subject, b"", {}, found.seq)

    log_site.ask(spoil)
    publish(publisher, emitted[3:])
    # The run is sent again, since nobody can tell any more how far it was.
    wait_until(lambda: log_site.indexes("csx", uid)[-3:] == [3, 4, 5], 60, "the documents are in the log")
    assert set(log_site.indexes("csx", uid)) == set(range(6))


def test_a_log_that_is_away_is_a_problem_and_no_delay(
    log_site: LogSite, make_publisher: Callable[..., JetStreamPublisher]
) -> None:
    (node,) = log_site.nodes
    node.kill()
    publisher = make_publisher()
    emitted = make_documents()
    uid = publish(publisher, emitted)
    wait_until(lambda: "can be used" in publisher.status().problem, 60, "the problem is said")
    assert not publisher.status().connected
    assert publisher.status().waiting == 6
    node.start()
    wait_for_log(log_site, uid, 6)
    wait_until(lambda: not publisher.status().problem, 60, "the problem is gone")


def test_the_client_of_nats_is_imported_by_those_who_use_it_only() -> None:
    code = "import sys, tiledbroker, tiledbroker.supervisor; assert 'nats' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
