"""A journal has one entry per outage, whatever number of workers meet it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tiledbroker import Journal
from tiledbroker.log import read_outage
from tiledwriter.journals import summarize
from tiledwriter.worker._run_outage import RunOutage


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        yield journal


def events(journal: Journal) -> list[str]:
    return [entry.event for entry in journal.history()]


def test_many_workers_leave_one_entry(journal: Journal) -> None:
    since = RunOutage(journal).note_refusal("refused", away=True)
    RunOutage(journal).note_parking()
    for _ in range(1000):
        assert RunOutage(journal).note_worker()
        assert RunOutage(journal).note_refusal("503", away=True) == since
        RunOutage(journal).note_parking()
    (entry,) = journal.history()
    assert entry.event == "waiting"
    assert entry.detail == {"reason": "503", "workers": 1001, "parked": 1001}


def test_end_is_noted_once_with_what_it_cost(journal: Journal) -> None:
    outage = RunOutage(journal)
    outage.note_refusal("refused", away=True)
    outage.note_parking()
    outage.note_worker()
    outage.note_answer()
    outage.note_answer()
    outage.end_outage()
    assert events(journal) == ["waiting", "resumed"]
    detail = journal.history()[-1].detail
    assert (detail["workers"], detail["parked"]) == (2, 1)
    assert detail["seconds"] >= 0
    assert read_outage(journal) is None


def test_next_outage_has_its_own_entry(journal: Journal) -> None:
    outage = RunOutage(journal)
    for _ in range(3):
        outage.note_refusal("refused", away=True)
        outage.end_outage()
    assert events(journal) == ["waiting", "resumed"] * 3


def test_worker_outside_outage_is_not_counted(journal: Journal) -> None:
    assert not RunOutage(journal).note_worker()
    assert events(journal) == []


def test_answer_to_other_requests_ends_nothing(journal: Journal) -> None:
    """As when Tiled answers 500 to one request only."""
    outage = RunOutage(journal)
    outage.note_refusal("500", away=False)
    outage.note_answer()
    assert events(journal) == ["waiting"]
    outage.note_refusal("refused", away=True)
    outage.note_answer()
    assert events(journal) == ["waiting", "resumed"]


def test_parking_without_known_refusal_is_noted(journal: Journal) -> None:
    RunOutage(journal).note_parking()
    state = read_outage(journal)
    assert state is not None
    assert state.parked == 1


@pytest.mark.parametrize("value", [7, "text", [], {}, {"entry": "1", "since": 0, "reason": "", "away": True}])
def test_damaged_state_is_no_outage(journal: Journal, value: object) -> None:
    journal.set("outage", value)
    assert read_outage(journal) is None
    RunOutage(journal).note_refusal("refused", away=True)
    assert read_outage(journal) is not None


def test_summary_says_since_when_over_all_workers(journal: Journal) -> None:
    outage = RunOutage(journal)
    outage.note_refusal("refused", away=True)
    outage.note_worker()
    assert summarize(journal).why == "Tiled has refused requests for 0 s: refused"


def test_summary_of_parked_run_says_so(journal: Journal) -> None:
    RunOutage(journal).note_refusal("refused", away=True)
    RunOutage(journal).note_parking()
    path = journal.path
    journal.close()
    with Journal(path) as read:
        assert summarize(read).state == "parked"
