"""What a shipper relies on, over each transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from ingest_host import IngestHost, WireIngestHost
from transports import Transport

from tiledbroker._errors import ProtocolError
from tiledbroker._wake_up import WakeUp
from tiledbroker.protocol import messages
from tiledbroker.publisher._link import Link

HELLO = messages.Hello("test", {}, [])


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
def wake_up() -> Iterator[WakeUp]:
    made = WakeUp()
    yield made
    made.close()


@pytest.fixture
def connect() -> Iterator[Callable[[Transport, str], Link]]:
    """Makes a link that connects to an address."""
    made: list[Link] = []

    def make(transport: Transport, address: str) -> Link:
        made.append(transport.link(address))
        made[-1].connect("no connection has come about yet")
        return made[-1]

    yield make
    for link in made:
        link.disconnect(0.0)
        link.close()


def wait_for(link: Link, wake_up: WakeUp, condition: Callable[[], object], *, blocked: bool = False) -> None:
    """Wait as the shipper does."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, link.problem
        link.wait(wake_up.fileno(), 0.5, blocked=blocked)


def greet(link: Link, wake_up: WakeUp, ingest: IngestHost) -> None:
    """Say Hello as soon as there is a connection."""
    wait_for(link, wake_up, lambda: link.send(HELLO), blocked=True)
    wait_for(link, wake_up, lambda: not link.problem)
    ingest.await_greeting()


def test_a_host_that_is_not_there_is_a_problem(
    transport: Transport, connect: Callable[[Transport, str], Link], wake_up: WakeUp
) -> None:
    link = connect(transport, transport.new_address())
    wait_for(link, wake_up, lambda: transport.absence in link.problem)
    assert link.begun
    assert not link.send(HELLO)
    assert link.receive() is None


def test_messages_go_to_and_fro_in_their_order(
    wire: Transport, connect: Callable[[Transport, str], Link], wire_host: WireIngestHost, wake_up: WakeUp
) -> None:
    link = connect(wire, wire_host.address)
    greet(link, wake_up, wire_host)
    answers = [messages.Welcome(1, 2, {}), messages.Pong(7), messages.Durable("run", 3, ended=False)]
    for answer in answers:
        wire_host.say(answer)
    received: list[messages.Message] = []

    def receive() -> bool:
        while (message := link.receive()) is not None:
            received.append(message)
        return len(received) == len(answers)

    wait_for(link, wake_up, receive)
    assert received == answers


def test_what_is_no_message_is_said_and_the_next_one_received(
    wire: Transport, connect: Callable[[Transport, str], Link], wire_host: WireIngestHost, wake_up: WakeUp
) -> None:
    link = connect(wire, wire_host.address)
    greet(link, wake_up, wire_host)
    wire_host.say_frames(b"nonsense", b"")
    wire_host.say(messages.Pong(7))
    received: list[messages.Message | None] = []

    def receive_nonsense() -> bool:
        try:
            received.append(link.receive())
        except ProtocolError:
            return True
        return False

    wait_for(link, wake_up, receive_nonsense)
    assert not any(received)
    wait_for(link, wake_up, lambda: link.receive() == messages.Pong(7))


def test_a_run_is_busy_until_its_batch_has_arrived_at_most(
    transport: Transport, connect: Callable[[Transport, str], Link], ingest: IngestHost, wake_up: WakeUp
) -> None:
    link = connect(transport, ingest.address)
    greet(link, wake_up, ingest)
    assert link.send(messages.documents("run", 0, [("start", 0, b"")]))
    assert not link.busy("another")
    ingest.expect(messages.Documents)
    wait_for(link, wake_up, lambda: link.receive() is None and not link.busy("run"))


def test_a_wait_ends_when_the_descriptor_is_readable(
    transport: Transport, connect: Callable[[Transport, str], Link], ingest: IngestHost, wake_up: WakeUp
) -> None:
    link = connect(transport, ingest.address)
    greet(link, wake_up, ingest)
    link.receive()
    began = time.monotonic()
    wake_up.wake()
    while not link.wait(wake_up.fileno(), 20.0, blocked=False):
        link.receive()
    assert time.monotonic() - began < 10.0
    wake_up.clear()
    assert not link.wait(wake_up.fileno(), 0.0, blocked=False)


def test_a_connection_that_is_lost_is_broken_and_can_be_replaced(
    transport: Transport, connect: Callable[[Transport, str], Link], wake_up: WakeUp
) -> None:
    with transport.ingest_host() as ingest:
        link = connect(transport, ingest.address)
        greet(link, wake_up, ingest)
    wait_for(link, wake_up, lambda: link.receive() is None and link.broken)
    assert link.problem
    link.disconnect(0.0)
    link.connect(link.problem)
    assert link.problem
    wait_for(link, wake_up, lambda: transport.absence in link.problem)
