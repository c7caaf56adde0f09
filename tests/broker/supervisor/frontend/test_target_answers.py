"""What publishers are told of the answers of several targets."""

from __future__ import annotations

import pytest

from tiledbroker.protocol import messages
from tiledbroker.supervisor.frontend._target_answers import TargetAnswers

PUBLISHER = b"p" * 16


@pytest.fixture
def answers() -> TargetAnswers:
    return TargetAnswers(["old", "new"])


def told(answers: TargetAnswers, target: str, message: messages.Message) -> list[messages.Message]:
    return list(answers.merge(PUBLISHER, target, message))


def state(index: int, *, ended: bool = False, outcome: str = "", crc: int | None = None) -> messages.RunState:
    return messages.RunState(index, ended, outcome, "", crc, crc if ended else None)


def test_documents_are_durable_once_they_are_for_every_target(answers: TargetAnswers) -> None:
    assert told(answers, "old", messages.Durable("r", 5, False)) == []
    assert told(answers, "new", messages.Durable("r", 3, False)) == [messages.Durable("r", 3, False)]
    assert told(answers, "new", messages.Durable("r", 7, True)) == [messages.Durable("r", 5, False)]
    assert told(answers, "old", messages.Durable("r", 7, True)) == [messages.Durable("r", 7, True)]


def test_publishers_pause_as_long_as_the_busiest_target_asks_them_to(answers: TargetAnswers) -> None:
    told(answers, "old", messages.Durable("r", 5, False, 0.4))
    assert told(answers, "new", messages.Durable("r", 5, False, 0.1)) == [messages.Durable("r", 5, False, 0.4)]


def test_run_is_written_once_it_is_for_every_target(answers: TargetAnswers) -> None:
    assert told(answers, "new", messages.Written("r", "written", "")) == []
    assert told(answers, "old", messages.Written("r", "interrupted", "")) == [messages.Written("r", "interrupted", "")]


def test_outcome_for_a_target_says_nothing_of_documents_that_come_behind_the_end(answers: TargetAnswers) -> None:
    told(answers, "old", messages.Welcome(1000, 500, {"r": state(5, ended=True, outcome="interrupted", crc=1)}))
    told(answers, "new", messages.Welcome(1000, 500, {"r": state(5, ended=True, crc=1)}))
    told(answers, "old", messages.Durable("r", 7, True))
    told(answers, "new", messages.Durable("r", 7, True))
    assert told(answers, "new", messages.Written("r", "written", "")) == []
    assert told(answers, "old", messages.Written("r", "written", "")) == [messages.Written("r", "written", "")]


def test_failure_for_one_target_is_told_at_once_and_is_over_after_a_retry(answers: TargetAnswers) -> None:
    failed = [messages.Written("r", "failed", "target new: no such column")]
    assert told(answers, "new", messages.Written("r", "failed", "no such column")) == failed
    assert told(answers, "old", messages.Written("r", "written", "")) == failed
    assert told(answers, "new", messages.Written("r", "written", "")) == [messages.Written("r", "written", "")]


def test_publisher_is_welcomed_by_all_and_continues_where_the_last_one_is(answers: TargetAnswers) -> None:
    old = messages.Welcome(1000, 500, {"r": state(9, ended=True, outcome="written", crc=1), "s": state(0)})
    new = messages.Welcome(800, 600, {"r": state(4, crc=1)})
    assert told(answers, "old", old) == []
    assert told(answers, "new", new) == [messages.Welcome(800, 500, {"r": state(4, crc=1)})]
    # What was said in the Welcome counts for later answers.
    assert told(answers, "new", messages.Durable("r", 9, True)) == [messages.Durable("r", 9, True)]
    assert told(answers, "new", messages.Written("r", "written", "")) == [messages.Written("r", "written", "")]


def test_each_hello_is_answered_once(answers: TargetAnswers) -> None:
    welcome = messages.Welcome(1, 1, {"r": state(3, ended=True, outcome="written", crc=2)})
    for _ in range(2):
        assert told(answers, "old", welcome) == []
        assert told(answers, "new", welcome) == [welcome]


@pytest.mark.parametrize("reason", [messages.GAP, messages.LATER, messages.NO_HELLO])
def test_what_a_publisher_must_do_is_passed_on(answers: TargetAnswers, reason: str) -> None:
    assert told(answers, "new", messages.Refused("r", 3, reason)) == [messages.Refused("r", 3, reason)]
    detailed = messages.Refused("r", 3, reason, "the disk is full")
    assert told(answers, "new", detailed) == [messages.Refused("r", 3, reason, "target new: the disk is full")]


def test_refusal_of_a_run_names_the_target(answers: TargetAnswers) -> None:
    refusal = messages.Refused("r", 0, messages.ANOTHER_RUN)
    assert told(answers, "old", refusal) == [messages.Refused("r", 0, f"target old: {messages.ANOTHER_RUN}")]


def test_a_new_connection_knows_nothing_of_an_earlier_one(answers: TargetAnswers) -> None:
    assert told(answers, "old", messages.Durable("r", 5, False)) == []
    answers.forget(PUBLISHER)
    assert told(answers, "new", messages.Durable("r", 3, False)) == []
