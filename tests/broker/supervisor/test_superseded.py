"""Journals are set aside if another holder of the lease has followed their own, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiledbroker import Journal, journal_filename
from tiledbroker._errors import DirectoryUnusable
from tiledbroker.ownership import Lease
from tiledbroker.supervisor._superseded import (
    EarlierStarts,
    count_unfinished,
    record_start,
    record_turn,
    set_aside_superseded,
    set_aside_unfinished,
)

OWN = Lease("first start", "this host", 1, 1)
OTHER = Lease("start of the other", "other host", 2, 1)
NEXT = Lease("next start", "this host", 3, 1)
AFTER = Lease("a start after that", "this host", 4, 1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A journal directory in which the first start of this host has left a run."""
    record_start(tmp_path, OWN.holder)
    set_aside_superseded(tmp_path, OWN, None)
    with Journal(tmp_path / journal_filename("run"), "create", run_uid="run"):
        pass
    record_start(tmp_path, "next start")
    return tmp_path


def runs_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.sqlite"))


@pytest.mark.parametrize("predecessor", [OWN, None])
def test_journals_of_the_holder_before_are_gone_on_with(directory: Path, predecessor: Lease | None) -> None:
    assert set_aside_superseded(directory, NEXT, predecessor) == 0
    assert runs_in(directory) == ["run.sqlite"]


def test_journals_from_before_another_host_s_turn_are_set_aside(directory: Path) -> None:
    assert set_aside_superseded(directory, NEXT, OTHER) == 1
    assert runs_in(directory) == []
    assert runs_in(directory / "superseded" / OWN.holder) == ["run.sqlite"]


def test_finished_journals_stay(directory: Path) -> None:
    (directory / "finished").mkdir()
    (directory / "run.sqlite").rename(directory / "finished/run.sqlite")
    assert set_aside_superseded(directory, NEXT, OTHER) == 0
    assert runs_in(directory / "finished") == ["run.sqlite"]


def test_a_written_run_that_waits_for_its_late_audit_stays(directory: Path) -> None:
    with Journal(directory / "run.sqlite", "write", run_uid="run") as journal:
        journal.set("outcome", "written")
        journal.set("audit_at", 1e12)
    assert set_aside_superseded(directory, NEXT, OTHER) == 0
    assert runs_in(directory) == ["run.sqlite"]


def test_what_a_start_that_never_held_the_lease_recorded_changes_nothing(directory: Path) -> None:
    record_start(directory, "a start after that")
    assert set_aside_superseded(directory, AFTER, OWN) == 0


def test_a_start_that_died_before_it_could_say_that_it_holds_the_lease_has_held_it(directory: Path) -> None:
    record_start(directory, "a start after that")
    died = Lease("next start", "this host", 2, 1)
    assert set_aside_superseded(directory, AFTER, died) == 0


def test_a_start_that_died_so_after_another_host_s_turn_does_not_hide_that(directory: Path) -> None:
    record_start(directory, AFTER.holder)
    assert set_aside_superseded(directory, AFTER, NEXT) == 1
    assert runs_in(directory / "superseded" / OWN.holder) == ["run.sqlite"]


def test_an_interrupted_move_is_finished_by_the_next_start(directory: Path) -> None:
    with Journal(directory / journal_filename("another"), "create", run_uid="another"):
        pass
    folder = directory / "superseded" / OWN.holder
    folder.mkdir(parents=True)
    (directory / "another.sqlite").rename(folder / "another.sqlite")
    record_start(directory, "a start after that")
    assert set_aside_superseded(directory, AFTER, OTHER) == 1
    assert runs_in(folder) == ["another.sqlite", "run.sqlite"]


def test_what_a_killed_worker_left_beside_its_journal_goes_with_it(directory: Path) -> None:
    (directory / "run.sqlite").write_bytes(b"damaged")
    (directory / "run.sqlite.lock").touch()
    (directory / "notes.txt").touch()
    set_aside_superseded(directory, NEXT, OTHER)
    folder = directory / "superseded" / OWN.holder
    assert sorted(path.name for path in folder.iterdir()) == ["run.sqlite", "run.sqlite.lock"]
    assert (folder / "run.sqlite").read_bytes() == b"damaged"
    assert (directory / "notes.txt").exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '[""]', "\x00"])
def test_a_record_that_cannot_be_read_is_no_permission_to_write(directory: Path, content: str) -> None:
    (directory / ".lease-turn").write_text(content)
    with pytest.raises(DirectoryUnusable, match="remove it"):
        record_start(directory, "a start after that")
    assert runs_in(directory) == ["run.sqlite"]


def test_each_start_gets_an_epoch_above_those_before_it(tmp_path: Path) -> None:
    assert record_start(tmp_path, "first start") == EarlierStarts("", 1, have_served=False)
    assert record_start(tmp_path, "second start") == EarlierStarts("first start", 2, have_served=False)
    record_turn(tmp_path, Lease("second start", "this host", 2, 1))
    assert record_start(tmp_path, "third start") == EarlierStarts("second start", 3, have_served=True)
    assert record_start(tmp_path, "fourth start") == EarlierStarts("third start", 4, have_served=True)


def test_unfinished_journals_are_counted_and_set_aside(directory: Path) -> None:
    assert count_unfinished(directory) == 1
    assert set_aside_unfinished(directory, "others may have gone on with them") == 1
    assert count_unfinished(directory) == 0
    assert runs_in(directory / "superseded" / OWN.holder) == ["run.sqlite"]
