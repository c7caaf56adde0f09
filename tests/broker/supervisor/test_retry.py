"""A run in quarantine is tried again once the cause is mended, and nothing else is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from event_model import compose_run
from paths import search_path
from runs import metadata, seq_nums
from stored_runs import NUMBER, Documents, a_run, journaled, uid_of

from tiledbroker import Journal, RunNotWritten, ZMQPublisher
from tiledbroker.log._lock import FileLock
from tiledbroker.supervisor._retry import clear_failure, retry_requests
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main
from tiledwriter.testing import SupervisorProcess, TiledServer, journal_of, wait_until

pytestmark = [pytest.mark.filterwarnings("default:::tiled"), pytest.mark.timeout(300)]


def quarantined(directory: Path, reason: str = "as the test wants it") -> Path:
    path = journaled(a_run(), directory)
    with Journal(path, "write") as journal:
        journal.set("outcome", "failed")
        journal.set("reason", reason)
        journal.set("repairs", {"run/primary/internal": 6})
    return path


def outcome_of(path: Path) -> Any:
    with Journal(path) as journal:
        return journal.get("outcome")


def test_without_a_supervisor_the_run_is_taken_out_of_quarantine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = quarantined(tmp_path)
    assert main(["retry", path.stem, str(tmp_path)]) == ExitCode.OK
    assert f"the next one with {tmp_path} as its journal directory will resume it" in capsys.readouterr().out
    with Journal(path) as journal:
        assert [journal.get(key) for key in ("outcome", "reason", "repairs")] == [None, None, None]
        (entry,) = journal.history()
    assert (entry.event, entry.detail) == ("retry requested", {"reason": "as the test wants it"})
    assert retry_requests(tmp_path) == []


def test_a_supervisor_that_is_running_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = quarantined(tmp_path)
    lock = FileLock(tmp_path / ".supervisor.lock")
    lock.acquire()
    assert main(["retry", str(path)]) == ExitCode.OK
    lock.release()
    assert "the supervisor was asked" in capsys.readouterr().out
    assert (outcome_of(path), retry_requests(tmp_path)) == ("failed", [path])


def test_a_run_whose_journal_is_in_use_is_left_to_the_next_supervisor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = quarantined(tmp_path)
    with Journal(path, "write"):
        assert main(["retry", str(path)]) == ExitCode.OK
    assert "a process still has the journal open" in capsys.readouterr().out
    assert (outcome_of(path), retry_requests(tmp_path)) == ("failed", [path])


@pytest.mark.parametrize("outcome", [None, "written", "interrupted"])
def test_a_run_that_is_not_in_quarantine_is_left_as_it_is(outcome: str | None, tmp_path: Path) -> None:
    path = quarantined(tmp_path)
    with Journal(path, "write") as journal:
        journal.set("outcome", outcome)
    assert main(["retry", str(path)]) == ExitCode.FAILED
    assert not clear_failure(path)
    with Journal(path) as journal:
        assert (journal.get("outcome"), journal.history()) == (outcome, [])
    assert retry_requests(tmp_path) == []


def test_all_runs_in_quarantine_are_tried_again_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = [quarantined(tmp_path) for _ in range(3)]
    fine = journaled(a_run(), tmp_path)
    assert main(["retry", "--all", str(tmp_path)]) == ExitCode.OK
    assert capsys.readouterr().out.count("is out of quarantine") == 3
    assert [outcome_of(path) for path in failed] == [None] * 3
    with Journal(fine) as journal:
        assert journal.history() == []
    assert main(["retry", "--all", str(tmp_path)]) == ExitCode.OK
    assert f"none of the 4 runs in {tmp_path} is in quarantine" in capsys.readouterr().out


def test_a_journal_that_was_set_aside_is_not_retried(tmp_path: Path, monkeypatch, capsys) -> None:
    folder = tmp_path / "superseded" / "7"
    folder.mkdir(parents=True)
    path = quarantined(folder)
    monkeypatch.chdir(folder)
    for arguments in ([str(path)], [path.name], [path.stem, str(folder)], ["--all", str(folder)]):
        assert main(["retry", *arguments]) == ExitCode.FAILED
        ended = capsys.readouterr()
        assert "no supervisor will resume it" in ended.err
        assert "out of quarantine" not in ended.out
    assert (outcome_of(path), retry_requests(folder)) == ("failed", [])


def test_a_journal_that_is_not_finished_and_lies_among_the_finished_ones_is_not_retried(tmp_path: Path, capsys) -> None:
    path = quarantined(tmp_path / "finished")
    for arguments in ([str(path)], [path.stem, str(tmp_path)], ["--all", str(tmp_path)]):
        assert main(["retry", *arguments]) == ExitCode.FAILED
        assert f"move it to {tmp_path}" in capsys.readouterr().err
    assert main(["ls", str(tmp_path)]) == ExitCode.DIFFERS
    assert f"move it to {tmp_path}" in " ".join(capsys.readouterr().out.split())
    assert (outcome_of(path), retry_requests(path.parent)) == ("failed", [])


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], ExitCode.USAGE),
        (["--all", "a", "b"], ExitCode.USAGE),
        (["nobody", "."], ExitCode.NOT_FOUND),
        (["--all", "/nowhere"], ExitCode.NOT_FOUND),
    ],
)
def test_what_is_not_clear_is_not_done(arguments: list[str], code: ExitCode) -> None:
    assert main(["retry", *arguments]) == code


# With a supervisor

BROKEN = """
def mend(event):
    if "poison" in event["data"]:
        raise RuntimeError("this detector is not known here")
    return event
"""

MENDED = """
def mend(event):
    event["data"].pop("poison", None)
    event["timestamps"].pop("poison", None)
    return event
"""


def measured(*, poisoned: bool, events: int = 4) -> Documents:
    run = compose_run()
    keys = {"x": NUMBER, **({"poison": NUMBER} if poisoned else {})}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    documents: Documents = [("start", run.start_doc), ("descriptor", stream.descriptor_doc)]
    for i in range(events):
        data = dict.fromkeys(keys, float(i))
        documents.append(("event", stream.compose_event(data=data, timestamps=data)))
    return [*documents, ("stop", run.compose_stop())]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module with a patch that some documents are too much for."""
    path = tmp_path / "patches_of_retry.py"
    path.write_text(BROKEN)
    return path


@pytest.fixture
def patched_supervisor(tmp_path: Path, module: Path, tiled_server: TiledServer) -> Iterator[SupervisorProcess]:
    environment = {
        "TILEDWRITER_PATCHES": f'{{"event": "{module.stem}:mend"}}',
        "TILEDWRITER_MAX_WORKERS": "6",
        "TILEDWRITER_QUIET_PERIOD": "1",
        "PYTHONPATH": search_path(tmp_path),
    }
    with SupervisorProcess(tmp_path / "journals", tiled_server, environment=environment) as process:
        yield process


@pytest.fixture
def publisher(patched_supervisor: SupervisorProcess, tmp_path: Path) -> Iterator[ZMQPublisher]:
    publisher = ZMQPublisher(patched_supervisor.address, spool_dir=tmp_path / "spool", on_error="raise")
    yield publisher
    publisher.close(timeout=0)


def publish(publisher: ZMQPublisher, documents: Documents) -> str:
    for name, document in documents:
        publisher(name, document)
    return uid_of(documents)


def wait_for(journal_dir: Path, uid: str, outcome: str) -> None:
    def reached() -> bool:
        try:
            with journal_of(journal_dir, uid) as journal:
                return bool(journal.get("outcome") == outcome)
        except LookupError:
            return False

    wait_until(reached, 120, f"run {uid} is {outcome}")


def mend(module: Path) -> None:
    module.write_text(MENDED)
    # Python takes a compiled module for that of a source of the same second and the same length.
    os.utime(module, (0, 0))


def test_one_run_is_in_quarantine_while_twenty_others_are_written_and_is_written_when_the_patch_is_mended(
    patched_supervisor: SupervisorProcess,
    publisher: ZMQPublisher,
    module: Path,
    tiled_server: TiledServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    journals = patched_supervisor.journal_dir
    before = [publish(publisher, measured(poisoned=False)) for _ in range(10)]
    poisoned = publish(publisher, measured(poisoned=True))
    after = [publish(publisher, measured(poisoned=False)) for _ in range(10)]
    assert all(publisher.wait_written(uid, timeout=120) for uid in [*before, *after])
    wait_for(journals, poisoned, "failed")
    with journal_of(journals, poisoned) as journal:
        assert "this detector is not known here" in journal.get("reason")
        (entry,) = [entry for entry in journal.history() if entry.event == "failed"]
        assert 'raise RuntimeError("this detector is not known here")' in entry.detail["traceback"]
    assert "stop" not in metadata(tiled_server, poisoned)
    mend(module)
    assert main(["retry", poisoned, str(journals)]) == ExitCode.OK
    assert "the supervisor was asked" in capsys.readouterr().out
    wait_for(journals, poisoned, "written")
    assert seq_nums(tiled_server, poisoned) == [1, 2, 3, 4]
    assert metadata(tiled_server, poisoned)["stop"]["exit_status"] == "success"
    assert retry_requests(journals) == []
    assert all(seq_nums(tiled_server, uid) == [1, 2, 3, 4] for uid in (before[0], after[-1]))


def test_an_open_run_goes_on_after_its_retry(
    patched_supervisor: SupervisorProcess, publisher: ZMQPublisher, module: Path, tiled_server: TiledServer
) -> None:
    journals = patched_supervisor.journal_dir
    documents = measured(poisoned=True, events=6)
    uid = publish(publisher, documents[:5])
    wait_for(journals, uid, "failed")
    mend(module)
    assert main(["retry", uid, str(journals)]) == ExitCode.OK
    wait_until(lambda: not retry_requests(journals), 60, "the supervisor has seen the request")
    publish(publisher, documents[5:])
    wait_for(journals, uid, "written")
    assert seq_nums(tiled_server, uid) == [1, 2, 3, 4, 5, 6]


def test_a_cause_that_is_not_mended_brings_the_run_back_into_quarantine(
    patched_supervisor: SupervisorProcess, publisher: ZMQPublisher
) -> None:
    journals = patched_supervisor.journal_dir
    uid = publish(publisher, measured(poisoned=True))
    wait_for(journals, uid, "failed")
    assert main(["retry", uid, str(journals), "--wait", "120"]) == ExitCode.FAILED

    def failures() -> list[str]:
        with journal_of(journals, uid) as journal:
            return [entry.event for entry in journal.history() if entry.event in ("failed", "retry requested")]

    assert failures() == ["failed", "retry requested", "failed"]


def test_a_retry_that_was_asked_of_a_supervisor_that_ended_is_done_by_the_next(
    patched_supervisor: SupervisorProcess, publisher: ZMQPublisher, module: Path
) -> None:
    journals = patched_supervisor.journal_dir
    uid = publish(publisher, measured(poisoned=True))
    wait_for(journals, uid, "failed")
    patched_supervisor.stop()
    mend(module)
    with journal_of(journals, uid) as journal:
        path = journal.path
    path.with_name(path.name + ".retry").touch()
    patched_supervisor.start()
    wait_for(journals, uid, "written")
    assert retry_requests(journals) == []


def test_who_waits_for_a_run_learns_what_became_of_it_at_last(tmp_path: Path, tiled_server: TiledServer) -> None:
    (tmp_path / "journals").mkdir()
    path = quarantined(tmp_path / "journals")
    with SupervisorProcess(tmp_path / "journals", tiled_server) as supervisor:
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool")
        try:
            for _ in range(2):
                with pytest.raises(RunNotWritten, match="as the test wants it"):
                    publisher.wait_written(path.stem, timeout=60)
            assert main(["retry", str(path), "--wait", "120"]) == ExitCode.OK
            assert publisher.wait_written(path.stem, timeout=120)
        finally:
            publisher.close(timeout=0)
