"""What is shipped, kept, refused and said, whatever the other end and the log are like."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from pathlib import Path

import pytest
from bluesky import RunEngine
from bluesky.plans import count
from ingest_host import IngestHost, WireIngestHost, ZMQIngestHost
from ophyd.sim import det
from runs import documents, publish
from transports import Transport

from tiledbroker import RunNotWritten, ZMQPublisher, open_run, run_files
from tiledbroker.protocol import messages
from tiledbroker.publisher import _session as session_module
from tiledwriter.testing import free_port, wait_until


@pytest.fixture
def ingest(transport: Transport) -> Iterator[IngestHost]:
    with transport.ingest_host() as host:
        yield host


@pytest.fixture
def wire_host(wire: Transport) -> Iterator[WireIngestHost]:
    with wire.ingest_host() as host:
        assert isinstance(host, WireIngestHost)
        yield host


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def left_run(transport: Transport, spool: Path, ingest: IngestHost | None, events: int = 3) -> str:
    """Leave a run by a session that ends before it hears anything of its ingest host, if there is one; its uid."""
    address = transport.new_address() if ingest is None else ingest.address
    with nullcontext() if ingest is None else ingest.ignoring():
        publisher = transport.publisher(address, spool_dir=spool)
        uid = publish(publisher, documents(events))
        publisher.close(0.0)
    return uid


def flip_a_bit(file: Path, position: int) -> None:
    contents = bytearray(file.read_bytes())
    contents[position] ^= 0x10
    file.write_bytes(contents)


def _size_of(spool: Path) -> int:
    """Bytes of all runs, while files go."""
    size = 0
    for file in run_files(spool):
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size
    return size


class TestARunIsKept:
    def test_until_it_is_written(self, transport: Transport, ingest: IngestHost, spool: Path) -> None:
        with closing(transport.publisher(ingest.address, spool_dir=spool)) as publisher:
            ingest.welcome()
            uid = publish(publisher, documents())
            ingest.take_in(uid, 6)
            ingest.say(messages.Durable(uid, 6, ended=True))
            assert publisher.flush(20)
            wait_until(lambda: publisher.status().kept == len(run_files(spool)) == 1, 60, "it is kept")
            ingest.say(messages.Written(uid, "written", ""))
            assert publisher.wait_written(uid, 20)
            wait_until(lambda: not run_files(spool), 60, "its files are gone")
            publisher.close(0.0)

    def test_until_it_is_durable_if_that_is_wanted(self, transport: Transport, ingest: IngestHost, spool: Path) -> None:
        with closing(transport.publisher(ingest.address, spool_dir=spool, keep_until="durable")) as publisher:
            ingest.welcome()
            uid = publish(publisher, documents())
            ingest.take_in(uid, 6)
            ingest.say(messages.Durable(uid, 6, ended=True))
            wait_until(lambda: not run_files(spool), 60, "its files are gone")
            publisher.close(0.0)

    def test_while_it_is_in_quarantine(self, transport: Transport, ingest: IngestHost, spool: Path) -> None:
        with closing(transport.publisher(ingest.address, spool_dir=spool)) as publisher:
            ingest.welcome()
            uid = publish(publisher, documents())
            ingest.take_in(uid, 6)
            ingest.say(messages.Durable(uid, 6, ended=True))
            with ThreadPoolExecutor() as threads:
                waiting = threads.submit(publisher.wait_written, uid, 60)
                ingest.await_question(uid)
                ingest.say(messages.Written(uid, "failed", "of all things"))
                with pytest.raises(RunNotWritten, match="of all things"):
                    waiting.result()
            publisher.close(0.0)
        assert len(run_files(spool)) == 1

    def test_within_the_limit_the_oldest_going_first(
        self, transport: Transport, ingest: IngestHost, spool: Path
    ) -> None:
        with closing(transport.publisher(ingest.address, spool_dir=spool, spool_limit=9_000)) as publisher:
            ingest.welcome()
            uids = []
            for _ in range(4):
                uids.append(publish(publisher, documents()))
                ingest.take_in(uids[-1], 6)
                ingest.say(messages.Durable(uids[-1], 6, ended=True))
            assert publisher.flush(20)
            wait_until(lambda: _size_of(spool) <= 9_000, 60, "they fit")
            publisher.close(0.0)
        kept = [open_run(file).run_uid for file in run_files(spool)]
        assert sorted(kept) == sorted(uids[-len(kept) :])
        assert kept


class TestADamagedRun:
    def test_is_shipped_up_to_the_damage_and_named(self, transport: Transport, ingest: IngestHost, spool: Path) -> None:
        damaged, whole = left_run(transport, spool, ingest, 100), left_run(transport, spool, ingest)
        (file,) = spool.glob(f"{damaged}*.segment")
        flip_a_bit(file, file.stat().st_size // 2)
        with closing(transport.publisher(ingest.address, spool_dir=spool)) as publisher:
            ingest.welcome(damaged, whole)
            ingest.take_in(whole, 6)
            ingest.say(messages.Durable(whole, 6, ended=True))
            ingest.serve_until(lambda: damaged in publisher.status().refused, 60, "it is refused")
            assert str(file) in publisher.status().refused[damaged]
            assert not publisher.flush(20)
            with pytest.raises(RunNotWritten, match="checksum"):
                publisher.wait_written(damaged, 20)
            while ingest.receive(0.2) is not None:
                pass
            indexes = [idx for idx, _, _ in ingest.documents.get(damaged, [])]
            assert indexes == list(range(len(indexes)))
            assert len(indexes) < 103
            publisher.close(0.0)
        assert file.exists()


class TestWaiting:
    def test_for_a_refused_run_ends(self, transport: Transport, ingest: IngestHost, spool: Path) -> None:
        with closing(transport.publisher(ingest.address, spool_dir=spool)) as publisher:
            ingest.welcome()
            uid = publish(publisher, documents())
            ingest.take_in(uid, 6)
            ingest.say(messages.Refused(uid, 0, "the moon is full"))
            with pytest.raises(RunNotWritten, match="the moon is full"):
                publisher.wait_written(uid)
            assert not publisher.flush()
            publisher.close(0.0)

    def test_for_a_second_run_of_a_uid_ends(self, transport: Transport, spool: Path) -> None:
        with closing(transport.publisher(transport.new_address(), spool_dir=spool)) as publisher:
            emitted = documents()
            uid = publish(publisher, emitted)
            publish(publisher, emitted)
            assert "same uid" in publisher.status().refused[uid]
            assert publisher.status().unrouted == 0
            publisher.close(0.0)
        assert [open_run(file).length for file in run_files(spool)] == [6, 6]


class TestAProblem:
    def test_is_a_host_that_does_not_answer(
        self, wire: Transport, wire_host: WireIngestHost, spool: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(session_module, "SILENCE_SECONDS", 2.0)
        with closing(wire.publisher(wire_host.address, spool_dir=spool)) as publisher:
            wait_until(lambda: "does not answer" in publisher.status().problem, 60, "it is said")
            hellos = 0
            while hellos < 3:  # of three connections, on each of which it goes on being said
                hellos += isinstance(wire_host.receive(10), messages.Hello)
                assert "does not answer" in publisher.status().problem
            # A connection that has begun waits for no name server any more.
            wait_until(lambda: publisher._shipper._session._silence_timeout == 2.0, 60, "it is soon replaced")
            publisher.close(0.0)

    def test_is_a_host_of_another_protocol_version(
        self, wire: Transport, wire_host: WireIngestHost, spool: Path
    ) -> None:
        with closing(wire.publisher(wire_host.address, spool_dir=spool)) as publisher:
            wire_host.expect(messages.Hello)
            wire_host.say_frames(b"TW\x07\x02", b"\x93\x00\x00\x80")
            wait_until(lambda: "version 7" in publisher.status().problem, 60, "it is said")
            publisher.close(0.0)


def test_a_name_with_an_ipv6_address_only_is_reached(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n::1 ingest6.test\n")
    prefix = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(hosts)]
    if os.geteuid() != 0 or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can give a process names of its own")
    code = """
        import sys, time
        from tiledbroker import ZMQPublisher
        publisher = ZMQPublisher(sys.argv[1], spool_dir=sys.argv[2])
        deadline = time.monotonic() + 30
        while not publisher.status().connected and time.monotonic() < deadline:
            time.sleep(0.05)
        print(publisher.status().connected, publisher.status().problem)
        publisher.close(0)
    """
    with ZMQIngestHost("::1") as ingest:
        command = [sys.executable, "-c", textwrap.dedent(code), f"tcp://ingest6.test:{ingest.port}", tmp_path / "spool"]
        with subprocess.Popen([*prefix, *command], stdout=subprocess.PIPE, text=True) as process:
            ingest.welcome()
            output, _ = process.communicate(timeout=60)
    assert output == "True \n"


def test_the_bound_method_is_all_that_needs_to_be_subscribed(spool: Path, engine: RunEngine) -> None:
    engine.subscribe(ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir=spool).insert)
    gc.collect()
    (uid,) = engine(count([det], 3))
    (file,) = run_files(spool)
    with open_run(file) as run:
        assert (run.run_uid, run.length) == (uid, 6)
    for publisher in list(_open_publishers()):
        publisher.close(0.0)


def _open_publishers() -> set[ZMQPublisher]:
    from tiledbroker.publisher import _publisher

    return {publisher for publisher in _publisher._open_publishers if isinstance(publisher, ZMQPublisher)}


def test_a_relative_directory_is_meant_where_the_publisher_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with closing(ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir="spool")) as publisher:
        monkeypatch.chdir(tmp_path / "elsewhere")
        publish(publisher, documents())
        assert publisher.status().spool_dir == tmp_path / "spool"
        publisher.close(0.0)
    assert len(run_files(tmp_path / "spool")) == 1
    assert not list((tmp_path / "elsewhere").iterdir())
    with closing(ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir="~/spool")) as publisher:
        assert publisher.status().spool_dir == tmp_path / "home" / "spool"
        publisher.close(0.0)


def test_runs_for_another_address_or_of_another_host_are_named_and_left_alone(
    transport: Transport, ingest: IngestHost, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_address = left_run(transport, spool, None)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "elsewhere")
        other_host = left_run(transport, spool, ingest)
    with closing(transport.publisher(ingest.address, spool_dir=spool)) as publisher:
        ingest.welcome()
        wait_until(lambda: len(publisher.status().refused) == 2, 60, "both are named")
        assert "published for" in publisher.status().refused[other_address]
        assert "on elsewhere" in publisher.status().refused[other_host]
        uid = publish(publisher, documents())
        ingest.take_in(uid, 6)
        assert set(ingest.documents) == {uid}
        publisher.close(0.0)


def test_close_raises_nothing_while_another_thread_publishes(spool: Path) -> None:
    publisher = ZMQPublisher(f"tcp://127.0.0.1:{free_port()}", spool_dir=spool)
    stopping = threading.Event()

    def go_on() -> None:
        # Without a pause, these threads would keep Python's lock from the one that closes.
        while not stopping.wait(0.002):
            publish(publisher, documents(1))

    threads = [threading.Thread(target=go_on) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    publisher.close(0.0)
    stopping.set()
    for thread in threads:
        thread.join()
