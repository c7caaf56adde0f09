"""Every command that a message names works as it is given, wherever it is read."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from paths import ROOT
from runs import documents, publish
from warm import run_process

from tiledbroker import RunNotWritten, ZMQPublisher
from tiledbroker.supervisor import read_snapshot
from tiledwriter.cli import supervisor as supervisor_command
from tiledwriter.testing import SupervisorProcess, TiledServer, free_port, wait_until

pytestmark = pytest.mark.filterwarnings("default")

SOURCES: Final = sorted([*(ROOT / "broker").rglob("*.py"), *(ROOT / "writer").rglob("*.py")])
TEMPLATES: Final = sorted((ROOT / "writer").rglob("*.html"))
# In the middle of a line. Examples in a help text begin one.
NAMED: Final = re.compile(r"\S.*?tiledwriter-(?:journal|supervisor) [a-z-]|`tiledwriter-(?:journal|supervisor)\b")
PROGRAMS: Final = {
    "tiledwriter-journal": "tiledwriter.cli.journal",
    "tiledwriter-supervisor": "tiledwriter.cli.supervisor",
}


def docstrings_in(tree: ast.AST) -> set[int]:
    """Return the ids of the constants that are docstrings, also of attributes."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    return {id(one.value) for body in bodies for one in body if isinstance(one, ast.Expr)}


def texts_in(source: Path) -> Iterator[str]:
    """Yield the texts of a module that users may see."""
    tree = ast.parse(source.read_text())
    documentation = docstrings_in(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.value


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_message_has_its_commands_from_the_function_that_completes_them(source: Path) -> None:
    lines = [line for text in texts_in(source) for line in text.splitlines()]
    # The name of the program in a sentence is no command.
    named = [line for line in lines if NAMED.search(line) and "another tiledwriter-supervisor uses" not in line]
    assert named == []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_page_has_its_commands_from_the_function_that_completes_them(template: Path) -> None:
    assert re.findall(r"<code>tiledwriter-[^<]*", template.read_text()) == []


def commands_in(text: str) -> list[list[str]]:
    return [shlex.split(command) for command in re.findall(r"`(tiledwriter-[^`]*)`", text)]


def run(words: list[str]) -> subprocess.CompletedProcess[str]:
    return run_process([sys.executable, "-m", PROGRAMS[words[0]], *words[1:]], timeout=60)


def test_the_commands_for_a_run_in_quarantine_do_their_work(
    tmp_path: Path,
    supervisor: SupervisorProcess,
    publisher_to: Callable[[SupervisorProcess], ZMQPublisher],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publisher = publisher_to(supervisor)
    spoiled = documents()
    del spoiled[1][1]["data_keys"]
    uid = publish(publisher, spoiled)
    with pytest.raises(RunNotWritten) as raised:
        publisher.wait_written(uid, timeout=60)
    told = [[str(supervisor.journal_dir) if word == "DIR" else word for word in words]
            for words in commands_in(str(raised.value))]  # fmt: skip
    snapshot = read_snapshot(supervisor.journal_dir, timeout=30)
    wait_until(lambda: f"Run {uid} is in quarantine: " in supervisor.log.read_text(), 60, "the log says so")
    (line,) = [line for line in supervisor.log.read_text().splitlines() if "is in quarantine: " in line]
    assert ".." not in line
    assert ".." not in str(raised.value).replace("...", "")
    places = {"exception": told, "status": commands_in(snapshot.reasons[0]), "log": commands_in(line)}
    assert [words[1] for words in places["exception"]] == ["show"]
    for place in ("status", "log"):
        assert [words[1] for words in places[place]] == ["show", "retry"], place
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for words in [*places["exception"], *places["status"]]:
        ended = run(words)
        assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
        assert uid in ended.stdout


def test_the_check_that_the_status_names_has_the_options_of_the_service(
    tmp_path: Path, tiled_server: TiledServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SupervisorProcess(tmp_path / "my journals", tiled_server) as supervisor:
        wait_until(
            lambda: read_snapshot(supervisor.journal_dir, timeout=30).tiled.look is not None, 60, "Tiled is asked"
        )
        snapshot = read_snapshot(supervisor.journal_dir, timeout=30)
        assert "Tiled answered at" in snapshot.reasons[0]
        (words,) = commands_in(snapshot.reasons[0])
        parsed = supervisor_command.parser().parse_args(words[1:])
        assert (parsed.tiled, parsed.listen) == (tiled_server.uri, supervisor.address)
        assert parsed.journal_dir == supervisor.journal_dir
        monkeypatch.setenv("TILED_API_KEY", tiled_server.api_key)
        # There is no file of a detector here, and a forked supervisor is not recognized as the owner of its port.
        ended = run([*words, "--skip", "files", "--listen", f"tcp://127.0.0.1:{free_port()}"])
        assert ended.returncode == 0, ended.stdout
