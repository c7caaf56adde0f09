"""On an acquisition host, without the packages of the ingest host, runs are listed and shipped; the rest says why."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from stored_runs import a_run, journaled

from tiledbroker import ZMQPublisher
from tiledwriter.cli._exit import ExitCode

MISSING = [
    *("argcomplete", "bluesky", "event_model", "httpx", "jsonschema_rs", "numpy", "pandas", "psutil", "pyarrow"),
    *("pydantic", "pydantic_settings", "rich", "sqlite_utils", "tenacity", "tiled", "yaml"),
]
PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({MISSING}))
from tiledwriter.cli.journal import main
sys.exit(main(sys.argv[1:]))
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_spools_are_listed_there(tmp_path: Path) -> None:
    publisher = ZMQPublisher("tcp://127.0.0.1:1", spool_dir=tmp_path)
    for name, document in a_run():
        publisher(name, document)
    publisher.close(timeout=0)
    ended = run("ls", "--spool", tmp_path)
    assert ended.returncode == ExitCode.OK, ended
    assert "1 run for tcp://127.0.0.1:1: 1 spooled; 9 documents" in ended.stdout
    ended = run("ship", tmp_path, "tcp://127.0.0.1:1", "--timeout", "0.1", "--json")
    assert ended.returncode == ExitCode.INCOMPLETE, ended
    assert json.loads(ended.stdout)["runs"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["verify"],
        ["export", "RUN", "-o", "-"],
        ["replay", "RUN"],
        ["show", "RUN", "--operations"],
        ["ls", "--config", "x"],
    ],
    ids=" ".join,
)
def test_what_is_missing_there_is_named(arguments: list[str], tmp_path: Path) -> None:
    path = journaled(a_run(), tmp_path)
    words = [str(path) if word == "RUN" else word for word in arguments]
    ended = run(*words)
    assert ended.returncode == ExitCode.FAILED, ended
    assert 'pip install ".[ingest]" in a checkout' in ended.stderr
    assert "Traceback" not in ended.stderr
    ended = run(*words, "--json")
    assert ended.returncode == ExitCode.FAILED, ended
    assert "pip install" in json.dumps(json.loads(ended.stdout))
