"""Readers of the status socket: good, slow and hostile ones, none of which may hold up the supervisor."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from tiledbroker._errors import NoSupervisor, SupervisorSilent
from tiledbroker.log import FileLock
from tiledbroker.supervisor import read_snapshot
from tiledbroker.supervisor._status_client import SUPERVISOR_LOCK
from tiledbroker.supervisor._status_socket import (
    MAX_READERS,
    READ_TIMEOUT_SECONDS,
    STATUS_SOCKET,
    StatusSocket,
    read_status,
)
from tiledwriter.testing import wait_until

LARGE = b"x" * (8 * 2**20)
"""More than a socket's buffers take."""


class Served:
    """A status socket on a clock of its own, served by whoever calls `turn`."""

    def __init__(self, directory: Path, text: bytes = b"{}") -> None:
        self.text = text
        self.taken = 0
        self.now = 100.0
        self.poller = zmq.Poller()
        self.socket = StatusSocket(directory, self._take, self.poller)

    def _take(self) -> bytes:
        self.taken += 1
        return self.text

    def turn(self, seconds: float = 0.0) -> None:
        """Serve as one turn of the supervisor's loop does, `seconds` later."""
        self.now += seconds
        self.socket.serve_readers(dict(self.poller.poll(50)), self.now)

    @property
    def readers(self) -> int:
        return len(self.socket._readers)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    made: list[Served] = []

    def make(text: bytes = b"{}") -> Served:
        made.append(Served(tmp_path, text))
        return made[-1]

    yield make
    for served in made:
        served.socket.close()


@pytest.fixture
def connect(tmp_path: Path) -> Iterator[Callable[[], socket.socket]]:
    made: list[socket.socket] = []

    def make() -> socket.socket:
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].settimeout(10)
        made[-1].connect(str(tmp_path / STATUS_SOCKET))
        return made[-1]

    yield make
    for each in made:
        each.close()


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(2**20), b""))


def test_a_reader_gets_the_snapshot_up_to_the_end_of_file(
    serve: Callable[..., Served], connect: Callable[[], socket.socket]
) -> None:
    served = serve(b'{"schema": 1}')
    reader = connect()
    served.turn()
    assert read_all(reader) == b'{"schema": 1}'
    assert served.readers == 0


def test_only_the_owner_may_use_the_socket(serve: Callable[..., Served], tmp_path: Path) -> None:
    serve()
    assert stat.S_IMODE((tmp_path / STATUS_SOCKET).stat().st_mode) == 0o600


def test_the_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    Served(tmp_path).socket.close()
    assert not (tmp_path / STATUS_SOCKET).exists()


def test_the_socket_of_a_dead_supervisor_is_replaced(
    serve: Callable[..., Served], connect: Callable[[], socket.socket], tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / STATUS_SOCKET))
    served = serve(b"new")
    reader = connect()
    served.turn()
    assert read_all(reader) == b"new"


def test_a_slow_reader_gets_everything(serve: Callable[..., Served], connect: Callable[[], socket.socket]) -> None:
    served = serve(LARGE)
    reader = connect()
    served.turn()
    received = 0
    while part := reader.recv(2**16):
        received += len(part)
        served.turn()
    assert received == len(LARGE)


def test_a_reader_that_takes_nothing_is_dropped(
    serve: Callable[..., Served], connect: Callable[[], socket.socket]
) -> None:
    served = serve(LARGE)
    reader = connect()
    served.turn()
    served.turn(0.9 * READ_TIMEOUT_SECONDS)
    assert served.readers == 1
    served.turn(0.2 * READ_TIMEOUT_SECONDS)
    assert served.readers == 0
    assert len(read_all(reader)) < len(LARGE)


def test_too_many_slow_readers_drop_the_oldest(
    serve: Callable[..., Served], connect: Callable[[], socket.socket]
) -> None:
    served = serve(LARGE)
    readers = [connect() for _ in range(MAX_READERS + 4)]
    for _ in range(4):
        served.turn()
    assert served.readers == MAX_READERS
    assert all(len(read_all(reader)) < len(LARGE) for reader in readers[:4])


def test_a_reader_that_is_gone_is_forgotten(serve: Callable[..., Served], connect: Callable[[], socket.socket]) -> None:
    served = serve(LARGE)
    connect().close()
    served.turn()
    served.turn()
    assert served.readers == 0


def test_what_a_reader_sends_is_ignored(serve: Callable[..., Served], connect: Callable[[], socket.socket]) -> None:
    served = serve(b"answer")
    reader = connect()
    reader.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
    served.turn()
    assert read_all(reader) == b"answer"


def test_readers_that_come_together_share_a_snapshot(
    serve: Callable[..., Served], connect: Callable[[], socket.socket]
) -> None:
    served = serve()
    for _ in range(10):
        connect()
    served.turn()
    assert served.taken == 1
    connect()
    served.turn(1.0)
    assert served.taken == 2


def test_a_snapshot_that_fails_ends_nothing(
    serve: Callable[..., Served], connect: Callable[[], socket.socket], caplog: pytest.LogCaptureFixture
) -> None:

    def fail() -> bytes:
        raise ValueError("this is a defect")

    served = serve()
    served.socket._take_snapshot = fail
    reader = connect()
    served.turn()
    assert read_all(reader) == b""
    assert "status cannot be told" in caplog.text


def test_too_many_open_files_pause_the_socket(
    serve: Callable[..., Served], connect: Callable[[], socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve(b"answer")
    reader = connect()

    def refuse(*_: object) -> None:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", refuse)
        served.turn()
    assert not served.poller.sockets
    served.turn(2.0)
    served.turn()
    assert read_all(reader) == b"answer"


# The client's side


def test_a_long_path_is_no_problem(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 150)
    directory.mkdir()
    served = Served(directory, b"answer")
    answers: list[bytes] = []
    client = threading.Thread(target=lambda: answers.append(read_status(directory, 10.0)))
    client.start()
    wait_until(lambda: served.turn() or answers, 30, "the client has its answer")
    client.join()
    served.socket.close()
    assert answers == [b"answer"]
    assert not (directory / STATUS_SOCKET).exists()


def test_a_directory_without_a_supervisor_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoSupervisor, match=f"No supervisor uses {tmp_path}: there is no socket"):
        read_snapshot(tmp_path)


def test_a_directory_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoSupervisor, match=r"missing: there is no such directory\."):
        read_snapshot(tmp_path / "missing")


def test_a_socket_that_nobody_listens_at_is_no_supervisor(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / STATUS_SOCKET))
    with pytest.raises(NoSupervisor, match="nobody listens"):
        read_snapshot(tmp_path)


def test_a_supervisor_without_a_socket_is_not_taken_for_none(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / SUPERVISOR_LOCK)
    lock.acquire()
    try:
        with pytest.raises(SupervisorSilent, match="one is there, but there is no socket"):
            read_snapshot(tmp_path, timeout=0.2)
    finally:
        lock.release()


def test_a_supervisor_that_does_not_answer_is_not_waited_for_long(serve: Callable[..., Served], tmp_path: Path) -> None:
    serve()
    with pytest.raises(SupervisorSilent, match=r"not answered for 0\.2 s"):
        read_snapshot(tmp_path, timeout=0.2)


def test_a_full_queue_of_readers_is_no_answer(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / STATUS_SOCKET))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / STATUS_SOCKET))
            with pytest.raises(SupervisorSilent, match="not answered"):
                read_snapshot(tmp_path, timeout=0.2)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "0 bytes that are no whole status"),
        (b'{"schema": 1, "state": "we', "no whole status"),
        (b'{"schema": 1}', "missing required field"),
        (b'{"schema": 99}', "schema 99"),
        (b"\xff\x00", "no whole status"),
    ],
)
def test_an_answer_that_is_no_snapshot_is_no_answer(
    serve: Callable[..., Served], tmp_path: Path, text: bytes, problem: str
) -> None:
    served = serve(text)
    errors: list[Exception] = []

    def ask() -> None:
        try:
            read_snapshot(tmp_path)
        except SupervisorSilent as error:
            errors.append(error)

    client = threading.Thread(target=ask)
    client.start()
    wait_until(lambda: served.turn() or not client.is_alive(), 30, "the client is done")
    client.join()
    assert problem in str(errors[0])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read_is_not_taken_for_empty(tmp_path: Path) -> None:
    tmp_path.chmod(0)
    try:
        with pytest.raises(SupervisorSilent):
            read_snapshot(tmp_path)
    finally:
        tmp_path.chmod(0o700)
