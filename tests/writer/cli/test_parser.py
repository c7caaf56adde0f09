"""Command lines are understood as people type them, and mistyped words are answered with the one that was meant."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from paths import ROOT
from stored_runs import a_run, journaled

import tiledbroker
import tiledwriter
from tiledwriter.cli import journal, package, supervisor
from tiledwriter.cli._exit import ExitCode

VERSION = version("tiledwriter")


def usage_error(command: object, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == ExitCode.USAGE
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (journal, ["lst"], "invalid choice: 'lst'"),
        (journal, ["lst"], "did you mean ls?"),
        (journal, ["retyr", "abc"], "did you mean retry?"),
        (journal, ["ls", "--jsno"], "unrecognized arguments: --jsno; did you mean --json?"),
        (journal, ["ls", "--sinse=2h"], "did you mean --since?"),
        (journal, ["verify", "--tild", "http://x"], "did you mean --tiled?"),
        (journal, ["--json", "ls"], "--json belongs behind ls"),
        (journal, ["ls", "--state", "writen"], "there is no state 'writen'; did you mean written?"),
        (journal, ["export", "abc", "-o", "x", "--format", "sqlit"], "did you mean sqlite?"),
        (journal, ["retry", "--wait", "abc"], "'abc' is not a number; name the run and the directory before --wait"),
        (supervisor, ["--journaldir", "x"], "unrecognized arguments: --journaldir; did you mean --journal-dir?"),
        (supervisor, ["keygne", "x"], "did you mean keygen?"),
        (supervisor, ["--log-format", "jsn"], "did you mean json?"),
    ],
)
def test_mistyped_words_are_answered(command, arguments, said, capsys) -> None:
    assert said in usage_error(command, arguments, capsys)


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "1e300", "abc"])
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (journal, ["prune", "DIR", "--older-than"]),
        (journal, ["retry", "abc", "DIR", "--wait"]),
        (journal, ["ship", "DIR", "tcp://localhost:1", "--timeout"]),
        (journal, ["tail", "abc", "DIR", "-n"]),
        (journal, ["ls", "DIR", "-n"]),
        (supervisor, ["stream", "create", "--source", "nats://localhost:1", "--max-gib"]),
        (supervisor, ["stream", "create", "--source", "nats://localhost:1", "--replicas"]),
    ],
)
def test_a_number_that_is_not_finite_or_below_zero_is_wrong_usage(command, arguments, number, capsys) -> None:
    *before, option = arguments
    assert "is not a number" in usage_error(command, [*before, f"{option}={number}"], capsys)


def test_unlike_words_get_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean" not in usage_error(journal, ["ls", "--zzz"], capsys)


def test_errors_show_the_usage_of_the_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert "usage: tiledwriter-journal prune " in usage_error(journal, ["prune", "--nothing-like-it"], capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        ["tail", "UID", "--json", "DIR"],
        ["tail", "--json", "UID", "DIR"],
        ["tail", "UID", "DIR", "--json"],
        ["tail", "-n", "3", "UID", "--json", "DIR"],
        ["tail", "DIR", "UID", "--json"],
    ],
    ids=" ".join,
)
def test_options_may_stand_anywhere(arguments, tmp_path, capsys) -> None:
    path = journaled(a_run(), tmp_path)
    words = {"UID": path.stem[:8], "DIR": str(tmp_path)}
    assert journal.main([words.get(word, word) for word in arguments]) == ExitCode.OK
    assert '"what": "stop"' in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--", "-abc", "DIR"], ["--json", "--", "-abc", "DIR"], ["--", "--json", "DIR"]])
def test_a_run_may_be_called_like_an_option(words, tmp_path, capsys) -> None:
    assert journal.main(["show", *(str(tmp_path) if word == "DIR" else word for word in words)]) == ExitCode.NOT_FOUND
    name = words[words.index("--") + 1]
    assert f"there is no run {name!r} in {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (journal, f"tiledwriter-journal {VERSION}\n"),
        (supervisor, f"tiledwriter-supervisor {VERSION}\n"),
    ],
)
def test_commands_show_their_version(command, said, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == said


def test_packages_have_the_version_of_the_distribution() -> None:
    assert tiledwriter.__version__ == tiledbroker.__version__ == VERSION


@pytest.mark.parametrize("package_name", ["tiledbroker", "tiledwriter"])
def test_importing_a_package_does_not_read_metadata(package_name: str) -> None:
    statement = f"import sys, {package_name}; print('importlib.metadata' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"


def test_an_unknown_attribute_of_the_broker_is_an_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_this_name"):
        tiledbroker.nothing_of_this_name  # noqa: B018


# python -m tiledwriter


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_package_explains_its_commands(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert package.main(arguments) == ExitCode.OK
    printed = capsys.readouterr().out
    assert "tiledwriter-supervisor" in printed
    assert "tiledwriter-journal" in printed


def test_the_help_of_the_package_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert package.main(["--help"]) == ExitCode.OK
    assert f"```text\n{capsys.readouterr().out}```" in (ROOT / "docs" / "reference" / "cli.md").read_text()


def test_the_package_runs_its_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert package.main(["journal", "ls", str(tmp_path)]) == ExitCode.OK
    assert package.main(["tiledwriter-journal", "ls", str(tmp_path / "nowhere")]) == ExitCode.NOT_FOUND
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"


def test_the_package_answers_mistyped_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert package.main(["jurnal"]) == ExitCode.USAGE
    assert "did you mean journal?" in capsys.readouterr().err


def test_the_package_is_a_program(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tiledwriter", "journal", "ls", str(tmp_path / "nowhere")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stdout) == (ExitCode.NOT_FOUND, "")
