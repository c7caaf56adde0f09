"""Decisions about a run are in its ledger, and before that where other hosts find them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tiledbroker import Journal
from tiledbroker._errors import StoreUnavailable
from tiledbroker.ownership import RUNS_SUBDIRECTORY, DecisionFile, DirectoryStore, RunDecisions, TableRewrite
from tiledwriter.catalog import Decisions, MemoryLedger

JournalOf: TypeAlias = Callable[[str], Journal]
REWRITE = TableRewrite("run/primary/internal_rewrite", [["x", "double"]], 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return DirectoryStore.create(tmp_path / "leases").path / RUNS_SUBDIRECTORY / "run.json"


@pytest.fixture
def journal_of(tmp_path: Path) -> Iterator[JournalOf]:
    """Opens the run's journal on a host."""
    with ExitStack() as opened:
        yield lambda host: opened.enter_context(Journal(tmp_path / f"{host}.sqlite", "create", run_uid="run"))


def begin(journal: Journal, path: Path) -> Decisions:
    """The decisions of a process that begins to write the run."""
    decisions = Decisions(journal, DecisionFile(path))
    decisions.load()
    return decisions


@pytest.mark.parametrize("kept", ["in memory", "in a journal", "in a journal and a file"])
def test_what_is_recorded_is_what_was_decided(kept: str, journal_of: JournalOf, path: Path) -> None:
    ledger = MemoryLedger("run") if kept == "in memory" else journal_of("a")
    decisions = Decisions(ledger, DecisionFile(path) if kept.endswith("file") else None)
    decisions.load()
    assert decisions.made == RunDecisions()
    decisions.record(max_array_size=0, column_types=[("primary", "x", "float64")])
    decisions.record(rewrites={"run/primary/internal": REWRITE}, disturbed=["run/primary/wave"])
    decisions.record(disturbed=[])
    made = RunDecisions(
        max_array_size=0, column_types=[("primary", "x", "float64")], rewrites={"run/primary/internal": REWRITE}
    )
    assert decisions.made == Decisions(ledger).made == made
    assert [list(column) for column in ledger.get("column_types")] == [["primary", "x", "float64"]]
    assert ledger.get("disturbed") is None
    assert DecisionFile(path).load() == (made if kept.endswith("file") else None)


def test_another_host_goes_on_with_the_decisions(journal_of: JournalOf, path: Path) -> None:
    first, own = begin(journal_of("a"), path), journal_of("b")
    first.record(max_array_size=16, repairs={"node": 1})
    second = begin(own, path)
    assert second.made == first.made
    assert [(entry.event, entry.detail) for entry in own.history()] == [
        ("decisions taken over", {"max_array_size": 16, "repairs": {"node": 1}})
    ]
    second.record(max_array_size=0)
    assert begin(own, path).made == RunDecisions(max_array_size=0, repairs={"node": 1})
    assert len(own.history()) == 1


def test_a_journal_that_has_decisions_is_right(journal_of: JournalOf, path: Path) -> None:
    own = journal_of("a")
    begin(own, path).record(max_array_size=16, repairs={"node": 5})
    own.set("repairs", None)  # as a person has the run retried
    assert begin(own, path).made == DecisionFile(path).load() == RunDecisions(max_array_size=16)


def test_decisions_are_kept_until_the_end_and_again_if_more_documents_come(journal_of: JournalOf, path: Path) -> None:
    own = journal_of("a")
    decisions = begin(own, path)
    decisions.record(max_array_size=16)
    decisions.share(outcome="interrupted")
    own.set("outcome", "interrupted")
    assert DecisionFile(path).load() is None
    decisions = begin(own, path)
    assert DecisionFile(path).load() == RunDecisions(max_array_size=16)
    decisions.record(max_array_size=0)
    assert DecisionFile(path).load() == RunDecisions(max_array_size=0)


def test_a_decision_that_other_hosts_cannot_find_is_not_made(journal_of: JournalOf, path: Path) -> None:
    own = journal_of("a")
    decisions = begin(own, path)
    decisions.record(max_array_size=16)
    shared = path.parent.parent
    shared.rename(shared.with_name("away"))
    with pytest.raises(StoreUnavailable, match="Mount the directory"):
        decisions.record(max_array_size=0)
    assert decisions.made.max_array_size == own.get("max_array_size") == 16
    with pytest.raises(StoreUnavailable, match="Mount the directory"):
        begin(journal_of("b"), path)


def test_decisions_are_taken_over_as_a_whole(
    journal_of: JournalOf, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = RunDecisions(max_array_size=0, repairs={"node": 1}, slowest_append=9.0)
    DecisionFile(path).store(made)
    own = journal_of("b")
    set_value = own.set

    def set_or_fail(key: str, value: Any) -> None:
        if key == "slowest_append":
            raise sqlite3.OperationalError("database or disk is full")
        set_value(key, value)

    with monkeypatch.context() as patch:
        patch.setattr(own, "set", set_or_fail)
        with pytest.raises(sqlite3.OperationalError):
            begin(own, path)
    assert Decisions(own).made == RunDecisions()
    assert begin(own, path).made == made
