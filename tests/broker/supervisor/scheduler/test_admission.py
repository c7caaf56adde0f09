"""What becomes of documents that an ended run should have already."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.protocol import messages
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor._publishers import Publisher
from tiledbroker.supervisor.scheduler._admission import answer_known
from tiledbroker.supervisor.scheduler._effects import CompareDocuments, TellPublisher
from tiledbroker.supervisor.scheduler._runs import Run


@pytest.fixture
def run() -> Run:
    return Run("run", Path("run.sqlite"), State.CLOSING, next=4, ended=True)


@pytest.fixture
def alice() -> Publisher:
    return Publisher(b"alice", "", "127.0.0.1", name="alice")


def test_documents_are_compared_with_the_journal_before_anything_is_said(run: Run, alice: Publisher) -> None:
    message = messages.Documents("run", 3, ["stop"], [1], [4])
    assert answer_known(run, alice, message) == CompareDocuments(alice, run.journal, message, 4)
    assert not run.publishers


def test_end_that_is_known_is_acknowledged_and_the_publisher_is_told_of_the_run_from_then_on(
    run: Run, alice: Publisher
) -> None:
    answer = answer_known(run, alice, messages.Abandoned("run", 4))
    assert answer == TellPublisher(alice, messages.Durable("run", 4, True))
    assert run.publishers == {alice}
