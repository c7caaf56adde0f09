"""`tail` shows what happened to a run last, and what happens to it until it ends."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from stored_runs import a_run, add, journaled

from tiledbroker import Journal
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main


def test_the_last_documents_and_entries_are_shown_in_order_of_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = a_run()
    path = journaled(documents[:4], tmp_path)
    with Journal(path, "write") as journal:
        journal.note("waiting", reason="502")
        add(journal, documents[4:5])
        journal.note("failed", error="E", traceback="line\nline")
    assert main(["tail", path.stem[:10], str(tmp_path), "-n", "4"]) == ExitCode.OK
    lines = [" ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()]
    descriptor = documents[1][1]["uid"][:8]
    assert lines == [
        f"event 3 descriptor {descriptor} seq_num 2",
        "* waiting reason=502",
        f"event 4 descriptor {descriptor} seq_num 3",
        "* failed error=E",
    ]


def test_following_ends_with_the_run(tmp_path: Path) -> None:
    documents = a_run()
    path = journaled(documents[:2], tmp_path)
    command = [sys.executable, "-u", "-m", "tiledwriter.cli.journal", "tail", "-f", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        shown = [process.stdout.readline() for _ in range(2)]
        with Journal(path, "write") as journal:
            add(journal, documents[2:])
        shown += [process.stdout.readline() for _ in documents[2:]]
        assert process.poll() is None
        with Journal(path, "write") as journal, journal.atomic():
            journal.set("outcome", "written")
            journal.note("written")
        shown += process.stdout.readlines()
    assert process.returncode == ExitCode.OK
    assert [line.split()[1] for line in shown] == [*(name for name, _ in documents), "*"]


def test_no_lines_are_no_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tail", str(journaled(a_run(), tmp_path)), "-n", "0"]) == ExitCode.OK
    assert capsys.readouterr().out == ""


def test_a_document_that_is_damaged_is_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = journaled(a_run()[:1], tmp_path)
    with Journal(path, "write") as journal:
        journal.append_one("event", b"\xc1")
    assert main(["tail", str(path)]) == ExitCode.DIFFERS
    ended = capsys.readouterr()
    assert "1  damaged" in ended.out
    assert f"{path}: 1 document damaged" in ended.err


def test_a_time_that_json_does_not_have_is_null(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = journaled(a_run(), tmp_path)
    with Journal(path, "write") as journal:
        journal.note("odd", rows=float("nan"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE history SET time = 9e999")
    assert main(["tail", str(path), "--json", "-n", "1"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["time"] is None
    assert main(["show", str(path), "--json"]) == ExitCode.OK
    (entry,) = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["history"]
    assert (entry["time"], entry["detail"]) == (None, {"rows": None})


def test_a_run_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    assert main(["tail", "nobody", str(tmp_path)]) == ExitCode.NOT_FOUND
