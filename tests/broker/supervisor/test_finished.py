"""Journals of finished runs are put aside, are found there, and come back when there is something to do for a run."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from runs import documents, publish, seq_nums, wait_for_outcome
from stored_runs import add, journaled
from warm import run_process

from tiledbroker import Journal, JournalInvalid, JournalLocked, ZMQPublisher, run_files
from tiledbroker.log._journal_files import FINISHED_SUBDIRECTORY, find_run_file, unfinished_run_files
from tiledbroker.log._lock import FileLock
from tiledbroker.supervisor._finished import bring_back, file_away, is_finished
from tiledbroker.supervisor._retry import RetryWatch, request_retry
from tiledbroker.supervisor._survey import Survey
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main
from tiledwriter.testing import SupervisorProcess, TiledServer, wait_until

pytestmark = [pytest.mark.filterwarnings("default:::tiled")]


def finished_journal(directory: Path, uid: str = "run", outcome: str | None = "written", **state: Any) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / f"{uid}.sqlite"
    with Journal(path, "create", run_uid=uid) as journal:
        journal.append_one("start", b"a start")
        journal.append_one("stop", b"a stop")
        for key, value in {"outcome": outcome, **state}.items():
            journal.set(key, value)
        if outcome:
            journal.note(outcome)
    return path


def everything_in(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


# Moving


def test_a_journal_is_moved_and_leaves_nothing(tmp_path: Path) -> None:
    path = finished_journal(tmp_path)
    assert file_away(path)
    assert everything_in(tmp_path) == {"finished/run.sqlite"}
    assert (tmp_path / FINISHED_SUBDIRECTORY).stat().st_mode & 0o777 == 0o700
    assert bring_back(tmp_path / FINISHED_SUBDIRECTORY / path.name) == path
    assert everything_in(tmp_path) == {"run.sqlite"}
    with Journal(path) as journal:
        assert [record.body for record in journal.records()] == [b"a start", b"a stop"]


def test_a_journal_that_is_at_home_stays_there(tmp_path: Path) -> None:
    path = finished_journal(tmp_path)
    assert bring_back(path) == path
    assert path.exists()


def test_a_journal_that_is_being_written_is_not_moved(tmp_path: Path) -> None:
    path = finished_journal(tmp_path)
    with Journal(path, "write"):
        assert not file_away(path)
    assert path.exists()
    assert file_away(path)
    with Journal(path, "write"), pytest.raises(JournalLocked):
        bring_back(tmp_path / FINISHED_SUBDIRECTORY / path.name)


def test_a_journal_with_something_in_its_log_is_not_moved(tmp_path: Path) -> None:
    path = finished_journal(tmp_path)
    with Journal(path, "write") as journal, Journal(path):  # the reader closes last, after the lock is free
        journal.note("something")
        journal.close()
        assert not file_away(path)
    assert file_away(path)
    with Journal(path) as journal:
        assert [entry.event for entry in journal.history()] == ["written", "something"]


def test_a_journal_does_not_come_back_without_its_log(tmp_path: Path) -> None:
    path = finished_journal(tmp_path / FINISHED_SUBDIRECTORY)
    with Journal(path, "write") as journal, Journal(path):  # the reader closes last, after the lock is free
        journal.note("something")
        journal.close()
        with pytest.raises(JournalLocked):
            bring_back(path)
    assert bring_back(path) == tmp_path / path.name


def test_what_is_filed_away_stays_there(tmp_path: Path) -> None:
    path = finished_journal(tmp_path / FINISHED_SUBDIRECTORY)
    assert file_away(path)
    assert run_files(tmp_path) == [path]


def test_no_journal_takes_the_place_of_another(tmp_path: Path) -> None:
    file_away(finished_journal(tmp_path))
    copy = finished_journal(tmp_path, outcome="interrupted")
    for move, path in ((file_away, copy), (bring_back, tmp_path / FINISHED_SUBDIRECTORY / copy.name)):
        with pytest.raises(JournalInvalid, match="same name"):
            move(path)
    outcomes = []
    for path in run_files(tmp_path):
        with Journal(path) as journal:
            outcomes.append(journal.get("outcome"))
    assert sorted(outcomes) == ["interrupted", "written"]


def test_no_journal_is_put_in_front_of_the_log_of_another(tmp_path: Path) -> None:
    path = finished_journal(tmp_path / FINISHED_SUBDIRECTORY)
    (tmp_path / f"{path.name}-wal").write_bytes(b"something")
    with pytest.raises(JournalInvalid, match="would take"):
        bring_back(path)
    assert path.exists()


@pytest.mark.parametrize(
    ("state", "finished"),
    [
        ({"outcome": "written"}, True),
        ({"outcome": "interrupted"}, True),
        ({"outcome": "failed"}, False),
        ({"outcome": None}, False),
        ({"outcome": ["written"]}, False),
        ({"outcome": "written", "audit_at": 1e12}, False),
        ({"outcome": "written", "run_uid": "another"}, False),
    ],
)
def test_only_what_is_in_tiled_and_not_to_be_audited_is_finished(
    state: dict[str, Any], finished: bool, tmp_path: Path
) -> None:
    path = finished_journal(tmp_path, outcome=None)
    with closing(sqlite3.connect(path)) as connection:
        for key, value in state.items():
            connection.execute("INSERT OR REPLACE INTO state VALUES(?, ?)", (key, json.dumps(value)))
        connection.commit()
    assert is_finished(path) is finished


def test_what_is_no_journal_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "directory.sqlite").mkdir()
    (tmp_path / "rubbish.sqlite").write_bytes(b"rubbish" * 1000)
    (tmp_path / "empty.sqlite").touch()
    with closing(sqlite3.connect(tmp_path / "foreign.sqlite")) as connection:
        connection.execute("CREATE TABLE state(key, value)")
        connection.execute("""INSERT INTO state VALUES('outcome', '"written"'), ('run_uid', '"foreign"')""")
        connection.commit()
    with closing(sqlite3.connect(finished_journal(tmp_path, "nested"))) as connection:
        connection.execute("UPDATE state SET value = ? WHERE key = 'outcome'", ("[" * 100_000,))
        connection.commit()
    names = ["directory", "rubbish", "empty", "foreign", "nested", "none"]
    assert [is_finished(tmp_path / f"{name}.sqlite") for name in names] == [False] * 6


@pytest.mark.parametrize(
    "statement", ["PRAGMA user_version = 99", "DROP TABLE documents", "CREATE TABLE more(x)"], ids=lambda text: text[:6]
)
def test_a_journal_that_cannot_be_read_as_one_is_not_finished(statement: str, tmp_path: Path) -> None:
    path = finished_journal(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()
    assert not is_finished(path)


# Finding


def test_run_files_are_listed_from_both_places_and_those_that_are_not_finished_alone(tmp_path: Path) -> None:
    paths = [finished_journal(tmp_path, uid) for uid in ("b", "a", "c")]
    file_away(paths[1])
    (tmp_path / FINISHED_SUBDIRECTORY / "_other.sqlite").touch()
    assert run_files(tmp_path) == [tmp_path / FINISHED_SUBDIRECTORY / "a.sqlite", paths[0], paths[2]]
    assert unfinished_run_files(tmp_path) == [paths[0], paths[2]]
    assert [find_run_file(tmp_path, uid) for uid in ("a", "b", "d")] == [
        *(tmp_path / FINISHED_SUBDIRECTORY / "a.sqlite", paths[0]),
        tmp_path / "d.sqlite",
    ]


def test_what_cannot_be_read_is_not_taken_for_empty(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for read in (run_files, unfinished_run_files):
        for name in ("file", "nowhere"):
            with pytest.raises(OSError, match=name):
                read(tmp_path / name)
    (tmp_path / FINISHED_SUBDIRECTORY).touch()
    with pytest.raises(OSError, match=FINISHED_SUBDIRECTORY):
        run_files(tmp_path)
    (tmp_path / FINISHED_SUBDIRECTORY).unlink()
    (tmp_path / FINISHED_SUBDIRECTORY).symlink_to(tmp_path / "not mounted")
    with pytest.raises(OSError, match=FINISHED_SUBDIRECTORY):
        run_files(tmp_path)


def test_a_journal_is_opened_wherever_it_has_been_moved(tmp_path: Path) -> None:
    path = finished_journal(tmp_path)
    file_away(path)
    for mode in ("read", "inspect", "write"):
        with Journal(path, mode) as journal:  # type: ignore[arg-type]
            assert journal.path == tmp_path / FINISHED_SUBDIRECTORY / path.name
    bring_back(tmp_path / FINISHED_SUBDIRECTORY / path.name)
    with Journal(tmp_path / FINISHED_SUBDIRECTORY / path.name) as journal:
        assert journal.path == path


def test_commands_find_finished_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = journaled(documents(), tmp_path / "journals")
    with Journal(path, "write") as journal:
        journal.set("outcome", "written")
        journal.note("written")
    assert file_away(path)
    directory = str(tmp_path / "journals")
    for command in (
        ["ls", directory],
        ["show", path.stem, directory],
        ["show", path.stem[:8], directory],
        ["show", str(path)],
        ["tail", path.stem, directory],
        ["export", path.stem, str(tmp_path / "out.jsonl"), directory],
        ["verify", directory],
        ["verify", path.stem, directory],
    ):
        # Nothing of it is in Tiled, which `verify` finds out.
        assert main(command) == (ExitCode.DIFFERS if command[0] == "verify" else ExitCode.OK), command
        assert capsys.readouterr().out
    assert main(["prune", directory, "--older-than", "0"]) == 0
    assert run_files(tmp_path / "journals") == []


# Surveys


def test_a_survey_looks_at_what_is_most_likely_unfinished_first(tmp_path: Path) -> None:
    for number, name in enumerate(["old", "new", "in_use", "older"]):
        path = tmp_path / f"{name}.sqlite"
        path.touch()
        os.utime(path, (age := {"old": 100, "new": 300, "in_use": 50, "older": 90}[name], age + number))
    (tmp_path / "in_use.sqlite-wal").touch()
    (tmp_path / ".draft.sqlite").touch()
    (tmp_path / "old.sqlite.lock").touch()
    seen: list[str] = []

    def look(path: Path) -> None:
        seen.append(path.stem)
        if path.stem == "new":
            raise RuntimeError("as the test wants it")

    survey = Survey([tmp_path], look)
    wait_until(survey.proceed, 60, "it is done")
    assert seen == ["in_use", "new", "old", "older"]
    assert survey.next_at() is None
    assert (survey.seen, survey.failures) == (4, 1)


def test_a_survey_works_for_a_moment_at_a_time(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.sqlite").touch()
    seen: list[Path] = []

    def look(path: Path) -> None:
        seen.append(path)
        time.sleep(0.003)

    survey = Survey([tmp_path], look)
    while not seen:
        survey.proceed()
    assert len(seen) <= 3
    pause = survey.next_at()
    assert pause is not None
    assert pause > time.monotonic()


def test_a_survey_of_several_directories_looks_at_the_first_file_of_a_name(tmp_path: Path) -> None:
    for name in ("top/b", "top/a", "finished/b", "finished/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.sqlite").touch()
    seen: list[str] = []
    survey = Survey(
        [tmp_path / "top", tmp_path / "finished"], lambda path: seen.append(f"{path.parent.name}/{path.stem}")
    )
    wait_until(survey.proceed, 60, "it is done")
    assert sorted(seen[:2]) == ["top/a", "top/b"]
    assert seen[2:] == ["finished/c"]


# Requests


def test_requests_are_looked_for_when_something_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans: list[Path] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (scans.append(path), real(path))[1])
    path = finished_journal(tmp_path, outcome="failed")
    os.utime(tmp_path, (1.0, 1.0))
    watch = RetryWatch(tmp_path)
    for _ in range(5):
        watch._next_at = 0.0
        assert watch.find_requests() == []
    assert scans.count(tmp_path) == 1
    request_retry(path)
    watch._next_at = 0.0
    assert watch.find_requests() == [path]
    assert watch.find_requests() == []  # too soon after the last one
    watch._next_at = 0.0
    assert watch.find_requests() == [path]  # as long as it is there


# With a supervisor


@pytest.fixture
def supervise(tmp_path: Path, tiled_server: TiledServer) -> Iterator[Callable[..., SupervisorProcess]]:
    """Makes supervisors, not started."""
    made: list[SupervisorProcess] = []

    def make(crash_at: str = "") -> SupervisorProcess:
        environment = {"TILEDWRITER_QUIET_PERIOD": "1"}
        if crash_at:
            once = str(tmp_path / "crashed")
            environment |= {"TILEDWRITER_CRASH_AT": crash_at, "TILEDWRITER_CRASH_ONCE": once}
        made.append(SupervisorProcess(tmp_path / "journals", tiled_server, environment=environment))
        return made[-1]

    yield make
    for process in made:
        process.stop()


def put_into(folder: Path, journal: Path) -> Path:
    """Move a journal to a folder, as somebody who puts a backup back."""
    folder.mkdir(exist_ok=True)
    return journal.rename(folder / journal.name)


def wait_until_finished(journal_dir: Path, uid: str) -> None:
    wait_until(
        (journal_dir / FINISHED_SUBDIRECTORY / f"{uid}.sqlite").exists, 60, f"the journal of run {uid} is filed away"
    )


def interrupted_run(journal_dir: Path, emitted: list[tuple[str, Any]], length: int) -> str:
    """The journal of a run that was given up after some documents; nobody has written it yet."""
    path = journaled(emitted[:length], journal_dir)
    with Journal(path, "write") as journal:
        journal.set("abandoned", True)
    return path.stem


def test_a_run_that_is_written_is_filed_away(
    supervise: Callable[..., SupervisorProcess], publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    with supervise() as supervisor:
        publisher = publisher_to(supervisor)
        uid = publish(publisher, documents())
        assert publisher.wait_written(uid, timeout=60)
        wait_until_finished(supervisor.journal_dir, uid)
        assert unfinished_run_files(supervisor.journal_dir) == []
        again = publisher_to(supervisor)
        assert again.wait_written(uid, timeout=60)  # one that asks later is told, too


@pytest.mark.parametrize("crash_at", ["", "supervisor: journal brought back", "supervisor: journal filed away"])
def test_documents_after_the_end_bring_a_journal_back_whenever_the_supervisor_is_killed(
    crash_at: str,
    supervise: Callable[..., SupervisorProcess],
    publisher_to: Callable[[SupervisorProcess], ZMQPublisher],
    tiled_server: TiledServer,
    tmp_path: Path,
) -> None:
    emitted = documents(events=6)
    supervisor = supervise(crash_at)
    uid = interrupted_run(supervisor.journal_dir, emitted, 5)

    def revive() -> bool:
        if not supervisor.running:
            supervisor.kill()  # which only closes its log
            supervisor.start()
        return True

    def is_at_rest(outcome: str) -> bool:
        revive()
        with Journal(supervisor.journal_dir / f"{uid}.sqlite") as journal:
            return journal.get("outcome") == outcome and journal.path.parent.name == FINISHED_SUBDIRECTORY

    with supervisor:
        wait_until(lambda: is_at_rest("interrupted"), 60, "it is filed away")
        publisher = publisher_to(supervisor)
        publish(publisher, emitted)
        wait_until(lambda: is_at_rest("written"), 60, "it is filed away again")
        wait_until(lambda: revive() and publisher.flush(1.0), 60, "all is shipped")
    assert (tmp_path / "crashed").exists() is bool(crash_at)
    assert seq_nums(tiled_server, uid) == list(range(1, 7))
    with Journal(find_run_file(supervisor.journal_dir, uid)) as journal:
        assert journal.length == len(emitted)
    assert len(run_files(supervisor.journal_dir)) == 1


def test_a_flat_directory_of_an_earlier_version_is_sorted_while_its_open_run_is_resumed(
    supervise: Callable[..., SupervisorProcess], tiled_server: TiledServer
) -> None:
    supervisor = supervise()
    supervisor.journal_dir.mkdir(mode=0o700)
    model = finished_journal(supervisor.journal_dir, "run-0")
    for number in range(1, 300):
        copy = supervisor.journal_dir / f"run-{number}.sqlite"
        shutil.copyfile(model, copy)
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("UPDATE state SET value = ? WHERE key = 'run_uid'", (f'"run-{number}"',))
            connection.commit()
        copy.with_name(copy.name + ".lock").touch()
    failed = finished_journal(supervisor.journal_dir, "failed", outcome="failed")
    open_run = journaled(documents(), supervisor.journal_dir)
    with supervisor:
        assert wait_for_outcome(supervisor.journal_dir, open_run.stem) == "written"
        wait_until(lambda: unfinished_run_files(supervisor.journal_dir) == [failed], 60, "they are filed away")
    assert len(run_files(supervisor.journal_dir)) == 302
    assert not FileLock(failed.with_name(failed.name + ".lock")).held
    assert not [path for path in everything_in(supervisor.journal_dir) if path.startswith("run-")]
    assert seq_nums(tiled_server, open_run.stem) == [1, 2, 3]


def test_a_journal_that_somebody_reads_is_filed_away_later(
    supervise: Callable[..., SupervisorProcess], publisher_to: Callable[[SupervisorProcess], ZMQPublisher]
) -> None:
    with supervise() as supervisor:
        publisher = publisher_to(supervisor)
        emitted = documents()
        uid = publish(publisher, emitted[:-1])
        assert publisher.flush(60)
        with Journal(supervisor.journal_dir / f"{uid}.sqlite") as reader:
            publish(publisher, emitted[-1:])
            assert publisher.wait_written(uid, timeout=60)
            wait_until(lambda: not supervisor.workers(), 60, "its worker has ended")
            assert reader.refresh() == len(emitted)
            assert (supervisor.journal_dir / f"{uid}.sqlite").exists()
        wait_until_finished(supervisor.journal_dir, uid)


@pytest.mark.parametrize("folder", [".", FINISHED_SUBDIRECTORY])
def test_draining_an_interrupted_run_files_it_away_wherever_it_was(
    folder: str, tmp_path: Path, tiled_server: TiledServer
) -> None:
    uid = interrupted_run(tmp_path / "journals", documents(), 4)
    put_into(tmp_path / "journals" / folder, tmp_path / "journals" / f"{uid}.sqlite")
    command = [sys.executable, "-m", "tiledwriter.cli.supervisor", "--tiled", tiled_server.uri, "--drain"]
    environment = {**os.environ, "TILED_API_KEY": tiled_server.api_key}
    done = run_process([*command, "--journal-dir", str(tmp_path / "journals")], env=environment, timeout=60)
    assert done.returncode == 0
    assert run_files(tmp_path / "journals") == [tmp_path / "journals" / FINISHED_SUBDIRECTORY / f"{uid}.sqlite"]
    with Journal(find_run_file(tmp_path / "journals", uid), "write") as journal:
        add(journal, [("event", {"uid": "x"})])  # it can be written as ever
