"""The life of a run is the table, and nothing but the table."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from paths import ROOT

from tiledbroker import LifecycleError
from tiledbroker.supervisor._lifecycle import FINAL, TRANSITIONS, Event, State, next_state

ILLEGAL = [pair for pair in itertools.product(State, Event) if pair not in TRANSITIONS]


@pytest.mark.parametrize(("state", "event"), TRANSITIONS)
def test_a_transition_of_the_table_is_made(state: State, event: Event) -> None:
    assert next_state(state, event) is TRANSITIONS[state, event]


@pytest.mark.parametrize(("state", "event"), ILLEGAL)
def test_any_other_is_an_error_that_names_state_and_event(state: State, event: Event) -> None:
    with pytest.raises(LifecycleError) as refusal:
        next_state(state, event)
    assert (refusal.value.state, refusal.value.event) == (state, event)
    assert str(refusal.value) == f"A run that is {state.value} cannot be {event.value}."


@pytest.mark.parametrize("state", sorted(set(State) - FINAL))
def test_every_state_that_is_not_final_is_left(state: State) -> None:
    assert {after for (before, _), after in TRANSITIONS.items() if before is state} - {state}


@pytest.mark.parametrize("state", sorted(FINAL))
def test_a_final_state_is_left_only_to_start_again_or_when_it_is_found_wrong(state: State) -> None:
    leaving = {event: after for (before, event), after in TRANSITIONS.items() if before is state and after is not state}
    wrong = {} if state is State.FAILED else {Event.FAILED: State.FAILED}
    late_stop = {Event.WRITTEN: State.WRITTEN} if state is State.INTERRUPTED else {}
    assert leaving == {Event.RESUMED: State.STARTING, **wrong, **late_stop}


@pytest.mark.parametrize("state", [State.WRITTEN, State.INTERRUPTED])
def test_a_complete_run_stays_what_it_is_while_a_worker_looks_at_it_again(state: State) -> None:
    for event in (Event.READY, Event.DIED, Event.PARKED, Event(state.value)):
        assert next_state(state, event) is state


@pytest.mark.parametrize("state", State)
def test_every_state_is_reached_from_the_beginning_and_leads_to_an_end(state: State) -> None:
    assert state in _reachable(State.STARTING)
    assert _reachable(state) >= FINAL


@pytest.mark.parametrize("event", Event)
def test_every_event_happens_somewhere(event: Event) -> None:
    assert event in {event for _, event in TRANSITIONS}


@pytest.mark.parametrize("state", sorted(set(State) - FINAL - {State.PARKED}))
def test_a_run_with_a_worker_may_die_park_or_fail(state: State) -> None:
    assert next_state(state, Event.DIED) is State.STARTING
    assert next_state(state, Event.PARKED) is State.PARKED
    assert next_state(state, Event.FAILED) is State.FAILED


def test_a_run_is_written_only_once_its_end_is_journaled() -> None:
    complete = (State.WRITTEN, State.INTERRUPTED)
    ways = {before for (before, _), after in TRANSITIONS.items() if after in complete and before is not after}
    assert ways == {State.CLOSING, State.INTERRUPTED}


def test_a_failed_run_stays_failed_whatever_its_worker_does() -> None:
    assert {next_state(State.FAILED, event) for event in (Event.ENDED, Event.DIED, Event.FAILED)} == {State.FAILED}


def test_the_usual_life() -> None:
    state = State.STARTING
    lived = [state]
    for event in (Event.READY, Event.ENDED, Event.PARKED, Event.RESUMED, Event.READY, Event.ENDED, Event.WRITTEN):
        state = next_state(state, event)
        lived.append(state)
    assert " ".join(map(str, lived)) == "starting open closing parked starting open closing written"


def test_states_are_stored_as_their_names() -> None:
    assert {state.value for state in FINAL} == {"written", "interrupted", "failed"}
    assert all(State(str(state)) is state for state in State)


def test_the_diagram_in_the_documentation_is_drawn_from_the_table() -> None:
    command = [sys.executable, str(ROOT / "scripts/draw_run_states.py")]
    drawn = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert (ROOT / "docs/reference/run-states.svg").read_text() == drawn
    assert all(f">{state.value}</text>" in drawn for state in State)


def _reachable(state: State) -> set[State]:
    reached = {state}
    while True:
        further = {after for (before, _), after in TRANSITIONS.items() if before in reached}
        if further <= reached:
            return reached
        reached |= further
