"""The phases of a run in a site's log."""

from __future__ import annotations

import pytest

from tiledbroker.supervisor.jetstream_source._log_run import TRANSITIONS, LogRun, Phase, Step


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
