"""What becomes of the specs that a start document asks for."""

from __future__ import annotations

from typing import Any

import event_model
import pytest

from tiledwriter.mapping import RunWriter
from tiledwriter.mapping._operations import CreateContainer


def start_of(**metadata: Any) -> tuple[CreateContainer, list[str]]:
    """The operation that creates a run's container, and the notes."""
    writer = RunWriter()
    run = event_model.compose_run(metadata=metadata)
    (created,) = writer("start", run.start_doc)
    assert isinstance(created, CreateContainer)
    return created, writer.notes


@pytest.mark.parametrize(
    ("given", "specs", "noted"),
    [
        ("Bar", [("Bar", None)], False),
        ({"name": "Z", "version": "2"}, [("Z", "2")], False),
        ([{"name": "Z", "version": 2}], [("Z", "2")], False),
        (["A", "A"], [("A", None)], False),
        ([{"name": "BlueskyRun", "version": "3.0"}], [], False),
        (["BlueskyRun", "A"], [("A", None)], True),
        ([{"name": "BlueskyRun", "version": "2.0"}], [], True),
        (["BlueskyEventStream"], [], True),
        (["composite"], [], True),
        ([None, 3, "", ["N", "1.0"], {"version": "2"}, "x" * 300, "A"], [("A", None)], True),
        ({"a": 1}, [], True),
        (7, [], True),
        ([f"s{n}" for n in range(30)], [(f"s{n}", None) for n in range(19)], True),
    ],
)
def test_specs_that_tiled_does_not_take_are_left_out_and_noted(
    given: Any, specs: list[tuple[str, str | None]], noted: bool
) -> None:
    created, notes = start_of(tiled_specs=given)
    assert created.specs == (*specs, ("BlueskyRun", "3.0"))
    assert any("tiled_specs" in note for note in notes) == noted
