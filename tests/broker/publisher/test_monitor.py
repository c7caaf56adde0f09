"""What watches a connection is never in its way, nor in that of the next one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import zmq

from tiledbroker.publisher._monitor import ConnectionMonitor
from tiledwriter.testing import free_port


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def greets(context: zmq.Context[zmq.Socket[bytes]]) -> bool:
    """Whether a new connection comes about."""
    with context.socket(zmq.ROUTER) as router, context.socket(zmq.DEALER) as dealer:
        dealer.connect(f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
        dealer.send(b"hello", zmq.NOBLOCK)
        return bool(router.poll(5_000))


def test_a_connection_that_goes_on_after_its_monitor_holds_up_no_other(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    with context.socket(zmq.DEALER) as connection:
        connection.setsockopt(zmq.LINGER, 0)
        connection.setsockopt(zmq.RECONNECT_IVL, 1)
        monitor = ConnectionMonitor(connection, url, secured=False, before="")
        connection.connect(url)
        assert monitor.socket.poll(5_000)
        monitor.close()
        time.sleep(0.1)  # in which it is tried a hundred times to connect, and nobody listens for what comes of it
        assert greets(context)


def test_more_events_than_anybody_reads_hold_up_no_connection(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    url = f"tcp://127.0.0.1:{free_port()}"
    with context.socket(zmq.DEALER) as connection:
        connection.setsockopt(zmq.LINGER, 0)
        monitor = ConnectionMonitor(connection, url, secured=False, before="")
        for _ in range(3_000):
            connection.connect(url)
            connection.disconnect(url)
        assert greets(context)
        monitor.close()
