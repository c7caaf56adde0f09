"""Commands say "none", "OK" and exit 0 only after they have looked: real processes, with their exit codes and words."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from disks import fill
from segments import record, segment_with
from stored_runs import a_run, journaled
from warm import run_process

from tiledbroker import Journal, run_files
from tiledbroker.supervisor._retry import retry_requests
from tiledwriter.cli._exit import ExitCode
from tiledwriter.testing import free_port, wait_until

COMMAND = [sys.executable, "-m", "tiledwriter.cli.journal"]
NOWHERE = f"tcp://127.0.0.1:{free_port()}"
WITHOUT_PRIVILEGES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


def status_with_streams(streams: str, *arguments: object) -> Ended:
    """Run `status` in a shell that has its output go elsewhere, such as `>/dev/full`."""
    words = [sys.executable, "-m", "tiledwriter.cli.supervisor", "status", *map(str, arguments)]
    return in_shell(words, streams)


def in_shell(words: list[str], streams: str) -> Ended:
    done = run_process(["sh", "-c", f"{shlex.join(words)} {streams}"], env=environment(), timeout=120)
    return Ended(done.returncode, done.stdout, done.stderr)


def environment(**variables: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("TILED")}
    return {**clean, "TILED_API_KEY": "secret", **variables}


def run(*arguments: object, prefix: list[str] | None = None, **variables: str) -> Ended:
    done = run_process([*(prefix or []), *COMMAND, *map(str, arguments)], env=environment(**variables), timeout=120)
    return Ended(done.returncode, done.stdout, done.stderr)


def run_unprivileged(*arguments: object) -> Ended:
    """Run the command as somebody whom file modes keep out; they do not keep root out."""
    if os.geteuid() != 0:
        return run(*arguments)
    if shutil.which("setpriv") is None:
        pytest.skip("root may read everything, and there is no setpriv to give that up")
    return run(*arguments, prefix=WITHOUT_PRIVILEGES)


def concluded(directory: Path, outcome: str | None = "written") -> Path:
    """A journal with this outcome, in which nothing is wrong."""
    path = journaled(a_run(), directory)
    with Journal(path, "write") as journal:
        for node, rows in (("", 0), ("/primary", 0), ("/primary/internal", 6), ("/primary/wave", 6)):
            journal.set_progress(journal.run_uid + node, rows)
        journal.set("outcome", outcome)
        journal.note(outcome or "worker started")
    return path


# What each command is asked for a directory, and for a run in it.
OF_A_DIRECTORY: dict[str, Callable[[Path], list[object]]] = {
    "ls": lambda directory: ["ls", directory],
    "verify": lambda directory: ["verify", directory],
    "retry": lambda directory: ["retry", "--all", directory],
    "prune": lambda directory: ["prune", "--older-than", "0", directory],
    "ship": lambda directory: ["ship", "--timeout", "1", directory, NOWHERE],
}
OF_A_RUN: dict[str, Callable[[str, Path], list[object]]] = {
    "show": lambda uid, directory: ["show", uid, directory],
    "show --operations": lambda uid, directory: ["show", "--operations", uid, directory],
    "tail": lambda uid, directory: ["tail", uid, directory],
    "verify": lambda uid, directory: ["verify", uid, directory],
    "export": lambda uid, directory: ["export", uid, "-", directory],
    "retry": lambda uid, directory: ["retry", uid, directory],
}

of_a_directory = pytest.mark.parametrize("command", OF_A_DIRECTORY.values(), ids=OF_A_DIRECTORY)
of_a_run = pytest.mark.parametrize("command", OF_A_RUN.values(), ids=OF_A_RUN)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty directory."""
    made = tmp_path / "journals"
    made.mkdir()
    return made


# Wrong directories


@of_a_directory
def test_a_mistyped_directory_is_not_found(command: Callable[[Path], list[object]], tmp_path: Path) -> None:
    ended = run(*command(tmp_path / "jurnals"))
    assert ended.code == ExitCode.NOT_FOUND, ended
    assert str(tmp_path / "jurnals") in ended.err
    assert not (tmp_path / "jurnals").exists()


@of_a_run
def test_a_run_in_a_mistyped_directory_is_not_found(
    command: Callable[[str, Path], list[object]], tmp_path: Path
) -> None:
    ended = run(*command("abc", tmp_path / "jurnals"))
    assert ended.code == ExitCode.NOT_FOUND, ended
    assert str(tmp_path / "jurnals") in ended.err


@of_a_directory
def test_a_file_in_place_of_a_directory_is_not_found(command: Callable[[Path], list[object]], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    ended = run(*command(file))
    assert ended.code != ExitCode.OK, ended
    assert str(file) in ended.said


@of_a_directory
def test_a_directory_with_nothing_of_ours_is_not_taken_for_an_empty_one(
    command: Callable[[Path], list[object]], directory: Path
) -> None:
    (directory / "notes.txt").write_text("mine")
    ended = run(*command(directory))
    assert ended.code == ExitCode.NOT_FOUND, ended
    assert f"{directory} is neither a journal nor a spool directory" in ended.err
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("ls", ExitCode.OK, "no runs in {}"),
        ("verify", ExitCode.NOT_FOUND, "nothing was verified: no runs in {}"),
        ("retry", ExitCode.OK, "no runs in {}"),
        ("prune", ExitCode.OK, "no runs in {}"),
        ("ship", ExitCode.OK, "no runs in {}"),
    ],
)
def test_an_empty_directory_is_named(command: str, code: ExitCode, said: str, directory: Path) -> None:
    ended = run(*OF_A_DIRECTORY[command](directory))
    assert (ended.code, said.format(directory) in ended.said) == (code, True), ended


def test_a_directory_of_a_supervisor_without_runs_is_an_empty_one(directory: Path) -> None:
    (directory / ".supervisor.lock").touch()
    assert run("ls", directory)[:2] == (ExitCode.OK, f"no runs in {directory}\n")


def test_programs_are_told_of_an_empty_directory(directory: Path) -> None:
    assert run("ls", "--json", directory)[:2] == (ExitCode.OK, "[]\n")
    ended = run("verify", "--json", directory)
    assert ended.code == ExitCode.NOT_FOUND
    assert [report["ok"] for report in json.loads(ended.out)] == [False]


# Unreadable places


@pytest.fixture
def private(directory: Path) -> Iterator[Path]:
    """A journal directory of a written run, at which nobody but root may look."""
    concluded(directory)
    directory.chmod(0)
    yield directory
    directory.chmod(0o700)


@of_a_directory
def test_an_unreadable_directory_is_not_an_empty_one(command: Callable[[Path], list[object]], private: Path) -> None:
    ended = run_unprivileged(*command(private))
    assert ended.code == ExitCode.FAILED, ended
    assert "permission denied" in ended.err.lower()
    assert str(private) in ended.err
    assert "no run" not in ended.said


@of_a_run
def test_a_run_in_an_unreadable_directory_is_not_missing(
    command: Callable[[str, Path], list[object]], private: Path
) -> None:
    ended = run_unprivileged(*command("abc", private))
    assert ended.code == ExitCode.FAILED, ended
    assert "permission denied" in ended.err.lower()
    assert str(private) in ended.err
    assert "no run" not in ended.said


@pytest.mark.parametrize(
    "arguments",
    [["show", "FILE"], ["verify", "FILE"], ["export", "FILE", "-"], ["tail", "FILE"], ["replay", "FILE"]],
    ids=lambda arguments: arguments[0],
)
def test_a_file_in_an_unreadable_directory_is_not_missing(arguments: list[str], private: Path) -> None:
    file = private / "abc.sqlite"
    server = ["--tiled", "http://127.0.0.1:9"] if arguments[0] == "replay" else []
    ended = run_unprivileged(*(file if word == "FILE" else word for word in arguments), *server)
    assert ended.code == ExitCode.FAILED, ended
    assert "permission denied" in ended.said.lower()
    assert str(file) in ended.said


def test_a_directory_whose_files_may_not_be_reached_has_unreadable_runs(private: Path) -> None:
    private.chmod(0o400)
    ended = run_unprivileged("ls", "--json", private)
    assert ended.code == ExitCode.FAILED, ended
    (row,) = json.loads(ended.out)
    # The folder of finished runs cannot be looked into, so not even the number of runs is known.
    assert (row["uid"], row["state"], row["documents"]) == ("", "unreadable", None)


@pytest.fixture
def unreadable(directory: Path) -> Path:
    """An unreadable journal beside one of a written run."""
    concluded(directory)
    path = concluded(directory)
    path.chmod(0)
    return path


def test_an_unreadable_file_is_listed_among_the_others(unreadable: Path) -> None:
    ended = run_unprivileged("ls", unreadable.parent)
    assert ended.code == ExitCode.FAILED
    (line,) = [line for line in ended.out.splitlines() if "unreadable  " in line]
    assert unreadable.stem[:8] in line
    assert f"permission denied: {unreadable}" in line
    assert f"2 runs in {unreadable.parent}: 1 written, 1 unreadable" in ended.out
    assert len(ended.out.splitlines()) == 4


def test_programs_are_told_which_file_is_unreadable(unreadable: Path) -> None:
    ended = run_unprivileged("ls", "--json", unreadable.parent)
    assert ended.code == ExitCode.FAILED
    rows = {row["uid"]: row for row in json.loads(ended.out)}
    assert len(rows) == 2
    row = rows[unreadable.stem]
    assert (row["state"], row["file"], row["documents"], row["rows"]) == ("unreadable", str(unreadable), None, None)
    assert "permission denied" in row["why"]


def test_an_unreadable_file_is_neither_sound_nor_damaged(unreadable: Path) -> None:
    ended = run_unprivileged("verify", "--json", unreadable.parent)
    assert ended.code == ExitCode.FAILED
    reports = {report["uid"]: report for report in json.loads(ended.out)}
    report = reports.pop(unreadable.stem)
    assert (report["state"], report["ok"], report["documents"]) == ("unreadable", False, None)
    assert "permission denied" in report["findings"][0]["problem"]
    assert [other["ok"] for other in reports.values()] == [True]


@pytest.mark.parametrize("command", [["retry", "--all"], ["prune", "--older-than", "0"]], ids=" ".join)
def test_an_unreadable_file_is_named_and_the_others_are_done(command: list[str], unreadable: Path) -> None:
    ended = run_unprivileged(*command, unreadable.parent)
    assert ended.code == ExitCode.FAILED, ended
    assert f"permission denied: {unreadable}" in ended.err


def test_an_unreadable_file_is_left_in_the_spool_by_name(unreadable: Path) -> None:
    ended = run_unprivileged("ship", "--timeout", "1", unreadable.parent, NOWHERE)
    assert ended.code == ExitCode.INCOMPLETE, ended
    assert f"permission denied: {unreadable}" in ended.err


def test_an_unreadable_lock_does_not_tell_that_nobody_writes(directory: Path) -> None:
    path = concluded(directory, None)
    lock = path.with_name(path.name + ".lock")
    with Journal(path, "write"):
        lock.chmod(0)
        ended = run_unprivileged("ls", "--json", directory)
        lock.chmod(0o600)
    (row,) = json.loads(ended.out)
    assert row["worker"] is None
    assert "no process has it open" not in row["why"]
    assert f"permission denied: {lock}" in row["why"]


def test_a_run_is_not_missing_where_some_files_could_not_be_looked_into(directory: Path) -> None:
    (_, start), *others = a_run()
    path = journaled([("start", {**start, "uid": "Réponse 42"}), *others], directory)
    assert path.name.startswith("sha256-")
    path.chmod(0)
    ended = run_unprivileged("show", "Rép", directory)
    assert ended.code == ExitCode.FAILED, ended
    assert f"permission denied: {path}" in ended.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files of somebody else")
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["ls"], ExitCode.FAILED),
        (["ls", "--spool"], ExitCode.FAILED),
        (["ship", "--timeout", "1"], ExitCode.INCOMPLETE),
    ],
)
def test_a_spare_that_may_not_be_read_may_hold_a_run(command: list[str], code: ExitCode, directory: Path) -> None:
    path = directory / ".spare-0123456789abcdef-0.segment"
    segment_with(path, record(0)).detach()
    path.chmod(0o600)
    os.chown(path, 65534, 65534)
    ended = run_unprivileged(*command, directory, *([NOWHERE] if command[0] == "ship" else []))
    assert ended.code == code, ended
    assert f"ermission denied: {path}" in ended.said
    assert "no runs" not in ended.said


# Runs


@of_a_run
def test_a_run_that_is_not_there_is_not_found(command: Callable[[str, Path], list[object]], directory: Path) -> None:
    concluded(directory)
    ended = run(*command("nobody", directory))
    assert ended.code == ExitCode.NOT_FOUND, ended
    assert f"no run 'nobody' in {directory}" in ended.err


@of_a_run
def test_a_uid_that_several_runs_begin_with_is_wrong_usage(
    command: Callable[[str, Path], list[object]], directory: Path
) -> None:
    for end in "12":
        (_, start), *others = a_run()
        journaled([("start", {**start, "uid": f"ab{end}"}), *others], directory)
    ended = run(*command("ab", directory))
    assert ended.code == ExitCode.USAGE, ended
    assert f"2 runs in {directory} begin with 'ab'" in ended.err


def damaged(directory: Path) -> Path:
    path = concluded(directory)
    contents = bytearray(path.read_bytes())
    contents[4096:20480] = b"\xff" * 16384
    path.write_bytes(contents)
    return path


def foreign(directory: Path) -> Path:
    path = directory / "abcdef.sqlite"
    path.write_text("no journal at all\n" * 1000)
    return path


@pytest.mark.parametrize("bad", [damaged, foreign])
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("ls", ExitCode.FAILED),
        ("verify", ExitCode.DIFFERS),
        ("retry", ExitCode.FAILED),
        ("prune", ExitCode.FAILED),
        ("ship", ExitCode.INCOMPLETE),
    ],
)
def test_a_file_that_is_no_journal_is_named(
    command: str, code: ExitCode, bad: Callable[[Path], Path], directory: Path
) -> None:
    path = bad(directory)
    ended = run(*OF_A_DIRECTORY[command](directory))
    assert (ended.code, str(path) in ended.said) == (code, True), ended


@pytest.mark.parametrize("bad", [damaged, foreign])
@of_a_run
def test_a_run_whose_file_is_no_journal_fails(
    command: Callable[[str, Path], list[object]], bad: Callable[[Path], Path], directory: Path
) -> None:
    path = bad(directory)
    ended = run(*command(path.stem[:8], directory))
    assert ended.code == (ExitCode.DIFFERS if "verify" in command("", directory) else ExitCode.FAILED), ended
    assert str(path) in ended.said
    assert "Traceback" not in ended.said


def test_a_journal_in_use_is_left_by_prune(directory: Path) -> None:
    with Journal(concluded(directory), "write") as journal:
        ended = run("prune", "--older-than", "0", directory)
    assert ended.code == ExitCode.LOCKED, ended
    assert str(journal.path) in ended.err


@pytest.mark.parametrize("outcome", [None, "failed", "interrupted"])
def test_a_run_that_is_not_written_is_not_counted_as_sound(outcome: str | None, directory: Path) -> None:
    concluded(directory)
    path = concluded(directory, outcome)
    ended = run("verify", directory)
    assert ended.code == ExitCode.INCOMPLETE, ended
    state = outcome or "closing"
    (line,) = [line for line in ended.out.splitlines() if path.stem in line]
    assert "OK" not in line
    assert f"2 runs in {directory}: 1 written, without findings; 1 {state}, without findings" in ended.out


def test_verify_says_what_it_did_not_compare(directory: Path) -> None:
    concluded(directory)
    ended = run("verify", directory)
    assert ended.code == ExitCode.OK, ended
    assert "To compare with Tiled, give --tiled, --profile or" in ended.out
    assert "well" not in ended.out


def test_no_run_in_quarantine_is_said_of_the_directory_that_was_looked_at(directory: Path) -> None:
    concluded(directory)
    ended = run("retry", "--all", directory)
    assert ended.code == ExitCode.OK
    assert f"none of the 1 run in {directory} is in quarantine" in ended.out


def test_prune_says_what_it_kept(directory: Path) -> None:
    concluded(directory)
    concluded(directory, "failed")
    ended = run("prune", directory)
    assert ended.code == ExitCode.OK
    assert ended.out.endswith(f"of 2 journals in {directory} (0 bytes); 2 kept.\n")


def test_a_parked_run_is_not_dead(directory: Path) -> None:
    path = concluded(directory, None)
    with Journal(path, "write") as journal:
        journal.note("parked", reason="503")
    (row,) = json.loads(run("ls", "--json", directory).out)
    assert row["state"] == "parked"
    assert "Tiled" in row["why"]


def test_a_directory_that_verify_is_given_and_that_is_not_there_is_named(directory: Path, tmp_path: Path) -> None:
    concluded(directory)
    ended = run("verify", tmp_path / "jurnals", TILEDWRITER_JOURNAL_DIR=str(directory))
    assert ended.code == ExitCode.NOT_FOUND
    assert f"there is no file or directory {tmp_path / 'jurnals'}" in ended.err


def test_ship_takes_no_journals_of_an_ingest_host_for_a_spool(directory: Path) -> None:
    path = concluded(directory, "failed")
    with Journal(path, "write") as journal:
        journal.note("worker started", pid=1, documents=0)
    ended = run("ship", "--timeout", "5", directory, NOWHERE)
    assert ended.code == ExitCode.INCOMPLETE, ended
    assert f"{path}: it is the journal of an ingest host and not a spool" in ended.out + ended.err
    assert path.is_file()


# Programs


@pytest.mark.parametrize(
    "arguments",
    [["ls"], ["verify"], ["show", "nobody"], ["verify", "nobody"]],
    ids=" ".join,
)
@pytest.mark.parametrize("there", [False, True])
def test_failures_are_json_too(arguments: list[str], there: bool, directory: Path) -> None:
    if there:
        (directory / "notes.txt").touch()
    place = directory if there else directory / "nowhere"
    ended = run(*arguments, place, "--json")
    assert ended.code == ExitCode.NOT_FOUND
    told = json.loads(ended.out)
    assert told
    assert str(place) in json.dumps(told)


def test_what_verify_found_before_tiled_went_away_is_not_lost_to_programs(directory: Path) -> None:
    concluded(directory)
    ended = run("verify", directory, "--json", "--tiled", "http://127.0.0.1:9")
    assert ended.code == ExitCode.FAILED, ended
    assert [report["ok"] for report in json.loads(ended.out)] == [False]


# Signals, pipes and disks


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """The end for writing of a pipe that takes nothing more: whoever prints into it waits."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    yield writing
    os.close(writing)
    os.close(reading)


@contextlib.contextmanager
def started(*arguments: object, stdout: int = subprocess.PIPE, **variables: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        env=environment(**variables),
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended_by(number: signal.Signals, process: subprocess.Popen[str]) -> int:
    assert process.poll() is None
    process.send_signal(number)
    process.communicate(timeout=60)
    return process.returncode


SIGNALS = pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)],
    ids=["SIGINT", "SIGTERM"],
)


@SIGNALS
@pytest.mark.parametrize("command", ["verify", "replay"])
def test_a_signal_while_tiled_is_waited_for_is_no_success(
    command: str, number: signal.Signals, code: ExitCode, silent: socket.socket, directory: Path
) -> None:
    path = concluded(directory)
    port = silent.getsockname()[1]
    with started(command, path, "--tiled", f"http://127.0.0.1:{port}") as process:
        connection, _ = silent.accept()
        with connection:
            assert ended_by(number, process) == code


@pytest.mark.parametrize("moved", ["the file", "the directory"])
def test_a_run_that_is_gone_is_not_durable(moved: str, silent: socket.socket, directory: Path, tmp_path: Path) -> None:
    path = journaled(a_run(), directory)
    address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
    with started("ship", directory, address, "--json") as process:
        connection, _ = silent.accept()
        with connection:
            (path if moved == "the file" else directory).rename(tmp_path / "away")
            out, err = process.communicate(timeout=60)
    shipment = json.loads(out)
    if moved == "the directory" and "error" in shipment:
        # The publisher had not made it again when the command looked.
        assert process.returncode in (ExitCode.FAILED, ExitCode.NOT_FOUND), err
        return
    assert process.returncode == ExitCode.INCOMPLETE, err
    assert (shipment["runs"], shipment["durable"], shipment["left"], shipment["gone"]) == (1, 0, [], [str(path)])
    assert f"{path} is gone, and not known to be durable" in err


@SIGNALS
def test_a_signal_while_the_supervisor_is_waited_for_is_no_success(
    number: signal.Signals, code: ExitCode, silent: socket.socket, directory: Path
) -> None:
    path = journaled(a_run(), directory)
    with started("ship", directory, f"tcp://127.0.0.1:{silent.getsockname()[1]}") as process:
        connection, _ = silent.accept()
        with connection:
            assert ended_by(number, process) == code
    assert path.is_file()


@SIGNALS
def test_a_signal_in_prune_is_no_success(
    number: signal.Signals, code: ExitCode, full_pipe: int, directory: Path
) -> None:
    concluded(directory)
    with started("prune", "--older-than", "0", directory, stdout=full_pipe) as process:
        wait_until(lambda: not run_files(directory), 60, "the journal is deleted")
        assert ended_by(number, process) == code


@SIGNALS
def test_a_signal_in_retry_is_no_success(number: signal.Signals, code: ExitCode, directory: Path) -> None:
    path = concluded(directory, "failed")
    # It waits for two seconds for whoever has the journal open.
    with Journal(path, "write"), started("retry", "--all", directory) as process:
        wait_until(lambda: retry_requests(directory), 60, "the retry is requested")
        assert ended_by(number, process) == code


@pytest.fixture
def large(directory: Path) -> Path:
    """A journal of which an export is larger than what pipes and small disks take."""
    return journaled(a_run(events=3000), directory)


@SIGNALS
def test_a_signal_in_export_is_no_success(number: signal.Signals, code: ExitCode, large: Path) -> None:
    with started("export", large, "-") as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        assert ended_by(number, process) == code


@SIGNALS
def test_a_signal_after_export_has_made_its_file_leaves_that_alone(
    number: signal.Signals, code: ExitCode, full_pipe: int, directory: Path, tmp_path: Path
) -> None:
    path = concluded(directory)
    with started("export", path, tmp_path / "out.jsonl", stdout=full_pipe) as process:
        wait_until((tmp_path / "out.jsonl").exists, 60, "the file is whole")
        assert ended_by(number, process) == code
    assert sorted(file.name for file in tmp_path.iterdir()) == ["journals", "out.jsonl"]


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.OK), (signal.SIGTERM, ExitCode.TERMINATED)], ids=["SIGINT", "SIGTERM"]
)
def test_following_ends_with_ctrl_c(number: signal.Signals, code: ExitCode, directory: Path) -> None:
    path = concluded(directory, None)
    with started("tail", "-f", path) as process:
        assert process.stdout is not None
        for _ in range(10):
            assert process.stdout.readline()
        assert ended_by(number, process) == code


def test_following_ends_with_the_file(directory: Path) -> None:
    path = concluded(directory, None)
    with started("tail", "-f", path) as process:
        assert process.stdout is not None
        for _ in range(10):
            assert process.stdout.readline()
        with Journal(path, "write") as journal:
            journal.remove()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == ExitCode.NOT_FOUND
        assert str(path) in errors


@pytest.mark.parametrize("command", [["export", "FILE", "-"], ["verify", "FILE"], ["ls", "DIR"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_success(command: list[str], large: Path) -> None:
    words = {"FILE": large, "DIR": large.parent}
    reading, writing = os.pipe()
    os.close(reading)
    with started(*(words.get(word, word) for word in command), stdout=writing) as process:
        os.close(writing)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (ExitCode.BROKEN_PIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", [["export", "FILE", "-"], ["ls", "DIR"], ["ls", "--json", "DIR"]], ids=" ".join)
def test_output_that_a_full_disk_does_not_take_is_no_success(command: list[str], large: Path) -> None:
    words = {"FILE": large, "DIR": large.parent}
    arguments = [words.get(word, word) for word in command]
    with Path("/dev/full").open("w") as full, started(*arguments, stdout=full.fileno()) as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == ExitCode.FAILED
        assert "no space left on device" in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_an_export_to_a_full_disk_leaves_no_file(kind: str, large: Path, small_disk: Path) -> None:
    ended = run("export", large, small_disk / "out", "--format", kind)
    assert ended.code == ExitCode.FAILED, ended
    assert f"{small_disk / 'out'} was not written" in ended.err
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("kind", ["jsonl", "sqlite"])
def test_an_export_does_not_skip_documents_that_are_missing(kind: str, directory: Path, tmp_path: Path) -> None:
    path = concluded(directory)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("DELETE FROM documents WHERE idx IN (3, 4)")
    ended = run("export", path, tmp_path / "out", "--format", kind)
    assert ended.code == ExitCode.FAILED, ended
    assert "document 3 is missing; the next one is 5" in ended.err
    assert not (tmp_path / "out").exists()


def test_an_export_of_an_open_run_says_so(directory: Path, tmp_path: Path) -> None:
    path = journaled(a_run()[:-1], directory)
    ended = run("export", path, tmp_path / "out")
    assert ended.code == ExitCode.OK
    assert "the run is not known to have ended: more documents may follow" in ended.err


def test_a_full_disk_is_named_and_hides_no_run(small_disk: Path) -> None:
    path = journaled(a_run(events=2), small_disk)
    with Journal(path, "write") as journal:
        journal.set("outcome", "failed")
    fill(small_disk)
    for _ in range(2):
        ended = run("retry", "--all", small_disk)
        assert ended.code == ExitCode.FAILED
        assert f"{path}: it cannot be changed (disk I/O error: its disk is full, 0 bytes are free)" in ended.err
        assert run("ls", small_disk, "--state", "failed").code == ExitCode.OK


@pytest.mark.parametrize("options", [(), ("--json",), ("--serves",), ("--serves", "--json")])
def test_a_status_that_cannot_be_printed_is_not_degraded(tmp_path: Path, options: tuple[str, ...]) -> None:
    ended = status_with_streams(">/dev/full", "--journal-dir", tmp_path, *options)
    assert (ended.code, ended.said.count("\n")) == (2, 1)
    assert "No space left" in ended.err
    assert status_with_streams(">/dev/full 2>/dev/full", "--journal-dir", tmp_path, *options).code == 2
    assert status_with_streams(">&- 2>&-", "--journal-dir", tmp_path, *options).code == 3


def test_a_status_of_no_directory_says_so_as_json(tmp_path: Path) -> None:
    ended = status_with_streams("", "--json", "--journal-dir", "~nobody-of-this-name/x")
    assert ended.code == 2
    assert json.loads(ended.out)["state"] == "failed"
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full"])
def test_a_standard_error_that_takes_nothing_adds_nothing_to_the_json(tmp_path: Path, streams: str) -> None:
    documents = a_run()
    journaled(documents, tmp_path)
    ended = in_shell([*COMMAND, "ls", "--json", str(tmp_path / "nowhere"), str(tmp_path)], streams)
    assert ended.code == ExitCode.NOT_FOUND
    assert [entry["uid"] for entry in json.loads(ended.out)] == ["", documents[0][1]["uid"]]


@pytest.mark.parametrize("command", ["ls", "show", "ls --json"])
def test_a_closed_output_is_no_failure(tmp_path: Path, command: str) -> None:
    documents = a_run()
    journaled(documents, tmp_path)
    run = [documents[0][1]["uid"]] if command == "show" else []
    ended = in_shell([*COMMAND, *command.split(), *run, str(tmp_path)], ">&-")
    assert (ended.code, ended.err) == (ExitCode.OK, "")


@pytest.mark.parametrize("out", [("-",), ("-o", "-")], ids=" ".join)
def test_an_export_to_a_closed_output_is_no_success(tmp_path: Path, out: tuple[str, ...]) -> None:
    path = journaled(a_run(), tmp_path)
    ended = in_shell([*COMMAND, "export", str(path), *out], ">&-")
    assert ended.code == ExitCode.FAILED
    assert "standard output is closed" in ended.err


def test_a_log_that_cannot_be_asked_is_told_as_json() -> None:
    words = [sys.executable, "-m", "tiledwriter.cli.supervisor", "stream", "check", "--json", "--source"]
    ended = in_shell([*words, NOWHERE.replace("tcp", "nats")], "")
    assert ended.code == ExitCode.FAILED
    assert "gives no answer" in json.loads(ended.out)["error"]
