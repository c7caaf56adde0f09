"""The phases of a run in a site's log."""

from __future__ import annotations

import math

import pytest

from tiledbroker.jetstream import Receipt, Tail
from tiledbroker.protocol import messages
from tiledbroker.supervisor.jetstream_source._log_run import (
    ASK_AGAIN_SECONDS,
    LATER_SECONDS,
    TRANSITIONS,
    LogRun,
    Phase,
    Step,
)

NOW = 100.0
TAIL = Tail(seq=40, next=4, ended=True, start_crc=1, end_crc=9)


def test_a_run_is_looked_at_claimed_asked_for_and_read_until_it_is_complete() -> None:
    run = LogRun("csx", "uid")
    steps = [Step.FOUND_OPEN, Step.LOOK, Step.FOUND_OWN, Step.ANSWERED, Step.ASK, Step.ANSWERED, Step.STORED]
    assert [run.take_step(step) for step in steps] == [
        Phase.WAITING,
        Phase.LOOKING,
        Phase.ASKING,
        Phase.READING,
        Phase.ASKING,
        Phase.READING,
        Phase.COMPLETE,
    ]


def test_any_run_can_be_looked_at_again() -> None:
    assert all(TRANSITIONS[phase, Step.LOOK] is Phase.LOOKING for phase in Phase)


@pytest.mark.parametrize("step", [Step.ANSWERED, Step.ASK, Step.STORED])
def test_a_run_of_another_host_is_neither_asked_for_nor_read(step: Step) -> None:
    run = LogRun("csx", "uid", phase=Phase.WAITING)
    with pytest.raises(KeyError):
        run.take_step(step)


def test_phases_are_left_only_by_the_steps_of_the_table() -> None:
    for phase in Phase:
        assert any(before is phase for before, _ in TRANSITIONS)


# What the supervisor says


def make_run(*, receipt: Receipt | None = None, tail: Tail = TAIL) -> LogRun:
    return LogRun("csx", "uid", tail, Phase.READING, receipt)


def test_reading_begins_where_the_journal_ends() -> None:
    run = make_run(receipt=Receipt(next=2, start_crc=1, seq=20))
    run.begin_at(messages.RunState(2, ended=False, outcome="", start_crc=1), "host", NOW)
    assert (run.next, run.position, run.ask_at) == (2, 20, math.inf)
    assert (run.told.next, run.told.host, run.told.refused) == (2, "host", "")


@pytest.mark.parametrize("receipt", [None, Receipt(next=3, start_crc=1, seq=30), Receipt(next=2, start_crc=5, seq=20)])
def test_log_is_read_from_its_beginning_if_no_receipt_says_how_far_the_journal_is(receipt: Receipt | None) -> None:
    run = make_run(receipt=receipt)
    run.begin_at(messages.RunState(2, ended=False, outcome="", start_crc=1), "host", NOW)
    assert (run.next, run.position) == (2, 0)


def test_another_run_of_the_same_uid_is_read_from_its_start_so_that_it_is_refused() -> None:
    run = make_run()
    run.begin_at(messages.RunState(4, ended=True, outcome="written", start_crc=2, end_crc=9), "host", NOW)
    assert (run.next, run.position) == (0, 0)
    assert run.told == Receipt(start_crc=1, host="host")


@pytest.mark.parametrize(("end_crc", "is_refused"), [(9, False), (None, False), (8, True)])
def test_run_that_the_journal_has_whole_is_compared_by_its_end(end_crc: int | None, is_refused: bool) -> None:
    run = make_run()
    run.begin_at(messages.RunState(4, ended=True, outcome="written", start_crc=1, end_crc=end_crc), "host", NOW)
    assert run.next == 4
    assert bool(run.told.refused) is is_refused


def test_what_is_durable_is_told_with_the_position_from_which_to_read_on() -> None:
    run = make_run()
    run.in_flight.extend([(2, 10, 0), (3, 10, 20), (4, 10, 30)])
    run.note_durable(3, ended=False, now=NOW)
    assert (run.told.next, run.told.seq, run.told.end_crc, run.ask_at) == (3, 20, None, math.inf)
    run.note_durable(4, ended=True, now=NOW)
    assert (run.told.next, run.told.seq, run.told.end_crc) == (4, 30, 9)
    assert not run.in_flight


@pytest.mark.parametrize(("outcome", "pause"), [("", 30.0), ("failed", 30.0), ("written", math.inf)])
def test_run_without_a_good_outcome_is_asked_for_again(outcome: str, pause: float) -> None:
    run = make_run()
    run.note_durable(4, ended=True, now=NOW)
    if outcome:
        run.note_outcome(outcome, "", NOW)
    assert run.ask_at == NOW + pause
    assert ASK_AGAIN_SECONDS == 30.0


@pytest.mark.parametrize("outcome", ["interrupted", "written"])
def test_outcome_of_a_run_says_nothing_of_documents_that_come_behind_its_end(outcome: str) -> None:
    run = make_run()
    run.begin_at(messages.RunState(2, ended=True, outcome=outcome, start_crc=1), "host", NOW)
    run.note_durable(4, ended=True, now=NOW)
    assert not run.is_settled
    assert run.ask_at == NOW + ASK_AGAIN_SECONDS
    run.note_outcome("written", "", NOW)
    run.note_durable(4, ended=True, now=NOW)
    assert run.is_settled


def test_documents_that_are_refused_for_now_are_handed_on_again_later() -> None:
    run = make_run()
    run.next, run.position = 4, 40
    run.in_flight.extend([(2, 10, 0), (4, 10, 20)])
    run.note_refusal(messages.Refused("uid", 2, messages.LATER, "the disk is full"), NOW)
    assert (run.next, run.position, run.not_before) == (2, 20, NOW + LATER_SECONDS)
    assert (run.told.delayed, run.told.refused) == ("the disk is full", "")


def test_gap_is_filled_at_once() -> None:
    run = make_run()
    run.next = 4
    run.note_refusal(messages.Refused("uid", 1, messages.GAP), NOW)
    assert (run.next, run.position, run.not_before) == (1, 0, 0.0)


def test_run_that_is_refused_for_good_says_why() -> None:
    run = make_run()
    run.in_flight.append((4, 10, 0))
    run.note_refusal(messages.Refused("uid", 0, messages.ANOTHER_RUN), NOW)
    assert run.told.refused == messages.ANOTHER_RUN
    assert not run.in_flight
