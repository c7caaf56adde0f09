"""`tiledwriter-supervisor stream`: a site's log is made, checked, and its permissions printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from log_site import LogSite

from tiledbroker.jetstream import RUNS_BUCKET, Connection, bucket_stream
from tiledwriter._check_results import CheckResult
from tiledwriter._config import Settings
from tiledwriter.cli._exit import ExitCode
from tiledwriter.cli._host_checks import LEASE, check_host
from tiledwriter.cli.supervisor import main
from tiledwriter.testing import free_port


def test_what_is_missing_is_found_and_made(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--source", str(log_site.address), "--replicas", "1", "--max-gib", "1"]
    assert main(["stream", "check", *options]) == ExitCode.OK
    assert "as it must be" in capsys.readouterr().out

    async def delete(connection: Connection) -> None:
        await connection.call(f"STREAM.DELETE.{bucket_stream(RUNS_BUCKET)}")

    log_site.ask(delete)
    assert main(["stream", "check", *options, "--json"]) == ExitCode.DIFFERS
    assert json.loads(capsys.readouterr().out) == {"problems": ["There is no stream KV_TW_RUNS."]}
    assert main(["stream", "create", *options]) == ExitCode.OK
    assert capsys.readouterr().out == "Made: KV_TW_RUNS.\n"
    assert main(["stream", "create", *options, "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out) == {"made": []}


def test_a_stream_of_another_kind_is_found(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    async def change(connection: Connection) -> None:
        found = await connection.call("STREAM.INFO.TW")
        await connection.call("STREAM.UPDATE.TW", {**found["config"], "discard": "old", "max_age": 10**9 * 3600})

    log_site.ask(change)
    assert main(["stream", "check", "--source", str(log_site.address), "--replicas", "1"]) == ExitCode.DIFFERS
    out = capsys.readouterr().out
    assert "TW: discard is 'old', and must be 'new'." in out
    assert "TW: max_age is" in out


def test_too_few_replicas_are_found(log_site: LogSite, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "check", "--source", str(log_site.address)]) == ExitCode.DIFFERS
    assert "TW has 1 replicas, and should have 3." in capsys.readouterr().out


def check_log(source: str, journal_dir: Path) -> CheckResult:
    """What `check` of an ingest host says of the log."""
    settings = Settings(tiled="http://localhost:8000", source=source, journal_dir=journal_dir)
    return next(result for result in check_host(settings) if result.name == LEASE)


def test_check_says_whether_the_log_is_there_and_whether_one_node_alone_has_it(
    log_site: LogSite, tmp_path: Path
) -> None:
    away = check_log(f"nats://127.0.0.1:{free_port()}", tmp_path)
    assert (away.state.value, "gives no answer" in away.found) == ("fail", True)
    alone = check_log(str(log_site.address), tmp_path)
    assert (alone.state.value, "TW has 1 replicas, and should have 3." in alone.found) == ("warn", True)

    async def delete(connection: Connection) -> None:
        await connection.call(f"STREAM.DELETE.{bucket_stream(RUNS_BUCKET)}")

    log_site.ask(delete)
    missing = check_log(str(log_site.address), tmp_path)
    assert (missing.state.value, missing.found) == ("fail", "There is no stream KV_TW_RUNS.")


def test_servers_that_are_away_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "check", "--source", f"nats://127.0.0.1:{free_port()}"]) == ExitCode.FAILED
    assert "can be used" in capsys.readouterr().err


def test_permissions_are_a_part_of_a_server_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "permissions", "csx"]) == ExitCode.OK
    users = json.loads(capsys.readouterr().out)["authorization"]["users"]
    assert [user["user"] for user in users] == ["supervisor", "csx"]
    assert main(["stream", "permissions", "a.b"]) == ExitCode.USAGE
