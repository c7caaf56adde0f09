"""A file keeps what was decided about a run, and what cannot be read never means that nothing was decided."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import pytest

from tiledbroker import Journal
from tiledbroker._errors import StoreUnavailable
from tiledbroker.ownership import (
    DECISIONS,
    RUNS_SUBDIRECTORY,
    DecisionFile,
    DirectoryStore,
    RunDecisions,
    TableRewrite,
)

ALL_MADE = RunDecisions(
    max_array_size=0,
    column_types=[("primary", "x", "float64")],
    refused_mimetypes=["image/png"],
    rewrites={"run/primary/internal": TableRewrite("run/primary/internal_rewrite", [["x", "double"]], 20)},
    repairs={"run/primary/internal": 2},
    disturbed=["run/primary/wave"],
    slowest_append=12.5,
    late_audit=True,
    probe_table="run/probe",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return DirectoryStore.create(tmp_path / "leases").path / RUNS_SUBDIRECTORY / "run.json"


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def test_another_host_finds_all_that_was_decided(path: Path) -> None:
    store = DecisionFile(path)
    assert store.load() is None
    for decisions in (RunDecisions(max_array_size=16), ALL_MADE, RunDecisions(max_array_size=16), ALL_MADE):
        store.store(decisions)
        assert DecisionFile(path).load() == decisions
    assert names(path) == ["run.json"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("outcome", ["written", "interrupted"])
def test_nothing_is_kept_about_a_complete_run(path: Path, outcome: str) -> None:
    store = DecisionFile(path)
    store.store(ALL_MADE)
    store.store(msgspec.structs.replace(ALL_MADE, outcome=outcome))
    assert names(path) == []
    assert DecisionFile(path).load() is None
    store.store(ALL_MADE)
    assert DecisionFile(path).load() == ALL_MADE


def test_a_process_that_others_have_overtaken_replaces_nothing(path: Path) -> None:
    old, new = DecisionFile(path), DecisionFile(path)
    old.store(RunDecisions(max_array_size=16))
    assert new.load() is not None
    new.store(ALL_MADE)
    with pytest.raises(StoreUnavailable, match="another process has changed it"):
        old.store(RunDecisions(max_array_size=16))
    assert DecisionFile(path).load() == ALL_MADE
    new.store(msgspec.structs.replace(ALL_MADE, outcome="written"))
    with pytest.raises(StoreUnavailable, match="another process has changed it"):
        old.store(RunDecisions(max_array_size=16))


@pytest.mark.parametrize("damage", ["empty", "half", "one bit", "garbage", "another file", "unknown field", "newer"])
def test_what_is_damaged_says_so_and_stays_as_it_is(path: Path, damage: str) -> None:
    store = DecisionFile(path)
    store.store(ALL_MADE)
    contents = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "half": contents[: len(contents) // 2],
            "one bit": contents.replace(b'"run/probe"', b'"run/prone"'),
            "garbage": bytes(range(256)),
            "another file": b'{"version": 1}',
            "unknown field": contents.replace(b'"late_audit"', b'"late_audio"'),
            "newer": b'{"version": 2, "revision": "of another kind"}',
        }[damage]
    )
    damaged = path.read_bytes()
    advice = "Use that version on all ingest hosts" if damage == "newer" else "Nothing of the run is written until"
    for use in (store.load, lambda: store.store(ALL_MADE), DecisionFile(path).load):
        with pytest.raises(StoreUnavailable, match=advice) as refusal:
            use()
        assert refusal.value.place == str(path)
    assert path.read_bytes() == damaged


def test_a_directory_that_is_not_mounted_does_not_mean_that_nothing_was_decided(tmp_path: Path) -> None:
    store = DecisionFile(tmp_path / "leases" / RUNS_SUBDIRECTORY / "run.json")
    for mounted in (False, True):
        if mounted:
            (tmp_path / "leases").mkdir()
        for use in (store.load, lambda: store.store(ALL_MADE)):
            with pytest.raises(StoreUnavailable, match=r"Mount the directory that all ingest hosts share\."):
                use()
    assert not list((tmp_path / "leases").iterdir())


def test_a_full_disk_leaves_what_was_stored(small_disk: Path) -> None:
    path = DirectoryStore.create(small_disk / "leases").path / RUNS_SUBDIRECTORY / "run.json"
    store = DecisionFile(path)
    store.store(ALL_MADE)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(StoreUnavailable, match="No space left"):
        store.store(RunDecisions(max_array_size=16))
    assert DecisionFile(path).load() == ALL_MADE
    filler.unlink()
    store.store(RunDecisions(max_array_size=16))
    assert names(path) == ["run.json"]


def test_a_process_that_is_killed_while_it_stores_leaves_one_decision_or_the_other(path: Path) -> None:
    DecisionFile(path).store(RunDecisions(max_array_size=0))
    script = f"""
        import itertools
        from pathlib import Path
        from tiledbroker.ownership import DecisionFile, RunDecisions

        store = DecisionFile(Path({str(path)!r}))
        store.load()
        for size in itertools.count(1):
            store.store(RunDecisions(max_array_size=size, disturbed=["node"] * 1000))
            print(size, flush=True)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        for _ in range(50):
            told = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        told = max([told, *map(int, process.stdout.read().split())])
    found = DecisionFile(path).load()
    assert found is not None
    assert found.max_array_size in (told, told + 1)


def test_a_file_is_durable_before_it_has_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = DecisionFile(path)
    store.store(RunDecisions(max_array_size=16))
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        done.append(f"synced {Path(f'/proc/self/fd/{descriptor}').readlink().name.partition('-')[0]}")
        sync(descriptor)

    def note_replace(new: Path, target: Path) -> Path:
        done.append("renamed")
        return replace(new, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    store.store(ALL_MADE)
    assert done == ["synced .new", "renamed", "synced runs"]


def test_a_journal_keeps_each_decision_under_its_name(tmp_path: Path) -> None:
    with Journal(tmp_path / "run.sqlite", "create", run_uid="run") as journal:
        assert RunDecisions.of(journal.get) == RunDecisions()
        recorded = ALL_MADE.recorded()
        assert set(recorded) == set(DECISIONS) - {"outcome"}
        for name, value in recorded.items():
            journal.set(name, value)
        assert RunDecisions.of(journal.get) == ALL_MADE
        journal.set("column_types", "float64")
        with pytest.raises(ValueError, match="damaged"):
            RunDecisions.of(journal.get)
