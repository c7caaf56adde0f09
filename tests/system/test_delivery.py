"""From publishers to journals: whatever happens on the way, each document arrives once, in order.

TILEDWRITER_TEST_SPOOL_MB sets how much waits in the spool of the test that measures the supervisor's memory.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from cables import Cable
from disks import fill
from event_model import compose_run
from peers import ask, dial, hear
from runs import length_of, publish, supervisor_without_tiled

from tiledbroker import Encoder, Journal, ZMQPublisher, decode
from tiledbroker.protocol import messages
from tiledbroker.supervisor._publishers import DEFAULT_WINDOW
from tiledwriter.testing import SupervisorProcess, journal_of, wait_until

SPOOL_MB = int(os.environ.get("TILEDWRITER_TEST_SPOOL_MB", "100"))
DOCUMENT_KB = 64

pytestmark = pytest.mark.timeout(300 + SPOOL_MB)


@pytest.fixture
def ingest(tmp_path: Path) -> Iterator[SupervisorProcess]:
    """A supervisor that takes documents in; it can be started, stopped and killed."""
    process = supervisor_without_tiled(tmp_path / "journals")
    yield process
    process.stop()


@pytest.fixture
def publish_to(tmp_path: Path) -> Iterator[Callable[..., ZMQPublisher]]:
    """Makes publishers, which are closed at the end."""
    made: list[ZMQPublisher] = []

    def make(address: str, spool: str = "spool") -> ZMQPublisher:
        made.append(ZMQPublisher(address, spool_dir=tmp_path / spool, on_error="raise"))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close(timeout=0)


def documents(events: int = 50, **data: Any) -> list[tuple[str, Any]]:
    run = compose_run()
    keys = {"x": {"source": "s", "dtype": "number", "shape": []}}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    rows = [stream.compose_event(data={"x": i}, timestamps={"x": float(i)}) for i in range(events)]
    return [
        ("start", {**run.start_doc, **data}),
        ("descriptor", stream.descriptor_doc),
        *(("event", row) for row in rows),
        ("stop", run.compose_stop()),
    ]


def assert_delivered(ingest: SupervisorProcess, *runs: list[tuple[str, Any]]) -> None:
    """Each document is in its journal, once and in order."""
    for emitted in runs:
        with journal_of(ingest.journal_dir, emitted[0][1]["uid"]) as journal:
            stored = [(record.name, decode(record.body)["uid"]) for record in journal.records()]
        assert stored == [(name, doc["uid"]) for name, doc in emitted]


def port_of(process: SupervisorProcess) -> int:
    return int(process.address.rpartition(":")[2])


# The network


def test_a_cable_that_is_cut_again_and_again_costs_nothing(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    chance = random.Random(5)
    runs = [documents(400) for _ in range(3)]
    with ingest, Cable(port_of(ingest)) as cable:
        publisher = publish_to(cable.address)
        for number, (name, doc) in enumerate(itertools.chain.from_iterable(zip(*runs, strict=True))):
            publisher(name, doc)
            if number % 200 == 100:
                wait_until(lambda: cable.connections > 0, 30, "it is connected")
                connections = cable.connections
                time_of_cut = time.monotonic() + chance.random() * 0.05
                wait_until(lambda: time.monotonic() > time_of_cut, 60, "a random moment comes")  # noqa: B023
                cable.cut()
                wait_until(lambda: cable.connections > connections, 30, "it is connected again")  # noqa: B023
        assert publisher.flush(timeout=60)
        assert cable.connections > 6
        assert_delivered(ingest, *runs)


def test_a_connection_that_is_half_open_is_noticed_and_made_anew(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    emitted = documents(200)
    with ingest, Cable(port_of(ingest)) as cable:
        publisher = publish_to(cable.address)
        publish(publisher, emitted[:50])
        assert publisher.flush(timeout=60)
        cable.go_dead()
        publish(publisher, emitted[50:100])
        assert not publisher.flush(timeout=0.5)
        wait_until(lambda: not publisher.status().connected, 30, "the publisher notices")
        publish(publisher, emitted[100:])
        assert publisher.status().waiting >= 100
        cable.come_back()
        assert publisher.flush(timeout=60), publisher.status()
        assert_delivered(ingest, emitted)


def test_each_connection_has_an_identity_that_nobody_can_know(publish_to: Callable[..., ZMQPublisher]) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.RCVTIMEO, 60_000)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        heard = []
        with Cable(port) as cable:
            publisher = publish_to(cable.address)
            for _ in range(3):
                identity, *frames = router.recv_multipart()
                assert isinstance(messages.decode(frames), messages.Hello)
                while identity in heard:  # said twice
                    identity, *frames = router.recv_multipart()
                heard.append(identity)
                cable.cut()
            publisher.close(timeout=0)
        assert {len(identity) for identity in heard} == {messages.IDENTITY_BYTES}
        assert not any(identity.startswith(b"\0") for identity in heard)


def test_a_peer_that_calls_itself_by_what_another_is_about_to_be_called_harms_nobody(ingest: SupervisorProcess) -> None:
    due = 0x6B8B4567  # what an unseeded `rand` gives first, and libzmq counts from
    with ingest, zmq.Context() as context, contextlib.ExitStack() as connections:
        for number in range(10):
            chosen = b"\0" + (due + number).to_bytes(4, "big")
            for identity in (chosen, b""):
                dealer = connections.enter_context(dial(context, ingest.address, identity=identity))
                assert isinstance(ask(dealer, messages.Hello("bare", {}, [])), messages.Refused)
        with dial(context, ingest.address) as dealer:
            assert isinstance(ask(dealer, messages.Hello("bare", {}, [])), messages.Welcome)


def test_answers_that_are_lost_cost_nothing(ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]) -> None:
    """All is journaled, and nobody has told the publisher when the connection goes: it sends what is there already."""
    emitted = documents(200)
    uid = emitted[0][1]["uid"]
    with ingest, Cable(port_of(ingest)) as cable:
        publisher = publish_to(cable.address)
        publish(publisher, emitted[:100])
        assert publisher.flush(timeout=60)
        (worker,) = ingest.workers()
        worker.suspend()  # so that the answer cannot come before the cable is cut
        publish(publisher, emitted[100:])
        assert not publisher.flush(timeout=0.5)
        cable.go_dead()
        worker.resume()
        wait_until(lambda: length_of(ingest, uid) == len(emitted), 60, "all is journaled")
        assert publisher.status().waiting > 0
        cable.come_back()
        assert publisher.flush(timeout=60)
        assert_delivered(ingest, emitted)


# Restarts


@pytest.mark.parametrize(
    "order",
    [
        ("publisher", "supervisor"),
        ("supervisor", "publisher"),
        ("supervisor", "supervisor", "publisher"),
        ("publisher", "publisher", "supervisor"),
        ("worker", "supervisor", "publisher"),
    ],
    ids=" ".join,
)
def test_whatever_is_started_again_in_whatever_order_nothing_is_lost_or_doubled(
    order: tuple[str, ...], ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    runs = [documents(300) for _ in range(4)]
    with ingest:
        publisher = publish_to(ingest.address)
        for number, emitted in enumerate(runs):
            publish(publisher, emitted)
            for victim in order[number : number + 1]:
                if victim == "publisher":
                    publisher.close(timeout=0)
                    publisher = publish_to(ingest.address)
                elif victim == "supervisor":
                    ingest.kill()
                    ingest.start()
                else:
                    wait_until(ingest.workers, 60, "there is a worker")
                    for worker in ingest.workers():
                        worker.kill()
        wait_until(lambda: publisher.flush(timeout=60) and not publisher.status().waiting, 90, "all is shipped")
        uids = [emitted[0][1]["uid"] for emitted in runs]
        wait_until(lambda: all(length_of(ingest, uid) == 303 for uid in uids), 60, "what was adopted is shipped, too")
        assert_delivered(ingest, *runs)


def test_an_ingest_host_that_has_lost_its_disk_gets_all_that_is_not_written(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    runs = [documents(500), documents(20)]
    with ingest:
        publisher = publish_to(ingest.address)
        publish(publisher, runs[1])
        publish(publisher, runs[0][:300])
        assert publisher.flush(timeout=60)
        ingest.kill()
        shutil.rmtree(ingest.journal_dir)
        ingest.start()
        publish(publisher, runs[0][300:])
        wait_until(lambda: all(length_of(ingest, run[0][1]["uid"]) == len(run) for run in runs), 60, "all is shipped")
        assert_delivered(ingest, *runs)


# Several publishers


def test_two_publishers_at_once_do_not_disturb_each_other(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    publishers = [publish_to(ingest.address, spool) for spool in ("one", "two")]
    runs: list[list[list[tuple[str, Any]]]] = [[documents(300) for _ in range(3)] for _ in publishers]
    with ingest:
        threads = [
            threading.Thread(target=lambda i=i: [publish(publishers[i], emitted) for emitted in runs[i]])
            for i in range(len(publishers))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(publisher.flush(timeout=60) for publisher in publishers)
        assert_delivered(ingest, *runs[0], *runs[1])


def test_a_run_that_two_publishers_send_is_there_once(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    publishers = [publish_to(ingest.address, spool) for spool in ("one", "two")]
    emitted = documents(300)
    with ingest:
        for name, doc in emitted:
            for publisher in publishers:
                publisher(name, doc)
        assert all(publisher.flush(timeout=60) for publisher in publishers)
        assert_delivered(ingest, emitted)


def another_run_called(uid: str) -> list[tuple[str, Any]]:
    """The start and stop of a run that somebody has given the uid of another one."""
    (_, start), *_, (_, stop) = documents()
    return [("start", {**start, "uid": uid}), ("stop", {**stop, "run_start": uid})]


def test_another_run_of_the_same_uid_is_refused_and_harms_neither_the_first_nor_others(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    first = documents(20)
    uid = first[0][1]["uid"]
    reused = another_run_called(uid)
    with ingest:
        publisher = publish_to(ingest.address, "one")
        publish(publisher, first)
        assert publisher.flush(timeout=60)
        other = publish_to(ingest.address, "two")
        publish(other, reused)
        following = documents(5)
        publish(other, following)
        wait_until(lambda: length_of(ingest, following[0][1]["uid"]) == 8, 60, "the other run is delivered")
        assert_delivered(ingest, first, following)
        wait_until(lambda: uid in other.status().refused, 60, "the run is refused")
        assert "another run with this uid" in other.status().refused[uid]
        other.close(timeout=0)
        # Nor does a publisher take it for delivered that asks before it sends anything.
        successor = publish_to(ingest.address, "two")
        wait_until(lambda: uid in successor.status().refused, 60, "the run is refused again")
        assert successor.status().waiting == len(reused)


def test_a_run_of_an_equal_start_and_another_end_is_not_taken_for_delivered(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    first = documents(20)
    uid = first[0][1]["uid"]
    repeated = [*first[:-1], another_run_called(uid)[-1]]
    with ingest:
        publisher = publish_to(ingest.address, "one")
        publish(publisher, first)
        assert publisher.flush(timeout=60)
        ingest.stop()
        other = publish_to(ingest.address, "two")
        publish(other, repeated)
        ingest.start()  # it has all of the run before the other says a word
        wait_until(lambda: uid in other.status().refused, 60, "the run is refused")
        assert other.status().waiting == len(repeated)
        assert_delivered(ingest, first)


def test_a_refused_run_stays_in_its_spool_when_the_other_of_its_uid_ends(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    first = documents(20)
    uid = first[0][1]["uid"]
    reused = another_run_called(uid)
    with ingest:
        publisher = publish_to(ingest.address, "one")
        publish(publisher, first[:10])
        assert publisher.flush(timeout=60)
        other = publish_to(ingest.address, "two")
        publish(other, reused)
        wait_until(lambda: uid in other.status().refused, 60, "the run is refused")
        publish(publisher, first[10:])
        assert publisher.flush(timeout=60)
        following = documents(5)
        publish(other, following)
        wait_until(lambda: other.status().waiting == len(reused), 60, "its next run is delivered")
        assert uid in other.status().refused
        assert_delivered(ingest, first, following)


@pytest.fixture
def peer() -> Iterator[Callable[[SupervisorProcess], zmq.Socket[bytes]]]:
    """Connects a bare socket that has said Hello."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()

    made: list[zmq.Socket[bytes]] = []

    def make(supervisor: SupervisorProcess) -> zmq.Socket[bytes]:
        made.append(dial(context, supervisor.address))
        ask(made[-1], messages.Hello("bare", {}, []))
        return made[-1]

    yield make
    for dealer in made:
        dealer.close(linger=0)
    context.term()


def test_what_is_never_stored_does_not_decide_whose_run_it_is(
    ingest: SupervisorProcess,
    publish_to: Callable[..., ZMQPublisher],
    peer: Callable[[SupervisorProcess], zmq.Socket[bytes]],
) -> None:
    emitted = documents(5)
    uid = emitted[0][1]["uid"]
    with ingest:
        refused = ask(peer(ingest), messages.documents(uid, 0, [("start", 1, b"not what its checksum says")]))
        assert isinstance(refused, messages.Refused)
        assert "damaged in transit" in refused.reason
        publisher = publish_to(ingest.address)
        publish(publisher, emitted)
        assert publisher.flush(timeout=60)
        assert_delivered(ingest, emitted)


@pytest.mark.parametrize("together", [True, False])
def test_documents_behind_a_stop_document_are_refused_and_the_run_stays_whole(
    *,
    together: bool,
    ingest: SupervisorProcess,
    publish_to: Callable[..., ZMQPublisher],
    peer: Callable[[SupervisorProcess], zmq.Socket[bytes]],
) -> None:
    emitted = documents(5)
    uid = emitted[0][1]["uid"]
    bodies = [(name, Encoder().encode(document)) for name, document in [*emitted, ("event", {"uid": "late"})]]
    records = [(name, zlib.crc32(body), body) for name, body in bodies]
    with ingest:
        publisher = publish_to(ingest.address)
        if not together:
            publish(publisher, emitted)
            assert publisher.flush(timeout=60)
        first = 0 if together else len(emitted)
        stranger = peer(ingest)
        stranger.send_multipart(messages.encode(messages.documents(uid, first, records[first:])))
        refused = hear(stranger, messages.Refused)
        assert "behind its stop document" in refused.reason
        if together:
            publish(publisher, emitted)
        assert publisher.flush(timeout=60)
        assert_delivered(ingest, emitted)


def test_other_documents_are_not_taken_for_those_of_a_run_that_has_ended(
    ingest: SupervisorProcess,
    publish_to: Callable[..., ZMQPublisher],
    peer: Callable[[SupervisorProcess], zmq.Socket[bytes]],
) -> None:
    emitted = documents(5)
    uid = emitted[0][1]["uid"]
    with ingest:
        publisher = publish_to(ingest.address)
        publish(publisher, emitted)
        assert publisher.flush(timeout=60)
        dealer = peer(ingest)
        with journal_of(ingest.journal_dir, uid) as journal:
            stored = [(record.name, record.crc, record.body) for record in journal.records()]
        assert ask(dealer, messages.documents(uid, 2, stored[2:4])) == messages.Durable(uid, len(stored), ended=True)
        answer = ask(dealer, messages.documents(uid, 2, [("event", 12345, b"garbage")]))
        assert answer == messages.Refused(uid, 0, messages.ANOTHER_RUN)


@pytest.mark.parametrize(
    "message",
    [messages.documents("new", 7, [("event", 0, b"")]), messages.Abandoned("new", 0)],
    ids=["from the middle", "abandoned"],
)
def test_a_run_begins_with_its_first_document(
    ingest: SupervisorProcess, peer: Callable[[SupervisorProcess], zmq.Socket[bytes]], message: messages.Message
) -> None:
    with ingest:
        assert ask(peer(ingest), message) == messages.Refused("new", 0, "gap")
        assert not list(ingest.journal_dir.glob("*.sqlite"))


def test_a_hello_with_a_thousand_runs_is_answered_whole_and_makes_nobody_wait(
    ingest: SupervisorProcess, peer: Callable[[SupervisorProcess], zmq.Socket[bytes]]
) -> None:
    uids = [f"run-{number}" for number in range(messages.MAX_RUNS)]
    with ingest:
        for uid in uids:
            with Journal(ingest.journal_dir / f"{uid}.sqlite", "create", run_uid=uid) as journal:
                journal.append_one("start", b"")
                journal.append_one("stop", b"")
        dealer = peer(ingest)
        dealer.send_multipart(messages.encode(messages.Hello("bare", dict.fromkeys(uids, 2), uids)))
        assert ask(dealer, messages.Ping(7)) == messages.Pong(7)
        welcome = messages.decode(dealer.recv_multipart())
    assert isinstance(welcome, messages.Welcome)
    assert {uid for uid, state in welcome.runs.items() if (state.next, state.ended) == (2, True)} == set(uids)


# The acquisition host


def test_a_clock_that_jumps_makes_no_difference(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(3)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + chance.choice([-3e7, -60.0, 0.0, 60.0, 3e7]))
    emitted = documents(300)
    with ingest:
        publisher = publish_to(ingest.address)
        publish(publisher, emitted)
        publisher.status()
        assert publisher.flush(timeout=60)
        assert_delivered(ingest, emitted)


def test_a_spool_on_a_full_disk_delays_nothing_and_loses_nothing(
    ingest: SupervisorProcess,
    small_disk: Path,
    publish_to: Callable[..., ZMQPublisher],
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs = [documents(100), documents(100)]
    publisher = publish_to(ingest.address, str(small_disk / "spool"))
    publish(publisher, runs[0][:50])
    fill(small_disk)
    publish(publisher, [*runs[0][50:], *runs[1]])
    assert publisher.status().degraded
    assert "memory" in caplog.text
    with ingest:
        assert publisher.flush(timeout=60)
        assert_delivered(ingest, *runs)


def test_a_spool_on_a_disk_that_turns_read_only_loses_nothing(
    ingest: SupervisorProcess,
    small_disk: Path,
    publish_to: Callable[..., ZMQPublisher],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (small_disk / "spool").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    emitted = documents(100)
    publisher = publish_to(ingest.address, str(small_disk / "spool"))
    publish(publisher, emitted)
    assert publisher.status().degraded
    assert "memory" in caplog.text
    with ingest:
        assert publisher.flush(timeout=60)
        assert_delivered(ingest, emitted)


SCRIPT = """
import os, sys
from tiledbroker import ZMQPublisher
publisher = ZMQPublisher(sys.argv[1], spool_dir=sys.argv[2], on_error="raise")
publisher("start", {"uid": "r", "time": 1.0})
publisher("descriptor", {"uid": "d", "run_start": "r", "name": "primary", "time": 1.0, "data_keys": {}})
for i in range(2000):
    publisher("event", {"uid": f"e{i}", "descriptor": "d", "seq_num": i + 1, "time": 1.0, "data": {}, "timestamps": {}})
    if i == 1000 and sys.argv[3] == "forks":
        child = os.fork()
        if child == 0:
            sys.exit(0)
        os.waitpid(child, 0)
publisher("stop", {"uid": "s", "run_start": "r", "time": 2.0, "exit_status": "success"})
"""


@pytest.mark.parametrize("what", ["ends", "forks"])
def test_an_interpreter_that_ends_without_closing_its_publisher_ships_what_it_has(
    what: str, ingest: SupervisorProcess, tmp_path: Path
) -> None:
    """Also one that has forked a child which ended in the ordinary way, with all that happens at exit."""
    command = [sys.executable, "-c", SCRIPT, ingest.address, str(tmp_path / "spool"), what]
    with ingest:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: length_of(ingest, "r") == 2003, 60, "all is delivered")
        with journal_of(ingest.journal_dir, "r") as journal:
            stored = [decode(record.body)["uid"] for record in journal.records()]
    assert stored == ["r", "d", *(f"e{i}" for i in range(2000)), "s"]


# The window


def large_documents(megabytes: int) -> Iterator[tuple[str, Any]]:
    """An open run of so many megabytes."""
    payload = random.Random(1).randbytes(DOCUMENT_KB * 1024)
    yield "start", {"uid": "large", "time": 1.0}
    yield "descriptor", {"uid": "d", "run_start": "large", "name": "primary", "time": 1.0, "data_keys": {}}
    for i in range(megabytes * 1024 // DOCUMENT_KB):
        yield "event", {"uid": f"e{i}", "descriptor": "d", "seq_num": i + 1, "time": 1.0, "data": {"x": payload}}


def test_the_supervisor_s_memory_is_bounded_by_the_window_whatever_is_in_the_spool(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    publisher = publish_to(ingest.address)
    for name, doc in large_documents(SPOOL_MB):
        publisher(name, doc)
    with ingest:
        supervisor = psutil.Process(ingest.pid)
        before = highest = supervisor.memory_info().rss
        began = time.monotonic()
        while not publisher.flush(timeout=0.02):
            highest = max(highest, supervisor.memory_info().rss)
            assert time.monotonic() - began < 120 + SPOOL_MB
        seconds = time.monotonic() - began
    sys.stdout.write(
        f"\n{SPOOL_MB} MB in the spool: the supervisor's RSS rose from {before / 2**20:.0f} to "
        f"{highest / 2**20:.0f} MiB with a window of {DEFAULT_WINDOW / 2**20:.0f} MiB; {SPOOL_MB / seconds:.0f} MB/s\n"
    )
    # The window, once more in the fork server's socket, and what the allocator does not give back.
    assert highest - before < 4 * DEFAULT_WINDOW


def test_a_run_whose_worker_takes_nothing_does_not_hold_up_others_of_its_publisher(
    ingest: SupervisorProcess, publish_to: Callable[..., ZMQPublisher]
) -> None:
    with ingest:
        publisher = publish_to(ingest.address)
        stuck = list(large_documents(2 * DEFAULT_WINDOW // 2**20))
        publish(publisher, stuck[:2])
        assert publisher.flush(timeout=60)
        (worker,) = ingest.workers()
        worker.suspend()
        publish(publisher, stuck[2:])
        others = [documents(), documents()]
        for emitted in others:
            publish(publisher, emitted)
            wait_until(lambda: length_of(ingest, emitted[0][1]["uid"]) == len(emitted), 60, "it is journaled")  # noqa: B023
        assert_delivered(ingest, *others)
        worker.resume()
        assert publisher.flush(timeout=60)
        with Journal(ingest.journal_dir / "large.sqlite") as journal:
            assert journal.length == len(stuck)
