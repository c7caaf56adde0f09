"""Outages of Tiled are said once, whatever number of workers meet them."""

from __future__ import annotations

import logging

import pytest

from tiledbroker.supervisor._clock import Instant
from tiledbroker.supervisor.status._outage import (
    FLAPPING_GRACE_SECONDS,
    FLAPPING_SECONDS,
    GRACE_SECONDS,
    REFUSED_RUN_SECONDS,
    REPORT_INTERVAL_SECONDS,
    Backlog,
    TiledOutage,
)
from tiledbroker.supervisor.status._texts import format_time

UNIX = 1_000_000_000.0
REFUSED = "ConnectError: refused"


class Clocked:
    """An outage, reported once a second on a made-up clock."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, logger="tiledbroker.supervisor")
        self.outage = TiledOutage()
        self.seconds = 0.0
        # Seconds by which the host's clock was set.
        self.clock_step = 0.0
        self._caplog = caplog

    @property
    def now(self) -> Instant:
        return Instant(self.seconds, UNIX + self.seconds + self.clock_step)

    def refuse(self, uid: str, *, since: float | None = None, needs_person: bool = False) -> None:
        since = self.now.unix if since is None else since
        self.outage.note_refusal(uid, since, REFUSED, self.now, needs_person=needs_person)

    def answer(self, uid: str) -> None:
        self.outage.note_answer(uid, self.now, lambda: Backlog(2, 30))

    def pass_by(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.seconds += 1.0
            self.outage.report(self.now, lambda: Backlog(3, 45))

    def lines(self) -> list[tuple[str, str]]:
        """Level and text of each line since the last call."""
        found = [(record.levelname, record.getMessage()) for record in self._caplog.records]
        self._caplog.clear()
        return found


@pytest.fixture
def clocked(caplog: pytest.LogCaptureFixture) -> Clocked:
    return Clocked(caplog)


def test_outage_is_said_once_for_all_runs(clocked: Clocked) -> None:
    for number in range(32):
        clocked.refuse(f"run-{number}")
    clocked.pass_by(REPORT_INTERVAL_SECONDS - 1)
    ((level, line),) = clocked.lines()
    assert level == "WARNING"
    assert line == (
        "Tiled has refused requests since 2001-09-09T01:46:40Z (for 3 s: ConnectError: refused); "
        "3 runs with up to 45 documents wait. Documents are journaled meanwhile."
    )


def test_outage_is_said_again_every_ten_minutes(clocked: Clocked) -> None:
    clocked.refuse("run")
    clocked.pass_by(GRACE_SECONDS + 3 * REPORT_INTERVAL_SECONDS)
    ages = [line.partition("(for ")[2].partition(":")[0] for _, line in clocked.lines()]
    assert ages == ["3 s", "10 min 3 s", "20 min 3 s", "30 min 3 s"]


def test_end_is_said_once_with_duration(clocked: Clocked) -> None:
    clocked.refuse("run")
    clocked.refuse("other")
    clocked.pass_by(125)
    clocked.lines()
    clocked.answer("run")
    clocked.answer("other")
    clocked.pass_by(REPORT_INTERVAL_SECONDS)
    message = "Tiled accepts requests again, after 2 min 5 s; 2 runs with up to 30 documents are left to be written."
    assert clocked.lines() == [("INFO", message)]
    assert clocked.outage.since is None


@pytest.mark.parametrize("step", [-3600.0, 3600.0], ids=["back", "forward"])
def test_durations_are_right_after_the_clock_was_set(clocked: Clocked, step: float) -> None:
    clocked.refuse("run")
    clocked.clock_step = step
    clocked.pass_by(GRACE_SECONDS)
    ((_, line),) = clocked.lines()
    assert "(for 3 s: ConnectError: refused)" in line
    clocked.answer("run")
    ((_, line),) = clocked.lines()
    assert line.startswith("Tiled accepts requests again, after 3 s;")


def test_a_refusal_that_began_before_the_clock_was_set_back_is_said(clocked: Clocked) -> None:
    clocked.refuse("run", since=UNIX + 3600)
    clocked.answer("other")
    clocked.refuse("run", since=UNIX + 3600)
    clocked.answer("other")
    clocked.pass_by(REFUSED_RUN_SECONDS)
    assert [
        line for _, line in clocked.lines() if line.startswith("Tiled has refused the requests of run run for 1 min")
    ]


def test_hiccup_is_not_said(clocked: Clocked) -> None:
    clocked.refuse("run")
    clocked.pass_by(GRACE_SECONDS - 1)
    clocked.answer("run")
    clocked.pass_by(REPORT_INTERVAL_SECONDS)
    assert clocked.lines() == []


def test_outage_survives_parking(clocked: Clocked) -> None:
    """The worker that meets it ends, and the worker of another run tries, over and over."""
    clocked.refuse("run-0")
    for number in range(100):
        clocked.pass_by(5)
        clocked.outage.note_parking(f"run-{number}", clocked.now)
        clocked.refuse(f"run-{number + 1}")
    assert len(clocked.lines()) == 1
    assert clocked.outage.since == UNIX
    clocked.answer("run-100")
    ((_, line),) = clocked.lines()
    assert "after 8 min 20 s" in line


def test_outage_is_as_old_as_journals_say(clocked: Clocked) -> None:
    """A supervisor that was restarted during it hears of its beginning from the runs."""
    clocked.refuse("run", since=UNIX - 7200)
    clocked.pass_by(1)
    ((_, line),) = clocked.lines()
    assert f"since {format_time(UNIX - 7200)} (for 2 h 1 s: " in line


def test_parked_run_tells_of_outage_if_its_message_is_lost(clocked: Clocked) -> None:
    clocked.outage.note_parking("run", clocked.now)
    clocked.pass_by(GRACE_SECONDS)
    ((_, line),) = clocked.lines()
    assert "(for 3 s); 3 runs" in line


def test_refused_key_is_error(clocked: Clocked) -> None:
    clocked.refuse("run", needs_person=True)
    clocked.pass_by(GRACE_SECONDS)
    ((level, line),) = clocked.lines()
    assert level == "ERROR"
    assert line.endswith("Somebody has to act: this does not pass by itself.")


def test_flapping_is_said_less_often(clocked: Clocked) -> None:
    clocked.refuse("run")
    clocked.pass_by(GRACE_SECONDS)
    clocked.answer("run")
    assert len(clocked.lines()) == 2
    for _ in range(5):
        clocked.refuse("run")
        clocked.pass_by(GRACE_SECONDS + 1)
        clocked.answer("run")
    assert clocked.lines() == []
    clocked.refuse("run")
    clocked.pass_by(FLAPPING_GRACE_SECONDS)
    assert len(clocked.lines()) == 1


def test_outage_after_quiet_time_is_said_at_once(clocked: Clocked) -> None:
    for _ in range(2):
        clocked.refuse("run")
        clocked.pass_by(GRACE_SECONDS)
        clocked.answer("run")
        assert len(clocked.lines()) == 2
        clocked.pass_by(FLAPPING_SECONDS)


def test_run_that_alone_is_refused_is_named_once(clocked: Clocked) -> None:
    clocked.refuse("bad")
    for _ in range(int(REPORT_INTERVAL_SECONDS)):
        clocked.pass_by(1)
        clocked.answer("good")
    ((level, line),) = clocked.lines()
    assert level == "WARNING"
    assert line == f"Tiled has refused the requests of run bad for 1 min, and answers those of others: {REFUSED}."
    clocked.answer("bad")
    clocked.refuse("bad")
    for _ in range(int(REFUSED_RUN_SECONDS)):
        clocked.answer("good")
        clocked.pass_by(1)
    assert len(clocked.lines()) == 1


def test_runs_in_queue_after_outage_are_not_named(clocked: Clocked) -> None:
    for number in range(100):
        clocked.refuse(f"run-{number}")
        clocked.outage.note_worker_end(f"run-{number}")
    clocked.pass_by(GRACE_SECONDS)
    clocked.answer("run-0")
    clocked.lines()
    clocked.pass_by(REPORT_INTERVAL_SECONDS)
    assert clocked.lines() == []


def test_forgotten_run_leaves_no_outage(clocked: Clocked) -> None:
    clocked.refuse("run")
    clocked.outage.forget_run("run")
    clocked.pass_by(REPORT_INTERVAL_SECONDS)
    assert clocked.lines() == []
    assert clocked.outage.since is None
