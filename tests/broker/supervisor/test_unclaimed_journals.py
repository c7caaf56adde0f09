"""Journals wait until this host may write their runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker.supervisor._journal_facts import JournalFacts
from tiledbroker.supervisor._lifecycle import State
from tiledbroker.supervisor._run_owner import SoleOwner
from tiledbroker.supervisor._unclaimed_journals import UnclaimedJournals


class Claims(SoleOwner):
    """Owns the runs that a test says."""

    def __init__(self) -> None:
        self.owned: set[str] = set()
        self.wanted: set[str] = set()

    def owns(self, run_uid: str) -> bool:
        return run_uid in self.owned

    def want(self, run_uid: str) -> None:
        self.wanted.add(run_uid)


def facts(uid: str, state: State = State.STARTING, *, unavailable: bool = False) -> JournalFacts:
    return JournalFacts(uid, Path(f"{uid}.sqlite"), state, unavailable=unavailable)


@pytest.fixture
def claims() -> Claims:
    return Claims()


def test_journal_is_taken_once_when_its_run_is_claimed(claims: Claims) -> None:
    journals = UnclaimedJournals(claims)
    journals.add(facts("one"))
    journals.add(facts("two"))
    assert claims.wanted == {"one", "two"}
    assert journals.take_claimed() == []
    claims.owned.add("two")
    assert journals.take_claimed() == [Path("two.sqlite")]
    assert journals.take_claimed() == []
    assert len(journals) == 1


def test_only_unfinished_runs_have_to_be_claimed(claims: Claims) -> None:
    journals = UnclaimedJournals(claims)
    assert not journals.may_write(facts("run"))
    assert journals.may_write(facts("run", State.WRITTEN))
    assert journals.may_write(facts("run", State.FAILED, unavailable=True))
    assert not journals.may_write(facts("run", State.FAILED))
    claims.owned.add("run")
    assert journals.may_write(facts("run"))
