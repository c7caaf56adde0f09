"""The supervisor's socket for publishers, by itself: what it lets through, and what each client may have."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peers
import psutil
import pytest
import zmq

from tiledbroker.protocol import messages
from tiledbroker.supervisor._publishers import ClientLimits, Publisher
from tiledbroker.supervisor.frontend._connections import HELLO_TIMEOUT_SECONDS
from tiledbroker.supervisor.frontend._frontend import Frontend
from tiledwriter.testing import wait_until

LIMITS = ClientLimits(window=1000, max_document=20 * 2**20, max_connections=3)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def front() -> Iterator[Frontend]:
    made = Frontend("tcp://127.0.0.1:*", LIMITS)
    made.open()
    yield made
    made.close()


@pytest.fixture
def dial(context: zmq.Context[zmq.Socket[bytes]], front: Frontend) -> Iterator[Callable[..., zmq.Socket[bytes]]]:
    """Connects a socket, as a publisher would."""

    made: list[zmq.Socket[bytes]] = []

    def make(identity: bytes | None = None) -> zmq.Socket[bytes]:
        made.append(peers.dial(context, front.endpoint, identity=identity))
        return made[-1]

    yield make
    for dealer in made:
        dealer.close(linger=0)


def send(dealer: zmq.Socket[bytes], message: messages.Message) -> None:
    dealer.send_multipart(messages.encode(message))


def hear(front: Frontend, seconds: float = 10.0) -> tuple[Publisher, messages.Message] | None:
    """The next that the supervisor is to hear, if there is any."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        front.pollable.poll(50)
        for heard in front.receive():
            return heard
    return None


def answer(front: Frontend, dealer: zmq.Socket[bytes]) -> messages.Message:
    wait_until(lambda: not list(front.receive()) and dealer.poll(20), 60, "there is an answer")
    return messages.decode(dealer.recv_multipart())


def greeted(front: Frontend, dealer: zmq.Socket[bytes]) -> Publisher:
    send(dealer, messages.Hello("test", {}, []))
    heard = hear(front)
    assert heard is not None
    return heard[0]


def documents(first: int, size: int, run: str = "r") -> messages.Documents:
    return messages.documents(run, first, [("event", 0, bytes(size))])


@pytest.mark.parametrize("identity", [b"", b"\0\0\0\0\1", b"x" * 15, b"x" * 17], ids=len)
def test_whoever_has_no_identity_of_its_own_is_told_so(
    front: Frontend, dial: Callable[..., Any], identity: bytes
) -> None:
    dealer = dial(identity)
    send(dealer, messages.Hello("test", {}, []))
    refusal = answer(front, dealer)
    assert isinstance(refusal, messages.Refused)
    assert "a routing identity of 16 bytes" in refusal.reason
    assert front.refused == {"identity": 1}
    assert not front.publishers


def test_nobody_can_know_what_peers_without_an_identity_are_called() -> None:
    """libzmq aborts when a peer calls itself by a number that is due."""
    given = set()
    for _ in range(2):
        ctypes.CDLL(None).srand(1)  # what each process begins with
        with zmq.Context() as context:
            front = Frontend("tcp://127.0.0.1:*", LIMITS)
            front.open()
            with peers.dial(context, front.endpoint, identity=b"") as dealer:
                dealer.send(b"")
                given.add(front.pollable.recv_multipart()[0])
            front.close()
    assert len(given) == 2


@pytest.mark.parametrize(
    "frames",
    [[b""], [b"", b""], [b"TW"], [b"x"] * 50, [bytes(1_000_000)]],
    ids=["empty", "two empty", "half a preamble", "many", "large"],
)
def test_frames_that_are_no_message_are_dropped_and_counted(
    front: Frontend, dial: Callable[[], Any], frames: list[bytes]
) -> None:
    dealer = dial()
    dealer.send_multipart(frames)
    greeted(front, dealer)
    assert front.refused == {"protocol": 1}


def test_a_message_beyond_the_largest_ends_its_connection_and_no_other(
    front: Frontend, dial: Callable[[], Any]
) -> None:
    honest, greedy = dial(), dial()
    greeted(front, honest)
    greeted(front, greedy)
    send(greedy, documents(0, LIMITS.max_document + 1))
    assert hear(front, 1.0) is None
    send(honest, documents(0, 10))
    heard = hear(front)
    assert heard is not None


# What is no ZeroMQ


@pytest.fixture
def raw(front: Frontend) -> Iterator[Callable[[bytes], socket.socket]]:
    """Connects a bare socket, and sends bytes."""
    made: list[socket.socket] = []

    def make(content: bytes) -> socket.socket:
        made.append(socket.create_connection(("127.0.0.1", int(front.endpoint.rpartition(":")[2]))))
        made[-1].settimeout(20)
        if content:
            made[-1].sendall(content)
        return made[-1]

    yield make
    for connection in made:
        connection.close()


def is_closed(connection: socket.socket) -> bool:
    """Wait until the other end closes."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


OLD_GREETING = b"\x01\x00"  # of 2011: a frame of one byte, an empty identity
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + bytes(32)


@pytest.mark.parametrize(
    "content",
    [
        b"GET / HTTP/1.1\r\nHost: ingest\r\n\r\n",
        OLD_GREETING,
        random_bytes := os.urandom(5000),
        GREETING + random_bytes,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
    ],
    ids=["http", "ancient peer", "random", "random after the greeting", "tls"],
)
def test_whatever_is_no_zeromq_of_today_is_turned_away(
    front: Frontend, raw: Callable[[bytes], socket.socket], content: bytes
) -> None:
    assert is_closed(raw(content))
    assert hear(front, 0.2) is None


@pytest.mark.parametrize("content", [b"", b"\xff", GREETING], ids=["nothing", "a byte", "a greeting"])
def test_whoever_does_not_come_to_the_point_is_disconnected(
    raw: Callable[[bytes], socket.socket], content: bytes
) -> None:
    assert is_closed(raw(content))


READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"


def grow_older(front: Frontend, connections: int, seconds: float) -> None:
    """Let time pass for so many connections, once they are known."""
    wait_until(lambda: front.check_connections() or len(front._connections) == connections, 60, "they are accepted")
    for connection in front._connections._connections.values():
        connection.since -= seconds
    front._connections._check_at = 0.0
    front.check_connections()


def test_whoever_does_not_say_hello_is_disconnected(
    front: Frontend, raw: Callable[[bytes], socket.socket], dial: Callable[[], Any]
) -> None:
    silent = raw(GREETING + READY)
    dealer = dial()
    greeted(front, dealer)
    grow_older(front, 2, HELLO_TIMEOUT_SECONDS - 5)
    silent.settimeout(0.2)
    with pytest.raises(TimeoutError):
        is_closed(silent)
    silent.settimeout(20)
    grow_older(front, 2, HELLO_TIMEOUT_SECONDS + 5)
    assert is_closed(silent)
    assert front.refused == {"hello": 1}
    send(dealer, messages.Ping(7))
    assert answer(front, dealer) == messages.Pong(7)


def test_a_publisher_that_fell_silent_is_disconnected_in_the_end(front: Frontend, dial: Callable[[], Any]) -> None:
    dealer = dial()
    greeted(front, dealer).heard -= 1000
    with dealer.get_monitor_socket(zmq.EVENT_DISCONNECTED) as events:
        grow_older(front, 1, HELLO_TIMEOUT_SECONDS + 5)
        assert events.poll(10_000)
        dealer.monitor(None, 0)


def test_a_path_at_which_somebody_listens_is_not_taken_over(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{tmp_path}/front")  # as a supervisor that is killed leaves it
    with zmq.Context() as context:
        front, other = (Frontend(f"ipc://{tmp_path}/front", LIMITS) for _ in range(2))
        front.open()
        with pytest.raises(zmq.ZMQError, match="Address already in use"):
            other.open()
        with peers.dial(context, f"ipc://{tmp_path}/front") as dealer:
            assert greeted(front, dealer).name == "test"
        other.close()
        front.close()


def test_a_connection_over_ipc_that_says_no_hello_is_ended(tmp_path: Path) -> None:
    front = Frontend(f"ipc://{tmp_path}/front", LIMITS)
    front.open()
    with socket.socket(socket.AF_UNIX) as silent:
        silent.settimeout(20)
        silent.connect(f"{tmp_path}/front")
        silent.sendall(GREETING + READY)
        grow_older(front, 1, HELLO_TIMEOUT_SECONDS + 5)
        assert is_closed(silent)
    front.close()


def test_what_has_been_given_the_descriptor_of_a_connection_is_left_alone(
    front: Frontend, raw: Callable[[bytes], socket.socket]
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        raw(GREETING + READY)
        wait_until(lambda: front.check_connections() or len(front._connections) == 1, 60, "it is accepted")
        connections = front._connections
        (connection,) = connections._connections.values()
        connections._connections = {theirs.fileno(): connection}
        grow_older(front, 1, HELLO_TIMEOUT_SECONDS + 5)
        ours.sendall(b"x")
        assert theirs.recv(1) == b"x"
        assert not connections._is_accepted(theirs)
        assert len(connections) == 0


def test_a_frame_that_claims_four_gigabytes_takes_no_memory(
    front: Frontend, raw: Callable[[bytes], socket.socket]
) -> None:
    connection = raw(GREETING + READY)
    before = psutil.Process().memory_info().rss
    connection.sendall(b"\x02" + (2**32).to_bytes(8, "big") + bytes(1000))
    assert is_closed(connection)
    assert psutil.Process().memory_info().rss - before < 2**24
    assert hear(front, 0.2) is None
