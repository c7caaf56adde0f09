"""`retry --wait` ends when it is known what became of the run, and its exit code says what."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stored_runs import a_run, journaled

from tiledbroker import Journal
from tiledbroker.log import FileLock, RunReader
from tiledbroker.supervisor import clear_failure, retry_is_requested, withdraw_retry
from tiledwriter.cli import _retry as retry_module
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main
from tiledwriter.testing import wait_until


def quarantined(directory: Path) -> Path:
    path = journaled(a_run(), directory)
    with Journal(path, "write") as journal:
        journal.set("outcome", "failed")
        journal.set("reason", "it was poisoned")
        journal.note("failed")
    return path


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[FileLock]:
    """What a running supervisor holds."""
    lock = FileLock(tmp_path / ".supervisor.lock")
    lock.acquire()
    yield lock
    lock.release()


@pytest.fixture
def on_request(lock: FileLock, tmp_path: Path) -> Iterator[Callable[[Callable[[Path], None]], Path]]:
    """Makes a run in quarantine, and does what a supervisor does when its retry is requested."""
    threads: list[threading.Thread] = []

    def begin(answer: Callable[[Path], None]) -> Path:
        path = quarantined(tmp_path)

        def run() -> None:
            wait_until(lambda: retry_is_requested(path), 60, "the retry is requested")
            answer(path)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return path

    yield begin
    for thread in threads:
        thread.join()


def ending_as(outcome: str) -> Callable[[Path], None]:
    def retry(path: Path) -> None:
        clear_failure(path)
        withdraw_retry(path)
        with Journal(path, "write") as journal, journal.atomic():
            journal.set("outcome", outcome)
            journal.set("reason", "it is still poisoned" if outcome == "failed" else None)
            journal.note(outcome)

    return retry


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        ("written", ExitCode.OK, "it is written"),
        ("failed", ExitCode.FAILED, "it has failed again: it is still poisoned"),
        ("interrupted", ExitCode.INCOMPLETE, "all its documents are in Tiled, and there is no stop document"),
    ],
)
def test_waiting_ends_with_the_outcome(outcome, code, said, on_request, capsys) -> None:
    path = on_request(ending_as(outcome))
    assert main(["retry", path.stem[:8], str(path.parent), "--wait"]) == code
    assert said in capsys.readouterr().out


def test_waiting_ends_without_a_supervisor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = quarantined(tmp_path)
    assert main(["retry", str(path), "--wait", "600"]) == ExitCode.INCOMPLETE
    assert "it is not written, and no supervisor is running" in capsys.readouterr().out


def test_waiting_ends_with_the_supervisor(lock, on_request, capsys) -> None:
    path = on_request(lambda _: lock.release())
    assert main(["retry", str(path), "--wait"]) == ExitCode.INCOMPLETE
    assert "no supervisor is running" in capsys.readouterr().out


def test_waiting_ends_with_the_time(tmp_path: Path, lock: FileLock, capsys: pytest.CaptureFixture[str]) -> None:
    path = quarantined(tmp_path)
    assert main(["retry", str(path), "--wait", "0"]) == ExitCode.INCOMPLETE
    assert "it was not written within 0 s: in quarantine: it was poisoned" in capsys.readouterr().out


def test_waiting_ends_when_a_retry_is_refused(on_request, capsys) -> None:
    path = on_request(withdraw_retry)
    assert main(["retry", str(path), "--wait"]) == ExitCode.FAILED
    assert "the supervisor could not retry it" in capsys.readouterr().out


def test_waiting_ends_with_the_journal(on_request, capsys) -> None:
    path = on_request(Path.unlink)
    assert main(["retry", str(path), "--wait"]) == ExitCode.NOT_FOUND
    assert f"{path} no longer exists" in capsys.readouterr().out


def test_all_runs_are_waited_for(tmp_path, on_request, capsys) -> None:
    for outcome in ("written", "failed"):
        on_request(ending_as(outcome))
    assert main(["retry", "--all", str(tmp_path), "--wait", "--json"]) == ExitCode.FAILED
    results = json.loads(capsys.readouterr().out)
    assert sorted(result["result"] for result in results) == ["failed", "written"]


def test_a_run_that_cannot_be_read_is_no_success(tmp_path, on_request, capsys) -> None:
    on_request(ending_as("written"))
    (tmp_path / "abc.sqlite").write_bytes(b"nothing of ours" * 500)
    assert main(["retry", "--all", str(tmp_path), "--wait", "--json"]) == ExitCode.FAILED
    results = {result["uid"]: result["result"] for result in json.loads(capsys.readouterr().out)}
    assert results.pop("abc") == "error"
    assert list(results.values()) == ["written"]


def test_a_run_that_is_being_retried_has_not_failed_again(
    lock: FileLock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor takes it out of quarantine between two looks at its journal."""
    path = quarantined(tmp_path)
    retry = retry_module._Retry(path)
    retry.request()
    count = retry_module._retry_count

    def count_late(journal: RunReader) -> int:
        clear_failure(path)
        withdraw_retry(path)
        return count(journal)

    monkeypatch.setattr(retry_module, "_retry_count", count_late)
    assert retry.check_result() is None
