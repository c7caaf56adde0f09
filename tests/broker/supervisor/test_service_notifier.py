"""What systemd is told, over a socket of the test's own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiledbroker.supervisor._service_notifier import ServiceNotifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        yield manager


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[ServiceNotifier]:
    notifier = ServiceNotifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "6000000"})
    yield notifier
    notifier.close()


def told(manager: socket.socket) -> list[str]:
    """All that was told since the last call."""
    found = []
    while True:
        try:
            found.append(manager.recv(4096).decode())
        except BlockingIOError:
            return found


def test_life_of_service_is_told(notifier: ServiceNotifier, manager: socket.socket) -> None:
    notifier.announce_ready()
    notifier.announce_reloading()
    notifier.announce_ready()
    notifier.announce_stopping()
    ready, reloading, *rest = told(manager)
    assert [ready, *rest] == ["READY=1", "READY=1", "STOPPING=1"]
    name, clock = reloading.split("\n")
    assert name == "RELOADING=1"
    assert int(clock.removeprefix("MONOTONIC_USEC=")) > 0


def test_status_is_told_when_it_changes(notifier: ServiceNotifier, manager: socket.socket) -> None:
    for text in ("runs: 1 open", "runs: 1 open", "two\nlines\nWATCHDOG=1"):
        notifier.describe_status(text)
    assert told(manager) == ["STATUS=runs: 1 open", "STATUS=two lines WATCHDOG=1"]


def test_watchdog_is_fed_three_times_per_interval(notifier: ServiceNotifier, manager: socket.socket) -> None:
    assert notifier.feed_pause == 2.0
    for tick in range(13):
        notifier.feed_watchdog(100.0 + tick / 2)
    assert told(manager) == ["WATCHDOG=1"] * 4


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}],
)
def test_watchdog_of_others_is_not_fed(environment: dict[str, str], manager: socket.socket) -> None:
    notifier = ServiceNotifier({"NOTIFY_SOCKET": manager.getsockname(), **environment})
    assert os.getpid() != 1
    notifier.feed_watchdog(1.0)
    assert told(manager) == []
    assert notifier.feed_pause == float("inf")
    notifier.close()


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "relative/path"])
def test_nothing_happens_without_systemd(address: str) -> None:
    notifier = ServiceNotifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    notifier.announce_ready()
    notifier.feed_watchdog(1.0)
    assert notifier.feed_pause == float("inf")
    notifier.close()


def test_manager_that_is_gone_is_no_trouble(notifier: ServiceNotifier, manager: socket.socket) -> None:
    path = manager.getsockname()
    manager.close()
    Path(path).unlink()
    notifier.announce_ready()
    notifier.close()
    notifier.announce_stopping()


def test_manager_that_does_not_read_blocks_nothing(notifier: ServiceNotifier) -> None:
    for number in range(10_000):
        notifier.describe_status(str(number))


def test_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0tiledwriter-test-{os.getpid()}")
        manager.setblocking(False)
        notifier = ServiceNotifier({"NOTIFY_SOCKET": f"@tiledwriter-test-{os.getpid()}"})
        notifier.announce_ready()
        notifier.close()
        assert told(manager) == ["READY=1"]
