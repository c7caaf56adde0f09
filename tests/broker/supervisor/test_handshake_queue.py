"""Hellos are answered a few runs at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tiledbroker.protocol.messages import MAX_RUNS, Hello, RunState
from tiledbroker.supervisor._handshake_queue import RUNS_PER_TURN, HandshakeQueue
from tiledbroker.supervisor._publishers import Publisher

STATE = RunState(3, ended=False, outcome="")


@pytest.fixture
def look() -> Callable[[Publisher, str], RunState]:
    """Notes what is looked at."""

    def look(publisher: Publisher, uid: str) -> RunState:
        looked_at.append((publisher.name, uid))
        return STATE

    looked_at: list[tuple[str, str]] = []
    look.looked_at = looked_at  # type: ignore[attr-defined]
    return look


def publisher(name: str) -> Publisher:
    return Publisher(name.encode(), "", "", name)


def hello(count: int) -> Hello:
    return Hello("", {f"run-{number}": 0 for number in range(count)}, [])


def test_no_turn_looks_at_more_than_a_few_runs(look) -> None:
    greetings = HandshakeQueue()
    some = [publisher(name) for name in "abc"]
    for each in some:
        greetings.add(each, hello(MAX_RUNS))
    answered, turns = [], 0
    while greetings:
        before = len(look.looked_at)
        answered += list(greetings.look_up(look, lambda _: True))
        turns += 1
        assert len(look.looked_at) - before <= RUNS_PER_TURN
    assert answered == [(each, dict.fromkeys(hello(MAX_RUNS).runs, STATE)) for each in some]
    assert turns == len(some) * MAX_RUNS / RUNS_PER_TURN


def test_a_short_hello_does_not_wait_for_a_long_one(look) -> None:
    greetings = HandshakeQueue()
    greetings.add(publisher("long"), hello(MAX_RUNS))
    greetings.add(short := publisher("short"), hello(1))
    assert not list(greetings.look_up(look, lambda _: True))
    assert list(greetings.look_up(look, lambda _: True)) == [(short, {"run-0": STATE})]


def test_a_hello_that_comes_again_does_not_begin_anew(look) -> None:
    greetings = HandshakeQueue()
    each = publisher("impatient")
    answered = []
    for _ in range(10):  # as a publisher does until it is answered
        greetings.add(each, hello(3 * RUNS_PER_TURN))
        answered += list(greetings.look_up(look, lambda _: True))
        if answered:
            break
    assert answered == [(each, dict.fromkeys(hello(3 * RUNS_PER_TURN).runs, STATE))]
    assert len(look.looked_at) == 3 * RUNS_PER_TURN


def test_the_answer_is_to_the_latest_hello(look) -> None:
    greetings = HandshakeQueue()
    each = publisher("a")
    greetings.add(each, hello(2 * RUNS_PER_TURN))
    assert not list(greetings.look_up(look, lambda _: True))
    greetings.add(each, Hello("", {"run-1": 0, "new": 0}, ["awaited"]))
    assert list(greetings.look_up(look, lambda _: True)) == [(each, dict.fromkeys(["run-1", "new", "awaited"], STATE))]


def test_who_has_gone_is_forgotten(look) -> None:
    greetings = HandshakeQueue()
    greetings.add(publisher("gone"), hello(MAX_RUNS))
    assert not list(greetings.look_up(look, lambda _: False))
    assert not greetings
    assert not look.looked_at


def test_what_waits_is_bounded_in_memory(look) -> None:
    greetings = HandshakeQueue()
    long = "x" * 2**20
    some = [publisher(str(number)) for number in range(100)]
    for each in some:
        greetings.add(each, Hello("", {long: 0}, []))
    answered = []
    while greetings:
        answered += [each for each, _ in greetings.look_up(look, lambda _: True)]
    assert answered == some[:64]
