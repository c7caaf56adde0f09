"""`tiledwriter-supervisor stream`: a site's log is made, checked, and its permissions printed."""

from __future__ import annotations

import json

import pytest
from log_site import LogSite

from tiledbroker.jetstream import RUNS_BUCKET, Connection, bucket_stream
from tiledwriter.cli._exit import ExitCode
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


def test_servers_that_are_away_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "check", "--source", f"nats://127.0.0.1:{free_port()}"]) == ExitCode.FAILED
    assert "can be used" in capsys.readouterr().err


def test_permissions_are_a_part_of_a_server_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stream", "permissions", "csx"]) == ExitCode.OK
    users = json.loads(capsys.readouterr().out)["authorization"]["users"]
    assert [user["user"] for user in users] == ["supervisor", "csx"]
    assert main(["stream", "permissions", "a.b"]) == ExitCode.USAGE
