"""A shipper without work sleeps, and wakes up for each run that comes, however close to its falling asleep."""

from __future__ import annotations

import select
from collections import deque
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tiledbroker.protocol import messages
from tiledbroker.publisher import _session as session_module
from tiledbroker.publisher import _shipper as shipper_module
from tiledbroker.publisher._publisher import SpoolPublisher
from tiledbroker.publisher._shipper import Shipper
from tiledbroker.publisher._spool import Spool
from tiledwriter.testing import wait_until

URL = "tcp://ingest:5579"


class QuietLink:
    """A link to an ingest host that answers each Hello, knows no run, and says nothing else."""

    problem = ""
    begun = True
    broken = False

    def __init__(self, on_send: Callable[[messages.Message], None] = lambda _: None) -> None:
        self.sent: list[messages.Message] = []
        self._on_send = on_send
        self._answers: deque[messages.Message] = deque()

    def connect(self, problem: str) -> None:
        pass

    def disconnect(self, linger_seconds: float) -> None:
        pass

    def send(self, message: messages.Message) -> bool:
        if isinstance(message, messages.Hello):
            states = {uid: messages.RunState(0, ended=False, outcome="") for uid in message.runs}
            self._answers.append(messages.Welcome(2**23, 2**28, states))
        self._on_send(message)
        self.sent.append(message)
        return True

    def receive(self) -> messages.Message | None:
        return self._answers.popleft() if self._answers else None

    def busy(self, run_uid: str) -> bool:
        return False

    def wait(self, descriptor: int, timeout_seconds: float, *, blocked: bool) -> bool:
        readable, _, _ = select.select([descriptor], [], [], 0.0 if self._answers else timeout_seconds)
        return bool(readable)

    def close(self) -> None:
        pass

    def runs_sent(self) -> set[str]:
        return {message.run for message in self.sent if isinstance(message, messages.Documents)}


@pytest.fixture(autouse=True)
def sleeps_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a wake-up, the shipper sleeps until long after the test."""
    monkeypatch.setattr(shipper_module, "MAX_SLEEP_SECONDS", 1000.0)
    for what in ("HELLO_INTERVAL", "PING_INTERVAL", "SILENCE", "ASK_INTERVAL", "RECHECK"):
        monkeypatch.setattr(session_module, f"{what}_SECONDS", 1000.0)


def test_a_run_that_begins_between_the_last_look_and_falling_asleep_is_shipped(tmp_path: Path) -> None:
    def begin_run(message: messages.Message) -> None:
        if isinstance(message, messages.Ping) and not spool.runs():
            spool.append("start", {"uid": "run", "time": 0.0})
            shipper.notify()

    spool = Spool(tmp_path, destination=URL)
    link = QuietLink(begin_run)
    shipper = Shipper(spool, URL, lambda: link)
    shipper.start()
    try:
        wait_until(lambda: link.runs_sent() == {"run"}, 20, "the run is shipped")
    finally:
        shipper.stop(0.0)
        spool.close()


def test_a_run_that_is_adopted_is_shipped_at_once(tmp_path: Path) -> None:
    link = QuietLink()
    publisher = SpoolPublisher(URL, lambda: link, spool_dir=tmp_path, on_error="raise")
    with closing(publisher):
        wait_until(lambda: any(isinstance(message, messages.Ping) for message in link.sent), 20, "it is connected")
        wait_until(lambda: publisher._shipper._asleep, 20, "it sleeps")
        left = Spool(tmp_path, destination=URL)
        left.append("start", {"uid": "left", "time": 0.0})
        left.maintain()
        left.close()
        publisher._spool._adopt_at = 0.0
        wait_until(lambda: link.runs_sent() == {"left"}, 20, "the run is shipped")
        publisher.close(0.0)
