"""The shell completes commands, options, states and runs."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import argcomplete
import pytest
from stored_runs import a_run, journaled

from tiledbroker import Journal
from tiledwriter.cli import journal, supervisor


class Finder(argcomplete.CompletionFinder):
    """Completion without debug output, which goes to a file descriptor that may be somebody else's here."""

    def _init_debug_stream(self) -> None:
        argcomplete.io.debug_stream = sys.stderr


def completed(line: str, monkeypatch: pytest.MonkeyPatch, parser=journal.parser) -> list[str]:
    """What the shell gets for a command line that ends where the cursor is."""
    monkeypatch.setenv("_ARGCOMPLETE", "1")
    monkeypatch.setenv("_ARGCOMPLETE_IFS", "\n")
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    output = io.StringIO()
    ended: list[int] = []
    Finder()(parser(), exit_method=ended.append, output_stream=output)
    assert ended == [0]
    return output.getvalue().split()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Runs in the configured directory."""
    monkeypatch.setenv("TILEDWRITER_JOURNAL_DIR", str(tmp_path))
    return sorted(journaled(a_run(), tmp_path) for _ in range(3))


def test_subcommands_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed("tiledwriter-journal re", monkeypatch) == ["retry", "replay"]
    assert completed("tiledwriter-supervisor key", monkeypatch, supervisor.parser) == ["keygen"]


def test_options_are_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed("tiledwriter-journal ls --si", monkeypatch) == ["--since"]
    assert "--journal-dir" in completed("tiledwriter-supervisor --j", monkeypatch, supervisor.parser)


def test_states_are_completed_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert completed("tiledwriter-journal ls --state failed,pa", monkeypatch) == ["failed,parked"]


@pytest.mark.parametrize("command", ["show", "tail", "tail -f", "retry", "verify", "export -o run.jsonl"])
def test_runs_are_completed(command: str, runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    uid = runs[1].stem
    assert completed(f"tiledwriter-journal {command} {uid[:8]}", monkeypatch) == [uid]


def test_all_runs_are_offered(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    offered = completed("tiledwriter-journal show ", monkeypatch)
    assert {path.stem for path in runs} <= set(offered)


def test_hashed_names_are_completed_to_what_is_accepted(runs, tmp_path, monkeypatch) -> None:
    path = tmp_path / f"sha256-{'ab' * 32}.sqlite"
    with Journal(path, "create", run_uid="Réponse 42"):
        pass
    (label,) = completed("tiledwriter-journal show sha", monkeypatch)
    assert path.name.startswith(label)


def test_an_unreadable_directory_completes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEDWRITER_JOURNAL_DIR", str(tmp_path / "nowhere"))
    monkeypatch.chdir(tmp_path)
    assert completed("tiledwriter-journal show abc", monkeypatch) == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_a_run(runs: list[Path], tmp_path: Path) -> None:
    """The real path: the function that argcomplete registers calls the command."""
    command = tmp_path / "bin" / "tiledwriter-journal"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m tiledwriter.cli.journal "$@"\n')
    command.chmod(0o755)
    line = f"tiledwriter-journal show {runs[0].stem[:8]}"
    program = (
        argcomplete.shellcode(["tiledwriter-journal"], shell="bash")
        + f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_TYPE=9 COMP_CWORD=2 COMP_WORDS=({line})\n"
        + "_python_argcomplete tiledwriter-journal\n"
        + 'echo "${COMPREPLY[@]}"\n'
    )
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"}
    ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert ended.stdout.split() == [runs[0].stem]
