"""What a source lets through, and what each client may have, over each transport that connects clients to it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import zmq
from peers import Peer
from transports import Transport

from tiledbroker.protocol import messages
from tiledbroker.supervisor._publishers import ClientLimits, Publisher
from tiledbroker.supervisor._wire_source import WireSource
from tiledwriter.testing import wait_until

LIMITS = ClientLimits(window=1000, max_document=20 * 2**20, max_connections=3)


@pytest.fixture
def source(wire: Transport) -> Iterator[WireSource]:
    made = wire.source(wire.new_address(), LIMITS)
    assert isinstance(made, WireSource)
    made.open()
    yield made
    made.close()


@pytest.fixture
def dial(wire: Transport, source: WireSource) -> Iterator[Callable[[], Peer]]:
    """Connects, as a publisher would."""
    with ExitStack() as peers:
        yield lambda: peers.enter_context(wire.peer(source.endpoint))


def send(peer: Peer, message: messages.Message) -> None:
    peer.send_multipart(messages.encode(message))


def hear(source: WireSource, seconds: float = 10.0) -> tuple[Publisher, messages.Message] | None:
    """The next that the supervisor is to hear, if there is any."""
    deadline = time.monotonic() + seconds
    poller = zmq.Poller()
    poller.register(source.pollable, zmq.POLLIN)
    while time.monotonic() < deadline:
        poller.poll(50)
        for heard in source.receive():
            return heard
    return None


def answer(source: WireSource, peer: Peer) -> messages.Message:
    wait_until(lambda: not list(source.receive()) and peer.poll(20), 60, "there is an answer")
    return messages.decode(peer.recv_multipart())


def greeted(source: WireSource, peer: Peer) -> Publisher:
    send(peer, messages.Hello("test", {}, []))
    heard = hear(source)
    assert heard is not None
    return heard[0]


def documents(first: int, size: int, run: str = "r") -> messages.Documents:
    return messages.documents(run, first, [("event", 0, bytes(size))])


def test_who_has_not_said_hello_is_asked_to(source: WireSource, dial: Callable[[], Peer]) -> None:
    peer = dial()
    send(peer, documents(0, 1))
    assert answer(source, peer) == messages.Refused("", 0, "hello")
    assert greeted(source, peer).name == "test"


def test_a_ping_is_answered_at_once(source: WireSource, dial: Callable[[], Peer]) -> None:
    peer = dial()
    greeted(source, peer)
    send(peer, messages.Ping(7))
    assert answer(source, peer) == messages.Pong(7)


def test_what_was_refused_is_summed_up_once_a_minute(
    source: WireSource, dial: Callable[[], Peer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    peer = dial()
    greeted(source, peer)
    send(peer, messages.Ready("r", 5, ended=True))
    send(peer, messages.Durable("r", 5, ended=True))
    send(peer, messages.Ping(7))
    assert answer(source, peer) == messages.Pong(7)
    for _ in range(2):  # the second time, there is nothing new
        source._next_report = 0.0
        for _ in range(3):
            source.check_connections()
    assert [text for text in caplog.messages if "so far" in text] == ["Refused so far: protocol 2."]


def test_what_only_workers_send_is_dropped_and_counted(source: WireSource, dial: Callable[[], Peer]) -> None:
    peer = dial()
    greeted(source, peer)
    send(peer, messages.Ready("r", 5, ended=True))
    send(peer, messages.Durable("r", 5, ended=True))
    send(peer, documents(0, 1))
    heard = hear(source)
    assert heard is not None
    assert isinstance(heard[1], messages.Documents)
    assert source.refused == {"protocol": 2}


def test_more_than_the_window_has_to_come_again_later(source: WireSource, dial: Callable[[], Peer]) -> None:
    peer = dial()
    publisher = greeted(source, peer)
    for first in range(4):
        send(peer, documents(first, 400))
    assert answer(source, peer) == messages.Refused("r", 3, "later")
    assert source.refused == {"window": 1}
    # What it is told of the run it knows, and sends anew; nothing of it is under way any more.
    assert publisher.bytes_in_flight == 0


def test_what_is_durable_is_not_under_way(source: WireSource, dial: Callable[[], Peer]) -> None:
    peer = dial()
    publisher = greeted(source, peer)
    for run in ("r", "s"):
        for first in range(2):
            send(peer, documents(first, 200, run))
            assert hear(source) is not None
    assert publisher.bytes_in_flight == 800
    assert source.send(publisher, messages.Durable("r", 1, ended=False))
    assert publisher.bytes_in_flight == 600
    assert source.send(publisher, messages.Durable("r", 2, ended=True))
    assert publisher.bytes_in_flight == 400
    assert source.send(publisher, messages.Refused("s", 0, "gap"))
    assert publisher.bytes_in_flight == 0


def test_a_single_document_may_be_larger_than_the_window(source: WireSource, dial: Callable[[], Peer]) -> None:
    peer = dial()
    greeted(source, peer)
    send(peer, documents(0, 50_000))
    assert hear(source) is not None


def test_a_client_has_so_many_connections_and_no_more(source: WireSource, dial: Callable[[], Peer]) -> None:
    for _ in range(LIMITS.max_connections):
        greeted(source, dial())
    one_more = dial()
    send(one_more, messages.Hello("one more", {}, []))
    refusal = answer(source, one_more)
    assert isinstance(refusal, messages.Refused)
    assert "which is the limit" in refusal.reason
    assert source.refused == {"connections": 1}
    for publisher in source.publishers.values():
        publisher.heard -= 1000  # they fell silent
    source.check_connections()
    assert greeted(source, one_more).name == "test"


def test_connections_that_have_ended_do_not_count(source: WireSource, dial: Callable[[], Peer]) -> None:
    for _ in range(LIMITS.max_connections):
        peer = dial()
        greeted(source, peer)
        peer.close(linger=0)
    another = dial()

    def let_in() -> bool:
        send(another, messages.Hello("another", {}, []))
        return hear(source, 0.2) is not None

    wait_until(let_in, 60, "libzmq has noticed that they ended")


def test_a_document_beyond_the_limit_is_refused_with_its_run(source: WireSource, dial: Callable[[], Peer]) -> None:
    source._limits = ClientLimits(max_document=1000)
    peer = dial()
    greeted(source, peer)
    send(peer, messages.documents("r", 0, [("start", 0, b"x"), ("event", 0, bytes(1001))]))
    refusal = answer(source, peer)
    assert isinstance(refusal, messages.Refused)
    assert "1001 bytes; the limit is 1000" in refusal.reason


def test_a_hello_with_too_many_runs_is_no_message(source: WireSource, dial: Callable[[], Peer]) -> None:
    peer = dial()
    send(peer, messages.Hello("greedy", {str(n): 0 for n in range(messages.MAX_RUNS + 1)}, []))
    greeted(source, peer)
    assert source.refused == {"protocol": 1}


def test_a_publisher_that_is_gone_is_told_once(source: WireSource, dial: Callable[[], Peer]) -> None:
    peer = dial()
    publisher = greeted(source, peer)
    assert source.has(publisher)
    peer.close(linger=0)
    wait_until(
        lambda: not list(source.receive()) and not source.send(publisher, messages.Pong(0)),
        60,
        "it is found to be gone",
    )
    assert not source.has(publisher)
    assert source.take_gone() == [publisher]
    assert source.take_gone() == []
