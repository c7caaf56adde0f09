"""Every command line in a help text does what it is an example of."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tiledbroker.protocol import make_server_keys
from tiledwriter.cli import journal, supervisor
from tiledwriter.cli._exit import ExitCode

pytestmark = pytest.mark.filterwarnings("default")


def subparsers_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(action.choices)


def examples_of(parser: argparse.ArgumentParser) -> list[str]:
    return re.findall(r"^  (tiledwriter-\S+ .*)$", parser.epilog or "", flags=re.MULTILINE)


COMMANDS = subparsers_of(journal.parser())
EXAMPLES = [
    *((line.split()[1], line) for line in examples_of(journal.parser())),
    *((name, line) for name, parser in COMMANDS.items() for line in examples_of(parser)),
]


@pytest.mark.parametrize("name", COMMANDS)
def test_each_subcommand_has_examples(name: str) -> None:
    lines = examples_of(COMMANDS[name])
    assert len(lines) >= 2
    assert all(line.startswith(f"tiledwriter-journal {name}") for line in lines)


@pytest.mark.parametrize(("name", "line"), EXAMPLES, ids=[line for _, line in EXAMPLES])
def test_examples_are_done(
    name: str, line: str, prepared: Callable[[str, str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    host = prepared(name, line)
    capsys.readouterr()
    code = journal.main(host.words_of(line))
    ended = capsys.readouterr()
    assert code == ExitCode.OK, ended
    assert ended.out


@pytest.mark.parametrize("line", examples_of(subparsers_of(supervisor.parser())["keygen"]))
def test_examples_of_keygen_are_done(line: str, host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if "--client" in line:
        make_server_keys(host.keys)
    assert supervisor.main(host.words_of(line)) == ExitCode.OK
    assert str(host.keys) in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_an_example_with_a_pipe_is_done_by_a_shell(prepared: Callable[[str, str], Any]) -> None:
    host = prepared("export", "")
    (line,) = [line for line in examples_of(COMMANDS["export"]) if " | " in line]
    program = f'tiledwriter-journal() {{ {sys.executable} -m tiledwriter.cli.journal "$@"; }}\n{line}'
    ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, cwd=host.home)
    assert ended.stdout.startswith('{"name": "start"')
