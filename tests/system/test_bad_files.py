"""What lies in the place of a journal and is none: every command says so, and goes on with the other runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
import pytest
from runs import wait_for_outcome
from stored_runs import a_run, journaled, uid_of

from tiledbroker import ZMQPublisher
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli.journal import main
from tiledwriter.testing import SupervisorProcess, TiledServer

pytestmark = [pytest.mark.filterwarnings("default:::tiled")]

NAME = "bad.sqlite"


def truncated(path: Path) -> None:
    made = journaled(a_run(events=50), path.parent / "elsewhere")
    path.write_bytes(made.read_bytes()[:9000])


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE documents(idx, name, received, crc, body)")


def from_the_future(path: Path) -> None:
    journaled(a_run(), path.parent / "elsewhere").rename(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def endless(path: Path) -> None:
    """A journal but for its documents, which are a view that never ends."""
    journaled(a_run(), path.parent / "elsewhere").rename(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(
            "DROP TABLE documents; CREATE VIEW documents AS"
            " WITH RECURSIVE d(idx) AS (SELECT 0 UNION ALL SELECT idx + 1 FROM d)"
            " SELECT idx, 'event' AS name, 0.0 AS received, 0 AS crc, x'80' AS body FROM d"
        )


def overwritten(path: Path) -> None:
    made = journaled(a_run(events=50), path.parent / "elsewhere")
    contents = bytearray(made.read_bytes())
    contents[4096:20480] = b"\xff" * 16384
    path.write_bytes(contents)


def state_that_is_no_json(path: Path) -> None:
    journaled(a_run(), path.parent / "elsewhere").rename(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE state SET value = '{' WHERE key = 'run_uid'")


BAD: dict[str, Callable[[Path], None]] = {
    "truncated": truncated,
    "foreign": foreign,
    "from the future": from_the_future,
    "endless": endless,
    "overwritten": overwritten,
    "state that is no JSON": state_that_is_no_json,
    "empty": Path.touch,
    "text": lambda path: path.write_text("no journal\n" * 1000) and None,
    "a directory": Path.mkdir,
    "a fifo": os.mkfifo,
    "a loop of links": lambda path: path.symlink_to(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.fixture(params=BAD)
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A journal directory with such a file and a sound journal."""
    directory = tmp_path / "journals"
    journaled(a_run(), directory)
    BAD[request.param](directory / NAME)
    shutil.rmtree(directory / "elsewhere", ignore_errors=True)
    return directory


@pytest.mark.parametrize(
    ("command", "codes"),
    [
        (["ls"], {ExitCode.FAILED}),
        (["verify"], {ExitCode.DIFFERS, ExitCode.FAILED}),
        (["prune", "--older-than", "0"], {ExitCode.FAILED}),
        (["retry", "--all"], {ExitCode.FAILED}),
        (["show", NAME], {ExitCode.FAILED, ExitCode.NOT_FOUND}),
        (["show", "--operations", NAME], {ExitCode.FAILED, ExitCode.NOT_FOUND}),
        (["tail", NAME], {ExitCode.FAILED, ExitCode.NOT_FOUND}),
        (["verify", NAME], {ExitCode.DIFFERS, ExitCode.FAILED, ExitCode.NOT_FOUND}),
        (["export", NAME, "OUT"], {ExitCode.FAILED, ExitCode.NOT_FOUND}),
        (["export", "--format", "sqlite", NAME, "OUT"], {ExitCode.FAILED, ExitCode.NOT_FOUND}),
        (["retry", NAME], {ExitCode.FAILED, ExitCode.NOT_FOUND}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_command_names_the_file(
    command: list[str], codes: set[ExitCode], directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code = main([*(str(out) if word == "OUT" else word for word in command), str(directory)])
    told = "".join(capsys.readouterr())
    assert code in codes, told
    assert NAME in told
    assert "Traceback" not in told
    assert not out.exists()


def test_it_is_not_replayed(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(directory / NAME), "--tiled", "http://127.0.0.1:9"]) in (
        ExitCode.FAILED,
        ExitCode.NOT_FOUND,
    )
    assert NAME in "".join(capsys.readouterr())


def all_of_them(directory: Path) -> list[str]:
    """Puts one of each kind into a directory; returns their names."""
    for name, make in BAD.items():
        make(directory / f"{name.replace(' ', '-')}.sqlite")
    shutil.rmtree(directory / "elsewhere")
    return [f"{name.replace(' ', '-')}.sqlite" for name in BAD]


def test_they_are_left_in_a_spool_and_the_other_run_is_shipped(
    tmp_path: Path, supervisor: SupervisorProcess, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "spool"
    journaled(a_run(), directory)
    names = all_of_them(directory)
    assert main(["ship", str(directory), supervisor.address, "--timeout", "15"]) == ExitCode.INCOMPLETE
    assert f"1 of {len(names) + 1} runs are durable" in "".join(capsys.readouterr())
    for name in names:
        assert name in caplog.text
        assert os.path.lexists(directory / name)


def test_a_supervisor_goes_on_with_the_other_runs(tmp_path: Path, tiled_server: TiledServer) -> None:
    directory = tmp_path / "journals"
    there = a_run()
    journaled(there, directory)
    names = all_of_them(directory)
    coming = a_run()
    with SupervisorProcess(directory, tiled_server, environment={"TILEDWRITER_QUIET_PERIOD": "1"}) as supervisor:
        assert wait_for_outcome(directory, uid_of(there)) == "written"
        publisher = ZMQPublisher(supervisor.address, spool_dir=tmp_path / "spool", on_error="raise")
        try:
            for name, document in coming:
                publisher(name, document)
            assert publisher.wait_written(uid_of(coming), timeout=60)
        finally:
            publisher.close(timeout=0)
        assert supervisor.running
    log = supervisor.log.read_text()
    assert "Traceback" not in log
    for name in names:
        assert name in log


@pytest.mark.parametrize(
    "strange",
    [
        {"time": 1e300},
        {"time": float("nan")},
        {"time": 10**400},
        {"scan_id": 10**5000},
        {"plan_name": 10**5000},
        {"plan_name": numpy.array([5]).view("M8")[0]},
        {"plan_name": numpy.array([0x110000], "<u4").view("<U1")},
    ],
    ids=lambda strange: f"{next(iter(strange))} {type(next(iter(strange.values()))).__name__}",
)
@pytest.mark.parametrize("command", [["ls"], ["ls", "--json"], ["show", "UID"], ["tail", "UID"]], ids=" ".join)
def test_a_start_document_of_strange_values_is_shown(
    command: list[str], strange: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (_, start), *others = a_run()
    journaled([("start", {**start, **strange}), *others], tmp_path)
    uid = str(start["uid"])
    assert main([*(uid if word == "UID" else word for word in command), str(tmp_path)]) == ExitCode.OK
    assert "descriptor" in (told := capsys.readouterr().out) or uid[:8] in told
